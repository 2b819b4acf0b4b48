"""The evaluation from captures to report, on a miniature model."""

import csv
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image

from sidestep.captures import read_captures
from sidestep.captures.pairs import Pair, read_pairs, write_pairs
from sidestep.errors import SidestepError
from sidestep.evaluation import rows
from sidestep.evaluation.comparison import summarise
from sidestep.evaluation.evaluate import GROUPS, evaluate
from sidestep.evaluation.metrics import Metrics
from sidestep.evaluation.protocol import DISTANCES
from sidestep.evaluation.results import Results
from sidestep.images import load_image, resize_and_crop

FURNITURE = Path(__file__).parents[1] / "data" / "furniture"


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pairs of two scenes: short enough for every row."""
    path = tmp_path_factory.mktemp("list") / "list.json"
    pairs = [
        Pair("chair/scopia024", "003.jpg", "005.jpg"),
        Pair("table/scopia091", "010.jpg", "001.jpg"),
        Pair("chair/scopia024", "020.jpg", "002.jpg"),
        Pair("table/scopia091", "004.jpg", "022.jpg"),
    ]
    write_pairs(path, pairs)
    return path


@pytest.fixture
def truths(listed: Path, tmp_path: Path) -> Path:
    """Another program's pictures: the true photos, at another size, but for the last pair."""
    folder = tmp_path / "truths"
    folder.mkdir()
    scenes = {scene.id: scene for scene in read_captures(FURNITURE)}
    for position, pair in enumerate(read_pairs(listed)[:3]):
        (frame,) = [frame for frame in scenes[pair.scene].frames if frame.name == pair.target]
        resize_and_crop(load_image(frame.path), 64).save(folder / f"{position:05d}.png")
    return folder


def test_every_group_of_rows_and_another_programs(tiny_model: Path, listed: Path, truths: Path, tmp_path: Path) -> None:
    done: list[tuple[int, int]] = []
    results = evaluate(
        tiny_model,
        FURNITURE,
        tmp_path / "report",
        pairs=listed,
        groups=GROUPS,
        predictions={"truths": truths},
        steps=3,
        batch_size=3,
        progress=lambda *numbers: done.append(numbers),
    )
    assert done == [(3, 4), (4, 4)]
    names = [row.name for row in results.rows]
    for name in ("copy", "blurred", "floor", "points", "coarse", "auto", "oracle", "variance-c-paper", "autoencoder"):
        assert name in names
    networks = {"LPIPS (Alex)", "LPIPS (VGG)", "FID"}
    assert networks < results.missing.keys()
    assert all(
        "alexnet" in why or "vgg16" in why or "inception" in why
        for title, why in results.missing.items()
        if title in networks
    )
    # The set has neither masks nor depth maps.
    assert results.missing.keys() - networks == {
        "Figures on the object alone", "Figures where the reference could not see",
    }  # fmt: skip
    assert "depth" not in names
    assert not [figure for figure in results.figures if figure.part]
    assert all(not pair.shares for pair in results.pairs)

    # Of the pairs that they have, the true photos differ from themselves by their resizing alone.
    assert results.values["truths"]["psnr"][3] is None
    for figure, better in (("psnr", max), ("perceptual", min)):
        for position in range(3):
            column = {name: results.values[name][figure][position] for name in names if name != "photos"}
            assert better(column, key=lambda name: column[name]) == "truths"
    assert results.estimates["copy"]["all"]["moved"].value == 0
    assert results.estimates["truths"]["all"]["moved"].value == 1
    assert "kernel" in results.estimates["copy"]["all"]
    assert "kernel" not in results.estimates["truths"]["all"]  # of fewer pairs than the others

    assert results.seconds["auto"] > results.seconds["variance"] > results.seconds["coarse"] > 0
    assert {subset for subset in results.estimates["copy"] if subset in DISTANCES} == {"near", "middle", "far"}
    again = Results.read(tmp_path / "report" / "results.json")
    assert again == results
    assert read_pairs(tmp_path / "report" / "pairs.json") == read_pairs(listed)
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "truths" in page
    assert page.count("data:image/jpeg") >= 4 * 6
    # Two pairs a row: reference, coarse, A, B, target, 32 px each with a margin of 4.
    assert Image.open(tmp_path / "report" / "first.jpg").height in range(2 * 36, 2 * 36 + 40)
    with (tmp_path / "report" / "tables.csv").open(encoding="utf-8") as file:
        assert {row["row"] for row in csv.DictReader(file)} == set(names)


def test_an_interrupted_evaluation_goes_on_after_the_last_whole_batch(
    tiny_model: Path, listed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []
    compare = Metrics.compare

    def counting(self: Metrics, row: str, views: torch.Tensor, *arguments: Any) -> Any:
        if row == "coarse":
            measured.append(len(views))
            if len(measured) == 3:
                raise KeyboardInterrupt
        return compare(self, row, views, *arguments)

    monkeypatch.setattr(Metrics, "compare", counting)

    def run(out: Path, steps: int = 2) -> Results:
        results = evaluate(tiny_model, FURNITURE, out, pairs=listed, steps=steps, batch_size=1)
        return replace(results, seconds={}, memory={})

    out = tmp_path / "report"
    with pytest.raises(KeyboardInterrupt):
        run(out)
    assert [path.name for path in out.iterdir()] == [".evaluation"]
    second = out / ".evaluation" / "batch-00001.safetensors"
    second.write_bytes(second.read_bytes()[:-1])  # a damaged one is measured again
    resumed = run(out)
    assert len(measured) == 6
    assert not list(out.glob(".*"))
    assert run(tmp_path / "whole") == resumed
    pages = [(folder / "report.html").read_text(encoding="utf-8") for folder in (out, tmp_path / "whole")]
    assert pages[0].count("data:image/") == pages[1].count("data:image/") > 0

    measured[:] = [0]
    with pytest.raises(KeyboardInterrupt):
        run(out)
    measured[:] = [0] * 3
    assert run(out, steps=3) != resumed  # of other settings nothing is taken
    assert len(measured) == 3 + 4


def test_the_blur_is_the_best_one_and_differences_are_paired(tiny_model: Path, listed: Path, tmp_path: Path) -> None:
    results = evaluate(tiny_model, FURNITURE, tmp_path / "report", pairs=listed, steps=2)
    means = {row: results.estimates[row]["all"]["psnr"].value for row in ("copy", "blurred")}
    assert means["blurred"] > means["copy"]
    (difference,) = [
        each
        for each in results.differences
        if (each.row, each.against, each.figure, each.subset) == ("coarse", "blurred", "psnr", "all")
    ]
    expected = results.estimates["coarse"]["all"]["psnr"].value - means["blurred"]
    assert difference.estimate.value == pytest.approx(expected)
    for name in ("coarse-wrong-camera", "copy", "addition"):
        assert any(each.against == name for each in results.differences)


def test_the_same_command_gives_the_same_figures(tiny_model: Path, listed: Path, tmp_path: Path) -> None:
    """In other batches too; that the protocol's list is the same is for test_protocol.py."""
    first, second = (
        evaluate(tiny_model, FURNITURE, tmp_path / name, pairs=listed, groups=("model",), steps=2, batch_size=size)
        for name, size in (("a", 2), ("b", 3))
    )
    assert first.pairs == second.pairs
    for row, figures in first.values.items():
        if row in ("auto", "oracle"):  # rounding may tip the choice between equals
            continue
        for figure in ("psnr", "perceptual"):
            torch.testing.assert_close(
                torch.tensor(figures[figure]), torch.tensor(second.values[row][figure]), atol=0.2, rtol=0.02
            )


@pytest.fixture(scope="module")
def rooms(room: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scenes: one with depth maps and masks, and one without; and a list of pairs, the last of the other."""
    folder = tmp_path_factory.mktemp("rooms")
    room.write_scene(folder / "known", list(range(0, 40, 8)), size=48)
    room.write_scene(folder / "bare", list(range(0, 40, 8)), size=48, maps=False)
    pairs = [
        Pair("known", "000.png", "002.png"),
        Pair("known", "003.png", "001.png"),
        Pair("known", "003.png", "004.png"),
        Pair("bare", "000.png", "003.png"),
    ]
    write_pairs(folder / "list.json", pairs)
    return folder


def test_depth_maps_and_masks_give_a_row_parts_and_agreement_to_the_pairs_that_have_them(
    tiny_model: Path, rooms: Path, tmp_path: Path
) -> None:
    out = tmp_path / "report"
    results = evaluate(tiny_model, rooms, out, pairs=rooms / "list.json", steps=2)
    values = results.values
    assert values["depth"]["psnr"][3] is None
    for position in range(3):
        for name in ("copy", "blurred", "coarse", "variance"):
            assert values["depth"]["psnr"][position] > values[name]["psnr"][position] + 2
    assert {row.name for row in results.rows if row.true_geometry} == {"points", "depth"}
    assert "warp by" not in " ".join(row.title for s in summarise(results, "variance") for row in (*s.best, s.baseline))
    for figure in ("psnr_object", "ssim_unseen", "perceptual_unseen"):
        assert [value is None for value in values["coarse"][figure]] == [False, False, False, True]
    assert all("unseen" in pair.shares and "object" in pair.shares for pair in results.pairs[:3])
    assert results.pairs[3].shares == {}
    assert not any("Figures" in title for title in results.missing)

    # The third pair's target is the last of the path, and what is before it the reference; the fourth goes by points.
    for name in ("photos", "copy", "blurred", "depth", "coarse", "variance", "addition", "auto"):
        assert [value is None for value in values[name]["agreement"]] == [False, False, True, name == "depth"]
    assert "agreement" not in values["random-noise"]
    assert "agreement" not in {s.figure.name for s in summarise(results, "variance")}
    for position in range(2):
        agreements = {name: values[name]["agreement"][position] for name in ("photos", "depth", "blurred", "copy")}
        assert sorted(agreements, key=lambda name: -agreements[name])[-1] == "copy"
        assert agreements["photos"] > agreements["copy"] + 5
        assert agreements["depth"] > agreements["copy"] + 5
    assert list(values["photos"]) == ["agreement"]

    page = (out / "report.html").read_text(encoding="utf-8")
    for text in (
        "All pairs, on the object alone",
        "where the reference could not see",
        '<span class="name">warp by true depth<sup>§</sup></span>',  # under its pictures
        "% unseen",
    ):
        assert text in page
    with (out / "tables.csv").open(encoding="utf-8") as file:
        lines = [line for line in csv.DictReader(file) if line["subset"] == "all"]
    measured = {(line["row"], line["figure"]): line["pairs"] for line in lines}
    assert [measured[row, "psnr"] for row in ("depth", "coarse")] == ["3", "4"]
    assert [measured[row, "psnr_object"] for row in ("depth", "coarse")] == ["3", "3"]
    assert [measured[row, "agreement"] for row in ("depth", "coarse")] == ["2", "3"]
    with (out / "pairs.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert float(lines[0]["unseen_share"]) == results.pairs[0].shares["unseen"]
    assert lines[-1]["unseen_share"] == ""
    tex = (out / "tables.tex").read_text()
    assert r"\label{tab:all-object}" in tex
    assert r"Agreement (dB) $\uparrow$ (3 pairs)" in tex


def test_views_that_are_not_finite_are_counted_and_the_rest_is_evaluated(
    tiny_model: Path, listed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(batch: rows.Batch) -> torch.Tensor:
        views = batch.coarse.clone()
        views[0, 1, 5, 5] = math.nan
        return views

    def lost(batch: rows.Batch) -> torch.Tensor:
        return torch.full_like(batch.coarse, math.inf)

    monkeypatch.setattr(rows, "_coarse", damaged)
    monkeypatch.setattr(rows, "_auto", lost)
    out = tmp_path / "report"
    results = evaluate(tiny_model, FURNITURE, out, pairs=listed, groups=("model",), steps=2, batch_size=2)
    assert results.not_finite == {"coarse": 2, "auto": 4}
    assert [value is None for value in results.values["coarse"]["psnr"]] == [True, False, True, False]
    assert None not in results.values["variance"]["psnr"]
    assert "auto" not in [row.name for row in results.rows]
    assert results.missing["auto"] == "all of its 4 views hold NaN or infinity"
    assert Results.read(out / "results.json").not_finite == results.not_finite
    assert "2 views with NaN or infinity left out" in (out / "report.html").read_text(encoding="utf-8")


def test_second_views_that_are_not_finite_are_counted_and_their_pairs_lack_the_agreement(
    tiny_model: Path, rooms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def damaged(batch: rows.Batch) -> torch.Tensor:
        calls.append(len(batch.positions))
        views = batch.coarse.clone()
        if len(calls) == 2:  # the one batch's second views, of which the third is of no next camera
            views[1:3] = math.nan
        return views

    monkeypatch.setattr(rows, "_coarse", damaged)
    results = evaluate(
        tiny_model, rooms, tmp_path / "report", pairs=rooms / "list.json", groups=("model",), steps=1, batch_size=4
    )
    assert calls == [4, 4]
    assert results.not_finite == {"coarse": 1}
    assert [value is None for value in results.values["coarse"]["agreement"]] == [False, True, True, False]
    assert [value is None for value in results.values["variance"]["agreement"]] == [False, False, True, False]
    assert None not in results.values["coarse"]["psnr"]


def test_scenes_without_points_lack_the_rows_that_need_them(tiny_model: Path, tmp_path: Path) -> None:
    frames = []
    scene = next(scene for scene in read_captures(FURNITURE) if scene.name == "scopia024")
    (tmp_path / "scopia024" / "images").mkdir(parents=True)
    for frame in scene.frames[::6]:
        frame.load().save(tmp_path / "scopia024" / "images" / frame.name, quality=95)
        pose = torch.linalg.inv(frame.camera.world_to_camera.double()) @ torch.diag(
            torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64)
        )
        frames.append({"file_path": f"images/{frame.name}", "transform_matrix": pose.tolist()})
    k = scene.frames[0].camera.intrinsics
    lens = {"fl_x": float(k[0, 0]), "fl_y": float(k[1, 1]), "cx": float(k[0, 2]), "cy": float(k[1, 2])}
    size = {"w": scene.frames[0].camera.width, "h": scene.frames[0].camera.height}
    (tmp_path / "scopia024" / "transforms.json").write_text(json.dumps({**lens, **size, "frames": frames}))
    results = evaluate(tiny_model, tmp_path / "scopia024", tmp_path / "report", groups=("baseline",), steps=2)
    assert [row.name for row in results.rows] == ["copy", "blurred"]
    assert math.isfinite(results.estimates["copy"]["all"]["psnr"].value)


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"predictions": {"../up": Path("x")}}, "name a row by letters"),
        ({"predictions": {"theirs": Path("absent")}}, "absent: no such folder of predictions"),
        ({"predictions": {"copy": FURNITURE}}, "'copy' is the name of another row"),
        ({"predictions": {"target": FURNITURE}}, "'target' is the name of another row"),
        ({"protocol": "paper"}, "protocol 'paper': no such protocol; there are distance, paper-3class"),
        ({"groups": ("limit",)}, "only such that see the true target; add the rows baseline or model"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"groups": ("baselines",)}, "rows 'baselines': no such group; there are baseline, model, option, limit"),
        ({"split": "val"}, "none of the 3 scenes is in split val"),
    ],
)
def test_what_is_refused(tiny_model: Path, tmp_path: Path, options: dict, fault: str) -> None:
    with pytest.raises(SidestepError, match=fault):
        evaluate(tiny_model, FURNITURE, tmp_path / "report", **options)
    assert not (tmp_path / "report").exists()


def test_a_report_that_cannot_be_written_is_refused_before_the_work(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "report"):
        with pytest.raises(SidestepError, match=r"file.*: cannot be a folder to write into \(.*\); name another"):
            evaluate(tiny_model, FURNITURE, out, progress=lambda *_: pytest.fail("it began"))


@pytest.mark.parametrize("damaged", ["depths/001.png", "masks/003.png", "images/004.png"])  # the last beside a target
def test_a_damaged_photo_or_map_is_refused_before_the_work(
    tiny_model: Path, rooms: Path, tmp_path: Path, damaged: str
) -> None:
    shutil.copytree(rooms, tmp_path / "rooms")
    file = tmp_path / "rooms" / "known" / damaged
    file.write_bytes(file.read_bytes()[:-200])
    write_pairs(tmp_path / "list.json", [Pair("bare", "000.png", "003.png"), Pair("known", "001.png", "003.png")])
    with pytest.raises(SidestepError, match=file.name):
        evaluate(
            tiny_model,
            tmp_path / "rooms",
            tmp_path / "report",
            pairs=tmp_path / "list.json",
            batch_size=1,
            progress=lambda *_: pytest.fail("it began"),
        )
    assert not (tmp_path / "report").exists()


def test_photos_that_only_the_agreement_needs_are_not_read_without_it(
    tiny_model: Path, rooms: Path, tmp_path: Path
) -> None:
    shutil.copytree(rooms, tmp_path / "rooms")
    file = tmp_path / "rooms" / "known" / "images" / "004.png"
    file.write_bytes(file.read_bytes()[:-200])
    write_pairs(tmp_path / "list.json", [Pair("known", "001.png", "003.png")])
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    shutil.copy(rooms / "known" / "images" / "003.png", pictures / "00000.png")
    results = evaluate(
        tiny_model,
        tmp_path / "rooms",
        tmp_path / "report",
        pairs=tmp_path / "list.json",
        groups=(),
        predictions={"theirs": pictures},
    )
    assert list(results.values) == ["theirs"]


def test_a_damaged_picture_of_another_program_is_refused_before_the_work(
    tiny_model: Path, listed: Path, truths: Path, tmp_path: Path
) -> None:
    (truths / "00002.png").write_bytes((truths / "00002.png").read_bytes()[:500])
    with pytest.raises(SidestepError, match=r"00002\.png: .*damaged"):
        evaluate(tiny_model, FURNITURE, tmp_path / "report", pairs=listed, predictions={"theirs": truths})
    assert not (tmp_path / "report").exists()


def test_another_programs_row_is_compared_in_pairs_where_the_model_has_none(
    tiny_model: Path, listed: Path, truths: Path, tmp_path: Path
) -> None:
    out = tmp_path / "report"
    results = evaluate(
        tiny_model, FURNITURE, out, pairs=listed, groups=("baseline",), predictions={"truths": truths}, steps=2
    )
    compared = {(each.row, each.against) for each in results.differences}
    assert compared == {("truths", name) for name in ("copy", "blurred", "floor", "points")}


def test_a_folder_without_pictures_of_the_list_is_refused(tiny_model: Path, listed: Path, tmp_path: Path) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "00004.png")
    with pytest.raises(SidestepError, match=r"no picture for any of the 4 pairs; name them 00000\.png"):
        evaluate(tiny_model, FURNITURE, tmp_path / "report", pairs=listed, predictions={"theirs": tmp_path})
