"""Poses against the trajectories that the command line has."""

import pytest
import torch

from sidestep.app import poses
from sidestep.app.poses import Path, Pose, along, drawn, matrices, spans, target
from sidestep.cameras import Camera
from sidestep.errors import SidestepError
from sidestep.trajectories import dolly, dolly_zoom, orbit, spiral, step_aside

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


@pytest.mark.parametrize("kind", ["orbit", "dolly"])
def test_paths_end_at_the_target(kind: poses.Kind) -> None:
    path, pose = Path(kind, 5), Pose(25, 5, 0.6)
    end = along(path, SOURCE, pose, 20)[path.shown]
    assert torch.allclose(end.world_to_camera, target(SOURCE, pose, 20).world_to_camera, atol=1e-6)


def test_paths_are_those_of_the_command_line() -> None:
    for kind, expected in (
        ("orbit", orbit(SOURCE, 4, yaw=(-30, 30), elevation=20, easing="smooth")),
        ("dolly", dolly(SOURCE, 4, easing="smooth")),
        ("dolly-zoom", dolly_zoom(SOURCE, 4, easing="smooth")),
        ("spiral", spiral(SOURCE, 4, elevation=20, easing="smooth")),
    ):
        path = Path(kind, 4, "smooth")  # type: ignore[arg-type]
        for one, other in zip(along(path, SOURCE, poses.START[path.kind], 20), expected, strict=True):
            assert torch.allclose(one.world_to_camera, other.world_to_camera, atol=1e-6)
            assert torch.allclose(one.intrinsics, other.intrinsics)


def test_a_path_goes_through_its_key_frames() -> None:
    keys = (Pose(0), Pose(30, 10, 0.8), Pose(-20, 0, 1.2))
    cameras = along(Path("keys", 5, keys=keys), SOURCE, Pose(), 20)
    for place, key in zip((0, 2, 4), keys, strict=True):
        assert torch.allclose(cameras[place].world_to_camera, target(SOURCE, key, 20).world_to_camera, atol=1e-5)


def test_a_single_key_frame_is_drawn_though_it_is_no_path() -> None:
    (only,) = drawn(Path("keys", keys=(Pose(30),)), SOURCE, Pose(), 20)
    assert torch.equal(only.world_to_camera, target(SOURCE, Pose(30), 20).world_to_camera)
    assert drawn(Path("keys"), SOURCE, Pose(), 20) == []
    with pytest.raises(SidestepError, match="at least 2"):
        along(Path("keys", keys=(Pose(30),)), SOURCE, Pose(), 20)


def test_a_spiral_is_wide_at_the_frame_that_stands_for_it() -> None:
    path = Path("spiral", 24)
    aside = [float(torch.dist(camera.centre, SOURCE.centre)) for camera in along(path, SOURCE, Pose(20, 8), 20)]
    assert aside[path.shown] > 0.8 * max(aside)


def test_matrices_are_camera_to_world_in_the_photo_frame() -> None:
    moved = step_aside(Camera.from_fov(45, 24, 16, SOURCE.world_to_camera), 30)
    (numbers,) = matrices([moved], SOURCE)
    assert torch.tensor(numbers).reshape(4, 4)[:3, 3].tolist() == pytest.approx(moved.centre.tolist(), abs=1e-5)
    assert matrices([], SOURCE) == []


def test_a_path_that_stays_is_known() -> None:
    assert not spans("orbit", Pose(0, 10))
    assert not spans("dolly", Pose(20))
    assert spans("spiral", Pose(0, 8))
    assert not spans("dolly-zoom", Pose(20))
    assert spans("keys", Pose(0))
    for kind, pose in poses.START.items():
        assert spans(kind, pose)


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
