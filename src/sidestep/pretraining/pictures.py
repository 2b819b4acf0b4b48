"""The pictures that a prior is trained on: which there are, parts of them, and how they compare."""

from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sidestep.captures import Frame, read_captures
from sidestep.captures.packed import is_pack
from sidestep.captures.reading import claimed
from sidestep.captures.splits import Split, model_split
from sidestep.errors import SidestepError
from sidestep.images import SUFFIXES, load_image, resize_and_crop, to_tensor

Picture = Path | Frame
Pictures = dict[Split, list[Picture]]


def pictures_by_split(root: Path) -> Pictures:
    """The pictures below `root`, split by the model they show; loose pictures are split by their file name.

    Raises:
        SidestepError: if there are none to train on or none to validate with; or if there are captures that cannot be
            read, because as loose pictures one scene's would fall on all sides of the split.
    """
    result: Pictures = {"train": [], "val": [], "test": []}
    try:
        scenes = read_captures(root)
    except SidestepError as error:
        if is_pack(root):
            raise
        if not root.is_dir():
            raise SidestepError(f"{root}: no such folder of pictures or captures") from None
        folder = claimed(root)
        if folder is not None:
            raise SidestepError(
                f"{error} ({folder} looks like captures; where it holds loose pictures, give its folders other names)"
            ) from None
        for path in sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES):
            result[model_split(path.stem)].append(path)
    else:
        for scene in scenes:
            result[model_split(scene.model)].extend(scene.frames)
    for split in ("train", "val"):
        if not result[split]:
            raise SidestepError(f"{root}: no pictures in the {split} split; add more models or pictures")
    return result


def open_picture(picture: Picture) -> Image.Image:
    """The picture, upright, RGB and free of its lens's distortion, at its own size."""
    return load_image(picture) if isinstance(picture, Path) else picture.load()


def picture_name(picture: Picture) -> str:
    """Its file."""
    return str(picture if isinstance(picture, Path) else picture.path)


def load_picture(picture: Picture, size: int) -> Tensor:
    """The centre square of the picture, (3, size, size) in [-1, 1]."""
    return to_tensor(resize_and_crop(open_picture(picture), size))


def load_pictures(pictures: list[Picture], size: int) -> Tensor:
    """The centre squares of pictures, (B, 3, size, size) in [-1, 1]."""
    return torch.stack([load_picture(picture, size) for picture in pictures])


def square_part(image: Image.Image, share: float, down: float, across: float, size: int) -> Image.Image:
    """A square part of the image, `share` of its shorter side wide, scaled to `size` pixels.

    Args:
        down, across: where, from 0 for the upper left corner to 1 for the lower right.
    """
    side = share * min(image.size)
    # From a whole pixel on: a part that is not scaled is then not interpolated either.
    left, top = (
        min(int(place * (length - side + 1)), int(length - side))
        for place, length in ((across, image.width), (down, image.height))
    )
    return image.resize((size, size), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))


def sheet(rows: list[Tensor]) -> Tensor:
    """Batches of pictures (B, 3, H, W), each as a row, one below the other, as (3, ..., ...); short rows end white."""
    longest = max(len(images) for images in rows)
    padded = [F.pad(images.float().cpu(), (0, 0) * 3 + (0, longest - len(images)), value=1.0) for images in rows]
    return torch.cat([torch.cat(list(images), dim=-1) for images in padded], dim=1)


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture in dB, for values in [-1, 1]."""
    return 10 * torch.log10(4 / F.mse_loss(a, b, reduction="none").mean(dim=(1, 2, 3)).clamp(min=1e-10))
