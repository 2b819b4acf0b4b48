"""How long the command line takes to answer, each time in a fresh process.

For help and version: until the process has ended. For a command that loads a model: until the first sign of life on a
terminal. The processor's time is the process's own; the clock also counts what it waited for others.
"""

import argparse
import os
import pty
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from table import markdown, publish, run

from sidestep.errors import SidestepError

PHOTO = Path(__file__).parents[1] / "examples" / "chair.jpg"
WHOLE = (["--help"], ["--version"], ["view", "--help"], ["evaluate", "--help"])
FIRST = (["view", str(PHOTO), "--yaw", "20", "--out", "view.png"], ["train", "absent.yaml"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9, help="processes a row [9]")
    parser.add_argument("--out", type=Path, help="markdown file to write the table to")
    options = parser.parse_args(arguments)
    cases = [(f"sidestep {' '.join(case)}", whole, case) for case in WHOLE]
    cases += [(f"sidestep {case[0]} ..., first output", first_output, case) for case in FIRST]
    rows = []
    for name, measure, case in cases:
        measure([sys.executable, "-m", "sidestep", *case])  # reads the files from the disk
        runs = [measure([sys.executable, "-m", "sidestep", *case]) for _ in range(options.repeats)]
        clock, processor = zip(*runs, strict=True)
        rows.append([f"`{name}`", *(f"{seconds:.2f}" for seconds in (median(processor), min(clock), median(clock)))])
    load = os.getloadavg()[0]
    caption = (
        f"Python {sys.version.split()[0]}, {os.cpu_count()} cores, {options.repeats} runs each; "
        f"{load:.1f} processes wanted to run at the end (load average)."
    )
    header = ["", "processor, median, s", "clock, fastest, s", "clock, median, s"]
    publish(markdown(caption, header, rows), options.out)


def whole(command: Sequence[str]) -> tuple[float, float]:
    """Seconds on the clock and of the processor until the command has ended."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    processor = _wait(process)
    if process.returncode:
        raise SidestepError(f"{' '.join(command)} failed, see above")
    return time.perf_counter() - started, processor


def first_output(command: Sequence[str]) -> tuple[float, float]:
    """The same until something shows on the command's terminal; then the command is ended."""
    here, there = pty.openpty()
    started = time.perf_counter()
    process = subprocess.Popen(command, stdin=there, stdout=there, stderr=there)
    os.close(there)
    try:
        os.read(here, 1)
        clock = time.perf_counter() - started
        process.kill()
        return clock, _wait(process)
    finally:
        os.close(here)


def _wait(process: subprocess.Popen[bytes]) -> float:
    """The processor's seconds of a process, once it has ended."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    run(main)
