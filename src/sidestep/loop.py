"""One training loop for every network: accelerate, EMA, clipping, one-cycle schedule, exact resume.

A step's data depend on (seed, step) alone, so a run that was killed and started again sees the same batches in the
same order as one that was not, with nothing to restore but the weights and the optimiser's moments. Several processes
divide each batch, so their number changes nothing but the order of sums. What a checkpoint holds is checked when it is
taken up, and what was logged after it is taken back.
"""

import ctypes
import math
import os
import sys
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
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
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import SafetensorError

from sidestep.checksums import read_tensors
from sidestep.config import settings
from sidestep.devices import choose_device, memory_format, network_dtype
from sidestep.errors import SidestepError
from sidestep.files import alone, make_folder, save_tensors
from sidestep.run_folder import begin_run, has_validation

MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's names
# Of fp16: the loss scale, its steps without overflow, and the optimiser's steps that were not skipped.
SCALER = "scaler"
# How accelerate may have spread the processes; the variables by which its launcher asks for other ways.
KINDS = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
OTHERS = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "parallelism of its own",
}
ONLY_DDP = "and training here knows DDP alone; launch with configs/accelerate-ddp.yaml, or with torchrun"
LEAST_SCALE = 1.0  # of fp16's loss: gradients that overflow even so are too large by themselves
LOADERS = 2  # threads that make batches, one batch each; more wait for each other, for Python runs one at a time
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
        deterministic: take only algorithms that give the same bits again on the same machine. A CPU's do so anyhow,
            with the same number of threads; on a GPU it may take longer.
        save_every, sample_every: steps between two checkpoints, and between two validations with pictures.
    """

    steps: NonNegativeInt
    batch_size: PositiveInt = 32
    learning_rate: NonNegativeFloat = 1e-4
    warmup: float = 0.05
    weight_decay: NonNegativeFloat = 0.01
    ema_decay: float = 0.999
    clip_norm: float = 1.0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    deterministic: bool = False
    save_every: PositiveInt = 200
    sample_every: PositiveInt = 500
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
        """The samples' tensors, on the CPU, a row a sample. Runs in threads, some steps ahead."""
        ...

    def name(self, sample: Any) -> str:
        """What a sample is made of, for whoever has to look at it: a scene and its frames, or a picture."""
        ...

    def loss(self, model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss to minimise, and figures to log beside it."""
        ...

    def validate(self, model: torch.nn.Module) -> tuple[dict[str, float], Image.Image | None]:
        """Figures over held-out data, and a picture to look at. `model` carries the averaged weights."""
        ...


def _is_finite(row: dict[str, torch.Tensor]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in row.values())


class Training:
    """A network with its optimiser and its averaged weights, in this process and those beside it.

    Attributes:
        model: what accelerate made of the task's network, to run it.
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
        if precision == "auto":
            precision = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}[network_dtype(device)]
        if precision == "fp32":
            precision = "no"  # accelerate's word, which YAML reads as false
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
        # Of the network itself: wrapped by DDP, or compiled (ACCELERATE_DYNAMO_BACKEND), it has other names for them.
        self.parameters = {
            name: parameter for name, parameter in task.model.named_parameters() if parameter.requires_grad
        }
        optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=device.type in ("cpu", "cuda"),
        )
        # DDP gives all processes the first one's weights.
        self.model, self.optimizer = self.accelerator.prepare(task.model, optimizer)
        self.ema = EMAModel(self.parameters.values(), decay=config.ema_decay, foreach=True)
        self.ema.to(self.device)
        self.norm = math.nan
        self._drawing = Lock()  # tasks keep an epoch's order from one step to the next

    def samples(self, step: int) -> list[Any]:
        """This process's share of a step's samples."""
        with self._drawing:
            return self.task.draw(step)[self.rank :: self.processes]

    def batches(self, start: int, stop: int) -> Generator[dict[str, torch.Tensor], None, None]:
        """The batches of this process from step `start` to the one before `stop`, made by threads some steps ahead."""

        def load(step: int) -> dict[str, torch.Tensor]:
            batch = self.task.collate(self.samples(step))
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
            SidestepError: in every process, if in any of them the loss or the gradient is no longer finite, or fp16
                overflows at every loss scale; the weights are then as they were. It names the samples.
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
        if not math.isfinite(shown) or not (math.isfinite(self.norm) or self._may_skip()):
            raise SidestepError(
                f"{self.name}: the loss is {shown} and its gradient's norm {self.norm} at step {step} "
                f"(seed {config.seed}), {self._blame(step, batch)}; the last good checkpoint is kept"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.step(self.parameters.values())
        return shown, figures

    def _may_skip(self) -> bool:
        """Whether the loss scaler of fp16 may skip the step, and try the next ones with a smaller scale."""
        scaler = self.accelerator.scaler
        return scaler is not None and scaler.get_scale() >= LEAST_SCALE

    @torch.no_grad()
    def _blame(self, step: int, batch: dict[str, torch.Tensor]) -> str:
        """Which samples of this process's share have brought a step to no number, and what to do."""
        names = [self.task.name(sample) for sample in self.samples(step)]
        rows = [{name: tensor[row : row + 1] for name, tensor in batch.items()} for row in range(len(names))]
        for told, is_good in (("numbers that are not finite in", _is_finite), ("no finite loss of", self._has_loss)):
            faulty = [name for name, row in zip(names, rows, strict=True) if not is_good(row)]
            if 0 < len(faulty) < len(names) or (faulty and is_good is _is_finite):
                return f"with {told} {', '.join(faulty)}: look at what they are made of (`sidestep verify`)"
        return f"with {', '.join(names)}: lower learning_rate, or precision=fp32"

    def _has_loss(self, row: dict[str, torch.Tensor]) -> bool:
        return math.isfinite(float(self.task.loss(self.task.model, row)[0]))

    def mean(self, figures: dict[str, float]) -> dict[str, float]:
        """The figures' means over the processes, every one of which has to ask."""
        if self.processes == 1:
            return figures
        values = torch.tensor([*figures.values()], dtype=torch.float32, device=self.device)
        return dict(zip(figures, self.accelerator.reduce(values, "mean").tolist(), strict=True))

    def average(self) -> torch.nn.Module:
        """The network with its averaged weights, which take the place of the trained ones."""
        self.ema.copy_to(self.parameters.values())
        return self.task.model.eval()

    @contextmanager
    def averaged(self) -> Iterator[torch.nn.Module]:
        """The network with its averaged weights, for a while."""
        self.ema.store(self.parameters.values())
        yield self.average()
        self.task.model.train()
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
            stored, metadata = read_tensors(path)
            step = int(metadata["step"])
            if stored.keys() - {SCALER} != {f"{kind}/{name}" for kind in kinds for name in self.parameters}:
                raise ValueError("it holds other tensors")
            scale, tracker, updates = stored[SCALER].tolist() if SCALER in stored else (0.0, 0.0, step)
            for index, ((name, parameter), average) in enumerate(
                zip(self.parameters.items(), self.ema.shadow_params, strict=True)
            ):
                weight, averaged, *moments = (stored[f"{kind}/{name}"] for kind in kinds)
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
        SidestepError: if the checkpoint is damaged or belongs to another network, the loss is no longer finite, another
            run is at work in the folder, or the processes cannot work together.
    """
    with deterministic(config.deterministic):
        return _fit(Training(task, config, run.name), run, experiment)


def _fit(training: Training, run: Path, experiment: Any) -> torch.nn.Module:
    task, config = training.task, training.config
    checkpoint = run / "checkpoint.safetensors"
    start = training.load(checkpoint) if checkpoint.exists() else 0
    starts = training.accelerator.gather(torch.tensor([start], device=training.device)).tolist()
    if len(set(starts)) > 1:
        raise SidestepError(
            f"{run}: not every process finds the same checkpoint there; use a folder that all machines see"
        )
    first = training.rank == 0
    # Killed between the checkpoint and its validation, a run has that still to do.
    missed = first and _is_validated_at(start, config) and not has_validation(run, start)
    if start >= config.steps and not missed:
        return training.average()
    if first:
        make_folder(run)
    busy = f"{run}: another process trains in it; wait for that one to end, or name another folder"
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        alone(run / ".lock", busy) if first else nullcontext(),
        _together(training),
        closing(training.batches(start, config.steps)) as batches,
        Progress(*columns, disable=not first or not sys.stderr.isatty()) as progress,
    ):
        log = begin_run(run, experiment, start) if first else None
        if log and missed:
            with training.averaged() as model:
                log.validation(start, *task.validate(model))
        training.model.train()
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
            if _is_validated_at(done, config):
                if log:
                    with training.averaged() as model:
                        log.validation(done, *task.validate(model))
                training.accelerator.wait_for_everyone()
    return training.average()


def _is_validated_at(done: int, config: LoopConfig) -> bool:
    return 0 < done <= config.steps and (done % config.sample_every == 0 or done == config.steps)


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Has torch take deterministic algorithms only, for a while.

    Raises:
        SidestepError: if an operation has none on this device.
    """
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the GPU's first product is made
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        raise SidestepError(f"deterministic=true: {str(error).splitlines()[0]}; leave it off, or use a CPU") from None
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


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
