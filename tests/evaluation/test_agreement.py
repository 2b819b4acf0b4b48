"""Agreement of views by known points, on pictures painted on a plane."""

import math
from types import ModuleType

import pytest
import torch

from sidestep.cameras import Camera
from sidestep.evaluation.agreement import agreement, colours, shared_pixels, shared_points
from sidestep.trajectories import orbit

CAMERAS = Camera.stack(orbit(Camera.from_fov(45, 64, 48), 2, yaw=(-12, 12)))
RANDOM = torch.Generator().manual_seed(0)
POINTS = torch.cat([torch.rand(300, 2, generator=RANDOM) - 0.5, torch.ones(300, 1)], dim=1)


def paint(points: torch.Tensor) -> torch.Tensor:
    """The painting's colours on the plane z = 1, (..., 3) -> (..., 3)."""
    x, y = points[..., 0], points[..., 1]
    return torch.stack([torch.sin(5 * x), torch.cos(4 * y), torch.sin(3 * x - 4 * y)], -1) * 0.8


def pictures(cameras: Camera) -> torch.Tensor:
    origins, directions = cameras.rays(48, 64)
    hit = origins + directions * ((1 - origins[..., 2]) / directions[..., 2])[..., None]
    return paint(hit).movedim(-1, 1)


PHOTOS = pictures(CAMERAS)


def test_colours_are_read_at_pixel_centres_and_between_them() -> None:
    picture = torch.rand(3, 4, 6, generator=RANDOM)
    found = colours(picture, torch.tensor([[0.5, 0.5], [5.5, 3.5], [2.0, 1.5]]))
    torch.testing.assert_close(found[0], picture[:, 0, 0])
    torch.testing.assert_close(found[1], picture[:, 3, 5])
    torch.testing.assert_close(found[2], (picture[:, 1, 1] + picture[:, 1, 2]) / 2)


def test_points_are_found_in_both_views_and_true_photos_agree_best() -> None:
    pixels = shared_points(POINTS, CAMERAS, PHOTOS)
    assert 200 < len(pixels[0]) == len(pixels[1]) < 300  # the plane's corners are out of the pictures
    for own, camera in zip(pixels, CAMERAS, strict=True):
        projected, _ = camera.project(POINTS)
        assert float((own[:, None] - projected).norm(dim=-1).min(1).values.max()) < 1e-3
    true = agreement(PHOTOS, pixels)
    assert true > 40
    turned = torch.stack([PHOTOS[0], PHOTOS[1].roll(4, -1)])
    assert agreement(turned, pixels) < true - 10
    # One view shown twice has not moved, so its points disagree.
    assert agreement(PHOTOS[:1].expand(2, -1, -1, -1), pixels) < true - 10
    assert agreement(torch.zeros_like(PHOTOS), pixels) == math.inf  # why it is read beside the sharpness


def test_the_figure_is_psnr() -> None:
    pixels = shared_points(POINTS, CAMERAS, PHOTOS)
    flat = torch.stack([torch.full((3, 48, 64), 0.1), torch.full((3, 48, 64), 0.3)])
    assert agreement(flat, pixels) == pytest.approx(10 * math.log10(4 / 0.04), abs=1e-4)


def test_what_is_hidden_in_one_view_or_outside_does_not_count() -> None:
    everywhere = len(shared_points(POINTS, CAMERAS, PHOTOS)[0])
    hidden = PHOTOS.clone()
    hidden[1, :, :, :32] = 1.0  # something white stands before half of the second view
    _, right = shared_points(POINTS, CAMERAS, hidden)
    assert 0.3 * everywhere < len(right) < 0.75 * everywhere
    assert float(right[:, 0].min()) > 31
    behind = POINTS - torch.tensor([0.0, 0.0, 20.0])
    pixels = shared_points(behind, CAMERAS, PHOTOS)
    assert len(pixels[0]) == 0
    assert agreement(PHOTOS, pixels) is None


def test_by_depth_true_photos_agree_and_views_that_do_not_move_do_not(room: ModuleType) -> None:
    views = [room.render(room.look(azimuth)) for azimuth in (10, 15)]
    photos = torch.stack([view.photo for view in views])
    pixels = shared_pixels(torch.stack([view.depth for view in views]), Camera.stack([view.camera for view in views]))
    assert 0.5 * 2 * 96**2 < len(pixels[0]) == len(pixels[1]) < 2 * 96**2
    true = agreement(photos, pixels)
    assert true > 38
    assert agreement(photos[:1].expand(2, -1, -1, -1), pixels) < true - 15
    assert agreement(photos.flip(0), pixels) < true - 15


def test_by_depth_what_is_hidden_in_one_view_does_not_count(room: ModuleType) -> None:
    views = [room.render(room.look(azimuth)) for azimuth in (0, 30)]
    pixels = shared_pixels(torch.stack([view.depth for view in views]), Camera.stack([view.camera for view in views]))
    for own, view, other in zip(pixels, views, reversed(views), strict=True):
        places = room.places(view)
        nearest = own.long().clamp(0, 95)
        seen = room.visible(places, other.camera)[nearest[:, 1], nearest[:, 0]]
        assert float(seen.float().mean()) > 0.98
    unknown = torch.stack([views[0].depth, torch.zeros_like(views[1].depth)])
    assert len(shared_pixels(unknown, Camera.stack([view.camera for view in views]))[0]) == 0
