"""Photos: from a file to an upright RGB picture, to a tensor, and back."""

import base64
import io
import math
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol

import numpy as np
import torch
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError
from torch import Tensor

from sidestep.errors import SidestepError
from sidestep.inputs import open_file


class Stored(Protocol):
    """A file that lies inside another, or behind a network; its string is the name that messages give."""

    def read_bytes(self) -> bytes: ...
    @property
    def name(self) -> str: ...


Source = str | Path | Stored

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")  # of the files that are looked for in folders
PICTURE_SUFFIXES = (*SUFFIXES, ".bmp", ".tif", ".tiff")  # of the pictures that a capture may list
# What is read whatever a file is called: its first bytes tell it, so that text or a key is never one. Of other formats
# Pillow's readers are slow, or start other programs (PostScript's).
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM")
MAX_PIXELS = 100_000_000
_MOST_PASSES = 2_000_000_000  # pixels times scans of a progressive JPEG, which usually has ten scans
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # of a JPEG; a scan has the others within it
_MOST_SEGMENTS = 100_000  # of a JPEG, which has dozens
FULL_FRAME_DIAGONAL = math.hypot(36.0, 24.0)  # mm; "35 mm equivalent" compares diagonals (CIPA DCG-001)

_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def load_image(path: Source) -> Image.Image:
    """The photo in a file as RGB, turned upright as its EXIF orientation says; transparency becomes white.

    Raises:
        SidestepError: if the file is missing, no image, cut short, or larger than 100 megapixels.
    """
    with open_image(path) as image:
        return upright(image, _rgb(image, path))


def upright(image: Image.Image, picture: Image.Image) -> Image.Image:
    """A picture made of an image's pixels, turned as the image's EXIF orientation says."""
    orientation = _orientation(image)
    return picture.transpose(_TRANSPOSE[orientation]) if orientation in _TRANSPOSE else picture


def converted(image: Image.Image, mode: str, path: Source) -> Image.Image:
    """An image in another of Pillow's modes.

    Raises:
        SidestepError: if there is no way from its own mode to that one.
    """
    try:
        return image.convert(mode)
    except Exception:  # of a mode that has no way to it, or a damaged palette
        raise SidestepError(
            f"{path}: pixel format {image.mode!r} is not a photo's; save it with 8 bits a channel"
        ) from None


def stored_size(path: Source) -> tuple[int, int, int]:
    """Width and height in pixels as stored in the file, and the EXIF orientation (1 to 8), from its header alone.

    The picture that `load_image` returns has width and height swapped where the orientation is 5 or more.

    Raises:
        SidestepError: as `load_image`, except that damage past the header goes unseen.
    """
    with _opened(path) as image:
        return image.width, image.height, _orientation(image)


def is_transparent(path: Source) -> bool:
    """Whether a picture may have transparent pixels, by its header alone.

    Raises:
        SidestepError: as `stored_size`.
    """
    with _opened(path) as image:
        return bool(image.has_transparency_data)


def resize_and_crop(
    image: Image.Image, size: int, resample: Image.Resampling = Image.Resampling.LANCZOS
) -> Image.Image:
    """The centre `size` x `size` of the image, its shorter side scaled to `size` first.

    `Camera.resize_and_crop` is the same geometry for its camera.
    """
    shorter = min(image.size)
    width, height = round(image.width * size / shorter), round(image.height * size / shorter)
    left, top = (width - size) // 2, (height - size) // 2
    # The square alone is scaled: all of a photo of one row would become a picture of millions of pixels.
    across, down = image.width / width, image.height / height
    box = (left * across, top * down, (left + size) * across, (top + size) * down)
    return image.resize((size, size), resample, box=box)


def to_tensor(image: Image.Image) -> Tensor:
    """An image as float32 (3, H, W) in [-1, 1]."""
    pixels = np.array(image.convert("RGB"), dtype=np.float32)
    return torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1.0


def to_image(tensor: Tensor) -> Image.Image:
    """A (3, H, W) tensor in [-1, 1] as an image; values outside are clipped."""
    pixels = (tensor.detach().float().cpu().clamp(-1.0, 1.0) + 1.0) * 127.5
    return Image.fromarray(pixels.round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy())


def jpeg_url(image: Image.Image, quality: int = 92) -> str:
    """An image as the URL of a JPEG that it holds itself, for a page that needs no other file."""
    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=quality, comment=b"")
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def gradient_energy(pictures: Tensor) -> Tensor:
    """How sharp pictures (B, 3, H, W) are, (B,): the mean squared difference of horizontal neighbours plus that of
    vertical ones.
    """
    across, down = pictures.diff(dim=3), pictures.diff(dim=2)
    return across.square().mean((1, 2, 3)) + down.square().mean((1, 2, 3))


def exif_fov(path: Source) -> float | None:
    """The field of view that a photo's EXIF tells, in degrees across the shorter side, or None where it does not.

    From FocalLengthIn35mmFilm, the focal length at which a 36 x 24 mm film sees the same diagonal. A photo that was
    cropped afterwards still carries the uncropped value.

    Raises:
        SidestepError: if the file is missing or no image.
    """
    with _opened(path) as image:
        width, height = image.size
        try:
            value = image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.FocalLengthIn35mmFilm)
            focal = float(value) if value else 0.0
        except Exception:  # damaged EXIF fails in many ways and says no more than absent EXIF
            return None
    if not (math.isfinite(focal) and focal >= 1.0):
        return None
    shorter = FULL_FRAME_DIAGONAL * min(width, height) / math.hypot(width, height)
    return math.degrees(2.0 * math.atan(shorter / (2.0 * focal)))


def exif_lens(path: Source) -> str:
    """What a photo's EXIF says of its camera and its focal length, "" where it says nothing.

    Raises:
        SidestepError: if the file is missing or no image.
    """
    tags = ExifTags.Base
    with _opened(path) as image:
        try:
            exif = image.getexif()
            more = exif.get_ifd(ExifTags.IFD.Exif)
            own, of_photo = (tags.Make, tags.Model), (tags.FocalLength, tags.FocalLengthIn35mmFilm)
            told = [*(exif.get(tag) for tag in own), *(more.get(tag) for tag in of_photo)]
            return "".join(f" {value}".rstrip("\0 ") for value in told if value is not None)
        except Exception:  # damaged EXIF fails in many ways and says no more than absent EXIF
            return ""


@contextmanager
def open_image(path: Source) -> Iterator[Image.Image]:
    """An image file's pixels as they are stored, whatever their format.

    Raises:
        SidestepError: as `load_image`.
    """
    with _opened(path) as image:
        _refuse_slow(image, path)
        try:
            image.load()
        except Exception as error:  # each format's reader fails in ways of its own
            raise SidestepError(f"{path}: the image is damaged or cut short ({error}); save it again") from None
        yield image


@contextmanager
def _opened(path: Source) -> Iterator[ImageFile.ImageFile]:
    try:
        file = open_file(path) if isinstance(path, str | Path) else io.BytesIO(path.read_bytes())
    except FileNotFoundError:
        raise SidestepError(f"{path}: no such file") from None
    except OSError as error:
        raise SidestepError(f"{path}: cannot be read as an image ({error.strerror or error})") from None
    with file:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is below
                image = Image.open(file, formats=FORMATS)
        except UnidentifiedImageError:
            raise SidestepError(f"{path}: not an image; JPEG, PNG and WebP can be read") from None
        except Image.DecompressionBombError:
            raise SidestepError(f"{path}: larger than {MAX_PIXELS // 10**6} megapixels; shrink it first") from None
        except Exception as error:  # each format's reader fails in ways of its own
            raise SidestepError(f"{path}: cannot be read as an image ({error})") from None
        with image:
            if image.width * image.height > MAX_PIXELS:
                raise SidestepError(
                    f"{path}: {image.width}x{image.height} is larger than {MAX_PIXELS // 10**6} megapixels; "
                    "shrink it first"
                )
            yield image


def _refuse_slow(image: ImageFile.ImageFile, path: Source) -> None:
    """Refuses a small file that would take minutes: a large JPEG of thousands of scans, or pixels written as text."""
    if image.tile and image.tile[0][0] == "ppm_plain":
        raise SidestepError(f"{path}: a picture written as text; save it as PNG")
    if image.format in ("JPEG", "MPO") and image.fp is not None:
        place = image.fp.tell()
        scans = _scans(image.fp)
        image.fp.seek(place)
        if scans * image.width * image.height > _MOST_PASSES:
            raise SidestepError(f"{path}: a JPEG of {scans} scans, which takes too long to decode; save it again")


def _scans(file: IO[bytes]) -> int:
    """How many scans a JPEG has until it ends; a phone's has a video behind it, and a small JPEG in its EXIF."""
    file.seek(2)
    scans = 0
    for _ in range(_MOST_SEGMENTS):
        marker = _next_marker(file)
        if marker in (None, 0xD9):  # the end
            return scans
        if marker != 0x01:  # the only one here that has no length
            length = int.from_bytes(file.read(2), "big")
            file.seek(max(length - 2, 0), os.SEEK_CUR)
        scans += marker == 0xDA
    return _MOST_SEGMENTS


def _next_marker(file: IO[bytes]) -> int | None:
    """Reads on until behind a marker that is none of a scan's own."""
    size = 64  # most follow at once
    while data := file.read(size):
        found = _MARKER.search(data)
        if found is not None:
            file.seek(found.end() - len(data), os.SEEK_CUR)
            return data[found.end() - 1]
        if data[-1] == 0xFF and len(data) > 1:
            file.seek(-1, os.SEEK_CUR)
        size = min(8 * size, 2**20)
    return None


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        return int(orientation) if orientation in _TRANSPOSE else 1
    except Exception:  # damaged EXIF fails in many ways; the picture itself is still good
        return 1


def _rgb(image: Image.Image, path: Source) -> Image.Image:
    if image.mode.startswith("I;16"):  # PIL would clip the 16 bits, not scale them
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("F", "I"):
        raise SidestepError(f"{path}: pixel format {image.mode!r} is not a photo's; save it with 8 bits a channel")
    if image.has_transparency_data:
        image = converted(image, "RGBA", path)
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return converted(image, "RGB", path)
