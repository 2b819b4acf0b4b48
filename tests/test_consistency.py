"""Views moved onto one another along a path, and what consistency does to a pipeline's views."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

import sidestep.devices
from sidestep.cameras import Camera
from sidestep.consistency import seen_in, steady
from sidestep.errors import SidestepError
from sidestep.fusion import FusionSettings
from sidestep.pipeline import NovelViewPipeline
from sidestep.trajectories import dolly, orbit, step_aside

PHOTO = Camera.from_fov(45, 64, 48).to(dtype=torch.float64)
GRID = (12, 16)


def shifted(x: float, y: float) -> Camera:
    pose = torch.eye(4, dtype=torch.float64)
    pose[0, 3], pose[1, 3] = -x, -y
    return Camera(PHOTO.intrinsics, pose, 64, 48)


def painted(cameras: list[Camera]) -> torch.Tensor:
    """Smooth pictures of one painting on the plane z = 1, seen by cameras that look along z, (N, 2, *GRID)."""
    pictures = []
    for camera in cameras:
        origins, directions = camera.rays(*GRID)
        x, y, _ = (origins + directions * ((1 - origins[..., 2]) / directions[..., 2])[..., None]).unbind(-1)
        pictures.append(torch.stack([torch.sin(6 * x) + y, torch.cos(5 * y - 2 * x)]))
    return torch.stack(pictures).float()


@pytest.mark.parametrize(
    "others",
    [orbit(PHOTO, 4, yaw=(-60, 80)), dolly(PHOTO, 3, distance=(1.5, 0.5)), [shifted(0.1, -0.2)]],
    ids=["orbit", "dolly", "shift"],
)
def test_cells_are_found_where_points_of_the_plane_are_projected(others: list[Camera]) -> None:
    camera = step_aside(PHOTO, 15, 10, roll=20)
    batch = Camera.stack(others)
    pixels, seen = seen_in(camera, batch, *GRID)
    # The plane's points by its own geometry: at the subject's depth before the camera, through the cells' centres.
    depth = camera.project(torch.tensor([[0.0, 0.0, 1.0]]))[1]
    v, u = torch.meshgrid(torch.arange(12) * 4.0 + 2, torch.arange(16) * 4.0 + 2, indexing="ij")
    k = camera.intrinsics
    local = torch.stack([(u - k[0, 2]) / k[0, 0], (v - k[1, 2]) / k[1, 1], torch.ones_like(u)], -1) * depth
    points = (local.double() - camera.translation) @ camera.rotation
    expected, depths = batch.project(points.reshape(-1, 3))
    torch.testing.assert_close(pixels.reshape(len(others), -1, 2), expected, atol=1e-4, rtol=0)
    inside = (expected >= 0).all(-1) & (expected[..., 0] <= 64) & (expected[..., 1] <= 48) & (depths > 0)
    assert torch.equal(seen.flatten(1), inside)
    # And by the textbook's homography, K' (R + t n' / d) K^-1 of the relative pose, for the plane n = z at depth d.
    relative = batch.relative_to(camera)
    facing = torch.tensor([0.0, 0.0, 1.0]).double() / depth
    homography = batch.intrinsics @ (relative.rotation + relative.translation[..., None] * facing) @ k.inverse()
    mapped = homography @ torch.stack([u, v, torch.ones_like(u)]).flatten(1).double()
    torch.testing.assert_close((mapped[:, :2] / mapped[:, 2:]).mT, expected, atol=1e-4, rtol=0)


def test_nothing_is_seen_of_a_subject_behind_a_camera() -> None:
    away = Camera(PHOTO.intrinsics, torch.diag(torch.tensor([-1.0, 1, -1, 1])).double(), 64, 48)
    assert not seen_in(away, Camera.stack([PHOTO]), *GRID)[1].any()
    assert not seen_in(PHOTO, Camera.stack([away]), *GRID)[1].any()


@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_what_moves_with_the_camera_stays_and_what_jumps_is_smoothed(strength: float) -> None:
    cameras = [shifted(0.08 * i, 0.02 * i) for i in range(5)]
    means = painted(cameras)
    jumps = 0.3 * torch.tensor([1.0, -1, 1, -1, 1])[:, None, None, None]
    steadied = steady(means + jumps, Camera.stack(cameras), strength)
    inner = (..., slice(2, -2), slice(5, -5))  # what every camera sees
    assert float((steadied - means)[inner].abs().max()) < (0.25 if strength < 1 else 0.1)
    # Averaged where they stand, the painting itself would be smeared.
    weights = (strength ** (torch.arange(5) - 2).abs())[:, None, None, None]
    smeared = (weights * means).sum(0) / weights.sum()
    moved = steady(means, Camera.stack(cameras), strength)[2]
    assert float((smeared - means[2])[inner].abs().max()) > 3 * float((moved - means[2])[inner].abs().max())


def test_still_cameras_mix_by_distance_along_the_path() -> None:
    means = torch.randn(3, 4, *GRID, generator=torch.Generator().manual_seed(0))
    steadied = steady(means, Camera.stack([PHOTO] * 3), 0.5)
    torch.testing.assert_close(steadied[1], (0.5 * means[0] + means[1] + 0.5 * means[2]) / 2, atol=1e-5, rtol=0)
    torch.testing.assert_close(steadied[0], (means[0] + 0.5 * means[1] + 0.25 * means[2]) / 1.75, atol=1e-5, rtol=0)
    torch.testing.assert_close(steady(means, Camera.stack([PHOTO] * 3), 0.0), means)


def test_what_no_other_view_shows_keeps_its_own() -> None:
    cameras = [PHOTO, shifted(0.552, 0.0)]  # half a picture to the right
    means = torch.randn(2, 4, *GRID, generator=torch.Generator().manual_seed(0))
    steadied = steady(means, Camera.stack(cameras), 0.8)
    torch.testing.assert_close(steadied[0][..., :7], means[0][..., :7])
    torch.testing.assert_close(steadied[1][..., 9:], means[1][..., 9:])
    assert (steadied[0][..., 9:] - means[0][..., 9:]).abs().min() > 0
    alone = steady(means[:1], Camera.stack(cameras[:1]), 0.8)
    torch.testing.assert_close(alone, means[:1])


@pytest.fixture(scope="module")
def pipe(make_tiny_pipeline: Callable[..., NovelViewPipeline]) -> NovelViewPipeline:
    return make_tiny_pipeline()


@pytest.fixture
def views(pipe: NovelViewPipeline, monkeypatch: pytest.MonkeyPatch) -> Callable[..., np.ndarray]:
    """The pixels of views along a path, (N, H, W, 3)."""
    monkeypatch.setattr(sidestep.devices, "network_dtype", lambda device: torch.float32)
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)

    def make(targets: list[Camera], **options: object) -> np.ndarray:
        made = pipe(Image.fromarray(noise), targets, steps=3, **options)
        return np.stack([np.asarray(image, dtype=int) for image in made.images])

    return make


def test_consistency_changes_a_path_and_not_a_single_view(views: Callable[..., np.ndarray]) -> None:
    path = orbit(Camera.from_fov(45, 16, 16), 4)
    plain, steadied = views(path), views(path, consistency=0.6)
    assert (np.abs(plain - steadied).max((1, 2, 3)) > 1).all()
    assert np.abs(views(path, consistency=0.6, batch_size=3) - steadied).max() <= 1
    assert np.abs(views(path[:1], consistency=0.6) - plain[:1]).max() <= 1
    assert np.array_equal(views(path, consistency=0.0), plain)


def test_with_consistency_all_views_share_the_drawn_noise(views: Callable[..., np.ndarray]) -> None:
    settings = FusionSettings(noise="gaussian")
    twice = orbit(Camera.from_fov(45, 16, 16), 2, yaw=(10, 10))
    own = views(twice, settings=settings)
    shared = views(twice, settings=settings, consistency=0.1)
    assert np.abs(own[0] - own[1]).max() > 1
    assert np.abs(shared[0] - shared[1]).max() <= 1


@pytest.mark.parametrize("consistency", [-0.1, 1.5, math.nan])
def test_a_consistency_out_of_range_is_refused(views: Callable[..., np.ndarray], consistency: float) -> None:
    with pytest.raises(SidestepError, match="must be from 0 to 1"):
        views(orbit(Camera.from_fov(45, 16, 16), 2), consistency=consistency)
