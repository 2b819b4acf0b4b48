"""Lens distortion (Brown-Conrady, COLMAP's and OpenCV's), and how to take it out of a photo."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sidestep.errors import SidestepError

Array = NDArray[np.float64]
SIDE_LIMIT = 2**24  # pixels; readers refuse pictures of longer sides
DISTORTION = ("k1", "k2", "k3", "p1", "p2")
_STRIP = 2**20  # pixels resampled at a time; all of a large photo's at once would take 10 GB


@dataclass(frozen=True)
class Lens:
    """What a real lens does to a picture: a pinhole's image plane, bent.

    A point at (x, y) of the plane z = 1 falls on intrinsics @ (x_d, y_d, 1) with, r2 = x^2 + y^2,

        x_d = x (1 + k1 r2 + k2 r2^2 + k3 r2^3) + 2 p1 x y + p2 (r2 + 2 x^2)
        y_d = y (1 + k1 r2 + k2 r2^2 + k3 r2^3) + 2 p2 x y + p1 (r2 + 2 y^2)

    Attributes:
        intrinsics: (3, 3), pixels, pixel centres at +0.5.
        width, height: the distorted photo's size in pixels.
    """

    intrinsics: Array
    width: int
    height: int
    k1: float = 0.0
    k2: float = 0.0
    k3: float = 0.0
    p1: float = 0.0
    p2: float = 0.0

    @property
    def distortion(self) -> dict[str, float]:
        """The coefficients by their names, in the order of DISTORTION."""
        return {name: getattr(self, name) for name in DISTORTION}

    @property
    def distorts(self) -> bool:
        return any(self.distortion.values())

    def distort(self, plane: Array) -> Array:
        """Points (..., 2) of the plane z = 1 -> (..., 2) of the bent plane."""
        x, y = plane[..., 0], plane[..., 1]
        r2 = x * x + y * y
        radial = 1.0 + r2 * (self.k1 + r2 * (self.k2 + r2 * self.k3))
        return np.stack(
            (
                x * radial + 2.0 * self.p1 * x * y + self.p2 * (r2 + 2.0 * x * x),
                y * radial + 2.0 * self.p2 * x * y + self.p1 * (r2 + 2.0 * y * y),
            ),
            axis=-1,
        )

    def source_pixels(self, intrinsics: Array, pixels: Array) -> Array:
        """Where the photo (this lens) holds what a pinhole of `intrinsics` sees at `pixels` (..., 2)."""
        plane = (pixels - intrinsics[:2, 2]) / intrinsics.diagonal()[:2]
        return self.distort(plane) * self.intrinsics.diagonal()[:2] + self.intrinsics[:2, 2]

    def pinhole_intrinsics(self) -> Array:
        """(3, 3) of the widest pinhole camera of the photo's size, no wider than the lens, that the photo fills.

        Its focal lengths are those of the lens, or longer where the unbent photo would have empty borders.

        Raises:
            SidestepError: if the coefficients fold the picture or leave less than half of it.
        """
        if not self.distorts or self._filled(1.0):
            return self.intrinsics
        low, high = 1.0, 2.0
        if not self._filled(high):
            raise SidestepError(
                f"lens distortion {' '.join(f'{name}={value:g}' for name, value in self.distortion.items())} "
                "folds the picture over itself; calibrate the camera again"
            )
        for _ in range(20):
            middle = (low + high) / 2.0
            low, high = (low, middle) if self._filled(middle) else (middle, high)
        return self._zoomed(high)

    def undistort(self, photo: Image.Image, intrinsics: Array) -> Image.Image:
        """The photo as a pinhole camera of `intrinsics` (and the photo's size) takes it; bicubic."""
        pixels = torch.from_numpy(np.ascontiguousarray(np.asarray(photo).transpose(2, 0, 1), dtype=np.float32))
        strips = self._strips(pixels, intrinsics, "bicubic")
        sampled = torch.cat([strip.clamp(0.0, 255.0).round().to(torch.uint8) for strip in strips], dim=1)
        return Image.fromarray(sampled.permute(1, 2, 0).numpy().copy())

    def resample(self, pixels: Tensor, intrinsics: Array, mode: Literal["bicubic", "nearest"]) -> Tensor:
        """What the lens saw at each pixel of a pinhole camera of `intrinsics`: (C, H, W) float32 -> (C, H, W)."""
        return torch.cat(list(self._strips(pixels, intrinsics, mode)), dim=1)

    def _strips(self, pixels: Tensor, intrinsics: Array, mode: Literal["bicubic", "nearest"]) -> Iterator[Tensor]:
        """`resample`, some rows at a time, from the top: (C, h, W) each."""
        height = max(1, _STRIP // self.width)
        for top in range(0, self.height, height):
            rows, cols = np.mgrid[top : min(top + height, self.height), : self.width] + 0.5
            source = self.source_pixels(intrinsics, np.stack((cols, rows), axis=-1))
            # grid_sample without align_corners puts -1 and 1 at the picture's edges: pixel centres at +0.5, as here.
            grid = torch.from_numpy((2.0 * source / (self.width, self.height) - 1.0).astype(np.float32))[None]
            sampled = torch.nn.functional.grid_sample(
                pixels[None], grid, mode, padding_mode="border", align_corners=False
            )
            yield sampled[0]

    def resized(self, width: int, height: int) -> "Lens":
        """The lens of the same photo at another size in pixels."""
        scale = np.diag((width / self.width, height / self.height, 1.0))
        return replace(self, intrinsics=scale @ self.intrinsics, width=width, height=height)

    def turned(self, clockwise: bool) -> "Lens":
        """The lens of the photo turned by a quarter."""
        (fx, fy), (cx, cy) = self.intrinsics.diagonal()[:2], self.intrinsics[:2, 2]
        centre = (self.height - cy, cx) if clockwise else (cy, self.width - cx)
        # (p2, p1) is a vector of the picture's plane: the tangential part is r2 (p2, p1) + 2 ((p2, p1) . x) x.
        p2, p1 = (-self.p1, self.p2) if clockwise else (self.p1, -self.p2)
        intrinsics = np.array(((fy, 0.0, centre[0]), (0.0, fx, centre[1]), (0.0, 0.0, 1.0)))
        return replace(self, intrinsics=intrinsics, width=self.height, height=self.width, p1=p1, p2=p2)

    def _zoomed(self, zoom: float) -> Array:
        return self.intrinsics * np.array(((zoom, 1.0, 1.0), (1.0, zoom, 1.0), (1.0, 1.0, 1.0)))

    def _filled(self, zoom: float) -> bool:
        """Whether the photo covers the whole pinhole picture, and is nowhere folded in it (positive Jacobian)."""
        with np.errstate(over="ignore", invalid="ignore"):  # coefficients that no lens has; what comes out is refused
            cols, rows = np.meshgrid(np.linspace(0, self.width, 33), np.linspace(0, self.height, 33))
            pixels = np.stack((cols, rows), axis=-1)
            intrinsics = self._zoomed(zoom)
            source = self.source_pixels(intrinsics, pixels)
            inside = bool(((source >= 0.0) & (source <= (self.width, self.height))).all())
            step = 1e-3
            along_x = self.source_pixels(intrinsics, pixels + np.array((step, 0.0))) - source
            along_y = self.source_pixels(intrinsics, pixels + np.array((0.0, step))) - source
            jacobian = along_x[..., 0] * along_y[..., 1] - along_x[..., 1] * along_y[..., 0]
            return inside and bool((jacobian > 0.0).all())
