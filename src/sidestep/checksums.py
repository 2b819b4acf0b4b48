"""Checksums by which a file of tensors shows that it holds what was written; the format itself sees only its length.

`files.save_tensors` adds them as tensors, so that the file stays one that any program reads:

    sha256        (32,) uint8   of the names, shapes and numbers of all other tensors, and of the metadata
    crc32/NAME    (N,) int64    of the rows of a tensor NAME that is read here and there and is too large to be read
                                whole when the file is opened; sha256 then covers these in place of the rows

A file without them, of an earlier version or of another program, is taken as it is.
"""

import hashlib
import json
import zlib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

DIGEST = "sha256"
ROWS = "crc32/"


def with_checksums(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], by_row: Collection[str] = ()
) -> dict[str, Tensor]:
    """The tensors, which have to be on the CPU, with their checksums.

    Args:
        metadata: of the file.
        by_row: the tensors whose rows (along the first axis) are checked one by one.
    """
    result = dict(tensors)
    for name in by_row:
        result[ROWS + name] = torch.tensor([zlib.crc32(row) for row in _rows(tensors[name])], dtype=torch.int64)
    result[DIGEST] = torch.frombuffer(bytearray(_digest(result, metadata)), dtype=torch.uint8)
    return result


def damaged_row(tensors: Mapping[str, Tensor], name: str, places: Iterable[int]) -> int | None:
    """The first of some rows of a tensor that is not what was written; None where all are, or have no checksums."""
    if ROWS + name not in tensors:
        return None
    rows, sums = _rows(tensors[name]), tensors[ROWS + name].numpy()
    return next((place for place in places if zlib.crc32(rows[place]) != sums[place]), None)


def are_intact(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bool:
    """Whether all tensors of a file are what was written, but for rows that have checksums of their own."""
    for name, sums in tensors.items():
        rows = tensors.get(name.removeprefix(ROWS)) if name.startswith(ROWS) else None
        if rows is not None and (rows.ndim < 2 or sums.dtype != torch.int64 or sums.shape != rows.shape[:1]):
            return False
    found = tensors.get(DIGEST)
    if found is None:
        return True
    return found.dtype == torch.uint8 and found.shape == (32,) and bytes(found.tolist()) == _digest(tensors, metadata)


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a file but its checksums, and its metadata, compared with these.

    Raises:
        SafetensorError, OSError: if it cannot be read.
        ValueError: if it is not what was written.
    """
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dictionary)
        metadata = file.metadata() or {}
    if not are_intact(tensors, metadata):
        raise ValueError("it is not what was written")
    return {name: tensors[name] for name in without_checksums(tensors)}, metadata


def without_checksums(names: Collection[str]) -> set[str]:
    """The names of a file's tensors that are no checksums."""
    return {name for name in names if name != DIGEST and not name.startswith(ROWS)}


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    digest = hashlib.sha256(json.dumps(dict(metadata), sort_keys=True).encode())
    for name in sorted(tensors.keys() - {DIGEST}):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if ROWS + name not in tensors:
            digest.update(bytes_of(tensor))
    return digest.digest()


def _rows(tensor: Tensor) -> Any:
    """Its rows' bytes: a tensor that is mapped into memory is read where it is looked at."""
    return tensor.contiguous().flatten(1).view(torch.uint8).numpy()


def bytes_of(tensor: Tensor) -> Any:
    """A tensor's bytes, on the CPU, not copied where they lie in a row there."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
