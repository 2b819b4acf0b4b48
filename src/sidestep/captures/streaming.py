"""A pack's scenes and frames in the order of its shards, which are read from front to back, as webdataset's pipelines.

Few long reads serve a whole shard: the fastest way to read a disk or an object store. Scenes come as a folder's do,
except that their photos are held in memory. Where files lie in a shard is taken from its index, not from the tar's own
headers, which could claim sizes without bound.
"""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from sidestep.captures.packed import ShardIndex, Slice, cut_short, gone, open_plan, read_index
from sidestep.captures.scene import Frame, Scene
from sidestep.captures.storage import Storage
from sidestep.errors import SidestepError

if TYPE_CHECKING:
    from webdataset import DataPipeline


@dataclass(frozen=True, slots=True)
class Held:
    """A file that was read already (`images.Stored`)."""

    source: Slice
    data: bytes

    @property
    def name(self) -> str:
        return self.source.name

    def __str__(self) -> str:
        return str(self.source)

    def read_bytes(self) -> bytes:
        return self.data


def stream_frames(path: str | Path, seed: int | None = None) -> "DataPipeline":
    """A pack's frames, shard after shard, each as (the id of its scene, `Frame`).

    The result is an `IterableDataset`: with a `DataLoader` of several workers, and under torch.distributed, each
    process reads shards of its own (webdataset's `split_by_node` and `split_by_worker`), so that there should be more
    shards than processes. More steps of webdataset follow with `compose`, such as `webdataset.shuffle(1000)`.

    Args:
        path: the pack's folder or URL.
        seed: of the order of the shards, the same in all processes. It is another order each time that the result is
            iterated; the workers of a `DataLoader` count that with `persistent_workers=True` only, and begin anew
            without. None: as they were packed.

    Raises:
        SidestepError: here, if it is no pack or webdataset is not installed; while streaming, if a shard or its index
            is missing or damaged.
    """
    return _pipeline(path, seed, _frames)


def stream_scenes(path: str | Path, seed: int | None = None) -> "DataPipeline":
    """A pack's scenes, shard after shard, as `stream_frames`; all photos of a scene are in memory at once."""
    return _pipeline(path, seed, _whole_scenes)


def _pipeline(path: str | Path, seed: int | None, stage: Any) -> "DataPipeline":
    try:
        import webdataset
    except ImportError:
        raise SidestepError("streaming a pack needs webdataset: pip install 'sidestep[packs]'") from None
    storage = Storage.at(path)
    plan = open_plan(storage)
    return webdataset.DataPipeline(
        _Order(len(plan["shards"]), seed),
        webdataset.split_by_node,
        webdataset.split_by_worker,
        _Reader(storage, plan),
        stage,
    )


@dataclass
class _Order:
    """The shards' numbers, in another order each time if there is a seed."""

    shards: int
    seed: int | None
    epoch: int = 0

    def __call__(self) -> Iterator[int]:
        numbers = list(range(self.shards))
        if self.seed is not None:
            random.Random(f"{self.seed} {self.epoch}").shuffle(numbers)
            self.epoch += 1
        yield from numbers


@dataclass(frozen=True)
class _Reader:
    """Shards' numbers -> (index, its frames as they come)."""

    storage: Storage
    plan: dict[str, Any]

    def __call__(self, shards: Iterable[int]) -> Iterator[tuple[ShardIndex, Iterator[Frame]]]:
        for number in shards:
            index = read_index(self.storage, self.plan, number)
            yield index, self._read(index)

    def _read(self, index: ShardIndex) -> Iterator[Frame]:
        try:
            with self.storage.open(index.shard) as stream:
                for scene in index.scenes:
                    for frame in scene.frames:
                        photo, mask, depth = (_held(source, stream) for source in (frame.path, frame.mask, frame.depth))
                        assert photo is not None
                        yield replace(frame, path=photo, mask=mask, depth=depth)
        except FileNotFoundError:
            raise gone(self.storage, index.shard) from None
        except EOFError:
            raise cut_short(self.storage, index.shard) from None
        except SidestepError:
            raise
        except Exception as error:  # a connection that breaks: each backend has exceptions of its own
            raise SidestepError(f"{self.storage.locate(index.shard)}: cannot be read ({error})") from None


def _held(source: Any, stream: BinaryIO) -> Held | None:
    """A file of a shard, from the shard's stream; EOFError if that ends before."""
    if source is None:
        return None
    stream.seek(source.start)
    data = stream.read(source.size)
    if len(data) < source.size:
        raise EOFError
    return Held(source, source.check(data))


def _frames(shards: Iterable[tuple[ShardIndex, Iterator[Frame]]]) -> Iterator[tuple[str, Frame]]:
    for index, frames in shards:
        for scene in index.scenes:
            for _ in scene.frames:
                yield scene.id, next(frames)


def _whole_scenes(shards: Iterable[tuple[ShardIndex, Iterator[Frame]]]) -> Iterator[Scene]:
    for index, frames in shards:
        for scene in index.scenes:
            yield replace(scene, frames=tuple(next(frames) for _ in scene.frames))
