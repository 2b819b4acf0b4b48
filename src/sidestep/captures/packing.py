"""Writes a captured set as a pack (`packed.py` says what is in one): shard by shard, each whole or not at all."""

import hashlib
import io
import itertools
import json
import tarfile
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path, PurePath
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor

from sidestep.captures.lens import Array, Lens
from sidestep.captures.packed import (
    CRC32,
    FILES,
    FORMAT,
    NOWHERE,
    PLAN,
    ShardIndex,
    Slice,
    index_name,
    read_index,
    read_plan,
    sample_keys,
    shard_name,
)
from sidestep.captures.scene import Frame, Scene
from sidestep.captures.storage import Storage
from sidestep.checksums import with_checksums
from sidestep.errors import SidestepError
from sidestep.files import alone
from sidestep.images import FORMATS, PICTURE_SUFFIXES, Stored
from sidestep.inputs import sha256_of

CHECKSUMS = "SHA256SUMS"


@dataclass(frozen=True)
class Packed:
    """A pack that is whole.

    Attributes:
        pack: its folder or URL.
        bytes: of its shards.
    """

    pack: str
    shards: int
    scenes: int
    frames: int
    bytes: int


def pack_captures(
    scenes: Sequence[Scene],
    out: str | Path,
    *,
    frames_per_shard: int = 1000,
    progress: Callable[[int, int], None] | None = None,
) -> Packed:
    """Packs `scenes` into `out`; run again with the same arguments to resume. The same scenes give the same bytes.

    Photos, masks and depth maps go in as the bytes that they are: no file is decoded, so that a damaged photo is in the
    pack as it was in the folder (`sidestep capture inspect` finds those). A mask or depth map that does not begin as
    an image is left out with a warning, as is one that would be made of a damaged file (a photo's transparency,
    CO3D's depth): what a stranger's captures name as a mask must not bring any file of this machine into the pack.

    Args:
        out: a folder, or a URL that fsspec can write to.
        frames_per_shard: a shard is closed once it has so many; scenes are not divided.
        progress: called with (frames done, frames in all).

    Raises:
        SidestepError: if `out` holds anything else, or a pack of other scenes or another size, or another process is
            packing into it; if a file cannot be read, or none of the scenes can be packed. A scene whose names fit in
            no pack is left out with a warning. A file that has changed since it was packed is noticed by its number of
            bytes, or if it was written after the shard, by its bytes; behind a URL by the former alone.
    """
    if frames_per_shard < 1:
        raise SidestepError(f"frames_per_shard is {frames_per_shard}; it must be 1 or more")
    storage = Storage.at(out)
    runs = list(_runs(_packable(scenes), frames_per_shard))
    plan: dict[str, Any] = {
        "format": FORMAT,
        "scenes": sum(len(run) for run in runs),
        "frames": sum(len(scene.frames) for run in runs for scene in run),
        "frames_per_shard": frames_per_shard,
        "shards": [_digest(run) for run in runs],
    }
    storage.make()
    busy = f"{storage}: another process packs into it; wait for that one to end, or name another folder"
    with nullcontext() if storage.remote else alone(Path(storage.path, ".lock"), busy):
        return _pack(storage, plan, runs, progress)


def _pack(
    storage: Storage, plan: dict[str, Any], runs: list[list[Scene]], progress: Callable[[int, int], None] | None
) -> Packed:
    _claim(storage, plan)
    storage.sweep()
    done, size, sums = 0, 0, []
    for number, run in enumerate(runs):
        index = _finished(storage, plan, number)
        if index is not None:
            _refuse_rewritten(storage, number, index, run)
        else:
            _write_shard(storage, number, run, plan["shards"][number], _from(progress, done, plan["frames"]))
            index = read_index(storage, plan, number)
        size += index.size
        done += sum(len(scene.frames) for scene in run)
        if progress is not None:
            progress(done, plan["frames"])
        sha256 = hashlib.sha256(storage.read(index_name(number))).hexdigest()
        sums.append(f"{index.sha256}  {index.shard}\n{sha256}  {index_name(number)}\n")
    with storage.writing(CHECKSUMS) as temporary:
        temporary.write_text("".join(sums), encoding="ascii")
    return Packed(str(storage), len(runs), plan["scenes"], plan["frames"], size)


def _from(progress: Callable[[int, int], None] | None, done: int, total: int) -> Callable[[], None]:
    """What is called after each frame of a shard, before which `done` frames are done."""
    count = itertools.count(done + 1)
    return lambda: progress(next(count), total) if progress is not None else None


def _packable(scenes: Sequence[Scene]) -> list[Scene]:
    fit: dict[str, Scene] = {}
    failures: list[SidestepError] = []
    for scene in scenes:
        try:
            sample_keys(scene.name, scene.category, [frame.name for frame in scene.frames])
        except SidestepError as error:
            failures.append(error)
            warnings.warn(f"scene left out: {error}", stacklevel=3)
            continue
        if scene.id in fit:
            raise SidestepError(f"scene {scene.id} is there twice; give each scene a name of its own")
        fit[scene.id] = scene
    if not fit:
        reason = f"; the first: {failures[0]}" if failures else ""
        raise SidestepError(f"none of {len(scenes)} scenes can be packed{reason}")
    return list(fit.values())


def _runs(scenes: list[Scene], frames_per_shard: int) -> Iterator[list[Scene]]:
    """The scenes of each shard."""
    run: list[Scene] = []
    frames = 0
    for scene in scenes:
        run.append(scene)
        frames += len(scene.frames)
        if frames >= frames_per_shard:
            yield run
            run, frames = [], 0
    if run:
        yield run


def _claim(storage: Storage, plan: dict[str, Any]) -> None:
    """Writes pack.json to a place that is empty, and refuses one that holds anything but this pack, whole or not."""
    stored = read_plan(storage)
    if stored is None:
        foreign = [name for name in storage.names() if not name.startswith(".")]
        if foreign:
            raise SidestepError(f"{storage}: holds {foreign[0]}, and is no pack; name another folder")
        with storage.writing(PLAN) as temporary:
            temporary.write_text(json.dumps(plan, indent=2) + "\n", encoding="utf-8")
    elif stored != plan:
        if stored.get("frames_per_shard") != plan["frames_per_shard"]:
            other = f"of {stored.get('frames_per_shard')} frames a shard, not {plan['frames_per_shard']}"
        else:
            other = "of other scenes, or of photos or cameras that have changed since"
        raise SidestepError(f"{storage}: holds a pack {other}; name another folder or delete this one")


def _finished(storage: Storage, plan: dict[str, Any], number: int) -> ShardIndex | None:
    """The index of a shard that is there, or None where it is to be written: no index, or damaged."""
    if storage.size(index_name(number)) is None:
        return None
    try:
        index = read_index(storage, plan, number)
    except SidestepError as error:
        fault = str(error).partition(";")[0]
        warnings.warn(f"{fault}; making it anew", stacklevel=4)
        return None
    return index if storage.size(index.shard) == index.size else None


def _refuse_rewritten(storage: Storage, number: int, index: ShardIndex, scenes: list[Scene]) -> None:
    """Refuses files that were written after their shard and are other ones, though as large as before.

    A copy of a set is the same set: what is newer than the shard is read and compared, and nothing else is.
    """
    if storage.remote:
        return
    packed_at = Path(storage.path, index_name(number)).stat().st_mtime_ns
    for scene, packed in zip(scenes, index.scenes, strict=True):
        for frame, other in zip(scene.frames, packed.frames, strict=True):
            for source, kept in zip(_sources(frame).values(), _sources(other).values(), strict=True):
                if not isinstance(source, Path) or not isinstance(kept, Slice) or kept.crc32 < 0:
                    continue
                with _reading(source):
                    is_newer = source.stat().st_mtime_ns > packed_at
                if is_newer and zlib.crc32(_read(source)) != kept.crc32:
                    raise SidestepError(
                        f"{source}: has changed since it was packed; name another folder or delete {storage}"
                    )


def _write_shard(
    storage: Storage, number: int, scenes: list[Scene], made_of: str, frame_done: Callable[[], None]
) -> None:
    """Writes a shard, then its index, which says that the shard is whole."""
    places: dict[str, list[tuple[int, int]]] = {kind: [] for kind in FILES}
    sums: list[list[int]] = []
    described = []
    with storage.writing(shard_name(number)) as temporary:
        with open(temporary, "wb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for scene in scenes:
                keys = sample_keys(scene.name, scene.category, [frame.name for frame in scene.frames])
                packed: list[Frame] = []
                faults: list[SidestepError] = []
                for key, frame in zip(keys, scene.frames, strict=True):
                    frame, files = _files(frame, faults)
                    sums.append([zlib.crc32(files[kind]) if kind in files else -1 for kind in FILES])
                    for kind, source in _sources(frame).items():
                        place = NOWHERE
                        if source is not None:
                            place = _add(tar, file, f"{key}.{_suffix(kind, source)}", files[kind])
                        places[kind].append(place)
                    _add(tar, file, f"{key}.json", json.dumps(_record(scene, frame)).encode())
                    packed.append(frame)
                    frame_done()
                described.append(_described(replace(scene, frames=tuple(packed))))
                if faults:
                    told = f"{len(faults)} masks or depth maps left out; the first: {faults[0]}"
                    warnings.warn(f"scene {scene.id}: {told}", stacklevel=4)
        size, sha256 = temporary.stat().st_size, sha256_of(temporary)
    about = {"made_of": made_of, "size": size, "sha256": sha256, "scenes": described}
    tensors = _numbers(scenes) | {kind: torch.tensor(rows, dtype=torch.int64) for kind, rows in places.items()}
    tensors[CRC32] = torch.tensor(sums, dtype=torch.int64)
    # One entry, because safetensors writes several in no fixed order, and an index has fixed bytes.
    metadata = {"about": json.dumps(about)}
    with storage.writing(index_name(number)) as temporary:
        temporary.write_bytes(save(with_checksums(tensors, metadata), metadata=metadata))


def _files(frame: Frame, faults: list[SidestepError]) -> tuple[Frame, dict[str, bytes]]:
    """The files of a frame, and the frame without the maps that are none; why is added to `faults`."""
    files = {"photo": _read(frame.path)}
    for kind, source in (("mask", frame.mask), ("depth", frame.depth)):
        try:
            if source is not None:
                files[kind] = _read_map(source)
        except _NoMap as error:
            faults.append(error)
    mask, depth = (source if kind in files else None for kind, source in (("mask", frame.mask), ("depth", frame.depth)))
    return replace(frame, mask=mask, depth=depth), files


def _described(scene: Scene) -> dict[str, Any]:
    """What an index says of a scene in words; of a frame, its name and the suffixes of its files."""
    return {
        "name": scene.name,
        "category": scene.category,
        "missing": [name.encode(errors="replace").decode() for name in scene.missing],
        "points": None if scene.points is None else len(scene.points),
        "frames": [
            [frame.name, *(source and _suffix(kind, source) for kind, source in _sources(frame).items())]
            for frame in scene.frames
        ],
    }


def _sources(frame: Frame) -> dict[str, Path | Stored | None]:
    return dict(zip(FILES, (frame.path, frame.mask, frame.depth), strict=True))


def _numbers(scenes: list[Scene]) -> dict[str, Tensor]:
    """The numbers of an index that do not depend on where files lie in the shard."""
    frames = [frame for scene in scenes for frame in scene.frames]
    points = [scene.points.float().cpu() for scene in scenes if scene.points is not None]
    return {
        "intrinsics": torch.stack([frame.camera.intrinsics.float().cpu() for frame in frames]),
        "world_to_camera": torch.stack([frame.camera.world_to_camera.float().cpu() for frame in frames]),
        "size": torch.tensor([(frame.camera.width, frame.camera.height) for frame in frames], dtype=torch.int64),
        "lens": torch.from_numpy(np.stack([_lens_row(frame.lens) for frame in frames])),
        "points": torch.cat(points).contiguous() if points else torch.zeros(0, 3),
    }


def _lens_row(lens: Lens | None) -> Array:
    if lens is None:
        return np.full(14, np.nan)
    return np.array([*lens.intrinsics.ravel(), *lens.distortion.values()])


def _record(scene: Scene, frame: Frame) -> dict[str, Any]:
    """What a sample's .json says, for programs that read the shards without the indexes."""
    camera, lens = frame.camera, frame.lens
    return {
        "scene": scene.id,
        "category": scene.category,
        "name": frame.name,
        "width": camera.width,
        "height": camera.height,
        "intrinsics": camera.intrinsics.tolist(),
        "world_to_camera": camera.world_to_camera.tolist(),
        "lens": lens and {"intrinsics": lens.intrinsics.tolist(), **lens.distortion},
    }


def _digest(scenes: list[Scene]) -> str:
    """Names what a shard is made of: all that its index says, and the sizes of the files."""
    digest = hashlib.sha256()
    for scene in scenes:
        stamps = [_stamp(source) for frame in scene.frames for source in _sources(frame).values()]
        digest.update(json.dumps([_described(scene), stamps]).encode())
    for key, tensor in sorted(_numbers(scenes).items()):
        digest.update(f"{key}{tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _suffix(kind: str, source: Path | Stored) -> str:
    """What a sample's file is called after its key: always a picture's suffix, whatever the file was called."""
    own = PurePath(source.name).suffix.lower()
    kept = own.removeprefix(".") if own in PICTURE_SUFFIXES else "img"
    return kept if kind == "photo" else f"{kind}.{kept}"


def _stamp(source: Any) -> Any:
    """What tells a changed file without reading it: its size; of one that is made of others, their sizes and its rules.

    Not the time of its last change, because a copy of a set is the same set.
    """
    if isinstance(source, Path):
        with _reading(source):
            return source.stat().st_size
    if isinstance(source, Slice):
        return source.size
    if is_dataclass(source):
        return [_stamp(getattr(source, field.name)) for field in fields(source)]
    return source if isinstance(source, int | float) else None


def _read(source: Path | Stored) -> bytes:
    with _reading(source):
        data = source.read_bytes()
    if not data:
        raise SidestepError(f"{source}: is empty; copy it again, or delete it")
    return data


class _NoMap(SidestepError):
    """A mask or depth map that does not go into a pack."""


def _read_map(source: Path | Stored) -> bytes:
    """A mask or depth map, whose header alone is looked at.

    Raises:
        _NoMap: if it is no image, or is made of a file that cannot be decoded.
        SidestepError: if it cannot be read.
    """
    stored = isinstance(source, Path | Slice)
    try:
        with _reading(source):
            data = source.read_bytes()
    except SidestepError as error:
        if stored:
            raise
        raise _NoMap(str(error)) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes and tags: it is not decoded
            Image.open(io.BytesIO(data), formats=FORMATS).close()
    except Exception:  # damaged headers fail in many ways
        raise _NoMap(f"{source}: no image that can be a mask or depth map ({', '.join(FORMATS)})") from None
    return data


@contextmanager
def _reading(source: Path | Stored) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SidestepError(f"{source}: cannot be read ({error.strerror}); look after it, and run again") from None


def _add(tar: tarfile.TarFile, file: BinaryIO, name: str, data: bytes) -> tuple[int, int]:
    """Adds a file to a tar, of no date and nobody's; where its bytes begin, and how many they are."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), 0o644
    tar.addfile(member, io.BytesIO(data))
    padded = -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    return file.tell() - padded, len(data)
