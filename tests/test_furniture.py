"""The furniture world of benchmarks/furniture: its catalogue, its plans (without Blender), and two rendered scenes."""

import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sidestep.cameras import Camera
from sidestep.captures import Frame, Scene, read_captures
from sidestep.captures.splits import SPLITS, model_split
from sidestep.evaluation.agreement import colours
from sidestep.evaluation.depth import matched, places_in
from sidestep.images import to_tensor

ROOT = Path(__file__).parents[1]
WORLD = Path(__file__).parent / "data" / "world"
PARTS = ("models", "kinds", "catalogue", "textures", "boxes", "handheld", "world", "scene_files", "make")
CUBE = "v 0 0 0\nv 1 0 0\nv 1 2 0\nv 0 2 3\nf 1 2 3 4\nf 1 2 3\n"


@pytest.fixture(scope="module")
def tools() -> Iterator[Any]:
    """The program's modules that need no Blender."""
    before = set(sys.modules)
    sys.path.insert(0, str(ROOT / "benchmarks" / "furniture"))
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in PARTS})
    sys.path.remove(str(ROOT / "benchmarks" / "furniture"))
    for name in set(PARTS) - before:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def furniture(tools: Any) -> list[Any]:
    """Sixty models of several kinds, without files: enough to furnish rooms of every split."""
    kinds = (
        ("chair", "floor", (0.5, 0.5, 0.9), None),
        ("sofa", "floor", (1.9, 0.9, 0.8), None),
        ("table", "floor", (1.4, 0.8, 0.74), 0.74),
        ("table", "floor", (0.9, 0.5, 0.45), 0.45),
        ("shelf", "wall", (0.8, 0.3, 1.8), None),
        ("lamp", "floor", (0.3, 0.3, 1.4), None),
        ("decoration", "table", (0.25, 0.2, 0.3), None),
    )
    models = []
    for i in range(60):
        category, place, size, top = kinds[i % len(kinds)]
        models.append(
            tools.models.Model(
                f"thing{i:03d}", "Lib", category, "Someone", "CC0", category, Path("x.obj"), size, place, True, top
            )
        )
    return models


@pytest.fixture(scope="module")
def plans(tools: Any, furniture: list[Any]) -> list[Any]:
    return [tools.world.plan_scene(model, 10, furniture) for model in furniture[:21]]


def library(path: Path, members: dict[str, str], properties: str) -> Path:
    path.mkdir(exist_ok=True)
    file = path / "Scopia.sh3f"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("LICENSE.TXT", "free")
        archive.writestr("PluginFurnitureCatalog.properties", properties)
        for name, text in members.items():
            archive.writestr(name, text)
    return file


def entry(index: int, name: str, model: str, **more: str) -> str:
    values = {"name": name, "category": "Living room", "model": model, "creator": "Ann", "width": "50", "depth": "60"}
    return "".join(f"{key}#{index}={value}\n" for key, value in (values | {"height": "90"} | more).items())


# The catalogue


def test_a_library_becomes_models_with_their_creators(tools: Any, tmp_path: Path) -> None:
    materials = "newmtl a\nKd 1 0 0\nmap_Kd C:\\Users\\Ann\\Oak.JPG\nnewmtl b\nmap_Kd nowhere.png\n"
    members = {"/s/chair/c.obj": f"mtllib C.mtl\n{CUBE}", "/s/chair/c.mtl": materials, "/s/chair/oak.jpg": "picture"}
    members = {name.lstrip("/"): text for name, text in members.items()}
    properties = entry(7, "Ann\\u2019s chair", "/s/chair/c.obj", modelRotation="1 0 0 0 0 1 0 -1 0")
    archive = tools.catalogue.Archive(library(tmp_path / "in", members, properties))
    (one,) = tools.catalogue.read_properties(properties)
    tools.catalogue.extract(archive, "Scopia", one, tmp_path / "out")
    (model,) = tools.models.read_models(tmp_path / "out")
    assert (model.name, model.title, model.category, model.main) == ("scopia007", "Ann’s chair", "chair", True)
    assert model.size == pytest.approx((0.5, 0.6, 0.9))
    assert "Scopia" in model.creator
    assert model.licence == "CC BY 3.0"
    # The texture is found by its file name; the one that is nowhere is left out.
    assert "map_Kd oak.jpg" in model.file.with_suffix(".mtl").read_text()
    assert "nowhere" not in model.file.with_suffix(".mtl").read_text()
    assert (model.file.parent / "oak.jpg").read_text() == "picture"
    assert "v 0 3 -2" in model.file.read_text()  # (0, 2, 3) turned


@pytest.mark.parametrize("text", ["", "v 0 0 0\nv 1 0 0\n", "v 1 1 1\nv 1 1 1\nv 1 1 1\nf 1 2 3\n"])
def test_a_model_without_a_mesh_is_refused_by_name(
    tools: Any, tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tools.catalogue, "LIBRARIES", {"Scopia": ""})
    library(tmp_path / "in", {"c.obj": text, "d.obj": CUBE}, entry(1, "Chair", "c.obj") + entry(2, "Chair", "d.obj"))
    tools.catalogue.main([str(tmp_path / "in"), "--out", str(tmp_path / "out")])
    assert list(json.loads((tmp_path / "out" / "refused.json").read_text())) == ["scopia001"]
    assert "refused scopia001 (Chair)" in capsys.readouterr().err
    assert [model.name for model in tools.models.read_models(tmp_path / "out")] == ["scopia002"]


def test_a_model_that_trains_and_has_a_twin_that_tests_is_refused(
    tools: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tools.catalogue, "LIBRARIES", {"Scopia": ""})
    library(tmp_path / "in", {"c.obj": CUBE}, entry(95, "Table", "c.obj") + entry(96, "Teak table", "c.obj"))
    tools.catalogue.main([str(tmp_path / "in"), "--out", str(tmp_path / "out")])
    assert [model.name for model in tools.models.read_models(tmp_path / "out")] == ["scopia095"]
    assert "refused scopia096 (Teak table): it would train, and is nearly scopia095" in capsys.readouterr().err


def test_only_a_library_of_the_named_version_passes_without_a_warning(
    tools: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = library(tmp_path / "in", {"c.obj": CUBE}, entry(1, "Chair", "c.obj"))
    monkeypatch.setattr(tools.catalogue, "LIBRARIES", {"Scopia": hashlib.sha256(file.read_bytes()).hexdigest()})
    command = [str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    tools.catalogue.main(command)
    assert capsys.readouterr().err == ""
    with file.open("ab") as archive:  # still a ZIP archive
        archive.write(b"\n")
    tools.catalogue.main(command)
    assert f"Scopia.sh3f is not the one of sweethome3d-furniture {tools.catalogue.VERSION}" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../outside.obj", "/etc/outside.obj", "a/../../outside.obj", "a\\..\\outside.obj"])
def test_an_archive_that_writes_outside_of_itself_is_refused(tools: Any, tmp_path: Path, name: str) -> None:
    file = library(tmp_path, {"c.obj": CUBE}, "")
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(name, CUBE)
    with pytest.raises(tools.models.FurnitureError, match="outside of its folder"):
        tools.catalogue.Archive(file)


@pytest.mark.parametrize(
    ("title", "category", "place", "main"),
    [
        ("Wooden desk", "table", "floor", True),
        ("Desk lamp", "lamp", "floor", True),
        ("Corner sofa", "sofa", "floor", True),
        ("Bookcase", "shelf", "wall", True),
        ("Piano bench", "bench", "floor", True),
    ],
)
def test_kinds_follow_the_title(tools: Any, title: str, category: str, place: str, main: bool) -> None:
    kind = tools.kinds.kind_of(title, "Living room", (1.2, 0.6, 0.8), 0.0)
    assert (kind.category, kind.place, kind.main) == (category, place, main)


def test_people_and_roads_do_not_belong_into_a_room(tools: Any) -> None:
    assert tools.kinds.kind_of("Sitting male", "Characters", (0.6, 0.9, 1.3), 0.0) is None
    assert tools.kinds.kind_of("Rail crossing", "Exterior", (0.6, 0.9, 1.3), 0.0) is None


# The split


def test_the_split_is_sidesteps(tools: Any) -> None:
    names = [f"{library}{i:03d}" for library in ("scopia", "infinigen", "blendswapcc") for i in range(300)]
    assert [tools.models.split_of(name) for name in names] == [model_split(name) for name in names]


def test_the_committed_lists_are_the_rules() -> None:
    lists = json.loads((ROOT / "benchmarks" / "furniture" / "splits.json").read_text())
    assert set(lists) == set(SPLITS)
    assert all(len(lists[split]) > 30 for split in SPLITS)
    for split, names in lists.items():
        assert {model_split(name) for name in names} == {split}


def test_the_committed_lists_keep_twins_out_of_training(tools: Any) -> None:
    lists = json.loads((ROOT / "benchmarks" / "furniture" / "splits.json").read_text())
    assert tools.catalogue.TWINS
    for twin, held_out in tools.catalogue.TWINS.items():
        assert model_split(twin) == "train"
        assert twin not in lists["train"]
        assert held_out in lists["test"]
    assert not set(tools.catalogue.UNSOUND) & {name for names in lists.values() for name in names}


def test_no_scene_mixes_splits(plans: list[Any]) -> None:
    assert {plan.split for plan in plans} == set(SPLITS)
    for plan in plans:
        assert {model_split(item.model) for item in plan.items} == {plan.split}


def test_the_order_of_scenes_is_a_fair_sample_and_leaves_names_of_older_scenes_alone(
    tools: Any, furniture: list[Any], tmp_path: Path
) -> None:
    first = tools.make.jobs(furniture, tmp_path, 50)
    longer = tools.make.jobs(furniture, tmp_path, 200)
    assert longer[:50] == first
    assert len({job.out for job in longer}) == 200
    assert {job.model.split for job in first} == set(SPLITS)
    assert all(job.variant >= 10 for job in longer)
    only = tools.make.jobs(furniture, tmp_path, 20, "test")
    assert {job.model.split for job in only} == {"test"}
    assert set(only) <= set(tools.make.jobs(furniture, tmp_path, 600))


Renderer = Callable[[Any], str | None]


@pytest.fixture
def make(tools: Any, furniture: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes a world of so many scenes in `tmp_path / "world"` with a renderer of the test's own, without Blender."""
    monkeypatch.setattr(tools.make, "check_blender", lambda: None)

    def run(scenes: int, render: Renderer, *more: str, models: list[Any] = furniture) -> None:
        monkeypatch.setattr(tools.make.Renderer, "render", lambda self, job: render(job))
        monkeypatch.setattr(tools.make, "read_models", lambda *folders: models)
        world = str(tmp_path / "world")
        tools.make.main(["--models", str(tmp_path), "--out", world, "--scenes", str(scenes), *more])

    return run


def rendered(job: Any) -> None:
    job.out.mkdir(parents=True)


def test_rendering_goes_on_where_it_was_stopped_and_passes_over_what_failed(
    tools: Any,
    furniture: list[Any],
    make: Callable[..., None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tried = []

    def render(job: Any) -> str | None:
        tried.append(job.out.name)
        return "Traceback\nout of memory" if job.model.category == "sofa" else rendered(job)

    with pytest.raises(tools.models.FurnitureError, match="scenes failed: see"):
        make(12, render, "--workers", "2")
    sofas = {name for name in tried if furniture[int(name[5:8])].category == "sofa"}
    assert len(tried) == 12
    assert sofas
    assert {file.stem for file in (tmp_path / "world" / ".failed").iterdir()} == sofas
    assert f"{min(sofas)}: out of memory" in capsys.readouterr().out
    make(20, lambda job: tried.append(job.out.name) or rendered(job))
    assert len(tried) == len(set(tried)) == 20


def test_scenes_that_fail_in_a_row_and_alike_end_the_run_and_are_not_given_up(
    tools: Any, make: Callable[..., None], tmp_path: Path
) -> None:
    tried = []

    def render(job: Any) -> str | None:
        tried.append(job.out.name)
        return rendered(job) if len(tried) < 3 else f"scene {job.out.name}\nno space left"

    with pytest.raises(tools.models.FurnitureError, match=r"3 scenes in a row failed alike \(no space left\)"):
        make(40, render)
    assert not list((tmp_path / "world" / ".failed").iterdir())


def test_a_world_goes_on_with_the_models_and_the_size_it_was_begun_with(
    tools: Any, furniture: list[Any], make: Callable[..., None], tmp_path: Path
) -> None:
    make(2, rendered)
    make(3, rendered, models=furniture[::-1])
    with pytest.raises(tools.models.FurnitureError, match="begun with other models"):
        make(4, rendered, models=furniture[1:])
    with pytest.raises(tools.models.FurnitureError, match="begun with --size 256"):
        make(4, rendered, "--size", "128")
    with pytest.raises(tools.models.FurnitureError, match="begun with --every 1"):
        make(4, rendered, "--every", "2")
    assert len(list((tmp_path / "world").glob("*/*s10"))) == 3
    # One begun before there was a note takes what it is given.
    (tmp_path / "world" / "world.json").unlink()
    make(4, rendered, models=furniture[1:])
    with pytest.raises(tools.models.FurnitureError, match="begun with other models"):
        make(5, rendered)
    (tmp_path / "world" / "world.json").write_text("{")
    with pytest.raises(tools.models.FurnitureError, match=r"world\.json: cannot be read"):
        make(5, rendered)


def test_a_blender_that_does_not_start_gives_up_no_scene(
    tools: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bpy.py").write_text("raise ImportError('libSM.so.6: cannot open shared object file')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(tools.models.FurnitureError, match=r"cannot import bpy and OpenEXR .*libSM\.so\.6"):
        tools.make.main(["--models", str(tmp_path), "--out", str(tmp_path / "world")])
    assert not (tmp_path / "world").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM to send")
def test_a_termination_ends_the_renderers_too(tools: Any, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.mkdir()
    for file in (ROOT / "benchmarks" / "furniture").glob("*.py"):
        (program / file.name).write_bytes(file.read_bytes())
    for name in ("bpy", "OpenEXR"):
        (program / f"{name}.py").touch()
    note = tmp_path / "renderer"
    (program / "render.py").write_text(
        "import os, pathlib, time\n"
        f"note = pathlib.Path({str(note)!r})\n"
        "note.with_suffix('.part').write_text(str(os.getpid()))\n"
        "note.with_suffix('.part').replace(note)\n"
        "time.sleep(60)\n"
    )
    library(tmp_path, {"c.obj": CUBE}, chair := entry(1, "Chair", "c.obj"))
    archive = tools.catalogue.Archive(tmp_path / "Scopia.sh3f")
    tools.catalogue.extract(archive, "Scopia", tools.catalogue.read_properties(chair)[0], tmp_path / "models")
    command = [sys.executable, str(program / "make.py"), "--models", str(tmp_path / "models")]
    environment = os.environ | {"PYTHONPATH": str(program)}
    process = subprocess.Popen(
        [*command, "--out", str(tmp_path / "world")], env=environment, stderr=subprocess.PIPE, text=True
    )
    try:
        while not note.exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.terminate()
        assert "the same command goes on" in process.communicate(timeout=50)[1]
    finally:
        process.kill()
    assert process.returncode == 1
    with pytest.raises(ProcessLookupError):
        os.kill(int(note.read_text()), 0)
    assert not (tmp_path / "world" / ".failed").exists()


def test_a_scene_that_was_broken_off_leaves_nothing_once_it_is_made_again(
    tools: Any, furniture: list[Any], plans: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = replace(plans[0], views=plans[0].views[:2])
    models = {model.name: model for model in furniture}
    maps = np.zeros((2, 8, 8, 3), np.uint8), np.ones((2, 8, 8)), np.ones((2, 8, 8), bool)
    with monkeypatch.context() as killed:
        killed.setattr(os, "getpid", lambda: 1)
        killed.setattr(os, "replace", lambda *paths: sys.exit("killed"))
        with pytest.raises(SystemExit):
            tools.scene_files.write_scene(tmp_path / plan.name, plan, models, *maps)
    assert list(tmp_path.iterdir())
    tools.scene_files.write_scene(tmp_path / plan.name, plan, models, *maps)
    assert [path.name for path in tmp_path.iterdir()] == [plan.name]


# Plans


def test_a_plan_follows_from_its_seed_alone(tools: Any, furniture: list[Any], plans: list[Any]) -> None:
    again = [tools.world.plan_scene(model, 10, furniture[::-1]) for model in furniture[:3]]
    assert again == plans[:3]
    assert tools.world.plan_scene(furniture[0], 11, furniture) != plans[0]


def test_fewer_cameras_are_some_of_all(plans: list[Any]) -> None:
    fewer = plans[0].every(2)
    assert fewer.views == plans[0].views[::2]
    assert fewer.exposure.stops == plans[0].exposure.stops[::2]
    assert (len(fewer.views), fewer.items) == (13, plans[0].items)


def test_things_stand_apart_and_inside_the_room(tools: Any, furniture: list[Any], plans: list[Any]) -> None:
    size = {model.name: model.size for model in furniture}
    for plan in plans:
        assert plan.items[0].model + "s10" == plan.name
        assert len(plan.items) >= 3
        boxes = [tools.boxes.Box(i.x, i.y, i.z, size[i.model], i.angle) for i in plan.items]
        for i, box in enumerate(boxes):
            assert plan.room.holds(box), plan.name
            assert not any(tools.boxes.overlap(box, other) for other in boxes[:i]), plan.name
            on_something = any(abs(o.z + o.size[2] - box.z) < 0.05 for o in boxes if o is not box)
            assert box.z == 0 or on_something, plan.name


def test_cameras_move_as_a_hand_does(tools: Any, furniture: list[Any], plans: list[Any]) -> None:
    size = {model.name: model.size for model in furniture}
    ways, spread, rolls, fields = set(), [], [], []
    for plan in plans:
        first = plan.items[0]
        boxes = [tools.boxes.Box(i.x, i.y, i.z, size[i.model], i.angle) for i in plan.items]
        eyes = np.array([view.eye for view in plan.views])
        assert eyes.shape == (25, 3)
        assert (eyes[:, 0] > plan.room.x0).all()
        assert (eyes[:, 0] < plan.room.x1).all()
        assert (eyes[:, 1] > plan.room.y0).all()
        assert (eyes[:, 1] < plan.room.y1).all()
        assert (eyes[:, 2] > 0).all()
        assert (eyes[:, 2] < plan.room.height).all()
        assert all(box.distance(eyes).min() > 0.02 for box in boxes), plan.name
        about = eyes - boxes[0].centre
        azimuth = np.degrees(np.unwrap(np.arctan2(about[:, 0], -about[:, 1])))
        elevation = np.degrees(np.arcsin(about[:, 2] / np.linalg.norm(about, axis=1)))
        assert 60 < np.ptp(azimuth) < 165
        assert elevation.min() > -1
        assert elevation.max() < 61
        ways.add(float(np.sign(azimuth[-1] - azimuth[0])))
        spread.append(np.ptp(elevation))
        rolls += [view.roll for view in plan.views]
        fields.append(plan.views[0].field_of_view)
        seen = np.array([view.project(boxes[0].centre) for view in plan.views])
        assert (seen[:, 2] > 0).all()
        assert (np.abs(seen[:, :2]) < 0.7).all(), plan.name
        sight = np.ones((25, 27), dtype=bool)
        for box in boxes[1:]:
            if box.z == 0 and first.z == 0:
                sight &= ~tools.boxes.blocked(box, eyes, boxes[0].samples())
        assert sight.mean() > 0.75, plan.name
    assert ways == {-1.0, 1.0}
    assert np.median(spread) > 18
    assert 1 < max(np.abs(rolls)) <= 8
    assert np.ptp(fields) > 10


def test_plans_keep_to_the_figures_of_the_readme(tools: Any, furniture: list[Any], plans: list[Any]) -> None:
    readme = " ".join((ROOT / "benchmarks" / "furniture" / "README.md").read_text(encoding="utf-8").split())

    def figures(words: str) -> list[float]:
        match = re.search(words, readme)
        assert match is not None, words
        return [float(figure) for figure in match.groups()]

    narrow, wide = figures(r"field of view is (\d+) to (\d+) degrees")
    shortest, longest, more = figures(r"go (\d+) to (\d+) degrees about the thing, give or take (\d+)")
    lowest, highest = figures(r"between (\d+) and (\d+) degrees above it")
    (roll,) = figures(r"roll \((\d+) degrees at most\)")
    floor, ceiling, clear = figures(
        r"(\d+) cm above the floor, (\d+) cm below the ceiling, and (\d+) cm from the boxes"
    )
    (sight,) = figures(r"(\d+)% of it on average")
    least, most = figures(r"and (\d+) to (\d+) further things")
    fields = tools.handheld.FIELD_OF_VIEW
    assert narrow <= 0.94 * fields[0] + 0.5
    assert 1.06 * fields[1] - 0.5 <= wide
    size = {model.name: model.size for model in furniture}
    for plan in plans:
        boxes = [tools.boxes.Box(i.x, i.y, i.z, size[i.model], i.angle) for i in plan.items]
        others = boxes[2 if plan.items[0].z > 0 else 1 :]  # without what the thing stands on
        eyes = np.array([view.eye for view in plan.views])
        about = eyes - boxes[0].centre
        azimuth = np.degrees(np.unwrap(np.arctan2(about[:, 0], -about[:, 1])))
        elevation = np.degrees(np.arcsin(about[:, 2] / np.linalg.norm(about, axis=1)))
        seen = ~np.any([tools.boxes.blocked(box, eyes, boxes[0].samples()) for box in others], axis=0)
        assert all(narrow <= view.field_of_view <= wide for view in plan.views)
        assert shortest - more <= np.ptp(azimuth) <= longest + more
        assert lowest - 1e-6 <= elevation.min() <= elevation.max() <= highest + 1e-6
        assert max(abs(view.roll) for view in plan.views) <= roll
        assert eyes[:, 2].min() >= floor / 100 - 1e-6
        assert plan.room.height - eyes[:, 2].max() >= ceiling / 100 - 1e-6
        assert min(box.distance(eyes).min() for box in others) >= clear / 100
        assert seen.mean() >= sight / 100
        assert least <= len(plan.items) - 1 <= most


@pytest.mark.parametrize("kind", ["planks", "parquet", "tiles", "carpet", "wallpaper", "brick", "rug", "weave"])
def test_surfaces_are_pictures_that_the_seed_alone_decides(tools: Any, kind: str) -> None:
    one, two, other = tools.textures.paint(kind, 3), tools.textures.paint(kind, 3), tools.textures.paint(kind, 4)
    assert np.array_equal(one.pixels, two.pixels)
    assert not np.array_equal(one.pixels, other.pixels)
    assert one.pixels.min() >= 0
    assert one.pixels.max() <= 1
    assert 0.05 < one.pixels.mean() < 0.95
    assert one.pixels.std() > 0.005


# Rendered scenes


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return read_captures(WORLD)


def test_the_sample_is_read_with_its_maps(scenes: list[Scene]) -> None:
    assert len(scenes) >= 2
    for scene in scenes:
        assert scene.points is not None
        assert len(scene.points) > 100
        for frame in scene.frames:
            mask, depth, photo = frame.load_mask(), frame.load_depth(), np.array(frame.load())
            assert mask is not None
            assert depth is not None
            assert 0.01 < float(mask.float().mean()) < 0.95
            assert float((depth > 0).float().mean()) > 0.8  # the rest is what the windows show
            assert 50 < photo.mean() < 205, f"{scene.id} {frame.name} is black or burnt"
            assert photo.std() > 15


def test_depth_takes_a_pixel_to_the_same_place_in_another_frame(scenes: list[Scene]) -> None:
    """What both frames see has the depth that the other frame's map says; the rest is hidden or out of the picture."""
    for scene in scenes:
        for one, two in zip(scene.frames[::4], scene.frames[2::4], strict=False):
            depth, other = one.load_depth(), two.load_depth()
            assert depth is not None
            assert other is not None
            height, width = depth.shape
            v, u = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
            rays = torch.stack((u, v, torch.ones_like(u)), -1) @ one.camera.intrinsics.inverse().T
            points = (rays * depth[..., None]).reshape(-1, 3)[depth.flatten() > 0]
            move = two.camera.world_to_camera @ one.camera.world_to_camera.inverse()
            moved = points @ move[:3, :3].T + move[:3, 3]
            there = moved @ two.camera.intrinsics.T
            x, y = there[:, 0] / there[:, 2], there[:, 1] / there[:, 2]
            inside = (moved[:, 2] > 0.05) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
            found = other[y[inside].long(), x[inside].long()]
            error = ((found - moved[inside, 2]) / moved[inside, 2]).abs()[found > 0]
            assert float(error.median()) < 0.004, f"{scene.id} {one.name} {two.name}"
            assert float((error < 0.02).float().mean()) > 0.6, f"{scene.id} {one.name} {two.name}"


HALF = ((0.5, 0.0), (-0.5, 0.0), (0.0, 0.5), (0.0, -0.5))  # a pixel


def shifted(camera: Camera, x: float, y: float) -> Camera:
    """The camera with its principal point moved by pixels."""
    intrinsics = camera.intrinsics.clone()
    intrinsics[:2, 2] += torch.tensor((x, y))
    return Camera(intrinsics, camera.world_to_camera, camera.width, camera.height)


def test_depth_maps_and_cameras_agree_to_less_than_half_a_pixel(scenes: list[Scene]) -> None:
    """The depths of two views are the most alike if the cameras are as the files say, on pixels' centres."""

    def difference(one: Frame, two: Frame, x: float, y: float) -> float:
        depth, other = one.load_depth(), two.load_depth()
        assert depth is not None
        assert other is not None
        first, second = shifted(one.camera, x, y), shifted(two.camera, x, y)
        here, there = matched(depth, other, first, second)
        _, moved = places_in(second, first, depth)
        v, u = (here - 0.5).long().unbind(1)[::-1]
        return float((colours(other[None], there)[:, 0] / moved[v, u] - 1).abs().median())

    for scene in scenes:
        pairs = list(zip(scene.frames[:-6:12], scene.frames[6::12], strict=True))
        right = np.mean([difference(*pair, 0, 0) for pair in pairs])
        for half in HALF:
            assert right < 0.6 * np.mean([difference(*pair, *half) for pair in pairs]), f"{scene.id} {half}"


def test_photos_and_cameras_agree_to_less_than_half_a_pixel(scenes: list[Scene]) -> None:
    """Two views agree on colours the best where the true cameras say, not half a pixel beside."""

    def error(one: Frame, two: Frame, x: float, y: float) -> float:
        depth, other = one.load_depth(), two.load_depth()
        assert depth is not None
        assert other is not None
        here, there = matched(depth, other, shifted(one.camera, x, y), two.camera)
        return float((colours(to_tensor(one.load()), here) - colours(to_tensor(two.load()), there)).square().mean())

    for scene in scenes:
        pairs = list(zip(scene.frames[:-1:12], scene.frames[1::12], strict=True))
        right = np.mean([error(*pair, 0, 0) for pair in pairs])
        for half in HALF:
            assert right < 0.95 * np.mean([error(*pair, *half) for pair in pairs]), f"{scene.id} {half}"


def outlines_beside_the_masks(photos: list[torch.Tensor], masks: list[torch.Tensor]) -> float:
    """How many pixels to the right of the masks' left and right borders the photos change the most, on average."""
    steps = torch.arange(-2, 3)
    change = torch.zeros(5)
    for photo, mask in zip(photos, masks, strict=True):
        gradient = photo.diff(dim=-1).abs().sum(0)
        rows, columns = (mask.diff(dim=-1)[:, 3:-3] != 0).nonzero(as_tuple=True)
        around = gradient[rows[:, None], columns[:, None] + 3 + steps]
        change += around[around.sum(1) > 0.6].sum(0)  # where the thing is of another colour than what is behind it
    return float((change * steps).sum() / change.sum())


def test_photos_and_masks_agree_to_less_than_half_a_pixel(scenes: list[Scene]) -> None:
    for scene in scenes:
        photos = [to_tensor(frame.load()) for frame in scene.frames[::4]]
        masks = [mask.float() for frame in scene.frames[::4] if (mask := frame.load_mask()) is not None]
        assert abs(outlines_beside_the_masks(photos, masks)) < 0.1, scene.id
        down = [photo.mT for photo in photos], [mask.mT for mask in masks]
        assert abs(outlines_beside_the_masks(*down)) < 0.1, scene.id
        half = [(photo[..., 1:] + photo[..., :-1]) / 2 for photo in photos]  # the photos half a pixel further left
        assert outlines_beside_the_masks(half, [mask[..., :-1] for mask in masks]) < -0.15, scene.id


def test_points_lie_where_the_depth_maps_say(scenes: list[Scene]) -> None:
    for scene in scenes:
        frame = scene.frames[12]
        depth = frame.load_depth()
        assert depth is not None
        assert scene.points is not None
        camera = frame.camera
        local = scene.points @ camera.world_to_camera[:3, :3].T + camera.world_to_camera[:3, 3]
        there = local @ camera.intrinsics.T
        x, y = there[:, 0] / there[:, 2], there[:, 1] / there[:, 2]
        inside = (local[:, 2] > 0.05) & (x >= 0) & (x < camera.width) & (y >= 0) & (y < camera.height)
        found = depth[y[inside].long(), x[inside].long()]
        error = ((found - local[inside, 2]) / local[inside, 2]).abs()
        assert float((error < 0.02).float().mean()) > 0.5


def test_every_model_of_a_scene_is_credited(scenes: list[Scene]) -> None:
    for scene in scenes:
        source = json.loads((WORLD / scene.id / "source.json").read_text(encoding="utf-8"))
        used = {item["model"] for item in source["plan"]["items"]}
        assert used == {model["name"] for model in source["models"]}
        assert source["shows"] == scene.model
        assert all(model["creator"] and model["licence"] and model["title"] for model in source["models"])
        assert {model_split(name) for name in used} == {source["split"]}
        for model in source["models"]:
            if not model["name"].startswith("infinigen"):
                assert (WORLD / f"LICENSE-{model['library']}.txt").is_file()


def test_the_sample_stays_small() -> None:
    assert sum(file.stat().st_size for file in WORLD.rglob("*") if file.is_file()) < 5e6
