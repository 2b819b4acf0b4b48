import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sidestep.cameras import Camera
from sidestep.captures.colmap import read_colmap
from sidestep.captures.reading import read_captures
from sidestep.captures.transforms import frame_of_photo, read_cameras, read_transforms, write_transforms
from sidestep.errors import SidestepError

FOX = Path(__file__).parents[3] / "shared" / "data" / "fox"


def entry(name: str, x: float = 0.0, **more):
    matrix = [[1.0, 0.0, 0.0, x], [0.0, 1.0, 0.0, 2.0], [0.0, 0.0, 1.0, 3.0], [0.0, 0.0, 0.0, 1.0]]
    return {"file_path": name, "transform_matrix": matrix, **more}


def save(folder: Path, frames: list, photos: list[str], size: tuple[int, int] = (64, 48), **common) -> Path:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for photo in photos:
        Image.new("RGB", size).save(folder / photo)
    (folder / "transforms.json").write_text(json.dumps({**common, "frames": frames}))
    return folder / "transforms.json"


def test_opengl_axes_become_opencv_axes(tmp_path):
    # An OpenGL camera with unit rotation looks along -z with y up; it stands at (0, 2, 3).
    path = save(tmp_path, [entry("images/a.png")], ["images/a.png"], fl_x=50.0)
    camera = read_transforms(path).frames[0].camera
    pixels, depth = camera.project(torch.tensor([[0.0, 2.0, -2.0], [1.0, 2.0, -2.0], [0.0, 3.0, -2.0]]))
    assert torch.allclose(depth, torch.tensor(5.0))
    assert torch.allclose(pixels, torch.tensor([[32.0, 24.0], [42.0, 24.0], [32.0, 14.0]]))
    assert torch.allclose(camera.centre, torch.tensor([0.0, 2.0, 3.0]))


def test_frames_are_sorted_and_missing_photos_named(tmp_path):
    frames = [entry("./images/b.png"), entry("images/gone.png"), entry("images/a.png", x=1.0)]
    scene = read_transforms(save(tmp_path / "plant", frames, ["images/a.png", "images/b.png"], fl_x=50.0))
    assert scene.name == "plant"
    assert [frame.name for frame in scene.frames] == ["a.png", "b.png"]
    assert scene.frames[0].camera.centre[0] == pytest.approx(1.0)
    assert scene.missing == ("gone.png",)


def test_no_photo_there_at_all(tmp_path):
    with pytest.raises(SidestepError, match=r"transforms\.json: none of its 1 photos"):
        read_transforms(save(tmp_path, [entry("images/gone.png")], [], fl_x=50.0))


def test_photos_may_be_listed_without_their_suffix(tmp_path):
    scene = read_transforms(save(tmp_path, [entry("images/r_0")], ["images/r_0.png"], camera_angle_x=0.9))
    assert scene.frames[0].path.name == "r_0.png"


def test_focal_length_from_the_angle_of_view(tmp_path):
    angle = 2 * math.atan(32 / 50.0)
    camera = read_transforms(save(tmp_path, [entry("a.png")], ["a.png"], camera_angle_x=angle)).frames[0].camera
    assert torch.allclose(camera.intrinsics, torch.tensor([[50.0, 0, 32.0], [0, 50.0, 24.0], [0, 0, 1.0]]))


def test_a_frames_own_intrinsics_win_over_the_files(tmp_path):
    frames = [entry("a.png"), entry("b.png", fl_x=70.0, fl_y=71.0, cx=30.0, cy=20.0)]
    a, b = read_transforms(save(tmp_path, frames, ["a.png", "b.png"], fl_x=50.0, w=64, h=48)).frames
    assert a.camera.intrinsics[0, 0] == 50.0
    assert torch.allclose(b.camera.intrinsics, torch.tensor([[70.0, 0, 30.0], [0, 71.0, 20.0], [0, 0, 1.0]]))


def test_distortion_is_taken_out_of_the_photo(tmp_path):
    """A spot in the bent photo must be where the returned pinhole camera projects its point."""
    k1, k2, p1, p2 = 0.1, -0.05, 0.004, -0.006
    x, y = 0.4, -0.3
    r2 = x * x + y * y
    bent_x = x * (1 + k1 * r2 + k2 * r2 * r2) + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
    bent_y = y * (1 + k1 * r2 + k2 * r2 * r2) + 2 * p2 * x * y + p1 * (r2 + 2 * y * y)
    u, v = 200 * bent_x + 100, 200 * bent_y + 80
    rows, cols = np.mgrid[:160, :200] + 0.5
    blob = 255 * np.exp(-((cols - u) ** 2 + (rows - v) ** 2) / 8)
    path = save(tmp_path, [entry("a.png")], [], fl_x=200.0, w=200, h=160, k1=k1, k2=k2, p1=p1, p2=p2)
    Image.fromarray(blob.astype(np.uint8)).save(tmp_path / "a.png")

    frame = read_transforms(path).frames[0]

    straight = np.asarray(frame.load(), dtype=np.float64)[..., 0]
    found = np.array(((straight * cols).sum(), (straight * rows).sum())) / straight.sum()
    ray = torch.tensor([x, y, 1.0])
    expected = (frame.camera.intrinsics @ ray)[:2].numpy()
    assert np.allclose(found, expected, atol=0.1)
    assert np.abs(expected - (u, v)).max() > 1.0


def test_rotation_that_is_off_by_rounding_is_made_exact(tmp_path):
    rough = entry("a.png")
    rough["transform_matrix"] = (np.array(rough["transform_matrix"]) * [[1.0001], [1.0001], [1.0001], [1.0]]).tolist()
    camera = read_transforms(save(tmp_path, [rough], ["a.png"], fl_x=50.0)).frames[0].camera
    assert torch.allclose(camera.rotation @ camera.rotation.mT, torch.eye(3), atol=1e-6)
    assert torch.allclose(camera.centre, torch.tensor([0.0, 2.0002, 3.0003]), atol=1e-5)


def pose(**changes):
    matrix = np.array(entry("a.png")["transform_matrix"])
    for place, value in changes.items():
        matrix[int(place[1]), int(place[2])] = value
    return matrix.tolist()


@pytest.mark.parametrize(
    "matrix",
    [
        pose(m00=math.nan),
        pose(m03=math.inf),
        pose(m00=1.1),
        pose(m01=0.1),
        pose(m00=-1.0),
        pose(m30=1.0),
        [[1, 0, 0, 10**400], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
        [[1, 0], [0, 1]],
        "no matrix",
        [[1, 0, 0, 0], [0, 1, 0], [0, 0, 1, 0]],
        None,
    ],
)
def test_pose_that_is_none_is_refused_by_file_and_frame(tmp_path, matrix):
    frames = [entry("a.png"), {"file_path": "b.png", "transform_matrix": matrix}]
    path = save(tmp_path, frames, ["a.png", "b.png"], fl_x=50.0, w=64, h=48)
    for read in (read_transforms, read_cameras):
        with pytest.raises(SidestepError, match=r"transforms\.json: frame b\.png"):
            read(path)


def test_frame_without_a_pose_is_refused(tmp_path):
    path = save(tmp_path, [{"file_path": "a.png"}], ["a.png"], fl_x=50.0)
    with pytest.raises(SidestepError, match=r"frame a\.png"):
        read_transforms(path)


@pytest.mark.parametrize(
    "common",
    [
        {},
        {"fl_x": -5.0},
        {"fl_x": "wide"},
        {"fl_x": math.nan},
        {"fl_x": 10**400},
        {"camera_angle_x": 4.0},
        {"fl_x": 50.0, "camera_model": "OPENCV_FISHEYE"},
        {"fl_x": 50.0, "is_fisheye": True},
        {"fl_x": 50.0, "k4": 0.1},
        {"fl_x": 50.0, "k1": -20.0},
        {"fl_x": 50.0, "w": 0, "h": 0},
        {"fl_x": 50.0, "w": 100, "h": 100},
    ],
)
def test_lens_that_is_none_is_refused(tmp_path, common):
    with pytest.raises(SidestepError, match=r"a\.png"):
        read_transforms(save(tmp_path, [entry("a.png")], ["a.png"], **common))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"frames": []}', '{"frames": [1]}', "\xff", "[" * 100_000])
def test_file_that_is_no_transforms_is_refused(tmp_path, text):
    (tmp_path / "transforms.json").write_text(text, encoding="latin-1")
    with pytest.raises(SidestepError, match=r"transforms\.json"):
        read_transforms(tmp_path)


def test_photo_listed_twice_is_refused(tmp_path):
    with pytest.raises(SidestepError, match=r"a\.png is listed twice"):
        read_transforms(save(tmp_path, [entry("a.png"), entry("a.png")], ["a.png"], fl_x=50.0))


def outside(tmp_path: Path, key: str, listed: str) -> Path:
    """A scene in a set, one of whose frames lists a map."""
    (tmp_path / "set" / "masks").mkdir(parents=True)
    for place in ("secret.png", "set/masks/a.png"):
        Image.new("L", (64, 48), 255).save(tmp_path / place)
    frames = [entry("images/a.png", **{key: listed.format(root=tmp_path)})]
    return save(tmp_path / "set" / "scene", frames, ["images/a.png"], fl_x=50.0)


@pytest.mark.parametrize("key", ["mask_path", "depth_file_path"])
@pytest.mark.parametrize("listed", ["../../secret.png", "images/../../../secret.png", "{root}/secret.png"])
def test_a_map_from_elsewhere_is_refused(tmp_path, monkeypatch, key, listed):
    path = outside(tmp_path, key, listed)
    monkeypatch.chdir(path.parent)
    for given in (path, "transforms.json"):
        with pytest.raises(SidestepError, match=r"frame a\.png lists .*secret\.png, far from the scene's folder"):
            read_captures(given)


@pytest.mark.parametrize("listed", ["../masks/a.png", "{root}/set/masks/a.png"])
def test_a_map_beside_the_scenes_folder_is_read(tmp_path, monkeypatch, listed):
    path = outside(tmp_path, "mask_path", listed)
    (path.parent / "images" / "deeper").mkdir()
    for place, given in (("images", "../transforms.json"), ("images/deeper", "../.."), (".", ".")):
        monkeypatch.chdir(path.parent / place)
        mask = read_captures(given)[0].frames[0].load_mask()
        assert mask is not None
        assert bool(mask.all())


def test_cameras_alone_need_no_photos_and_keep_their_order(tmp_path):
    path = save(tmp_path, [entry("b.png", x=1.0), entry("a.png", x=2.0)], [], fl_x=50.0, w=64, h=48)
    cameras = read_cameras(path)
    assert [float(camera.centre[0]) for camera in cameras] == [1.0, 2.0]
    assert (cameras[0].width, cameras[0].height) == (64, 48)


def test_cameras_alone_need_a_size(tmp_path):
    with pytest.raises(SidestepError, match=r"frame a\.png has no picture size"):
        read_cameras(save(tmp_path, [entry("a.png")], [], fl_x=50.0))


def test_written_cameras_are_read_back(tmp_path, furniture):
    frames = read_colmap(furniture / "chair" / "scopia024").frames
    cameras = [frame.camera for frame in frames] + [Camera.from_fov(40.0, 90, 60)]
    write_transforms(tmp_path, cameras, [f"{i}.png" for i in range(len(cameras))])
    for read, camera in zip(read_cameras(tmp_path), cameras, strict=True):
        assert (read.width, read.height) == (camera.width, camera.height)
        assert torch.allclose(read.intrinsics, camera.intrinsics)
        assert torch.allclose(read.world_to_camera, camera.world_to_camera, atol=1e-6)


def test_intrinsics_that_all_share_are_written_once(tmp_path):
    write_transforms(tmp_path, [Camera.from_fov(40.0, 90, 60)] * 2, ["a.png", "b.png"])
    data = json.loads((tmp_path / "transforms.json").read_text())
    assert (data["w"], data["h"], data["cx"], data["cy"]) == (90, 60, 45.0, 30.0)
    assert data["fl_x"] == pytest.approx(30 / math.tan(math.radians(20)))
    assert "fl_x" not in data["frames"][0]
    # OpenCV's identity looks along +z with y down: in OpenGL axes y and z are flipped.
    assert np.allclose(data["frames"][0]["transform_matrix"], np.diag([1, -1, -1, 1]))


@pytest.mark.skipif(not FOX.is_dir(), reason="the fox capture is not part of the repository")
def test_fox_of_instant_ngp():
    scene = read_transforms(FOX)
    assert (len(scene.frames), len(scene.missing)) == (50, 17)
    assert scene.frames[0].load().size == (1080, 1920)


def test_a_photo_that_the_file_lists_loses_its_lens_distortion_wherever_it_lies(tmp_path: Path) -> None:
    stripes = np.zeros((60, 80, 3), dtype=np.uint8)
    stripes[:, ::8] = 255
    photo = tmp_path / "elsewhere" / "b.png"
    photo.parent.mkdir()
    Image.fromarray(stripes).save(photo)
    pose = np.eye(4).tolist()
    lens = {"w": 80, "h": 60, "fl_x": 60.0, "fl_y": 60.0, "cx": 40.0, "cy": 30.0, "k1": 0.3}
    frames = [{"file_path": f"images/{name}.png", "transform_matrix": pose} for name in "ab"]
    file = tmp_path / "transforms.json"
    file.write_text(json.dumps({**lens, "frames": frames}))
    frame = frame_of_photo(file, photo)
    assert frame is not None
    assert frame.load().size == (80, 60)
    assert np.abs(np.asarray(frame.load(), dtype=int) - stripes).mean() > 10
    assert frame_of_photo(file, photo.with_name("c.png")) is None
    file.write_text(json.dumps({**lens, "frames": [*frames, {"file_path": "old/b.png", "transform_matrix": pose}]}))
    with pytest.raises(SidestepError, match=r"transforms.json: lists 2 photos named b.png"):
        frame_of_photo(file, photo)


def save_blender(folder: Path, rig, files: dict[str, list[int]]) -> Path:
    """NeRF's synthetic layout: one angle of view, photos named without a suffix, transparent around the thing."""
    folder.mkdir(parents=True, exist_ok=True)
    rig.intrinsics = np.array(((70.0, 0, 32), (0, 70.0, 24), (0, 0, 1)))
    for split, numbers in files.items():
        frames = []
        for index, number in enumerate(numbers):
            pose = np.linalg.inv(rig.pose(index)) @ np.diag((1, -1, -1, 1))
            frames.append({"file_path": f"./{split}/r_{number}", "rotation": 0.1, "transform_matrix": pose.tolist()})
            pixels = np.zeros((48, 64, 4), np.uint8)
            pixels[8:40, 10 : 20 + index] = (200, 30, 40, 255)
            (folder / split).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(folder / split / f"r_{number}.png")
        angle = 2 * math.atan(32 / 70)
        (folder / f"transforms_{split}.json").write_text(json.dumps({"camera_angle_x": angle, "frames": frames}))
    return folder


def test_blenders_three_files_are_one_scene(tmp_path, rig):
    save_blender(tmp_path / "lego", rig, {"test": [0, 1, 2], "train": [2, 10, 9, 0], "val": [1]})
    (tmp_path / "lego" / "test" / "r_0_depth_0001.png").write_bytes(b"a map that nothing lists")
    (scene,) = read_captures(tmp_path)
    expected = ["train/r_0", "train/r_2", "train/r_9", "train/r_10", "val/r_1", "test/r_0", "test/r_1", "test/r_2"]
    assert (scene.id, [frame.name for frame in scene.frames]) == ("lego", expected)
    rig.check(scene, [3, 0, 2, 1, 0, 0, 1, 2])


def test_one_of_blenders_files_alone(tmp_path, rig):
    save_blender(tmp_path / "lego", rig, {"train": [0, 1], "test": [0, 1, 2]})
    (scene,) = read_captures(tmp_path / "lego" / "transforms_train.json")
    assert (scene.id, len(scene.frames)) == ("lego", 2)
    rig.check(scene, [0, 1])


def test_transparency_is_the_mask_and_white_in_the_photo(tmp_path, rig):
    frame = read_captures(save_blender(tmp_path / "lego", rig, {"train": [0, 1]}))[0].frames[1]
    expected = torch.zeros(48, 64, dtype=torch.bool)
    expected[8:40, 10:21] = True
    mask = frame.load_mask()
    assert mask is not None
    assert torch.equal(mask, expected)
    assert np.asarray(frame.load())[0, 0].tolist() == [255, 255, 255]
    assert np.asarray(frame.load())[20, 15].tolist() == [200, 30, 40]


def test_photos_without_transparency_have_no_mask(tmp_path):
    path = save(tmp_path, [entry("images/a.png")], ["images/a.png"], fl_x=50.0)
    assert read_transforms(path).frames[0].load_mask() is None


@pytest.mark.filterwarnings("ignore:scene lego")
def test_blenders_photos_may_be_missing_of_one_file(tmp_path, rig):
    folder = save_blender(tmp_path / "lego", rig, {"train": [0, 1], "test": [0]})
    (folder / "test" / "r_0.png").unlink()
    (scene,) = read_captures(folder)
    assert scene.missing == ("test/r_0",)
    for name in ("r_0", "r_1"):
        (folder / "train" / f"{name}.png").unlink()
    with pytest.raises(SidestepError, match="lego: none of the 3 photos"):
        read_captures(folder)


def test_a_bad_one_of_blenders_files_is_named(tmp_path, rig):
    folder = save_blender(tmp_path / "lego", rig, {"train": [0, 1], "val": [0]})
    (folder / "transforms_val.json").write_text("{")
    with pytest.raises(SidestepError, match=r"transforms_val\.json: cannot be read as JSON"):
        read_captures(folder)
    (folder / "transforms_val.json").write_text((folder / "transforms_train.json").read_text())
    with pytest.raises(SidestepError, match=r"transforms_val\.json: frame train/r_0 is in another file"):
        read_captures(folder)


def test_a_file_larger_than_any_is_refused_unread(tmp_path):
    path = save(tmp_path, [entry("a.png")], ["a.png"], fl_x=50.0)
    os.truncate(path, 300 * 2**20)
    with pytest.raises(SidestepError, match=r"transforms\.json: larger than 64 MiB"):
        read_transforms(path)


@pytest.mark.parametrize("suffix", [".PNG", ".jpg", ".JPEG"])
def test_photos_listed_without_their_suffix_whatever_its_case(tmp_path, suffix):
    path = save(tmp_path, [entry("images/r_0")], [f"images/r_0{suffix}"], camera_angle_x=0.9)
    assert read_transforms(path).frames[0].path.name == f"r_0{suffix}"
