"""A pack: a captured set in a few large files, read in place; `packing.py` writes one.

pack.json                    how many shards, scenes and frames there are, and a digest of what each shard was made of
shard-00000.tar              WebDataset: chair/scene/003.jpg (the photo's own bytes), 003.json (its camera), and where
                             there are any 003.mask.png and 003.depth.png; whole scenes, frames in order
shard-00000.safetensors      the shard's index: what follows, and in its metadata the scenes' and frames' names

    intrinsics         (N, 3, 3) float32     of the N frames, scene after scene
    world_to_camera    (N, 4, 4) float32
    size               (N, 2) int64          width and height of the picture that the camera takes
    lens               (N, 14) float64       3x3 intrinsics, k1, k2, k3, p1, p2; NaN where the photo is not distorted
    photo, mask, depth (N, 2) int64          first byte in the tar and number of bytes; -1, 0 where there is none
    crc32              (N, 3) int64          of the bytes of these three; -1 where there is none
    points             (P, 3) float32        surface points, scene after scene

An index names no file, so none can lead out of the pack. It has a checksum (`checksums.py`) that is compared when it is
read; a file's is, when that is. Packs of earlier versions have neither.
"""

import itertools
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from sidestep.cameras import Camera
from sidestep.captures.lens import SIDE_LIMIT, Array, Lens
from sidestep.captures.scene import Frame, Scene
from sidestep.captures.storage import Storage
from sidestep.checksums import read_tensors
from sidestep.errors import SidestepError
from sidestep.inputs import MOST_TEXT, leads_out, link_out

FORMAT = 1
PLAN = "pack.json"
FILES = ("photo", "mask", "depth")
CRC32 = "crc32"
NOWHERE = (-1, 0)
_MOST_INDEX_BYTES = 2 * 2**30
_MOST_FRAMES = 1_000_000  # of a shard
_MOST_FILE_BYTES = 512 * 2**20  # of a photo or map, which is read whole
_MOST_SHARD_BYTES = 2**50
_SHAPES: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
    "intrinsics": (torch.float32, (3, 3)),
    "world_to_camera": (torch.float32, (4, 4)),
    "size": (torch.int64, (2,)),
    "lens": (torch.float64, (14,)),
    "photo": (torch.int64, (2,)),
    "mask": (torch.int64, (2,)),
    "depth": (torch.int64, (2,)),
    "points": (torch.float32, (3,)),
}


@dataclass(frozen=True, slots=True)
class Slice:
    """A file that is part of a shard (`images.Stored`).

    Attributes:
        member: its name in the shard.
        crc32: of its bytes; -1 where that is not known.
    """

    storage: Storage
    shard: str
    member: str
    start: int
    size: int
    crc32: int

    @property
    def name(self) -> str:
        return self.member.rpartition("/")[2]

    def __str__(self) -> str:
        return f"{self.storage.locate(self.shard)}/{self.member}"

    def read_bytes(self) -> bytes:
        """The file, by one read or one request for a part of the shard.

        Raises:
            SidestepError: if the shard is gone, cut short, damaged or cannot be read.
        """
        try:
            data = self.storage.read(self.shard, self.start, self.size)
        except FileNotFoundError:
            raise gone(self.storage, self.shard) from None
        if len(data) < self.size:
            raise cut_short(self.storage, self.shard)
        return self.check(data)

    def check(self, data: bytes) -> bytes:
        """The file's bytes, if they are the ones that were packed.

        Raises:
            SidestepError: if they are not.
        """
        if self.crc32 >= 0 and zlib.crc32(data) != self.crc32:
            raise SidestepError(f"{self}: damaged; copy the shard again, or delete it and pack again")
        return data


@dataclass(frozen=True)
class ShardIndex:
    """What the index of one shard holds.

    Attributes:
        shard: the tar's name.
        size: of the tar, in bytes.
        sha256: of the tar, in hexadecimal digits.
        made_of: digest of what it was packed from.
        scenes: as they were packed; each file is a `Slice`.
    """

    shard: str
    size: int
    sha256: str
    made_of: str
    scenes: tuple[Scene, ...]


def is_pack(path: str | Path) -> bool:
    """Whether a path is that of a pack, damaged or not; what is behind a URL is one, or nothing that can be read.

    Other programs may write a pack.json, too: one without shards has to be Sidestep's.
    """
    storage = Storage.at(path)
    if storage.remote or storage.size(PLAN) is None:
        return storage.remote
    if any(storage.size(name) is not None for name in (shard_name(0), index_name(0))):
        return True
    try:
        return read_plan(storage) is not None
    except SidestepError:
        return False


def read_pack(path: str | Path) -> list[Scene]:
    """The scenes of a pack, as `read_captures` read them when it was packed; photos are read from the shards.

    Args:
        path: the pack's folder or URL.

    Raises:
        SidestepError: if it is no pack, is incomplete, or an index is damaged or does not fit its shard.
    """
    storage = Storage.at(path)
    plan = open_plan(storage)
    return [scene for number in range(len(plan["shards"])) for scene in read_index(storage, plan, number).scenes]


def open_plan(storage: Storage) -> dict[str, Any]:
    """What the pack.json of a pack says.

    Raises:
        SidestepError: if it is not there, damaged, or of another format.
    """
    plan = read_plan(storage)
    if plan is None:
        raise SidestepError(f"{storage}: no pack (no {PLAN}); make one with `sidestep pack`")
    return plan


def read_plan(storage: Storage) -> dict[str, Any] | None:
    """What pack.json says, or None if it is not there.

    Raises:
        SidestepError: if it is damaged, or of another format.
    """
    where = storage.locate(PLAN)
    try:
        plan = json.loads(storage.read(PLAN, 0, MOST_TEXT))
        version, shards = plan["format"], plan["shards"]
        if not isinstance(shards, list) or not shards or not all(isinstance(digest, str) for digest in shards):
            raise ValueError("shards")
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, RecursionError):
        raise SidestepError(f"{where}: damaged, or not Sidestep's; copy or pack the set again") from None
    if version != FORMAT:
        raise SidestepError(f"{where}: format {version}, but this Sidestep reads {FORMAT}; pack the set again")
    return dict(plan)


def read_index(storage: Storage, plan: dict[str, Any], number: int) -> ShardIndex:
    """The index of one shard, checked against the plan and, on a disk, against the shard's size.

    Raises:
        SidestepError: if it is missing, damaged, of another pack, does not fit its shard, or is a link out of the pack.
    """
    name, count = index_name(number), len(plan["shards"])
    try:
        index = _read_index(storage, number)
    except FileNotFoundError:
        raise SidestepError(
            f"{storage}: incomplete, shard {number + 1} of {count} is missing; run the same `sidestep pack` again"
        ) from None
    if index.made_of != plan["shards"][number]:
        raise SidestepError(f"{storage.locate(name)}: of another pack; copy or pack the set again")
    if isinstance(storage.path, Path):
        for file in (name, index.shard):
            if leads_out(storage.path / file, storage.path):
                raise link_out(storage.path / file, "the pack")
        if storage.size(index.shard) != index.size:
            raise cut_short(storage, index.shard)
    return index


def shard_name(number: int) -> str:
    """The name of a shard's tar."""
    return f"shard-{number:05d}.tar"


def index_name(number: int) -> str:
    """The name of a shard's index."""
    return f"shard-{number:05d}.safetensors"


def sample_keys(name: str, category: str | None, frames: Sequence[str]) -> list[str]:
    """What the samples of a scene's frames are called in a shard: "chair/scene/003" for 003.jpg.

    WebDataset takes all after the first dot for the kind of file, so that dots in names become underscores.

    Raises:
        SidestepError: if the scene's or a frame's name leads to another place, is no text, or is doubled.
    """
    scene = f"{category}/{name}" if category else name
    for text in (scene, *frames):
        if not encodes(text):
            raise SidestepError(f"scene {scene!r}: the name {text!r} is not in UTF-8; rename it")
    for part in (name, category or name):
        if part in ("", ".", "..") or "/" in part or "\\" in part:
            raise SidestepError(f"scene {scene}: {part!r} is no name of a folder; rename it")
    keys: dict[str, None] = {}
    for frame in frames:
        path = PurePosixPath(frame)
        if path.is_absolute() or ".." in path.parts or not path.name or "\\" in frame:
            raise SidestepError(f"scene {scene}: photo {frame!r} is outside the scene's folder; move it into it")
        key = f"{scene}/{str(path.with_suffix('')).replace('.', '_')}"
        while key in keys:
            key += "_"
        keys[key] = None
    if len(set(frames)) < len(frames):
        raise SidestepError(f"scene {scene}: two photos have one name; rename one of them")
    return list(keys)


def encodes(text: str) -> bool:
    """Whether a text is one: file names that are not in UTF-8, and JSON, can bring halves of characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def cut_short(storage: Storage, shard: str) -> SidestepError:
    """The error of a shard that does not hold what its index says."""
    return SidestepError(f"{storage.locate(shard)}: cut short or damaged; copy it again, or delete it and pack again")


def gone(storage: Storage, shard: str) -> SidestepError:
    """The error of a shard that is not there, though its index is."""
    return SidestepError(f"{storage.locate(shard)}: no such file; copy the pack again, or pack again")


def _read_index(storage: Storage, number: int) -> ShardIndex:
    name = index_name(number)
    where = storage.locate(name)
    if (storage.size(name) or 0) > _MOST_INDEX_BYTES:
        raise SidestepError(f"{where}: larger than {_MOST_INDEX_BYTES // 2**30} GiB, which no index is")
    with storage.local(name) as file:
        try:
            tensors, metadata = read_tensors(file)
            if len(metadata["about"]) > MOST_TEXT:
                raise ValueError("about")
            about = json.loads(metadata["about"])
            _check(tensors, about)
            scenes = tuple(_scenes(storage, number, about, tensors))
        except SidestepError as error:  # a camera or a name that cannot be
            raise SidestepError(f"{where}: {error}") from None
        except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise SidestepError(f"{where}: damaged; copy it again, or delete it and pack again") from None
    return ShardIndex(shard_name(number), about["size"], about["sha256"], about["made_of"], scenes)


def _check(tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Raises ValueError, TypeError or KeyError where tensors, names and the shard's size do not fit together."""
    whole: int = about["size"]
    if type(whole) is not int or not 0 <= whole <= _MOST_SHARD_BYTES:
        raise ValueError("size")
    if not re.fullmatch(r"[0-9a-f]{64}", about["sha256"]):
        raise ValueError("sha256")
    frames = points = 0
    for scene in about["scenes"]:
        if type(scene["missing"]) is not list or type(scene["points"] or 0) is not int or (scene["points"] or 0) < 0:
            raise ValueError("scene")
        suffixes = [suffix or "" for _, *those in scene["frames"] for suffix in those]
        texts = [scene["name"], scene["category"] or "", *scene["missing"], *(name for name, *_ in scene["frames"])]
        if not all(isinstance(text, str) and encodes(text) for text in (*texts, *suffixes, about["made_of"])):
            raise ValueError("names")
        frames += len(scene["frames"])
        points += scene["points"] or 0
    if frames > _MOST_FRAMES:
        raise ValueError("frames")
    for key, (dtype, shape) in _SHAPES.items():
        count = points if key == "points" else frames
        if tensors[key].dtype != dtype or tensors[key].shape != (count, *shape):
            raise ValueError(key)
    if CRC32 in tensors and (tensors[CRC32].dtype != torch.int64 or tensors[CRC32].shape != (frames, len(FILES))):
        raise ValueError(CRC32)
    if not bool(((tensors["size"] > 0) & (tensors["size"] < SIDE_LIMIT)).all()):
        raise ValueError("size")
    for key in FILES:
        start, size = tensors[key].unbind(1)
        # Each is bounded by itself first: the sum of two large ones would wrap around.
        inside = (start >= 0) & (start <= whole) & (size > 0) & (size <= min(whole, _MOST_FILE_BYTES))
        inside &= start.where(inside, 0) + size.where(inside, 0) <= whole
        if key != "photo":
            inside |= (start == NOWHERE[0]) & (size == NOWHERE[1])
        if not bool(inside.all()):
            raise ValueError(key)


def _scenes(storage: Storage, number: int, about: dict[str, Any], tensors: dict[str, Tensor]) -> Iterator[Scene]:
    """The scenes of an index. What is taken out of the tensors is copied, and does not hold the file."""
    sizes, lenses = tensors["size"].tolist(), tensors["lens"].numpy()
    places = [tensors[key].tolist() for key in FILES]
    sums = tensors.get(CRC32, torch.full((len(tensors["size"]), len(FILES)), -1)).T.tolist()
    row = point = 0
    for described in about["scenes"]:
        names = [name for name, *_ in described["frames"]]
        keys = sample_keys(described["name"], described["category"], names)
        cameras = _cameras(tensors, sizes, row, row + len(names))
        frames = []
        for key, (name, *suffixes), camera in zip(keys, described["frames"], cameras, strict=True):
            photo, mask, depth = (
                Slice(storage, shard_name(number), f"{key}.{suffix}", place[row][0], place[row][1], crc32[row])
                if place[row][1]
                else None
                for suffix, place, crc32 in zip(suffixes, places, sums, strict=True)
            )
            assert photo is not None  # as `_check` saw
            frames.append(Frame(name, photo, camera, _lens(lenses[row], *sizes[row]), mask, depth))
            row += 1
        count = described["points"]
        points = None if count is None else tensors["points"][point : point + count].clone()
        point += count or 0
        missing = tuple(described["missing"])
        yield Scene(described["name"], described["category"], tuple(frames), points, missing)


def _cameras(tensors: dict[str, Tensor], sizes: list[list[int]], start: int, end: int) -> Iterator[Camera]:
    """The cameras of some rows. Those of one size are checked together, which takes a tenth of the time."""
    for size, group in itertools.groupby(range(start, end), key=lambda row: tuple(sizes[row])):
        rows = list(group)
        intrinsics, poses = (tensors[key][rows[0] : rows[-1] + 1].clone() for key in ("intrinsics", "world_to_camera"))
        batch = Camera(intrinsics, poses, *size)
        yield from (batch[index] for index in range(len(rows)))


def _lens(row: Array, width: int, height: int) -> Lens | None:
    if np.isnan(row).all():
        return None
    if not np.isfinite(row).all():
        raise ValueError("lens")
    return Lens(row[:9].reshape(3, 3).copy(), width, height, *row[9:].tolist())
