"""`sidestep verify`: whether a store of latents, a pack or a run still holds what was written."""

from dataclasses import asdict
from typing import Annotated

import typer

from sidestep.cli.terminal import manners, progress_bar, report


def verify(
    path: Annotated[
        str, typer.Argument(help="A store of latents, a pack or its URL, a run, a model, or a file of these.")
    ],
) -> None:
    """Read all of a store, pack or run and compare it with its checksums; exit with 1 if anything is damaged."""
    from sidestep.verification import verify as read

    with progress_bar("files") as progress:
        found = read(path, progress)
    told = asdict(found)
    if not manners.json:
        del told["faults"]
        for fault in found.faults:
            print(fault)
    report({**told, "damaged": len(found.faults)})
    if found.faults:
        raise typer.Exit(1)
