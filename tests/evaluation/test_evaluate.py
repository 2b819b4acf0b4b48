"""The evaluation from captures to report, on a miniature model."""

import csv
import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from sidestep.captures import read_captures
from sidestep.captures.pairs import Pair, read_pairs, write_pairs
from sidestep.errors import SidestepError
from sidestep.evaluation.evaluate import GROUPS, evaluate
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
    assert set(results.missing) == {"LPIPS (Alex)", "LPIPS (VGG)", "FID"}
    assert all("alexnet" in why or "vgg16" in why or "inception" in why for why in results.missing.values())

    # Of the pairs that they have, the true photos differ from themselves by their resizing alone.
    assert results.values["truths"]["psnr"][3] is None
    for figure, better in (("psnr", max), ("perceptual", min)):
        for position in range(3):
            column = {name: results.values[name][figure][position] for name in names}
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


def test_the_same_command_gives_the_same_figures(tiny_model: Path, tmp_path: Path) -> None:
    first, second = (
        evaluate(tiny_model, FURNITURE, tmp_path / name, groups=("model",), steps=2, batch_size=size)
        for name, size in (("a", 4), ("b", 9))
    )
    assert first.pairs == second.pairs
    assert len(first.pairs) == 18
    for row, figures in first.values.items():
        if row in ("auto", "oracle"):  # rounding may tip the choice between equals
            continue
        for figure in ("psnr", "perceptual"):
            torch.testing.assert_close(
                torch.tensor(figures[figure]), torch.tensor(second.values[row][figure]), atol=0.2, rtol=0.02
            )


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
