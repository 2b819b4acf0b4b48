"""What `sidestep pretrain` is told."""

from dataclasses import field
from pathlib import Path
from typing import Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

from sidestep.config import settings
from sidestep.loop import LoopConfig


@settings
class AutoencoderConfig(LoopConfig):
    """The autoencoder: diffusers' AutoencoderDC with residual blocks only, 8 times smaller on each side.

    Attributes:
        train: "decoder" leaves the encoder of `init` as it is, and with it every latent: the U-Net and a TUNet that
            were trained on its latents stay valid.
        crop: side of the square crops that it is trained on, in pixels.
        latent_noise: largest deviation of the noise put on the latents before decoding, because the latents that
            the decoder will be given are never exact.
        colour_weight: of the error in hue, averaged over a latent's cell.
        latent_weight: of the penalty that draws each latent channel towards mean 0 and deviation 1.
        perceptual_weight: of `features.perceptual_distance`, for texture where an error of pixels prefers a blur; 0
            does without, and without the packages that it needs.
    """

    steps: NonNegativeInt = 1000
    batch_size: PositiveInt = 16
    learning_rate: NonNegativeFloat = 1.5e-3
    save_every: PositiveInt = 50
    sample_every: PositiveInt = 200
    ema_decay: float = 0.995
    train: Literal["all", "decoder"] = "all"
    crop: int = 128
    latent_channels: int = 4
    channels: tuple[int, ...] = (32, 48, 96, 192)
    encoder_layers: tuple[int, ...] = (0, 2, 2, 2)
    decoder_layers: tuple[int, ...] = (0, 2, 2, 3)
    latent_noise: float = 0.1
    latent_weight: float = 0.02
    colour_weight: float = 4.0
    perceptual_weight: float = 0.0


@settings
class UNetConfig(LoopConfig):
    """The latent U-Net, trained to predict the noise at every timestep.

    Attributes:
        low_share: share of the samples whose timestep lies below `t_low`, where inversion and sampling spend most
            forwards; the rest lie above, because direct addition inverts to the last timestep.
        snr_gamma: weighs each sample's loss so that it counts, in terms of the clean latent's error, by the
            signal-to-noise ratio up to this value (min-SNR, Hang et al. 2023; they use 5). None weighs all alike.
    """

    steps: NonNegativeInt = 3000
    batch_size: PositiveInt = 16
    learning_rate: NonNegativeFloat = 5e-4
    channels: tuple[int, ...] = (64, 128, 192)
    attention: tuple[bool, ...] = (False, True, True)
    layers_per_block: int = 2
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon"
    t_low: int = 600
    low_share: float = 0.75
    snr_gamma: float | None = None


@settings
class PretrainConfig:
    """What `sidestep pretrain` does.

    Attributes:
        data: captures, or a folder of pictures. Validation and test models (or pictures) are left out.
        out: the run's folder; the finished prior lies in `out/prior`.
        init: start from the weights of this model folder, or of the bundled model ("bundled").
        photographs: a folder of other pictures, for a prior of more than what the captures show. Both networks learn
            from random crops of them, so they should be twice `image_size` on their shorter side.
        photograph_share: how much of the training samples they make up, 0 to 1.
    """

    data: Path
    out: Path
    image_size: int = 256
    init: str | None = None
    photographs: Path | None = None
    photograph_share: float = 0.25
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    unet: UNetConfig = field(default_factory=UNetConfig)
