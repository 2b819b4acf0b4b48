"""The rows of the table that need no model."""

import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sidestep.cameras import Camera
from sidestep.evaluation.baselines import blurred, floor_homography, floor_plane, point_warp
from sidestep.evaluation.depth import depth_warp
from sidestep.evaluation.maps import PairMaps
from sidestep.evaluation.protocol import PairOfFrames
from sidestep.evaluation.results import Row

COPY = Row("copy", "reference copied", "baseline")
BLUR = Row(
    "blurred", "reference blurred", "baseline", note="By the one Gaussian that scores the best PSNR on this very list."
)
FLOOR = Row(
    "floor",
    "floor homography",
    "baseline",
    note="All that the reference shows is taken to lie on the floor, whose height comes from the scene's points.",
)
POINTS = Row(
    "points",
    "warp by known points",
    "baseline",
    note="Distances come from the scene's points, which no method is given.",
    true_geometry=True,
)
DEPTH = Row(
    "depth",
    "warp by true depth",
    "baseline",
    note="The reference's pixels are moved by its own depth map, which no method is given, and what they uncover is "
    "blurred in from around it: what warping and filling in can reach.",
    true_geometry=True,
)
PHOTOS = Row(
    "photos",
    "true photos",
    "baseline",
    uses_target=True,
    note="Two true photos compared with each other: what light and rounding leave of the agreement of views.",
)

BASELINES = (COPY, BLUR, FLOOR, POINTS, DEPTH)


def baseline_views(
    pairs: Sequence[PairOfFrames], references: Tensor, maps: Sequence[PairMaps], sigma: float
) -> Iterator[tuple[Row, list[PairOfFrames], Tensor, float]]:
    """Each of BASELINES with the pairs that it has a view for, the views, and how many seconds they took.

    Args:
        references: the pairs' reference photos, (B, 3, S, S).
        maps: one a pair.
        sigma: of `blurred`.
    """
    yield COPY, list(pairs), references, 0.0
    began = time.perf_counter()
    softened = blurred(references, sigma)
    yield BLUR, list(pairs), softened, time.perf_counter() - began
    for row in (FLOOR, POINTS, DEPTH):
        began = time.perf_counter()
        views = [
            _warped(row, pair, photo, own.reference_depth)
            for pair, photo, own in zip(pairs, references, maps, strict=True)
        ]
        made = [(pair, view) for pair, view in zip(pairs, views, strict=True) if view is not None]
        if made:
            seconds = time.perf_counter() - began
            yield row, [pair for pair, _ in made], torch.stack([view for _, view in made]), seconds


def _warped(row: Row, pair: PairOfFrames, photo: Tensor, depth: Tensor | None) -> Tensor | None:
    """A view by known geometry, (3, S, S); None for a pair that does not tell it."""
    size, points = photo.shape[-1], pair.scene.points
    reference, target = (frame.camera.resize_and_crop(size) for frame in (pair.reference, pair.target))
    if row == DEPTH:
        return None if depth is None else depth_warp(photo[None], depth, reference, target)[0]
    cameras = Camera.stack([frame.camera.resize_and_crop(size) for frame in pair.scene.frames])
    plane = floor_plane(cameras, points)
    if row == POINTS:
        if points is None or not len(points):
            return None
        return point_warp(photo[None], reference, target, points, plane)[0]
    return None if plane is None else floor_homography(photo[None], reference, target, plane)[0]
