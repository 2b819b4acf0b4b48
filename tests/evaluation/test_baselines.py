import math

import pytest
import torch
from torch import Tensor

from sidestep.cameras import Camera
from sidestep.errors import SidestepError
from sidestep.evaluation.baselines import SIGMAS, BestBlur, blurred, floor_homography, floor_plane, point_warp

SIZE = 96
UP = torch.nn.functional.normalize(torch.tensor([0.2, 0.9, -0.4]), dim=0)
EAST = torch.nn.functional.normalize(torch.linalg.cross(UP, torch.tensor([1.0, 0.3, 0.0])), dim=0)
NORTH = torch.linalg.cross(UP, EAST)
FLOOR = torch.cat([UP, torch.tensor([-0.7])])
BALL, RADIUS = 0.1 * UP, 0.8  # stands on the floor


def camera(azimuth: float, height: float = 1.6, aim: float = -0.2, distance: float = 3.5) -> Camera:
    """On a ring around the origin of a tilted world, looking at `aim` on the vertical axis."""
    angle = math.radians(azimuth)
    centre = distance * (math.sin(angle) * EAST - math.cos(angle) * NORTH) + height * UP
    forward = torch.nn.functional.normalize(aim * UP - centre, dim=0)
    right = torch.nn.functional.normalize(torch.linalg.cross(forward, UP), dim=0)
    pose = torch.eye(4)
    pose[:3, :3] = torch.stack([right, torch.linalg.cross(forward, right), forward])
    pose[:3, 3] = -pose[:3, :3] @ centre
    return Camera.from_fov(42, SIZE, SIZE, pose)


def cameras(*azimuths: float) -> Camera:
    return Camera.stack([camera(azimuth) for azimuth in azimuths])


def colour(places: Tensor) -> Tensor:
    """A smooth pattern over space, (..., 3) to (3, ...)."""
    waves = torch.stack([places @ (2 * EAST + UP), places @ (3 * NORTH - UP), places @ (2 * UP + EAST - NORTH)])
    return 0.8 * torch.sin(2 * waves)


def ball_distance(origins: Tensor, directions: Tensor) -> Tensor:
    """Along rays to the ball, infinite for those that miss it."""
    offset = origins - BALL
    along = (offset * directions).sum(-1)
    root = along.square() - offset.square().sum(-1) + RADIUS**2
    return torch.where(root > 0, -along - root.clamp_min(0).sqrt(), torch.inf)


def floor_distance(origins: Tensor, directions: Tensor) -> Tensor:
    distance = (FLOOR[3] - origins @ UP) / (directions @ UP)
    return torch.where(distance > 0, distance, torch.inf)


def render(view: Camera, ball: bool) -> tuple[Tensor, Tensor]:
    """The floor under a sky infinitely far, with or without the ball: (3, S, S), and the places shown, (S, S, 3)."""
    origins, directions = view.rays(SIZE, SIZE)
    distance = floor_distance(origins, directions)
    if ball:
        distance = torch.minimum(distance, ball_distance(origins, directions))
    places = origins + directions * distance.clamp_max(1e3)[..., None]
    # Far away the pattern is too fine for pixels, and fades to one that is the same from everywhere.
    fade = torch.exp(-((places.norm(dim=-1) / 4) ** 2))
    return fade * colour(places) + (1 - fade) * colour(torch.nn.functional.normalize(places, dim=-1)), places


def in_picture(view: Camera, places: Tensor, margin: float = 2) -> Tensor:
    pixels, depth = view.project(places.reshape(-1, 3))
    seen = (depth > 0) & (pixels > margin).all(-1) & (pixels < SIZE - margin).all(-1)
    return seen.reshape(places.shape[:-1])


def ball_points(count: int) -> Tensor:
    points = torch.randn(count, 3, generator=torch.Generator().manual_seed(0))
    return BALL + RADIUS * torch.nn.functional.normalize(points, dim=1)


def test_blur_keeps_what_is_even_and_spreads_a_point_by_sigma():
    even = torch.full((1, 3, 64, 64), 0.3)
    torch.testing.assert_close(blurred(even, 0.1), even)
    point = torch.zeros(1, 3, 65, 65)
    point[..., 32, 32] = 1
    spread = blurred(point, 4 / 65)
    across = torch.arange(65) - 32.0
    for axis in (2, 3):
        profile = spread[0, 0].sum(axis - 2)
        assert float(profile.sum()) == pytest.approx(1, abs=1e-5)
        assert float((profile * across**2).sum()) ** 0.5 == pytest.approx(4, rel=0.02)


def test_blur_does_not_darken_borders():
    picture = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) / 10 + 0.8
    assert float(blurred(picture, SIGMAS[-1]).min()) > 0.8


def test_best_blur_is_the_one_that_made_the_targets_however_the_pairs_are_batched():
    references = torch.rand(5, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    targets = blurred(references, SIGMAS[7])
    whole, parts = BestBlur(), BestBlur()
    whole.add(references, targets)
    parts.add(references[:2], targets[:2])
    parts.add(references[2:], targets[2:])
    assert whole.sigma == parts.sigma == SIGMAS[7]


def test_best_blur_weighs_pairs_by_psnr_not_by_error():
    # One pair is best nearly sharp, and then very well; one a little better under a wide blur.
    references = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    targets = torch.stack([blurred(references, SIGMAS[0])[0], torch.zeros(3, 64, 64)])
    best = BestBlur()
    best.add(references, targets)
    assert best.sigma == SIGMAS[0]


def test_best_blur_of_no_pairs_is_an_error():
    with pytest.raises(SidestepError, match="no pairs"):
        _ = BestBlur().sigma


def test_floor_is_found_in_a_tilted_world_in_spite_of_points_below_it():
    points = torch.cat([ball_points(2000), torch.tensor([[0.0, -9.0, 0.0], [3.0, -7.0, 0.0]])])
    plane = floor_plane(cameras(-60, -20, 0, 25, 70), points)
    assert plane is not None
    torch.testing.assert_close(plane, FLOOR, atol=0.03, rtol=0)


def test_without_points_or_a_vertical_there_is_no_floor():
    assert floor_plane(cameras(-60, 0, 60), None) is None
    assert floor_plane(cameras(-60, 0, 60), torch.zeros(0, 3)) is None
    assert floor_plane(cameras(10, 10), ball_points(50)) is None


@pytest.mark.parametrize("aim", [-0.2, 1.3])  # the second looks past the horizon
def test_floor_homography_moves_the_floor_to_where_the_target_sees_it(aim):
    reference, target = camera(0, aim=aim), camera(12, aim=aim)
    photo, _ = render(reference, ball=False)
    truth, places = render(target, ball=False)
    moved = floor_homography(photo[None], reference, target, FLOOR)[0]
    seen = in_picture(reference, places)
    assert float(seen.float().mean()) > 0.5
    assert float((moved - truth)[:, seen].abs().mean()) < 0.02
    assert float((photo - truth)[:, seen].abs().mean()) > 0.2
    assert float(moved.amin()) >= float(photo.amin())  # no black where the reference shows nothing


def test_above_the_horizon_only_the_turn_of_the_camera_counts():
    reference, target = camera(0, height=0.3, aim=0.9), camera(8, height=0.3, aim=0.9)
    photo, _ = render(reference, ball=False)
    truth, places = render(target, ball=False)
    moved = floor_homography(photo[None], reference, target, FLOOR)[0]
    sky = floor_distance(*target.rays(SIZE, SIZE)).isinf() & in_picture(reference, places)
    assert float(sky.float().mean()) > 0.2
    assert float((moved - truth)[:, sky].abs().max()) < 0.02


def test_point_warp_shows_a_surface_where_the_target_sees_it():
    reference, target = camera(0), camera(25)
    photo, _ = render(reference, ball=True)
    truth, places = render(target, ball=True)
    # What of the target's ball the reference sees too, away from its outline.
    on_ball = (places - BALL).norm(dim=-1) < RADIUS + 1e-3
    facing = ((places - BALL) * (reference.centre - places)).sum(-1) > 0.5
    both = on_ball & facing
    points = ball_points(3000)  # half of them are on its far side
    warped = point_warp(photo[None], reference, target, points, FLOOR)[0]
    flat = floor_homography(photo[None], reference, target, FLOOR)[0]
    assert float(both.float().mean()) > 0.1
    assert float((warped - truth)[:, both].abs().mean()) < 0.05
    assert float((flat - truth)[:, both].abs().mean()) > 0.2


def test_point_warp_shows_the_floor_and_no_second_ball_beside_the_ball():
    reference, target = camera(0), camera(25)
    # A bright ball on a dark floor.
    _, places = render(reference, ball=True)
    on_ball = (places - BALL).norm(dim=-1) < RADIUS + 1e-3
    photo = torch.where(on_ball, 1.0, -1.0).expand(1, 3, SIZE, SIZE)
    _, places = render(target, ball=True)
    on_ball = (places - BALL).norm(dim=-1) < RADIUS + 1e-3
    warped = point_warp(photo, reference, target, ball_points(300), FLOOR)[0]
    assert float((warped[0] > 0)[on_ball].float().mean()) > 0.9
    assert float((warped[0] > 0)[~on_ball].float().mean()) < 0.05
    flat = floor_homography(photo, reference, target, FLOOR)[0]
    assert float((flat[0] > 0)[~on_ball].float().mean()) > 0.1


@pytest.mark.parametrize("plane", [FLOOR, None])
def test_the_view_from_the_reference_is_the_photo(plane):
    view = camera(15)
    photo = render(view, ball=True)[0][None]
    torch.testing.assert_close(point_warp(photo, view, view, ball_points(200), plane), photo, atol=1e-3, rtol=0)
    torch.testing.assert_close(floor_homography(photo, view, view, FLOOR), photo, atol=1e-3, rtol=0)


def test_points_that_no_camera_sees_leave_the_floor():
    reference, target = camera(0), camera(12)
    photo = render(reference, ball=False)[0][None]
    behind = reference.centre[None] + 50 * UP
    warped = point_warp(photo, reference, target, behind, FLOOR)
    torch.testing.assert_close(warped, floor_homography(photo, reference, target, FLOOR), atol=0.05, rtol=0)
