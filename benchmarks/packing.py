"""How fast a captured set is read: its loose files, a pack of it frame by frame, and a pack from front to back.

Frames are read in one thread, in an order drawn once for all (the stream: in the pack's own, and
reading its indexes each time, as the others did before), decoded and not.
Warm: the files are in the system's cache. Cold: the system was asked to forget them before each run (posix_fadvise); a
disk's or a host's own cache remains. The processor's time is this process's own, a frame; the clock also counts what it
waited for others. S3: moto's server, a process of its own on the loopback, which tells what a request costs and nothing
about a real network; there the fewer frames of `--remote-frames` are read.
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import held_out
import torch
from table import markdown, publish, run

from sidestep.captures import Frame, Scene, read_captures
from sidestep.captures.packing import pack_captures
from sidestep.captures.streaming import stream_frames

BUCKET = "benchmark"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="captures")
    parser.add_argument("--scenes", type=int, default=40, help="of the captures, evenly spread [40]")
    parser.add_argument("--repeats", type=int, default=5, help="runs a row [5]")
    parser.add_argument("--remote-frames", type=int, default=250, help="frames read one by one from the server [250]")
    parser.add_argument("--out", type=Path, help="markdown file to write the table to")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, server() as system:
        scenes = read_captures(options.data)
        scenes = held_out.spread(scenes, options.scenes)
        table = measure(scenes, Path(folder), system, options.repeats, options.remote_frames)
    publish(table, options.out)


def measure(scenes: list[Scene], folder: Path, system: object, repeats: int, remote_frames: int) -> str:
    """The table, for some scenes, which are copied and packed into `folder` and onto the server."""
    pack, opened, listed = folder / "pack", [], []
    copy = folder / "loose"
    for scene in scenes:
        shutil.copytree(Path(str(scene.frames[0].path)).parents[1], copy / scene.id)
    for _ in range(repeats):
        started = time.perf_counter()
        loose = read_captures(copy)
        listed.append(time.perf_counter() - started)
    started = time.perf_counter()
    summary = pack_captures(loose, pack, frames_per_shard=250)
    packing = time.perf_counter() - started
    for _ in range(repeats):
        started = time.perf_counter()
        by_offset = read_captures(pack)
        opened.append(time.perf_counter() - started)
    files = [Path(str(frame.path)) for scene in loose for frame in scene.frames]
    url = f"s3://{BUCKET}/pack"
    pack_captures(loose, url, frames_per_shard=250)
    copies = f"{BUCKET}/loose"
    few = draw(loose)[:remote_frames]
    for index, frame in enumerate(few):
        system.put_file(str(frame.path), f"{copies}/{index:05d}.jpg")  # type: ignore[attr-defined]
    remote = draw(read_captures(url))[:remote_frames]
    requests = [_Object(system, f"{copies}/{index:05d}.jpg", frame) for index, frame in enumerate(few)]
    cases: list[tuple[str, Callable[[], Iterable[Frame]], list[Path]]] = [
        ("loose files", lambda: draw(loose), files),
        ("pack, frame by frame", lambda: draw(by_offset), sorted(pack.iterdir())),
        ("pack, front to back", lambda: (frame for _, frame in stream_frames(pack)), sorted(pack.iterdir())),
    ]
    rows = []
    for name, frames, behind in cases:
        for state in ("warm", "cold"):
            forget = behind if state == "cold" else []
            rows.append([f"{name}, {state}", *rates(frames, repeats, forget)])
    rows.append(["loose objects, S3", *rates(lambda: (request.frame() for request in requests), repeats)])
    rows.append(["pack, frame by frame, S3", *rates(lambda: remote, repeats)])
    rows.append(["pack, front to back, S3", *rates(lambda: (frame for _, frame in stream_frames(url)), repeats)])
    total = sum(path.stat().st_size for path in files)
    caption = (
        f"Python {sys.version.split()[0]}, {os.cpu_count()} cores, one thread, median of {repeats} runs (slowest to "
        f"fastest); {summary.frames} frames of {total / summary.frames / 1024:.0f} KiB in {summary.scenes} scenes, "
        f"{summary.shards} shards. {os.getloadavg()[0]:.1f} processes wanted to run at the end (load average): other "
        f"work shared the machine. Reading the list of frames took {median(listed):.1f} s from the folder and "
        f"{median(opened):.1f} s from the pack, packing {packing:.1f} s; the shards are "
        f"{100 * (summary.bytes / total - 1):.0f}% larger than the photos."
    )
    return markdown(caption, ["", "bytes: frames/s", "processor, µs", "decoded: frames/s", "processor, µs"], rows)


class _Object:
    """A photo that is an object of its own."""

    def __init__(self, system: object, path: str, frame: Frame) -> None:
        self.system, self.path, self.own = system, path, frame

    @property
    def name(self) -> str:
        return self.own.name

    def read_bytes(self) -> bytes:
        data: bytes = self.system.cat_file(self.path)  # type: ignore[attr-defined]
        return data

    def frame(self) -> Frame:
        """The frame that is read from it."""
        return Frame(self.own.name, self, self.own.camera)


def draw(scenes: list[Scene]) -> list[Frame]:
    """All frames, in an order that is the same at every call."""
    frames = [frame for scene in scenes for frame in scene.frames]
    random.Random(0).shuffle(frames)
    return frames


def rates(frames: Callable[[], Iterable[Frame]], repeats: int, forget: Sequence[Path] = ()) -> Iterator[str]:
    """Frames a second by the clock, and the processor's microseconds a frame: of their bytes alone, then decoded."""
    for read in (lambda frame: frame.path.read_bytes(), lambda frame: frame.load()):
        rate, spent = [], []
        for repeat in range(repeats + (not forget)):
            for path in forget:
                _forget(path)
            clock, processor, count = time.perf_counter(), time.process_time(), 0
            for frame in frames():
                read(frame)
                count += 1
            if repeat or forget:  # the first one warms the cache
                rate.append(count / (time.perf_counter() - clock))
                spent.append(1e6 * (time.process_time() - processor) / count)
        yield f"{median(rate):.0f} ({min(rate):.0f} to {max(rate):.0f})"
        yield f"{median(spent):.0f}"


def _forget(path: Path) -> None:
    """Asks the system to drop a file from its cache."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


@contextmanager
def server() -> Iterator[object]:
    """An S3 server in a process of its own, with an empty bucket, as a file system of fsspec."""
    import s3fs

    process = subprocess.Popen(
        [sys.executable, "-c", _SERVE], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{process.stdout.readline().strip()}"
        os.environ.update(AWS_ACCESS_KEY_ID="a", AWS_SECRET_ACCESS_KEY="b", AWS_DEFAULT_REGION="us-east-1")
        system = s3fs.S3FileSystem()
        system.mkdir(BUCKET)
        yield system
    finally:
        process.kill()
        process.wait()


_SERVE = """
import time
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
while True:
    time.sleep(60)
"""


if __name__ == "__main__":
    run(main)
