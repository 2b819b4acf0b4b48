"""What the commands share: how they talk to the terminal, and the options that several have.

Results go to stdout, everything else to stderr. Bars and the spinner are drawn on rich's global console, so that bars
of the layers below, which know no command line, are drawn in the same place and are silenced together with these.
"""

import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import rich
import typer
from rich.console import Console

if TYPE_CHECKING:
    from rich.progress import TaskID
    from rich.status import Status


class Messages(Console):
    """stderr, where the first message ends the spinner."""

    def print(self, *objects: Any, **options: Any) -> None:
        stop_spinner()
        super().print(*objects, **options)


console = Messages(stderr=True)

# Read by the libraries when they are imported, which happens inside the commands.
LIBRARY_SILENCE = {
    "DIFFUSERS_VERBOSITY": "error",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_VERBOSITY": "error",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TOKENIZERS_PARALLELISM": "false",  # else a warning when a process is forked
    "GRADIO_ANALYTICS_ENABLED": "False",
}


@dataclass
class Manners:
    """What was asked for by `--quiet`, `--debug` and `--json`, before or after the command's name; what came of it."""

    quiet: bool = False
    debug: bool = False
    json: bool = False
    answered: bool = False  # whether stdout has its JSON object, the only one


manners = Manners()
_spinner: "Status | None" = None


def _remember(name: str) -> Callable[[bool], bool]:
    def asked(value: bool) -> bool:
        setattr(manners, name, value or getattr(manners, name))
        return bool(getattr(manners, name))

    return asked


TALK = "What is printed"
Device = Annotated[str | None, typer.Option(help="cpu, cuda or mps; the best one present by default.")]
Json = Annotated[
    bool,
    typer.Option(
        "--json", help="Print the result, or the error, as JSON.", callback=_remember("json"), rich_help_panel=TALK
    ),
]
Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet",
        "-q",
        help="Leave out progress and messages; results, warnings and errors stay.",
        callback=_remember("quiet"),
        rich_help_panel=TALK,
    ),
]
Debug = Annotated[
    bool,
    typer.Option(
        "--debug",
        help="Show stack traces, and the libraries' warnings and messages.",
        callback=_remember("debug"),
        rich_help_panel=TALK,
    ),
]


def set_up() -> None:
    """Logging, warnings and bars as `manners` has them; called before a command imports what it needs."""
    rich.reconfigure(stderr=True, quiet=manners.quiet)
    level = logging.DEBUG if manners.debug else logging.WARNING if manners.quiet else logging.INFO
    logging.getLogger("sidestep").setLevel(level)
    handler: logging.Handler
    if console.is_terminal:
        from rich.logging import RichHandler

        handler = RichHandler(console=console, show_path=manners.debug)
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        handler = logging.StreamHandler(sys.stderr)  # rich would break lines at 80 columns
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.INFO if manners.debug else logging.WARNING, handlers=[handler])

    logging.captureWarnings(True)
    # Without the file's name and the line of code.
    warnings.formatwarning = lambda message, *_, **__: str(message)
    if manners.debug:
        warnings.simplefilter("default")
        return
    for name, value in LIBRARY_SILENCE.items():
        os.environ.setdefault(name, value)
    if manners.quiet or not console.is_terminal:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # Our own warnings are for the user, a library's are not.
    warnings.simplefilter("ignore")
    warnings.filterwarnings("default", module="sidestep")


@contextmanager
def spinner() -> Iterator[None]:
    """A sign of life until the first bar, message or result: importing torch alone takes seconds."""
    global _spinner
    _spinner = rich.get_console().status("starting") if console.is_terminal else None
    if _spinner:
        _spinner.start()
    try:
        yield
    finally:
        stop_spinner()


def stop_spinner() -> None:
    """Takes the spinner away, if it still turns."""
    if _spinner:
        _spinner.stop()


@contextmanager
def progress_bars(first: str | None = None) -> Iterator[Callable[[str, int, int], None]]:
    """Bars for long work, drawn only where somebody can watch them.

    Args:
        first: the stage whose bar is there at once.

    Yields:
        What moves the bar of a stage: its name, the steps done, and all of them.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    stop_spinner()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, redirect_stdout=False, disable=manners.quiet or not console.is_terminal) as progress:
        bars: dict[str, TaskID] = {} if first is None else {first: progress.add_task(first, total=None)}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in bars:
                bars[stage] = progress.add_task(stage)
            progress.update(bars[stage], completed=done, total=total)

        yield show


@contextmanager
def progress_bar(name: str) -> Iterator[Callable[[int, int], None]]:
    """The same for work of one stage."""
    with progress_bars(name) as show:
        yield partial(show, name)


def answer(result: dict[str, Any]) -> None:
    """Prints an object for programs, at once, unless one was printed before."""
    if not manners.answered:
        print(json.dumps(result, indent=2), flush=True)
    manners.answered = True


def report(result: dict[str, Any]) -> None:
    """Prints a result: a line a key, or with `--json` an object."""
    stop_spinner()
    if manners.json:
        answer(result)
        return
    for key, value in result.items():
        print(f"{key}: {', '.join(dict.fromkeys(map(str, value))) if isinstance(value, list) else value}")
