"""The store of inverted latents: every frame's mean and noise, computed once.

A store is a folder: `store.json` says what it was made of, and each `shard-NNNNN.safetensors` holds a fixed run of
scenes; `encoding.py` makes them. The store is complete once all its shards are there, wherever each was made. Reading
maps the shards into memory. What is read is checked (`checksums.py`): names and cameras when the store is opened, a
frame's latents when they are asked for.

    mean, noise        (N, C, h, w) float16: the two terms of eq. 1 at t*
    intrinsics         (N, 3, 3) float32, of the cropped picture
    world_to_camera    (N, 4, 4) float32
    distance_scale     (N,) float32: what makes the subject's distance 1 when this frame is the reference
"""

import ctypes
import hashlib
import json
import mmap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sidestep.cameras import Camera
from sidestep.checksums import DIGEST, are_intact, damaged_row, without_checksums
from sidestep.errors import SidestepError
from sidestep.inputs import open_file, read_bytes
from sidestep.inversion import InversionSettings, Inverted

FORMAT = 1
LATENTS = ("mean", "noise")
TENSORS = (*LATENTS, "intrinsics", "world_to_camera", "distance_scale")

_MOST_PLAN = 4 * 2**30  # bytes of a store.json, which has 20 to 30 a frame
_MOST_STEPS = 100_000  # of noise; what a plan claims is made a grid of
_REMEDY = "; delete it and run `sidestep encode` again"


class DamagedShard(SidestepError):
    """A shard that is there and has to be made anew."""

    @property
    def fault(self) -> str:
        """Which one, and what is wrong with it."""
        return str(self).removesuffix(_REMEDY)


@dataclass(frozen=True)
class StoredScene:
    """One scene of a store.

    Attributes:
        model: the 3D model or scene that decides its split.
        frames: names of the frames, in the order of the store's rows.
        elevation: median of how far its cameras look down, degrees.
        shard, start: where its rows lie.
    """

    id: str
    name: str
    category: str | None
    model: str
    frames: tuple[str, ...]
    elevation: float
    shard: int
    start: int


class LatentStore:
    """Reads a complete store.

    Attributes:
        settings: how the latents were inverted.
        prior_fingerprint: of the prior that inverted them.
        prior: where that prior was loaded from.
        alpha_star: alphas_cumprod at t*.
        image_size: of the pictures, in pixels.
        scenes: sorted by id.
    """

    def __init__(self, path: str | Path) -> None:
        """Opens the store at `path`.

        Raises:
            SidestepError: if it is no store, is incomplete, or a shard is damaged.
        """
        self.path = Path(path)
        plan = _plan_of(self.path)
        self.settings = InversionSettings(**plan["inversion"])
        self.prior_fingerprint: str = plan["prior_fingerprint"]
        self.prior: str = plan["prior"]
        self.alpha_star: float = plan["alpha_star"]
        self.image_size: int = plan["image_size"]
        # Mapped, not read: a tensor of safetensors is a view of its file until somebody looks at its numbers. Rows
        # are wanted here and there, so the system is told not to read on from each as far as it would in a film.
        self._shards: list[dict[str, Tensor]] = []
        scenes: list[StoredScene] = []
        count, digest = len(plan["shards"]), plan_digest(plan)
        there = {file.name for file in self.path.iterdir()}
        for index in range(count):
            file = shard_path(self.path, index)
            if file.name not in there:
                raise _missing(self.path, index, count)
            about, mapped = open_shard(file, digest)
            for name in LATENTS:
                _advise(mapped[name], "MADV_RANDOM")
            self._shards.append(mapped)
            scenes.extend(_scenes_of(about, index))
        self.scenes = tuple(scenes)

    def latents(self, scene: StoredScene, frames: Sequence[int] | int) -> Inverted:
        """Mean and noise, each (n, C, h, w) float32, of some frames of a scene, by their position in it.

        Raises:
            DamagedShard: if they are not what was written, as in `mean`.
        """
        for name in LATENTS:
            self.expect(name, scene, [frames] if isinstance(frames, int) else frames)
        return Inverted(self.rows("mean", scene, frames).float(), self.rows("noise", scene, frames).float())

    def mean(self, scene: StoredScene, frame: int) -> Tensor:
        """The mean alone, (C, h, w) float32, of one frame."""
        return self.rows("mean", scene, frame)[0].float()

    def cameras(self, scene: StoredScene) -> Camera:
        """The scene's cameras, batched (n,), for pictures of `image_size`."""
        intrinsics, poses = (self._all(name, scene) for name in ("intrinsics", "world_to_camera"))
        return Camera(intrinsics, poses, self.image_size, self.image_size)

    def distance_scales(self, scene: StoredScene) -> Tensor:
        """(n,) what makes the subject's distance 1 when each frame is the reference."""
        return self._all("distance_scale", scene)

    def _all(self, name: str, scene: StoredScene) -> Tensor:
        return self._shards[scene.shard][name][scene.start : scene.start + len(scene.frames)]

    def rows(self, name: str, scene: StoredScene, frames: Sequence[int] | int) -> Tensor:
        """What is stored of some frames of a scene, (n, ...), as it is stored; `expect` has it come sooner.

        Args:
            name: one of `TENSORS`.

        Raises:
            DamagedShard: if it is not what was written.
        """
        shard = self._shards[scene.shard]
        wanted = [frames] if isinstance(frames, int) else frames
        if not all(0 <= frame < len(scene.frames) for frame in wanted):
            raise IndexError(f"scene {scene.id} has {len(scene.frames)} frames, none at one of {list(wanted)}")
        places = [scene.start + frame for frame in wanted]
        damaged = damaged_row(shard, name, places)
        if damaged is not None:
            frame = scene.frames[damaged - scene.start]
            raise _damaged(shard_path(self.path, scene.shard), f"the {name} of {frame} of scene {scene.id}")
        return torch.stack([shard[name][place] for place in places])

    def expect(self, name: str, scene: StoredScene, frames: Sequence[int]) -> None:
        """Has the system begin to read rows that will be asked for soon, so that many come from the disk at once."""
        if name in LATENTS:
            for frame in frames:
                _advise(self._shards[scene.shard][name][scene.start + frame], "MADV_WILLNEED")


def find_damage(folder: str | Path, progress: Callable[[int, int], None] | None = None) -> tuple[int, int, list[str]]:
    """Reads all of a store.

    Args:
        progress: called with (shards read, shards in all).

    Returns:
        How many bytes its shards have, how many shards have no checksums, and what is damaged, missing or another
        store's, with what to do.

    Raises:
        SidestepError: if it is no store.
    """
    folder = Path(folder)
    plan = _plan_of(folder)
    count, digest = len(plan["shards"]), plan_digest(plan)
    size, without, faults = 0, 0, []
    for index in range(count):
        file = shard_path(folder, index)
        try:
            if not file.exists():
                raise _missing(folder, index, count)
            size += file.stat().st_size
            _, mapped = open_shard(file, digest)
            without += DIGEST not in mapped
            for name in LATENTS:
                damaged = damaged_row(mapped, name, range(len(mapped[name])))
                if damaged is not None:
                    raise _damaged(file, f"the {name} in row {damaged}")
        except SidestepError as fault:
            faults.append(str(fault))
        if progress is not None:
            progress(index + 1, count)
    return size, without, faults


def _plan_of(folder: Path) -> dict[str, Any]:
    plan = read_plan(folder)
    if plan is None:
        raise SidestepError(f"{folder}: no store of latents (no store.json); make one with `sidestep encode`")
    return plan


def _missing(folder: Path, index: int, count: int) -> SidestepError:
    return SidestepError(
        f"{folder}: incomplete, shard {index + 1} of {count} is missing; run the same `sidestep encode` again"
    )


def _damaged(file: Path, reason: str) -> DamagedShard:
    return DamagedShard(f"{file}: damaged ({reason}){_REMEDY}")


def _advise(mapped: Tensor, advice: str) -> None:
    """Tells the system how a mapped tensor will be read; one that cannot be told reads as it always does."""
    option = getattr(mmap, advice, None)
    if option is None:
        return
    start = mapped.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
    length = mapped.data_ptr() + mapped.nbytes - start
    _c_library().madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), option)


@cache
def _c_library() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def shard_path(folder: Path, index: int) -> Path:
    """Where a store's shard lies, or will lie."""
    return folder / f"shard-{index:05d}.safetensors"


def open_shard(file: Path, digest: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A shard: what it says of its scenes, and its tensors, mapped into memory. All but its latents is checked.

    Args:
        digest: of the plan of the store that it must belong to.

    Raises:
        DamagedShard: if it is damaged.
        SidestepError: if it is another store's, or this user may not read it.
    """
    try:
        open_file(file).close()  # safetensors says of a file that it may not read that there is none
        shard = safe_open(file, framework="pt")
        metadata = shard.metadata() or {}
        about = json.loads(metadata["about"])
        plan = about["plan"]
        tensors = {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118 (it is no dictionary)
        if without_checksums(tensors) != set(TENSORS):
            raise _damaged(file, "it holds other tensors")
        if not are_intact(tensors, metadata):
            raise _damaged(file, "its names or cameras are not what was written")
        _check_shard(about, tensors)
    except PermissionError as error:
        raise SidestepError(
            f"{file}: cannot be read ({error.strerror}); have its owner allow it (chmod a+r), or run as its owner"
        ) from None
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _damaged(file, str(error) or type(error).__name__) from None
    if plan != digest:
        raise SidestepError(
            f"{file}: of a store of other scenes, or made with another prior or other settings; name another folder, "
            "or delete it"
        )
    return about, tensors


def is_whole(file: Path, digest: str) -> bool:
    """Whether a shard is there and needs not be made.

    Raises:
        SidestepError: as `open_shard`, but for damage.
    """
    try:
        return file.exists() and bool(open_shard(file, digest))
    except DamagedShard:
        return False


def plan_digest(plan: dict[str, Any]) -> str:
    """Ties a shard to what it was made of, wherever the prior's folder lay."""
    made_of = {key: value for key, value in plan.items() if key != "prior"}
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


def read_plan(folder: Path) -> dict[str, Any] | None:
    """What a store's store.json says, or None where there is none.

    Raises:
        SidestepError: if it cannot be read, is damaged, or of another format.
    """
    path = folder / "store.json"
    if not path.exists():
        return None
    data = read_bytes(path, _MOST_PLAN)
    try:
        plan: dict[str, Any] = json.loads(data)
        version = plan["format"]
        if version == FORMAT:
            _check_plan(plan)
    except (SidestepError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise SidestepError(f"{path}: damaged; delete the folder and run `sidestep encode` again") from None
    if version != FORMAT:
        raise SidestepError(f"{path}: format {version}, but this Sidestep reads {FORMAT}; encode again")
    return plan


def _check_plan(plan: dict[str, Any]) -> None:
    """Raises ValueError, TypeError, KeyError, AttributeError or SidestepError where it is no plan of a store."""
    kinds = {"prior": str, "prior_fingerprint": str, "alpha_star": float, "image_size": int, "shards": list}
    if not all(isinstance(plan[key], kind) for key, kind in kinds.items()):
        raise ValueError("kinds")
    if any(isinstance(value, int) and not 0 <= value <= _MOST_STEPS for value in plan["inversion"].values()):
        raise ValueError("inversion")
    InversionSettings(**plan["inversion"])


def _check_shard(about: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Raises ValueError, TypeError or KeyError where a shard's scenes and its tensors do not fit together."""
    count = 0
    for described in about["scenes"]:
        names = [described[key] for key in ("id", "name", "model")]
        names += [described["category"] or "", *described["frames"]]
        if not all(isinstance(name, str) for name in names) or not isinstance(described["elevation"], int | float):
            raise ValueError("scenes")
        count += len(described["frames"])
    for name, shape in (("intrinsics", (3, 3)), ("world_to_camera", (4, 4)), ("distance_scale", ())):
        if tensors[name].dtype != torch.float32 or tensors[name].shape != (count, *shape):
            raise ValueError(name)
    for name in LATENTS:
        if tensors[name].dtype != torch.float16 or tensors[name].ndim != 4 or len(tensors[name]) < count:
            raise ValueError(name)


def _scenes_of(about: dict[str, Any], index: int) -> Iterator[StoredScene]:
    start = 0
    for described in about["scenes"]:
        names = {key: described[key] for key in ("id", "name", "category", "model", "elevation")}
        frames = tuple(described["frames"])
        yield StoredScene(**names, frames=frames, shard=index, start=start)
        start += len(frames)
