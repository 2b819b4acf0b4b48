"""How soon `sidestep app` answers, seen from a browser on the same machine, and how much memory the server takes.

The browser draws in 3D with the same processor here, which a browser elsewhere, or one with a graphics card, does not.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from table import markdown, publish, run

from sidestep.errors import SidestepError

FLAGS = ["--no-sandbox", "--disable-gpu", "--enable-unsafe-swiftshader", "--disable-background-networking"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="the server's OMP_NUM_THREADS [1]")
    parser.add_argument("--repeats", type=int, default=9, help="steps of the camera; a third as many final views [9]")
    parser.add_argument("--chromium", default=shutil.which("chromium"), help="browser [chromium on the PATH]")
    parser.add_argument("--out", type=Path, help="markdown file to write the table to")
    options = parser.parse_args(arguments)
    if options.chromium is None:
        raise SidestepError("no chromium on the PATH; name a browser with --chromium")
    from playwright.sync_api import sync_playwright

    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    command = [sys.executable, "-m", "sidestep", "app", "--port", "0"]
    started = time.perf_counter()
    with (
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as server,
        sync_playwright() as p,
    ):
        assert server.stdout is not None
        url = next(word for word in server.stdout.readline().split() if word.startswith("http"))
        rows = [["start of the server", f"{time.perf_counter() - started:.1f}"]]
        browser = p.chromium.launch(executable_path=options.chromium, args=FLAGS)
        try:
            rows += measure(browser, url, server.pid, options.repeats)
        finally:
            server.terminate()
    load = os.getloadavg()[0]
    caption = (
        f"{os.cpu_count()} cores, {options.threads} thread(s); {load:.1f} processes wanted to run at the end (load "
        "average). Seconds: median, fastest."
    )
    publish(markdown(caption, ["", "median, s (or MiB)", "fastest, s"], [[*row, ""][:3] for row in rows]), options.out)


def measure(browser: Any, url: str, pid: int, repeats: int) -> list[list[str]]:
    """The table's rows, with a second user at the end."""

    def opened() -> Any:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(300_000)
        page.goto(url)
        page.wait_for_selector("#examples button")
        return page

    page = opened()
    rows = []

    def step() -> None:
        page.focus("sidestep-viewport")
        page.keyboard.press("ArrowRight")

    examples = iter(page.locator("#examples button").all())
    rows.append(["example to coarse view", *_seconds(page, lambda: next(examples).click(), "#coarse", 3)])
    rows.append(["step of the camera to coarse view", *_seconds(page, step, "#coarse", repeats)])
    final = _seconds(page, lambda: page.click("#make"), "#final", max(1, repeats // 3), step)
    rows.append(["press to final view, 30 steps", *final])
    one = _memory(pid)
    other = opened()
    other.click("#examples button >> nth=1")
    other.wait_for_selector("#coarse img")
    other.click("#make")
    other.wait_for_selector("#final img")
    return [*rows, ["memory of the server, one user, MiB", one], ["with a second user, MiB", _memory(pid)]]


def _seconds(
    page: Any, act: Callable[[], None], picture: str, times: int, before: Callable[[], None] | None = None
) -> list[str]:
    """Median and least time from an act to another picture; what is to be done before each is not counted."""
    runs = []
    for _ in range(times):
        if before is not None:
            before()
            page.wait_for_timeout(3000)
        last = page.evaluate("(name) => document.querySelector(`${name} img`)?.src ?? ''", picture)
        started = time.perf_counter()
        act()
        page.wait_for_function(
            "([name, last]) => (document.querySelector(`${name} img`)?.src ?? last) !== last", arg=[picture, last]
        )
        runs.append(time.perf_counter() - started)
        page.wait_for_timeout(300)
    return [f"{median(runs):.2f}", f"{min(runs):.2f}"]


def _memory(pid: int) -> str:
    """What a process has in memory now, in MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    kilobytes = next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))
    return f"{int(kilobytes) / 1024:.0f}"


if __name__ == "__main__":
    run(main)
