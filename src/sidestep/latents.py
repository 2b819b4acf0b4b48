"""The store of inverted latents: every frame's mean and noise, computed once.

A store is a folder: `store.json` says what it was made of, and each `shard-NNNNN.safetensors` holds a fixed run of
scenes. A shard is written whole or not at all, so a killed run loses the shard it was at and nothing else. Reading
maps the shards into memory.

    mean, noise        (N, C, h, w) float16: the two terms of eq. 1 at t*
    intrinsics         (N, 3, 3) float32, of the cropped picture
    world_to_camera    (N, 4, 4) float32
    distance_scale     (N,) float32: what makes the subject's distance 1 when this frame is the reference
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sidestep.cameras import Camera, distance_scale, elevations
from sidestep.captures import Scene
from sidestep.errors import SidestepError
from sidestep.files import atomic_path, write_json
from sidestep.images import resize_and_crop, to_tensor
from sidestep.inversion import InversionSettings, Inverted, invert
from sidestep.prior import LatentPrior

logger = logging.getLogger(__name__)

FORMAT = 1
TENSORS = ("mean", "noise", "intrinsics", "world_to_camera", "distance_scale")


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
        plan = _read_plan(self.path)
        if plan is None:
            raise SidestepError(f"{path}: no store of latents (no store.json); make one with `sidestep encode`")
        self.settings = InversionSettings(**plan["inversion"])
        self.prior_fingerprint: str = plan["prior_fingerprint"]
        self.prior: str = plan["prior"]
        self.alpha_star: float = plan["alpha_star"]
        self.image_size: int = plan["image_size"]
        self._shards = []
        scenes: list[StoredScene] = []
        count = len(plan["shards"])
        for index in range(count):
            file = _shard_path(self.path, index)
            if not file.exists():
                raise SidestepError(
                    f"{path}: incomplete, shard {index + 1} of {count} is missing; run the same `sidestep encode` again"
                )
            shard = _open_shard(file, plan)
            self._shards.append(shard)
            scenes.extend(_scenes_of(shard, index))
        self.scenes = tuple(scenes)

    def latents(self, scene: StoredScene, frames: Sequence[int] | int) -> Inverted:
        """Mean and noise, each (n, C, h, w) float32, of some frames of a scene, by their position in it."""
        return Inverted(self._rows("mean", scene, frames).float(), self._rows("noise", scene, frames).float())

    def mean(self, scene: StoredScene, frame: int) -> Tensor:
        """The mean alone, (C, h, w) float32, of one frame."""
        return self._rows("mean", scene, frame)[0].float()

    def cameras(self, scene: StoredScene) -> Camera:
        """The scene's cameras, batched (n,), for pictures of `image_size`."""
        intrinsics, poses = (self._all(name, scene) for name in ("intrinsics", "world_to_camera"))
        return Camera(intrinsics, poses, self.image_size, self.image_size)

    def distance_scales(self, scene: StoredScene) -> Tensor:
        """(n,) what makes the subject's distance 1 when each frame is the reference."""
        return self._all("distance_scale", scene)

    def _all(self, name: str, scene: StoredScene) -> Tensor:
        return self._shards[scene.shard].get_slice(name)[scene.start : scene.start + len(scene.frames)]

    def _rows(self, name: str, scene: StoredScene, frames: Sequence[int] | int) -> Tensor:
        rows = self._shards[scene.shard].get_slice(name)
        wanted = [frames] if isinstance(frames, int) else frames
        if not all(0 <= frame < len(scene.frames) for frame in wanted):
            raise IndexError(f"scene {scene.id} has {len(scene.frames)} frames, none at one of {list(wanted)}")
        return torch.cat([rows[scene.start + frame : scene.start + frame + 1] for frame in wanted])


def encode_captures(
    prior: LatentPrior,
    scenes: Sequence[Scene],
    out: str | Path,
    settings: InversionSettings,
    *,
    prior_name: str,
    scenes_per_shard: int = 8,
    batch_size: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> LatentStore:
    """Inverts every frame of `scenes` into the store `out`; run again with the same arguments to resume.

    Each photo is scaled and cropped to the prior's size, its camera with it, encoded and inverted (the paper's
    preprocessing).

    Args:
        prior_name: where the prior came from, kept (a folder as its full path) for whoever opens the store.
        scenes_per_shard: what a killed run may lose.
        batch_size: frames inverted together.
        progress: called with (frames done, frames in all).

    Raises:
        SidestepError: if `out` holds a store of another prior, other settings or other scenes, or a photo is damaged.
    """
    if settings.t_star >= prior.num_train_timesteps:
        raise SidestepError(f"t* {settings.t_star} is outside this prior's 0 .. {prior.num_train_timesteps - 1}")
    out = Path(out)
    scenes = sorted(scenes, key=lambda scene: scene.id)
    names = [scene.id for scene in scenes]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise SidestepError(f"scene {twice} is there twice; give each scene a name of its own")
    runs = [scenes[start : start + scenes_per_shard] for start in range(0, len(scenes), scenes_per_shard)]
    plan = {
        "format": FORMAT,
        "prior": str(Path(prior_name).resolve()) if Path(prior_name).is_dir() else prior_name,
        "prior_fingerprint": prior.fingerprint(),
        "inversion": asdict(settings),
        "alpha_star": float(prior.alphas_cumprod[settings.t_star]),
        "image_size": prior.image_size,
        "shards": [{scene.id: [frame.name for frame in scene.frames] for scene in run} for run in runs],
    }
    stored = _read_plan(out)
    if stored is None:
        write_json(out / "store.json", plan)
    else:
        _refuse_stale(out, stored, plan)
    total = sum(len(scene.frames) for scene in scenes)
    done = 0
    for index, run in enumerate(runs):
        file = _shard_path(out, index)
        if not (file.exists() and _is_whole(file, plan)):
            tensors, described = _encode_run(prior, run, settings, batch_size)
            with atomic_path(file) as temporary:
                # One entry, because safetensors writes several in no fixed order, and a shard has fixed bytes.
                about = {"plan": _digest(plan), "scenes": described}
                save_file(tensors, temporary, metadata={"about": json.dumps(about)})
        done += sum(len(scene.frames) for scene in run)
        if progress is not None:
            progress(done, total)
    return LatentStore(out)


def _encode_run(
    prior: LatentPrior, run: Sequence[Scene], settings: InversionSettings, batch_size: int
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    columns: dict[str, list[Tensor]] = {name: [] for name in TENSORS}
    described = []
    for scene in run:
        cameras = Camera.stack([frame.camera.resize_and_crop(prior.image_size) for frame in scene.frames])
        for start in range(0, len(scene.frames), batch_size):
            images = [
                to_tensor(resize_and_crop(frame.load(), prior.image_size))
                for frame in scene.frames[start : start + batch_size]
            ]
            latents = prior.encode(torch.stack(images))
            inverted = invert(prior, latents, settings.grid, settings.timestep)
            columns["mean"].append(inverted.mean.half().cpu())
            columns["noise"].append(inverted.noise.half().cpu())
        scales = [distance_scale(cameras[i], cameras, scene.points) for i in range(len(scene.frames))]
        columns["intrinsics"].append(cameras.intrinsics.float())
        columns["world_to_camera"].append(cameras.world_to_camera.float())
        columns["distance_scale"].append(torch.tensor(scales))
        described.append(
            {
                "id": scene.id,
                "name": scene.name,
                "category": scene.category,
                "model": scene.model,
                "frames": [frame.name for frame in scene.frames],
                "elevation": float(elevations(cameras).median()),
            }
        )
    return {name: torch.cat(parts).contiguous() for name, parts in columns.items()}, described


def _scenes_of(shard: Any, index: int) -> Iterator[StoredScene]:
    start = 0
    for described in json.loads(shard.metadata()["about"])["scenes"]:
        frames = tuple(described.pop("frames"))
        yield StoredScene(**described, frames=frames, shard=index, start=start)
        start += len(frames)


def _shard_path(folder: Path, index: int) -> Path:
    return folder / f"shard-{index:05d}.safetensors"


def _open_shard(file: Path, plan: dict[str, Any]) -> Any:
    try:
        shard = safe_open(file, framework="pt")
        about = json.loads((shard.metadata() or {}).get("about", "{}"))
        if set(shard.keys()) != set(TENSORS) or about.get("plan") != _digest(plan):
            raise SidestepError(f"{file}: not a shard of this store; delete it and run `sidestep encode` again")
    except (SafetensorError, OSError) as error:
        raise SidestepError(f"{file}: damaged ({error}); delete it and run `sidestep encode` again") from None
    return shard


def _is_whole(file: Path, plan: dict[str, Any]) -> bool:
    try:
        _open_shard(file, plan)
    except SidestepError as error:
        logger.warning("%s; making it anew", error)
        return False
    return True


def _digest(plan: dict[str, Any]) -> str:
    """Ties a shard to what it was made of, wherever the prior's folder lay."""
    made_of = {key: value for key, value in plan.items() if key != "prior"}
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


def _read_plan(folder: Path) -> dict[str, Any] | None:
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


def _refuse_stale(out: Path, stored: dict[str, Any], plan: dict[str, Any]) -> None:
    found = {**stored.get("inversion", {}), **stored}
    for key, wanted in {**plan["inversion"], **plan}.items():
        if key not in ("inversion", "prior") and found.get(key) != wanted:
            told = {"prior_fingerprint": "prior", "shards": "set of scenes, or other scenes_per_shard"}.get(key)
            told = told or f"{key.replace('_', ' ')} ({found.get(key)!r}, not {wanted!r})"
            raise SidestepError(f"{out}: holds latents of another {told}; name another folder or delete this one")
