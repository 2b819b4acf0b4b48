"""What may lie beside a photo: which of its pixels are the object, and how far away each one is.

<scene>/images/003.jpg
<scene>/masks/003.png     8 bits, above half: the object (also 003.jpg.png, as COLMAP and MVImgNet name masks)
<scene>/depths/003.png    16 bits, thousandths of the scene's unit along the optical axis (nerfstudio's); 0: unknown
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sidestep.errors import SidestepError
from sidestep.files import atomic_path
from sidestep.images import Source, open_image

DEPTH_UNIT = 1e-3
_MASKS, _DEPTHS = ("masks", "mask"), ("depths", "depth")


def find_mask(scene: Path, name: str) -> Path | None:
    """The mask of the photo images/`name` of a scene's folder, or None."""
    return _find(scene, _MASKS, name)


def find_depth(scene: Path, name: str) -> Path | None:
    """The depth map of the photo images/`name` of a scene's folder, or None."""
    return _find(scene, _DEPTHS, name)


def read_mask(source: Source) -> Tensor:
    """A mask's file as (H, W) bool, true on the object: where the picture is brighter than half.

    Raises:
        SidestepError: if the file is missing, damaged or no image.
    """
    with open_image(source) as image:
        return torch.from_numpy(np.array(image.convert("L")) > 127)


def read_depth(source: Source) -> Tensor:
    """A depth map's file as (H, W) float32, in scene units along the optical axis; 0 where it is not known.

    Raises:
        SidestepError: if the file is missing, damaged or no greyscale image of 16 bits.
    """
    with open_image(source) as image:
        if image.mode not in ("I;16", "I;16B", "I;16L", "I"):
            raise SidestepError(f"{source}: pixel format {image.mode!r}; a depth map is a greyscale PNG of 16 bits")
        return torch.from_numpy(np.array(image, dtype=np.float32) * np.float32(DEPTH_UNIT))


def write_depth(path: Path, depth: Tensor) -> None:
    """Writes a depth map (H, W); what is not finite, not positive or above 65.535 units is written as unknown."""
    thousandths = (depth.double().cpu() / DEPTH_UNIT).round()
    known = thousandths.isfinite() & (thousandths > 0) & (thousandths < 2**16)
    with atomic_path(path) as temporary:
        Image.fromarray(thousandths.where(known, 0.0).numpy().astype(np.uint16)).save(temporary)


def write_mask(path: Path, mask: Tensor) -> None:
    """Writes a mask (H, W) bool: white on the object."""
    with atomic_path(path) as temporary:
        Image.fromarray(mask.cpu().numpy().astype(np.uint8) * 255).save(temporary)


def _find(scene: Path, folders: tuple[str, ...], name: str) -> Path | None:
    for folder in folders:
        for file in (Path(name).with_suffix(".png"), Path(f"{name}.png")):
            if (scene / folder / file).is_file():
                return scene / folder / file
    return None
