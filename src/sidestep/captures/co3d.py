"""CO3D, version 1 and 2: <category>/<sequence>/images/*.jpg, described in <category>/frame_annotations.jgz.

Its cameras are PyTorch3D's: row vectors, X_camera = X_world R + T, with x left and y up, and focal lengths and
principal points in normalised device coordinates, whose x and y grow to the left and up from the picture's middle. They
are turned into this package's convention here and nowhere else.
"""

import gzip
import io
import json
import math
import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from sidestep.captures.folders import Finder, within
from sidestep.captures.lens import SIDE_LIMIT, Array, Lens
from sidestep.captures.ply import read_ply
from sidestep.captures.poses import rigid
from sidestep.captures.scene import Scene, make_frame
from sidestep.errors import SidestepError
from sidestep.images import converted, open_image
from sidestep.inputs import open_file

ANNOTATIONS = "frame_annotations.jgz"
_CHUNK = 2**18  # characters read at a time
_MOST_ENTRY = 2**20  # characters of one frame's entry; they take about a thousand
_MOST_CHARACTERS = 2 * 2**30  # of a whole file, unpacked; the largest category has some hundred million
_MOST_TIMES = 100  # as many characters, unpacked, as the file has bytes; numbers give about ten
_BETWEEN = re.compile(r"[ \t\r\n,]*")
_MOST_POINTS = 20_000
_FLIP = np.diag((-1.0, -1.0, 1.0))  # PyTorch3D's camera axes <-> OpenCV's


def is_sequence(folder: Path) -> bool:
    """Whether a folder is one of CO3D's sequences."""
    return (folder / "images").is_dir() and (folder.parent / ANNOTATIONS).is_file()


def read_co3d(folder: Path, category: str | None = None) -> Scene:
    """The scene of a sequence's folder, with its masks, depth maps and points where they are there.

    Frames come in the order of their frame numbers. Those without a viewpoint are left out. Of pointcloud.ply at most
    20,000 points are kept, evenly. Sequences of one category that are read one after another share one reading of its
    annotations.

    Args:
        category: the name of the folder that the sequence is in, if left out.

    Raises:
        SidestepError: naming the file and the frame, if the annotations are damaged, do not have the sequence, or none
            of its photos are there.
    """
    folder = folder.absolute()
    path = folder.parent / ANNOTATIONS
    stamp = path.stat()
    sequences = _sequences(path, stamp.st_mtime_ns, stamp.st_size)
    if isinstance(sequences, str):
        raise SidestepError(sequences)
    entries = sequences.get(folder.name)
    if entries is None:
        raise SidestepError(f"{path}: has no frame of the sequence {folder.name}; download the category's whole file")
    shots = sorted((_Shot.of(path, json.loads(entry)) for entry in entries), key=lambda shot: shot.number)
    finder = Finder()
    frames, missing = {}, []
    for shot in shots:
        if shot.viewpoint is None:
            continue
        photo = finder.find(folder, shot.photo)
        if photo is None:
            missing.append(shot.name)
            continue
        if shot.name in frames:
            raise SidestepError(f"{path}: frame {folder.name}/{shot.name} is listed twice; keep one of the entries")
        lens, pose = shot.camera(path, shot.viewpoint)
        mask = finder.find(folder, shot.mask) if shot.mask else None
        depth_file = finder.find(folder, shot.depth) if shot.depth else None
        depth = HalfDepth(depth_file, shot.depth_scale, finder.find(folder, shot.depth_mask)) if depth_file else None
        frames[shot.name] = make_frame(shot.name, photo, lens, pose, path, mask, depth)
    if not frames:
        raise SidestepError(f"{path}: none of the {len(missing)} photos of {folder.name} with a viewpoint are there")
    cloud = folder / "pointcloud.ply"
    points = read_ply(cloud, _MOST_POINTS) if cloud.is_file() else None
    return Scene(folder.name, category or folder.parent.name, tuple(frames.values()), points, tuple(missing))


@dataclass(frozen=True)
class HalfDepth:
    """A depth map of CO3D as the file of one of ours (`images.Stored`).

    CO3D's is a PNG whose 16 bits are those of a half-precision float, to be multiplied by the frame's scale; a mask of
    its own says where it can be trusted. Ours here holds 32-bit floats, 0 where the depth is not known.
    """

    path: Path
    scale: float
    mask: Path | None

    @property
    def name(self) -> str:
        return f"{self.path.stem}.tiff"

    def __str__(self) -> str:
        return str(self.path)

    def read_bytes(self) -> bytes:
        with open_image(self.path) as image:
            if image.mode not in ("I;16", "I"):
                raise SidestepError(f"{self.path}: pixel format {image.mode!r}; CO3D's depth maps are PNGs of 16 bits")
            depth = np.array(image).astype(np.uint16).view(np.float16).astype(np.float32) * np.float32(self.scale)
        depth[~(np.isfinite(depth) & (depth > 0))] = 0.0
        if self.mask is not None:
            with open_image(self.mask) as image:
                if image.size != depth.shape[::-1]:
                    raise SidestepError(f"{self.mask}: {image.width}x{image.height} pixels, unlike {self.path}")
                depth[np.array(converted(image, "L", self.mask)) == 0] = 0.0
        file = io.BytesIO()
        Image.fromarray(depth).save(file, "TIFF", compression="tiff_deflate")  # it may be kept, in a pack
        return file.getvalue()


@dataclass(frozen=True)
class _Shot:
    """One frame's entry; paths are relative to the sequence's folder."""

    number: int
    photo: str
    size: tuple[int, int]  # width, height
    viewpoint: dict[str, Any] | None
    mask: str
    depth: str
    depth_scale: float
    depth_mask: str

    @classmethod
    def of(cls, path: Path, entry: dict[str, Any]) -> "_Shot":
        number = entry.get("frame_number")
        image, mask, depth = (entry.get(key) or {} for key in ("image", "mask", "depth"))
        where = f"{path}: frame {number} of {entry['sequence_name']}"
        try:
            for listed in (image.get("path"), mask.get("path"), depth.get("path"), depth.get("mask_path")):
                if listed and not within(Path("sequence", _inside(listed)), Path("sequence")):
                    raise SidestepError(f"{where} lists {listed}, outside of its folder; move it into it")
            height, width = (int(side) for side in image["size"])
            viewpoint = entry.get("viewpoint")
            if not isinstance(number, int) or not isinstance(viewpoint, dict | None):
                raise TypeError
            return cls(
                number,
                _inside(image["path"]),
                (width, height),
                viewpoint,
                _inside(mask.get("path")),
                _inside(depth.get("path")),
                float(depth.get("scale_adjustment") or 1.0),
                _inside(depth.get("mask_path")),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            raise SidestepError(f"{where} is no entry of CO3D's: it lacks a number, a photo or its size") from None

    @property
    def name(self) -> str:
        return self.photo.removeprefix("images/")

    def camera(self, path: Path, viewpoint: dict[str, Any]) -> tuple[Lens, Array]:
        """The lens, and (4, 4) world to camera in OpenCV axes."""
        where = f"{path}: frame {self.number} ({self.photo})"
        kind = str(viewpoint.get("intrinsics_format", "ndc_norm_image_bounds")).lower()
        half = np.array(self.size) / 2
        if kind == "ndc_norm_image_bounds":  # version 1: each side spans -1 to 1
            unit = half
        elif kind == "ndc_isotropic":  # version 2: the shorter side does
            unit = np.full(2, half.min())
        else:
            raise SidestepError(f"{where} has intrinsics_format {kind!r}, which is neither of PyTorch3D's two")
        try:
            focal, principal, rotation, translation = (
                np.array(viewpoint[key], dtype=np.float64).reshape(shape)
                for key, shape in (("focal_length", 2), ("principal_point", 2), ("R", (3, 3)), ("T", 3))
            )
        except (KeyError, TypeError, ValueError, OverflowError):
            raise SidestepError(f"{where} has no viewpoint of R, T, focal_length and principal_point") from None
        fx, fy = focal * unit
        cx, cy = half - principal * unit
        if not all(math.isfinite(value) for value in (fx, fy, cx, cy)):
            raise SidestepError(f"{where} has a lens that is not finite; remove the frame")
        if min(fx, fy) <= 0 or min(self.size) < 1 or max(self.size) >= SIDE_LIMIT:
            raise SidestepError(f"{where} has a size or focal length that is not positive; remove the frame")
        pose = rigid(where, _FLIP @ rotation.T, _FLIP @ translation)
        return Lens(np.array(((fx, 0.0, cx), (0.0, fy, cy), (0.0, 0.0, 1.0))), *self.size), pose


def _inside(listed: str | None) -> str:
    """A path of the annotations, <category>/<sequence>/..., as seen from the sequence's folder; "" for none."""
    return "/".join(PurePosixPath(listed).parts[2:]) if listed else ""


@lru_cache(maxsize=1)
def _sequences(path: Path, modified: int, size: int) -> dict[str, list[str]] | str:
    """The entries of a category's file, as text, by sequence; or what is wrong with the file.

    A fault is returned, because none that is raised would be remembered, and each of thousands of sequences would
    unpack the file again. `modified` and `size` tell a file that has changed.
    """
    sequences: dict[str, list[str]] = {}
    try:
        for number, (entry, text) in enumerate(_entries(path)):
            name = entry.get("sequence_name") if isinstance(entry, dict) else None
            if not isinstance(name, str):
                return f"{path}: entry {number} has no sequence_name; download the file again"
            sequences.setdefault(name, []).append(text)
    except SidestepError as error:
        return str(error)
    return sequences


def _entries(path: Path) -> Iterator[tuple[Any, str]]:
    """The elements of a gzipped JSON list and their texts, one at a time: neither a whole file nor a bomb is held."""
    decoder = json.JSONDecoder()
    text, at, total, begun = "", 0, 0, False
    try:
        with open_file(path) as packed, gzip.open(packed, "rt", encoding="utf-8") as file:
            most = min(_MOST_CHARACTERS, _MOST_ENTRY + _MOST_TIMES * os.fstat(packed.fileno()).st_size)
            while True:
                chunk = file.read(_CHUNK)
                total += len(chunk)
                text, at = text[at:] + chunk, 0
                if total > most:
                    raise SidestepError(f"{path}: unpacks to more than {most} characters; download it again")
                while True:
                    at = _BETWEEN.match(text, at).end()  # type: ignore[union-attr]  # it matches nothing, too
                    if not begun:
                        if text[at : at + 1] != "[":
                            raise SidestepError(f"{path}: not a list of frames; download it again")
                        begun, at = True, at + 1
                        continue
                    if text[at : at + 1] == "]":
                        return
                    try:
                        entry, end = decoder.raw_decode(text, at)
                    except ValueError:  # cut by the end of the chunk, or damaged
                        break
                    yield entry, text[at:end]
                    at = end
                if not chunk or len(text) - at > _MOST_ENTRY:
                    raise SidestepError(f"{path}: cut short or damaged (at character {total - len(text) + at})")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, RecursionError) as error:
        raise SidestepError(f"{path}: cannot be read as gzipped JSON ({error}); download it again") from None
