"""`sidestep prior`: a latent diffusion model, however it is published, as a folder that every command reads."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from sidestep.cli.terminal import report


def prior(
    source: Annotated[str, typer.Argument(help="Folder or hub id in diffusers' layout, or a .safetensors checkpoint.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    config: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER|ID",
            help="For a checkpoint: a model in diffusers' layout whose configuration and tokenizers it has "
            "(default: known by its weights, and without prompts).",
        ),
    ] = None,
    prediction_type: Annotated[
        Literal["epsilon", "v_prediction"] | None,
        typer.Option(help="What the U-Net predicts (default: as is said beside the weights)."),
    ] = None,
    variant: Annotated[str | None, typer.Option(help="Of a folder's weights, such as fp16.")] = None,
    text: Annotated[
        bool,
        typer.Option("--text/--no-text", help="Keep the text encoders, or only what they make of the empty prompt."),
    ] = True,
) -> None:
    """Write a prior as a plain folder: from a checkpoint, from a variant, without its text encoders."""
    import torch

    from sidestep.files import make_folder
    from sidestep.models import model_folder
    from sidestep.prior import LatentPrior

    make_folder(out)
    loaded = LatentPrior.from_pretrained(
        model_folder(source), "cpu", torch.float32, variant=variant, config=config, prediction_type=prediction_type
    )
    loaded.save_pretrained(out, text=text)
    report(
        {
            "prior": str(out),
            "image_size": loaded.image_size,
            "predicts": loaded.prediction_type,
            "takes_prompts": loaded.reads_text and text,
            "fingerprint": loaded.fingerprint(),
        }
    )
