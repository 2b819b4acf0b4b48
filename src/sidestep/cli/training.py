"""`sidestep encode`, `train` and `pretrain`: from captures to a model. Each resumes when it is run again."""

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sidestep.cli.terminal import Device, manners, progress_bar, report, stop_spinner
from sidestep.errors import SidestepError

if TYPE_CHECKING:
    from sidestep.plan import Plan

SPREAD = "Many processes and machines"
Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file with the experiment's settings.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings that replace the file's.")]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Tell what would be done, how long it takes and what it writes, and do nothing."),
]


def encode(
    data: Annotated[Path, typer.Argument(help="Captures: MVImgNet, COLMAP, CO3D and others, or a pack or its URL.")],
    out: Annotated[Path, typer.Option(help="Folder of the store of latents.")],
    prior: Annotated[str, typer.Option(help="Prior's folder, hub id or .safetensors file.")] = "bundled",
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
    dry_run: DryRun = False,
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
    own_part = _part(part) if part else (1, 1)
    if dry_run:
        from sidestep.plan import plan_encoding, read_noting

        scenes, left_out = read_noting(data)
    else:
        scenes = read_captures(data)
    # Ray's workers load their own, where the devices are.
    loaded = LatentPrior.from_pretrained(model_folder(prior), "cpu" if engine == "ray" and not dry_run else device)
    settings = InversionSettings(loaded.default_t_star() if t_star is None else t_star, steps, timestep)
    if dry_run:
        sizes = {"scenes_per_shard": scenes_per_shard, "batch_size": batch_size}
        _tell(plan_encoding(loaded, scenes, out, settings, prior_name=prior, part=own_part, left_out=left_out, **sizes))
        return
    with progress_bar("frames") as progress:
        frames = encode_captures(
            loaded,
            scenes,
            out,
            settings,
            prior_name=prior,
            scenes_per_shard=scenes_per_shard,
            batch_size=batch_size,
            part=own_part,
            engine=RayEngine(workers, device) if engine == "ray" else encode_here,
            progress=progress,
        )
    made = {"part": part} if part else {"scenes": len(LatentStore(out).scenes)}
    report({"store": str(out), **made, "frames": frames, "t_star": settings.t_star})


def _part(text: str) -> tuple[int, int]:
    """Reads "2/8" as (2, 8)."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if found is None:
        raise SidestepError(f"part {text!r}: give two numbers such as 2/8")
    return int(found[1]), int(found[2])


def train(config: Config, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Train TUNet on encoded captures. Run again to resume."""
    from sidestep.config import load_config
    from sidestep.training import TrainConfig
    from sidestep.training import train as run

    settings = load_config(TrainConfig, config, overrides or [])
    if dry_run:
        from sidestep.plan import plan_training

        _tell(plan_training(settings))
        return
    _silence_all_but_the_first()
    _report_once({"model": str(run(settings))})


def pretrain(config: Config, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Train a small latent prior (an autoencoder, then a U-Net) from pictures. Run again to resume."""
    from sidestep.config import load_config
    from sidestep.pretraining import PretrainConfig
    from sidestep.pretraining import pretrain as run

    settings = load_config(PretrainConfig, config, overrides or [])
    if dry_run:
        from sidestep.plan import plan_pretraining

        _tell(plan_pretraining(settings))
        return
    _silence_all_but_the_first()
    _report_once({"prior": str(run(settings))})


def _tell(plan: "Plan") -> None:
    if plan.warning:
        logging.getLogger("sidestep").warning(plan.warning)
    if manners.json:
        report(plan.to_dict())
        return
    stop_spinner()
    print("\n".join(plan.lines()))


def _silence_all_but_the_first() -> None:
    """Of the processes that a launcher started, the first one talks; the others tell errors only."""
    from sidestep.loop import this_process

    if not this_process().is_main_process:
        for name in ("sidestep", "py.warnings"):
            logging.getLogger(name).setLevel(logging.ERROR)


def _report_once(result: dict[str, str]) -> None:
    """The result, told by the first of the processes; and the end of their being several."""
    from sidestep.loop import this_process

    if this_process().is_main_process:
        report(result)
    this_process().destroy_process_group()
