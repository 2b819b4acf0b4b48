"""The command line: each command reads its options and calls one public function.

Imports of torch and diffusers happen inside the commands, so that `--help` answers at once.
"""

import json
import logging
import shlex
import sys
import warnings
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from sidestep.errors import SidestepError

if TYPE_CHECKING:
    from sidestep.cameras import Camera
    from sidestep.captures import Frame

app = typer.Typer(name="sidestep", no_args_is_help=True, pretty_exceptions_enable=False)
capture = typer.Typer(no_args_is_help=True, help="Look after captured scenes.")
app.add_typer(capture, name="capture")
console = Console(stderr=True)


def _version(wanted: bool) -> None:
    if wanted:
        print(metadata.version("sidestep"))
        raise typer.Exit


Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file with the experiment's settings.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings that replace the file's.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Trajectory = Literal["orbit", "dolly", "spiral"]
READINGS = "Readings that the paper leaves open"
Device = Annotated[str | None, typer.Option(help="cpu, cuda or mps; the best one present by default.")]


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """Take one photo, step to the side, look again."""


@app.command()
def view(
    photo: Annotated[Path, typer.Argument(help="The photo.")],
    out: Annotated[
        Path,
        typer.Option(help="Picture (.png, .jpg), animation (.mp4, .gif, .webp), or a folder for views with cameras."),
    ],
    yaw: Annotated[
        float | None, typer.Option(help="Degrees to the right; along an orbit, to each side (default 30).")
    ] = None,
    pitch: Annotated[float | None, typer.Option(help="Degrees up; along a spiral, at most (default 8).")] = None,
    trajectory: Annotated[Trajectory | None, typer.Option(help="A path of cameras instead of one.")] = None,
    frames: Annotated[int, typer.Option(min=2, help="Views along the trajectory.")] = 24,
    cameras: Annotated[
        Path | None,
        typer.Option(
            help="transforms.json with the target cameras. If it names the photo, that is the photo's camera; "
            "otherwise the photo is taken from the origin with its subject at distance 1."
        ),
    ] = None,
    fov: Annotated[
        float | None,
        typer.Option(help="The photo's field of view across its shorter side, degrees (default: EXIF's, else 45)."),
    ] = None,
    elevation: Annotated[
        float | None,
        typer.Option(help="Degrees by which the photo looks down (default: the training captures' median)."),
    ] = None,
    category: Annotated[str | None, typer.Option(help="What the photo shows, if the model knows it.")] = None,
    fusion: Annotated[
        Literal["auto", "variance", "addition"], typer.Option(help="How noise is put back.")
    ] = "variance",
    coarse: Annotated[bool, typer.Option("--coarse", help="Write the coarse predictions too, as OUT-coarse.")] = False,
    prompt: Annotated[str | None, typer.Option(help="Guides the sampling, where the prior reads text.")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What to guide away from.")] = None,
    guidance: Annotated[float, typer.Option(help="Strength of the prompt.")] = 3.5,
    steps: Annotated[int, typer.Option(min=1, help="Sampling steps.")] = 30,
    noise: Annotated[
        Literal["reference", "late", "gaussian"],
        typer.Option(help="The noise that variance fusion starts from.", rich_help_panel=READINGS),
    ] = "reference",
    latent: Annotated[
        Literal["late", "t_star"],
        typer.Option(help="The inverted photo that direct addition adds.", rich_help_panel=READINGS),
    ] = "late",
    noise_scale: Annotated[
        Literal["algebra", "paper", "scripts"],
        typer.Option(help="The factor of the added noise.", rich_help_panel=READINGS),
    ] = "algebra",
    sample_from: Annotated[
        int | None, typer.Option(help="Timestep that sampling starts from (default: t*).", rich_help_panel=READINGS)
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the noise that --noise gaussian draws.")] = 0,
    fps: Annotated[int, typer.Option(min=1, help="Frames a second of an animation.")] = 12,
    model: Annotated[str, typer.Option(help="Model folder or hub id.")] = "bundled",
    prior: Annotated[str | None, typer.Option(help="Prior's folder or hub id, for a model of TUNet alone.")] = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Synthesise what another camera would have seen."""
    from sidestep.cameras import Camera
    from sidestep.fusion import FusionSettings
    from sidestep.images import exif_fov, load_image
    from sidestep.outputs import check_output, save_views
    from sidestep.pipeline import DEFAULT_FOV, NovelViewPipeline

    check_output(out)
    beside = out.with_name(f"{out.stem}-coarse{out.suffix}") if coarse else None
    if beside is not None:
        check_output(beside)
    if cameras is not None and (trajectory is not None or yaw is not None or pitch is not None):
        raise SidestepError("--cameras says where to look from; leave --trajectory, --yaw and --pitch out")
    image = load_image(photo)
    if fov is None:
        fov = exif_fov(photo) or DEFAULT_FOV
    source, targets = Camera.from_fov(fov, *image.size), None
    scale: float | None = 1.0
    if cameras is not None:
        own, targets = _targets_from_file(cameras, photo)
        if own is not None:
            image, source, scale = own.load(), own.camera, None
    pipe = NovelViewPipeline.from_pretrained(model, prior=prior, device=device)
    if targets is None:
        looks_down = pipe.tunet.config.elevation if elevation is None else elevation
        targets = _targets(source, trajectory, yaw, pitch, frames, looks_down)
    with _progress() as progress:
        bars: dict[str, TaskID] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in bars:
                bars[stage] = progress.add_task(stage, total=total)
            progress.update(bars[stage], completed=done)

        views = pipe(
            image,
            targets,
            source,
            category,
            fusion,
            prompt,
            steps,
            seed,
            negative_prompt=negative_prompt,
            guidance=guidance,
            settings=FusionSettings(noise_scale, noise, latent, sample_from),
            scale=scale,
            progress=show,
        )
    save_views(out, views.images, views.cameras, fps)
    written = [str(out)]
    if beside is not None:
        save_views(beside, views.coarse, views.cameras, fps)
        written.append(str(beside))
    _report({"written": written, "fusion": views.fusion}, as_json)


@app.command()
def encode(
    data: Annotated[Path, typer.Argument(help="Captures: MVImgNet's layout, COLMAP scenes, or transforms.json.")],
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
    as_json: Json = False,
) -> None:
    """Invert every frame of captured scenes once, for training. Run again to resume."""
    from sidestep.captures import read_captures
    from sidestep.inversion import InversionSettings
    from sidestep.latents import encode_captures
    from sidestep.models import model_folder
    from sidestep.prior import LatentPrior

    scenes = read_captures(data)
    loaded = LatentPrior.from_pretrained(model_folder(prior), device)
    settings = InversionSettings(loaded.default_t_star() if t_star is None else t_star, steps, timestep)
    with _progress() as progress:
        bar = progress.add_task("frames", total=None)
        store = encode_captures(
            loaded,
            scenes,
            out,
            settings,
            prior_name=prior,
            scenes_per_shard=scenes_per_shard,
            batch_size=batch_size,
            progress=lambda done, total: progress.update(bar, completed=done, total=total),
        )
    frames = sum(len(scene.frames) for scene in store.scenes)
    _report({"store": str(out), "scenes": len(store.scenes), "frames": frames, "t_star": settings.t_star}, as_json)


@app.command()
def train(config: Config, overrides: Overrides = None, as_json: Json = False) -> None:
    """Train TUNet on encoded captures. Run again to resume."""
    from sidestep.config import load_config
    from sidestep.training import TrainConfig
    from sidestep.training import train as run

    _report({"model": str(run(load_config(TrainConfig, config, overrides or [])))}, as_json)


@app.command()
def pretrain(config: Config, overrides: Overrides = None, as_json: Json = False) -> None:
    """Train a small latent prior (an autoencoder, then a U-Net) from pictures. Run again to resume."""
    from sidestep.config import load_config
    from sidestep.pretraining import PretrainConfig
    from sidestep.pretraining import pretrain as run

    _report({"prior": str(run(load_config(PretrainConfig, config, overrides or [])))}, as_json)


@app.command()
def evaluate(
    data: Annotated[Path, typer.Option(help="Captures, of which the held-out scenes are evaluated.")],
    out: Annotated[Path, typer.Option(help="Folder of the report.")],
    model: Annotated[str, typer.Option(help="Model folder or hub id.")] = "bundled",
    prior: Annotated[str | None, typer.Option(help="Prior's folder or hub id, for a model of TUNet alone.")] = None,
    protocol: Annotated[
        Literal["distance", "paper-3class", "paper-167class"],
        typer.Option(help="Which scenes, pairs and sizes: by view distance, or one of the paper's."),
    ] = "distance",
    split: Annotated[Literal["test", "val"], typer.Option(help="Whose scenes.")] = "test",
    pairs: Annotated[Path | None, typer.Option(help="A list of pairs instead of the protocol's (pairs.json).")] = None,
    rows: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GROUP",
            help="baseline, model, option (the readings that the paper leaves open) or limit (what each part loses); "
            "repeat it for several (default: baseline and model).",
        ),
    ] = None,
    predictions: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=DIR",
            help="Another program's pictures as a row: 00000.png, 00001.png, ... in the list's order.",
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Sampling steps.")] = 30,
    seed: Annotated[int, typer.Option(help="Of the list, of drawn noise and of the intervals.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Pairs at once.")] = 8,
    weights: Annotated[
        Path | None, typer.Option(help="Folder with the published weights of LPIPS and FID (default: torch's cache).")
    ] = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Evaluate a model on held-out scenes: figures with intervals, baselines, and a report with pictures."""
    from sidestep.evaluation.evaluate import evaluate as run

    folders = {}
    for entry in predictions or []:
        name, separator, folder = entry.partition("=")
        if not separator or not name or not folder:
            raise SidestepError(
                f"--predictions {entry}: expected NAME=DIR, a row's name and the folder of its pictures"
            )
        if name in folders:
            raise SidestepError(f"--predictions {entry}: {name} is given twice; give each row a name of its own")
        folders[name] = Path(folder)
    with _progress() as progress:
        bar = progress.add_task("pairs", total=None)
        results = run(
            model,
            data,
            out,
            prior=prior,
            protocol=protocol,
            split=split,
            pairs=pairs,
            groups=rows or ("baseline", "model"),
            predictions=folders,
            steps=steps,
            seed=seed,
            batch_size=batch_size,
            weights=weights,
            device=device,
            command=shlex.join(["sidestep", *sys.argv[1:]]),
            progress=lambda done, total: progress.update(bar, completed=done, total=total),
        )
    report = str(out / "report.html")
    if as_json:
        figures = {
            row: {subset: {name: asdict(figure) for name, figure in found.items()} for subset, found in subsets.items()}
            for row, subsets in results.estimates.items()
        }
        _report({"report": report, "missing": results.missing, "estimates": figures}, as_json)
        return
    table = Table("", *(figure.title for figure in results.figures))
    for row in results.rows:
        found = results.estimates[row.name]["all"]
        cells = [f"{found[f.name].value:.{f.digits}f}" if f.name in found else "" for f in results.figures]
        table.add_row(escape(row.title) + (" †" if row.uses_target else ""), *cells)
    Console().print(table)
    for title, reason in results.missing.items():
        console.print(f"{title}: missing; {escape(reason)}", highlight=False)
    _report({"report": report}, as_json)


@capture.command()
def inspect(
    data: Annotated[Path, typer.Argument(help="Captures: MVImgNet's layout, COLMAP scenes, or transforms.json.")],
    out: Annotated[
        Path | None, typer.Option(metavar="PAGE.html", help="Write a page with pictures of the cameras.")
    ] = None,
    photos: Annotated[
        bool, typer.Option("--photos/--no-photos", help="Decode every photo, to find damaged and doubled ones.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Say what a captured set holds and what is broken in it; exit with 1 if anything is an error."""
    from sidestep.captures.inspection import inspect_captures
    from sidestep.captures.inspection_page import write_page
    from sidestep.files import make_folder

    if out is not None:
        if out.is_dir():
            raise SidestepError(f"{out}: is a folder; name a file in it")
        make_folder(out.parent)
    with _progress() as progress:
        bar = progress.add_task("scenes", total=None)
        found = inspect_captures(
            data, photos, progress=lambda done, total: progress.update(bar, completed=done, total=total)
        )
    if out is not None:
        write_page(out, found)
    if as_json:
        _report(found.to_dict(), as_json)
    else:
        print("\n".join(found.lines()))
        if out is not None:
            print(f"page: {out}")
    if found.totals["errors"]:
        raise typer.Exit(1)


def _targets(
    source: "Camera",
    trajectory: Trajectory | None,
    yaw: float | None,
    pitch: float | None,
    frames: int,
    elevation: float,
) -> "list[Camera]":
    from sidestep.trajectories import dolly, orbit, spiral, step_aside

    if trajectory is None:
        return [step_aside(source, yaw or 0.0, pitch or 0.0, elevation=elevation)]
    if trajectory == "dolly":
        if yaw is not None or pitch is not None:
            raise SidestepError("a dolly moves straight towards the subject; leave --yaw and --pitch out")
        return dolly(source, frames)
    if trajectory == "spiral":
        return spiral(
            source,
            frames,
            yaw=20.0 if yaw is None else yaw,
            pitch=8.0 if pitch is None else pitch,
            elevation=elevation,
        )
    side, height = 30.0 if yaw is None else yaw, pitch or 0.0
    return orbit(source, frames, yaw=(-side, side), pitch=(height, height), elevation=elevation)


def _targets_from_file(path: Path, photo: Path) -> "tuple[Frame | None, list[Camera]]":
    """The photo as a frame of the file, lens distortion and all, if the file lists it, and the other cameras."""
    from sidestep.captures.transforms import frame_of_photo, read_named_cameras

    own = frame_of_photo(path, photo)
    targets = [camera for name, camera in read_named_cameras(path) if Path(name).name != photo.name]
    if not targets:
        raise SidestepError(f"{path}: no camera beside the photo's own; add the target cameras as frames")
    return own, targets


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal)


def _report(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(result, indent=2))
        return
    for key, value in result.items():
        print(f"{key}: {', '.join(map(str, value)) if isinstance(value, list) else value}")


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
