"""What needs no model: the reference photo copied, blurred, or moved by geometry known beforehand."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sidestep.cameras import Camera, vertical
from sidestep.errors import SidestepError

# What BestBlur tries, in units of the picture's side: in thirds of an octave, from a pixel of 256 to a quarter of it.
SIGMAS = tuple(2.0 ** (step / 3) / 256 for step in range(19))

_FLOOR = 0.01  # share of the points that may lie below the floor: outliers of a reconstruction
_GRID = 128  # cells across a picture in which points are made a surface
_POINTS = 4096  # points of which a surface is made
_NEIGHBOURS = 4  # points that a cell's distance is interpolated from
_REACH = 3.0  # how far apart points may be to be of one surface, in spacings of points
_OVERHANG = 0.7  # how far a surface reaches past its outermost points, in spacings
_GUARD = 2.0  # how far from the outermost points a pixel may still show the surface, in spacings
_SOFT = 0.4  # the blur of a surface's edge, in spacings
_WINDOW = 2.0  # how near in the picture a point must be to hide another, in spacings
_STEEPEST = 2.0  # depth over width of the steepest step between neighbouring points of one surface
_BEHIND = 0.05  # how much farther than a surface what lies behind it is at least, as a share
_CHUNK = 1 << 22  # cell-to-point distances held at once


def blurred(images: Tensor, sigma: float) -> Tensor:
    """Pictures under a Gaussian blur, reflected at their borders.

    Args:
        images: (B, 3, S, S).
        sigma: the Gaussian's standard deviation as a share of the side S, above 0 and at most 0.25.

    Returns:
        (B, 3, S, S).
    """
    size = images.shape[-1]
    reach = min(size - 1, round(3 * sigma * size + 0.5))
    offsets = torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype)
    kernel = torch.softmax(-((offsets / (sigma * size)) ** 2) / 2, dim=0)
    # The blur of each unit vector: what blurs a row of pixels when it is multiplied by it.
    impulses = F.pad(torch.eye(size, device=images.device, dtype=images.dtype)[:, None], (reach, reach), "reflect")
    matrix = F.conv1d(impulses, kernel[None, None])[:, 0]
    return matrix.mT @ images @ matrix


class BestBlur:
    """The one blur, of SIGMAS, under which references come nearest to their targets in mean PSNR over all pairs."""

    def __init__(self) -> None:
        self._errors = torch.zeros(len(SIGMAS), dtype=torch.float64)
        self._pairs = 0

    def add(self, references: Tensor, targets: Tensor) -> None:
        """Takes pairs in.

        Args:
            references: (B, 3, S, S) in [-1, 1].
            targets: likewise.
        """
        for index, sigma in enumerate(SIGMAS):
            error = (blurred(references, sigma) - targets).square().mean(dim=(1, 2, 3))
            # PSNR is a falling line in the logarithm of the mean square error.
            self._errors[index] += error.double().clamp_min(1e-12).log().sum().cpu()
        self._pairs += len(references)

    @property
    def sigma(self) -> float:
        """The best blur, for `blurred`.

        Raises:
            SidestepError: if no pair was added.
        """
        if not self._pairs:
            raise SidestepError("best blur: no pairs were added; add the list's pairs before asking for the blur")
        return SIGMAS[int(self._errors.argmin())]


def floor_plane(cameras: Camera, points: Tensor | None) -> Tensor | None:
    """The floor that a scene stands on: perpendicular to the cameras' `vertical`, under nearly all of its points.

    Args:
        cameras: all of the scene's cameras.
        points: (N, 3) in the cameras' world.

    Returns:
        (4,) float32, the unit normal n, upwards, and the height h of the plane n X = h. None where nothing tells it:
        without points, and without a vertical (cameras that do not turn).
    """
    up = vertical(cameras)
    if points is None or not len(points) or up is None:
        return None
    height = torch.quantile(points.double().cpu() @ up, _FLOOR)
    return torch.cat([up, height[None]]).float()


def floor_homography(image: Tensor, reference: Camera, target: Camera, plane: Tensor) -> Tensor:
    """A reference as its target would see it if all that it shows lay on the floor.

    Target pixels above the floor's horizon show what is infinitely far; those whose place the reference's picture
    does not hold, the pixel of its border that is nearest.

    Args:
        image: (1, 3, S, S).
        reference, target: single cameras of S × S pixels, in one world.
        plane: (4,), as from `floor_plane`.

    Returns:
        (1, 3, S, S).
    """
    return sampled(image, _places(reference, target, _floor_nearness(target, plane))[0][None])


def point_warp(image: Tensor, reference: Camera, target: Camera, points: Tensor, plane: Tensor | None) -> Tensor:
    """A reference as its target sees it, by the distances of the scene's known points.

    The points that a camera sees are made a surface: as far as the nearest few of them, as wide as they are dense. A
    target pixel of the surface shows where it lies in the reference. Any other pixel shows the floor, or what stands
    as far away as the farthest points, where that is nearer or there is no floor. Where the reference has something
    else before that place, its surroundings of the same layer are blurred in. Places outside the reference's picture
    show the pixel of its border that is nearest.

    Args:
        image: (1, 3, S, S).
        reference, target: single cameras of S × S pixels, in one world.
        points: (N, 3), N at least 1, of that world.
        plane: (4,), the scene's floor as from `floor_plane`, or None.

    Returns:
        (1, 3, S, S).
    """
    points = points.to(target.world_to_camera)
    nearness, inside = _surface(target, points, _OVERHANG)
    before, before_inside = _surface(reference, points, _GUARD)
    before = torch.where(before_inside > 0.5, before, 0)  # the reference's surface; nothing is infinitely far
    backdrop = 1 / torch.quantile((points - target.centre).norm(dim=-1), 1 - _FLOOR)
    floor = torch.zeros_like(nearness) if plane is None else _floor_nearness(target, plane)
    behind = floor.clamp_min(backdrop)
    front_places, front_nearness = _places(reference, target, torch.maximum(nearness, behind))
    back_places, back_nearness = _places(reference, target, behind)

    def visible(places: Tensor, nearness: Tensor) -> Tensor:
        return nearness >= sampled(before[None, None], places[None], "nearest")[0, 0] * (1 - _BEHIND)

    # Where both layers lie at one place of the reference, it shows the right thing whichever it is.
    same = (front_places - back_places).norm(dim=-1) < 1
    front_known = (visible(front_places, front_nearness) & (inside > 0.5)) | same
    back_known = visible(back_places, back_nearness) | same
    front = filled(sampled(image, front_places[None]), front_known[None, None])
    back = filled(sampled(image, back_places[None]), back_known[None, None])
    return torch.lerp(back, front, inside.to(image.dtype))


def _surface(camera: Camera, points: Tensor, overhang: float) -> tuple[Tensor, Tensor]:
    """What a camera sees of the surface that points lie on.

    Args:
        overhang: how far the surface reaches past its outermost points, in spacings of points.

    Returns:
        One over its distance at each pixel, and how far the pixel is of it, from 0 to 1; each (S, S).
    """
    size = min(_GRID, camera.width)
    grid = camera.resize(size, size)
    places, depth = grid.project(points)
    seen = (depth > 0) & (places >= 0).all(-1) & (places <= size).all(-1)
    seen = seen.nonzero()[:, 0]
    seen = seen[:: max(1, -(-len(seen) // _POINTS))]
    if len(seen) <= _NEIGHBOURS:
        nothing = places.new_zeros(camera.height, camera.width)
        return nothing, nothing
    places, depth = places[seen], depth[seen]
    near = 1 / (points[seen] - grid.centre).norm(dim=-1)

    apart = _distances(places, places)
    spacing = apart.kthvalue(_NEIGHBOURS + 1, dim=1).values.median().clamp_min(1)  # the first is the point itself
    step = _STEEPEST * (apart + spacing / 2) * depth[:, None] / grid.intrinsics[0, 0]
    shown = ~((apart < _WINDOW * spacing) & (depth[:, None] - depth > step)).any(1)

    centres = torch.arange(size, device=places.device, dtype=places.dtype) + 0.5
    cells = torch.cartesian_prod(centres, centres).flip(-1)
    nearness, away = [], []
    for chunk in cells.split(max(1, _CHUNK // len(places))):
        distances = _distances(chunk, places)
        away.append(distances.amin(1))
        nearest, index = distances[:, shown].topk(min(_NEIGHBOURS, int(shown.sum())), largest=False)
        weight = (nearest + 0.2 * spacing) ** -2
        nearness.append((near[shown][index] * weight).sum(1) / weight.sum(1))

    # Points up to twice the reach apart are closed to one surface, which is then drawn in again.
    outside = (torch.cat(away) > _REACH * spacing).reshape(size, size)
    inside = ~_grown(outside, float((_REACH - overhang) * spacing))
    soft = blurred(inside.to(places.dtype)[None, None], float(_SOFT * spacing) / size)
    fields = torch.cat([torch.cat(nearness).reshape(1, 1, size, size), soft], dim=1)
    fields = F.interpolate(fields, (camera.height, camera.width), mode="bilinear")
    return fields[0, 0], fields[0, 1]


def _distances(a: Tensor, b: Tensor) -> Tensor:
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")  # by products they are off by a tenth


def _grown(mask: Tensor, radius: float) -> Tensor:
    """The mask with all cells up to `radius` cells away from it, (H, W)."""
    reach = int(radius)
    offsets = torch.arange(-reach, reach + 1, device=mask.device)
    disc = (offsets[:, None] ** 2 + offsets**2 <= radius**2).float()
    return F.conv2d(mask[None, None].float(), disc[None, None], padding=reach)[0, 0] > 0.5


def filled(image: Tensor, known: Tensor) -> Tensor:
    """The picture (1, 3, H, W) with what is not known, (1, 1, H, W), blurred in from the known around it."""
    if bool(known.all()) or image.shape[-2:] == (1, 1):
        return image
    weight = known.to(image.dtype)
    halved = F.avg_pool2d(weight, 2, ceil_mode=True)
    coarse = F.avg_pool2d(image * weight, 2, ceil_mode=True) / halved.clamp_min(1e-6)
    coarse = F.interpolate(filled(coarse, halved > 0), image.shape[-2:], mode="bilinear")
    return torch.where(known, image, coarse)


def _floor_nearness(camera: Camera, plane: Tensor) -> Tensor:
    """One over the distance at which each pixel's ray meets the plane, (S, S); 0 where it does not."""
    origins, directions = camera.rays(camera.height, camera.width)
    plane = plane.to(directions)
    normal, height = plane[:3], plane[3]
    return ((directions @ normal) / (height - origins @ normal)).clamp_min(0)


def _places(reference: Camera, target: Camera, nearness: Tensor) -> tuple[Tensor, Tensor]:
    """Where the reference sees what the target's pixels show.

    Args:
        nearness: (S, S), one over the distance from the target, 0 at infinity.

    Returns:
        Pixels of the reference, (S, S, 2), far outside for what is behind it; and one over the distance from it.
    """
    origins, directions = target.rays(target.height, target.width)
    # Homogeneous: the point divided by its distance, which is finite at infinity.
    points = (origins - reference.centre) * nearness[..., None] + directions
    seen = points @ reference.rotation.mT
    pixels = (seen @ reference.intrinsics.mT)[..., :2] / seen[..., 2:].clamp_min(1e-6)
    return pixels, nearness / seen.norm(dim=-1)


def sampled(images: Tensor, pixels: Tensor, mode: str = "bilinear") -> Tensor:
    """The pictures (B, C, S, S) at (B, S, S, 2) pixels, continued past their borders."""
    grid = 2 * pixels / images.shape[-1] - 1
    return F.grid_sample(images, grid.to(images), mode, padding_mode="border", align_corners=False)
