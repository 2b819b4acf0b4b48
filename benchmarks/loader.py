"""Whether reading latents limits training: how fast pairs are read from a store of the paper's size and shape.

A store of random numbers is written first: latents of 4x64x64 float16, as Stable Diffusion's, 8 scenes a shard. Then,
each in a fresh process: how long opening takes and what it holds in memory; and how many pairs a second become batches
of 32 as in training, by one thread and by the loop's own. "Not in memory": the store's pages are dropped from the
system's cache before (posix_fadvise), so every pair comes from the disk. "In memory": the same pairs again. The
processor's time is that of all threads.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from table import markdown, publish, run

import sidestep.loop
from sidestep.cameras import Camera
from sidestep.checksums import with_checksums
from sidestep.latents import FORMAT, LATENTS, LatentStore, plan_digest, shard_path
from sidestep.loop import LOADERS, LoopConfig, Training
from sidestep.training import TrainConfig, _TUNetTask
from sidestep.trajectories import orbit

SCENES_PER_SHARD = 8
BATCH = 32
GPU_STEPS = 20  # a second: what a fast GPU may ask for
TINY = {"block_out_channels": (8, 8, 8, 8), "head_dim": 8, "cross_attention_dim": 8, "norm_groups": 4}  # is not run


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=4000, help="of the store that is read from [4000]")
    parser.add_argument("--frames", type=int, default=25, help="a scene [25]")
    parser.add_argument(
        "--open-scenes", type=int, nargs="*", default=[], help="of stores that are opened, with latents of 4x8x8"
    )
    parser.add_argument("--batches", type=int, default=100, help="that each row reads [100]")
    parser.add_argument("--folder", type=Path, help="where the stores are written, and deleted again [the system's]")
    parser.add_argument("--out", type=Path, help="markdown file to write the tables to")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.row:
        print(json.dumps(ROWS[options.row.split(":")[0]](options.folder, options.row, options.batches)))
        return
    opened, read = [], []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for scenes in options.open_scenes:
            store = Path(folder) / f"opened-{scenes}"
            write_store(store, scenes, options.frames, 8)
            opened.append([f"{scenes:,}", f"{scenes * options.frames:,}", *_opened(measure(store, "open", 0))])
        store = Path(folder) / "read"
        write_store(store, options.scenes, options.frames, 64)
        size = sum(path.stat().st_size for path in store.iterdir()) / 1e9
        opened.append(
            [f"{options.scenes:,}", f"{options.scenes * options.frames:,}", *_opened(measure(store, "open", 0))]
        )
        for threads in (1, LOADERS, 2 * LOADERS):
            found = measure(store, f"read:{threads}", options.batches)
            for where, key in (("not in memory", "cold"), ("in memory", "warm")):
                seconds, processor, from_disk = found[key]
                cells = [
                    f"{BATCH / processor:,.0f}",
                    f"{BATCH / seconds:,.0f}",
                    f"{options.batches * from_disk / 1e6:,.0f}",
                ]
                read.append([f"{where}, {threads} thread{'s' * (threads > 1)}", *cells, f"{GPU_STEPS * seconds:.0%}"])
    caption = (
        f"{os.cpu_count()} cores, {os.getloadavg()[0]:.1f} processes wanted to run at the end (load average). Opening "
        f"a store, {SCENES_PER_SHARD} scenes a shard:"
    )
    header = ["scenes", "frames", "shards", "seconds", "memory that opening added, MiB", "open files"]
    text = markdown(caption, header, opened)
    caption = (
        f"\n{options.batches} batches of {BATCH} pairs from a store of {size:.1f} GB. By the clock, other programs "
        "count too. The last column is the share of the time that a device leaves which trains "
        f"{GPU_STEPS} such batches a second:"
    )
    header = [
        "",
        "pairs a second of a core's time",
        "by the clock",
        "read from disk, MB",
        f"of {GPU_STEPS} batches a second",
    ]
    publish(text + markdown(caption, header, read), options.out)


def write_store(folder: Path, scenes: int, frames: int, size: int) -> None:
    """A complete store of random latents (4, size, size) and cameras on orbits."""
    folder.mkdir()
    names = [f"{index:03d}.jpg" for index in range(frames)]
    ids = [f"{index:06d}" for index in range(scenes)]
    runs = [ids[start : start + SCENES_PER_SHARD] for start in range(0, scenes, SCENES_PER_SHARD)]
    settings = {"t_star": 600, "steps": 30, "timestep": "next", "start": 0}
    plan = {"format": FORMAT, "prior": "none", "prior_fingerprint": "", "inversion": settings, "alpha_star": 0.1608}
    plan |= {"image_size": 8 * size, "shards": [dict.fromkeys(part, names) for part in runs]}
    (folder / "store.json").write_text(json.dumps(plan))
    digest = plan_digest(plan)
    cameras = Camera.stack(orbit(Camera.from_fov(45, 8 * size, 8 * size), frames))
    generator = torch.Generator().manual_seed(0)
    for index, some in enumerate(runs):
        count = len(some) * frames
        bits = torch.randint(-(2**15), 2**15, (2, count, 4, size, size), generator=generator, dtype=torch.int16)
        latents = (bits & ~0x4000).view(torch.float16)  # no NaN, no infinity, below 2
        described = [
            {"id": name, "name": name, "category": None, "model": name, "frames": names, "elevation": 0.0}
            for name in some
        ]
        tensors = {"mean": latents[0].contiguous(), "noise": latents[1].contiguous()}
        tensors |= {"intrinsics": cameras.intrinsics.repeat(len(some), 1, 1), "distance_scale": torch.ones(count)}
        tensors |= {"world_to_camera": cameras.world_to_camera.repeat(len(some), 1, 1)}
        about = {"about": json.dumps({"plan": digest, "scenes": described})}
        save_file(with_checksums(tensors, about, LATENTS), shard_path(folder, index), metadata=about)
    os.sync()


def drop_from_memory(folder: Path) -> None:
    """Takes a store's pages out of the system's cache."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(store: Path, row: str, batches: int) -> dict[str, Any]:
    """What a fresh process finds."""
    command = [sys.executable, __file__, "--row", row, "--folder", str(store), "--batches", str(batches)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def open_store(store: Path, row: str, batches: int) -> dict[str, Any]:
    """Opens it: how long that took, and what it holds."""
    before, started = resident(), time.perf_counter()
    opened = LatentStore(store)
    seconds = time.perf_counter() - started
    shards = opened.scenes[-1].shard + 1
    return {
        "shards": shards,
        "seconds": seconds,
        "memory": resident() - before,
        "files": len(os.listdir("/proc/self/fd")),
    }


def read_pairs(store: Path, row: str, batches: int) -> dict[str, Any]:
    """Reads batches of pairs in the order and by the code of a training, from the disk and then once more.

    Returns:
        Of each time the seconds, the processor's seconds and the bytes from the disk of a batch.
    """
    sidestep.loop.LOADERS = int(row.split(":")[1])
    task = _TUNetTask(LatentStore(store), TrainConfig(batch_size=BATCH, size="paper", tunet=TINY, mirror=True))
    training = Training(task, LoopConfig(steps=batches, batch_size=BATCH, precision="fp32"), "loader")
    drop_from_memory(store)  # opening has read the beginning of each shard, and more as the disk likes it
    found = {}
    for name in ("cold", "warm"):
        before = time.perf_counter(), time.process_time(), read_bytes()
        for _ in training.batches(0, batches):
            pass
        after = time.perf_counter(), time.process_time(), read_bytes()
        found[name] = [(now - then) / batches for now, then in zip(after, before, strict=True)]
    return found


def read_bytes() -> int:
    """What this process has had read from the disk so far."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def resident() -> float:
    """This process's resident memory, MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def _opened(found: dict[str, Any]) -> list[str]:
    return [f"{found['shards']:,}", f"{found['seconds']:.1f}", f"{found['memory']:.0f}", f"{found['files']}"]


ROWS = {"open": open_store, "read": read_pairs}


if __name__ == "__main__":
    run(main)
