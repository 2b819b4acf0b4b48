"""The commands put together, and how a run of one begins and ends."""

import inspect
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Annotated, Any

import typer
from rich.markup import escape

from sidestep.cli.app import app as page
from sidestep.cli.capture import import_ as import_capture
from sidestep.cli.capture import inspect as inspect_captures
from sidestep.cli.evaluate import evaluate
from sidestep.cli.pack import pack
from sidestep.cli.prior import prior
from sidestep.cli.terminal import Debug, Json, Manners, Quiet, answer, console, manners, set_up, spinner
from sidestep.cli.training import encode, pretrain, train
from sidestep.cli.verify import verify
from sidestep.cli.view import view
from sidestep.errors import SidestepError

INPUT, UNEXPECTED, INTERRUPTED, TERMINATED = 1, 70, 130, 143  # exit codes; 2 is a wrong command line
NO_MEMORY = "not enough memory; end other programs, make batches smaller, or use another device"
VIEWS, MODELS, DATA = "Views", "Models of your own", "Captures and figures"


class Terminated(KeyboardInterrupt):
    """SIGTERM; like Ctrl-C it ends the work in order, so that no half-written file stays."""


@contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """Lets SIGTERM raise `Terminated`; not outside the main thread, where Python takes no signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(number: int, frame: Any) -> None:
    raise Terminated


def mannered(command: Callable[..., None], after_interrupt: str = "") -> Callable[..., None]:
    """The command with `--quiet`, `--debug` and `--json`, and with every way it can end told in one line.

    Args:
        command: a command's function.
        after_interrupt: what to tell somebody who has interrupted it.
    """

    @wraps(command)
    @_termination_as_interrupt()
    def run(quiet: bool, debug: bool, as_json: bool, **options: Any) -> None:
        set_up()
        try:
            with spinner():
                command(**options)
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except KeyboardInterrupt as stop:
            word, code = ("terminated", TERMINATED) if isinstance(stop, Terminated) else ("interrupted", INTERRUPTED)
            raise _end(word + after_interrupt, code, mark="") from None
        except SidestepError as error:
            raise _end(str(error), INPUT) from None
        except OSError as error:
            # The disk is full, a folder is not ours: nothing that a stack trace would explain.
            if error.errno is None:
                raise _end(_unexpected(error), UNEXPECTED) from None
            where = f"{error.filename}: " if error.filename is not None else ""
            raise _end(f"{where}{error.strerror}", INPUT) from None
        except Exception as error:
            if _lacks_memory(error):
                raise _end(NO_MEMORY, INPUT) from None
            raise _end(_unexpected(error), UNEXPECTED) from None

    common = [("quiet", Quiet), ("debug", Debug), ("as_json", Json)]
    own = inspect.signature(command)
    added = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=a) for name, a in common]
    run.__signature__ = own.replace(parameters=[*own.parameters.values(), *added])  # type: ignore[attr-defined]
    run.__annotations__ = {**command.__annotations__, **dict(common)}
    return run


def _lacks_memory(error: Exception) -> bool:
    """Whether the device's or the machine's memory was too small; what is not imported has not raised it."""
    torch, memory = sys.modules.get("torch"), sys.modules.get("accelerate.utils.memory")
    return (
        isinstance(error, MemoryError)
        or (torch is not None and isinstance(error, torch.OutOfMemoryError))
        or (memory is not None and memory.should_reduce_batch_size(error))
    )


def _unexpected(error: Exception) -> str:
    told = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
    advice = "report it with this trace" if manners.debug else "run again with --debug for the trace, and report it"
    return f"unexpected, a defect of Sidestep: {told}; {advice}"


def _end(message: str, code: int, mark: str = "error: ") -> typer.Exit:
    """Tells why a command ends, on stderr for people and, where JSON was asked for, on stdout for programs."""
    if manners.debug:
        traceback.print_exc()
    if manners.json:
        answer({"error": message})
    console.print(f"[bold red]{mark}[/]{escape(message)}", highlight=False, soft_wrap=True)
    return typer.Exit(code)


def _examples(*lines: str) -> str:
    """An epilogue of one command line a line; typer joins lines unless an empty one is between them."""
    return "\n\n".join(("Examples:", *(f"$ {escape(line)}" for line in lines)))


RESUME = "; run the same command again to go on"

app = typer.Typer(
    name="sidestep",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="`sidestep COMMAND --help` tells a command's options. Put --quiet, --debug or --json before the command "
    "or after it.",
)
capture = typer.Typer(no_args_is_help=True)
app.command(
    rich_help_panel=VIEWS,
    epilog=_examples(
        "sidestep view chair.jpg --yaw 20 --out view.png",
        "sidestep view chair.jpg --trajectory orbit --frames 24 --out orbit.mp4",
        "sidestep view chair.jpg --trajectory orbit --frames 24 --out capture    (for gsplat, nerfstudio, COLMAP)",
        "sidestep view chair.jpg --cameras transforms.json --out capture",
    ),
)(mannered(view))
app.command(
    name="app",
    rich_help_panel=VIEWS,
    epilog=_examples("sidestep app", "sidestep app --model bundled --model runs/small/model --port 8000"),
)(mannered(page))
app.command(
    rich_help_panel=MODELS,
    epilog=_examples(
        "sidestep prior v2-1_768.safetensors sd21 --prediction-type v_prediction",
        "sidestep prior stable-diffusion-v1-5/stable-diffusion-v1-5 sd15 --no-text",
    ),
)(mannered(prior))
app.command(rich_help_panel=MODELS, epilog=_examples("sidestep encode captures --prior bundled --out latents"))(
    mannered(encode, RESUME)
)
app.command(rich_help_panel=MODELS, epilog=_examples("sidestep train experiment.yaml steps=20000 batch_size=16"))(
    mannered(train, RESUME)
)
app.command(rich_help_panel=MODELS, epilog=_examples("sidestep pretrain prior.yaml data=pictures out=prior-run"))(
    mannered(pretrain, RESUME)
)
app.command(
    rich_help_panel=DATA,
    epilog=_examples("sidestep pack captures pack", "sidestep pack captures s3://bucket/captures"),
)(mannered(pack, RESUME))
app.command(rich_help_panel=DATA, epilog=_examples("sidestep evaluate --data captures --model bundled --out report"))(
    mannered(evaluate, RESUME)
)
app.command(
    rich_help_panel=DATA,
    epilog=_examples("sidestep verify latents", "sidestep verify s3://bucket/captures", "sidestep verify runs/mine"),
)(mannered(verify))
capture.command(epilog=_examples("sidestep capture inspect captures --out inspect.html"))(mannered(inspect_captures))
capture.command(
    name="import",
    epilog=_examples(
        "sidestep capture import video.mp4 captures/chair", "sidestep capture import photos captures/chair"
    ),
)(mannered(import_capture, RESUME))
app.add_typer(capture, name="capture", rich_help_panel=DATA)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        print(metadata.version("sidestep"))
        raise typer.Exit


@capture.callback()
def capture_options(quiet: Quiet = False, debug: Debug = False, as_json: Json = False) -> None:
    """Look after captured scenes."""


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_version)
    ] = False,
    quiet: Quiet = False,
    debug: Debug = False,
    as_json: Json = False,
) -> None:
    """Take one photo, step to the side, look again."""


def main() -> None:
    """Runs the command line.

    Exit codes: 0 done, 1 bad input, 2 a wrong command line, 70 a defect, 130 Ctrl-C, 143 SIGTERM.
    """
    manners.__dict__.update(Manners().__dict__)
    try:
        app()
    finally:
        _flush()


def _flush() -> None:
    """Writes out what stdout holds; if nobody reads it any more (`| head`), the interpreter must not try again."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
