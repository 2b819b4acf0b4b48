"""Masks and depth maps beside photos."""

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from sidestep.captures import read_captures
from sidestep.captures.maps import Alpha, read_depth, read_mask, write_depth, write_mask
from sidestep.errors import SidestepError
from sidestep.images import load_image


@pytest.fixture
def scene(furniture: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(furniture / "sofa" / "scopia076", tmp_path / "scopia076"))


def test_depth_survives_its_file_to_a_thousandth(tmp_path: Path) -> None:
    depth = torch.rand(7, 5) * 60 + 0.01
    write_depth(tmp_path / "000.png", depth)
    assert torch.allclose(read_depth(tmp_path / "000.png"), depth, atol=5.1e-4)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -1.0, 0.0, 70.0])
def test_a_depth_that_the_file_cannot_hold_reads_as_unknown(tmp_path: Path, value: float) -> None:
    write_depth(tmp_path / "000.png", torch.tensor([[value, 2.0]]))
    assert read_depth(tmp_path / "000.png").tolist() == [[0.0, 2.0]]


def test_a_photo_is_no_depth_map(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "000.png")
    with pytest.raises(SidestepError, match=r"000\.png.*16 bits"):
        read_depth(tmp_path / "000.png")


@pytest.mark.parametrize("name", ["{stem}.png", "{stem}.jpg.png"])
@pytest.mark.parametrize("folder", ["mask", "masks"])
def test_masks_and_depths_are_found_beside_a_colmap_scenes_photos(scene: Path, folder: str, name: str) -> None:
    frame = read_captures(scene)[0].frames[3]
    size = (frame.camera.height, frame.camera.width)
    mask = torch.zeros(size, dtype=torch.bool)
    mask[10:20, 30:50] = True
    write_mask(scene / folder / name.format(stem=Path(frame.name).stem), mask)
    write_depth(scene / "depths" / f"{Path(frame.name).stem}.png", torch.full(size, 3.5))
    read = read_captures(scene)[0].frames
    found, depth = read[3].load_mask(), read[3].load_depth()
    assert found is not None
    assert depth is not None
    assert torch.equal(found, mask)
    assert torch.allclose(depth, torch.tensor(3.5))
    assert read[4].load_mask() is None
    assert read[4].load_depth() is None


def test_a_map_of_another_size_than_its_photo_is_named(scene: Path) -> None:
    name = read_captures(scene)[0].frames[0].name
    write_mask(scene / "masks" / f"{Path(name).stem}.png", torch.ones(4, 6, dtype=torch.bool))
    with pytest.raises(SidestepError, match=r"6x4 pixels, but its photo has"):
        read_captures(scene)[0].frames[0].load_mask()


def test_maps_bend_with_a_lens_as_their_photo_does(tmp_path: Path) -> None:
    # A photo that shows its own mask: after the lens is taken out, both must still lie on one another.
    square = torch.zeros(64, 64, dtype=torch.bool)
    square[4:30, 4:30] = True
    (tmp_path / "images").mkdir()
    Image.fromarray(np.where(square.numpy(), 255, 0).astype(np.uint8)).save(tmp_path / "images" / "a.png")
    write_mask(tmp_path / "masks" / "a.png", square)
    write_depth(tmp_path / "depths" / "a.png", square.float() + 1)
    frame = {"file_path": "images/a.png", "transform_matrix": np.eye(4).tolist()}
    frame |= {"mask_path": "masks/a.png", "depth_file_path": "depths/a.png"}
    lens = {"w": 64, "h": 64, "fl_x": 60.0, "fl_y": 60.0, "k1": -0.15}
    (tmp_path / "transforms.json").write_text(json.dumps(lens | {"frames": [frame]}), encoding="utf-8")
    read = read_captures(tmp_path)[0].frames[0]
    mask, depth = read.load_mask(), read.load_depth()
    assert mask is not None
    assert depth is not None
    bright = torch.from_numpy(np.array(read.load().convert("L")) > 127)
    assert (mask != square).float().mean() > 0.01
    assert (mask != bright).float().mean() < 0.01
    assert torch.equal(depth > 1.5, mask)


def test_mask_is_what_is_brighter_than_half(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 127, 128, 255]], dtype=np.uint8)).save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png").tolist() == [[False, False, True, True]]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("stored", [True, False], ids=["stored", "upright"])
def test_maps_of_a_photo_that_exif_turns(tmp_path: Path, orientation: int, stored: bool) -> None:
    # A photo that shows its own mask, and a mask as the pixels are stored or as they are shown.
    square = np.zeros((48, 64), np.uint8)
    square[4:14, 30:60] = 255
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    Image.fromarray(square).save(tmp_path / "images" / "a.png", exif=exif)
    shown = load_image(tmp_path / "images" / "a.png").convert("L")
    swapped = orientation >= 5
    (Image.fromarray(square) if stored and swapped else shown).save(tmp_path / "masks" / "a.png")
    frame = {"file_path": "images/a.png", "transform_matrix": np.eye(4).tolist(), "mask_path": "masks/a.png"}
    (tmp_path / "transforms.json").write_text(json.dumps({"camera_angle_x": 0.7, "frames": [frame]}), encoding="utf-8")
    mask = read_captures(tmp_path)[0].frames[0].load_mask()
    assert mask is not None
    assert torch.equal(mask, torch.from_numpy(np.array(shown) > 127))


def test_a_large_transparent_photo_is_asked_without_a_warning(tmp_path: Path) -> None:
    Image.new("LA", (9500, 9500)).save(tmp_path / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Alpha.of(tmp_path / "a.png") is not None


@pytest.mark.parametrize("times", [2, 0.5])
def test_maps_of_a_photo_that_was_made_smaller_or_larger(scene: Path, times: float) -> None:
    frame = read_captures(scene)[0].frames[0]
    width, height = round(frame.camera.width * times), round(frame.camera.height * times)
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[: height // 2, : width // 4] = True
    write_mask(scene / "masks" / f"{Path(frame.name).stem}.png", mask)
    write_depth(scene / "depths" / f"{Path(frame.name).stem}.png", mask.float() + 1)
    frame = read_captures(scene)[0].frames[0]
    found, depth = frame.load_mask(), frame.load_depth()
    expected = torch.zeros(frame.camera.height, frame.camera.width, dtype=torch.bool)
    expected[: frame.camera.height // 2, : frame.camera.width // 4] = True
    assert found is not None
    assert depth is not None
    assert torch.equal(found, expected)
    assert torch.equal(depth > 1.5, expected)


def test_depth_in_floats_is_in_scene_units(tmp_path: Path) -> None:
    Image.fromarray(np.array([[1.5, np.nan, np.inf, -1.0, 0.0, 1e6]], dtype=np.float32)).save(tmp_path / "000.tiff")
    assert read_depth(tmp_path / "000.tiff").tolist() == [[1.5, 0.0, 0.0, 0.0, 0.0, 1e6]]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_photos_transparency_turns_with_it(tmp_path: Path, mode: str, orientation: int) -> None:
    pixels = np.zeros((4, 6, 4), np.uint8)
    pixels[:, :2, 3] = 255
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(pixels).convert(mode).save(tmp_path / "a.png", exif=exif)
    mask = Alpha.of(tmp_path / "a.png")
    assert mask is not None
    dark = torch.from_numpy(np.array(load_image(tmp_path / "a.png").convert("L")) < 128)
    assert torch.equal(read_mask(mask), dark)
    assert read_mask(mask).shape == ((4, 6) if orientation == 1 else (6, 4))
