"""The whole of a pretraining: the autoencoder first, then the latent U-Net."""

from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import AutoencoderDC, UNet2DModel

from sidestep.devices import halve
from sidestep.errors import SidestepError
from sidestep.files import atomic_path, sweep
from sidestep.loop import fit, this_process
from sidestep.models import model_folder
from sidestep.pretraining.autoencoder import AutoencoderTask, build_autoencoder
from sidestep.pretraining.config import PretrainConfig
from sidestep.pretraining.encoding import encode_once
from sidestep.pretraining.pictures import Pictures, pictures_by_split
from sidestep.pretraining.unet import NUM_TIMESTEPS, UNetTask, build_unet
from sidestep.prior import LatentPrior


class Beginning(NamedTuple):
    """What a pretraining starts from.

    Attributes:
        task: the autoencoder's.
        initial: the prior that `init` names, or None.
    """

    task: AutoencoderTask
    pictures: Pictures
    photographs: Pictures | None
    initial: LatentPrior | None


def pretrain(config: PretrainConfig) -> Path:
    """Trains the autoencoder, then the U-Net; returns the folder of the finished prior. Run again to resume.

    An encoder that is left as `init` has it (`autoencoder.train="decoder"`, or no steps) keeps its scaling factor, and
    so the latents stay what they were. If the U-Net takes no steps either, nothing is encoded.

    Raises:
        SidestepError: if there are no pictures, settings do not fit each other, or a folder given by `init` does not.
    """
    process = this_process()  # before a network is loaded, which of several processes would all put on the first GPU
    training, pictures, photographs, initial = begin(config)
    vae = training.model.vae
    before = [weight.detach().cpu().clone() for weight in vae.encoder.parameters()]
    fit(training, config.autoencoder, config.out / "autoencoder", config)
    kept = initial and all(map(torch.equal, before, (weight.cpu() for weight in vae.encoder.parameters())))
    if initial and kept and config.unet.steps == 0 and not (config.out / "unet").exists():
        prior = initial  # whose decoder has been trained where it is
    else:
        latent_size = config.image_size // vae.spatial_compression_ratio
        torch.manual_seed(config.unet.seed)
        unet = initial.unet if initial else build_unet(config.unet, latent_size, vae.config.latent_channels)
        factor = vae.config.scaling_factor if kept else None
        with process.main_process_first():  # the others find it on disk
            latents = encode_once(vae, pictures, photographs, config, factor)
        task = UNetTask(unet, vae, latents, config, pictures, photographs)
        fit(task, config.unet, config.out / "unet", config)
        prior = task.prior()
    halve(prior, str(config.out))  # before anything is inverted with it: the stored weights are the prior
    if process.is_main_process:
        sweep(config.out, {"prior"})
        with atomic_path(config.out / "prior") as temporary:
            prior.save_pretrained(temporary)
    return config.out / "prior"


def begin(config: PretrainConfig) -> Beginning:
    """Finds the pictures and makes the autoencoder. The seed alone decides its first weights.

    Raises:
        SidestepError: as `pretrain`.
    """
    _check(config)
    pictures = pictures_by_split(config.data)
    photographs = pictures_by_split(config.photographs) if config.photographs else None
    initial = _initial_prior(config)
    torch.manual_seed(config.autoencoder.seed)
    vae = initial.vae if initial else build_autoencoder(config.autoencoder)
    return Beginning(AutoencoderTask(vae, pictures, config, photographs), pictures, photographs, initial)


def _check(config: PretrainConfig) -> None:
    autoencoder, unet = config.autoencoder, config.unet
    if autoencoder.train == "decoder" and config.init is None:
        raise SidestepError("autoencoder.train=decoder: needs init, the prior whose encoder is kept")
    if not 0 <= config.photograph_share <= 1:
        raise SidestepError(f"photograph_share={config.photograph_share}: must be a share between 0 and 1")
    cell = 2 ** (len(autoencoder.channels) - 1)
    if autoencoder.crop % cell or not cell <= autoencoder.crop <= config.image_size:
        raise SidestepError(
            f"autoencoder.crop={autoencoder.crop}: must be a multiple of {cell}, at most image_size={config.image_size}"
        )
    if not 0 < unet.t_low < NUM_TIMESTEPS:
        raise SidestepError(f"unet.t_low={unet.t_low}: must lie between 1 and {NUM_TIMESTEPS - 1}")
    for name, given, channels in (
        ("autoencoder.encoder_layers", autoencoder.encoder_layers, autoencoder.channels),
        ("autoencoder.decoder_layers", autoencoder.decoder_layers, autoencoder.channels),
        ("unet.attention", unet.attention, unet.channels),
    ):
        if len(given) != len(channels):
            raise SidestepError(f"{name} has {len(given)} entries; give one for each of the {len(channels)} channels")


def _initial_prior(config: PretrainConfig) -> LatentPrior | None:
    if config.init is None:
        return None
    prior = LatentPrior.from_pretrained(model_folder(config.init), dtype=torch.float32).requires_grad_(True)
    if not isinstance(prior.vae, AutoencoderDC) or not isinstance(prior.unet, UNet2DModel):
        kinds = f"{type(prior.vae).__name__} and {type(prior.unet).__name__}"
        raise SidestepError(
            f"init={config.init}: holds {kinds}; pretraining goes on from AutoencoderDC and UNet2DModel only"
        )
    for name, found, wanted in (
        ("image_size", prior.image_size, config.image_size),
        ("unet.prediction_type", prior.prediction_type, config.unet.prediction_type),
    ):
        if found != wanted:
            raise SidestepError(f"init={config.init}: has {name} {found}, not {wanted}; set {name}={found} to go on")
    return prior
