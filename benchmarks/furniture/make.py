"""Renders scenes of furnished rooms: the world that models are trained and tested on.

    python benchmarks/furniture/make.py --models models/catalogue models/infinigen --out data/world --scenes 400

Run it with the Python that has bpy (requirements.txt). The same command goes on where it was stopped: scenes that are
there are kept. A scene depends on the models and on its number, never on the workers or on what was rendered before;
world.json notes the models and the size, and a world goes on with no others. What fails is tried once, is written to
.failed/ with Blender's last words, and is passed over from then on; a few failures in a row that are all alike end the
run, and are tried again.
"""

import argparse
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from world import scene_order

from models import FurnitureError, Model, digest, read_models

FAILED = ".failed"
SETTINGS = "world.json"
LIMIT = 3600  # seconds; a scene takes one or two minutes
ALIKE = 3  # failures in a row with the same last line: not the scenes are at fault, but what renders them


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


def check_blender() -> None:
    """Imports Blender once, in a process of its own.

    Raises:
        FurnitureError: if that fails.
    """
    done = subprocess.run([sys.executable, "-c", "import bpy, OpenEXR"], capture_output=True, text=True)
    if done.returncode:
        why = (done.stderr.strip() or f"ended with {done.returncode}").splitlines()[-1]
        raise FurnitureError(
            f"{sys.executable} cannot import bpy and OpenEXR ({why}); run this with the Python of requirements.txt's "
            "environment, and install the system's libraries that it misses"
        )


def settle(out: Path, models: Sequence[Model], size: int, every: int) -> None:
    """Notes in a world's folder what it is made with. A world that was begun without the note gets it now.

    Raises:
        FurnitureError: if the world was begun with other models, another size or other cameras, or the note is damaged.
    """
    path, settings = out / SETTINGS, {"size": size, "every": every, "models": digest(models)}
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        os.replace(part, path)
        return
    try:
        begun = json.loads(path.read_text(encoding="utf-8"))
        begun.setdefault("every", 1)  # as it was before worlds noted it
        other = [key for key in settings if begun[key] != settings[key]]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise FurnitureError(f"{path}: cannot be read ({error}); write it again or delete it") from None
    for key in ("size", "every"):
        if key in other:
            raise FurnitureError(f"{out}: begun with --{key} {begun[key]}; go on with that, or begin another --out")
    if other:
        raise FurnitureError(f"{out}: begun with other models than these; go on with those, or begin another --out")


class Renderer:
    """Renders scenes, each in a process of its own.

    Args:
        folders: of models.
        size: of the pictures, in pixels.
        every: of so many cameras of a scene the first is taken.
    """

    def __init__(self, folders: Sequence[Path], size: int, every: int) -> None:
        self.folders, self.size, self.every = folders, size, every
        self._running: set[subprocess.Popen[str]] = set()
        self._stopped = False
        self._lock = threading.Lock()

    def render(self, job: Job) -> str | None:
        """Renders a scene; returns its last words if it failed, of which the last line says why."""
        command = [sys.executable, str(Path(__file__).with_name("render.py")), "--models", *map(str, self.folders)]
        command += ["--name", job.model.name, "--variant", str(job.variant)]
        command += ["--size", str(self.size), "--every", str(self.every), "--out", str(job.out)]
        with tempfile.TemporaryDirectory() as folder:  # here, because a renderer that is ended leaves its files
            # One thread each: several renderers that all want all cores only get into each other's way.
            environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TMPDIR": folder}
            return self._run(command, environment)

    def _run(self, command: Sequence[str], environment: Mapping[str, str]) -> str | None:
        with self._lock:
            if self._stopped:
                return "stopped"
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", env=environment
            )
            self._running.add(process)
        try:
            output, errors = process.communicate(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return f"not done after {LIMIT} s"
        finally:
            with self._lock:
                self._running.remove(process)
        if process.returncode == 0:
            return None
        return f"{output[-4000:]}\nended with {process.returncode}\n{errors[-4000:]}".strip()

    def stop(self) -> None:
        """Ends what is being rendered; nothing more is begun."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.terminate()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, nargs="+", required=True, help="folders of models")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=400)
    parser.add_argument("--split", choices=("train", "val", "test"), help="of this split only")
    parser.add_argument("--workers", type=int, default=1, help="processes, of one thread each")
    parser.add_argument("--size", type=int, default=256, help="of the pictures, in pixels")
    parser.add_argument("--every", type=int, default=1, help="take the first of so many cameras; 2 gives 13 frames")
    options = parser.parse_args(arguments)
    check_blender()
    models = read_models(*options.models)
    wanted = jobs(models, options.out, options.scenes, options.split)
    settle(options.out, models, options.size, options.every)
    left = [job for job in wanted if not job.out.is_dir() and not job.failure.exists()]
    print(f"{len(wanted)} scenes, {len(wanted) - len(left)} there or given up before", flush=True)
    for folder in options.models:
        for licence in folder.glob("LICENSE*"):
            shutil.copy(licence, options.out / licence.name)
    started, failures, last = time.monotonic(), 0, ""
    alike: list[Job] = []
    renderer, pool = Renderer(options.models, options.size, options.every), ThreadPoolExecutor(options.workers)
    try:
        waiting = {pool.submit(renderer.render, job): job for job in left}
        for i, done in enumerate(as_completed(waiting), 1):
            words, job = done.result(), waiting[done]
            end = words.splitlines()[-1] if words else "done"
            alike, last = [*(alike if end == last else ()), job], end
            if words is not None:
                failures += 1
                job.failure.parent.mkdir(parents=True, exist_ok=True)
                job.failure.write_text(words + "\n", encoding="utf-8")
            minutes = (time.monotonic() - started) / i * (len(left) - i) / 60
            print(f"[{i}/{len(left)}] {job.out.name}: {end}; about {minutes:.0f} min left", flush=True)
            if words is not None and len(alike) == ALIKE:
                for each in alike:
                    each.failure.unlink()
                raise FurnitureError(f"stopped: {ALIKE} scenes in a row failed alike ({end}); put that right first")
    finally:
        renderer.stop()
        pool.shutdown(cancel_futures=True)
    if failures:
        raise FurnitureError(
            f"{failures} scenes failed: see {options.out / FAILED}; delete a file there to try its scene again"
        )


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        main()
    except FurnitureError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on from here")
