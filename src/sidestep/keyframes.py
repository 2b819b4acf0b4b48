"""Paths through key frames: cameras that a file names, and smooth motion between them.

    keyframes:
      - {time: 0}                             # the photo's own view
      - {yaw: 25, pitch: 5, time: 1}
      - {yaw: 25, pitch: 5, fov: 30, time: 3}

What a key frame leaves out is as in the photo. Numbers mean what they mean in `trajectories`.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from sidestep.cameras import Camera
from sidestep.config import load_config, settings
from sidestep.errors import SidestepError
from sidestep.files import atomic_path
from sidestep.trajectories import Easing, dolly, fractions, moved, step_aside, zoomed

_WIDEST_TURN = 150.0  # degrees between two poses; at 180 there are two ways round


@settings
class KeyFrame:
    """One camera of a path.

    Attributes:
        yaw, pitch, roll: degrees, as in `step_aside`.
        distance: to the subject; the photo is at 1.
        fov: degrees across the shorter side; the photo's where None.
        world_to_camera: 4 rows of 4 in OpenCV axes, where the photo's camera is the identity and its subject is at
            (0, 0, 1). In place of the angles and the distance, for a camera that looks elsewhere.
        time: when the camera is there, in any unit; evenly spaced where no key frame has one.
    """

    yaw: float = 0.0
    pitch: float = 0.0
    distance: float = 1.0
    roll: float = 0.0
    fov: float | None = None
    world_to_camera: list[list[float]] | None = None
    time: float | None = None


@settings
class KeyFrames:
    """A file of key frames."""

    keyframes: list[KeyFrame]


def read_key_frames(path: Path) -> list[KeyFrame]:
    """The key frames of a YAML or JSON file.

    Raises:
        SidestepError: if the file cannot be read, or is not what this module's head shows; the line names the file,
            and the key frame by its place, the first being 0.
    """
    keys = load_config(KeyFrames, path).keyframes
    try:
        _check(keys)
    except SidestepError as error:
        raise SidestepError(f"{path}: {error}") from None
    return keys


def write_key_frames(keys: Sequence[KeyFrame], path: Path) -> None:
    """Writes the YAML file that `read_key_frames` reads, without what is as in the photo."""
    photo = asdict(KeyFrame())
    rows = [{name: value for name, value in asdict(key).items() if value != photo[name]} for key in keys]
    with atomic_path(path) as temporary:
        temporary.write_text(yaml.safe_dump({"keyframes": rows}, sort_keys=False), encoding="utf-8")


def along(
    keys: Sequence[KeyFrame],
    reference: Camera,
    frames: int,
    *,
    elevation: float = 0.0,
    easing: Easing = "linear",
) -> list[Camera]:
    """A path through all key frames, at `frames` times evenly spaced from the first to the last.

    Each number is interpolated on its own by monotone cubics (Fritsch and Carlson 1980): the motion has no jerk at a
    key frame, never goes beyond the values of the two that it is between, and rests between two that are alike.
    Distance and focal length are interpolated by their logarithms. Poses are interpolated entry by entry; the rotation
    is the nearest one to what comes out.

    Args:
        reference: the photo's camera.
        elevation: degrees by which it looks down on its subject.
        easing: of the whole path; "smooth" starts and stops gently.

    Raises:
        SidestepError: if a key frame is not usable; the line names it by its place.
    """
    _check(keys)
    own = float(reference.fov)
    focal = [math.log(_tangent(own) / _tangent(key.fov or own)) for key in keys]
    for place, key in enumerate(keys):
        if key.world_to_camera is None:
            try:
                step_aside(reference, key.yaw, key.pitch, elevation=elevation, roll=key.roll)
            except SidestepError as error:
                raise SidestepError(f"keyframes.{place}: {error}") from None
    times = [float(place if key.time is None else key.time) for place, key in enumerate(keys)]
    at = [(1 - s) * times[0] + s * times[-1] for s in fractions(frames, easing)]
    if keys[0].world_to_camera is not None:
        steps = _monotone(times, [_pose(key).flatten().tolist() for key in keys], at).unflatten(-1, (4, 4))
        cameras = [moved(reference, _rigid(step)) for step in steps]
    else:
        values = [[key.yaw, key.pitch, key.roll, math.log(key.distance)] for key in keys]
        cameras = []
        for yaw, pitch, roll, distance in _monotone(times, values, at).tolist():
            aside = step_aside(reference, yaw, pitch, elevation=elevation, roll=roll)
            cameras.extend(dolly(aside, 1, distance=(math.exp(distance), 1.0)))
    zooms = _monotone(times, [[value] for value in focal], at)[:, 0].exp().tolist()
    return [zoomed(camera, zoom) for camera, zoom in zip(cameras, zooms, strict=True)]


def _check(keys: Sequence[KeyFrame]) -> None:
    """What no reference could make good."""
    if len(keys) < 2:
        raise SidestepError(f"{len(keys)} key frames; a path needs at least 2")
    first = keys[0]
    for place, key in enumerate(keys):
        try:
            for name in ("time", "world_to_camera"):
                if (getattr(key, name) is None) != (getattr(first, name) is None):
                    raise SidestepError(f"give every key frame a {name}, or none")
            _check_alone(key)
            if place:
                _check_after(keys[place - 1], key)
        except SidestepError as error:
            raise SidestepError(f"keyframes.{place}: {error}") from None


def _check_alone(key: KeyFrame) -> None:
    numbers = {"yaw": key.yaw, "pitch": key.pitch, "roll": key.roll, "time": key.time}
    for name, value in numbers.items():
        if value is not None and not math.isfinite(value):
            raise SidestepError(f"{name} is {value}; it must be a finite number")
    if not (math.isfinite(key.distance) and key.distance > 0):
        raise SidestepError(f"distance is {key.distance}; it must be positive and finite")
    if key.fov is not None and not 0 < key.fov < 180:
        raise SidestepError(f"fov is {key.fov}; it must be between 0 and 180 degrees")
    if key.world_to_camera is not None:
        if replace(key, world_to_camera=None, fov=None, time=None) != KeyFrame():
            raise SidestepError("a world_to_camera says all of where the camera is; leave angles and distance out")
        Camera(torch.eye(3), _pose(key), 1, 1)


def _check_after(before: KeyFrame, key: KeyFrame) -> None:
    if before.time is not None and key.time is not None and key.time <= before.time:
        raise SidestepError(f"time {key.time:g} is not after the one before, {before.time:g}")
    if key.world_to_camera is not None:
        cosine = float(((_pose(key) * _pose(before))[:3, :3].sum() - 1) / 2)
        turn = math.degrees(math.acos(max(-1.0, min(1.0, cosine))))
        if turn > _WIDEST_TURN:
            raise SidestepError(f"turns by {turn:.0f} degrees from the one before; put a key frame between them")


def _pose(key: KeyFrame) -> Tensor:
    rows: Any = key.world_to_camera
    if len(rows) != 4 or any(len(row) != 4 for row in rows):
        raise SidestepError("world_to_camera must be 4 rows of 4 numbers")
    return torch.tensor(rows, dtype=torch.float64)


def _rigid(pose: Tensor) -> Tensor:
    """The rigid motion with the nearest rotation to the 3 × 3 part, (4, 4)."""
    left, _, right = torch.linalg.svd(pose[:3, :3])
    rigid = pose.clone()
    rigid[:3, :3] = left @ right
    return rigid


def _tangent(fov: float) -> float:
    return math.tan(math.radians(fov) / 2)


def _monotone(times: Sequence[float], values: Sequence[Sequence[float]], at: Sequence[float]) -> Tensor:
    """Monotone cubic interpolation of each column: K times, K rows of M values, N times asked for -> (N, M).

    The slopes are scipy's `PchipInterpolator`'s inside (weighted harmonic means, 0 at a turning point); at the ends
    they are those of the first and last piece.
    """
    t, y, x = (torch.tensor(numbers, dtype=torch.float64) for numbers in (times, values, at))
    widths = t.diff()[:, None]
    slopes = y.diff(dim=0) / widths
    before, after = slopes[:-1], slopes[1:]
    weight_before, weight_after = widths[:-1] + 2 * widths[1:], 2 * widths[:-1] + widths[1:]
    inner = (weight_before + weight_after) / (weight_before / before + weight_after / after)
    inner = torch.where(before * after > 0, inner, 0.0)
    tangents = torch.cat([slopes[:1], inner, slopes[-1:]])
    piece = (torch.searchsorted(t, x, right=True) - 1).clamp(0, len(t) - 2)
    width = widths[piece]
    s = (x[:, None] - t[piece][:, None]) / width
    return (
        y[piece] * (1 + 2 * s) * (1 - s) ** 2
        + tangents[piece] * width * s * (1 - s) ** 2
        + y[piece + 1] * (3 - 2 * s) * s**2
        + tangents[piece + 1] * width * (s - 1) * s**2
    )
