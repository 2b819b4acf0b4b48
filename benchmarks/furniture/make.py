"""Renders scenes of furnished rooms: the world that models are trained and tested on.

    python benchmarks/furniture/make.py --models models/catalogue models/infinigen --out data/world --scenes 400

Run it with the Python that has bpy (requirements.txt). The same command goes on where it was stopped: scenes that are
there are kept. A scene depends on the models and on its number, never on the workers or on what was rendered before.
What fails is tried once, is written to .failed/ with Blender's last words, and is passed over from then on.
"""

import argparse
import importlib.util
import itertools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from models import FurnitureError, Model, read_models
from world import scene_order

FAILED = ".failed"
LIMIT = 3600  # seconds; a scene takes one or two minutes


@dataclass(frozen=True)
class Job:
    """A scene to render: of which model, its number among the model's, and its folder."""

    model: Model
    variant: int
    out: Path

    @property
    def failure(self) -> Path:
        return self.out.parents[1] / FAILED / f"{self.out.name}.txt"


def jobs(models: Sequence[Model], out: Path, scenes: int, split: str | None = None) -> list[Job]:
    """The first `scenes` scenes of the world, or of one split of it, in their fixed order.

    Raises:
        FurnitureError: if no model may be what a scene shows.
    """
    if not any(model.main and split in (None, model.split) for model in models):
        raise FurnitureError(f"none of the {len(models)} models may be what a scene of {split or 'any split'} shows")
    order = ((model, v) for model, v in scene_order(models) if split in (None, model.split))
    return [Job(model, v, out / model.category / f"{model.name}s{v}") for model, v in itertools.islice(order, scenes)]


def render(job: Job, folders: Sequence[Path], size: int) -> str | None:
    """Renders a scene in a process of its own; returns its last words if it failed, of which the last line says why."""
    command = [sys.executable, str(Path(__file__).with_name("render.py")), "--models", *map(str, folders)]
    command += ["--name", job.model.name, "--variant", str(job.variant), "--size", str(size), "--out", str(job.out)]
    # One thread each: several renderers that all want all cores only get into each other's way.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return f"not done after {LIMIT} s"
    if done.returncode == 0:
        return None
    return f"{done.stdout[-4000:]}\nended with {done.returncode}\n{done.stderr[-4000:]}".strip()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, nargs="+", required=True, help="folders of models")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=400)
    parser.add_argument("--split", choices=("train", "val", "test"), help="of this split only")
    parser.add_argument("--workers", type=int, default=1, help="processes, of one thread each")
    parser.add_argument("--size", type=int, default=256, help="of the pictures, in pixels")
    options = parser.parse_args(arguments)
    if importlib.util.find_spec("bpy") is None:
        raise FurnitureError(f"{sys.executable} has no bpy; run this with the Python of requirements.txt's environment")
    wanted = jobs(read_models(*options.models), options.out, options.scenes, options.split)
    left = [job for job in wanted if not job.out.is_dir() and not job.failure.exists()]
    print(f"{len(wanted)} scenes, {len(wanted) - len(left)} there or given up before", flush=True)
    for folder in options.models:
        for licence in folder.glob("LICENSE*"):
            options.out.mkdir(parents=True, exist_ok=True)
            shutil.copy(licence, options.out / licence.name)
    started, failures = time.monotonic(), 0
    pool = ThreadPoolExecutor(options.workers)
    try:
        waiting = {pool.submit(render, job, options.models, options.size): job for job in left}
        for i, done in enumerate(as_completed(waiting), 1):
            words, job = done.result(), waiting[done]
            if words is not None:
                failures += 1
                job.failure.parent.mkdir(parents=True, exist_ok=True)
                job.failure.write_text(words + "\n", encoding="utf-8")
            minutes = (time.monotonic() - started) / i * (len(left) - i) / 60
            end = words.splitlines()[-1] if words else "done"
            print(f"[{i}/{len(left)}] {job.out.name}: {end}; about {minutes:.0f} min left", flush=True)
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupt must not wait for all that is queued
    if failures:
        print(f"{failures} scenes failed: see {options.out / FAILED}; delete a file there to try its scene again")


if __name__ == "__main__":
    try:
        main()
    except FurnitureError as error:
        sys.exit(str(error))
