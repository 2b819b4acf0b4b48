"""Poses against the trajectories that the command line has."""

import pytest
import torch

from sidestep.app import poses
from sidestep.app.poses import Pose, along, matrices, shown, spans, target
from sidestep.cameras import Camera
from sidestep.errors import SidestepError
from sidestep.trajectories import orbit, step_aside

SOURCE = Camera.from_fov(45, 24, 16)


def test_a_target_is_the_photo_camera_stepped_aside() -> None:
    expected = step_aside(SOURCE, 25, -10, elevation=20)
    assert torch.allclose(target(SOURCE, Pose(25, -10), 20).world_to_camera, expected.world_to_camera)


@pytest.mark.parametrize("distance", [0.5, 1.7])
def test_a_target_looks_at_the_subject_from_its_distance(distance: float) -> None:
    camera = target(SOURCE, Pose(40, 15, distance), 20)
    subject = torch.tensor([[0.0, 0.0, 1.0]])
    pixels, depth = camera.project(subject)
    assert pixels.tolist()[0] == pytest.approx([12, 8], abs=1e-3)
    assert float(depth) == pytest.approx(distance, abs=1e-5)


def test_the_target_without_a_step_is_the_photo_camera() -> None:
    assert torch.allclose(target(SOURCE, Pose(0), 30).world_to_camera, SOURCE.world_to_camera, atol=1e-6)


@pytest.mark.parametrize("path", ["orbit", "dolly"])
def test_paths_end_at_the_target(path: poses.Path) -> None:
    pose = Pose(0.0 if path == "dolly" else 25, 0, 0.6)
    cameras = along(path, SOURCE, pose, 5, 20)
    end = target(SOURCE, pose, 20)
    assert torch.allclose(cameras[shown(path, 5)].world_to_camera, end.world_to_camera, atol=1e-6)


def test_an_orbit_is_that_of_the_command_line() -> None:
    expected = orbit(SOURCE, 4, yaw=(-30, 30), elevation=20)
    for one, other in zip(along("orbit", SOURCE, Pose(30), 4, 20), expected, strict=True):
        assert torch.allclose(one.world_to_camera, other.world_to_camera, atol=1e-6)


def test_a_spiral_is_wide_at_the_frame_that_stands_for_it() -> None:
    cameras = along("spiral", SOURCE, Pose(20, 8), 24, 20)
    aside = [float(torch.dist(camera.centre, SOURCE.centre)) for camera in cameras]
    assert aside[shown("spiral", 24)] > 0.8 * max(aside)


def test_matrices_are_camera_to_world_in_the_photo_frame() -> None:
    moved = step_aside(Camera.from_fov(45, 24, 16, SOURCE.world_to_camera), 30)
    (numbers,) = matrices([moved], SOURCE)
    assert torch.tensor(numbers).reshape(4, 4)[:3, 3].tolist() == pytest.approx(moved.centre.tolist(), abs=1e-5)
    assert matrices([], SOURCE) == []


def test_a_path_that_stays_is_known() -> None:
    assert not spans("orbit", Pose(0, 10))
    assert not spans("dolly", Pose(20))
    assert spans("spiral", Pose(0, 8))
    for path, pose in poses.START.items():
        assert spans(path, pose)


@pytest.mark.parametrize(
    ("numbers", "fault"),
    [
        (None, "yaw, a pitch and a distance"),
        ({"yaw": None, "pitch": 0, "distance": 1}, "fill in all three"),
        ({"yaw": 100, "pitch": 0, "distance": 1}, "yaw 100"),
        ({"yaw": 0, "pitch": float("nan"), "distance": 1}, "pitch nan"),
        ({"yaw": 0, "pitch": 0, "distance": 0}, "distance 0"),
    ],
)
def test_what_is_no_pose_is_refused(numbers: object, fault: str) -> None:
    with pytest.raises(SidestepError, match=fault):
        Pose.read(numbers)


@pytest.mark.parametrize("elevation", [0.0, 20.0, 40.0, -35.0])
def test_every_pose_within_the_limits_of_the_view_can_be_made(elevation: float) -> None:
    limits = poses.scene(elevation, 45)["limits"]
    for pitch in limits["pitch"]:
        target(SOURCE, Pose(90, pitch, 2), elevation)
