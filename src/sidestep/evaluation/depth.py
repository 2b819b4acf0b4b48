"""What true depth maps tell of two views of a scene: which pixels show the same place, and what one of them hides.

Depth is along the optical axis, in the unit of the cameras' world, and 0 where it is not known.
"""

import torch
from torch import Tensor

from sidestep.cameras import Camera
from sidestep.evaluation.baselines import filled, sampled

BEHIND = 0.01  # how much farther than what a camera sees a place is that it does not see, as a share
SAME = 0.02  # how far apart, as a share, two depths of one place may be; a surface is not flat within a pixel

_OVERLAP = 1.2  # the width of a pixel's patch of surface, in pixels: curved surfaces would tear
_WIDEST = 14.0  # how wide a patch may become, in the target's pixels; wider ones were seen too edge-on to be shown
_NEAR_CENTRE = 0.3  # how far from a pixel's centre, in pixels, a place may fall to be what the pixel shows


def places_in(other: Camera, camera: Camera, depth: Tensor) -> tuple[Tensor, Tensor]:
    """Where another camera sees what each pixel of this one shows.

    Args:
        other, camera: single cameras of one world.
        depth: (H, W), of `camera`'s size.

    Returns:
        Pixels of the other, (H, W, 2), and the depths from it, (H, W), float64; both mean nothing where the depth is
        not known, or the one from the other is not positive.
    """
    camera, other = camera.to(dtype=torch.float64), other.to(dtype=torch.float64)
    points = _unprojected(camera, depth.double())
    pixels, depths = other.project(points.reshape(-1, 3))
    return pixels.reshape(*points.shape[:-1], 2), depths.reshape(depth.shape)


def unseen(reference_depth: Tensor, target_depth: Tensor, reference: Camera, target: Camera) -> Tensor:
    """What of the target the reference could not see: what lies outside its picture, or behind something in it.

    Args:
        reference_depth, target_depth: (H, W), of the cameras' sizes.

    Returns:
        (H, W) bool, of the target's pixels. False where the target's depth is not known, or that in the reference is
        not. A pixel beside an outline counts as seen, as the reference's neighbouring pixels show its surface.
    """
    places, depth = places_in(reference, target, target_depth)
    known, inside = target_depth > 0, _inside(reference, places, depth)
    around = _around(reference_depth, places)
    farthest = torch.where(around > 0, around, torch.inf).amax(-1)
    return known & (~inside | (depth > farthest * (1 + BEHIND)))


def matched(depth: Tensor, other_depth: Tensor, camera: Camera, other: Camera) -> tuple[Tensor, Tensor]:
    """Pixels of one view that another sees too, away from outlines.

    Returns:
        Their centres, (N, 2), and their places in the other view, (N, 2), float32.
    """
    places, depths = places_in(other, camera, depth)
    padded = torch.nn.functional.pad(depth[None, None], (1, 1, 1, 1), mode="replicate")[0, 0]
    own = padded.unfold(0, 3, 1).unfold(1, 3, 1).flatten(2)
    same = _all_near(own, depth) & _all_near(_around(other_depth, places), depths) & _inside(other, places, depths)
    v, u = same.nonzero(as_tuple=True)
    return torch.stack([u, v], dim=-1) + 0.5, places[same].float()


def depth_warp(image: Tensor, depth: Tensor, reference: Camera, target: Camera) -> Tensor:
    """A reference as its target sees it, by the reference's own depth map.

    Every pixel of the reference is a patch of surface as wide as the pixel and as steep as its neighbours say. The
    nearest patch before each of the target's pixels (a z-buffer) says how far away the pixel shows something, and so
    where the reference shows it. Reference pixels of unknown depth are taken to be infinitely far, behind all else, and
    to go on past the picture's border. What nothing falls on is blurred in from around it.

    Args:
        image: (1, 3, H, W).
        depth: (H, W), the reference's.
        reference, target: single cameras of that size, in one world and the depth's unit.

    Returns:
        (1, 3, H, W).
    """
    seen = _seen_from(target, reference, depth)
    places, _ = places_in(reference, target, torch.where(seen > 0, seen, 1.0))
    endless, ahead = _places_at_infinity(reference, target)
    sky = (seen == 0) & (ahead > 0) & (_around(depth, endless) == 0).all(-1)
    places = torch.where(sky[..., None], endless, places)
    return filled(sampled(image, places[None]), ((seen > 0) | sky)[None, None])


def _seen_from(target: Camera, reference: Camera, depth: Tensor) -> Tensor:
    """The depths that the target sees of the surfaces in the reference's depth map, (H, W) float32; 0 for none."""
    relative = target.to(dtype=torch.float64).relative_to(reference.to(dtype=torch.float64)).to(dtype=torch.float32)
    to_ray = torch.linalg.inv(reference.intrinsics.double()).float()
    v, u = (depth > 0).nonzero(as_tuple=True)
    centres = torch.stack([u, v], dim=-1) + 0.5
    # A plane's nearness, one over its depth, is linear in the picture.
    nearness = torch.where(depth > 0, 1 / depth, 0)
    slopes = torch.stack([_slopes(nearness, 1), _slopes(nearness, 0)], dim=-1)[v, u]
    nearness = nearness[v, u]

    def project(chosen: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """The target's pixels and depths, (N, K, 2) and (N, K), at offsets (K, 2) from chosen pixels' centres."""
        near = nearness[chosen, None] + slopes[chosen] @ offsets.mT
        near = near.clamp_min(nearness[chosen, None] / 2)
        pixels = centres[chosen, None] + offsets
        rays = torch.cat([pixels, torch.ones_like(pixels[..., :1])], dim=-1) @ to_ray.mT
        seen, depths = relative.project(rays / near[..., None])
        return seen, depths

    everything = torch.arange(len(centres))
    corners = centres.new_tensor([[-1, -1], [-1, 1], [1, -1], [1, 1]]) * _OVERLAP / 2
    pixels, depths = project(everything, corners)
    width = (pixels.amax(1) - pixels.amin(1)).amax(-1)
    # As many places a side as lie half a pixel apart: one of them falls near each pixel's centre.
    wanted = torch.where((depths > 0).all(1) & (width <= _WIDEST), (2 * width).ceil(), 0).int()
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for samples in sorted(set(wanted.unique().tolist()) - {0}):
        steps = (torch.arange(samples) + 0.5) / samples - 0.5
        offsets = torch.cartesian_prod(steps, steps) * _OVERLAP
        pixels, depths = project(everything[wanted == samples], offsets)
        cells = pixels.floor()
        away = (pixels - cells - 0.5).abs().amax(-1)
        size = cells.new_tensor([target.width, target.height])
        kept = (away <= _NEAR_CENTRE) & (depths > 0) & (cells >= 0).all(-1) & (cells < size).all(-1)
        index = (cells[..., 1] * target.width + cells[..., 0])[kept].long()
        found.append((index, 1 / depths[kept], 1 - away[kept]))
    nearest = torch.zeros(target.width * target.height)
    for index, near, _ in found:
        nearest.scatter_reduce_(0, index, near, "amax")
    # Of one surface many places fall near a pixel's centre: their mean is nearer to what is there than the first.
    total, weights = torch.zeros_like(nearest), torch.zeros_like(nearest)
    for index, near, weight in found:
        weight = weight * (near >= nearest[index] * (1 - BEHIND))
        total.scatter_add_(0, index, near * weight)
        weights.scatter_add_(0, index, weight)
    return torch.where(weights > 0, weights / total, 0).reshape(target.height, target.width)


def _slopes(nearness: Tensor, axis: int) -> Tensor:
    """The surface's change of nearness from pixel to pixel: the smaller of the changes to both sides, 0 on a ridge.

    At an outline the change to one side is a jump to another surface.
    """
    change = nearness.diff(dim=axis)
    first, last = change.narrow(axis, 0, 1), change.narrow(axis, change.shape[axis] - 1, 1)
    before, after = torch.cat([first, change], dim=axis), torch.cat([change, last], dim=axis)
    return torch.where(before * after > 0, torch.where(before.abs() < after.abs(), before, after), 0)


def _unprojected(camera: Camera, depth: Tensor) -> Tensor:
    """The places that a depth map's pixels show, (H, W, 3)."""
    origins, directions = camera.rays(*depth.shape)
    along = directions @ camera.rotation[2]
    return origins + directions * (depth / along)[..., None]


def _places_at_infinity(reference: Camera, target: Camera) -> tuple[Tensor, Tensor]:
    """Where the reference sees what is infinitely far in the target's pixels, (H, W, 2), and how far ahead, (H, W)."""
    _, directions = target.to(dtype=torch.float64).rays(target.height, target.width)
    seen = directions @ reference.rotation.double().mT
    pixels = (seen @ reference.intrinsics.double().mT)[..., :2] / seen[..., 2:].clamp_min(1e-9)
    return pixels, seen[..., 2]


def _inside(camera: Camera, places: Tensor, depth: Tensor) -> Tensor:
    return (depth > 0) & (places >= 0).all(-1) & (places <= places.new_tensor([camera.width, camera.height])).all(-1)


def _around(depth: Tensor, places: Tensor) -> Tensor:
    """The depths of the four pixels around places (H, W, 2): (H, W, 4)."""
    height, width = depth.shape
    first = torch.nan_to_num(places - 0.5, 0.0, 0.0, 0.0).clamp(-1, max(height, width)).floor().long()
    corners = [first + first.new_tensor(step) for step in ((0, 0), (1, 0), (0, 1), (1, 1))]
    return torch.stack([depth[c[..., 1].clamp(0, height - 1), c[..., 0].clamp(0, width - 1)] for c in corners], dim=-1)


def _all_near(depths: Tensor, own: Tensor) -> Tensor:
    return ((depths - own[..., None]).abs() <= SAME * own[..., None]).all(-1) & (own > 0)
