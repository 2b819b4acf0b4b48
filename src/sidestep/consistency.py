"""Steady noise along a path: each view's noise mixed with that of the views before it, moved as the camera moved.

Every view of a path is sampled by itself, so detail that the photo does not determine comes out anew in each, and a
video of them flickers. Here the noise that sampling starts from follows the path instead (ours; the paper makes single
views).
"""

import torch
from torch import Tensor
from torch.nn import functional

from sidestep.cameras import Camera


def steady(noise: Tensor, cameras: Camera, strength: float) -> Tensor:
    """Mixes each view's noise with the one before it.

        n'_0 = n_0        n'_i = (1 - s) n_i + s W_i(n'_{i-1})

    W_i moves what lies in the earlier view to where the later one sees it (`seen_in`); what it cannot see there keeps
    its own noise. Each earlier view is moved straight to the later one, by its nearest cells, because noise that is
    interpolated again and again turns into a blur; and the mixture is scaled to the strength of the view's own noise,
    which averaging had lowered.

    Args:
        noise: (N, C, h, w), of the views in the path's order.
        cameras: N, in a world where the subject is the point (0, 0, 1).
        strength: s, from 0 (no change) to 1 (all noise is the first view's).

    Returns:
        (N, C, h, w).
    """
    steadied = noise.clone()
    for i in range(1, len(noise)):
        moved, seen = _moved(noise[:i], cameras[:i], cameras[i])
        # The recursion unrolled: (1 - s) sᵏ for the view k earlier, and what is left for the first.
        weights = strength ** torch.arange(i, 0, -1, dtype=noise.dtype, device=noise.device)
        weights[1:] *= 1 - strength
        weights = weights[:, None, None, None] * seen[:, None]
        own = 1 - strength
        total = own + weights.sum(0)
        mixed = (own * noise[i] + (weights * moved).sum(0)) / total
        mixed = torch.where(total > 0, mixed, noise[i])
        steadied[i] = mixed * noise[i].std() / mixed.std()
    return steadied


def seen_in(camera: Camera, others: Camera, rows: int, cols: int) -> tuple[Tensor, Tensor]:
    """Where other cameras see what lies in the cells of a camera's picture.

    All is taken to stand on the plane through the subject, the point (0, 0, 1), that is parallel to the camera's
    picture, so two pictures are related by the homography of that plane. A subject's front and back are off it, and
    moved too little; no depth is known that could say by how much.

    Args:
        camera: one.
        others: N, batched.
        rows, cols: of the grid laid over the picture.

    Returns:
        Pixels of the others (N, rows, cols, 2), and whether they lie inside and in front (N, rows, cols).
    """
    origins, directions = camera.rays(rows, cols)
    subject = origins.new_tensor([0.0, 0.0, 1.0])
    axis = camera.rotation[2]
    distance = (subject - camera.centre) @ axis
    points = origins + directions * (distance / (directions @ axis))[..., None]
    pixels, depth = others.project(points.flatten(0, 1))
    inside = (pixels >= 0).all(-1) & (pixels <= pixels.new_tensor([others.width, others.height])).all(-1)
    seen = inside & (depth > 0) & (distance > 0)
    return pixels.unflatten(1, (rows, cols)), seen.unflatten(1, (rows, cols))


def _moved(noise: Tensor, cameras: Camera, target: Camera) -> tuple[Tensor, Tensor]:
    """Each view's noise where the target sees it, (N, C, h, w), and where it does, (N, h, w)."""
    rows, cols = noise.shape[-2:]
    pixels, seen = seen_in(target, cameras, rows, cols)
    grid = pixels / pixels.new_tensor([cameras.width, cameras.height]) * 2 - 1
    moved = functional.grid_sample(noise, grid.to(noise), mode="nearest", padding_mode="border", align_corners=False)
    return moved, seen.to(noise.device)
