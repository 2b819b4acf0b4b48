"""`sidestep app`: the page on which a camera is dragged."""

from typing import Annotated

import typer

from sidestep.cli.terminal import Device, manners, report, stop_spinner
from sidestep.errors import SidestepError


def app(
    model: Annotated[
        list[str] | None, typer.Option(help="Model folder or hub id; give it again for a choice of several.")
    ] = None,
    prior: Annotated[
        str | None, typer.Option(help="Prior's folder, hub id or .safetensors file, for models of TUNet alone.")
    ] = None,
    captioner: Annotated[
        str | None,
        typer.Option(help="BLIP's folder or hub id, for prompts that describe the photo (default: as in view)."),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on. Other than loopback's, other machines reach it: give a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 7860,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="SIDESTEP_TOKEN",
            show_envvar=False,
            help="What the page asks each visitor for. Others on this machine see a command line: prefer the "
            "environment's SIDESTEP_TOKEN.",
        ),
    ] = None,
    device: Device = None,
) -> None:
    """Open a page to drag a camera round a photo's subject and make views, videos and their cameras."""
    try:
        from sidestep.app.server import serve
    except ModuleNotFoundError as error:
        raise SidestepError(f"the page needs {error.name}; install it with pip install 'sidestep[app]'") from None
    from sidestep.app.studio import Studio
    from sidestep.captions import BLIP, caption
    from sidestep.models import BUNDLED
    from sidestep.pipeline import NovelViewPipeline

    studio = Studio(
        model or [BUNDLED],
        lambda name: NovelViewPipeline.from_pretrained(name, prior=prior, device=device),
        lambda photo: caption(photo, captioner or BLIP, device),
    )

    def ready(url: str) -> None:
        if manners.json:
            report({"url": url})
            return
        stop_spinner()
        print(f"Sidestep is at {url} (Ctrl-C stops it)", flush=True)

    serve(studio, host, port, ready, token)
