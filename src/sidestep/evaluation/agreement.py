"""Whether two synthesised views of one scene show the same thing: known points of the scene, compared by colour.

Two views can each look right and still disagree, which a video shows as flicker. Points that a reconstruction found are
projected into both views by the true cameras, and the colours there compared. Blur makes any two views agree, so the
figure says nothing without the views' sharpness beside it.
"""

import torch
from torch import Tensor
from torch.nn import functional

from sidestep.cameras import Camera

TOLERANCE = 0.1  # of pictures in [-1, 1]: what shading and rounding may change between two photos of one point

Pixels = tuple[Tensor, Tensor]


def shared_points(points: Tensor, cameras: Camera, photos: Tensor, tolerance: float = TOLERANCE) -> Pixels:
    """Where points that both of two photos show lie in each.

    A point counts if it falls inside both and the photos agree on its colour: one that something hides in one of the
    two seldom has the same colour in both.

    Args:
        points: (N, 3), in the cameras' world.
        cameras: two, batched, of the photos' size.
        photos: (2, 3, H, W) in [-1, 1], the true ones.
        tolerance: the largest mean absolute difference over the three channels that counts as the same colour.

    Returns:
        Pixels in the first and in the second, (M, 2) each; M may be 0.
    """
    pixels, depth = cameras.project(points)
    inside = (depth > 0) & (pixels >= 0.5).all(-1) & (pixels <= pixels.new_tensor(photos.shape[:1:-1]) - 0.5).all(-1)
    kept = pixels[:, inside.all(0)]
    same = (colours(photos[0], kept[0]) - colours(photos[1], kept[1])).abs().mean(-1) <= tolerance
    return kept[0, same], kept[1, same]


def agreement(views: Tensor, pixels: Pixels) -> float | None:
    """PSNR in dB between two views' colours at the same points, or None where there is no point.

    Args:
        views: (2, 3, H, W) in [-1, 1], of the cameras that `shared_points` was given.
        pixels: of `shared_points`.
    """
    if len(pixels[0]) == 0:
        return None
    error = (colours(views[0], pixels[0]) - colours(views[1], pixels[1])).double().square().mean()
    return float(10 * torch.log10(4 / error))


def colours(picture: Tensor, pixels: Tensor) -> Tensor:
    """A picture (C, H, W) at pixels (N, 2), bilinearly: (N, C)."""
    size = pixels.new_tensor(picture.shape[:0:-1])
    grid = (pixels / size * 2 - 1).to(picture)[None, None]
    found = functional.grid_sample(picture[None], grid, align_corners=False, padding_mode="border")
    return found[0, :, 0].mT
