"""Cameras that must follow their photo: turned, resized, undistorted."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from sidestep.captures.lens import Lens
from sidestep.captures.scene import Frame, Scene, make_frame
from sidestep.errors import SidestepError

POINTS = np.array(((-0.5, -0.2, 2.0), (0.4, 0.3, 2.2), (0.1, -0.3, 1.8), (-0.3, 0.3, 2.1)))
COLOURS = np.array(((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)))
LENS = Lens(np.array(((200.0, 0.0, 95.0), (0.0, 205.0, 62.0), (0.0, 0.0, 1.0))), 200, 120)
BENT = replace(LENS, k1=0.2, k2=-0.1, p1=0.01, p2=-0.015)
POSE = np.array(((0.8, 0.0, -0.6, 1.2), (0.0, 1.0, 0.0, 0.0), (0.6, 0.0, 0.8, 0.5), (0.0, 0.0, 0.0, 1.0)))


def save_photo(path: Path, lens: Lens, orientation: int = 1) -> None:
    """A photo with a coloured spot where the lens sees each of the points (given in camera axes)."""
    rows, cols = np.mgrid[: lens.height, : lens.width] + 0.5
    pixels = np.zeros((lens.height, lens.width, 3), np.uint8)
    plane = lens.distort(POINTS[:, :2] / POINTS[:, 2:])
    for (u, v), colour in zip(plane * lens.intrinsics.diagonal()[:2] + lens.intrinsics[:2, 2], COLOURS, strict=True):
        pixels[(cols - u) ** 2 + (rows - v) ** 2 < 3.0**2] = colour
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(pixels).save(path, exif=exif)


def assert_camera_finds_the_spots(frame: Frame) -> None:
    world = (POINTS - POSE[:3, 3]) @ POSE[:3, :3]
    photo = np.asarray(frame.load())
    assert photo.shape[:2] == (frame.camera.height, frame.camera.width)
    pixels, depth = frame.camera.project(torch.from_numpy(world).float())
    assert torch.allclose(depth, torch.from_numpy(POINTS[:, 2]).float(), atol=1e-4)
    for (u, v), colour in zip(pixels.tolist(), COLOURS, strict=True):
        near = photo[int(v) - 6 : int(v) + 7, int(u) - 6 : int(u) + 7].astype(int)
        rows, cols = np.nonzero(np.abs(near - colour).sum(axis=2) < 120)
        assert len(rows) > 4
        assert abs(cols.mean() + 0.5 + int(u) - 6 - u) < 0.5
        assert abs(rows.mean() + 0.5 + int(v) - 6 - v) < 0.5


@pytest.mark.parametrize("lens", [LENS, BENT], ids=["pinhole", "distorted"])
@pytest.mark.parametrize("orientation", [1, 6, 8])
def test_model_of_the_pixels_as_stored(tmp_path, lens, orientation):
    save_photo(tmp_path / "a.png", lens, orientation)
    frame = make_frame("a.png", tmp_path / "a.png", lens, POSE, tmp_path / "model")
    assert (frame.camera.width, frame.camera.height) == ((200, 120) if orientation == 1 else (120, 200))
    assert_camera_finds_the_spots(frame)


@pytest.mark.parametrize("lens", [LENS, BENT], ids=["pinhole", "distorted"])
@pytest.mark.parametrize("orientation", [6, 8])
def test_model_of_the_photo_as_displayed(tmp_path, lens, orientation):
    save_photo(tmp_path / "upright.png", lens)
    undo = Image.Transpose.ROTATE_90 if orientation == 6 else Image.Transpose.ROTATE_270
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.open(tmp_path / "upright.png").transpose(undo).save(tmp_path / "a.png", exif=exif)
    assert_camera_finds_the_spots(make_frame("a.png", tmp_path / "a.png", lens, POSE, tmp_path / "model"))


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_model_of_the_photo_at_another_size(tmp_path, orientation, scale):
    save_photo(tmp_path / "a.png", BENT, orientation)
    model = BENT.resized(round(200 * scale), round(120 * scale))
    assert_camera_finds_the_spots(make_frame("a.png", tmp_path / "a.png", model, POSE, tmp_path / "model"))


def test_photo_of_another_shape_is_refused_by_name(tmp_path):
    save_photo(tmp_path / "a.png", LENS)
    square = Lens(LENS.intrinsics, 100, 100)
    with pytest.raises(SidestepError, match=r"a\.png.*200x120.*100x100"):
        make_frame("a.png", tmp_path / "a.png", square, POSE, tmp_path / "model")


def test_mirrored_photo_whose_model_is_of_the_stored_pixels_is_refused(tmp_path):
    save_photo(tmp_path / "a.png", LENS, orientation=5)
    with pytest.raises(SidestepError, match=r"a\.png.*mirror"):
        make_frame("a.png", tmp_path / "a.png", LENS, POSE, tmp_path / "model")


def test_photo_that_changed_its_size_since_is_refused(tmp_path):
    save_photo(tmp_path / "a.png", LENS)
    frame = make_frame("a.png", tmp_path / "a.png", LENS, POSE, tmp_path / "model")
    Image.new("RGB", (50, 30)).save(tmp_path / "a.png")
    with pytest.raises(SidestepError, match=r"a\.png.*50x30"):
        frame.load()


@pytest.mark.parametrize(
    ("name", "model"),
    [("scopia024", "scopia024"), ("scopia024s1", "scopia024"), ("scopia024s12", "scopia024"), ("desks1", "desks1")],
)
def test_a_variant_of_a_scene_shows_the_same_model(name, model):
    assert Scene(name, "chair", ()).model == model
    assert Scene(name, "chair", ()).id == f"chair/{name}"
