"""`sidestep pack`: a captured set in a few large files, for storage that is slow with many small ones."""

from dataclasses import asdict
from typing import Annotated

import typer

from sidestep.cli.terminal import progress_bar, report


def pack(
    data: Annotated[str, typer.Argument(help="Captures of any layout, or another pack; a folder, or a pack's URL.")],
    out: Annotated[str, typer.Argument(help="Folder of the pack, or a URL (s3://bucket/prefix).")],
    frames_per_shard: Annotated[
        int, typer.Option(min=1, help="A shard is closed once it has so many frames; scenes are not divided.")
    ] = 1000,
) -> None:
    """Pack a captured set into WebDataset shards, which every command reads in place. Run again to resume."""
    from sidestep.captures import read_captures
    from sidestep.captures.packing import pack_captures

    scenes = read_captures(data)
    with progress_bar("frames") as progress:
        packed = pack_captures(scenes, out, frames_per_shard=frames_per_shard, progress=progress)
    report(asdict(packed))
