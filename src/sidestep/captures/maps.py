"""What may lie beside a photo: which of its pixels are the object, and how far away each one is.

<scene>/images/003.jpg
<scene>/masks/003.png     8 bits, above half: the object (also 003.jpg.png, as COLMAP and MVImgNet name masks)
<scene>/depths/003.png    16 bits, thousandths of the scene's unit along the optical axis (nerfstudio's); 0: unknown
                          (or 32-bit floats, in the scene's unit)

Maps that another format holds in other numbers are turned into these when they are read: `Alpha` here.
"""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sidestep.captures.folders import is_file
from sidestep.errors import SidestepError
from sidestep.files import atomic_path
from sidestep.images import Source, converted, is_transparent, open_image, upright

DEPTH_UNIT = 1e-3
_MASKS, _DEPTHS = ("masks", "mask"), ("depths", "depth")
MASK_SETS = ("masks", "mask", "MVImgNet_mask")  # of a whole set, beside its categories


class Maps:
    """The maps beside the photos of one scene's folder.

    Masks lie in its masks/ or mask/. MVImgNet's, which are distributed apart, may also lie as they are unpacked: in the
    scene's own folder (003.jpg.png), or under masks/<category>/<scene>/ beside the set's categories.
    """

    def __init__(self, scene: Path) -> None:
        scene = scene.absolute()
        apart = [scene.parents[1] / name / scene.parent.name / scene.name for name in MASK_SETS if len(scene.parts) > 2]
        self._scene = scene
        self._masks = [folder for folder in (*(scene / name for name in _MASKS), *apart) if folder.is_dir()]
        self._depths = [folder for folder in (scene / name for name in _DEPTHS) if folder.is_dir()]

    def mask(self, name: str) -> Path | None:
        """The mask of the photo images/`name`, or None."""
        own = self._scene / f"{name}.png"
        return _find(self._masks, name) or (own if is_file(own) else None)

    def depth(self, name: str) -> Path | None:
        """The depth map of the photo images/`name`, or None."""
        return _find(self._depths, name)


@dataclass(frozen=True)
class Alpha:
    """The mask that a photo's own transparency is, as the file of a mask (`images.Stored`)."""

    photo: Path

    @property
    def name(self) -> str:
        return f"{self.photo.stem}.png"

    def __str__(self) -> str:
        return str(self.photo)

    @classmethod
    def of(cls, photo: Path) -> "Alpha | None":
        """The mask of a photo that can be read, or None where it cannot be transparent."""
        if photo.suffix.lower() not in (".png", ".webp"):
            return None
        return cls(photo) if is_transparent(photo) else None

    def read_bytes(self) -> bytes:
        with open_image(self.photo) as image:
            mask = upright(image, converted(image, "RGBA", self.photo).getchannel("A"))
        file = io.BytesIO()
        mask.save(file, "PNG", compress_level=1)  # little, because it is not kept
        return file.getvalue()


def read_mask(source: Source) -> Tensor:
    """A mask's file as (H, W) bool, true on the object: where the picture is brighter than half.

    Raises:
        SidestepError: if the file is missing, damaged or no image.
    """
    with open_image(source) as image:
        return torch.from_numpy(np.array(converted(image, "L", source)) > 127)


def read_depth(source: Source) -> Tensor:
    """A depth map's file as (H, W) float32, in scene units along the optical axis; 0 where it is not known.

    Raises:
        SidestepError: if the file is missing, damaged or no greyscale image of 16 bits or of floats.
    """
    with open_image(source) as image:
        if image.mode == "F":
            depth = torch.from_numpy(np.array(image))
            return depth.where(depth.isfinite() & (depth > 0), 0.0)
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


def _find(folders: list[Path], name: str) -> Path | None:
    for folder in folders:
        for file in (Path(name).with_suffix(".png"), Path(f"{name}.png")):
            if is_file(folder / file):
                return folder / file
    return None
