"""What an evaluation has measured so far, batch by batch, so that one that was killed goes on where it was."""

import hashlib
import json
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from sidestep.captures.packed import Slice
from sidestep.checksums import bytes_of, read_tensors
from sidestep.evaluation.protocol import PairOfFrames, frame_beside
from sidestep.files import delete_folder, save_tensors, sweep, write_json
from sidestep.images import Stored

FOLDER = ".evaluation"


@dataclass
class Measured:
    """What a batch of pairs leaves behind.

    Attributes:
        values: row -> figure -> pair's position -> value.
        shares: pair's position -> part -> share of the target's picture.
        seconds: row -> seconds that its views took.
        not_finite: row -> views that hold NaN or infinity.
    """

    values: dict[str, dict[str, dict[int, float | None]]] = field(default_factory=dict)
    shares: dict[int, dict[str, float]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    not_finite: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def note(self, row: str, figure: str, values: Mapping[int, float | None]) -> None:
        """Keeps a row's values of a figure, by the pairs' positions."""
        self.values.setdefault(row, {}).setdefault(figure, {}).update(values)

    def add(self, other: "Measured") -> None:
        """Takes in what another batch has left."""
        for row, figures in other.values.items():
            for figure, values in figures.items():
                self.note(row, figure, values)
        self.shares |= other.shares
        for row, seconds in other.seconds.items():
            self.seconds[row] += seconds
        for row, lost in other.not_finite.items():
            self.not_finite[row] += lost


class Kept:
    """A folder with a file a batch, and the small pictures that the report may show.

    Attributes:
        pictures: where these lie.
    """

    def __init__(self, out: Path, made_of: str) -> None:
        """Takes up what lies in the folder `out`, if it was made of the same, and deletes anything else.

        Args:
            made_of: a digest of all that the evaluation depends on.
        """
        self.folder = out / FOLDER
        self.pictures = self.folder / "pictures"
        marker = self.folder / "made_of.json"
        self._made_of = made_of
        try:
            same = json.loads(marker.read_text(encoding="utf-8")) == made_of
        except (OSError, ValueError):
            same = False
        if not same and self.folder.exists():
            delete_folder(self.folder)
        self.pictures.mkdir(parents=True, exist_ok=True)
        sweep(self.folder)
        write_json(marker, made_of)

    def read(self, batch: int) -> tuple[Measured, dict[str, Tensor]] | None:
        """What a batch has left, and the features of its pictures; None if it is still to be measured."""
        path = self._path(batch)
        try:
            tensors, metadata = read_tensors(path)
            if metadata["made_of"] != self._made_of:
                return None
            told = json.loads(metadata["about"])
        except (SafetensorError, OSError, ValueError, TypeError, KeyError):
            return None
        measured = Measured(
            {
                row: {
                    figure: {int(position): value for position, value in values.items()}
                    for figure, values in figures.items()
                }
                for row, figures in told["values"].items()
            },
            {int(position): shares for position, shares in told["shares"].items()},
            told["seconds"],
            told["not_finite"],
        )
        return measured, {name: tensor.clone() for name, tensor in tensors.items()}

    def write(self, batch: int, measured: Measured, features: Mapping[str, Tensor]) -> None:
        """Keeps what a batch has left, whole or not at all.

        Raises:
            SidestepError: if it cannot be written.
        """
        save_tensors(self._path(batch), features, {"about": json.dumps(vars(measured)), "made_of": self._made_of})

    def clear(self) -> None:
        """Deletes all of it, once the report is there; killed in this, the same call begins anew."""
        delete_folder(self.folder)

    def _path(self, batch: int) -> Path:
        return self.folder / f"batch-{batch:05d}.safetensors"


def digest_of(networks: Iterable[torch.nn.Module], pairs: Iterable[PairOfFrames], settings: Any) -> str:
    """Names what an evaluation depends on: the networks' weights, the pairs' scenes, photos and maps, the settings."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for network in networks:
        for name, tensor in network.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(bytes_of(tensor))
    sums: dict[str, int] = {}
    scenes: set[str] = set()
    for pair in pairs:
        digest.update(f"{pair.scene.id}\0{pair.reference.name}\0{pair.target.name}\0".encode())
        if pair.scene.id not in scenes and pair.scene.points is not None:
            digest.update(bytes_of(pair.scene.points))
        scenes.add(pair.scene.id)
        for frame in (pair.reference, pair.target, frame_beside(pair)):
            if frame is None:
                continue
            for matrix in (frame.camera.intrinsics, frame.camera.world_to_camera):
                digest.update(bytes_of(matrix))
            for source in (frame.path, frame.mask, frame.depth):
                if source is None:
                    continue
                if str(source) not in sums:
                    sums[str(source)] = _sum_of(source)
                digest.update(f"{sums[str(source)]:08x}".encode())
    return digest.hexdigest()


def _sum_of(source: Path | Stored) -> int:
    # What lies in a pack was compared with its checksum when it was read; it may have to be fetched once more.
    if isinstance(source, Slice) and source.crc32 >= 0:
        return source.crc32
    return zlib.crc32(source.read_bytes())
