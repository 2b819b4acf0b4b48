"""Geometry by depth maps, in a room where everything is known."""

from types import ModuleType

import pytest
import torch
from torch import Tensor

from sidestep.evaluation.depth import depth_warp, places_in, unseen


def psnr(view: Tensor, photo: Tensor, where: Tensor) -> float:
    error = (view - photo).square().mean(0)[where].mean()
    return float(10 * torch.log10(4 / error))


def test_places_are_where_the_other_camera_projects_them(room: ModuleType) -> None:
    view, other = room.render(room.look(0)), room.look(20)
    pixels, depth = places_in(other, view.camera, view.depth)
    expected, expected_depth = other.project(room.places(view).reshape(-1, 3))
    torch.testing.assert_close(pixels.reshape(-1, 2), expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(depth.flatten(), expected_depth, atol=1e-5, rtol=0)


@pytest.mark.parametrize("azimuth", [-22, 8, 25])
def test_what_the_reference_saw_is_reproduced(room: ModuleType, azimuth: float) -> None:
    reference, target = room.render(room.look(0)), room.render(room.look(azimuth))
    warped = depth_warp(reference.photo[None], reference.depth, reference.camera, target.camera)[0]
    seen = room.visible(room.places(target), reference.camera)
    assert 0.5 < float(seen.float().mean()) < 0.95
    assert psnr(warped, target.photo, seen) > 30
    assert psnr(reference.photo, target.photo, seen) < 18
    for wrong in (reference.depth * 1.3, reference.depth.flip(0)):
        assert (
            psnr(depth_warp(reference.photo[None], wrong, reference.camera, target.camera)[0], target.photo, seen) < 20
        )


def test_a_plane_is_reproduced_and_scaling_the_world_changes_nothing(room: ModuleType) -> None:
    reference, target = (room.render(room.look(azimuth), ball=False) for azimuth in (0, 12))
    pixels, depth = reference.camera.project(room.places(target).reshape(-1, 3))
    inside = ((depth > 0) & (pixels > 1).all(-1) & (pixels < 95).all(-1)).reshape(96, 96)
    warped = depth_warp(reference.photo[None], reference.depth, reference.camera, target.camera)[0]
    assert psnr(warped, target.photo, inside) > 38
    cameras = reference.camera.scaled(100.0), target.camera.scaled(100.0)
    large = depth_warp(reference.photo[None], reference.depth * 100, *cameras)[0]
    torch.testing.assert_close(large, warped, atol=1e-2, rtol=0)


def test_what_is_near_hides_what_is_behind_and_leaves_no_second_ball(room: ModuleType) -> None:
    reference, target = room.render(room.look(0)), room.render(room.look(25))
    photo = torch.where(reference.ball, 1.0, -1.0).expand(1, 3, -1, -1)
    warped = depth_warp(photo, reference.depth, reference.camera, target.camera)[0, 0]
    seen = room.visible(room.places(target), reference.camera)
    assert float((warped > 0)[target.ball & seen].float().mean()) > 0.97
    assert float((warped > 0)[~target.ball & seen].float().mean()) < 0.02


def test_holes_are_filled_from_around_them(room: ModuleType) -> None:
    reference, target = room.render(room.look(0)), room.look(40)
    photo = torch.full((1, 3, 96, 96), 0.25)
    torch.testing.assert_close(depth_warp(photo, reference.depth, reference.camera, target), photo)


def test_the_view_from_the_reference_is_the_photo(room: ModuleType) -> None:
    view = room.render(room.look(0))
    warped = depth_warp(view.photo[None], view.depth, view.camera, view.camera)[0]
    torch.testing.assert_close(warped, view.photo, atol=1e-4, rtol=0)


def test_pixels_of_unknown_depth_are_far_behind(room: ModuleType) -> None:
    """A white backdrop without depth stays white, and does not show through the ball."""
    reference, target = room.render(room.look(0)), room.render(room.look(20))
    photo = torch.where(reference.ball, -1.0, 1.0).expand(1, 3, -1, -1)
    depth = torch.where(reference.ball, reference.depth, 0)
    warped = depth_warp(photo, depth, reference.camera, target.camera)[0, 0]
    seen = room.visible(room.places(target), reference.camera)
    assert float((warped < 0)[target.ball & seen].float().mean()) > 0.97
    assert float((warped < 0)[~target.ball].float().mean()) < 0.1


@pytest.mark.parametrize("azimuth", [10, -35])
def test_the_unseen_is_what_rays_say_but_for_pixels_at_edges(room: ModuleType, azimuth: float) -> None:
    reference, target = room.render(room.look(0)), room.render(room.look(azimuth))
    found = unseen(reference.depth, target.depth, reference.camera, target.camera)
    true = ~room.visible(room.places(target), reference.camera)
    assert float(true.float().mean()) > 0.1
    grown = torch.nn.functional.max_pool2d(true[None].float(), 5, stride=1, padding=2)[0] > 0
    shrunk = -torch.nn.functional.max_pool2d(-true[None].float(), 5, stride=1, padding=2)[0] > 0
    assert not (found & ~grown).any()
    assert int((shrunk & ~found).sum()) < 10  # along the ball's outline, where the reference sees it edge-on
    pixels, _ = reference.camera.project(room.places(target).reshape(-1, 3))
    hidden = true & ((pixels > 0) & (pixels < 96)).all(-1).reshape(96, 96)  # in the picture, behind something
    assert float(hidden.float().mean()) > 0.03
    assert float(found[hidden].float().mean()) > 0.8


def test_where_depth_is_not_known_nothing_is_said(room: ModuleType) -> None:
    reference, target = room.render(room.look(0)), room.render(room.look(30))
    nothing = torch.zeros_like(target.depth)
    assert not unseen(reference.depth, nothing, reference.camera, target.camera).any()
    outside = unseen(nothing, target.depth, reference.camera, target.camera)
    pixels, depth = reference.camera.project(room.places(target).reshape(-1, 3))
    inside = (depth > 0) & (pixels >= 0).all(-1) & (pixels <= 96).all(-1)
    assert torch.equal(outside.flatten(), ~inside)
