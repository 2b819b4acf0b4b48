"""DTU as IDR and NeuS prepared it: K [R t] times the inverse of a normalisation is written, and must come back."""

import contextlib
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sidestep.captures import read_captures
from sidestep.captures.dtu import decompose
from sidestep.errors import SidestepError

CENTRE, RADIUS = np.array((30.0, -12.0, 600.0)), 180.0  # of the object, in millimetres
SCALE = np.diag((RADIUS, RADIUS, RADIUS, 1.0))
SCALE[:3, 3] = CENTRE


def matrices(rig, index: int, factor: float = 1.0) -> dict[str, np.ndarray]:
    """A frame's entries. IDR: pixels of P are counted from the first one's centre; scale_mat leads from the unit sphere
    to the world in millimetres."""
    intrinsics = rig.intrinsics.copy()
    intrinsics[:2, 2] -= 0.5
    world = np.eye(4)
    world[:3] = intrinsics @ rig.pose(index)[:3] @ np.linalg.inv(SCALE) * factor
    return {f"world_mat_{index}": world, f"scale_mat_{index}": SCALE}


def save(folder: Path, rig, name: str = "cameras.npz", **changes: np.ndarray) -> Path:
    entries: dict[str, np.ndarray] = {}
    for index in range(rig.count):
        entries |= matrices(rig, index)
        rig.photo(folder / "image" / f"{index:06d}.png", index)
    np.savez(folder / name, **(entries | changes))
    return folder


def test_cameras_come_back_in_the_unit_sphere(tmp_path, rig):
    (scene,) = read_captures(save(tmp_path / "scan65", rig))
    rig.check(scene)
    assert (scene.name, scene.category, scene.points) == ("scan65", None, None)
    assert [frame.name for frame in scene.frames] == [f"{index:06d}.png" for index in range(4)]


@pytest.mark.parametrize("factor", [-3.7, 1e-6, 1e6])
def test_a_projection_is_known_up_to_a_factor(tmp_path, rig, factor):
    folder = save(tmp_path / "scan65", rig, **matrices(rig, 1, factor))
    rig.check(read_captures(folder)[0])


def test_decomposition_of_cameras_of_every_direction():
    rng = np.random.default_rng(3)
    for _ in range(200):
        rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        rotation *= np.linalg.det(rotation)
        intrinsics = np.array(
            ((rng.uniform(10, 5000), rng.normal(), 40.0), (0, rng.uniform(10, 5000), 30.0), (0, 0, 1))
        )
        translation = rng.normal(size=3) * 100
        projection = (
            intrinsics @ np.column_stack((rotation, translation)) * rng.choice((-1, 1)) * rng.uniform(1e-3, 1e3)
        )
        found, pose = decompose("P", projection)
        assert np.allclose(found, intrinsics, rtol=1e-9, atol=1e-7)
        assert np.allclose(pose[:3, :3], rotation, atol=1e-9)
        assert np.allclose(pose[:3, 3], translation, rtol=1e-7, atol=1e-7)


def test_the_sphere_of_neus_comes_before_its_larger_one(tmp_path, rig):
    folder = save(tmp_path / "scan65", rig, "cameras_large.npz", scale_mat_0=np.eye(4))
    assert read_captures(folder)[0].frames[0].camera.centre.norm() > 100
    save(folder, rig, "cameras_sphere.npz")
    rig.check(read_captures(folder)[0])


def test_masks_go_with_photos_by_their_number(tmp_path, rig):
    folder = save(tmp_path / "scan65", rig)
    (folder / "mask").mkdir()
    (folder / "mask" / "Thumbs.db").touch()
    (folder / "mask" / "._001.png").touch()
    for index in (0, 1, 3):
        mask = np.zeros((48, 64, 3), np.uint8)
        mask[:, : 10 * index + 5] = 255
        Image.fromarray(mask).save(folder / "mask" / f"{index:03d}.png")
    found = [frame.load_mask() for frame in read_captures(folder)[0].frames]
    assert [None if mask is None else int(mask[0].sum()) for mask in found] == [5, 15, None, 35]


def save_masks(folder: Path, names: list[str]) -> None:
    """The mask number i is white up to column 10 i + 5."""
    (folder / "mask").mkdir(parents=True)
    for index, name in enumerate(names):
        mask = np.zeros((48, 64), np.uint8)
        mask[:, : 10 * index + 5] = 255
        Image.fromarray(mask).save(folder / "mask" / name)


def count_from_one(folder: Path) -> None:
    for index in reversed(range(4)):
        (folder / "image" / f"{index:06d}.png").rename(folder / "image" / f"{index + 1:06d}.png")


@pytest.mark.parametrize("first", [0, 1])
def test_masks_of_photos_counted_from_one_go_by_their_order(tmp_path, rig, first):
    folder = save(tmp_path / "scan65", rig)
    count_from_one(folder)
    save_masks(folder, [f"{index + first:03d}.png" for index in range(4)])
    found = [frame.load_mask() for frame in read_captures(folder)[0].frames]
    assert [None if mask is None else int(mask[0].sum()) for mask in found] == [5, 15, 25, 35]


def test_masks_of_which_nothing_tells_the_photo(tmp_path, rig):
    folder = save(tmp_path / "scan65", rig)
    count_from_one(folder)
    save_masks(folder, ["001.png", "002.png"])
    with pytest.raises(SidestepError, match=r"mask: 2 masks for 4 photos, and their names do not tell"):
        read_captures(folder)


@pytest.mark.parametrize("gone", [1, 4])
def test_photos_counted_from_one_of_which_one_is_not_there(tmp_path, rig, gone):
    folder = save(tmp_path / "scan65", rig)
    count_from_one(folder)
    (folder / "image" / f"{gone:06d}.png").unlink()
    with pytest.raises(SidestepError, match=r"4 cameras, but .*image holds 3 photos, whose names do not tell"):
        read_captures(folder)


def test_photos_that_are_not_there_are_told_by_the_numbers_of_the_others(tmp_path, rig):
    folder = save(tmp_path / "scan65", rig)
    (folder / "image" / "000001.png").unlink()
    with pytest.warns(UserWarning, match=r"1 listed photos are missing: 000001\.png"):
        (scene,) = read_captures(folder)
    rig.check(scene, [0, 2, 3])


def test_photos_counted_from_one(tmp_path, rig):
    folder = save(tmp_path / "scan65", rig)
    count_from_one(folder)
    rig.check(read_captures(folder)[0])


def test_photos_of_which_nothing_tells_the_camera(tmp_path, rig):
    folder = save(tmp_path / "scan65", rig)
    rig.photo(folder / "image" / "last.png")
    with pytest.raises(SidestepError, match=r"cameras\.npz: 4 cameras, but .*image holds 5 photos"):
        read_captures(folder)


def test_scans_of_a_folder(tmp_path, rig):
    for name in ("scan24", "scan110"):
        save(tmp_path / name, rig)
    (tmp_path / "scan37" / "image").mkdir(parents=True)
    (tmp_path / "scan37" / "cameras.npz").write_bytes(b"PK")
    with pytest.warns(UserWarning, match=r"scene left out: .*scan37/cameras\.npz"):
        scenes = read_captures(tmp_path)
    assert [scene.id for scene in scenes] == ["scan110", "scan24"]


def header(shape: str, kind: str = "<f8") -> bytes:
    """The beginning of an array's file."""
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


BAD = {
    "pickle": header("(4, 4)", "|O") + b"cos\nsystem\n(S'echo'\ntR.",
    "claims much": header("(1000000000, 1000000000)") + bytes(128),
    "cut": header("(4, 4)") + bytes(100),
    "another shape": header("(5, 4)") + bytes(160),
    "no array": b"hello",
    "empty": b"",
    "singular": header("(4, 4)") + bytes(128),
    "not finite": header("(4, 4)") + np.full((4, 4), np.nan).tobytes(),
    "no header's end": header("(4, 4), (") + bytes(128),
    "bomb": bytes(10_000_000),
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
def test_arrays_that_are_no_cameras_are_named(tmp_path, rig, data):
    folder = save(tmp_path / "scan65", rig)
    with zipfile.ZipFile(folder / "cameras.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for index in range(4):
            file = io.BytesIO()
            np.save(file, matrices(rig, index)[f"world_mat_{index}"])
            archive.writestr(f"world_mat_{index}.npy", data if index == 2 else file.getvalue())
    with pytest.raises(SidestepError, match=r"cameras\.npz: .*(world_mat_2|damaged|array)"):
        read_captures(folder)


def test_every_cut_of_the_file_is_named(tmp_path, rig):
    folder = save(tmp_path / "scan65", rig)
    whole = (folder / "cameras.npz").read_bytes()
    for length in range(0, len(whole) - 1, 211):
        (folder / "cameras.npz").write_bytes(whole[:length])
        with pytest.raises(SidestepError, match=r"cameras\.npz"):
            read_captures(folder)


def test_damage_anywhere_in_a_compressed_file_is_named(tmp_path, rig):
    folder = save(tmp_path / "scan65", rig)
    np.savez_compressed(folder / "cameras.npz", **dict(np.load(folder / "cameras.npz")))
    whole = (folder / "cameras.npz").read_bytes()
    for place in range(0, len(whole), 7):
        (folder / "cameras.npz").write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        with contextlib.suppress(SidestepError):  # some bytes are never looked at
            read_captures(folder)


@pytest.mark.parametrize("order", ["C", "F"])
def test_matrices_column_by_column(tmp_path, rig, order):
    entries = {name: np.array(value, order=order) for index in range(4) for name, value in matrices(rig, index).items()}
    rig.check(read_captures(save(tmp_path / "scan65", rig, **entries))[0])


def test_arrays_of_other_things_are_no_cameras(tmp_path, rig):
    folder = save(tmp_path / "scan65", rig)
    np.savez(folder / "cameras.npz", poses=np.eye(4))
    with pytest.raises(SidestepError, match=r"cameras\.npz: no world_mat_0"):
        read_captures(folder)


def test_three_rows_and_single_precision(tmp_path, rig):
    short = {f"world_mat_{index}": matrices(rig, index)[f"world_mat_{index}"][:3] for index in range(4)}
    rig.check(read_captures(save(tmp_path / "scan65", rig, **short))[0])
    single = {name: value.astype(np.float32) for index in range(4) for name, value in matrices(rig, index).items()}
    (scene,) = read_captures(save(tmp_path / "scan65", rig, **single))
    pixels, _ = scene.frames[2].camera.project(torch.from_numpy(rig.points))
    assert np.abs(pixels.numpy() - rig.pixels(2)).max() < 0.01
