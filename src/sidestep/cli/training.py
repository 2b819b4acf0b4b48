"""`sidestep encode`, `train` and `pretrain`: from captures to a model. Each resumes when it is run again."""

import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from sidestep.cli.terminal import Config, Device, Overrides, progress_bars, report
from sidestep.errors import SidestepError

SPREAD = "Many processes and machines"


def encode(
    data: Annotated[Path, typer.Argument(help="Captures: MVImgNet, COLMAP, CO3D and others, or a pack or its URL.")],
    out: Annotated[Path, typer.Option(help="Folder of the store of latents.")],
    prior: Annotated[str, typer.Option(help="Prior's folder or hub id.")] = "bundled",
    t_star: Annotated[
        int | None, typer.Option(help="Timestep to invert to (default: as noisy as Stable Diffusion's 600).")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the inversion.")] = 30,
    timestep: Annotated[Literal["next", "current"], typer.Option(help="Where a step asks the network.")] = "next",
    batch_size: Annotated[int, typer.Option(min=1, help="Frames inverted together.")] = 16,
    scenes_per_shard: Annotated[int, typer.Option(min=1, help="Scenes in one file of the store.")] = 8,
    device: Device = None,
    engine: Annotated[
        Literal["local", "ray"],
        typer.Option(help="This process, or the workers of a Ray cluster.", rich_help_panel=SPREAD),
    ] = "local",
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Ray's worker processes (default: one a GPU or machine).", rich_help_panel=SPREAD),
    ] = None,
    part: Annotated[
        str | None,
        typer.Option(metavar="K/N", help="Make the Kth of N parts of the store alone.", rich_help_panel=SPREAD),
    ] = None,
) -> None:
    """Invert every frame of captured scenes once, for training. Run again to resume."""
    from sidestep.captures import read_captures
    from sidestep.encoding import encode_captures, encode_here
    from sidestep.encoding_ray import RayEngine
    from sidestep.inversion import InversionSettings
    from sidestep.latents import LatentStore
    from sidestep.models import model_folder
    from sidestep.prior import LatentPrior

    if workers is not None and engine != "ray":
        raise SidestepError("--workers is of --engine ray; give both or neither")
    scenes = read_captures(data)
    # Ray's workers load their own, where the devices are.
    loaded = LatentPrior.from_pretrained(model_folder(prior), "cpu" if engine == "ray" else device)
    settings = InversionSettings(loaded.default_t_star() if t_star is None else t_star, steps, timestep)
    with progress_bars() as progress:
        bar = progress.add_task("frames", total=None)
        frames = encode_captures(
            loaded,
            scenes,
            out,
            settings,
            prior_name=prior,
            scenes_per_shard=scenes_per_shard,
            batch_size=batch_size,
            part=_part(part) if part else (1, 1),
            engine=RayEngine(workers, device) if engine == "ray" else encode_here,
            progress=lambda done, total: progress.update(bar, completed=done, total=total),
        )
    made = {"part": part} if part else {"scenes": len(LatentStore(out).scenes)}
    report({"store": str(out), **made, "frames": frames, "t_star": settings.t_star})


def _part(text: str) -> tuple[int, int]:
    """ "2/8" as (2, 8)."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if found is None:
        raise SidestepError(f"part {text!r}: give two numbers such as 2/8")
    return int(found[1]), int(found[2])


def train(config: Config, overrides: Overrides = None) -> None:
    """Train TUNet on encoded captures. Run again to resume."""
    from sidestep.config import load_config
    from sidestep.training import TrainConfig
    from sidestep.training import train as run

    report({"model": str(run(load_config(TrainConfig, config, overrides or [])))})


def pretrain(config: Config, overrides: Overrides = None) -> None:
    """Train a small latent prior (an autoencoder, then a U-Net) from pictures. Run again to resume."""
    from sidestep.config import load_config
    from sidestep.pretraining import PretrainConfig
    from sidestep.pretraining import pretrain as run

    report({"prior": str(run(load_config(PretrainConfig, config, overrides or [])))})
