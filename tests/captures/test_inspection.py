"""An inspection of sets with deliberate faults: each is found where it is, and sound scenes are left in peace."""

import json
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sidestep.cameras import Camera
from sidestep.captures import read_captures, write_capture
from sidestep.captures.inspection import Inspection, inspect_captures
from sidestep.captures.inspection_page import MOST_SOUND, write_page
from sidestep.trajectories import orbit, step_aside

Change = Callable[[list[Camera]], list[Camera]]


@pytest.fixture
def copy(tmp_path: Path, furniture: Path) -> Path:
    """One sound scene, to damage."""
    return shutil.copytree(furniture / "chair" / "scopia024", tmp_path / "set" / "chair" / "scopia024")


def kinds(inspection: Inspection) -> list[tuple[str, str]]:
    return [(finding.kind, finding.scene) for finding in inspection.findings]


def edit_poses(scene: Path, change: Callable[[int, list[str]], list[str]]) -> None:
    """Rewrites each photo's fields in images.txt."""
    file = scene / "sparse" / "0" / "images.txt"
    lines = file.read_text().splitlines()
    photos = [at for at, line in enumerate(lines) if line.endswith(".jpg")]
    for number, at in enumerate(photos):
        lines[at] = " ".join(change(number, lines[at].split()))
    file.write_text("\n".join(lines) + "\n")


def write_view(folder: Path, pictures: list[Image.Image], cameras: list[Camera]) -> None:
    """A capture without points: those that are written are made up about where the cameras look."""
    write_capture(folder, pictures, cameras)
    shutil.rmtree(folder / "sparse")


def test_a_sound_set_has_no_findings(furniture: Path) -> None:
    inspection = inspect_captures(furniture)
    assert inspection.findings == ()
    assert inspection.totals["frames"] == 75
    assert inspection.totals["categories"] == {"chair": 1, "sofa": 1, "table": 1}
    for scene in inspection.scenes:
        assert scene.facts is not None
        assert (scene.facts.sizes, scene.facts.points, scene.facts.pairs) == (("256x256",), 200, 10)
        assert scene.facts.turning == "right"


@pytest.mark.parametrize(("sign", "turning"), [(1, "right"), (-1, "left")])
def test_figures_of_a_known_path(tmp_path: Path, sign: int, turning: str) -> None:
    first = step_aside(Camera.from_fov(40, 32, 24), -30 * sign, 0, elevation=20)
    cameras = orbit(first, 13, yaw=(0, sign * 60), elevation=20)
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(255, size=(24, 32, 3), dtype=np.uint8)) for _ in cameras]
    write_view(tmp_path / "view", pictures, cameras)
    (scene,) = inspect_captures(tmp_path / "view").scenes
    facts = scene.facts
    assert facts is not None
    assert facts.arc == pytest.approx(60, abs=0.1)
    assert facts.turning == turning
    assert facts.elevation == pytest.approx((20, 20), abs=0.1)
    step = 2 * np.degrees(np.arcsin(np.cos(np.radians(20)) * np.sin(np.radians(2.5))))
    assert facts.step == pytest.approx(step, rel=1e-3)
    assert facts.distance == pytest.approx((1, 1), rel=1e-3)
    assert facts.fov == pytest.approx((40, 40), abs=1e-3)
    assert facts.pairs == 2


def test_one_bad_scene_does_not_stop_the_rest(copy: Path, furniture: Path) -> None:
    shutil.copytree(furniture / "sofa", copy.parents[1] / "sofa")
    edit_poses(copy, lambda number, fields: [*fields[:6], "nan", *fields[7:]] if number == 4 else fields)
    inspection = inspect_captures(copy.parents[1])
    assert kinds(inspection) == [("unreadable", "chair/scopia024")]
    assert "004.jpg" in inspection.findings[0].message
    assert [scene.facts is None for scene in inspection.scenes] == [True, False]


def test_photos_damaged_missing_doubled_and_unlisted(copy: Path) -> None:
    images = copy / "images"
    (images / "003.jpg").write_bytes((images / "003.jpg").read_bytes()[:3000])
    (images / "005.jpg").unlink()
    shutil.copy(images / "007.jpg", images / "008.jpg")
    Image.new("RGB", (8, 8)).save(images / "extra.png")
    inspection = inspect_captures(copy)
    found = {finding.kind: finding for finding in inspection.findings}
    assert found.keys() == {"damaged-photo", "missing-photos", "same-photo", "unlisted-photos"}
    assert found["damaged-photo"].path == str(images / "003.jpg")
    assert found["missing-photos"].frames == ("005.jpg",)
    assert found["same-photo"].frames == ("008.jpg",)
    assert found["unlisted-photos"].frames == ("extra.png",)
    assert inspection.totals["errors"] == 1
    unseen = {kind for kind, _ in kinds(inspect_captures(copy, photos=False))}
    assert unseen == {"missing-photos", "unlisted-photos"}


def test_folders_without_a_scene_and_scenes_of_one_thing(copy: Path) -> None:
    shutil.copytree(copy, copy.with_name("scopia024s1"))
    copy.with_name("empty").mkdir()
    assert kinds(inspect_captures(copy.parents[1])) == [
        ("no-scene", "chair/empty"),
        ("shared-photo", "chair/scopia024s1"),
        ("same-model", "chair/scopia024"),
    ]


def test_names_that_sort_out_of_order(copy: Path) -> None:
    for number in range(25):
        (copy / "images" / f"{number:03d}.jpg").rename(copy / "images" / f"{number}.jpg")
    edit_poses(copy, lambda number, fields: [*fields[:-1], f"{number}.jpg"])
    inspection = inspect_captures(copy, photos=False)
    assert ("name-order", "scopia024") in kinds(inspection)


def test_names_that_differ_in_more_than_a_number_are_in_order(copy: Path) -> None:
    names = [f"left{number:02d}.jpg" for number in range(12, 24)] + [f"right{number:02d}.jpg" for number in range(13)]
    for number, name in enumerate(names):
        (copy / "images" / f"{number:03d}.jpg").rename(copy / "images" / name)
    edit_poses(copy, lambda number, fields: [*fields[:-1], names[number]])
    assert inspect_captures(copy, photos=False).findings == ()


def turned_away(cameras: list[Camera]) -> list[Camera]:
    pose = cameras[6].world_to_camera.clone()
    pose[:3] = torch.diag(torch.tensor([-1.0, 1.0, -1.0])) @ pose[:3]
    return replaced(cameras, 6, pose)


def doubled(cameras: list[Camera]) -> list[Camera]:
    return replaced(cameras, 6, cameras[5].world_to_camera)


def far(cameras: list[Camera]) -> list[Camera]:
    pose = cameras[6].world_to_camera.clone()
    pose[:3, 3] += torch.tensor([0.0, 0.0, 8.0])
    return replaced(cameras, 6, pose)


def on_its_side(cameras: list[Camera]) -> list[Camera]:
    pose = cameras[6].world_to_camera.clone()
    pose[:3] = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]) @ pose[:3]
    return replaced(cameras, 6, pose)


def standing_still(cameras: list[Camera]) -> list[Camera]:
    poses = [camera.world_to_camera.clone() for camera in cameras]
    for pose in poses:
        pose[:3, 3] = 0
    return [posed(camera, pose) for camera, pose in zip(cameras, poses, strict=True)]


def in_opengl_axes(cameras: list[Camera]) -> list[Camera]:
    flip = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]))
    return [posed(camera, flip @ camera.world_to_camera) for camera in cameras]


def with_a_long_lens(cameras: list[Camera]) -> list[Camera]:
    return [Camera.from_fov(2, 32, 32, camera.world_to_camera) for camera in cameras]


def missing_a_stretch(cameras: list[Camera]) -> list[Camera]:
    return cameras[:4] + cameras[12:]


def posed(camera: Camera, pose: torch.Tensor) -> Camera:
    return Camera(camera.intrinsics, pose, camera.width, camera.height)


def replaced(cameras: list[Camera], at: int, pose: torch.Tensor) -> list[Camera]:
    return [*cameras[:at], posed(cameras[at], pose), *cameras[at + 1 :]]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (turned_away, {"looks-away": ("006.png",)}),
        (doubled, {"same-pose": ("006.png",)}),
        (far, {"far-camera": ("006.png",)}),
        (on_its_side, {"rolled": ("006.png",)}),
        (standing_still, {"no-baseline": ()}),
        (in_opengl_axes, {"no-subject": ()}),
        (with_a_long_lens, {"odd-lens": tuple(f"{number:03d}.png" for number in range(25))}),
        (missing_a_stretch, {"jump": ("003.png", "004.png")}),
    ],
)
def test_cameras_that_stand_wrong(tmp_path: Path, change: Change, found: dict[str, tuple[str, ...]]) -> None:
    source = step_aside(Camera.from_fov(40, 32, 32), -40, 0, elevation=15)
    cameras = change(orbit(source, 25, yaw=(0, 80), elevation=15))
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(255, size=(32, 32, 3), dtype=np.uint8)) for _ in cameras]
    write_view(tmp_path / "view", pictures, cameras)
    warned = [finding for finding in inspect_captures(tmp_path / "view").findings if finding.kind != "no-points"]
    assert {finding.kind: finding.frames for finding in warned} == found


def test_a_camera_that_looks_elsewhere_does_not_move_the_subject(tmp_path: Path) -> None:
    source = step_aside(Camera.from_fov(40, 32, 32), -40, 0, elevation=15)
    cameras = orbit(source, 9, yaw=(0, 80), elevation=15)
    pose = cameras[2].world_to_camera.clone()
    pose[:3] = torch.tensor([[0.5, 0.0, -(0.75**0.5)], [0.0, 1.0, 0.0], [0.75**0.5, 0.0, 0.5]]) @ pose[:3]
    write_view(tmp_path / "view", [Image.new("RGB", (32, 32))] * 9, replaced(cameras, 2, pose))
    inspection = inspect_captures(tmp_path / "view", photos=False)
    assert [finding.frames for finding in inspection.findings if finding.kind == "looks-away"] == [("002.png",)]
    facts = inspection.scenes[0].facts
    assert facts is not None
    assert facts.distance is not None
    assert facts.distance[1] / facts.distance[0] == pytest.approx(1, abs=0.01)


def test_points_tell_poses_of_another_convention_and_a_wrong_lens(copy: Path) -> None:
    def scaled_focal(text: str) -> str:
        *comments, camera = text.splitlines()
        fields = camera.split()
        fields[4:6] = [str(6 * float(value)) for value in fields[4:6]]
        return "\n".join([*comments, " ".join(fields)]) + "\n"

    lenses = copy / "sparse" / "0" / "cameras.txt"
    sound = lenses.read_text()
    lenses.write_text(scaled_focal(sound))
    assert ("points-outside", "scopia024") in kinds(inspect_captures(copy, photos=False))
    lenses.write_text(sound)

    def flipped(_: int, fields: list[str]) -> list[str]:
        w, x, y, z = fields[1:5]
        return [
            fields[0],
            negative(x),
            w,
            negative(z),
            y,
            fields[5],
            negative(fields[6]),
            negative(fields[7]),
            *fields[8:],
        ]

    edit_poses(copy, flipped)  # half a turn about the camera's own x axis: OpenGL's
    assert ("points-behind", "scopia024") in kinds(inspect_captures(copy, photos=False))


def negative(number: str) -> str:
    return str(-float(number))


def test_a_scene_of_one_frame_and_one_without_points(tmp_path: Path) -> None:
    write_view(tmp_path / "one", [Image.new("RGB", (8, 8))], [Camera.from_fov(40, 8, 8)])
    inspection = inspect_captures(tmp_path / "one")
    assert [kind for kind, _ in kinds(inspection)] == ["few-frames", "no-points"]
    write_page(tmp_path / "page.html", inspection)
    assert "no pairs" in (tmp_path / "page.html").read_text()


def test_everything_goes_into_json(copy: Path) -> None:
    (copy / "images" / "005.jpg").unlink()
    told = json.loads(json.dumps(inspect_captures(copy).to_dict()))
    assert told["scenes"][0]["facts"]["frames"] == 24
    (finding,) = told["findings"]
    assert (finding["severity"], finding["kind"], finding["frames"]) == ("warning", "missing-photos", ["005.jpg"])
    assert finding["advice"]


def parsed(path: Path) -> ElementTree.Element:
    """The page's body, which is well-formed XML."""
    body = path.read_text(encoding="utf-8").partition("<body>")[2].partition("</body>")[0]
    return ElementTree.fromstring(f"<body>{body}</body>")


def test_the_page_needs_nothing_else_and_escapes_names(copy: Path, tmp_path: Path) -> None:
    odd = copy.rename(copy.with_name("a<i>&\"b'"))
    (odd / "images" / "000.jpg").write_bytes((odd / "images" / "000.jpg").read_bytes()[:3000])
    write_page(tmp_path / "page.html", inspect_captures(copy.parents[1]))
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script" not in text
    assert "http" not in text
    page = parsed(tmp_path / "page.html")
    assert "".join(page.find(".//article/h3").itertext()).startswith("chair/a<i>&\"b'")  # type: ignore[union-attr]
    top, side = page.findall(".//svg")
    for view in (top, side):
        assert len([path for path in view.findall("path") if "camera" in path.get("class", "").split()]) == 25
        assert [path.findtext("title") for path in view.findall("path") if "marked" in path.get("class", "")] == [
            "000.jpg"
        ]
    shown = page.findall(".//article//img")
    assert all(image.get("src", "").startswith("data:image/jpeg;base64,") for image in shown)
    assert [image.get("alt") for image in shown] == ["012.jpg", "024.jpg"]  # the first is damaged


def test_the_page_of_a_large_set_draws_scenes_with_findings_and_some_others(tmp_path: Path, furniture: Path) -> None:
    (scene,) = read_captures(furniture / "sofa")
    few = slice(0, 25, 2)
    cameras = [frame.camera.resize(8, 8) for frame in scene.frames][few]
    write_capture(tmp_path / "set" / "scene000", [Image.new("RGB", (8, 8))] * len(cameras), cameras)
    for number in range(1, MOST_SOUND + 3):
        shutil.copytree(tmp_path / "set" / "scene000", tmp_path / "set" / f"scene{number:03d}")
    (tmp_path / "set" / f"scene{MOST_SOUND + 2:03d}" / "images" / "004.png").unlink()
    write_page(tmp_path / "page.html", inspect_captures(tmp_path / "set", photos=False))
    page = parsed(tmp_path / "page.html")
    drawn = ["".join(heading.itertext()).split()[0] for heading in page.findall(".//article/h3")]
    assert len(drawn) == MOST_SOUND + 1
    assert drawn[-1] == f"scene{MOST_SOUND + 2:03d}"
    assert f"{MOST_SOUND + 1} of {MOST_SOUND + 3} scenes" in "".join(page.itertext())


def test_frames_in_no_order_are_told_once(tmp_path: Path) -> None:
    source = step_aside(Camera.from_fov(40, 32, 32), -40, 0, elevation=15)
    path = orbit(source, 40, yaw=(0, 80), elevation=15)
    near, far = path[:20], path[20:]
    cameras = near + [camera for pair in zip(near, far, strict=True) for camera in pair][:18]
    pictures = [Image.new("RGB", (32, 32), (index, 0, 0)) for index in range(len(cameras))]
    write_view(tmp_path / "view", pictures, cameras)
    jumps = [finding for finding in inspect_captures(tmp_path / "view").findings if finding.kind == "jump"]
    assert [finding.message.split(" in ")[0] for finding in jumps] == ["18 jumps"]
