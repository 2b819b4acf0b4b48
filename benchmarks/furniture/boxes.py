"""Boxes that stand upright, turned about z: whether they overlap, and whether they are in a line of sight."""

from dataclasses import dataclass

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class Box:
    """A box: the centre of its base, its width, depth and height, and its angle about z in radians."""

    x: float
    y: float
    z: float
    size: tuple[float, float, float]
    angle: float

    @property
    def axes(self) -> Array:
        """(2, 2): the directions of its width and its depth, a row each."""
        c, s = np.cos(self.angle), np.sin(self.angle)
        return np.array(((c, s), (-s, c)))

    @property
    def footprint(self) -> Array:
        """Its corners on the floor, (4, 2)."""
        w, d = self.size[0] / 2, self.size[1] / 2
        return np.array(((-w, -d), (w, -d), (w, d), (-w, d))) @ self.axes + (self.x, self.y)

    @property
    def centre(self) -> Array:
        return np.array((self.x, self.y, self.z + self.size[2] / 2))

    def local(self, points: Array) -> Array:
        """World points (..., 3) about its centre, along its own axes."""
        moved = points - self.centre
        return np.concatenate((moved[..., :2] @ self.axes.T, moved[..., 2:]), -1)

    def distance(self, points: Array) -> Array:
        """How far points (..., 3) are outside of it, (...); 0 inside."""
        return np.linalg.norm(np.maximum(np.abs(self.local(points)) - np.array(self.size) / 2, 0), axis=-1)

    def samples(self) -> Array:
        """Points within it, (27, 3)."""
        steps = np.array(np.meshgrid(*[(-0.8, 0, 0.8)] * 3)).reshape(3, -1).T * np.array(self.size) / 2
        return np.concatenate((steps[:, :2] @ self.axes, steps[:, 2:]), 1) + self.centre


def overlap(a: Box, b: Box, gap: float = 0.0) -> bool:
    """Whether two boxes are nearer to one another than `gap` metres across, and share a height."""
    if a.z >= b.z + b.size[2] - 1e-6 or b.z >= a.z + a.size[2] - 1e-6:
        return False
    for axis in (*a.axes, *b.axes):
        first, second = a.footprint @ axis, b.footprint @ axis
        if first.min() >= second.max() + gap - 1e-9 or second.min() >= first.max() + gap - 1e-9:
            return False
    return True


def blocked(box: Box, eyes: Array, points: Array) -> Array:
    """Whether the box is between eyes (N, 3) and points (M, 3): (N, M) bool."""
    start, end = box.local(eyes)[:, None], box.local(points)[None]
    way = end - start
    safe = np.where(np.abs(way) < 1e-9, 1e-9, way)
    half = np.array(box.size) / 2
    one, two = (-half - start) / safe, (half - start) / safe
    enter, leave = np.minimum(one, two).max(-1), np.maximum(one, two).min(-1)
    return (enter < leave) & (leave > 0) & (enter < 0.98)
