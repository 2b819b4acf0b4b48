"""Another program's pictures as a row of the table."""

import re
import zlib
from pathlib import Path

import torch
from torch import Tensor

from sidestep.errors import SidestepError
from sidestep.images import SUFFIXES, load_image, resize_and_crop, to_tensor


class Predictions:
    """A folder with one picture a pair: 00000.png for the first pair of the list, 00001.png, and so on.

    Pictures of another size are scaled and cropped like photos. Pairs without a picture are left out of the row.
    """

    def __init__(self, name: str, folder: Path, count: int) -> None:
        """Args:
            name: of the row: letters, digits, "-", "_" and ".".
            count: pairs in the list.

        Raises:
            SidestepError: if the name is none, the folder is missing, or it holds no picture of the list's pairs,
                or one that cannot be read.
        """
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise SidestepError(f"predictions {name!r}: name a row by letters, digits, '-', '_' and '.'")
        if not folder.is_dir():
            raise SidestepError(f"{folder}: no such folder of predictions")
        self.name, self.folder = name, folder
        found = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES}
        self._paths = {i: found[f"{i:05d}"] for i in range(count) if f"{i:05d}" in found}
        if not self._paths:
            raise SidestepError(
                f"{folder}: no picture for any of the {count} pairs; name them 00000.png, 00001.png, ... in the "
                "order of pairs.json"
            )
        for path in self._paths.values():  # now, and not after hours
            load_image(path)

    def has(self, position: int) -> bool:
        """Whether there is a picture for the pair at this position."""
        return position in self._paths

    def checksum(self) -> tuple[str, dict[int, int]]:
        """The row's name, and of each pair's picture the CRC-32 of its file."""
        return self.name, {position: zlib.crc32(path.read_bytes()) for position, path in self._paths.items()}

    def load(self, positions: list[int], size: int) -> Tensor:
        """Their pictures, (N, 3, size, size) in [-1, 1]."""
        pictures = [resize_and_crop(load_image(self._paths[position]), size) for position in positions]
        return torch.stack([to_tensor(picture) for picture in pictures])
