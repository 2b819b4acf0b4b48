"""`sidestep view`: a photo and where to look from in, views out."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer

from sidestep.cli.terminal import Device, progress_bars, report
from sidestep.errors import SidestepError

if TYPE_CHECKING:
    from sidestep.cameras import Camera
    from sidestep.captures import Frame

Trajectory = Literal["orbit", "spiral", "dolly", "dolly-zoom"]
Easing = Literal["linear", "smooth"]
WHERE, HOW, TEXT = "Where to look from", "How views are made", "Text, where the prior reads it"
READINGS = "Readings that the paper leaves open"
CAPTION = "{caption}"


def _categories(context: typer.Context) -> list[str]:
    """What the shell offers for --category: the model's own, where the model lies on this machine."""
    from sidestep.models import BUNDLED, model_folder

    config = Path(model_folder(context.params.get("model") or BUNDLED)) / "tunet" / "config.json"
    try:
        return list(json.loads(config.read_text(encoding="utf-8"))["categories"])
    except (OSError, ValueError, KeyError):
        return []


def _paths() -> list[str]:
    return list(get_args(Trajectory))


def view(
    photo: Annotated[Path, typer.Argument(help="The photo.")],
    out: Annotated[
        Path,
        typer.Option(help="Picture (.png, .jpg), animation (.mp4, .gif, .webp), or a folder for views with cameras."),
    ],
    yaw: Annotated[
        float | None,
        typer.Option(help="Degrees to the right; along an orbit, to each side (default 30).", rich_help_panel=WHERE),
    ] = None,
    pitch: Annotated[
        float | None, typer.Option(help="Degrees up; along a spiral, at most (default 8).", rich_help_panel=WHERE)
    ] = None,
    trajectory: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            autocompletion=_paths,
            help=f"A path of cameras instead of one: {', '.join(get_args(Trajectory))}, or through the key frames of a "
            "YAML or JSON file.",
            rich_help_panel=WHERE,
        ),
    ] = None,
    frames: Annotated[
        int | None, typer.Option(min=2, help="Views along the trajectory (default 24).", rich_help_panel=WHERE)
    ] = None,
    easing: Annotated[
        Easing | None,
        typer.Option(
            help="How the camera moves along it: evenly (linear, the default), or with a gentle start and stop.",
            rich_help_panel=WHERE,
        ),
    ] = None,
    cameras: Annotated[
        Path | None,
        typer.Option(
            help="transforms.json with the target cameras. If it names the photo, that is the photo's camera; "
            "otherwise the photo is taken from the origin with its subject at distance 1.",
            rich_help_panel=WHERE,
        ),
    ] = None,
    fov: Annotated[
        float | None,
        typer.Option(
            help="The photo's field of view across its shorter side, degrees (default: EXIF's, else 45).",
            rich_help_panel=WHERE,
        ),
    ] = None,
    elevation: Annotated[
        float | None,
        typer.Option(
            help="Degrees by which the photo looks down (default: the training captures' median).",
            rich_help_panel=WHERE,
        ),
    ] = None,
    category: Annotated[
        str | None,
        typer.Option(
            help="What the photo shows, if the model knows it.", autocompletion=_categories, rich_help_panel=HOW
        ),
    ] = None,
    fusion: Annotated[
        Literal["auto", "variance", "addition"], typer.Option(help="How noise is put back.", rich_help_panel=HOW)
    ] = "variance",
    coarse: Annotated[bool, typer.Option("--coarse", help="Write the coarse predictions too, as OUT-coarse.")] = False,
    prompt: Annotated[
        str | None, typer.Option(help="Guides the sampling, where the prior reads text.", rich_help_panel=TEXT)
    ] = None,
    caption: Annotated[
        str | None,
        typer.Option(
            metavar="auto|MODEL",
            help="Have BLIP describe the photo: auto for its base model on the hub, or a folder or hub id. The caption "
            "is the prompt, or goes where --prompt says {caption}.",
            rich_help_panel=TEXT,
        ),
    ] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What to guide away from.", rich_help_panel=TEXT)] = None,
    guidance: Annotated[float, typer.Option(help="Strength of the prompts, above 1.", rich_help_panel=TEXT)] = 3.5,
    steps: Annotated[int, typer.Option(min=1, help="Sampling steps.", rich_help_panel=HOW)] = 30,
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
    seed: Annotated[int, typer.Option(help="Of the noise that --noise gaussian draws.", rich_help_panel=HOW)] = 0,
    consistency: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="How much the views of a path are steadied (default 0); above 0 they share the noise that is drawn.",
            rich_help_panel=HOW,
        ),
    ] = None,
    fps: Annotated[int | None, typer.Option(min=1, help="Frames a second of an animation (default 12).")] = None,
    loop: Annotated[
        bool, typer.Option("--loop", help="Play an animation forwards and back again, so that it repeats smoothly.")
    ] = False,
    batch_size: Annotated[
        int,
        typer.Option(
            min=1, help="Views made together; fewer where memory is too small for so many.", rich_help_panel=HOW
        ),
    ] = 8,
    model: Annotated[str, typer.Option(help="Model folder or hub id.", rich_help_panel=HOW)] = "bundled",
    prior: Annotated[
        str | None,
        typer.Option(
            help="Prior's folder, hub id or .safetensors file, for a model of TUNet alone.", rich_help_panel=HOW
        ),
    ] = None,
    device: Device = None,
) -> None:
    """Synthesise what another camera would have seen."""
    if cameras is not None:
        path = {"trajectory": trajectory, "yaw": yaw, "pitch": pitch, "frames": frames, "easing": easing}
        _refuse("--cameras says where to look from", {**path, "elevation": elevation})
    elif trajectory is None:
        path = {"frames": frames, "easing": easing, "consistency": consistency}
        _refuse("one view is no path", path, "add --trajectory")
    _check_caption(caption, prompt)

    from sidestep.outputs import check_output, is_animation, save_views

    check_output(out)
    beside = out.with_name(f"{out.stem}-coarse{out.suffix}") if coarse else None
    if beside is not None:
        check_output(beside)
    if not is_animation(out):
        _refuse(f"{out}: is not played", {"loop": loop or None, "fps": fps}, "name an animation")
    elif cameras is None and trajectory is None:
        raise SidestepError(f"{out}: one view does not move; add --trajectory, or name a picture")
    fps = fps or 12

    from sidestep.cameras import Camera
    from sidestep.fusion import FusionSettings
    from sidestep.images import exif_fov, load_image
    from sidestep.pipeline import DEFAULT_FOV, NovelViewPipeline

    image = load_image(photo)
    angle = fov if fov is not None else exif_fov(photo) or DEFAULT_FOV
    source, targets = Camera.from_fov(angle, *image.size), None
    scale: float | None = 1.0
    if cameras is not None:
        own, targets = _targets_from_file(cameras, photo)
        if own is not None:
            _refuse(f"{cameras}: has the photo's own camera", {"fov": fov})
            image, source, scale = own.load(), own.camera, None
        if len(targets) == 1 and is_animation(out):
            raise SidestepError(f"{out}: one view does not move; add cameras to {cameras}, or name a picture")
    pipe = NovelViewPipeline.from_pretrained(model, prior=prior, device=device)
    if targets is None:
        looks_down = pipe.tunet.config.elevation if elevation is None else elevation
        targets = _targets(source, trajectory, yaw, pitch, frames or 24, looks_down, easing or "linear")
    result: dict[str, Any] = {}
    if caption is not None:
        from sidestep.captions import BLIP
        from sidestep.captions import caption as describe

        pipe.prior.check_text()
        result["caption"] = describe(image, BLIP if caption == "auto" else caption, device)
        prompt = (prompt or CAPTION).replace(CAPTION, result["caption"])
    with progress_bars() as show:
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
            batch_size=batch_size,
            consistency=consistency or 0.0,
            progress=show,
        )
    photo_seen = (views.source, views.source_camera)
    save_views(out, views.images, views.cameras, fps, loop, photo_seen)
    written = [str(out)]
    if beside is not None:
        save_views(beside, views.coarse, views.cameras, fps, loop, photo_seen)
        written.append(str(beside))
    report({"written": written, "fusion": views.fusion, **result})


def _refuse(fault: str, options: Mapping[str, object], otherwise: str | None = None) -> None:
    """Refuses those options that were given: they would be dropped without a word."""
    given = [f"--{name}" for name, value in options.items() if value is not None]
    if given:
        named = " and ".join(filter(None, [", ".join(given[:-1]), given[-1]]))
        raise SidestepError(f"{fault}; leave {named} out" + (f", or {otherwise}" if otherwise else ""))


def _check_caption(caption: str | None, prompt: str | None) -> None:
    """Refuses a caption that would not be used, and a prompt that lacks one."""
    if prompt is None:
        return
    if caption is None and CAPTION in prompt:
        raise SidestepError("--prompt leaves room for a {caption}; add --caption auto")
    if caption is not None and CAPTION not in prompt:
        raise SidestepError("--prompt leaves the caption out; write {caption} in it, or leave out --caption")


def _targets(
    source: "Camera",
    trajectory: str | None,
    yaw: float | None,
    pitch: float | None,
    frames: int,
    elevation: float,
    easing: Easing = "linear",
) -> "list[Camera]":
    from sidestep.trajectories import dolly, dolly_zoom, orbit, spiral, step_aside

    if trajectory is None:
        return [step_aside(source, yaw or 0.0, pitch or 0.0, elevation=elevation)]
    if trajectory == "orbit":
        side, height = 30.0 if yaw is None else yaw, pitch or 0.0
        return orbit(source, frames, yaw=(-side, side), pitch=(height, height), elevation=elevation, easing=easing)
    if trajectory == "spiral":
        widest, highest = 20.0 if yaw is None else yaw, 8.0 if pitch is None else pitch
        return spiral(source, frames, yaw=widest, pitch=highest, elevation=elevation, easing=easing)
    if yaw is not None or pitch is not None:
        raise SidestepError(f"--trajectory {trajectory} says where to look from; leave --yaw and --pitch out")
    if trajectory == "dolly":
        return dolly(source, frames, easing=easing)
    if trajectory == "dolly-zoom":
        return dolly_zoom(source, frames, easing=easing)
    return _through_key_frames(Path(trajectory), source, frames, elevation, easing)


def _through_key_frames(path: Path, source: "Camera", frames: int, elevation: float, easing: Easing) -> "list[Camera]":
    from sidestep.keyframes import along, read_key_frames

    if not path.suffix and not path.exists():
        known = ", ".join(get_args(Trajectory))
        raise SidestepError(f"trajectory {path} is unknown; use {known}, or name a file of key frames")
    keys = read_key_frames(path)
    try:
        return along(keys, source, frames, elevation=elevation, easing=easing)
    except SidestepError as error:
        raise SidestepError(f"{path}: {error}") from None


def _targets_from_file(path: Path, photo: Path) -> "tuple[Frame | None, list[Camera]]":
    """The photo as a frame of the file, lens distortion and all, if the file lists it, and the other cameras."""
    from sidestep.captures.transforms import frame_of_photo, read_named_cameras

    own = frame_of_photo(path, photo)
    targets = [camera for name, camera in read_named_cameras(path) if Path(name).name != photo.name]
    if not targets:
        raise SidestepError(f"{path}: no camera beside the photo's own; add the target cameras as frames")
    return own, targets
