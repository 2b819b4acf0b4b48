"""What a prior's parts have to be so that they fit together, and what is read of them."""

from collections.abc import Mapping, Sequence
from typing import Any

from diffusers import DDPMScheduler

from sidestep.errors import SidestepError
from sidestep.prior_folder import AUTOENCODERS, UNETS, takes_pooled
from sidestep.prompts import EmptyPrompt

# All that is read of a scheduler's config: no clipping, no thresholding, no offset, no spacing.
SCHEDULE_FIELDS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
)

# Settings of a U-Net that is told more than a prompt: classes, images, the guidance that it was distilled with.
CONDITIONS = (
    "num_class_embeds",
    "class_embed_type",
    "addition_embed_type",
    "encoder_hid_dim_type",
    "time_cond_proj_dim",
)

# How SDXL is told a picture's size, in numbers: its own height and width, where it was cropped, and what is wanted.
SIZE_NUMBERS = 6


def plain(network: Any) -> Any:
    """The network itself where it came from torch.compile, which wraps it in a class of its own."""
    return getattr(network, "_orig_mod", network)


def read_schedule(scheduler: Any) -> DDPMScheduler:
    """The betas and the prediction type of a scheduler or its config, and nothing else of it.

    Raises:
        SidestepError: if it has no betas, or its prediction type or schedule is not supported.
    """
    config: Mapping[str, Any] = getattr(scheduler, "config", scheduler)
    if config.get("beta_schedule") is None and config.get("trained_betas") is None:
        name = config.get("_class_name", type(scheduler).__name__)
        raise SidestepError(f"scheduler {name} has no betas; Sidestep needs a DDPM-like noise schedule")
    prediction_type = config.get("prediction_type", "epsilon")
    if prediction_type not in ("epsilon", "v_prediction"):
        raise SidestepError(f"prediction type {prediction_type!r} is not supported; use epsilon or v_prediction")
    fields = {key: config[key] for key in SCHEDULE_FIELDS if key in config}
    if fields.get("trained_betas") is not None:
        fields["trained_betas"] = [float(beta) for beta in fields["trained_betas"]]
        fields["num_train_timesteps"] = len(fields["trained_betas"])
    try:
        return DDPMScheduler(**fields, prediction_type=prediction_type, clip_sample=False)
    except NotImplementedError as error:
        raise SidestepError(f"beta schedule {config.get('beta_schedule')!r} is not known to diffusers") from error


def latent_shape(vae: Any, unet: Any) -> tuple[int, int, int]:
    """(latent channels, latent size, pixels per latent), on which both have to agree.

    Raises:
        SidestepError: if they do not, one's class is not supported, or it is told or scaled by more than is known here.
    """
    vae, unet = plain(vae), plain(unet)
    if type(vae).__name__ not in AUTOENCODERS:
        raise SidestepError(f"autoencoder {type(vae).__name__} is not supported; use one of {', '.join(AUTOENCODERS)}")
    if type(unet).__name__ not in UNETS:
        raise SidestepError(f"network {type(unet).__name__} is not supported; use one of {', '.join(UNETS)}")
    channels = vae.config.get("vq_embed_dim") or vae.config.latent_channels
    if unet.config.in_channels != channels or unet.config.out_channels != channels:
        raise SidestepError(
            f"the autoencoder's latents have {channels} channels but the U-Net takes {unet.config.in_channels} "
            f"and gives {unet.config.out_channels}; they do not belong together"
        )
    for extra in CONDITIONS:
        if unet.config.get(extra) is not None and not (extra == "addition_embed_type" and takes_pooled(unet)):
            raise SidestepError(f"the U-Net is conditioned by {extra}={unet.config[extra]!r}, which is not supported")
    if vae.config.get("latents_mean") is not None or vae.config.get("latents_std") is not None:
        raise SidestepError(
            "the autoencoder's latents are shifted and scaled channel by channel, which is not supported"
        )
    size = unet.config.sample_size
    height, width = size if isinstance(size, list | tuple) else (size, size)
    divisor = 2 ** (len(unet.config.block_out_channels) - 1)
    if not isinstance(height, int) or height != width or height % divisor:
        raise SidestepError(f"the U-Net's sample_size is {size}; it must be one number divisible by {divisor}")
    stages = vae.config.get("encoder_block_out_channels") or vae.config.block_out_channels
    return channels, height, 2 ** (len(stages) - 1)


def pooled_width(unet: Any) -> int:
    """Of the one vector that a prompt is told to SDXL's U-Net by, beside the sizes."""
    config = plain(unet).config
    width: int = config.projection_class_embeddings_input_dim - SIZE_NUMBERS * config.addition_time_embed_dim
    return width


def check_widths(unet: Any, empty_prompt: EmptyPrompt | None, encoders: Sequence[Any]) -> None:
    """Refuses text parts that belong to another U-Net, before torch would, in its own words.

    Args:
        unet: one that attends to a prompt.
        encoders: those that read its prompts, none where nothing does.

    Raises:
        SidestepError: if there are such.
    """
    wanted, pooled = plain(unet).config.get("cross_attention_dim"), takes_pooled(plain(unet))
    if not isinstance(wanted, int):
        return
    if empty_prompt is not None:
        _refuse_width("empty prompt's", [empty_prompt.config.width], wanted)
        if pooled:
            _refuse_width("empty prompt's pooled", [empty_prompt.config.pooled_width or 0], pooled_width(unet))
    if encoders:
        _refuse_width("text encoder's", [encoder.config.hidden_size for encoder in encoders], wanted)
        if pooled:
            projection = getattr(encoders[-1], "text_projection", None)
            width = 0 if projection is None else encoders[-1].config.projection_dim
            _refuse_width("second text encoder's pooled", [width], pooled_width(unet))


def _refuse_width(part: str, widths: Sequence[int], wanted: int) -> None:
    if sum(widths) != wanted:
        raise SidestepError(
            f"the {part} embeddings are {sum(widths)} wide but the U-Net takes {wanted}; they do not belong together"
        )
