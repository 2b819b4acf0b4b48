"""What a scene is made from: photos of a folder or sharp frames of a video, upright, of one size at most."""

import hashlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from sidestep.captures.findings import listed
from sidestep.captures.folders import hidden, looking, natural
from sidestep.captures.reconstruction import Photo
from sidestep.captures.sharpness import sharp_frames
from sidestep.errors import SidestepError
from sidestep.images import SUFFIXES, exif_fov, exif_lens, load_image

VIDEO_FRAMES = 50
# What phones and cameras write that is not read; a folder of which a part is passed over would make a poorer scene.
NOT_READ = (".heic", ".heif", ".avif", ".tif", ".tiff", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2")
# Two pictures are of one place where no cell of a 32 x 32 grid differs by more, of 255: noise does not do that.
SAME = 3.0


def fingerprint(source: Path) -> str:
    """Changes when any of the files does that a scene is made from.

    Raises:
        SidestepError: if nothing is there, or a folder holds no photos.
    """
    with looking(source):
        files = photo_files(source) if source.is_dir() else [source]
    try:
        facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    except OSError:
        raise SidestepError(f"{source}: no such file or folder") from None
    return hashlib.blake2b(repr(facts).encode(), digest_size=16).hexdigest()


def photo_files(folder: Path) -> list[Path]:
    """The photos of a folder, not of folders in it, by name with numbers in them by their value (2 before 10).

    Raises:
        SidestepError: if there are none.
    """
    files = [path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not hidden(path)]
    if not files:
        unread = _not_read(folder)
        told = f", but {len(unread)} that cannot be read, such as {unread[0][0]}: save them as JPEG" if unread else ""
        raise SidestepError(
            f"{folder}: no photos in it; {', '.join(SUFFIXES)} are looked for, not in folders within{told}"
        )
    return sorted(files, key=lambda path: (natural(path.name), path.name))


def collect(
    source: Path, folder: Path, frames: int | None, max_size: int, progress: Callable[[int, int], None]
) -> tuple[list[Photo], list[tuple[str, str]]]:
    """Writes the photos that a scene is made from to `folder` as 000.jpg, 001.jpg, ..., in an order of their names.

    Args:
        source: a folder of photos, or a video.
        frames: how many; None for all of a folder, 50 of a video.
        max_size: pixels that the longest side is scaled down to.
        progress: called with (files or frames read, of how many).

    Returns:
        The photos in their order, and what was left out: pairs of its original and the reason.

    Raises:
        SidestepError: if the source cannot be read, or fewer than 3 different photos are in it.
    """
    left_out: list[tuple[str, str]] = []
    if source.is_dir():
        files = _spread(photo_files(source), frames)
        most, found = len(files), _photos(files, progress)
        left_out = _not_read(source)
    else:
        most = frames or VIDEO_FRAMES
        found = _frames(source, most, progress)
    digits = max(3, len(str(most - 1)))
    photos: list[Photo] = []
    unread = [name for name, _ in left_out]
    if unread:
        warnings.warn(f"{source}: {len(unread)} photos left out: {listed(unread)}; save them as JPEG", stacklevel=2)
    last: np.ndarray | None = None
    for original, picture, lens, fov in found:
        if picture is None:
            left_out.append((original, "damaged"))
            continue
        tiny = np.asarray(picture.convert("L").resize((32, 32), Image.Resampling.BOX), dtype=np.float32)
        if last is not None and np.abs(tiny - last).max() <= SAME:
            left_out.append((original, f"the same picture as {photos[-1].original}"))
            continue
        last = tiny
        picture.thumbnail((max_size, max_size), Image.Resampling.LANCZOS)
        name = f"{len(photos):0{digits}d}.jpg"
        picture.save(folder / name, quality=98, subsampling=0)
        lens = f"{picture.width}x{picture.height}{lens}"
        photos.append(Photo(name, original, *picture.size, lens, fov))
    if len(photos) < 3:
        kind = "photos" if source.is_dir() else "frames"
        damaged = sum(reason == "damaged" for _, reason in left_out)
        counts = {
            "the same": len(left_out) - damaged - len(unread),
            "damaged": damaged,
            "of a kind that is not read": len(unread),
        }
        told = "".join(f", {count} {what}" for what, count in counts.items() if count)
        raise SidestepError(
            f"{source}: {len(photos)} usable {kind}{told}; a scene needs 3 different ones at least, and 20 to 60 are "
            "good: walk around the thing and take it from all sides"
        )
    return photos, left_out


def _not_read(folder: Path) -> list[tuple[str, str]]:
    """The photos of a folder in formats that are not read, by name, with the reason why they are left out."""
    names = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in NOT_READ)
    return [(name, f"{Path(name).suffix[1:].upper()} is not read; save it as JPEG") for name in names if name[0] != "."]


def _spread(files: list[Path], count: int | None) -> list[Path]:
    """`count` of the files, evenly."""
    if count is None or count >= len(files):
        return files
    return [files[int(place)] for place in np.linspace(0, len(files) - 1, count).round()]


_Read = tuple[str, Image.Image | None, str, float | None]  # original, picture, lens, field of view


def _photos(files: list[Path], progress: Callable[[int, int], None]) -> Iterator[_Read]:
    for done, path in enumerate(files):
        progress(done, len(files))
        try:
            picture = load_image(path)
        except SidestepError as error:
            warnings.warn(f"left out: {error}", stacklevel=2)
            yield path.name, None, "", None
            continue
        yield path.name, picture, exif_lens(path), exif_fov(path)
    progress(len(files), len(files))


def _frames(video: Path, count: int, progress: Callable[[int, int], None]) -> Iterator[_Read]:
    for original, picture in sharp_frames(video, count, progress):
        yield original, picture, "", None
