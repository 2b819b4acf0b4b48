import io

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from sidestep.cameras import Camera
from sidestep.errors import SidestepError
from sidestep.images import exif_fov, load_image, resize_and_crop, stored_size, to_image, to_tensor


def corners(width: int = 60, height: int = 40) -> Image.Image:
    """A picture whose upper left corner is red and upper right corner blue."""
    pixels = np.full((height, width, 3), 255, np.uint8)
    pixels[:10, :10] = (255, 0, 0)
    pixels[:10, -10:] = (0, 0, 255)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photo_is_shown_upright_whatever_its_exif_orientation(tmp_path, orientation):
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = corners().transpose(undo[orientation]) if orientation in undo else corners()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    stored.save(tmp_path / "a.png", exif=exif)

    shown = load_image(tmp_path / "a.png")

    assert np.array_equal(np.asarray(shown), np.asarray(corners()))
    assert stored_size(tmp_path / "a.png") == (*stored.size, orientation)


def test_an_orientation_that_does_not_exist_is_ignored(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 77
    corners().save(tmp_path / "a.png", exif=exif)
    assert load_image(tmp_path / "a.png").size == (60, 40)


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "1", "LA"])
def test_other_pixel_formats_become_rgb(tmp_path, mode):
    corners().convert(mode).save(tmp_path / "a.tif")
    assert load_image(tmp_path / "a.tif").mode == "RGB"


def test_transparency_becomes_white(tmp_path):
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png").getpixel((0, 0)) == (255, 255, 255)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    Image.fromarray(np.full((4, 4), 0x8000, np.uint16)).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png").getpixel((0, 0)) == (128, 128, 128)


def test_files_that_are_no_photo_are_refused_by_name(tmp_path):
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "folder.jpg").mkdir()
    for name in ("text.jpg", "empty.jpg", "folder.jpg", "absent.jpg"):
        with pytest.raises(SidestepError, match=name):
            load_image(tmp_path / name)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_truncated_photo_is_refused_not_returned_half_grey(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG" if suffix == "jpg" else suffix)
    path = tmp_path / f"cut.{suffix}"
    path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    with pytest.raises(SidestepError, match=path.name):
        load_image(path)


def test_huge_photo_is_refused_before_it_is_decoded(tmp_path):
    Image.new("1", (20_000, 6_000)).save(tmp_path / "huge.png")
    with pytest.raises(SidestepError, match=r"huge\.png.*megapixels"):
        load_image(tmp_path / "huge.png")


@pytest.mark.parametrize("size", [(60, 40), (40, 60), (37, 101), (64, 64)])
def test_resize_and_crop_does_what_the_camera_does(size):
    width, height = size
    spot = (width * 0.55, height * 0.45)
    rows, cols = np.mgrid[:height, :width] + 0.5
    blob = np.exp(-((cols - spot[0]) ** 2 + (rows - spot[1]) ** 2) / 8.0)
    image = Image.fromarray((blob[..., None] * 255).repeat(3, axis=2).astype(np.uint8))
    camera = Camera.from_fov(50.0, width, height)
    ray = torch.linalg.solve(camera.intrinsics, torch.tensor([*spot, 1.0]))

    cropped = np.asarray(resize_and_crop(image, 128), dtype=np.float64)[..., 0]

    assert cropped.shape == (128, 128)
    rows, cols = np.mgrid[:128, :128] + 0.5
    found = np.array([(cropped * cols).sum(), (cropped * rows).sum()]) / cropped.sum()
    pixels, _ = camera.resize_and_crop(128).project(ray[None])
    assert np.allclose(found, pixels[0].numpy(), atol=0.3)


def test_tensor_round_trip_keeps_every_value():
    image = Image.fromarray(np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3))
    tensor = to_tensor(image)
    assert tensor.shape == (3, 16, 16)
    assert (tensor.min(), tensor.max()) == (-1.0, 1.0)
    assert np.array_equal(np.asarray(to_image(tensor)), np.asarray(image))


def test_values_out_of_range_are_clipped():
    assert to_image(torch.full((3, 2, 2), 9.0, dtype=torch.bfloat16)).getpixel((0, 0)) == (255, 255, 255)


def photo_with_focal_length(path, focal, size=(60, 40)):
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.FocalLengthIn35mmFilm] = focal
    corners(*size).save(path, exif=exif)


def test_exif_field_of_view_of_a_film_shaped_photo(tmp_path):
    photo_with_focal_length(tmp_path / "a.jpg", 24)
    # 24 mm of film behind a 24 mm lens.
    assert exif_fov(tmp_path / "a.jpg") == pytest.approx(53.13, abs=0.01)


def test_exif_field_of_view_is_across_the_shorter_side(tmp_path):
    photo_with_focal_length(tmp_path / "wide.jpg", 24)
    photo_with_focal_length(tmp_path / "tall.jpg", 24, size=(40, 60))
    assert exif_fov(tmp_path / "tall.jpg") == pytest.approx(exif_fov(tmp_path / "wide.jpg"))


def test_no_field_of_view_where_exif_tells_none(tmp_path):
    corners().save(tmp_path / "plain.jpg")
    photo_with_focal_length(tmp_path / "zero.jpg", 0)
    assert exif_fov(tmp_path / "plain.jpg") is None
    assert exif_fov(tmp_path / "zero.jpg") is None


def test_a_very_long_photo_costs_no_more_than_its_square() -> None:
    assert resize_and_crop(Image.new("RGB", (3_000_000, 1), "red"), 64).getpixel((32, 32)) == (255, 0, 0)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_phones_photo_with_a_video_behind_it(tmp_path, progressive):
    exif = Image.Exif()
    exif[0x010E] = b"\xff\xda" * 1000  # as in the scans of a thumbnail
    Image.new("L", (2000, 1500)).save(tmp_path / "a.jpg", progressive=progressive, exif=exif)
    with (tmp_path / "a.jpg").open("ab") as file:
        file.write(b"moov\xff\xda" * 1000)
    assert load_image(tmp_path / "a.jpg").size == (2000, 1500)
