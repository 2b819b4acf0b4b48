"""How synthesised views reach the disk: what a path's suffix asks for."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from sidestep.cameras import Camera
from sidestep.captures.writing import check_capture_folder, write_capture
from sidestep.errors import SidestepError
from sidestep.files import atomic_path, make_folder
from sidestep.media import ANIMATIONS, contact_sheet, save_animation

PICTURES = (".png", ".jpg", ".jpeg")
SHEET_COLUMNS = 6


def check_output(path: Path) -> None:
    """Refuses a path that `save_views` could not write, before any work is done; makes the folder that it lies in.

    Raises:
        SidestepError: if the path has no name or an unknown suffix, is a folder that is no capture, or lies where
            nothing can be written.
    """
    if path.name in ("", ".."):
        raise SidestepError(f"{path}: has no name of its own; name a file or a folder, such as {path / 'views'}")
    if path.suffix and path.suffix.lower() not in PICTURES + ANIMATIONS:
        known = ", ".join(PICTURES + ANIMATIONS)
        raise SidestepError(f"{path}: views are written as {known}, or as a folder (a name without a suffix)")
    if path.suffix and path.is_dir():
        raise SidestepError(f"{path}: is a folder; name a file in it")
    if not path.suffix:
        check_capture_folder(path)
    make_folder(path.parent)


def is_animation(path: Path) -> bool:
    """Whether `save_views` writes an animation there."""
    return path.suffix.lower() in ANIMATIONS


def save_views(
    path: Path,
    images: Sequence[Image.Image],
    cameras: Sequence[Camera],
    fps: int,
    loop: bool = False,
    photo: tuple[Image.Image, Camera] | None = None,
) -> None:
    """Writes views as one picture (several: a contact sheet), an animation, or a folder with their cameras.

    A folder is what `write_capture` makes, which nerfstudio, gsplat and COLMAP read.

    Args:
        fps: views a second of an animation.
        loop: an animation plays the views forwards and back again, the first and the last once.
        photo: what the views were made from and its camera in their world; a folder holds it too.

    Raises:
        SidestepError: as `check_output`.
    """
    check_output(path)
    suffix = path.suffix.lower()
    if is_animation(path):
        save_animation([*images, *images[-2:0:-1]] if loop else images, path, fps)
    elif suffix in PICTURES:
        picture = images[0]
        if len(images) > 1:
            rows = [images[start : start + SHEET_COLUMNS] for start in range(0, len(images), SHEET_COLUMNS)]
            picture = contact_sheet(rows)
        with atomic_path(path) as temporary:
            picture.save(temporary, quality=95)
    else:
        write_capture(path, list(images), list(cameras), photo)
