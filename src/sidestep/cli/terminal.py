"""What the commands share: how they talk to the terminal, and the options that several have."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

console = Console(stderr=True)

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file with the experiment's settings.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings that replace the file's.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or mps; the best one present by default.")]


def progress_bars() -> Progress:
    """Bars for long work, drawn only where somebody can watch them."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal)


def report(result: dict[str, Any], as_json: bool) -> None:
    """Prints a result: a line a key, or JSON."""
    if as_json:
        print(json.dumps(result, indent=2))
        return
    for key, value in result.items():
        print(f"{key}: {', '.join(map(str, value)) if isinstance(value, list) else value}")
