"""`sidestep capture`: what looks after captured scenes."""

from pathlib import Path
from typing import Annotated

import typer

from sidestep.cli.terminal import manners, progress_bar, progress_bars, report
from sidestep.errors import SidestepError


def inspect(
    data: Annotated[Path, typer.Argument(help="Captures: MVImgNet, COLMAP, CO3D and others, or a pack or its URL.")],
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
    with progress_bar("scenes") as progress:
        found = inspect_captures(data, photos, progress=progress)
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


def import_(
    source: Annotated[Path, typer.Argument(help="A folder of photos, or a video.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The scene to make; its name is the scene's.")],
    frames: Annotated[
        int | None,
        typer.Option(min=3, help="How many photos to use: all of a folder, the 50 sharpest of a video by default."),
    ] = None,
    max_size: Annotated[int, typer.Option(min=200, help="Longest side of the scene's photos, in pixels.")] = 1600,
) -> None:
    """Find the cameras of photos or of a video (COLMAP), and make a scene of them; the same command resumes."""
    from sidestep.captures.photos import import_photos

    with progress_bars() as show:
        result = import_photos(source, folder, frames, max_size, show)
    if manners.json:
        report(result.to_dict())
    else:
        print("\n".join(result.lines()))
