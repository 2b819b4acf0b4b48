import numpy as np
import pytest
from PIL import Image

from sidestep.captures.lens import Lens
from sidestep.errors import SidestepError

WIDTH, HEIGHT = 160, 120
INTRINSICS = np.array(((130.0, 0.0, 76.0), (0.0, 126.0, 63.0), (0.0, 0.0, 1.0)))
BARREL = Lens(INTRINSICS, WIDTH, HEIGHT, k1=-0.25, k2=0.06, p1=0.004, p2=-0.006)
PINCUSHION = Lens(INTRINSICS, WIDTH, HEIGHT, k1=0.12, k2=-0.04, p1=-0.003, p2=0.005)


def pattern(plane: np.ndarray) -> np.ndarray:
    """A soft checkerboard on the plane z = 1, RGB."""
    waves = np.sin(plane[..., 0] * 20.0) * np.sin(plane[..., 1] * 20.0)
    return np.stack((waves, -waves, np.sin(plane[..., 0] * 9.0)), axis=-1) * 100.0 + 128.0


def pixel_centres(width: int, height: int) -> np.ndarray:
    rows, cols = np.mgrid[:height, :width] + 0.5
    return np.stack((cols, rows), axis=-1)


def to_plane(intrinsics: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    return (pixels - intrinsics[:2, 2]) / intrinsics.diagonal()[:2]


def colmap_camera(lens: Lens):
    pycolmap = pytest.importorskip("pycolmap")
    fx, fy = lens.intrinsics.diagonal()[:2]
    cx, cy = lens.intrinsics[:2, 2]
    params = [fx, fy, cx, cy, lens.k1, lens.k2, lens.p1, lens.p2]
    return pycolmap.Camera(model="OPENCV", width=lens.width, height=lens.height, params=params)


def bent_photo(lens: Lens) -> Image.Image:
    """What the lens takes of the checkerboard, by COLMAP's inverse of the distortion."""
    pixels = pixel_centres(lens.width, lens.height)
    plane = np.asarray(colmap_camera(lens).cam_from_img(pixels.reshape(-1, 2))).reshape(pixels.shape)
    return Image.fromarray(pattern(plane).round().astype(np.uint8))


@pytest.mark.parametrize("lens", [BARREL, PINCUSHION])
def test_projection_agrees_with_colmap(lens):
    points = np.random.default_rng(0).uniform((-0.5, -0.4, 1.0), (0.5, 0.4, 2.0), (50, 3))
    plane = points[:, :2] / points[:, 2:]
    ours = lens.distort(plane) * lens.intrinsics.diagonal()[:2] + lens.intrinsics[:2, 2]
    assert np.allclose(ours, colmap_camera(lens).img_from_cam(points), atol=1e-9)


@pytest.mark.parametrize("lens", [BARREL, PINCUSHION])
def test_undistorted_checkerboard_is_what_the_pinhole_camera_sees(lens):
    intrinsics = lens.pinhole_intrinsics()
    straight = np.asarray(lens.undistort(bent_photo(lens), intrinsics), dtype=np.float64)
    expected = pattern(to_plane(intrinsics, pixel_centres(WIDTH, HEIGHT)))
    error = np.abs(straight - expected)[2:-2, 2:-2]
    bent_error = np.abs(np.asarray(bent_photo(lens)) - expected)[2:-2, 2:-2]
    assert error.max() < 4.0  # of 255, from resampling
    assert bent_error.max() > 25.0


@pytest.mark.parametrize("lens", [BARREL, PINCUSHION])
def test_the_photo_fills_the_pinhole_picture(lens):
    intrinsics = lens.pinhole_intrinsics()
    source = lens.source_pixels(intrinsics, pixel_centres(WIDTH, HEIGHT))
    assert source.min() >= 0.0
    assert (source <= (WIDTH, HEIGHT)).all()
    assert np.array_equal(intrinsics[:2, 2], INTRINSICS[:2, 2])


def test_a_lens_without_distortion_is_left_alone():
    assert np.array_equal(Lens(INTRINSICS, WIDTH, HEIGHT).pinhole_intrinsics(), INTRINSICS)


def test_coefficients_that_fold_the_picture_are_refused():
    with pytest.raises(SidestepError, match="folds"):
        Lens(INTRINSICS, WIDTH, HEIGHT, k1=-20.0).pinhole_intrinsics()


@pytest.mark.parametrize("clockwise", [True, False])
def test_turning_photo_and_lens_is_the_same_as_turning_the_straight_photo(clockwise):
    turn = Image.Transpose.ROTATE_270 if clockwise else Image.Transpose.ROTATE_90
    turned = BARREL.turned(clockwise)
    first = BARREL.undistort(bent_photo(BARREL), BARREL.pinhole_intrinsics()).transpose(turn)
    second = turned.undistort(bent_photo(BARREL).transpose(turn), turned.pinhole_intrinsics())
    assert np.abs(np.asarray(first, dtype=int) - np.asarray(second, dtype=int)).max() <= 2


def test_resizing_keeps_the_distortion_of_a_smaller_photo():
    half = PINCUSHION.resized(WIDTH // 2, HEIGHT // 2)
    pixels = pixel_centres(WIDTH // 2, HEIGHT // 2)
    small = half.source_pixels(half.pinhole_intrinsics(), pixels)
    large = PINCUSHION.source_pixels(PINCUSHION.pinhole_intrinsics(), pixels * 2.0)
    assert np.allclose(small * 2.0, large, atol=0.05)
