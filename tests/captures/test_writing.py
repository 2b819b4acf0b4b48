import json

import numpy as np
import pytest
import torch
from PIL import Image

from sidestep.cameras import Camera
from sidestep.captures import read_captures, write_capture
from sidestep.captures.colmap import read_colmap, read_points
from sidestep.captures.transforms import read_transforms
from sidestep.errors import SidestepError


@pytest.fixture
def views(furniture):
    frames = read_captures(furniture / "table")[0].frames[:4]
    return [frame.load() for frame in frames], [frame.camera for frame in frames]


@pytest.mark.parametrize("read", [read_colmap, read_transforms])
def test_written_capture_is_read_back(tmp_path, views, read):
    images, cameras = views
    write_capture(tmp_path / "out", images, cameras)
    frames = read(tmp_path / "out").frames
    for frame, image, camera in zip(frames, images, cameras, strict=True):
        assert np.array_equal(np.asarray(frame.load()), np.asarray(image))
        assert torch.allclose(frame.camera.world_to_camera, camera.world_to_camera, atol=1e-6)
        assert torch.allclose(frame.camera.intrinsics, camera.intrinsics, atol=1e-4)


def test_a_failure_leaves_the_old_capture_and_no_litter(tmp_path, views, monkeypatch):
    images, cameras = views
    write_capture(tmp_path / "out", images, cameras)

    def full_disk(*args: object, **kwargs: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_capture(tmp_path / "out", images[:1], cameras[:1])
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert len(read_transforms(tmp_path / "out").frames) == 4


def test_an_older_capture_is_replaced_whole(tmp_path, views):
    images, cameras = views
    write_capture(tmp_path / "out", images, cameras)
    write_capture(tmp_path / "out", images[:2], cameras[:2])
    assert sorted(path.name for path in (tmp_path / "out" / "images").iterdir()) == ["000.png", "001.png"]


@pytest.mark.parametrize("capture", [False, True])
@pytest.mark.parametrize("name", ["thesis.txt", "images/mine.jpg", "depth/000.png"])
def test_a_folder_with_other_things_in_it_is_not_replaced(tmp_path, views, name, capture):
    if capture:
        write_capture(tmp_path / "out", *views)
    mine = tmp_path / "out" / name
    mine.parent.mkdir(parents=True, exist_ok=True)
    mine.write_text("years of work")
    with pytest.raises(SidestepError, match=f"{name}, which would be lost"):
        write_capture(tmp_path / "out", *views)
    assert mine.read_text() == "years of work"


def test_images_and_cameras_that_do_not_fit_are_refused(tmp_path, views):
    images, cameras = views
    with pytest.raises(SidestepError, match="4 images for 3 cameras"):
        write_capture(tmp_path / "out", images, cameras[:3])
    with pytest.raises(SidestepError, match=r"image 000[.]png is 256x256"):
        write_capture(tmp_path / "out", images[:1], [Camera.from_fov(40.0, 64, 64)])
    assert not (tmp_path / "out").exists()


def test_the_photo_is_among_the_views_where_no_evaluation_takes_it_away(tmp_path, views):
    images, cameras = views
    write_capture(tmp_path / "out", images[1:], cameras[1:], photo=(images[0], cameras[0]))
    for read in (read_colmap, read_transforms):
        frames = read(tmp_path / "out").frames
        assert [frame.name for frame in frames] == ["000.png", "000_photo.png", "001.png", "002.png"]
        assert np.array_equal(np.asarray(frames[1].load()), np.asarray(images[0]))
        assert torch.allclose(frames[1].camera.world_to_camera, cameras[0].world_to_camera, atol=1e-6)


def test_the_points_to_start_from_lie_before_every_camera_and_have_the_photo_s_colours(tmp_path, views):
    images, cameras = views
    write_capture(tmp_path / "out", images[1:], cameras[1:], photo=(images[0], cameras[0]))
    points = read_points(tmp_path / "out" / "sparse" / "0" / "points3D.txt")
    for camera in cameras:
        pixels, depth = camera.project(points)
        assert bool((depth > 0).all())
        inside = ((pixels >= 0) & (pixels < camera.width)).all(dim=1)
        assert float(inside.float().mean()) > 0.5
    assert json.loads((tmp_path / "out" / "transforms.json").read_text())["ply_file_path"] == "points.ply"
    header, body = (tmp_path / "out" / "points.ply").read_text().split("end_header\n")
    rows = np.loadtxt(body.splitlines())
    assert header.startswith("ply\nformat ascii 1.0\nelement vertex 1000\n")
    assert np.allclose(rows[:, :3], points, atol=1e-5)
    pixels = cameras[0].project(points)[0].floor().int().numpy()
    inside = ((pixels >= 0) & (pixels < 256)).all(axis=1)
    columns, lines = pixels[inside].T
    # A point at a pixel's very edge may fall on its neighbour once it has been written and read.
    same = (rows[inside, 3:] == np.asarray(images[0])[lines, columns]).all(axis=1)
    assert same.mean() > 0.99
