"""Where the page's cameras stand: a target as three numbers, the paths made from it, and both as the 3D view's data."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from sidestep.cameras import Camera
from sidestep.errors import SidestepError
from sidestep.keyframes import KeyFrame
from sidestep.keyframes import along as through
from sidestep.trajectories import Easing, dolly, dolly_zoom, orbit, spiral, step_aside

Kind = Literal["orbit", "dolly", "dolly-zoom", "spiral", "keys"]
KINDS: tuple[Kind, ...] = get_args(Kind)

YAW = (-90.0, 90.0)
PITCH = (-60.0, 60.0)
DISTANCE = (0.4, 2.0)
FOV = (5.0, 120.0)
_STEEPEST = 85.0  # degrees above or below the subject; `step_aside` refuses 90


@dataclass(frozen=True)
class Pose:
    """A target camera that looks at the photo's subject.

    Attributes:
        yaw: degrees to the right of the photo's camera.
        pitch: degrees above it.
        distance: to the subject; the photo's camera is at 1.
    """

    yaw: float = 20.0
    pitch: float = 0.0
    distance: float = 1.0

    @classmethod
    def read(cls, numbers: Any) -> "Pose":
        """The pose in what the browser sent.

        Raises:
            SidestepError: if it is no dictionary of three numbers, or a number is out of its range.
        """
        try:
            pose = cls(float(numbers["yaw"]), float(numbers["pitch"]), float(numbers["distance"]))
        except (TypeError, KeyError, ValueError, OverflowError):
            raise SidestepError("the camera needs a yaw, a pitch and a distance; fill in all three") from None
        for name, value, (low, high) in (
            ("yaw", pose.yaw, YAW),
            ("pitch", pose.pitch, PITCH),
            ("distance", pose.distance, DISTANCE),
        ):
            if not low <= value <= high:
                raise SidestepError(f"{name} {value:g} is out of range; use {low:g} to {high:g}")
        return pose


@dataclass(frozen=True)
class Path:
    """The cameras of a video.

    Attributes:
        kind: "keys" goes through key frames, all others to the target.
        frames: how many cameras.
        easing: how they are spread.
        keys: of "keys", evenly spaced in time.
    """

    kind: Kind
    frames: int = 24
    easing: Easing = "linear"
    keys: tuple[Pose, ...] = ()

    @property
    def key_frames(self) -> list[KeyFrame]:
        """The keys as the command line reads them."""
        return [KeyFrame(key.yaw, key.pitch, key.distance) for key in self.keys]

    @property
    def shown(self) -> int:
        """Which frame stands for all as a still: the last one, and of a spiral one far to its side."""
        return round(0.3 * (self.frames - 1)) if self.kind == "spiral" else self.frames - 1


# Where a path needs the target elsewhere than beside the photo; the same as the command line's defaults.
START: dict[Kind, Pose] = {
    "orbit": Pose(30.0),
    "dolly": Pose(0.0, distance=0.7),
    "dolly-zoom": Pose(0.0, distance=0.7),
    "spiral": Pose(20.0, 8.0),
}


def spans(kind: Kind, pose: Pose) -> bool:
    """Whether a path to this target moves at all; one through key frames does not need the target."""
    if kind in ("dolly", "dolly-zoom"):
        return pose.distance != 1
    return kind == "keys" or pose.yaw != 0 or (kind == "spiral" and pose.pitch != 0)


def target(source: Camera, pose: Pose, elevation: float) -> Camera:
    """The camera at a pose.

    Args:
        source: the photo's camera, whose subject is at distance 1.
        elevation: degrees by which it looks down.

    Raises:
        SidestepError: as `step_aside`.
    """
    aside = step_aside(source, pose.yaw, pose.pitch, elevation=elevation)
    return dolly(aside, 1, distance=(pose.distance, pose.distance))[0]


def along(path: Path, source: Camera, pose: Pose, elevation: float) -> list[Camera]:
    """A path through its key frames, or one that the target spans: an orbit from its mirror image to it, a dolly from
    the photo's distance straight to it, or a spiral as wide as its yaw and pitch.

    Raises:
        SidestepError: as `step_aside`, or if there are fewer than two key frames.
    """
    frames, easing = path.frames, path.easing
    if path.kind == "keys":
        return through(path.key_frames, source, frames, elevation=elevation, easing=easing)
    if path.kind in ("dolly", "dolly-zoom"):
        aside = step_aside(source, pose.yaw, pose.pitch, elevation=elevation)
        move = dolly if path.kind == "dolly" else dolly_zoom
        return move(aside, frames, distance=(1.0, pose.distance), easing=easing)
    if path.kind == "spiral":
        cameras = spiral(source, frames, yaw=pose.yaw, pitch=pose.pitch, elevation=elevation, easing=easing)
    else:
        yaw, pitch = (-pose.yaw, pose.yaw), (pose.pitch, pose.pitch)
        cameras = orbit(source, frames, yaw=yaw, pitch=pitch, elevation=elevation, easing=easing)
    return [dolly(camera, 1, distance=(pose.distance, pose.distance))[0] for camera in cameras]


def drawn(path: Path, source: Camera, pose: Pose, elevation: float) -> list[Camera]:
    """What the 3D view shows of a path: its cameras, also of key frames that are too few for one yet."""
    if path.kind == "keys" and len(path.keys) < 2:
        return [target(source, key, elevation) for key in path.keys]
    return along(path, source, pose, elevation)


def scene(elevation: float, fov: float) -> dict[str, Any]:
    """What the 3D view needs to place the photo and to keep the target within what `target` takes."""
    low, high = max(PITCH[0], -_STEEPEST - elevation), min(PITCH[1], _STEEPEST - elevation)
    limits = {"yaw": YAW, "pitch": (math.ceil(low), math.floor(high)), "distance": DISTANCE}
    return {"elevation": elevation, "fov": fov, "limits": limits}


def matrices(cameras: Sequence[Camera], source: Camera) -> list[list[float]]:
    """The cameras' poses in the source's frame, camera to world, OpenCV axes, each as 16 numbers row by row."""
    if not cameras:
        return []
    relative = Camera.stack(list(cameras)).relative_to(source).world_to_camera
    return [[round(x, 6) for x in matrix.flatten().tolist()] for matrix in torch.linalg.inv(relative.double())]
