"""The store of inverted latents: every frame's mean and noise, computed once.

A store is a folder: `store.json` says what it was made of, and each `shard-NNNNN.safetensors` holds a fixed run of
scenes; `encoding.py` makes them. The store is complete once all its shards are there, wherever each was made. Reading
maps the shards into memory.

    mean, noise        (N, C, h, w) float16: the two terms of eq. 1 at t*
    intrinsics         (N, 3, 3) float32, of the cropped picture
    world_to_camera    (N, 4, 4) float32
    distance_scale     (N,) float32: what makes the subject's distance 1 when this frame is the reference
"""

import ctypes
import hashlib
import json
import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sidestep.cameras import Camera
from sidestep.errors import SidestepError
from sidestep.inversion import InversionSettings, Inverted

FORMAT = 1
LATENTS = ("mean", "noise")
TENSORS = (*LATENTS, "intrinsics", "world_to_camera", "distance_scale")


class DamagedShard(SidestepError):
    """A shard that is there and has to be made anew."""


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
        plan = read_plan(self.path)
        if plan is None:
            raise SidestepError(f"{path}: no store of latents (no store.json); make one with `sidestep encode`")
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
                raise SidestepError(
                    f"{path}: incomplete, shard {index + 1} of {count} is missing; run the same `sidestep encode` again"
                )
            shard = open_shard(file, digest)
            mapped = {name: shard.get_tensor(name) for name in TENSORS}
            for name in LATENTS:
                _advise(mapped[name], "MADV_RANDOM")
            self._shards.append(mapped)
            scenes.extend(_scenes_of(shard, index))
        self.scenes = tuple(scenes)

    def latents(self, scene: StoredScene, frames: Sequence[int] | int) -> Inverted:
        """Mean and noise, each (n, C, h, w) float32, of some frames of a scene, by their position in it."""
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
        """What is stored of some frames of a scene, (n, ...), as it is stored.

        Args:
            name: one of `TENSORS`.
        """
        stored = self._shards[scene.shard][name]
        wanted = [frames] if isinstance(frames, int) else frames
        if not all(0 <= frame < len(scene.frames) for frame in wanted):
            raise IndexError(f"scene {scene.id} has {len(scene.frames)} frames, none at one of {list(wanted)}")
        self.expect(name, scene, wanted)
        return torch.stack([stored[scene.start + frame] for frame in wanted])

    def expect(self, name: str, scene: StoredScene, frames: Sequence[int]) -> None:
        """Has the system begin to read rows that will be asked for soon, so that many come from the disk at once."""
        if name in LATENTS:
            for frame in frames:
                _advise(self._shards[scene.shard][name][scene.start + frame], "MADV_WILLNEED")


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


def open_shard(file: Path, digest: str) -> Any:
    """A shard mapped into memory (safetensors' `safe_open`).

    Args:
        digest: of the plan of the store that it must belong to.

    Raises:
        DamagedShard: if it is damaged or another store's.
        SidestepError: if this user may not read it.
    """
    try:
        with open(file, "rb"):  # safetensors says of a file that it may not read that there is none
            pass
        shard = safe_open(file, framework="pt")
        about = json.loads((shard.metadata() or {}).get("about", "{}"))
        if set(shard.keys()) != set(TENSORS) or about.get("plan") != digest:
            raise DamagedShard(f"{file}: not a shard of this store; delete it and run `sidestep encode` again")
    except PermissionError as error:
        raise SidestepError(
            f"{file}: cannot be read ({error.strerror}); have its owner allow it (chmod a+r), or run as its owner"
        ) from None
    except (SafetensorError, OSError) as error:
        raise DamagedShard(f"{file}: damaged ({error}); delete it and run `sidestep encode` again") from None
    return shard


def plan_digest(plan: dict[str, Any]) -> str:
    """Ties a shard to what it was made of, wherever the prior's folder lay."""
    made_of = {key: value for key, value in plan.items() if key != "prior"}
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


def read_plan(folder: Path) -> dict[str, Any] | None:
    """What a store's store.json says, or None where there is none.

    Raises:
        SidestepError: if it is damaged, or of another format.
    """
    path = folder / "store.json"
    if not path.exists():
        return None
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
        version = plan["format"]
    except (OSError, ValueError, TypeError, KeyError):
        raise SidestepError(f"{path}: damaged; delete the folder and run `sidestep encode` again") from None
    if version != FORMAT:
        raise SidestepError(f"{path}: format {version}, but this Sidestep reads {FORMAT}; encode again")
    return plan


def _scenes_of(shard: Any, index: int) -> Iterator[StoredScene]:
    start = 0
    for described in json.loads(shard.metadata()["about"])["scenes"]:
        frames = tuple(described.pop("frames"))
        yield StoredScene(**described, frames=frames, shard=index, start=start)
        start += len(frames)
