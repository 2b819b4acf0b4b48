"""PLY files of points: read, and written."""

import io
import itertools
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sidestep.captures.lens import Array
from sidestep.errors import SidestepError
from sidestep.files import atomic_path
from sidestep.inputs import read_bytes

Colours = npt.NDArray[np.uint8]
_TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2",
    "uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4", "float": "f4", "float32": "f4",
    "double": "f8", "float64": "f8",
}  # fmt: skip
_ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">", "ascii": "="}
_MOST_HEADER = 2**16  # bytes
_MOST_BYTES = 512 * 2**20  # of a file; 20 million points with colours take 300 MB


def read_ply(path: Path, most: int) -> Tensor:
    """The vertices of a PLY, (N, 3) float32, evenly thinned to `most`; what is not finite is left out.

    Raises:
        SidestepError: if the file is no PLY, is cut short, or does not begin with vertices that have x, y and z.
    """
    data = read_bytes(path, _MOST_BYTES)
    end = data.find(b"end_header", 0, _MOST_HEADER)
    start = data.find(b"\n", end) + 1
    lines = [line.split() for line in data[: max(end, 0)].decode("ascii", errors="replace").splitlines()]
    try:
        order = next(_ORDERS[line[1]] for line in lines if line[:1] == ["format"])
        elements = [index for index, line in enumerate(lines) if line[:1] == ["element"]]
        name, count = lines[elements[0]][1], int(lines[elements[0]][2])
        stop = elements[1] if len(elements) > 1 else len(lines)
        properties = [line for line in lines[elements[0] + 1 : stop] if line[:1] == ["property"]]
        row = np.dtype([(field, order + _TYPES[kind]) for _, kind, field in properties])
        if lines[0] != ["ply"] or name != "vertex" or not {"x", "y", "z"} <= set(row.names or ()) or start == 0:
            raise ValueError
    except (StopIteration, IndexError, KeyError, ValueError, TypeError):
        raise SidestepError(f"{path}: not a PLY that begins with vertices of x, y and z; export it again") from None
    # The shortest row of text is a digit and a space or newline a number; the last newline may be left out.
    smallest, spare = (2 * len(properties), 1) if order == "=" else (row.itemsize, 0)
    if not 0 <= count * smallest <= len(data) - start + spare:
        raise SidestepError(f"{path}: cut short or damaged: {count} vertices do not fit in it; export it again")
    step = max(1, -(-count // most))
    if order == "=":
        points = _text_points(path, data[start:], row, count, step)
    else:
        table = np.frombuffer(data, row, count, start)[::step]
        points = np.stack([table[axis].astype(np.float64) for axis in "xyz"], axis=1)
    with np.errstate(over="ignore"):  # what is too large for float32 is left out, too
        single = points.astype(np.float32)
    return torch.from_numpy(single[np.isfinite(single).all(axis=1)])


def write_ply(path: str | Path, points: Array, colours: Colours) -> None:
    """Writes points (N, 3) and their colours (N, 3) as an ASCII PLY, which nerfstudio's splatfacto starts from."""
    header = ["ply", "format ascii 1.0", f"element vertex {len(points)}"]
    header += [f"property double {axis}" for axis in "xyz"]
    header += [f"property uchar {channel}" for channel in ("red", "green", "blue")]
    lines = (
        " ".join([*(f"{value:.12g}" for value in point), *map(str, colour)])
        for point, colour in zip(points, colours.tolist(), strict=True)
    )
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join([*header, "end_header", *lines]) + "\n", encoding="ascii")


def _text_points(path: Path, body: bytes, row: np.dtype[np.void], count: int, step: int) -> Array:
    """Every `step`th of `count` rows of numbers; the others are passed over unread."""
    columns = [list(row.names or ()).index(axis) for axis in "xyz"]
    lines = itertools.islice(io.BytesIO(body), 0, count, step)
    try:
        points = np.array([[float(line.split()[column]) for column in columns] for line in lines], dtype=np.float64)
    except (ValueError, IndexError):
        raise SidestepError(f"{path}: a vertex is no row of numbers; export it again") from None
    if len(points) < -(-count // step):
        raise SidestepError(f"{path}: cut short: {len(points)} of {count} vertices; export it again")
    return points.reshape(-1, 3)
