"""A captured scene: photos of one thing, each with its camera."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sidestep.cameras import Camera
from sidestep.captures.lens import Array, Lens
from sidestep.captures.maps import read_depth, read_mask
from sidestep.errors import SidestepError
from sidestep.images import Stored, load_image, stored_size

MOST_FRAMES = 100_000  # of a scene


@dataclass(frozen=True)
class Frame:
    """One photo and the pinhole camera that takes what `load` returns.

    Attributes:
        name: the file's name in its scene, e.g. "003.jpg".
        path: the photo.
        camera: fits the upright, undistorted photo; world frame of the scene.
        lens: the lens whose distortion `load` takes out, or None where the photo has none.
        mask: the file that says which pixels are the object, or None.
        depth: the file that says how far away each pixel is, or None.
    """

    name: str
    path: Path | Stored
    camera: Camera
    lens: Lens | None = None
    mask: Path | Stored | None = None
    depth: Path | Stored | None = None

    def load(self) -> Image.Image:
        """The photo as RGB of `camera`'s size: upright, and free of the lens's distortion.

        Raises:
            SidestepError: if the photo cannot be read, or has changed its size since the scene was read.
        """
        photo = load_image(self.path)
        if photo.size != (self.camera.width, self.camera.height):
            raise SidestepError(
                f"{self.path}: {photo.width}x{photo.height} pixels, but its camera is for "
                f"{self.camera.width}x{self.camera.height}; read the scene again"
            )
        if self.lens is None:
            return photo
        return self.lens.undistort(photo, self.camera.intrinsics.double().numpy())

    def load_mask(self) -> Tensor | None:
        """Which pixels of `load` are the object, (H, W) bool; None where the scene has no mask of the photo.

        Raises:
            SidestepError: if the mask cannot be read, or has another shape than the photo.
        """
        return None if self.mask is None else self._fitted(read_mask(self.mask), self.mask) > 0.5

    def load_depth(self) -> Tensor | None:
        """How far away along the optical axis the pixels of `load` are, (H, W) float32 in the units of the scene.

        0 where that is not known; None where the scene has no depth map of the photo.

        Raises:
            SidestepError: if the map cannot be read, or has another shape than the photo.
        """
        return None if self.depth is None else self._fitted(read_depth(self.depth), self.depth)

    def _fitted(self, values: Tensor, source: Path | Stored) -> Tensor:
        """A map (H, W) of the photo as `load` returns it, as float32; its nearest pixels where its size is another."""
        size = self.camera.width, self.camera.height
        values = values.float()
        if not _same_shape(values.shape[::-1], size):
            values = _upright(values, stored_size(self.path)[2])
        if values.shape != size[::-1]:
            if not _same_shape(values.shape[::-1], size):
                raise SidestepError(
                    f"{source}: {values.shape[1]}x{values.shape[0]} pixels, but its photo has {size[0]}x{size[1]}"
                )
            values = torch.nn.functional.interpolate(values[None, None], size[::-1], mode="nearest-exact")[0, 0]
        if self.lens is None:
            return values
        return self.lens.resample(values[None], self.camera.intrinsics.double().numpy(), "nearest")[0]


@dataclass(frozen=True)
class Scene:
    """Photos of one scene.

    Attributes:
        name: the scene's folder.
        category: the category's folder, or None where the layout has none.
        frames: in the order of their times or numbers where the format has any, and sorted by name where not.
        points: (N, 3) float32 surface points in the scene's world frame, or None.
        missing: names of photos that the scene's model lists but that are not there.
    """

    name: str
    category: str | None
    frames: tuple[Frame, ...]
    points: Tensor | None = None
    missing: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """Names the scene uniquely in its set: "category/name", or "name" without a category."""
        return f"{self.category}/{self.name}" if self.category else self.name

    @property
    def model(self) -> str:
        """The thing in the scene (`model_name`); scenes of one model must fall in one split."""
        return model_name(self.name)


def model_name(scene: str) -> str:
    """A scene's name or id without a trailing variant "s1", "s2", ... after a digit: what the scene shows."""
    return re.sub(r"(?<=\d)s\d+$", "", scene)


def make_frame(
    name: str,
    path: Path,
    lens: Lens,
    world_to_camera: Array,
    source: Path,
    mask: Path | Stored | None = None,
    depth: Path | Stored | None = None,
) -> Frame:
    """The frame of a photo that `source`, a scene's model file, describes by a lens and a pose.

    The model may have been computed on the pixels as stored or as displayed (EXIF orientation), or on the same photo
    at another size; the camera is turned and resized along. Where turning by EXIF keeps the size (upside down, or a
    square photo), the model is taken to fit the photo as displayed.

    Args:
        lens: intrinsics, distortion and size as in the model.
        world_to_camera: (4, 4), OpenCV axes.
        mask, depth: maps of the photo as displayed, or as stored where that is of another shape, with its distortion.

    Raises:
        SidestepError: if the photo is not readable, its shape is not the model's, or the pose is not a rigid motion.
    """
    width, height, orientation = stored_size(path)
    shown = (height, width) if orientation >= 5 else (width, height)
    exact = [(lens.width, lens.height) == size for size in (shown, (width, height))]
    alike = [_same_shape((lens.width, lens.height), size) for size in (shown, (width, height))]
    if not any(exact) and not any(alike):
        raise SidestepError(
            f"{path}: {shown[0]}x{shown[1]} pixels, but {source} describes a camera of {lens.width}x{lens.height}, "
            "another shape; give the photos that the model was computed from"
        )
    turn = exact[1] and not exact[0] if any(exact) else not alike[0]
    if turn:
        if orientation not in (6, 8):
            raise SidestepError(
                f"{path}: its EXIF orientation {orientation} mirrors the photo, which no camera does; save it upright"
            )
        clockwise = orientation == 6
        lens = lens.turned(clockwise)
        x_axis = (0.0, -1.0, 0.0, 0.0) if clockwise else (0.0, 1.0, 0.0, 0.0)
        y_axis = (1.0, 0.0, 0.0, 0.0) if clockwise else (-1.0, 0.0, 0.0, 0.0)
        turned = np.array((x_axis, y_axis, (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0)))
        world_to_camera = turned @ world_to_camera
    lens = lens.resized(*shown)
    try:
        intrinsics = torch.from_numpy(lens.pinhole_intrinsics()).float()
        camera = Camera(intrinsics, torch.from_numpy(world_to_camera).float(), *shown)
    except SidestepError as error:
        raise SidestepError(f"{source}: frame {name}: {error}") from None
    return Frame(name, path, camera, lens if lens.distorts else None, mask, depth)


def _upright(values: Tensor, orientation: int) -> Tensor:
    """A map (H, W) of a photo as it is stored, turned by the photo's EXIF orientation where this swaps its sides."""
    turned = {5: (values.mT, 0), 6: (values, -1), 7: (values.mT, 2), 8: (values, 1)}
    picture, quarters = turned.get(orientation, (values, 0))
    return picture.rot90(quarters)


def _same_shape(model: Sequence[int], size: tuple[int, int]) -> bool:
    """Whether a size (width, height) is another one scaled, up to rounding to whole pixels."""
    return abs(model[0] * size[1] / model[1] - size[0]) <= max(1.0, size[0] / model[0])
