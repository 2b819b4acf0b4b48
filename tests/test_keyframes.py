"""Paths through key frames: where they pass, how they move between, and what a file must not hold."""

import itertools
import json
import math
from pathlib import Path

import pytest
import torch

from sidestep.cameras import Camera
from sidestep.errors import SidestepError
from sidestep.keyframes import KeyFrame, along, read_key_frames, write_key_frames
from sidestep.trajectories import step_aside

PHOTO = Camera.from_fov(45, 96, 64)
ELSEWHERE = step_aside(Camera.from_fov(45, 96, 64), 50, -20, roll=15, distance=3)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def same_camera(first: Camera, second: Camera) -> None:
    torch.testing.assert_close(first.world_to_camera, second.world_to_camera, atol=1e-5, rtol=0)
    torch.testing.assert_close(first.intrinsics, second.intrinsics)


def yaws(cameras: list[Camera]) -> list[float]:
    """Degrees round the subject, of level cameras about the photo at the origin."""
    centres = [camera.centre - torch.tensor([0.0, 0.0, 1.0]) for camera in cameras]
    return [math.degrees(math.atan2(float(c[0]), float(-c[2]))) for c in centres]


def pose(yaw: float) -> list[list[float]]:
    return step_aside(PHOTO, yaw).world_to_camera.tolist()


@pytest.mark.parametrize("reference", [PHOTO, ELSEWHERE])
def test_a_path_passes_through_its_key_frames(reference: Camera) -> None:
    keys = [
        KeyFrame(time=0.0),
        KeyFrame(yaw=20.0, pitch=5.0, time=1.0),
        KeyFrame(yaw=-30.0, pitch=10.0, distance=0.5, roll=8.0, fov=30.0, time=4.0),
    ]
    cameras = along(keys, reference, 9, elevation=12.0)  # a frame every half
    assert len(cameras) == 9
    same_camera(cameras[0], reference)
    same_camera(cameras[2], step_aside(reference, 20, 5, elevation=12))
    last = cameras[8]
    assert float(last.fov) == pytest.approx(30, abs=1e-3)
    subject = reference.centre + reference.rotation[2]
    assert float((last.centre - subject).norm()) == pytest.approx(0.5, abs=1e-5)
    beside = step_aside(reference, -30, 10, elevation=12, roll=8)
    torch.testing.assert_close(last.rotation, beside.rotation, atol=1e-5, rtol=0)
    pixel, _ = last.project(subject[None])
    torch.testing.assert_close(pixel, torch.tensor([[48.0, 32.0]]), atol=1e-3, rtol=0)


def test_motion_is_smooth_rests_between_equal_keys_and_never_goes_beyond_them() -> None:
    keys = [KeyFrame(yaw=yaw) for yaw in (0.0, 30.0, 30.0, -10.0, -12.0)]
    way = yaws(along(keys, PHOTO, 401))
    assert max(way) <= 30 + 1e-3
    assert min(way) >= -12 - 1e-3
    assert all(yaw == pytest.approx(30, abs=1e-3) for yaw in way[100:201])
    speeds = [b - a for a, b in itertools.pairwise(way)]
    assert all(speed <= 1e-3 for speed in speeds[200:])
    jumps = [abs(b - a) for a, b in itertools.pairwise(speeds)]
    assert max(jumps) < 0.03  # a straight line through the keys would jump by 0.3 at the second


def test_two_key_frames_are_a_straight_line_and_smooth_starts_and_stops_gently() -> None:
    keys = [KeyFrame(), KeyFrame(yaw=40.0)]
    assert yaws(along(keys, PHOTO, 5)) == pytest.approx([0, 10, 20, 30, 40], abs=1e-3)
    assert yaws(along(keys, PHOTO, 5, easing="smooth")) == pytest.approx([0, 6.25, 20, 33.75, 40], abs=1e-3)


def test_the_times_unit_and_start_do_not_matter() -> None:
    def path(*times: float) -> list[float]:
        return yaws(along([KeyFrame(yaw=yaw, time=t) for yaw, t in zip((0, 10, 40), times, strict=True)], PHOTO, 7))

    assert path(0, 1, 2) == pytest.approx(path(100, 600, 1100), abs=1e-3)
    assert path(0, 1, 2) == pytest.approx(yaws(along([KeyFrame(yaw=yaw) for yaw in (0, 10, 40)], PHOTO, 7)), abs=1e-3)
    assert path(0, 1, 4)[1] > path(0, 1, 2)[1] + 1


@pytest.mark.parametrize("reference", [PHOTO, ELSEWHERE])
def test_poses_are_relative_to_the_photo_and_turn_rigidly(reference: Camera) -> None:
    keys = [KeyFrame(world_to_camera=pose(yaw)) for yaw in (0.0, 60.0, 100.0)]
    cameras = along(keys, reference, 9)
    for place, yaw in ((0, 0), (4, 60), (8, 100)):
        same_camera(cameras[place], step_aside(reference, yaw))
    for camera in cameras:
        rotation = camera.rotation.double()
        torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).double(), atol=1e-6, rtol=0)
        assert float(torch.linalg.det(rotation)) > 0
    turns = [math.acos(min(1.0, float(((a.rotation @ b.rotation.mT).trace() - 1) / 2))) for a, b in
             itertools.pairwise(cameras)]  # fmt: skip
    assert min(turns) > math.radians(5)


def test_what_is_written_is_read_back_without_what_is_as_in_the_photo(tmp_path: Path) -> None:
    pose = [[1.0, 0, 0, 0.1], [0, 1, 0, 0], [0, 0, 1, 1e-05], [0, 0, 0, 1]]
    for keys in (
        [KeyFrame(), KeyFrame(yaw=-25, distance=0.8, roll=1e-05), KeyFrame(pitch=5.5, fov=30)],
        [KeyFrame(world_to_camera=pose, time=0), KeyFrame(world_to_camera=pose, time=2.5)],
    ):
        write_key_frames(keys, tmp_path / "keys.yaml")
        assert read_key_frames(tmp_path / "keys.yaml") == keys
        assert "null" not in (tmp_path / "keys.yaml").read_text()


def test_yaml_and_json_say_the_same(tmp_path: Path) -> None:
    yaml = write(tmp_path / "a.yaml", "keyframes:\n  - {}\n  - {yaw: 25, pitch: -5, fov: 30, time: 2}\n".replace(
        "- {}", "- {time: 0}"))  # fmt: skip
    data = {"keyframes": [{"time": 0}, {"yaw": 25, "pitch": -5, "fov": 30, "time": 2}]}
    keys = read_key_frames(yaml)
    assert keys == read_key_frames(write(tmp_path / "a.json", json.dumps(data)))
    assert keys[1] == KeyFrame(yaw=25, pitch=-5, fov=30, time=2)


FLIPPED = [[-1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
UNIT = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


@pytest.mark.parametrize(
    ("second", "fault"),
    [
        ({"yaw": "left"}, "'keyframes.1.yaw'"),
        ({"jaw": 3}, "'keyframes.1.jaw'"),
        ({"yaw": math.nan}, "keyframes.1: yaw is nan"),
        ({"distance": 0}, "keyframes.1: distance is 0"),
        ({"fov": 180}, "keyframes.1: fov is 180"),
        ({"time": 3}, "keyframes.1: give every key frame a time, or none"),
        ({"world_to_camera": UNIT}, "keyframes.1: give every key frame a world_to_camera, or none"),
    ],
)
def test_what_is_refused_names_the_file_and_the_key_frame(
    tmp_path: Path, second: dict[str, object], fault: str
) -> None:
    path = write(tmp_path / "keys.json", json.dumps({"keyframes": [{}, second]}))
    with pytest.raises(SidestepError, match=fault) as error:
        read_key_frames(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("keys", "fault"),
    [
        ([{}], "1 key frames; a path needs at least 2"),
        ([{"time": 2}, {"time": 2}], "keyframes.1: time 2 is not after the one before, 2"),
        ([{"world_to_camera": UNIT}, {"world_to_camera": FLIPPED}], "keyframes.1: .*reflection"),
        ([{"world_to_camera": UNIT[:3]}, {"world_to_camera": UNIT}], "keyframes.0: .*4 rows of 4"),
        ([{"world_to_camera": UNIT, "yaw": 3}, {"world_to_camera": UNIT}], "keyframes.0: .*leave angles"),
        ([{"world_to_camera": pose(0)}, {"world_to_camera": pose(170)}], "keyframes.1: turns by 170 degrees"),
    ],
)
def test_what_two_key_frames_must_not_be(tmp_path: Path, keys: list[object], fault: str) -> None:
    with pytest.raises(SidestepError, match=fault):
        read_key_frames(write(tmp_path / "keys.json", json.dumps({"keyframes": keys})))


def test_a_file_that_is_no_key_frames(tmp_path: Path) -> None:
    for text in ("- {yaw: 3}", "frames: []", "keyframes: [{yaw: 3}", "keyframes: 3"):
        with pytest.raises(SidestepError, match=r"keys\.yaml: "):
            read_key_frames(write(tmp_path / "keys.yaml", text))
    with pytest.raises(SidestepError, match="absent"):
        read_key_frames(tmp_path / "absent.yaml")


def test_a_key_frame_over_the_pole_of_this_photo_is_named() -> None:
    keys = [KeyFrame(), KeyFrame(pitch=70.0)]
    assert len(along(keys, PHOTO, 3)) == 3
    with pytest.raises(SidestepError, match=r"keyframes\.1: .*over the pole"):
        along(keys, PHOTO, 3, elevation=25.0)
