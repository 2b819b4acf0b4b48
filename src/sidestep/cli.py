"""The command line: each command reads its options and calls one public function.

Imports of torch and diffusers happen inside the commands, so that `--help` answers at once.
"""

import json
import logging
import sys
import warnings
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler

from sidestep.errors import SidestepError

app = typer.Typer(
    name="sidestep",
    help="Take one photo, step to the side, look again.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)
console = Console(stderr=True)


def _version(wanted: bool) -> None:
    if wanted:
        print(metadata.version("sidestep"))
        raise typer.Exit


Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file with the experiment's settings.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings that replace the file's.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.callback(invoke_without_command=False)
def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_version)] = False,
) -> None:
    """Take one photo, step to the side, look again."""


@app.command()
def pretrain(config: Config, overrides: Overrides = None, as_json: Json = False) -> None:
    """Train a small latent prior (an autoencoder, then a U-Net) from pictures. Run again to resume."""
    from sidestep.config import load_config
    from sidestep.pretraining import PretrainConfig
    from sidestep.pretraining import pretrain as run

    _report({"prior": str(run(load_config(PretrainConfig, config, overrides or [])))}, as_json)


def _report(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(result, indent=2))
        return
    for key, value in result.items():
        print(f"{key}: {value}")


def main() -> None:
    """Runs the command line; bad input is one line on stderr and exit code 1."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[RichHandler(console=console, show_path=False)])
    logging.getLogger("sidestep").setLevel(logging.INFO)
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        app()
    except SidestepError as error:
        console.print(f"[bold red]error:[/] {error}", highlight=False, soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
