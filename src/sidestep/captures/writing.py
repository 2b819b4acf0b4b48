"""Views and their cameras as a captured scene, which nerfstudio, gsplat and COLMAP take as it is."""

import re
from pathlib import Path

from PIL import Image

from sidestep.cameras import Camera
from sidestep.captures.colmap import write_colmap
from sidestep.captures.ply import write_ply
from sidestep.captures.points import starting_points
from sidestep.captures.transforms import write_transforms
from sidestep.errors import SidestepError
from sidestep.files import atomic_path

# In the order of names it stands second. gsplat keeps every eighth picture from the first on for its evaluation, and
# the one true picture must not be among those.
PHOTO = "000_photo.png"
POINTS = "points.ply"
_OWN = re.compile(
    r"images/(\d{3,}|000_photo)\.png|transforms\.json|points\.ply|sparse/0/(cameras|images|points3D)\.txt"
)


def write_capture(
    folder: str | Path,
    images: list[Image.Image],
    cameras: list[Camera],
    photo: tuple[Image.Image, Camera] | None = None,
) -> None:
    """Writes images/000.png, ..., transforms.json, points.ply and a COLMAP text model in sparse/0, all or nothing.

    Args:
        folder: the scene's folder; replaced if this function wrote it and nothing was added since.
        images: RGB.
        cameras: one an image, of its size, not batched.
        photo: what the images were made from and its camera in their world, written as images/000_photo.png.

    Raises:
        SidestepError: if numbers or sizes differ, or `folder` exists and is no capture.
    """
    folder = Path(folder)
    if not images or len(images) != len(cameras):
        raise SidestepError(f"{folder}: {len(images)} images for {len(cameras)} cameras; give one camera an image")
    pictures = {f"{index:03d}.png": view for index, view in enumerate(zip(images, cameras, strict=True))}
    if photo is not None:
        pictures[PHOTO] = photo
    for name, (image, camera) in pictures.items():
        if image.size != (camera.width, camera.height):
            raise SidestepError(
                f"{folder}: image {name} is {image.width}x{image.height}, its camera {camera.width}x{camera.height}"
            )
    check_capture_folder(folder)
    names = sorted(pictures)
    ordered = [pictures[name][1] for name in names]
    points = starting_points(ordered, photo or pictures[names[0]])
    with atomic_path(folder) as temporary:
        (temporary / "images").mkdir(parents=True)
        for name in names:
            pictures[name][0].convert("RGB").save(temporary / "images" / name)
        write_ply(temporary / POINTS, *points)
        write_transforms(temporary, ordered, names, POINTS)
        write_colmap(temporary, ordered, names, points)


def check_capture_folder(folder: Path) -> None:
    """Refuses a folder that `write_capture` would not replace, because something in it is not its own.

    Raises:
        SidestepError: if `folder` is a file, or holds anything that `write_capture` does not write.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise SidestepError(f"{folder}: is a file; choose another name for the folder")
    for path in sorted(folder.rglob("*")):
        if not path.is_dir() and not _OWN.fullmatch(path.relative_to(folder).as_posix()):
            raise SidestepError(
                f"{folder}: holds {path.relative_to(folder)}, which would be lost; choose another folder"
            )
