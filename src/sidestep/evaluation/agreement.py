"""Whether two synthesised views of one scene show the same thing: places of the scene, compared by colour.

Two views can each look right and still disagree, which a video shows as flicker. Places that both true cameras see, by
their depth maps or as points that a reconstruction found, are looked up in both views, and the colours there compared.
Blur makes any two views agree, so the figure says nothing without the views' sharpness beside it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from sidestep.cameras import Camera
from sidestep.captures import Frame
from sidestep.evaluation.depth import matched
from sidestep.evaluation.maps import load_depth
from sidestep.evaluation.results import Figure

AGREEMENT = Figure("agreement", "Agreement (dB)", "higher", 2, diagnostic=True)
# How far two photos' colours of one point may differ by shading and rounding: mean over the channels, of [-1, 1].
TOLERANCE = 0.1

Pixels = tuple[Tensor, Tensor]


def shared_points(points: Tensor, cameras: Camera, photos: Tensor) -> Pixels:
    """Where points that both of two photos show lie in each.

    A point counts if it falls inside both and the photos agree on its colour: one that something hides in one of the
    two seldom has the same colour in both.

    Args:
        points: (N, 3), in the cameras' world.
        cameras: two, batched, of the photos' size.
        photos: (2, 3, H, W) in [-1, 1], the true ones.

    Returns:
        Pixels in the first and in the second, (M, 2) each; M may be 0.
    """
    pixels, depth = cameras.project(points)
    inside = (depth > 0) & (pixels >= 0.5).all(-1) & (pixels <= pixels.new_tensor(photos.shape[:1:-1]) - 0.5).all(-1)
    kept = pixels[:, inside.all(0)]
    same = (colours(photos[0], kept[0]) - colours(photos[1], kept[1])).abs().mean(-1) <= TOLERANCE
    return kept[0, same], kept[1, same]


def shared_pixels(depths: Tensor, cameras: Camera) -> Pixels:
    """Where places that two cameras both see lie in each, by their true depth maps: all pixels of the first that the
    second sees, and all of the second that the first sees, but for those at outlines, where colours are mixed.

    Args:
        depths: (2, H, W), along the optical axes, in the unit of the cameras' world; 0 where not known.
        cameras: two, batched, of that size.

    Returns:
        Pixels in the first and in the second, (M, 2) each; M may be 0.
    """
    first, second = matched(depths[0], depths[1], cameras[0], cameras[1])
    back_second, back_first = matched(depths[1], depths[0], cameras[1], cameras[0])
    return torch.cat([first, back_first]), torch.cat([second, back_second])


def shared_places(frames: Sequence[Frame], points: Tensor | None, photos: Tensor) -> Pixels | None:
    """Where two frames show the same places: by their depth maps, or by their scene's points where one has no map.

    Args:
        frames: two.
        points: of their scene, (N, 3), or None.
        photos: theirs, (2, 3, S, S) in [-1, 1].

    Returns:
        As the two functions above; None where nothing tells it.

    Raises:
        SidestepError: if a depth map cannot be read or does not fit its photo.
    """
    size = photos.shape[-1]
    cameras = Camera.stack([frame.camera.resize_and_crop(size) for frame in frames])
    depths = [depth for frame in frames if (depth := load_depth(frame, size)) is not None]
    if len(depths) == len(frames):
        return shared_pixels(torch.stack(depths), cameras)
    return None if points is None else shared_points(points, cameras, photos)


def agreement(views: Tensor, pixels: Pixels) -> float | None:
    """PSNR in dB between two views' colours at the same places, or None where there is no place.

    Args:
        views: (2, 3, H, W) in [-1, 1], of the cameras that the pixels were found for.
        pixels: of `shared_places`.
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
