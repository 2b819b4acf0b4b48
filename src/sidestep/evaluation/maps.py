"""A pair's depth maps and mask, as large as the pictures that are compared."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sidestep.captures import Frame
from sidestep.evaluation.depth import unseen
from sidestep.evaluation.protocol import PairOfFrames
from sidestep.evaluation.results import PARTS
from sidestep.images import resize_and_crop

LEAST_SHARE = 0.01  # of the picture; of a smaller part a figure would say little


@dataclass(frozen=True)
class PairMaps:
    """What a set tells of a pair besides its photos; each (S, S), or None where the set has no such map.

    Attributes:
        reference_depth, target_depth: along the optical axis, in the scene's unit; 0 where it is not known.
        parts: the `PARTS` of the target, bool.
    """

    reference_depth: Tensor | None
    target_depth: Tensor | None
    parts: dict[str, Tensor]

    @classmethod
    def load(cls, pair: PairOfFrames, size: int) -> "PairMaps":
        """Reads the maps of a pair, and finds what its reference could not see.

        Raises:
            SidestepError: if a map cannot be read or does not fit its photo.
        """
        reference, target = load_depth(pair.reference, size), load_depth(pair.target, size)
        parts = {}
        mask = load_mask(pair.target, size)
        if mask is not None:
            parts["object"] = mask
        if reference is not None and target is not None:
            cameras = (frame.camera.resize_and_crop(size) for frame in (pair.reference, pair.target))
            parts["unseen"] = unseen(reference, target, *cameras)
        return cls(reference, target, parts)

    @property
    def shares(self) -> dict[str, float]:
        """How much of the target's picture each part is, from 0 to 1."""
        return {name: float(part.float().mean()) for name, part in self.parts.items()}


def measured_parts(pairs: Sequence[PairMaps]) -> dict[str, Tensor]:
    """The parts of some targets, (B, S, S) bool each; empty for a target that has none, or too small a one."""
    batched = {}
    for name in PARTS:
        known = [pair.parts.get(name) for pair in pairs]
        like = next((part for part in known if part is not None), None)
        if like is None:
            continue
        none = torch.zeros_like(like)
        large = [none if part is None or part.float().mean() < LEAST_SHARE else part for part in known]
        batched[name] = torch.stack(large)
    return batched


def load_depth(frame: Frame, size: int) -> Tensor | None:
    """A photo's depth map, (size, size), cropped and scaled as the photo is; None where it has none.

    A value is that of the nearest pixel: between two surfaces there is none.

    Raises:
        SidestepError: if the map cannot be read or does not fit its photo.
    """
    depth = frame.load_depth()
    return None if depth is None else _resized(Image.fromarray(depth.numpy()), size)


def load_mask(frame: Frame, size: int) -> Tensor | None:
    """A photo's mask, (size, size) bool, likewise."""
    mask = frame.load_mask()
    return None if mask is None else _resized(Image.fromarray(mask.numpy().astype(np.float32)), size) > 0.5


def _resized(values: Image.Image, size: int) -> Tensor:
    return torch.from_numpy(np.array(resize_and_crop(values, size, Image.Resampling.NEAREST)))
