"""`sidestep capture`: what looks after captured scenes."""

from pathlib import Path
from typing import Annotated

import typer

from sidestep.cli.terminal import manners, progress_bars, report
from sidestep.errors import SidestepError


def inspect(
    data: Annotated[Path, typer.Argument(help="Captures: MVImgNet's layout, COLMAP scenes, or transforms.json.")],
    out: Annotated[
        Path | None, typer.Option(metavar="PAGE.html", help="Write a page with pictures of the cameras.")
    ] = None,
    photos: Annotated[
        bool, typer.Option("--photos/--no-photos", help="Decode every photo, to find damaged and doubled ones.")
    ] = True,
) -> None:
    """Say what a captured set holds and what is broken in it; exit with 1 if anything is an error."""
    from sidestep.captures.inspection import inspect_captures
    from sidestep.captures.inspection_page import write_page
    from sidestep.files import make_folder

    if out is not None:
        if out.is_dir():
            raise SidestepError(f"{out}: is a folder; name a file in it")
        make_folder(out.parent)
    with progress_bars() as progress:
        bar = progress.add_task("scenes", total=None)
        found = inspect_captures(
            data, photos, progress=lambda done, total: progress.update(bar, completed=done, total=total)
        )
    if out is not None:
        write_page(out, found)
    if manners.json:
        report(found.to_dict())
    else:
        print("\n".join(found.lines()))
        if out is not None:
            print(f"page: {out}")
    if found.totals["errors"]:
        raise typer.Exit(1)
