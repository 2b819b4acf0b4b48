"""What COLMAP makes of an exported capture: it reads our cameras as we meant them, and its matches agree with them."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sidestep.cameras import Camera
from sidestep.captures import read_captures, write_capture

pycolmap = pytest.importorskip("pycolmap", minversion="4")


@pytest.fixture
def reconstruction(monkeypatch):
    """The benchmark's module, whose `triangulate` runs COLMAP on a capture."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    import reconstruction

    yield reconstruction
    for name in {"reconstruction", "held_out", "table"} - before:
        sys.modules.pop(name, None)


@pytest.fixture
def frames(furniture):
    return read_captures(furniture / "sofa")[0].frames[::2]


def test_colmap_sees_points_where_our_cameras_see_them(tmp_path, frames):
    cameras = [frame.camera for frame in frames]
    write_capture(tmp_path / "out", [frame.load() for frame in frames], cameras)
    model = pycolmap.Reconstruction(tmp_path / "out" / "sparse" / "0")
    points = torch.from_numpy(np.stack([point.xyz for point in model.points3D.values()])[:50]).float()
    assert model.num_reg_images() == len(frames)
    for image in model.images.values():
        camera = cameras[int(image.name.removesuffix(".png"))]
        pixels = np.stack([image.project_point(point) for point in points.double().numpy()])
        assert np.allclose(pixels, camera.project(points)[0].numpy(), atol=1e-2)
        assert (model.camera(image.camera_id).width, image.camera.height) == (camera.width, camera.height)


def test_photos_triangulate_at_their_exported_cameras_and_at_no_others(tmp_path, frames, reconstruction):
    photos, cameras = [frame.load() for frame in frames], [frame.camera for frame in frames]
    write_capture(tmp_path / "own", photos, cameras)
    own = reconstruction.triangulate(tmp_path / "own", tmp_path)
    assert own.num_points3D() > 60
    assert own.compute_mean_reprojection_error() < 1.0
    assert own.compute_mean_track_length() > 3.0

    turned = [Camera(c.intrinsics, torch.linalg.inv(c.world_to_camera), c.width, c.height) for c in cameras]
    write_capture(tmp_path / "turned", photos, turned)
    assert reconstruction.triangulate(tmp_path / "turned", tmp_path).num_points3D() < own.num_points3D() / 4
