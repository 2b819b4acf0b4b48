"""An engine for `encoding.py`: shards made by the workers of a Ray cluster, handed out by Ray Data.

Ray starts the workers, one a GPU, hands each its next shard, and gives the shard of a worker or machine that is lost to
another. The shards' files are all the state there is, so a run that is killed and started again goes on with those
that are missing.
"""

import logging
import os
import pickle
import platform
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sidestep.encoding import Job, Shard, make_shard
from sidestep.errors import SidestepError
from sidestep.models import model_folder
from sidestep.prior import LatentPrior

logger = logging.getLogger(__name__)

# How many workers may die of one shard; Ray would give it to others for ever.
TRIES = 4

# Cores that a worker with a GPU asks for at most: it uses few, and a machine that does other work has seldom all free.
GPU_CORES = 4

PATIENCE = 60.0  # seconds until it is told that no worker has a place yet

# For a cluster of this machine alone. Ray reads them when it is imported, and so do the processes that it starts.
LOCAL = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # in spite of the name: listen on the loopback only, on Linux too
}


@dataclass(frozen=True)
class RayEngine:
    """Makes shards on the cluster that RAY_ADDRESS names, or else on one of this machine alone that ends with the work.

    In a process that is connected to a cluster already, that one is used. Workers find the prior, the photos and the
    store under the same paths as this process. They load the prior by its name alone, so one that was loaded with more
    than that (dtype, config, prediction_type, revision) should be saved to a folder first and loaded from there.

    Attributes:
        workers: processes that encode; None for one a GPU, or one a machine where the cluster has no GPU. They share
            the cores of their machines.
        device: "cpu" or "cuda"; None for the best that the cluster has.
    """

    workers: int | None = None
    device: str | None = None

    def __call__(self, prior: LatentPrior, job: Job, shards: Sequence[Shard]) -> Iterator[Shard]:
        """Makes the shards, and yields each once it is there. `prior` stays here: the workers load their own.

        Raises:
            SidestepError: if Ray is not installed, the cluster is not found or too small, a worker cannot read or
                write what it must, or workers die again and again.
        """
        with _cluster() as (ray, may_grow):
            machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            workers, cores, device = self._divide(
                [(int(machine.get("CPU", 0)), int(machine.get("GPU", 0))) for machine in machines], may_grow
            )
            logging.getLogger("ray.data").setLevel(logging.ERROR)
            context = ray.data.DataContext.get_current()
            context.enable_progress_bars = context.print_on_execution_start = False
            for shard in shards:
                _tries(shard.file).unlink(missing_ok=True)
            # A block a shard, because a block is what Ray hands out.
            blocks = ray.data.from_items(_Rows(shards), override_num_blocks=len(shards))
            made = blocks.map(
                _Worker,
                fn_constructor_args=(job, device, os.getcwd(), platform.node()),
                compute=ray.data.ActorPoolStrategy(size=min(workers, len(shards)), max_tasks_in_flight_per_actor=1),
                num_cpus=cores,
                num_gpus=1 if device == "cuda" else 0,
            )
            timer = threading.Timer(PATIENCE, _tell_of_waiting, (shards, cores, device))
            timer.daemon = True
            if may_grow:
                timer.start()
            try:
                for row in made.iter_rows():
                    if row["error"]:
                        raise SidestepError(row["error"])
                    yield shards[row["index"]]
            finally:
                timer.cancel()

    def _divide(self, machines: Sequence[tuple[int, int]], may_grow: bool) -> tuple[int, int, str | None]:
        """How many workers, with how many cores each, on which device.

        Args:
            machines: CPU cores and GPUs of each.
            may_grow: whether more machines may join, so that workers without a place may wait for one.
        """
        device = self.device or ("cuda" if any(gpus for _, gpus in machines) else None)
        if device is not None and ":" in device:
            raise SidestepError(f"device {device!r}: Ray chooses each worker's; say {device.partition(':')[0]!r}")

        def places(cores: int) -> int:
            return sum(min(cpus // cores, gpus if device == "cuda" else cpus) for cpus, gpus in machines)

        if may_grow and device is None:
            logger.warning("the cluster has no GPU now, so CPUs encode; device cuda waits for machines that have one")
        most = min(GPU_CORES, max(machines)[0]) if device == "cuda" else max(machines)[0]
        usual = sum(gpus if device == "cuda" else cpus > 0 for cpus, gpus in machines)
        workers = self.workers or max(1, usual)
        if places(1) >= workers:
            return workers, max(cores for cores in range(1, most + 1) if places(cores) >= workers), device
        if not may_grow:
            kind = "GPU" if device == "cuda" else "core"
            raise SidestepError(
                f"{workers} workers need a {kind} each, and there is room for {places(1)}; ask for fewer"
            )
        logger.warning("the cluster has room for %d of %d workers; the others wait for machines", places(1), workers)
        return workers, 1, device


class _Rows(Sequence[dict[str, Any]]):
    """What workers are given of each shard, made when it is asked for.

    A scene's points take much more memory than the rest of it. Ray keeps one copy, on the disk where there are too
    many, and asks for one row after the other.
    """

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.shards = shards

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, index: Any) -> Any:
        shard = self.shards[index]
        return {"index": index, "file": str(shard.file), "shard": pickle.dumps(shard)}


class _Worker:
    """Makes shards in a process of its own. What goes wrong is told in the row that comes back, in one line.

    Args:
        device: as in `RayEngine`.
        folder: what relative paths start from.
        host: the machine that started the work.
    """

    def __init__(self, job: Job, device: str | None, folder: str, host: str) -> None:
        self.job, self.device = job, device
        self.where = "" if platform.node() == host else f" (on {platform.node()})"
        self.prior: LatentPrior | None = None
        with suppress(OSError):
            os.chdir(folder)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        error = ""
        try:
            self._make(Path(row["file"]), row["shard"])
        except SidestepError as problem:
            error = f"{problem}{self.where}"
        except (MemoryError, torch.OutOfMemoryError):
            error = f"not enough memory for a worker{self.where}; make batches smaller, or ask for fewer workers"
        except OSError as problem:
            told = f"{problem.filename}: {problem.strerror}" if problem.filename else str(problem)
            error = f"{told}{self.where}"
        return {"index": row["index"], "error": error}

    def _make(self, file: Path, pickled: bytes) -> None:
        if not file.with_name("store.json").exists():
            raise SidestepError(f"{file.parent}: not here; give --out a folder that all machines share")
        with _tries(file).open("ab") as count:
            count.write(b".")
            begun = count.tell()
        if begun > TRIES:
            raise SidestepError(f"{file}: {TRIES} workers died making it, of too little memory perhaps; see Ray's logs")
        if self.prior is None:
            prior = LatentPrior.from_pretrained(model_folder(self.job.prior), self.device)
            if prior.fingerprint() != self.job.prior_fingerprint:
                raise SidestepError(f"{self.job.prior}: another prior than where the work was started; copy it anew")
            self.prior = prior
        make_shard(self.prior, self.job, pickle.loads(pickled))


def _tell_of_waiting(shards: Sequence[Shard], cores: int, device: str | None) -> None:
    """Warns where no worker has begun a shard; Ray would wait for ever without a word."""
    if not any(path.exists() for shard in shards for path in (_tries(shard.file), shard.file)):
        wanted = f"{cores} cores" + (" and a GPU" if device == "cuda" else "")
        logger.warning("no worker has begun yet; each needs %s, which other work may hold (see `ray status`)", wanted)


def _tries(file: Path) -> Path:
    """Where it is counted, a byte each, how often a shard was begun; swept with temporary files in the end."""
    return file.with_name(f".{file.stem}.tries.part{file.suffix}")


@contextmanager
def _cluster() -> Iterator[tuple[Any, bool]]:
    """Ray, connected, and whether its cluster may grow."""
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        for name, value in LOCAL.items():
            os.environ.setdefault(name, value)
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else its C++ writes to stderr, past every logger
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise SidestepError(f"the engine ray needs {error.name}: pip install 'sidestep[ray]'") from None
    if ray.is_initialized():
        yield ray, True
        return
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        if address:
            ray.init(address, **quiet)
        else:
            ray.init("local", include_dashboard=False, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        told = " ".join(str(error).split())
        raise SidestepError(f"no Ray cluster at {address or 'this machine'} ({told}); see RAY_ADDRESS") from None
    if in_main:
        signal.signal(signal.SIGTERM, handler)  # Ray's own ends the process without a word
    try:
        # Ray prints what befalls its workers to stdout, which is for results.
        with redirect_stdout(sys.stderr):
            yield ray, bool(address)
    finally:
        ray.shutdown()
