"""One training loop for every network: accelerate, EMA, clipping, one-cycle schedule, exact resume.

A step's data depend on (seed, step) alone, so a run that was killed and started again sees the same batches in the
same order as one that was not, with nothing to restore but the weights and the optimiser's moments.
"""

import ctypes
import json
import logging
import math
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from diffusers.training_utils import EMAModel
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sidestep.config import load_config, save_config, settings
from sidestep.devices import network_dtype
from sidestep.errors import SidestepError
from sidestep.files import atomic_path

logger = logging.getLogger(__name__)

MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's names


@settings
class LoopConfig:
    """How one network is trained.

    Attributes:
        steps: optimiser steps of the whole run, over which the learning rate does its one cycle.
        batch_size: samples a step, over all processes together.
        learning_rate: the peak of the cycle.
        warmup: share of the steps in which the rate climbs to its peak.
        ema_decay: of the averaged weights, which are the ones that a run hands on.
        precision: of the network's arithmetic; "auto" takes bfloat16 where the processor has it.
        save_every, sample_every: steps between two checkpoints, and between two validations with pictures.
    """

    steps: int
    batch_size: int = 32
    learning_rate: float = 1e-4
    warmup: float = 0.05
    weight_decay: float = 0.01
    ema_decay: float = 0.999
    clip_norm: float = 1.0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    save_every: int = 200
    sample_every: int = 500
    seed: int = 0


class Task(Protocol):
    """What is trained: the network, its data and its loss."""

    @property
    def model(self) -> torch.nn.Module: ...

    def draw(self, step: int) -> list[Any]:
        """The samples of a step, as cheap descriptions: which picture, which crop, which pair. Decided by `step`."""
        ...

    def collate(self, samples: list[Any]) -> dict[str, torch.Tensor]:
        """The samples' tensors, on the CPU. Runs in a thread, one step ahead."""
        ...

    def loss(self, model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss to minimise, and figures to log beside it."""
        ...

    def validate(self, model: torch.nn.Module) -> tuple[dict[str, float], Image.Image | None]:
        """Figures over held-out data, and a picture to look at. `model` carries the averaged weights."""
        ...


def fit(task: Task, config: LoopConfig, run: Path, experiment: Any = None) -> torch.nn.Module:
    """Trains `task.model` in the folder `run`, and returns it with its averaged weights.

    If `run` holds a checkpoint, training goes on from it; if that checkpoint is the last one, nothing is trained.
    The folder gets `config.yaml` (the resolved `experiment`), `git-revision.txt`, `metrics.jsonl`, TensorBoard's
    files where it is installed, `samples/` and `checkpoint.safetensors`.

    Raises:
        SidestepError: if the checkpoint is damaged or belongs to another network, or the loss is no longer finite.
    """
    keep_freed_memory()
    precision: str = config.precision
    if precision == "fp32":
        precision = "no"  # accelerate's word, which YAML reads as false
    device = PartialState().device
    if precision == "auto":
        precision = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "no"}[network_dtype(device)]
    AcceleratorState._reset_state()  # it outlives its accelerator, and two networks may differ in precision
    accelerator = Accelerator(mixed_precision=precision)
    rank, processes = accelerator.process_index, accelerator.num_processes
    if config.batch_size % processes:
        raise SidestepError(f"batch_size {config.batch_size} cannot be shared by {processes} processes equally")

    trained = [parameter for parameter in task.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=config.learning_rate, weight_decay=config.weight_decay, fused=device.type in ("cpu", "cuda")
    )
    model, optimizer = accelerator.prepare(task.model, optimizer)
    raw = accelerator.unwrap_model(model)
    parameters = {name: parameter for name, parameter in raw.named_parameters() if parameter.requires_grad}
    ema = EMAModel(parameters.values(), decay=config.ema_decay, foreach=True)
    ema.to(accelerator.device)

    checkpoint = run / "checkpoint.safetensors"
    start = 0
    if checkpoint.exists():
        start = _load(checkpoint, parameters, ema, optimizer)
    elif accelerator.is_main_process:
        run.mkdir(parents=True, exist_ok=True)
        (run / "git-revision.txt").write_text(_git_revision() + "\n", encoding="utf-8")
    if start >= config.steps:
        ema.copy_to(parameters.values())
        return raw.eval()
    log = _Log(run) if accelerator.is_main_process else None
    if log and experiment is not None:
        _name_changes(experiment, run / "config.yaml")
        save_config(experiment, run / "config.yaml")

    def load(step: int) -> dict[str, torch.Tensor]:
        return task.collate(task.draw(step)[rank::processes])

    model.train()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        ThreadPoolExecutor(1) as loader,
        Progress(*columns, disable=log is None or not sys.stderr.isatty()) as progress,
    ):
        bar = progress.add_task(run.name, total=config.steps, completed=start)
        waiting = loader.submit(load, start)
        for step in range(start, config.steps):
            batch = {name: tensor.to(accelerator.device) for name, tensor in waiting.result().items()}
            if step + 1 < config.steps:
                waiting = loader.submit(load, step + 1)
            # Noise is drawn from torch's generators; seeding them by step is what makes a resumed run exact.
            torch.manual_seed(int(np.random.SeedSequence((config.seed, step, rank)).generate_state(1)[0]))
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * one_cycle(step / config.steps, config.warmup)
            loss, figures = task.loss(model, batch)
            accelerator.backward(loss)
            norm = accelerator.clip_grad_norm_(trained, config.clip_norm)
            # In fp16 a gradient may overflow: the loss scaler then skips the step by itself.
            if not torch.isfinite(loss) or not (precision == "fp16" or torch.isfinite(norm)):
                raise SidestepError(
                    f"{run.name}: the loss is {loss.item()} and its gradient's norm {float(norm)} at step {step} "
                    f"(seed {config.seed}); the last good checkpoint is kept; lower learning_rate, or precision=fp32"
                )
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            ema.step(parameters.values())
            done = step + 1
            progress.update(bar, completed=done, description=f"{run.name} loss {loss.item():.4f}")
            if log and (done % 20 == 0 or done == config.steps):
                log.write(done, {"loss": loss.item(), "gradient_norm": float(norm), **figures})
            if log and (done % config.save_every == 0 or done == config.steps):
                _save(checkpoint, done, parameters, ema, optimizer)
            if done % config.sample_every == 0 or done == config.steps:
                ema.store(parameters.values())
                ema.copy_to(parameters.values())
                raw.eval()
                if log:
                    log.validation(done, *task.validate(raw))
                raw.train()
                ema.restore(parameters.values())
                accelerator.wait_for_everyone()
    ema.copy_to(parameters.values())
    return raw.eval()


def _name_changes(experiment: Any, path: Path) -> None:
    """A run may go on under other settings (more steps, say), but not without a word."""
    if not path.exists():
        return
    before, now = (_flat(asdict(config)) for config in (load_config(type(experiment), path), experiment))
    for key, value in now.items():
        if before.get(key) != value:
            logger.warning("%s goes on with another %s: %s, before %s", path.parent, key, value, before.get(key))


def _flat(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in nested.items():
        result.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return result


def one_cycle(progress: float, warmup: float) -> float:
    """The learning rate's share of its peak at `progress` in [0, 1]: linear up during `warmup`, then a half cosine."""
    if progress < warmup:
        return max(progress / warmup, 1e-3)
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup))) * 0.999 + 0.001


def keep_freed_memory() -> None:
    """Asks glibc to keep freed memory instead of returning it to the system after every step.

    A training step frees and takes the same large tensors again; giving the pages back each time costs a third of a
    CPU run in page faults. Does nothing where the C library is not glibc.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    trim_threshold, top_pad, mmap_max = -1, -2, -4
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 256 * 2**20)


def _save(
    path: Path, step: int, parameters: dict[str, torch.nn.Parameter], ema: EMAModel, optimizer: torch.optim.Optimizer
) -> None:
    tensors = {}
    for (name, parameter), average in zip(parameters.items(), ema.shadow_params, strict=True):
        tensors[f"model/{name}"] = parameter.detach()
        tensors[f"ema/{name}"] = average
        for moment in MOMENTS:
            tensors[f"{moment}/{name}"] = optimizer.state[parameter][moment]
    tensors = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"step": str(step)})


def _load(
    path: Path, parameters: dict[str, torch.nn.Parameter], ema: EMAModel, optimizer: torch.optim.Optimizer
) -> int:
    kinds = ("model", "ema", *MOMENTS)
    state: dict[int, dict[str, torch.Tensor]] = {}
    try:
        with safe_open(path, framework="pt") as file:
            step = int(file.metadata()["step"])
            if set(file.keys()) != {f"{kind}/{name}" for kind in kinds for name in parameters}:
                raise ValueError("it holds other tensors")
            for index, ((name, parameter), average) in enumerate(
                zip(parameters.items(), ema.shadow_params, strict=True)
            ):
                weight, averaged, *moments = (file.get_tensor(f"{kind}/{name}") for kind in kinds)
                if weight.shape != parameter.shape:
                    raise ValueError(f"{name} is of shape {tuple(weight.shape)}, not {tuple(parameter.shape)}")
                parameter.data.copy_(weight)
                average.copy_(averaged)
                # Laid out in memory as the parameter is: the fused AdamW walks through both in one count.
                laid_out = (torch.empty_like(parameter).copy_(moment) for moment in moments)
                state[index] = {"step": torch.tensor(float(step)), **dict(zip(MOMENTS, laid_out, strict=True))}
    except (SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise SidestepError(
            f"{path}: damaged, or made for another network ({reason}); delete it to start over, or name another folder"
        ) from None
    # Through the optimiser's own loading, which knows on which device it wants each of these.
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    ema.optimization_step = step
    return step


class _Log:
    """metrics.jsonl, and TensorBoard where it is installed."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.started = time.monotonic()
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self.board = None
        else:
            self.board = SummaryWriter(str(run / "tensorboard"))

    def write(self, step: int, figures: dict[str, float]) -> None:
        line = {"step": step, "seconds": round(time.monotonic() - self.started, 1), **figures}
        with (self.run / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self.board:
            for name, value in figures.items():
                self.board.add_scalar(name, value, step)

    def validation(self, step: int, figures: dict[str, float], picture: Image.Image | None) -> None:
        self.write(step, {f"validation/{name}": value for name, value in figures.items()})
        shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        logger.info("%s: step %d: %s", self.run.name, step, shown)
        if picture is not None:
            with atomic_path(self.run / "samples" / f"{step:07d}.png") as temporary:
                picture.save(temporary)


def _git_revision() -> str:
    """The revision of the code that runs, or "unknown" outside a checkout of it."""
    here = Path(__file__)
    git = ["git", "-C", str(here.parent)]
    try:
        # An installed package may lie in somebody else's repository, whose revision says nothing.
        subprocess.run([*git, "ls-files", "--error-unmatch", here.name], capture_output=True, check=True)
        told = subprocess.run([*git, "describe", "--always", "--dirty"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return told.stdout.strip()
