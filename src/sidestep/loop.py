"""One training loop for every network: accelerate, EMA, clipping, one-cycle schedule, exact resume.

A step's data depend on (seed, step) alone, so a run that was killed and started again sees the same batches in the
same order as one that was not, with nothing to restore but the weights and the optimiser's moments. Several processes
divide each batch, so their number changes nothing but the order of sums.
"""

import ctypes
import json
import logging
import math
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from threading import Lock
from typing import Any, Literal, Protocol

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, parse_flag_from_env
from diffusers.training_utils import EMAModel
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import SafetensorError, safe_open

from sidestep.config import load_config, save_config, settings
from sidestep.devices import choose_device, memory_format, network_dtype
from sidestep.errors import SidestepError
from sidestep.files import atomic_path, save_tensors, sweep

logger = logging.getLogger(__name__)

MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's names
SCALER = (
    "scaler"  # of fp16: the loss scale, its steps without overflow, and the optimiser's steps that were not skipped
)
# How accelerate may have spread the processes; the variables by which its launcher asks for other ways.
KINDS = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
OTHERS = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "parallelism of its own",
}
ONLY_DDP = "and training here knows DDP alone; launch with configs/accelerate-ddp.yaml, or with torchrun"
LOADERS = 4  # threads that make batches, one batch each
PATIENCE = timedelta(hours=2)  # how long processes wait for the first one, which may fetch a prior to validate with


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
        """The samples of a step, as cheap descriptions: which picture, which crop, which pair. Decided by `step`.

        What is random about a sample is drawn here, or from a seed that is drawn here, so that it does not depend on
        which process gets the sample.
        """
        ...

    def collate(self, samples: list[Any]) -> dict[str, torch.Tensor]:
        """The samples' tensors, on the CPU. Runs in threads, some steps ahead."""
        ...

    def loss(self, model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss to minimise, and figures to log beside it."""
        ...

    def validate(self, model: torch.nn.Module) -> tuple[dict[str, float], Image.Image | None]:
        """Figures over held-out data, and a picture to look at. `model` carries the averaged weights."""
        ...


class Training:
    """A network with its optimiser and its averaged weights, in this process and those beside it.

    Attributes:
        raw: the network itself; `model` is what accelerate made of it.
        parameters: those that are trained, by name.
        norm: of the last step's gradient, over all processes, before it was clipped.
    """

    def __init__(self, task: Task, config: LoopConfig, name: str) -> None:
        """Args:
            name: of the run, for errors.

        Raises:
            SidestepError: if the processes cannot share a batch equally, or accelerate is set to what this is not made
                for.
        """
        keep_freed_memory()
        self.task, self.config, self.name = task, config, name
        device = this_process().device
        precision: str = config.precision
        if precision == "fp32":
            precision = "no"  # accelerate's word, which YAML reads as false
        if precision == "auto":
            precision = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "no"}[network_dtype(device)]
        AcceleratorState._reset_state()  # it outlives its accelerator, and two networks may differ in precision
        # The gradients live in the buckets that are exchanged, not beside them.
        buckets = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
        self.accelerator = Accelerator(mixed_precision=precision, kwargs_handlers=[buckets])
        steps, kind = self.accelerator.gradient_accumulation_steps, self.accelerator.distributed_type
        if steps != 1:
            raise SidestepError(
                f"{name}: accelerate is set to gather gradients over {steps} steps, which training here does not; "
                "launch with configs/accelerate-ddp.yaml, or unset ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
            )
        if kind not in KINDS:
            raise SidestepError(f"{name}: accelerate is set to {kind.value}, {ONLY_DDP}")
        self.device = self.accelerator.device
        self.rank, self.processes = self.accelerator.process_index, self.accelerator.num_processes
        if config.batch_size % self.processes:
            raise SidestepError(
                f"batch_size {config.batch_size} cannot be shared by {self.processes} processes equally"
            )
        task.model.to(memory_format=memory_format(device))
        trained = [parameter for parameter in task.model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(
            trained, lr=config.learning_rate, weight_decay=config.weight_decay, fused=device.type in ("cpu", "cuda")
        )
        # DDP gives all processes the first one's weights.
        self.model, self.optimizer = self.accelerator.prepare(task.model, optimizer)
        self.raw = self.accelerator.unwrap_model(self.model)
        self.parameters = {
            name: parameter for name, parameter in self.raw.named_parameters() if parameter.requires_grad
        }
        self.ema = EMAModel(self.parameters.values(), decay=config.ema_decay, foreach=True)
        self.ema.to(self.device)
        self.norm = math.nan

    def samples(self, step: int) -> list[Any]:
        """This process's share of a step's samples."""
        return self.task.draw(step)[self.rank :: self.processes]

    def batches(self, start: int, stop: int) -> Generator[dict[str, torch.Tensor], None, None]:
        """The batches of this process from step `start` to the one before `stop`, made by threads some steps ahead."""
        drawing = Lock()

        def load(step: int) -> dict[str, torch.Tensor]:
            with drawing:  # tasks keep an epoch's order from one step to the next
                samples = self.samples(step)
            batch = self.task.collate(samples)
            return (
                {name: tensor.pin_memory() for name, tensor in batch.items()} if self.device.type == "cuda" else batch
            )

        with ThreadPoolExecutor(LOADERS) as pool:
            waiting = deque(pool.submit(load, step) for step in range(start, min(start + LOADERS, stop)))
            try:
                for step in range(start + LOADERS, stop + LOADERS):
                    batch = waiting.popleft().result()
                    if step < stop:
                        waiting.append(pool.submit(load, step))
                    yield batch
            finally:
                pool.shutdown(cancel_futures=True)

    def step(self, step: int, batch: dict[str, torch.Tensor]) -> tuple[float, dict[str, float]]:
        """One step of the optimiser; the loss over all processes' samples, and this process's other figures.

        Raises:
            SidestepError: in every process, if in any of them the loss or the gradient is no longer finite; the
                weights are then as they were.
        """
        config, accelerator = self.config, self.accelerator
        batch = {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}
        # Seeded by step, so that what a network draws by itself (dropout) is the same in a resumed run.
        torch.manual_seed(int(np.random.SeedSequence((config.seed, step, self.rank)).generate_state(1)[0]))
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * one_cycle(step / config.steps, config.warmup)
        loss, figures = self.task.loss(self.model, batch)
        accelerator.backward(loss)
        self.norm = float(accelerator.clip_grad_norm_(list(self.parameters.values()), config.clip_norm))
        # Shares are equal, so this is the mean over the batch; and no number in one process is none in all of them.
        shown = float(accelerator.reduce(loss.detach(), "mean"))
        # In fp16 a gradient may overflow: the loss scaler then skips the step by itself.
        if not math.isfinite(shown) or not (accelerator.mixed_precision == "fp16" or math.isfinite(self.norm)):
            raise SidestepError(
                f"{self.name}: the loss is {shown} and its gradient's norm {self.norm} at step {step} "
                f"(seed {config.seed}); the last good checkpoint is kept; lower learning_rate, or precision=fp32"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.step(self.parameters.values())
        return shown, figures

    def mean(self, figures: dict[str, float]) -> dict[str, float]:
        """The figures' means over the processes, every one of which has to ask."""
        if self.processes == 1:
            return figures
        values = torch.tensor([*figures.values()], dtype=torch.float32, device=self.device)
        return dict(zip(figures, self.accelerator.reduce(values, "mean").tolist(), strict=True))

    def average(self) -> torch.nn.Module:
        """The network with its averaged weights, which take the place of the trained ones."""
        self.ema.copy_to(self.parameters.values())
        return self.raw.eval()

    @contextmanager
    def averaged(self) -> Iterator[torch.nn.Module]:
        """The network with its averaged weights, for a while."""
        self.ema.store(self.parameters.values())
        yield self.average()
        self.raw.train()
        self.ema.restore(self.parameters.values())

    def save(self, path: Path, step: int) -> None:
        """Writes a checkpoint of `step` steps done; for one process alone.

        Raises:
            SidestepError: if it cannot be written.
        """
        tensors = {}
        for (name, parameter), average in zip(self.parameters.items(), self.ema.shadow_params, strict=True):
            tensors[f"model/{name}"] = parameter.detach()
            tensors[f"ema/{name}"] = average
            for moment in MOMENTS:
                # Without one yet where the loss scaler has skipped every step.
                tensors[f"{moment}/{name}"] = self.optimizer.state[parameter].get(moment, torch.zeros_like(parameter))
        scaler = self.accelerator.scaler
        if scaler is not None:
            steps = (float(state["step"]) for state in self.optimizer.state.values() if "step" in state)
            values = (scaler.get_scale(), scaler.state_dict()["_growth_tracker"], next(steps, 0.0))
            tensors[SCALER] = torch.tensor(values, dtype=torch.float64)
        tensors = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
        save_tensors(path, tensors, {"step": str(step)})

    def load(self, path: Path) -> int:
        """Takes up a checkpoint; the steps that it has done.

        Raises:
            SidestepError: if it is damaged or of another network.
        """
        kinds = ("model", "ema", *MOMENTS)
        state: dict[int, dict[str, torch.Tensor]] = {}
        try:
            with safe_open(path, framework="pt") as file:
                step = int(file.metadata()["step"])
                found = set(file.keys())
                if found - {SCALER} != {f"{kind}/{name}" for kind in kinds for name in self.parameters}:
                    raise ValueError("it holds other tensors")
                scale, tracker, updates = file.get_tensor(SCALER).tolist() if SCALER in found else (0.0, 0.0, step)
                for index, ((name, parameter), average) in enumerate(
                    zip(self.parameters.items(), self.ema.shadow_params, strict=True)
                ):
                    weight, averaged, *moments = (file.get_tensor(f"{kind}/{name}") for kind in kinds)
                    if weight.shape != parameter.shape:
                        raise ValueError(f"{name} is of shape {tuple(weight.shape)}, not {tuple(parameter.shape)}")
                    parameter.data.copy_(weight)
                    average.copy_(averaged)
                    # Laid out in memory as the parameter is: the fused AdamW walks through both in one count.
                    laid_out = (torch.empty_like(parameter).copy_(moment) for moment in moments)
                    state[index] = {"step": torch.tensor(float(updates)), **dict(zip(MOMENTS, laid_out, strict=True))}
        except (SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise SidestepError(
                f"{path}: damaged, or made for another network ({reason}); delete it to start over, or name another "
                "folder"
            ) from None
        # Through the optimiser's own loading, which knows on which device it wants each of these.
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
        self.ema.optimization_step = step
        scaler = self.accelerator.scaler
        if scaler is not None and scale > 0:
            scaler.load_state_dict({**scaler.state_dict(), "scale": scale, "_growth_tracker": int(tracker)})
        return step


def fit(task: Task, config: LoopConfig, run: Path, experiment: Any = None) -> torch.nn.Module:
    """Trains `task.model` in the folder `run`, and returns it with its averaged weights.

    If `run` holds a checkpoint, training goes on from it; if that checkpoint is the last one, nothing is trained.
    The folder gets `config.yaml` (the resolved `experiment`), `git-revision.txt`, `metrics.jsonl`, TensorBoard's
    files where it is installed, `samples/` and `checkpoint.safetensors`.

    Of several processes (torchrun, accelerate launch) each takes its share of every batch; the first one alone writes
    and validates, and all of them return the same network.

    Raises:
        SidestepError: if the checkpoint is damaged or belongs to another network, the loss is no longer finite, or the
            processes cannot work together.
    """
    training = Training(task, config, run.name)
    checkpoint = run / "checkpoint.safetensors"
    start = training.load(checkpoint) if checkpoint.exists() else 0
    starts = training.accelerator.gather(torch.tensor([start], device=training.device)).tolist()
    if len(set(starts)) > 1:
        raise SidestepError(
            f"{run}: not every process finds the same checkpoint there; use a folder that all machines see"
        )
    if start >= config.steps:
        return training.average()
    log = _begin(run, experiment) if training.rank == 0 else None

    training.model.train()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        _together(training),
        closing(training.batches(start, config.steps)) as batches,
        Progress(*columns, disable=log is None or not sys.stderr.isatty()) as progress,
    ):
        bar = progress.add_task(run.name, total=config.steps, completed=start)
        for step, batch in enumerate(batches, start):
            loss, figures = training.step(step, batch)
            done = step + 1
            progress.update(bar, completed=done, description=f"{run.name} loss {loss:.4f}")
            if done % 20 == 0 or done == config.steps:
                figures = training.mean(figures)
                if log:
                    log.write(done, {"loss": loss, "gradient_norm": training.norm, **figures})
            if log and (done % config.save_every == 0 or done == config.steps):
                training.save(checkpoint, done)
            if done % config.sample_every == 0 or done == config.steps:
                if log:
                    with training.averaged() as model:
                        log.validation(done, *task.validate(model))
                training.accelerator.wait_for_everyone()
    return training.average()


def this_process() -> PartialState:
    """This process and, where torchrun or `accelerate launch` started several, its place among them.

    To be asked before any other part of accelerate, which on a machine without a GPU would take each of the processes
    for the only one.

    Raises:
        SidestepError: if accelerate is set to more than DDP.
    """
    for variable, asked in OTHERS.items():  # before accelerate misses a package, or begins what it is asked for
        if os.environ.get(variable, "").lower() == "true":
            raise SidestepError(f"accelerate is set to {asked} ({variable}), {ONLY_DDP}")
    on_cpu = choose_device().type == "cpu" or parse_flag_from_env("ACCELERATE_USE_CPU")
    return PartialState(cpu=on_cpu, timeout=PATIENCE)


@contextmanager
def _together(training: Training) -> Iterator[None]:
    """That another process is gone is not a defect of this one."""
    try:
        yield
    except RuntimeError as error:
        if training.processes > 1 and (isinstance(error, torch.distributed.DistError) or "gloo" in str(error)):
            raise SidestepError(
                f"{training.name}: process {training.rank} has lost another one, whose own message says why; run the "
                "same command again to go on from the last checkpoint"
            ) from None
        raise


def _begin(run: Path, experiment: Any) -> "_Log":
    """Makes the run's folder, or clears what a killed process has left in it."""
    sweep(run, {"checkpoint.safetensors"})
    run.mkdir(parents=True, exist_ok=True)
    if not (run / "checkpoint.safetensors").exists():
        (run / "git-revision.txt").write_text(_git_revision() + "\n", encoding="utf-8")
    if experiment is not None:
        _name_changes(experiment, run / "config.yaml")
        save_config(experiment, run / "config.yaml")
    return _Log(run)


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
