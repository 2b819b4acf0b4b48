"""How a scene's cameras stand about their subject: found once, measured and drawn from."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sidestep.cameras import Camera, vertical
from sidestep.captures.lens import Array
from sidestep.captures.scene import Scene

MOST_POINTS = 300


@dataclass(frozen=True)
class Arrangement:
    """N cameras, in the order of the scene's frames, in axes of the viewer who stands where the first one does.

    The axes are right, away from the first camera, and up along the scene's vertical; lengths are the scene's own;
    the origin is the subject, or the middle of the cameras where there is none.

    Attributes:
        centres: (N, 3), where the cameras stand.
        rotations: (N, 3, 3), rows: a camera's right, down and viewing direction.
        half_angles: (N, 2), tangents of half the angle of view, across and down.
        points: (M, 3), up to 300 of the scene's points, drawn evenly at random; none where it has none.
        has_subject: whether more than half of the cameras have one place in their view: the point nearest to their
            optical axes, or, where that is nowhere, the middle of the points.
        has_vertical: whether the cameras turn enough to tell the vertical (`cameras.vertical`).
    """

    centres: Array
    rotations: Array
    half_angles: Array
    points: Array
    has_subject: bool
    has_vertical: bool

    @classmethod
    def of(cls, scene: Scene) -> "Arrangement":
        """The arrangement of a scene of at least one frame."""
        cameras = [frame.camera for frame in scene.frames]
        batch = Camera.stack([camera.resize(1024, 1024).to("cpu", torch.float64) for camera in cameras])
        focal = batch.intrinsics.diagonal(dim1=-2, dim2=-1)[:, :2].numpy()
        half_angles = 512.0 / focal
        rotations, centres = batch.rotation.numpy(), batch.centre.numpy()
        points = np.zeros((0, 3)) if scene.points is None else scene.points.double().numpy()
        subject = _subject(centres, rotations[:, 2], half_angles, points)
        up = vertical(batch)
        tops = -rotations[:, 1].mean(0)
        axes = _axes(
            up.numpy() if up is not None else tops,
            (centres.mean(0) if subject is None else subject) - centres[0],
            rotations[0],
        )
        origin = centres.mean(0) if subject is None else subject
        return cls(
            centres=(centres - origin) @ axes.T,
            rotations=rotations @ axes.T,
            half_angles=half_angles,
            points=(points[_some(len(points))] - origin) @ axes.T,
            has_subject=subject is not None,
            has_vertical=up is not None,
        )

    @property
    def distances(self) -> Array:
        """(N,) from the origin to each camera."""
        return np.asarray(np.linalg.norm(self.centres, axis=1))

    @property
    def azimuths(self) -> Array:
        """(N,) degrees about the vertical through the origin; they grow as a camera steps to its right."""
        return np.asarray(np.degrees(np.arctan2(self.centres[:, 1], self.centres[:, 0])))

    @property
    def turns(self) -> Array:
        """(N - 1,) degrees about the vertical from each camera to the next, -180 to 180, positive to the right."""
        return np.asarray((np.diff(self.azimuths) + 180.0) % 360.0 - 180.0)

    @property
    def arc(self) -> float:
        """Degrees about the vertical that the cameras cover: a full turn less the widest gap between two of them."""
        sorted_azimuths = np.sort(self.azimuths)
        return 360.0 - float(np.diff(sorted_azimuths, append=sorted_azimuths[0] + 360.0).max())

    @property
    def steps(self) -> Array:
        """(N - 1,) degrees between neighbouring cameras as seen from the origin."""
        directions = self.centres / np.maximum(self.distances, 1e-12)[:, None]
        return np.asarray(np.degrees(np.arccos((directions[1:] * directions[:-1]).sum(1).clip(-1.0, 1.0))))

    @property
    def elevations(self) -> Array:
        """(N,) degrees by which each camera looks down."""
        return np.asarray(np.degrees(np.arcsin(-self.rotations[:, 2, 2].clip(-1.0, 1.0))))

    @property
    def rolls(self) -> Array:
        """(N,) degrees by which each camera is turned about its viewing direction from the vertical, -180 to 180."""
        return np.asarray(np.degrees(np.arctan2(-self.rotations[:, 0, 2], -self.rotations[:, 1, 2])))

    @property
    def sees_origin(self) -> NDArray[np.bool_]:
        """(N,) whether the origin is in front of each camera, within the circle around its picture."""
        return _in_view(np.zeros(3), self.centres, self.rotations[:, 2], self.half_angles)


def _subject(centres: Array, directions: Array, half_angles: Array, points: Array) -> Array | None:
    candidates = [_nearest_to_axes(centres, directions)]
    if len(points):
        candidates.append(np.median(points, axis=0))
    for candidate in candidates:
        if candidate is not None and _in_view(candidate, centres, directions, half_angles).mean() > 0.5:
            return candidate
    return None


def _nearest_to_axes(centres: Array, directions: Array) -> Array | None:
    """The point with the least sum of distances to all optical axes, or None if they are parallel.

    Of distances, not of their squares (as in `cameras.distance_scale`): a camera that looks elsewhere is what an
    inspection is to find, and must not move the subject. By iteratively reweighted least squares.
    """
    away = np.eye(3) - directions[:, :, None] * directions[:, None, :]
    if np.linalg.eigvalsh(away.mean(0))[0] < 1e-6:  # as in cameras.py: the axes meet nowhere in particular
        return None
    weights = np.ones(len(centres))
    point = np.zeros(3)
    for _ in range(20):
        weighted = weights[:, None, None] * away
        point = np.linalg.solve(weighted.sum(0), (weighted @ centres[:, :, None]).sum(0)[:, 0])
        misses = np.linalg.norm((away @ (point - centres)[:, :, None])[:, :, 0], axis=1)
        floor = max(1e-3 * float(np.median(np.linalg.norm(point - centres, axis=1))), 1e-12)
        weights = floor / np.maximum(misses, floor)
    return point


def _in_view(point: Array, centres: Array, directions: Array, half_angles: Array) -> NDArray[np.bool_]:
    to_point = point - centres
    depth = (to_point * directions).sum(1)
    aside = np.linalg.norm(to_point - depth[:, None] * directions, axis=1)
    return np.asarray((depth > 0) & (aside <= depth * np.linalg.norm(half_angles, axis=1)), dtype=np.bool_)


def _some(count: int) -> NDArray[np.int64]:
    return np.sort(np.random.default_rng(0).permutation(count)[:MOST_POINTS])


def _axes(up: Array, away: Array, first: Array) -> Array:
    """(3, 3) rows right, away, up from rough directions; `first`, a camera's rows, helps where they degenerate."""
    if np.linalg.norm(up) < 1e-9:
        up = -first[1]
    up = up / np.linalg.norm(up)
    for direction in (away, first[2], -first[1]):
        level = direction - (direction @ up) * up
        if np.linalg.norm(level) > 1e-3 * np.linalg.norm(direction):
            level = level / np.linalg.norm(level)
            break
    return np.stack((np.cross(level, up), level, up))
