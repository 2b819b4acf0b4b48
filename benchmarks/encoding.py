"""How fast frames are encoded by one process, and by the workers of a Ray cluster of this machine.

The rate counts from when the first shard is there to when the last is, without that first one: starting Ray and loading
the prior have a column of their own, which is the same for one scene and for a million. One process uses all threads,
workers share them. The last column compares the stores byte by byte; another number of threads may round otherwise.
"""

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import held_out
import torch
from table import markdown, publish, run

from sidestep.captures import Scene, read_captures
from sidestep.devices import choose_device
from sidestep.encoding import Engine, encode_captures, encode_here
from sidestep.encoding_ray import RayEngine
from sidestep.inversion import InversionSettings
from sidestep.models import model_folder
from sidestep.prior import LatentPrior


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", default="bundled", help="prior's folder or hub id [bundled]")
    parser.add_argument("--data", type=Path, required=True, help="captures")
    parser.add_argument("--scenes", type=int, default=16, help="of the captures, evenly spread; each is a shard [16]")
    parser.add_argument("--frames", type=int, default=8, help="of each scene, the first ones [8]")
    parser.add_argument("--steps", type=int, default=30, help="of the inversion [30]")
    parser.add_argument("--batch-size", type=int, default=8, help="frames inverted together [8]")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="of Ray, a row each [1 2]")
    parser.add_argument("--device", help="cpu or cuda [the best one present]")
    parser.add_argument("--out", type=Path, help="markdown file to write the table to")
    options = parser.parse_args(arguments)
    scenes = read_captures(options.data.absolute())
    scenes = held_out.spread(scenes, options.scenes)
    scenes = [replace(scene, frames=scene.frames[: options.frames]) for scene in scenes]
    engines: dict[str, Engine] = {"one process": encode_here}
    for workers in options.workers:
        engines[f"Ray, {workers} worker{'s' * (workers > 1)}"] = RayEngine(workers, options.device)
    rows, stores = [], []
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, engine) in enumerate(engines.items()):
            prior = LatentPrior.from_pretrained(
                model_folder(options.prior), options.device if engine is encode_here else "cpu"
            )
            out = Path(folder, str(number))
            figures = measure(prior, scenes, out, engine, options)
            stores.append([path.read_bytes() for path in sorted(out.glob("shard-*"))])
            same = "" if number == 0 else "same" if stores[-1] == stores[0] else "other"
            rows.append([name, *(f"{figure:.2f}" for figure in figures), same])
    device = choose_device(options.device)
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} threads of the CPU"
    frames = sum(len(scene.frames) for scene in scenes)
    caption = (
        f"{platform.machine()}, {where}, torch {torch.__version__}, prior {options.prior}, {options.steps} steps, "
        f"batches of {options.batch_size}, {frames} frames in {len(scenes)} shards. "
        f"{os.getloadavg()[0]:.1f} processes wanted to run at the end (load average)."
    )
    publish(markdown(caption, ["", "frames/s", "first shard after, s", "bytes"], rows), options.out)


def measure(
    prior: LatentPrior, scenes: list[Scene], out: Path, engine: Engine, options: argparse.Namespace
) -> tuple[float, float]:
    """Frames a second, and the seconds until the first shard was there."""
    told: list[tuple[float, int]] = []
    settings = InversionSettings(prior.default_t_star(), options.steps)
    encode_captures(
        prior,
        scenes,
        out,
        settings,
        prior_name=options.prior,
        scenes_per_shard=1,
        batch_size=options.batch_size,
        engine=engine,
        progress=lambda done, _: told.append((time.perf_counter(), done)),
    )
    (started, _), (first, few), *_, (last, all_) = told
    return (all_ - few) / (last - first), first - started


if __name__ == "__main__":
    run(main)
