"""Time and memory of making views from one photo, each row in a fresh process.

Cold: loading the model and the first call. Warm: the median of the calls after it. Neither counts importing the
package, which has its own column; the shell command's figure counts everything from its start to its end.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from table import markdown, publish, run

from sidestep.errors import SidestepError

PHOTO = Path(__file__).parents[1] / "examples" / "chair.jpg"
FUSIONS = ("variance", "auto")
TARGETS = (1, 8)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled", help="model folder or hub id [bundled]")
    parser.add_argument("--photo", type=Path, default=PHOTO, help="[examples/chair.jpg]")
    parser.add_argument("--device", help="cpu, cuda or mps [the best one present]")
    parser.add_argument("--threads", type=int, help="OMP_NUM_THREADS [as the environment has it]")
    parser.add_argument("--repeats", type=int, default=3, help="warm calls [3]")
    parser.add_argument("--out", type=Path, help="markdown file to write the table to")
    parser.add_argument("--measure", nargs=2, metavar=("FUSION", "TARGETS"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        fusion, targets = options.measure
        print(json.dumps(measure(options, fusion, int(targets))))
        return

    environment = dict(os.environ)
    if options.threads:
        environment["OMP_NUM_THREADS"] = str(options.threads)
    common = ["--model", options.model, *(["--device", options.device] if options.device else [])]
    rows = []
    machine = ""
    for fusion in FUSIONS:
        for targets in TARGETS:
            python = [__file__, *common, "--photo", str(options.photo), "--repeats", str(options.repeats)]
            output, _, peak = process([*python, "--measure", fusion, str(targets)], environment)
            told = json.loads(output)
            machine = told["machine"]
            seconds = (told["import"], told["cold"], told["warm"], told["warm"] / targets)
            rows.append([f"Python, {fusion}", str(targets), *(f"{s:.2f}" for s in seconds), f"{peak:.0f}"])
    with tempfile.TemporaryDirectory() as folder:
        for fusion in FUSIONS:
            for targets in TARGETS:
                where = ["--yaw", "20"] if targets == 1 else ["--trajectory", "orbit", "--frames", str(targets)]
                out = Path(folder) / (f"{fusion}.png" if targets == 1 else fusion)
                shell = ["-m", "sidestep", "view", str(options.photo), *where, "--fusion", fusion, *common]
                _, wall, peak = process([*shell, "--out", str(out)], environment)
                rows.append([f"shell, {fusion}", str(targets), "", f"{wall:.2f}", "", "", f"{peak:.0f}"])
    header = ["how, fusion", "targets", "import, s", "cold, s", "warm, s", "warm, s a view", "peak memory, MiB"]
    publish(markdown(machine, header, rows), options.out)


def measure(options: argparse.Namespace, fusion: Any, count: int) -> dict[str, Any]:
    """What one fresh process tells of itself; times in seconds."""
    started = time.perf_counter()
    import torch

    from sidestep import NovelViewPipeline, orbit, step_aside
    from sidestep.cameras import Camera
    from sidestep.images import load_image
    from sidestep.pipeline import DEFAULT_FOV

    imported = time.perf_counter()
    pipe = NovelViewPipeline.from_pretrained(options.model, device=options.device)
    pipe.set_progress_bar_config(disable=True)
    photo = load_image(options.photo)
    source = Camera.from_fov(DEFAULT_FOV, *photo.size)
    elevation = pipe.tunet.config.elevation
    many = count > 1
    targets = orbit(source, count, elevation=elevation) if many else [step_aside(source, 20.0, elevation=elevation)]

    def call() -> float:
        start = time.perf_counter()
        pipe(photo, targets, fusion=fusion)
        return time.perf_counter() - start

    call()
    cold = time.perf_counter() - imported
    dtype = str(pipe.prior.unet.dtype).removeprefix("torch.")
    return {
        "import": imported - started,
        "cold": cold,
        "warm": median(call() for _ in range(options.repeats)),
        "machine": f"{pipe.prior.image_size} px; {pipe.device.type}, {dtype}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads.",
    }


def process(arguments: Sequence[str], environment: dict[str, str]) -> tuple[str, float, float]:
    """Runs Python: what it printed, wall seconds, peak resident memory in MiB.

    A process's peak counts what its parent held when it was started, so this one must not import torch.
    """
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, *arguments], env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SidestepError(f"python {' '.join(arguments)} failed, see above")
    return output, wall, usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


if __name__ == "__main__":
    run(main)
