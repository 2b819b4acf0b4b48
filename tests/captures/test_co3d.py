"""CO3D: annotations are written as its publishers describe them, and cameras held against PyTorch3D's own formulas."""

import gzip
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sidestep.captures import co3d, read_captures
from sidestep.errors import SidestepError

ISOTROPIC, BOUNDS = "ndc_isotropic", "ndc_norm_image_bounds"


def viewpoint(index: int, kind: str | None = ISOTROPIC) -> dict:
    """A camera at distance 5 about the origin, in PyTorch3D's convention: rows times R, x left, y up, z forward."""
    angle = 0.5 * index
    centre = 5.0 * np.array((np.sin(angle), 0.2, np.cos(angle)))
    z = -centre / np.linalg.norm(centre)
    x = np.cross((0.1, 1.0, 0.0), z)
    x /= np.linalg.norm(x)
    rotation = np.stack((x, np.cross(z, x), z), axis=1)
    entry = {"R": rotation.tolist(), "T": (-centre @ rotation).tolist()}
    entry |= {"focal_length": [2.1, 2.2], "principal_point": [0.05, -0.03]}
    return entry if kind is None else entry | {"intrinsics_format": kind}


def p3d_pixels(entry: dict, size: tuple[int, int], points: np.ndarray) -> np.ndarray:
    """What PyTorch3D's PerspectiveCameras documents: NDC from the camera's view, then the screen, whose x and y point
    the other way; NDC's unit is half the shorter side, or (the older format) half of each side."""
    view = points @ np.array(entry["R"]) + np.array(entry["T"])
    ndc = np.array(entry["focal_length"]) * view[:, :2] / view[:, 2:] + np.array(entry["principal_point"])
    half = np.array(size) / 2
    return half - ndc * (half if entry.get("intrinsics_format", BOUNDS) == BOUNDS else half.min())


def entry(sequence: str, index: int, size=(64, 48), kind: str | None = ISOTROPIC, **changes) -> dict:
    place = f"chair/{sequence}"
    return {
        "sequence_name": sequence,
        "frame_number": index,
        "frame_timestamp": index / 30,
        "image": {"path": f"{place}/images/frame{index:06d}.jpg", "size": [size[1], size[0]]},
        "mask": {"path": f"{place}/masks/frame{index:06d}.png", "mass": 10.0},
        "depth": {
            "path": f"{place}/depths/frame{index:06d}.jpg.geometric.png",
            "scale_adjustment": 0.5,
            "mask_path": f"{place}/depth_masks/frame{index:06d}.png",
        },
        "viewpoint": viewpoint(index, kind),
        "meta": None,
    } | changes


def save(root: Path, entries: list[dict], size=(64, 48)) -> Path:
    """A category with its annotations and photos."""
    for item in entries:
        path = root / item["image"]["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (item["frame_number"] * 20 % 256, 90, 60)).save(path)
    with gzip.open(root / "chair" / co3d.ANNOTATIONS, "wt") as file:
        json.dump(entries, file)
    return root


@pytest.mark.parametrize("size", [(64, 48), (48, 80)], ids=["landscape", "portrait"])
@pytest.mark.parametrize("kind", [ISOTROPIC, BOUNDS, None], ids=["v2", "v1", "v1 unsaid"])
def test_cameras_see_what_pytorch3ds_see(tmp_path, kind, size):
    save(tmp_path, [entry("1_2_3", index, size, kind) for index in range(4)], size)
    (scene,) = read_captures(tmp_path)
    assert (scene.id, scene.missing) == ("chair/1_2_3", ())
    points = np.random.default_rng(1).uniform(-1, 1, (20, 3))
    for index, frame in enumerate(scene.frames):
        pixels, depth = frame.camera.project(torch.from_numpy(points))
        assert bool((depth > 0).all())
        assert np.abs(pixels.numpy() - p3d_pixels(viewpoint(index, kind), size, points)).max() < 1e-3
        assert frame.load().size == size


def test_photos_that_were_made_smaller(tmp_path):
    save(tmp_path, [entry("1_2_3", index) for index in range(2)], (32, 24))
    points = np.random.default_rng(1).uniform(-1, 1, (20, 3))
    frame = read_captures(tmp_path)[0].frames[1]
    expected = p3d_pixels(viewpoint(1), (64, 48), points) / 2
    assert np.abs(frame.camera.project(torch.from_numpy(points))[0].numpy() - expected).max() < 1e-3


def test_a_rotation_that_is_off_by_rounding_is_made_exact(tmp_path):
    rough = (np.array(viewpoint(0)["R"]) * 1.0008).tolist()
    save(tmp_path, [damage(entry("1_2_3", 0), R=rough)])
    rotation = read_captures(tmp_path)[0].frames[0].camera.rotation
    assert torch.allclose(rotation @ rotation.mT, torch.eye(3), atol=1e-6)


def test_sequences_of_a_category_and_of_a_whole_download(tmp_path):
    save(tmp_path, [entry(name, index) for index in range(3) for name in ("9_9_9", "1_2_3")])
    (tmp_path / "chair" / "set_lists").mkdir()
    for path in (tmp_path, tmp_path / "chair"):
        assert [scene.id for scene in read_captures(path)] == ["chair/1_2_3", "chair/9_9_9"]
    assert [scene.id for scene in read_captures(tmp_path / "chair" / "9_9_9")] == ["chair/9_9_9"]


def test_annotations_are_unpacked_once_for_all_sequences(tmp_path, monkeypatch):
    save(tmp_path, [entry(f"1_2_{sequence}", index) for sequence in range(6) for index in range(2)])
    opened = []
    unpack = gzip.open
    monkeypatch.setattr(gzip, "open", lambda *given, **options: opened.append(given) or unpack(*given, **options))
    assert len(read_captures(tmp_path)) == 6
    assert len(opened) == 1


@pytest.mark.filterwarnings("ignore:scene left out")
def test_damaged_annotations_are_unpacked_once_too(tmp_path, monkeypatch):
    save(tmp_path, [entry(f"1_2_{sequence}", index) for sequence in range(6) for index in range(2)])
    path = tmp_path / "chair" / co3d.ANNOTATIONS
    path.write_bytes(path.read_bytes()[:-40])
    opened = []
    unpack = gzip.open
    monkeypatch.setattr(gzip, "open", lambda *given, **options: opened.append(given) or unpack(*given, **options))
    with pytest.raises(SidestepError, match=r"none of its 6 scenes can be read; the first: .*frame_annotations\.jgz"):
        read_captures(tmp_path)
    assert len(opened) == 1


@pytest.mark.parametrize("folder", ["chair", "chair/1_2_3"])
def test_the_folder_that_one_is_in(tmp_path, monkeypatch, folder):
    save(tmp_path, [entry("1_2_3", index) for index in range(2)])
    monkeypatch.chdir(tmp_path / folder)
    (scene,) = read_captures(".")
    assert (scene.id, len(scene.frames)) == ("chair/1_2_3", 2)


def test_annotations_that_changed_are_read_anew(tmp_path):
    save(tmp_path, [entry("1_2_3", 0)])
    assert len(read_captures(tmp_path)[0].frames) == 1
    save(tmp_path, [entry("1_2_3", index) for index in range(3)])
    assert len(read_captures(tmp_path)[0].frames) == 3


def test_frames_are_in_the_order_of_their_numbers_and_need_a_viewpoint(tmp_path):
    entries = [entry("1_2_3", index) for index in range(4)]
    for item, number in zip(entries, (7, 2, 100, 30), strict=True):
        item["frame_number"] = number
    entries[3]["viewpoint"] = None
    (scene,) = read_captures(save(tmp_path, entries))
    assert [frame.name for frame in scene.frames] == ["frame000001.jpg", "frame000000.jpg", "frame000002.jpg"]
    assert scene.missing == ()


@pytest.mark.filterwarnings("ignore:scene chair")
def test_photos_that_are_not_there_are_named(tmp_path):
    save(tmp_path, [entry("1_2_3", index) for index in range(3)])
    (tmp_path / "chair/1_2_3/images/frame000001.jpg").unlink()
    (scene,) = read_captures(tmp_path)
    assert scene.missing == ("frame000001.jpg",)
    assert len(scene.frames) == 2


def test_masks_and_depths(tmp_path):
    save(tmp_path, [entry("1_2_3", index) for index in range(2)])
    folder = tmp_path / "chair" / "1_2_3"
    mask = np.zeros((48, 64), np.uint8)
    mask[10:30, 20:40] = 200
    depth = np.linspace(0.02, 90.0, 48 * 64, dtype=np.float32).reshape(48, 64).astype(np.float16)
    depth[0, :3] = (0.0, np.inf, np.nan)
    trusted = np.full((48, 64), 255, np.uint8)
    trusted[:, 60:] = 0
    for name, picture in (
        ("masks/frame000000.png", Image.fromarray(mask)),
        ("depths/frame000000.jpg.geometric.png", Image.fromarray(depth.view(np.uint16))),
        ("depth_masks/frame000000.png", Image.fromarray(trusted).convert("1")),
    ):
        (folder / name).parent.mkdir()
        picture.save(folder / name)
    first, second = read_captures(tmp_path)[0].frames
    read, found = first.load_depth(), first.load_mask()
    assert read is not None
    assert found is not None
    assert torch.equal(found, torch.from_numpy(mask > 127))
    expected = np.where((trusted > 0) & np.isfinite(depth), depth.astype(np.float32) * 0.5, 0.0)
    assert np.array_equal(read.numpy(), expected)
    assert (second.load_depth(), second.load_mask()) == (None, None)


def test_a_photo_in_a_depth_maps_place_is_named(tmp_path):
    save(tmp_path, [entry("1_2_3", 0)])
    (tmp_path / "chair/1_2_3/depths").mkdir()
    Image.new("RGB", (64, 48)).save(tmp_path / "chair/1_2_3/depths/frame000000.jpg.geometric.png")
    with pytest.raises(SidestepError, match=r"geometric\.png: pixel format 'RGB'"):
        read_captures(tmp_path)[0].frames[0].load_depth()


def test_points_are_read_and_thinned(tmp_path):
    save(tmp_path, [entry("1_2_3", 0)])
    points = np.random.default_rng(0).normal(size=(50_000, 3)).astype("<f4")
    rows = np.zeros(len(points), [("p", "<f4", 3), ("c", "u1", 3)])
    rows["p"] = points
    header = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(points)}\n"
    header += "".join(f"property float {axis}\n" for axis in "xyz")
    header += "".join(f"property uchar {channel}\n" for channel in ("red", "green", "blue")) + "end_header\n"
    (tmp_path / "chair/1_2_3/pointcloud.ply").write_bytes(header.encode() + rows.tobytes())
    read = read_captures(tmp_path)[0].points
    assert read is not None
    assert len(read) <= 20_000
    assert np.array_equal(read.numpy(), points[::3])


def damage(item: dict, **changes) -> dict:
    return item | {"viewpoint": item["viewpoint"] | changes}


BAD = {
    "no rotation": (damage(entry("1_2_3", 0), R=None), "no viewpoint of R"),
    "NaN": (damage(entry("1_2_3", 0), T=[float("nan"), 0, 0]), "not finite"),
    "focal length": (damage(entry("1_2_3", 0), focal_length=[-1, 1]), "not positive"),
    "two focal lengths": (damage(entry("1_2_3", 0), focal_length=[1]), "no viewpoint of R"),
    "format": (damage(entry("1_2_3", 0), intrinsics_format="pixels"), "intrinsics_format 'pixels'"),
    "mirrored": (damage(entry("1_2_3", 0), R=(-np.array(viewpoint(0)["R"])).tolist()), "determinant -1"),
    "sheared": (damage(entry("1_2_3", 0), R=np.triu(np.ones((3, 3))).tolist()), "not a rotation"),
    "size": (entry("1_2_3", 0) | {"image": {"path": "chair/1_2_3/images/frame000000.jpg"}}, "no entry of CO3D's"),
    "shape": (entry("1_2_3", 0, size=(48, 64)), "another shape"),
    "number": (entry("1_2_3", 0) | {"frame_number": "first"}, "no entry of CO3D's"),
    "viewpoint": (entry("1_2_3", 0) | {"viewpoint": [1, 2]}, "no entry of CO3D's"),
    "too large": (damage(entry("1_2_3", 0), T=[10**400, 0, 0]), "no viewpoint of R"),
    "image": (entry("1_2_3", 0) | {"image": ["chair/1_2_3/images/frame000000.jpg"]}, "no entry of CO3D's"),
    "mask elsewhere": (
        entry("1_2_3", 0) | {"mask": {"path": "chair/1_2_3/../../../secret"}},
        r"lists chair/1_2_3/\.\./\.\./\.\./secret, outside of its folder",
    ),
    "depth's mask elsewhere": (
        entry("1_2_3", 0) | {"depth": {"path": "chair/1_2_3/d.png", "mask_path": "chair/1_2_3/../m.png"}},
        "outside of its folder",
    ),
}


@pytest.mark.parametrize(("item", "fault"), BAD.values(), ids=BAD)
def test_a_bad_sequence_is_named_and_left_out(tmp_path, item, fault):
    good = [entry("9_9_9", index) for index in range(2)]
    save(tmp_path, [*good, entry("1_2_3", 0)])
    with gzip.open(tmp_path / "chair" / co3d.ANNOTATIONS, "wt") as file:
        json.dump([*good, item], file)
    with pytest.warns(UserWarning, match=f"scene left out: .*{fault}"):
        scenes = read_captures(tmp_path)
    assert [scene.name for scene in scenes] == ["9_9_9"]
    with pytest.raises(SidestepError, match=rf"frame.*{fault}"):
        read_captures(tmp_path / "chair" / "1_2_3")


def test_a_sequence_that_the_annotations_lack(tmp_path):
    save(tmp_path, [entry("1_2_3", 0)])
    (tmp_path / "chair" / "7_7_7" / "images").mkdir(parents=True)
    with pytest.raises(SidestepError, match=r"frame_annotations\.jgz: has no frame of the sequence 7_7_7"):
        read_captures(tmp_path / "chair" / "7_7_7")


def packed(text: str) -> bytes:
    return gzip.compress(text.encode())


FILES = {
    "no gzip": b"[]",
    "empty": b"",
    "cut": packed(json.dumps([entry("1_2_3", index) for index in range(50)]))[:-40],
    "cut text": packed(json.dumps([entry("1_2_3", 0)])[:-60]),
    "no list": packed('{"frames": []}'),
    "other things": packed("[1, 2, 3]"),
    "no names": packed('[{"frame_number": 0}]'),
    "not text": gzip.compress(b"[\xff\xfe]"),
    "nested": packed("[" * 100_000),
    "an entry like a bomb": gzip.compress(b'[{"sequence_name": "' + b"0" * 40_000_000),
}


@pytest.mark.parametrize("data", FILES.values(), ids=FILES)
def test_damaged_annotations_are_named(tmp_path, data):
    save(tmp_path, [entry("1_2_3", 0)])
    (tmp_path / "chair" / co3d.ANNOTATIONS).write_bytes(data)
    with pytest.raises(SidestepError, match=r"frame_annotations\.jgz"):
        read_captures(tmp_path / "chair" / "1_2_3")


def test_annotations_that_unpack_to_more_than_any_are_refused_on_the_way(tmp_path, monkeypatch):
    monkeypatch.setattr(co3d, "_MOST_CHARACTERS", 2**20)
    save(tmp_path, [entry("1_2_3", 0)])
    item = json.dumps(entry("1_2_3", 0))
    (tmp_path / "chair" / co3d.ANNOTATIONS).write_bytes(packed("[" + ",".join([item] * 3000) + "]"))
    with pytest.raises(SidestepError, match=r"frame_annotations\.jgz: unpacks to more than"):
        read_captures(tmp_path / "chair" / "1_2_3")


def test_a_whole_category_warns_of_nothing(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_captures(save(tmp_path, [entry("1_2_3", index) for index in range(3)]))
