"""Paths of cameras for a reference view: round the subject, towards it, along a spiral, between two views.

Every path takes an easing: "linear" moves evenly, "smooth" starts and stops gently (3s² - 2s³ of the way at the
fraction s of the time).

Lengths are in the reference's world after scaling (`cameras.distance_scale`), where the subject stands at distance 1
before the reference; angles are in degrees. Positive yaw moves the camera to the right, positive pitch up, both as the
reference sees it. The cameras keep the reference's intrinsics, a dolly zoom's excepted, and stand in its world.
"""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from sidestep.cameras import Camera, quaternions
from sidestep.errors import SidestepError

Easing = Literal["linear", "smooth"]

_STEEPEST = 89.0


def step_aside(
    reference: Camera,
    yaw: float,
    pitch: float = 0.0,
    *,
    elevation: float = 0.0,
    distance: float = 1.0,
    roll: float = 0.0,
) -> Camera:
    """The reference moved on a sphere about its subject, still looking at it.

    The subject is the point (0, 0, distance) of the reference's frame. Yaw turns about the vertical through it, which
    in that frame is (0, -cos e, -sin e) for a reference that looks down by e. With all angles 0 the result is the
    reference, whatever the elevation.

    Args:
        reference: one camera or a batch, in any pose.
        yaw: degrees about the vertical, positive to the right.
        pitch: degrees of elevation added to the reference's, positive up.
        elevation: degrees by which the reference looks down on its subject.
        distance: from the reference to its subject, positive.
        roll: degrees about the camera's own optical axis, positive clockwise as seen from behind the camera (the
            picture turns anticlockwise).

    Raises:
        SidestepError: if a value is not finite, the distance not positive, or the elevation with or without the pitch
            is beyond ±89 degrees, where right and left change sides.
    """
    if not all(math.isfinite(value) for value in (yaw, pitch, elevation, distance, roll)):
        raise SidestepError("trajectory: yaw, pitch, roll, elevation and distance must be finite numbers")
    if distance <= 0:
        raise SidestepError(f"trajectory: the subject is at distance {distance:g}; it must be before the camera")
    for height in (elevation, elevation + pitch):
        if abs(height) > _STEEPEST:
            raise SidestepError(
                f"trajectory: elevation {elevation:g} with pitch {pitch:g} looks down by {height:g} degrees, over the "
                f"pole; stay within ±{_STEEPEST:g}"
            )
    # From the level frame at the subject to the camera: yaw about the vertical, then down by the elevation.
    level = _about_x(-elevation)
    turned = _about_z(-roll) @ _about_x(elevation + pitch) @ _about_y(yaw) @ level
    subject = torch.tensor([0.0, 0.0, distance], dtype=torch.float64)
    step = torch.eye(4, dtype=torch.float64)
    step[:3, :3] = turned
    step[:3, 3] = subject - turned @ subject
    return moved(reference, step)


def orbit(
    reference: Camera,
    frames: int,
    *,
    yaw: tuple[float, float] = (-30.0, 30.0),
    pitch: tuple[float, float] = (0.0, 0.0),
    elevation: float = 0.0,
    distance: float = 1.0,
    easing: Easing = "linear",
) -> list[Camera]:
    """An arc about the subject, from the first yaw and pitch to the second, both included.

    Raises:
        SidestepError: as `step_aside`, or if `frames` is below 1.
    """
    return [
        step_aside(reference, y, p, elevation=elevation, distance=distance)
        for y, p in zip(_between(*yaw, frames, easing), _between(*pitch, frames, easing), strict=True)
    ]


def dolly(
    reference: Camera, frames: int, *, distance: tuple[float, float] = (1.0, 0.7), easing: Easing = "linear"
) -> list[Camera]:
    """Straight along the optical axis, from the first distance to the subject to the second, both included.

    The reference is at distance 1, so 0.7 is three tenths of the way to the subject and 2 is as far again behind.

    Raises:
        SidestepError: if a distance is not positive and finite, or `frames` is below 1.
    """
    if not all(math.isfinite(d) and d > 0 for d in distance):
        raise SidestepError(f"trajectory: distances {distance} to the subject; they must be positive and finite")
    cameras = []
    for away in _between(*distance, frames, easing):
        step = torch.eye(4, dtype=torch.float64)
        step[2, 3] = away - 1
        cameras.append(moved(reference, step))
    return cameras


def dolly_zoom(
    reference: Camera, frames: int, *, distance: tuple[float, float] = (1.0, 0.7), easing: Easing = "linear"
) -> list[Camera]:
    """A dolly whose focal length follows the distance, so that the subject keeps its size and the background does not.

    Raises:
        SidestepError: as `dolly`.
    """
    cameras = dolly(reference, frames, distance=distance, easing=easing)
    return [zoomed(camera, away) for camera, away in zip(cameras, _between(*distance, frames, easing), strict=True)]


def spiral(
    reference: Camera,
    frames: int,
    *,
    yaw: float = 20.0,
    pitch: float = 8.0,
    turns: float = 1.0,
    elevation: float = 0.0,
    distance: float = 1.0,
    easing: Easing = "linear",
) -> list[Camera]:
    """Out from the reference and back to it, winding about its optical axis, so that the frames play in a loop.

    At the fraction s of the way the camera is at yaw · r sin θ and -pitch · r cos θ with r = sin πs and θ = 2π turns s:
    `yaw` and `pitch` are the widest that it can get. The first and the last frame are the reference's view.

    Raises:
        SidestepError: as `step_aside`, or if `turns` is not finite or `frames` is below 1.
    """
    if not math.isfinite(turns):
        raise SidestepError(f"trajectory: a spiral of {turns} turns; turns must be a finite number")
    cameras = []
    for s in fractions(frames, easing):
        radius, angle = math.sin(math.pi * s), 2 * math.pi * turns * s
        y, p = yaw * radius * math.sin(angle), -pitch * radius * math.cos(angle)
        cameras.append(step_aside(reference, y, p, elevation=elevation, distance=distance))
    return cameras


def interpolate(first: Camera, last: Camera, frames: int, *, easing: Easing = "linear") -> list[Camera]:
    """From one camera to another: rotations along the shortest arc, centres and intrinsics straight.

    The first and last frame are exactly the cameras given.

    Raises:
        SidestepError: if the cameras' picture sizes or batch shapes differ, or `frames` is below 1.
    """
    steps = fractions(frames, easing)
    ends = Camera.stack([first, last]).to("cpu", torch.float64)
    turn = _axis_angle(ends.rotation[1] @ ends.rotation[0].mT)
    cameras = []
    for s in steps:
        rotation = torch.linalg.matrix_exp(_skew(s * turn)) @ ends.rotation[0]
        centre = torch.lerp(ends.centre[0], ends.centre[1], s)
        pose = ends.world_to_camera[0].clone()
        pose[..., :3, :3] = rotation
        pose[..., :3, 3] = -(rotation @ centre[..., None])[..., 0]
        intrinsics = torch.lerp(ends.intrinsics[0], ends.intrinsics[1], s)
        cameras.append(
            Camera(intrinsics.to(first.intrinsics), pose.to(first.world_to_camera), first.width, first.height)
        )
    cameras[0] = first
    if frames > 1:
        cameras[-1] = last
    return cameras


def fractions(frames: int, easing: Easing = "linear") -> list[float]:
    """How much of a path lies behind each of its frames, from 0 to 1; a single frame is at the start.

    Raises:
        SidestepError: if `frames` is below 1 or the easing unknown.
    """
    if frames < 1:
        raise SidestepError(f"trajectory: {frames} frames; at least 1 is needed")
    if easing not in get_args(Easing):
        raise SidestepError(f"trajectory: easing {easing!r} is unknown; use {', '.join(get_args(Easing))}")
    even = torch.linspace(0.0, 1.0, frames, dtype=torch.float64)
    return (even if easing == "linear" else even.square() * (3 - 2 * even)).tolist()


def moved(reference: Camera, step: Tensor) -> Camera:
    """The camera whose coordinates are `step` (4, 4, float64) times the reference's, in the reference's world."""
    # In double precision, so that a step of nothing gives back the reference's own single precision numbers.
    pose = step @ reference.world_to_camera.to("cpu", torch.float64)
    return Camera(reference.intrinsics, pose.to(reference.world_to_camera), reference.width, reference.height)


def zoomed(camera: Camera, factor: float) -> Camera:
    """The camera with `factor` times the focal length, about its own principal point."""
    focal = camera.intrinsics.new_tensor([[factor, factor, 1.0], [1.0, factor, 1.0], [1.0, 1.0, 1.0]])
    return Camera(camera.intrinsics * focal, camera.world_to_camera, camera.width, camera.height)


def _between(start: float, stop: float, frames: int, easing: Easing) -> list[float]:
    """`frames` values from start to stop, both included; a single one is the start."""
    return [(1 - s) * start + s * stop for s in fractions(frames, easing)]


def _about_x(degrees: float) -> Tensor:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return torch.tensor([[1, 0, 0], [0, c, -s], [0, s, c]], dtype=torch.float64)


def _about_y(degrees: float) -> Tensor:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return torch.tensor([[c, 0, s], [0, 1, 0], [-s, 0, c]], dtype=torch.float64)


def _about_z(degrees: float) -> Tensor:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1]], dtype=torch.float64)


def _skew(vector: Tensor) -> Tensor:
    """The matrices whose product with a vector is the cross product with `vector`, (..., 3) -> (..., 3, 3)."""
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))


def _axis_angle(rotation: Tensor) -> Tensor:
    """Axis times angle in radians of rotations, (..., 3, 3) -> (..., 3)."""
    w, vector = quaternions(rotation).split((1, 3), dim=-1)
    return torch.nn.functional.normalize(vector, dim=-1) * 2 * torch.atan2(vector.norm(dim=-1, keepdim=True), w)
