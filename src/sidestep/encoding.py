"""The making of a store of latents (`latents.py`): photos are inverted, shard by shard, by any number of processes.

A shard is written whole or not at all, under its own name, and the same shard has the same bytes whoever makes it.
So a killed run loses the shards that it was at and nothing else, two writers of one shard do no harm, and processes
need to agree on nothing but the store's folder. Who makes which shard is an engine's business: this process alone
(`encode_here`), or the workers of a Ray cluster (`encoding_ray.py`).
"""

import itertools
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sidestep.cameras import Camera, distance_scale, elevations
from sidestep.captures import Frame, Scene
from sidestep.errors import SidestepError
from sidestep.files import make_folder, save_tensors, sweep, write_json
from sidestep.images import resize_and_crop, to_tensor
from sidestep.inversion import InversionSettings, invert
from sidestep.latents import FORMAT, LATENTS, DamagedShard, is_whole, open_shard, plan_digest, read_plan, shard_path
from sidestep.models import BUNDLED
from sidestep.prior import LatentPrior

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shard:
    """A shard to make: its file, and the scenes whose frames it holds."""

    file: Path
    scenes: tuple[Scene, ...]

    @property
    def frames(self) -> list[Frame]:
        """All its frames, scene after scene."""
        return [frame for scene in self.scenes for frame in scene.frames]


@dataclass(frozen=True)
class Job:
    """What all shards of a store are made with.

    Attributes:
        prior: where the prior was loaded from: the full path of a folder or file, a hub id or "bundled".
        prior_fingerprint: what that has to be.
        settings: of the inversion.
        batch_size: frames inverted together.
        digest: of the store's plan; each shard keeps it.
    """

    prior: str
    prior_fingerprint: str
    settings: InversionSettings
    batch_size: int
    digest: str


# Makes shards with a prior, in any order, and yields each one once it is there.
Engine = Callable[[LatentPrior, Job, Sequence[Shard]], Iterable[Shard]]


def encode_here(prior: LatentPrior, job: Job, shards: Sequence[Shard]) -> Iterator[Shard]:
    """The engine that makes the shards in this process, on the prior's device, one after the other."""
    for shard in shards:
        make_shard(prior, job, shard)
        yield shard


def encode_captures(
    prior: LatentPrior,
    scenes: Sequence[Scene],
    out: str | Path,
    settings: InversionSettings,
    *,
    prior_name: str,
    scenes_per_shard: int = 8,
    batch_size: int = 16,
    part: tuple[int, int] = (1, 1),
    engine: Engine = encode_here,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Inverts every frame of `scenes` into the store `out`; run again with the same arguments to resume.

    Each photo is scaled and cropped to the prior's size, its camera with it, encoded and inverted (the paper's
    preprocessing).

    Args:
        prior_name: where the prior came from, kept (a folder or file as its full path) for whoever opens the store.
        scenes_per_shard: what a killed run may lose.
        batch_size: frames inverted together.
        part: (k, n) makes the kth of n parts of the store's shards alone, k from 1 on.
        engine: who makes the shards.
        progress: called with (frames done, frames in all) of the part.

    Returns:
        How many frames the part has.

    Raises:
        SidestepError: if `out` holds a store of another prior, other settings or other scenes, or cannot be written to;
            if a photo is damaged, or has latents that are not finite.
    """
    out = Path(out).absolute()
    plan, shards = store_plan(prior, scenes, out, settings, prior_name, scenes_per_shard, part)
    if read_plan(out) is None:
        make_folder(out)
        # Another process wrote it meanwhile, and may have swept this one's.
        with suppress(FileExistsError, FileNotFoundError):
            write_json(out / "store.json", plan, replace=False)
        _refuse_stale(out, read_plan(out) or plan, plan)
    job = Job(str(plan["prior"]), prior.fingerprint(), settings, batch_size, plan_digest(plan))
    missing = [shard for shard in shards if not _is_there(shard, job)]
    whole = {shard.file.name for shard in shards} - {shard.file.name for shard in missing}
    sweep(out, {"store.json", *whole})
    total = sum(len(shard.frames) for shard in shards)
    done = total - sum(len(shard.frames) for shard in missing)
    if progress is not None:
        progress(done, total)
    if not missing:
        return total
    make_folder(out)
    for shard in engine(prior, job, missing):
        done += len(shard.frames)
        if progress is not None:
            progress(done, total)
    sweep(out, {shard.file.name for shard in missing})
    return total


def store_plan(
    prior: LatentPrior,
    scenes: Sequence[Scene],
    out: Path,
    settings: InversionSettings,
    prior_name: str,
    scenes_per_shard: int,
    part: tuple[int, int],
) -> tuple[dict[str, Any], list[Shard]]:
    """What store.json says of a store to make in `out`, and the shards of one part of it. Nothing is written.

    Args:
        prior, scenes, out, settings, prior_name, scenes_per_shard, part: as in `encode_captures`.

    Raises:
        SidestepError: if there is no such part, t* is not the prior's, two scenes have one id, or `out` holds another
            store.
    """
    number, parts = part
    if not 1 <= number <= parts:
        most = max(parts, 1)
        raise SidestepError(f"part {number}/{parts}: give parts as 1/{most} to {most}/{most}")
    if settings.t_star >= prior.num_train_timesteps:
        raise SidestepError(f"t* {settings.t_star} is outside this prior's 0 .. {prior.num_train_timesteps - 1}")
    scenes = _sorted(scenes)
    is_path = prior_name != BUNDLED and Path(prior_name).exists()
    runs = [scenes[start : start + scenes_per_shard] for start in range(0, len(scenes), scenes_per_shard)]
    plan = {
        "format": FORMAT,
        "prior": str(Path(prior_name).resolve()) if is_path else prior_name,
        "prior_fingerprint": prior.fingerprint(),
        "inversion": asdict(settings),
        "alpha_star": float(prior.alphas_cumprod[settings.t_star]),
        "image_size": prior.image_size,
        "shards": [{scene.id: [frame.name for frame in scene.frames] for scene in run} for run in runs],
    }
    _refuse_stale(out, read_plan(out) or plan, plan)
    shards = [Shard(shard_path(out, index), tuple(run)) for index, run in enumerate(runs)]
    return plan, shards[number - 1 :: parts]


def make_shard(prior: LatentPrior, job: Job, shard: Shard) -> None:
    """Inverts the frames of one shard and writes its file, unless it is there whole.

    Raises:
        SidestepError: if a photo is damaged, its latents are not finite, or the file cannot be written.
    """
    if is_whole(shard.file, job.digest):
        return
    mean, noise = _invert(prior, job, shard.frames)
    tensors, described = _describe(shard.scenes, prior.image_size)
    # One entry, because safetensors writes several in no fixed order, and a shard has fixed bytes.
    about = {"about": json.dumps({"plan": job.digest, "scenes": described})}
    try:
        save_tensors(shard.file, {"mean": mean, "noise": noise, **tensors}, about, by_row=LATENTS)
    except SidestepError:
        # Another process may have made the same shard meanwhile, and swept this one's temporary file away.
        if not is_whole(shard.file, job.digest):
            raise


def _sorted(scenes: Sequence[Scene]) -> list[Scene]:
    """The scenes in the order of the store.

    Raises:
        SidestepError: if two have one id.
    """
    scenes = sorted(scenes, key=lambda scene: scene.id)
    for one, other in itertools.pairwise(scenes):
        if one.id == other.id:
            raise SidestepError(f"scene {one.id} is there twice; give each scene a name of its own")
    return scenes


def _invert(prior: LatentPrior, job: Job, frames: Sequence[Frame]) -> tuple[Tensor, Tensor]:
    """Mean and noise of frames, each (N, C, h, w) float16 on the CPU."""
    means, noises = [], []
    for images in _batches(frames, prior.image_size, job.batch_size):
        inverted = invert(prior, prior.encode(images), job.settings.grid, job.settings.timestep)
        means.append(inverted.mean.half().cpu())
        noises.append(inverted.noise.half().cpu())
    mean, noise = torch.cat(means).contiguous(), torch.cat(noises).contiguous()
    finite = (mean.isfinite() & noise.isfinite()).flatten(1).all(1).tolist()
    if not all(finite):
        faulty = [frame for frame, good in zip(frames, finite, strict=True) if not good]
        raise SidestepError(
            f"{faulty[0].path}: its latents hold numbers that are not finite, or too large for half precision "
            f"({len(faulty)} of {len(frames)} frames of its shard); the prior overflows: encode on another device "
            "(--device cpu computes in a wider range), or with another prior"
        )
    return mean, noise


def read_photos(frames: Sequence[Frame], size: int) -> Tensor:
    """The photos of frames, scaled and cropped, (N, 3, size, size) in [-1, 1]."""
    return torch.stack([to_tensor(resize_and_crop(frame.load(), size)) for frame in frames])


def _batches(frames: Sequence[Frame], size: int, batch_size: int) -> Iterator[Tensor]:
    """Photos (B, 3, size, size) in [-1, 1], each batch read while the one before is worked on."""

    def read(start: int) -> Tensor:
        return read_photos(frames[start : start + batch_size], size)

    with ThreadPoolExecutor(1) as reader:
        starts = range(0, len(frames), batch_size)
        ahead = reader.submit(read, 0)
        for start in starts:
            images = ahead.result()
            if start + batch_size < len(frames):
                ahead = reader.submit(read, start + batch_size)
            yield images


def _describe(scenes: Sequence[Scene], size: int) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """What a shard holds beside the latents of the frames: their cameras, and of each scene its names."""
    intrinsics, poses, scales, described = [], [], [], []
    for scene in scenes:
        cameras = Camera.stack([frame.camera.resize_and_crop(size) for frame in scene.frames])
        intrinsics.append(cameras.intrinsics.float())
        poses.append(cameras.world_to_camera.float())
        scales += [distance_scale(cameras[index], cameras, scene.points) for index in range(len(scene.frames))]
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
    tensors = {"intrinsics": torch.cat(intrinsics), "world_to_camera": torch.cat(poses)}
    return {**tensors, "distance_scale": torch.tensor(scales)}, described


def _is_there(shard: Shard, job: Job) -> bool:
    """Whether a shard needs not be made; warns of one that is damaged.

    Raises:
        SidestepError: if it is another store's, or this user may not read it.
    """
    if not shard.file.exists():
        return False
    try:
        open_shard(shard.file, job.digest)
    except DamagedShard as error:
        logger.warning("%s; making it anew", error.fault)
        return False
    return True


def _refuse_stale(out: Path, stored: dict[str, Any], plan: dict[str, Any]) -> None:
    found = {**stored.get("inversion", {}), **stored}
    for key, wanted in {**plan["inversion"], **plan}.items():
        if key not in ("inversion", "prior") and found.get(key) != wanted:
            told = {"prior_fingerprint": "prior", "shards": "set of scenes, or other scenes_per_shard"}.get(key)
            told = told or f"{key.replace('_', ' ')} ({found.get(key)!r}, not {wanted!r})"
            raise SidestepError(f"{out}: holds latents of another {told}; name another folder or delete this one")
