"""What `encode`, `train` and `pretrain` would do, told before they do it: how much, how long, and whether it fits.

Times come from rates that are measured then and there: the real networks on the device, for a few batches, on random
numbers where there are no latents yet. Nothing is written.
"""

import math
import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from sidestep import training
from sidestep.captures import Frame, Scene, read_captures
from sidestep.encoding import read_photos, store_plan
from sidestep.errors import SidestepError
from sidestep.inversion import InversionSettings
from sidestep.latents import is_whole, plan_digest
from sidestep.loop import LoopConfig, Task, Training, this_process
from sidestep.models import model_folder
from sidestep.pretraining import PretrainConfig
from sidestep.pretraining.encoding import CROPS_PER_PHOTOGRAPH
from sidestep.pretraining.run import begin
from sidestep.pretraining.unet import UNetTask, build_unet
from sidestep.prior import PARTS, LatentPrior, is_laid_out
from sidestep.prior_file import NEEDED
from sidestep.training import TrainConfig

PATIENCE = 8.0  # seconds that a measurement may take before it no longer tries a larger batch
LITTLE = 2**20  # bytes of a prior's configs, checksums and empty prompt's embedding, at most
LEFT_OUT = "scene left out: "


@dataclass(frozen=True)
class Plan:
    """What a command would do.

    Attributes:
        facts: in the order in which they are told; a name says what is counted and, after the last underscore, its
            unit where it has one. None where it could not be measured.
        out: where the command would write.
        needed: bytes that it would write at most, beside what is there.
    """

    facts: dict[str, Any]
    out: Path
    needed: int

    @property
    def free(self) -> int:
        """Bytes that the disk of `out` has free."""
        there = self.out.absolute()
        while not there.exists():
            there = there.parent
        return shutil.disk_usage(there).free

    @property
    def warning(self) -> str | None:
        """What is wrong with it, or None."""
        if self.needed <= self.free:
            return None
        return f"{self.out}: {_bytes(self.needed)} are needed, but its disk has only {_bytes(self.free)} free"

    def to_dict(self) -> dict[str, Any]:
        """For programs."""
        return {**self.facts, "bytes": self.needed, "bytes_free": self.free, "fits": self.warning is None}

    def lines(self) -> list[str]:
        """For people."""
        told = [f"{name.replace('_', ' ')}: {_told(value)}" for name, value in self.facts.items() if value != []]
        return [*told, f"disk: {_bytes(self.needed)} needed, {_bytes(self.free)} free", "nothing was written"]


def read_noting(data: Path) -> tuple[list[Scene], list[str]]:
    """The scenes of captures, and of each one that was left out its name and why."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        scenes = read_captures(data)
    texts = [str(warning.message) for warning in caught]
    for text in texts:
        if not text.startswith(LEFT_OUT):
            warnings.warn(text, stacklevel=2)
    return scenes, [text.removeprefix(LEFT_OUT) for text in texts if text.startswith(LEFT_OUT)]


def plan_encoding(
    prior: LatentPrior,
    scenes: Sequence[Scene],
    out: Path,
    settings: InversionSettings,
    *,
    prior_name: str,
    scenes_per_shard: int,
    batch_size: int,
    part: tuple[int, int] = (1, 1),
    left_out: Sequence[str] = (),
) -> Plan:
    """What `encode_captures` would do with the same arguments.

    Raises:
        SidestepError: as `encode_captures`, as far as that can be seen before.
    """
    store, shards = store_plan(prior, scenes, out, settings, prior_name, scenes_per_shard, part)
    digest = plan_digest(store)
    total = sum(len(shard.frames) for shard in shards)
    frames = [frame for shard in shards if not is_whole(shard.file, digest) for frame in shard.frames]
    # Mean and noise in half precision, the camera's matrices and the scale in float32.
    latents = 2 * 2 * prior.latent_channels * prior.latent_size**2
    needed = len(frames) * (latents + 4 * (9 + 16 + 1))
    device = next(prior.parameters()).device
    facts: dict[str, Any] = {
        "scenes": len(scenes),
        "scenes_left_out": len(left_out),
        "left_out": list(left_out),
        "frames": total,
        "frames_done": total - len(frames),
        "shards": len(shards),
        "t_star": settings.t_star,
        "forwards": len(frames) * settings.steps,
        "device": str(device),
        "frames_a_second": None,
        "hours": 0.0,
    }
    if frames:
        count, seconds = _growing(lambda count: _encode(prior, settings, frames[:count]), min(batch_size, len(frames)))
        facts |= {"frames_a_second": count / seconds, "hours": len(frames) / (count / seconds) / 3600}
        facts["measured"] = f"{count} frames at once, in one process"
    return Plan(facts, out, needed)


def _encode(prior: LatentPrior, settings: InversionSettings, frames: Sequence[Frame]) -> float:
    """Seconds for encoding photos and for all the steps of an inversion, of which one is done.

    Each batch is read while the one before is worked on, so the slower of the two decides.
    """
    started = time.perf_counter()
    images = read_photos(frames, prior.image_size)
    read = time.perf_counter()
    latents = prior.encode(images).cpu()
    encoded = time.perf_counter()
    prior.predict_noise(latents.to(next(prior.parameters()).device), settings.t_star).cpu()
    return max(read - started, encoded - read + settings.steps * (time.perf_counter() - encoded))


def plan_training(config: TrainConfig) -> Plan:
    """What `train` would do.

    Raises:
        SidestepError: as `train`, as far as that can be seen before; that needs the store of latents.
    """
    task, loop = training.prepare(config)
    checkpoint, done = config.out / "checkpoint.safetensors", _steps_done(config.out, task)
    parameters = sum(parameter.numel() for parameter in task.model.parameters())
    facts: dict[str, Any] = {
        "scenes_train": len(task.scenes),
        "scenes_val": len(task.held_out),
        "scenes_left_out": len(task.too_short),
        "left_out": [f"{scene.id}: {len(scene.frames)} frames give no pair" for scene in task.too_short],
        "pairs_an_epoch": task.pairs_per_epoch,
        "epochs": round(loop.steps * loop.batch_size / task.pairs_per_epoch, 2),
        "parameters": parameters,
        **_measured(task, loop, done),
    }
    # A new checkpoint is written beside the old one; the finished model is in half precision, with its prior.
    needed = (1 if checkpoint.exists() else 2) * _checkpoint_bytes(task) + 2 * parameters
    needed += prior_bytes(Path(model_folder(task.store.prior)))
    return Plan(facts, config.out, needed)


def prior_bytes(source: Path) -> int:
    """What a model's folder holds of its prior at most, once `copy_prior` has put it there; 0 of one on the hub.

    Raises:
        SidestepError: if a file of weights is damaged.
    """
    if is_laid_out(source):
        return LITTLE + sum(path.stat().st_size for part in PARTS for path in (source / part).rglob("*"))
    if source.is_file():
        return _float32_bytes(source, tuple(NEEDED)) + LITTLE
    total = LITTLE if source.is_dir() else 0
    for path in (path for part in (*PARTS, "vqvae") for path in (source / part).rglob("*") if path.is_file()):
        if path.suffix != ".safetensors":
            total += path.stat().st_size
        elif "." not in path.stem:  # else a variant, which is not loaded
            total += _float32_bytes(path)
    return total


def _float32_bytes(path: Path, prefixes: tuple[str, ...] = ("",)) -> int:
    """Of a file's weights whose names begin in one of these ways, in float32."""
    try:
        with safe_open(path, framework="pt") as file:
            keys = [key for key in file.keys() if key.startswith(prefixes)]  # noqa: SIM118 (it is no dictionary)
            return 4 * sum(math.prod(file.get_slice(key).get_shape()) for key in keys)
    except (SafetensorError, OSError) as error:
        raise SidestepError(f"{path}: damaged, or no .safetensors file ({error}); fetch it again") from None


def plan_pretraining(config: PretrainConfig) -> Plan:
    """What `pretrain` would do.

    Raises:
        SidestepError: as `pretrain`, as far as that can be seen before.
    """
    first = begin(config)
    vae = first.task.model.vae
    size = config.image_size // vae.spatial_compression_ratio
    channels = vae.config.latent_channels
    pictures = {split: len(first.pictures[split]) for split in ("train", "val")}
    photographs = {split: len(first.photographs[split]) if first.photographs else 0 for split in ("train", "val")}
    stored = pictures["train"] + len(first.pictures["val"][::4]) + CROPS_PER_PHOTOGRAPH * sum(photographs.values())
    facts: dict[str, Any] = {f"pictures_{split}": count for split, count in pictures.items()}
    facts |= {f"photographs_{split}": count for split, count in photographs.items()}
    needed = 2 * stored * channels * size**2
    hours = 0.0
    unet = first.initial.unet if first.initial else build_unet(config.unet, size, channels)
    latents = {"train": torch.randn(16, channels, size, size), "val": torch.randn(4, channels, size, size)}
    tasks: dict[str, tuple[Task, LoopConfig]] = {
        "autoencoder": (first.task, config.autoencoder),
        "unet": (UNetTask(unet, vae, latents, config, first.pictures, first.photographs), config.unet),
    }
    for name, (task, loop) in tasks.items():
        found: dict[str, Any] = {"parameters": sum(parameter.numel() for parameter in task.model.parameters())}
        found |= _measured(task, loop, _steps_done(config.out / name, task))
        facts |= {f"{name}_{key}": value for key, value in found.items()}
        needed += 2 * _checkpoint_bytes(task) + 2 * found["parameters"]
        hours += found["hours"]
    facts["hours"] = hours
    return Plan(facts, config.out, needed)


def _measured(task: Task, loop: LoopConfig, done: int) -> dict[str, Any]:
    """How many steps there are to do, and how long they take, from a few that are done on the way."""
    if this_process().num_processes > 1:
        raise SidestepError("a dry run measures one process; run it without torchrun or accelerate launch")
    steps = max(0, loop.steps - done)
    facts: dict[str, Any] = {"steps": loop.steps, "steps_done": done, "batch_size": loop.batch_size}
    facts["samples"] = steps * loop.batch_size
    if not steps:
        return {**facts, "hours": 0.0}
    started = time.perf_counter()
    samples = task.draw(done)
    task.collate(samples)
    loading = time.perf_counter() - started
    trained = Training(task, loop, "dry run")

    def step(count: int) -> float:
        batch = task.collate(samples[:count])
        started = time.perf_counter()
        trained.step(0, batch)
        if trained.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    count, seconds = _growing(step, loop.batch_size)
    rate = count / seconds / loop.batch_size
    facts |= {"device": str(trained.device), "precision": trained.accelerator.mixed_precision.replace("no", "fp32")}
    facts |= {"steps_a_second": rate, "loading_share": loading * rate, "hours": steps / rate / 3600}
    return {**facts, "measured": f"{count} of {loop.batch_size} samples a step, in one process, without validations"}


def _growing(seconds: Callable[[int], float], most: int) -> tuple[int, float]:
    """The largest batch, of up to `most` samples, that can be measured in a few seconds, and how long it takes.

    Args:
        seconds: how long so many samples take.
    """
    started, count = time.perf_counter(), 1
    while True:
        before = time.perf_counter()
        seconds(count)  # warms up
        found = seconds(count)
        now = time.perf_counter()
        if count >= most or now - started + 4 * (now - before) > PATIENCE:
            return count, found
        count = min(4 * count, most)


def _checkpoint_bytes(task: Task) -> int:
    """Weights, their average and two moments, in float32."""
    return 16 * sum(parameter.numel() for parameter in task.model.parameters() if parameter.requires_grad)


def _steps_done(run: Path, task: Task) -> int:
    """The steps that a run's checkpoint has behind it."""
    path = run / "checkpoint.safetensors"
    if not path.exists():
        return 0
    wanted = {name: [*parameter.shape] for name, parameter in task.model.named_parameters() if parameter.requires_grad}
    try:
        with safe_open(path, framework="pt") as file:
            step = int(file.metadata()["step"])
            keys = [key for key in file.keys() if key.startswith("model/")]  # noqa: SIM118 (it is no dictionary)
            found = {key.removeprefix("model/"): [*file.get_slice(key).get_shape()] for key in keys}
    except (SafetensorError, OSError, TypeError, KeyError, ValueError):
        found, step = {}, 0
    if found != wanted:
        raise SidestepError(
            f"{path}: damaged, or made for another network; delete it to start over, or name another folder"
        )
    return step


def _bytes(count: int) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 1e7 else f"{count / 1e6:,.2f} MB"


def _told(value: Any) -> str:
    if value is None:
        return "not measured"
    if isinstance(value, list):
        return "; ".join(value)
    if isinstance(value, float):
        return f"{value:,.3g}" if value < 100 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
