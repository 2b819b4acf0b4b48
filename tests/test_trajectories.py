import itertools
import math
from collections.abc import Callable

import pytest
import torch

from sidestep.cameras import Camera, distance_scale
from sidestep.errors import SidestepError
from sidestep.trajectories import dolly, dolly_zoom, interpolate, orbit, spiral, step_aside


def turned(*axis_angle: float) -> torch.Tensor:
    x, y, z = axis_angle
    return torch.linalg.matrix_exp(torch.tensor([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]]))


def with_pose(rotation: torch.Tensor, translation: tuple[float, float, float]) -> Camera:
    pose = torch.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation, torch.tensor(translation)
    return Camera.from_fov(45, 96, 64, pose)


LEVEL = Camera.from_fov(45, 96, 64)
ANYWHERE = with_pose(turned(0.7, -1.9, 0.4), (3.0, -2.0, 8.0))


def subject_of(reference: Camera, distance: float = 1.0) -> torch.Tensor:
    return reference.centre + distance * reference.rotation[2]


def same_camera(first: Camera, second: Camera, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(first.world_to_camera, second.world_to_camera, atol=tolerance, rtol=0)
    torch.testing.assert_close(first.intrinsics, second.intrinsics)
    assert (first.width, first.height) == (second.width, second.height)


def centre_in(reference: Camera, camera: Camera) -> list[float]:
    return camera.relative_to(reference).centre.tolist()


# --- one step --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reference", [LEVEL, ANYWHERE])
@pytest.mark.parametrize("elevation", [-40.0, 0.0, 25.0, 89.0])
def test_no_step_is_the_reference_to_rounding(reference: Camera, elevation: float) -> None:
    same_camera(step_aside(reference, 0.0, elevation=elevation), reference, tolerance=1e-6)


@pytest.mark.parametrize("reference", [LEVEL, ANYWHERE])
@pytest.mark.parametrize("elevation", [0.0, 30.0])
def test_yaw_goes_right_and_pitch_up(reference: Camera, elevation: float) -> None:
    x, _, z = centre_in(reference, step_aside(reference, 20.0, elevation=elevation))
    assert x > 0.1
    assert z > 0.01  # round the subject, not along a straight line
    x, _, _ = centre_in(reference, step_aside(reference, -20.0, elevation=elevation))
    assert x < -0.1
    x, y, _ = centre_in(reference, step_aside(reference, 0.0, 20.0, elevation=elevation))
    assert x == pytest.approx(0, abs=1e-5)
    assert y < -0.1  # y points down
    assert centre_in(reference, step_aside(reference, 0.0, -20.0, elevation=elevation))[1] > 0.1


def test_a_quarter_turn_stands_beside_the_subject() -> None:
    camera = step_aside(LEVEL, 90.0, distance=2.0)
    torch.testing.assert_close(camera.centre, torch.tensor([2.0, 0.0, 2.0]))
    torch.testing.assert_close(camera.rotation[2], torch.tensor([-1.0, 0.0, 0.0]))  # looks left, at the subject
    torch.testing.assert_close(camera.rotation[1], torch.tensor([0.0, 1.0, 0.0]))  # upright


@pytest.mark.parametrize("reference", [LEVEL, ANYWHERE])
@pytest.mark.parametrize(("yaw", "pitch", "elevation", "distance"), [(35, 0, 0, 1), (-70, 12, 20, 1), (170, -30, 9, 2)])
def test_the_subject_stays_in_the_middle_at_its_distance(
    reference: Camera, yaw: float, pitch: float, elevation: float, distance: float
) -> None:
    camera = step_aside(reference, yaw, pitch, elevation=elevation, distance=distance)
    pixels, depth = camera.project(subject_of(reference, distance)[None])
    torch.testing.assert_close(pixels[0], torch.tensor([48.0, 32.0]), atol=1e-3, rtol=0)
    assert float(depth) == pytest.approx(distance, rel=1e-5)
    torch.testing.assert_close(camera.intrinsics, reference.intrinsics)


@pytest.mark.parametrize("yaw", [-120.0, 15.0, 60.0])
def test_yaw_about_the_true_vertical_keeps_height_and_horizon(yaw: float) -> None:
    elevation = 25.0
    e = math.radians(elevation)
    up = torch.tensor([0.0, -math.cos(e), -math.sin(e)])
    camera = step_aside(LEVEL, yaw, elevation=elevation)
    assert float(camera.centre @ up) == pytest.approx(0, abs=1e-6)
    assert float(camera.rotation[0] @ up) == pytest.approx(0, abs=1e-6)  # the picture's rows stay level
    assert float(camera.rotation[2] @ up) == pytest.approx(-math.sin(e), abs=1e-6)
    raised = step_aside(LEVEL, yaw, 10.0, elevation=elevation)
    assert float(raised.rotation[2] @ up) == pytest.approx(-math.sin(e + math.radians(10)), abs=1e-6)


def test_roll_turns_the_camera_clockwise_and_the_picture_the_other_way() -> None:
    rolled = step_aside(LEVEL, 0.0, roll=90.0)
    torch.testing.assert_close(rolled.centre, torch.zeros(3), atol=1e-6, rtol=0)
    # What was to the right of the middle is now above it.
    pixels, _ = rolled.project(torch.tensor([[0.1, 0.0, 1.0]]))
    assert float(pixels[0, 0]) == pytest.approx(48, abs=1e-4)
    assert float(pixels[0, 1]) < 32 - 1


def test_a_batch_of_references_steps_together() -> None:
    both = step_aside(Camera.stack([LEVEL, ANYWHERE]), 15.0, 5.0, elevation=10.0)
    for i, reference in enumerate([LEVEL, ANYWHERE]):
        same_camera(both[i], step_aside(reference, 15.0, 5.0, elevation=10.0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"yaw": 0.0, "pitch": 60.0, "elevation": 30.0}, "over the pole"),
        ({"yaw": 0.0, "pitch": -90.0}, "over the pole"),
        ({"yaw": 0.0, "elevation": 95.0, "pitch": -20.0}, "over the pole"),
        ({"yaw": math.nan}, "finite"),
        ({"yaw": 0.0, "distance": 0.0}, "distance 0"),
        ({"yaw": 0.0, "distance": -1.0}, "distance -1"),
    ],
)
def test_refuses_impossible_steps_in_one_line(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(SidestepError, match=message) as caught:
        step_aside(LEVEL, **arguments)
    assert "\n" not in str(caught.value)


# --- paths -----------------------------------------------------------------------------------------------------------


def test_orbit_goes_evenly_from_one_side_to_the_other() -> None:
    cameras = orbit(ANYWHERE, 5, yaw=(-40.0, 40.0), pitch=(-5.0, 15.0), elevation=20.0)
    expected = zip((-40.0, -20.0, 0.0, 20.0, 40.0), (-5.0, 0.0, 5.0, 10.0, 15.0), strict=True)
    assert len(cameras) == 5
    for camera, (yaw, pitch) in zip(cameras, expected, strict=True):
        same_camera(camera, step_aside(ANYWHERE, yaw, pitch, elevation=20.0))
    same_camera(orbit(ANYWHERE, 1, yaw=(-40.0, 40.0))[0], step_aside(ANYWHERE, -40.0))


def test_the_cameras_of_an_orbit_meet_at_the_subject() -> None:
    cameras = orbit(ANYWHERE, 6, yaw=(-60.0, 50.0), elevation=15.0, distance=2.5)
    assert distance_scale(ANYWHERE, Camera.stack(cameras)) == pytest.approx(1 / 2.5, rel=1e-4)


def test_dolly_walks_along_the_axis_without_turning() -> None:
    cameras = dolly(ANYWHERE, 3, distance=(1.0, 0.5))
    same_camera(cameras[0], ANYWHERE, tolerance=0)
    for camera, distance in zip(cameras, (1.0, 0.75, 0.5), strict=True):
        torch.testing.assert_close(camera.rotation, ANYWHERE.rotation)
        pixels, depth = camera.project(subject_of(ANYWHERE)[None])
        assert float(depth) == pytest.approx(distance, abs=1e-5)
        torch.testing.assert_close(pixels[0], torch.tensor([48.0, 32.0]), atol=1e-2, rtol=0)
    with pytest.raises(SidestepError, match="positive"):
        dolly(LEVEL, 3, distance=(1.0, 0.0))


@pytest.mark.parametrize("reference", [LEVEL, ANYWHERE])
def test_dolly_zoom_keeps_the_subjects_size_and_not_the_backgrounds(reference: Camera) -> None:
    def width(camera: Camera, distance: float) -> float:
        ends = torch.tensor([[-0.1, 0.0, distance], [0.1, 0.0, distance]])
        pixels, _ = camera.project(ends @ reference.rotation + reference.centre)
        return float((pixels[1] - pixels[0]).norm())

    cameras = dolly_zoom(reference, 5, distance=(1.0, 0.5))
    same_camera(cameras[0], reference)
    assert float(cameras[-1].fov) > 1.7 * float(reference.fov)
    for camera in cameras:
        assert width(camera, 1.0) == pytest.approx(width(reference, 1.0), rel=1e-4)
    behind = [width(camera, 3.0) for camera in cameras]
    assert behind == sorted(behind, reverse=True)
    assert behind[-1] < 0.7 * behind[0]


@pytest.mark.parametrize("path", [orbit, spiral, dolly, dolly_zoom], ids=lambda path: path.__name__)
def test_smooth_takes_the_same_way_with_a_gentle_start_and_stop(path: Callable[..., list[Camera]]) -> None:
    even, smooth = path(LEVEL, 41), path(LEVEL, 41, easing="smooth")
    for place in (0, 20, 40):
        same_camera(even[place], smooth[place])
    # A quarter of the time is 5/32 of the way, which is a frame of the even path to rounding.
    torch.testing.assert_close(smooth[10].centre, path(LEVEL, 33)[5].centre, atol=1e-5, rtol=0)
    first, middle = ((smooth[i + 1].centre - smooth[i].centre).norm() for i in (0, 12))
    assert first < 0.3 * middle
    with pytest.raises(SidestepError, match="'bouncy' is unknown; use linear, smooth"):
        path(LEVEL, 3, easing="bouncy")


@pytest.mark.parametrize("turns", [0.5, 1.0, 3.0])
def test_spiral_closes_at_the_reference_and_stays_within_its_widths(turns: float) -> None:
    cameras = spiral(ANYWHERE, 41, yaw=20.0, pitch=8.0, turns=turns, elevation=15.0)
    same_camera(cameras[0], ANYWHERE)
    same_camera(cameras[-1], ANYWHERE)
    subject = subject_of(ANYWHERE)
    steps = [centre_in(ANYWHERE, camera) for camera in cameras]
    for camera in cameras:
        assert float((camera.centre - subject).norm()) == pytest.approx(1, abs=1e-4)
    # A chord at yaw 20 is sin 20 wide; both directions are used, and never more than asked.
    assert max(abs(x) for x, _, _ in steps) <= math.sin(math.radians(20)) + 1e-4
    assert max(abs(y) for _, y, _ in steps) <= 2 * math.sin(math.radians(14)) + 1e-4
    assert max(abs(y) for _, y, _ in steps) > 0.05
    assert max(abs(x) for x, _, _ in steps) > 0.1


def test_spiral_winds_as_often_as_asked() -> None:
    cameras = spiral(LEVEL, 200, turns=3.0)[1:-1]
    angles = [math.atan2(y, x) for x, y, _ in (centre_in(LEVEL, camera) for camera in cameras)]
    wound = sum((b - a + math.pi) % (2 * math.pi) - math.pi for a, b in itertools.pairwise(angles))
    assert abs(wound) / (2 * math.pi) == pytest.approx(3.0, abs=0.1)
    with pytest.raises(SidestepError, match="turns"):
        spiral(LEVEL, 3, turns=math.inf)


def test_interpolation_ends_exactly_and_moves_evenly() -> None:
    last = with_pose(turned(0.0, 1.2, 0.0), (1.0, 2.0, 3.0))
    last = Camera(last.intrinsics * torch.tensor([[2.0], [2.0], [1.0]]), last.world_to_camera, 96, 64)
    cameras = interpolate(LEVEL, last, 5)
    same_camera(cameras[0], LEVEL, tolerance=0)
    same_camera(cameras[-1], last, tolerance=0)
    for i, camera in enumerate(cameras):
        torch.testing.assert_close(camera.centre, last.centre * i / 4, atol=1e-5, rtol=0)
        torch.testing.assert_close(camera.rotation, turned(0.0, 1.2 * i / 4, 0.0), atol=1e-5, rtol=0)
        torch.testing.assert_close(camera.intrinsics[0, 0], LEVEL.intrinsics[0, 0] * (1 + i / 4))
    assert len(interpolate(LEVEL, last, 1)) == 1


@pytest.mark.parametrize("angle", [1e-4, 2.0, math.pi - 1e-4, math.pi])
def test_interpolation_takes_the_shortest_turn_at_every_angle(angle: float) -> None:
    axis = torch.nn.functional.normalize(torch.tensor([1.0, -2.0, 0.5]), dim=0)
    first = with_pose(turned(0.2, 0.1, -0.4), (0.0, 0.0, 2.0))
    last = with_pose(turned(*(angle * axis).tolist()) @ first.rotation, (0.0, 1.0, 2.0))
    middle = interpolate(first, last, 3)[1]
    for end in (first, last):
        trace = (middle.rotation @ end.rotation.mT).trace()
        assert math.acos(min(1.0, (float(trace) - 1) / 2)) == pytest.approx(angle / 2, abs=2e-3)


def test_interpolation_of_batches() -> None:
    first, last = Camera.stack([LEVEL, ANYWHERE]), Camera.stack([ANYWHERE, LEVEL])
    cameras = interpolate(first, last, 4)
    assert [camera.batch_shape for camera in cameras] == [(2,)] * 4
    for camera, alone in zip(cameras, interpolate(LEVEL, ANYWHERE, 4), strict=True):
        same_camera(camera[0], alone)
    with pytest.raises(SidestepError, match="different sizes"):
        interpolate(LEVEL, ANYWHERE.resize(10, 10), 3)


@pytest.mark.parametrize("frames", [0, -2])
def test_a_path_has_at_least_one_frame(frames: int) -> None:
    for path in (orbit, dolly, dolly_zoom, spiral):
        with pytest.raises(SidestepError, match="at least 1"):
            path(LEVEL, frames)
    with pytest.raises(SidestepError, match="at least 1"):
        interpolate(LEVEL, ANYWHERE, frames)
