"""The commands put together, and how a run of one begins and ends."""

import logging
import sys
import warnings
from importlib import metadata
from typing import Annotated

import typer
from rich.logging import RichHandler
from rich.markup import escape

from sidestep.cli.capture import inspect
from sidestep.cli.evaluate import evaluate
from sidestep.cli.terminal import console
from sidestep.cli.training import encode, pretrain, train
from sidestep.cli.view import view
from sidestep.errors import SidestepError

app = typer.Typer(name="sidestep", no_args_is_help=True, pretty_exceptions_enable=False)
capture = typer.Typer(no_args_is_help=True, help="Look after captured scenes.")
for command in (view, encode, train, pretrain, evaluate):
    app.command()(command)
capture.command()(inspect)
app.add_typer(capture, name="capture")


def _version(wanted: bool) -> None:
    if wanted:
        print(metadata.version("sidestep"))
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """Take one photo, step to the side, look again."""


def main() -> None:
    """Runs the command line; bad input is one line on stderr and exit code 1."""
    handler = RichHandler(console=console, show_path=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    logging.getLogger("sidestep").setLevel(logging.INFO)
    # Our own warnings are for the user, a library's are not; either way without a file name and a line of code.
    logging.captureWarnings(True)
    warnings.formatwarning = lambda message, *_, **__: str(message)
    warnings.simplefilter("ignore")
    warnings.filterwarnings("default", module="sidestep")
    try:
        app()
    except SidestepError as error:
        console.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
