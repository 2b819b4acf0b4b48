"""Steadying a path: each view's mean mixed with those of the views beside it, moved as the camera moved.

TUNet translates the photo to every view by itself, so what it is unsure of may jump from one view to the next. Here
the means of a whole path are smoothed along it before noise is put back (ours; the paper makes single views).
"""

import torch
from torch import Tensor
from torch.nn import functional

from sidestep.cameras import Camera


def steady(means: Tensor, cameras: Camera, strength: float) -> Tensor:
    """Mixes each view's mean with the others'.

        mean'_i = sum_j w_ij W_ij(mean_j) / sum_j w_ij        w_ij = strength^|i - j|, 0 where view j does not see it

    W_ij moves what lies in view j to where view i sees it (`seen_in`), by bilinear interpolation. Views before and
    after count alike, so that nothing lags behind the camera, and each is moved straight to view i, because what is
    interpolated again and again turns into a blur.

    Args:
        means: (N, C, h, w), of the views in the path's order.
        cameras: N, in a world where the subject is the point (0, 0, 1).
        strength: from 0 (no change) to 1 (all views of the path count alike).

    Returns:
        (N, C, h, w).
    """
    count, _, rows, cols = means.shape
    places = torch.arange(count, device=means.device)
    steadied = []
    for i in range(count):
        pixels, seen = seen_in(cameras[i], cameras, rows, cols)
        grid = (pixels / pixels.new_tensor([cameras.width, cameras.height]) * 2 - 1).to(means)
        moved = functional.grid_sample(means, grid, padding_mode="border", align_corners=False)
        moved[i] = means[i]
        weights = (strength ** (places - i).abs())[:, None, None, None] * seen[:, None].to(means)
        weights[i] = 1
        steadied.append((weights * moved).sum(0) / weights.sum(0))
    return torch.stack(steadied)


def seen_in(camera: Camera, others: Camera, rows: int, cols: int) -> tuple[Tensor, Tensor]:
    """Where other cameras see what lies in the cells of a camera's picture.

    All is taken to stand on the plane through the subject, the point (0, 0, 1), that is parallel to the camera's
    picture, so two pictures are related by the homography of that plane. What stands before or behind the plane is
    moved wrongly, the more the farther the cameras are apart; no depth is known that could say by how much.

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
