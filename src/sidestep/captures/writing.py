"""Views and their cameras as a captured scene, which nerfstudio, gsplat and COLMAP take as it is."""

from pathlib import Path

from PIL import Image

from sidestep.cameras import Camera
from sidestep.captures.colmap import write_colmap
from sidestep.captures.transforms import write_transforms
from sidestep.errors import SidestepError
from sidestep.files import atomic_path


def write_capture(folder: str | Path, images: list[Image.Image], cameras: list[Camera]) -> None:
    """Writes images/000.png, ..., transforms.json and a COLMAP text model in sparse/0, all of it or nothing.

    Args:
        folder: the scene's folder; replaced if it is an older capture.
        images: RGB.
        cameras: one an image, of its size, not batched.

    Raises:
        SidestepError: if numbers or sizes differ, or `folder` exists and is no capture.
    """
    folder = Path(folder)
    if not images or len(images) != len(cameras):
        raise SidestepError(f"{folder}: {len(images)} images for {len(cameras)} cameras; give one camera an image")
    for index, (image, camera) in enumerate(zip(images, cameras, strict=True)):
        if image.size != (camera.width, camera.height):
            raise SidestepError(
                f"{folder}: image {index} is {image.width}x{image.height}, its camera {camera.width}x{camera.height}"
            )
    check_capture_folder(folder)
    names = [f"{index:03d}.png" for index in range(len(images))]
    with atomic_path(folder) as temporary:
        (temporary / "images").mkdir(parents=True)
        for image, name in zip(images, names, strict=True):
            image.convert("RGB").save(temporary / "images" / name)
        write_transforms(temporary, cameras, names)
        write_colmap(temporary, cameras, names)


def check_capture_folder(folder: Path) -> None:
    """Refuses a folder that `write_capture` would not replace: one that holds something else than a capture.

    Raises:
        SidestepError: if `folder` is a file, or is neither empty nor a capture.
    """
    if folder.exists() and not (
        folder.is_dir() and ((folder / "transforms.json").is_file() or not any(folder.iterdir()))
    ):
        raise SidestepError(f"{folder}: exists and is not a capture (no transforms.json); choose another folder")
