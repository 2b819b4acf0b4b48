"""The latent U-Net, and its training on latents."""

import copy
import math
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderDC, DDIMScheduler, UNet2DModel
from PIL import Image
from torch import Tensor

from sidestep.devices import autocast
from sidestep.images import to_image
from sidestep.inversion import inversion_grid, invert, sample
from sidestep.pretraining.config import PretrainConfig, UNetConfig
from sidestep.pretraining.encoding import CROPS_PER_PHOTOGRAPH
from sidestep.pretraining.pictures import Pictures, picture_name, psnr, sheet
from sidestep.prior import LatentPrior

NUM_TIMESTEPS = 1000


def build_unet(config: UNetConfig, sample_size: int, latent_channels: int) -> UNet2DModel:
    """The latent U-Net before training."""
    down = tuple("AttnDownBlock2D" if attention else "DownBlock2D" for attention in config.attention)
    up = tuple("AttnUpBlock2D" if attention else "UpBlock2D" for attention in reversed(config.attention))
    return UNet2DModel(
        sample_size=sample_size,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=config.channels,
        layers_per_block=config.layers_per_block,
        down_block_types=down,
        up_block_types=up,
        attention_head_dim=32,
    )


class NoisySample(NamedTuple):
    """One latent to train the U-Net on.

    Attributes:
        latent: index into the captures' latents and, after them, the photographs'.
        seed: of its noise.
    """

    latent: int
    timestep: int
    mirrored: bool
    seed: int


class UNetTask:
    """The U-Net's part of `loop.fit`: latents of captures and photographs, mirrored at random, at every timestep."""

    def __init__(
        self,
        unet: UNet2DModel,
        vae: AutoencoderDC,
        latents: dict[str, Tensor],
        config: PretrainConfig,
        pictures: Pictures,
        photographs: Pictures | None,
    ) -> None:
        """Args:
        latents: as of `encode_once`, of these pictures and photographs.
        """
        self.model = unet
        self.vae = vae
        self.latents = latents
        self.config = config
        self.captured = len(latents["train"])
        self.pictures, self.photographs = pictures["train"], photographs["train"] if photographs else []
        self.train = torch.cat([latents[name] for name in ("train", "train_photographs") if name in latents])
        self.scheduler = DDIMScheduler(
            NUM_TIMESTEPS,
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            prediction_type=config.unet.prediction_type,
        )

    def draw(self, step: int) -> list[Any]:
        unet = self.config.unet
        rng = np.random.default_rng((unet.seed, step))
        size = unet.batch_size
        indices = rng.integers(self.captured, size=size)
        low = rng.random(size) < unet.low_share
        timesteps = np.where(
            low, rng.integers(unet.t_low, size=size), rng.integers(unet.t_low, NUM_TIMESTEPS, size=size)
        )
        mirrored = rng.random(size) < 0.5
        if self.captured < len(self.train):
            photographs = rng.integers(self.captured, len(self.train), size=size)
            indices = np.where(rng.random(size) < self.config.photograph_share, photographs, indices)
        columns = (indices, timesteps, mirrored, rng.integers(2**62, size=size))
        return [NoisySample(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]

    def collate(self, samples: list[Any]) -> dict[str, Tensor]:
        indices, timesteps, mirrored, seeds = zip(*samples, strict=True)
        latents = self.train[list(indices)].float()
        flip = torch.tensor(mirrored).view(-1, 1, 1, 1)
        noises = [torch.randn(latents.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return {
            "latents": torch.where(flip, latents.flip(-1), latents),
            "noise": torch.stack(noises),
            "timesteps": torch.tensor(timesteps),
        }

    def name(self, sample: Any) -> str:
        photograph = (sample.latent - self.captured) // CROPS_PER_PHOTOGRAPH
        shown = self.pictures[sample.latent] if sample.latent < self.captured else self.photographs[photograph]
        return f"{picture_name(shown)} (timestep {sample.timestep})"

    def loss(self, model: torch.nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        timesteps = batch["timesteps"]
        errors = self._errors(model, batch["latents"], batch["noise"], timesteps)
        if self.config.unet.snr_gamma is not None:
            alpha = self.scheduler.alphas_cumprod.to(errors)[timesteps]
            snr = alpha / (1 - alpha)
            # What the network's error has to be multiplied with to be that of the clean latent.
            to_clean = snr if self.config.unet.prediction_type == "epsilon" else snr + 1
            errors = errors * snr.clamp(max=self.config.unet.snr_gamma) / to_clean
        return errors.mean(), {}

    @torch.no_grad()
    def validate(self, model: torch.nn.Module) -> tuple[dict[str, float], Image.Image]:
        """The loss over fixed noise and timesteps, and four held-out pictures inverted to t* and sampled back.

        Of photographs too, where there are any: their figures end in `_photographs`.
        """
        device = next(model.parameters()).device
        # A prior freezes its networks; this one is still being trained, so a copy goes in.
        prior = LatentPrior(self.vae, copy.deepcopy(model), self.scheduler)
        t_star = prior.default_t_star()
        grid = inversion_grid(t_star, 15)
        figures: dict[str, float] = {}
        rows: list[Tensor] = []
        for kind in ("", "_photographs"):
            if f"val{kind}" not in self.latents:
                continue
            latents = self.latents[f"val{kind}"].float()
            generator = torch.Generator().manual_seed(0)
            noise = torch.randn(latents.shape, generator=generator)
            timesteps = torch.arange(len(latents)) * 37 % self.config.unet.t_low
            losses = []
            with autocast(device):
                for chunk in torch.arange(len(latents)).split(32):
                    tensors = (latents[chunk], noise[chunk], timesteps[chunk])
                    losses.append(self._errors(model, *(tensor.to(device) for tensor in tensors)))
            clean = latents[:: max(1, len(latents) // 4)][:4].to(device)
            inverted = invert(prior, clean, grid)
            back = sample(prior, inverted.latents, grid)
            mean = inverted.mean / math.sqrt(prior.alphas_cumprod[t_star])
            decoded = [prior.decode(item) for item in (clean, mean, back)]
            figures[f"loss{kind}"] = float(torch.cat(losses).mean())
            figures[f"round_trip_psnr{kind}"] = float(psnr(decoded[0], decoded[2]).mean())
            rows += decoded
        noise = torch.randn(clean.shape, generator=generator).to(device)
        rows.append(prior.decode(sample(prior, noise, inversion_grid(NUM_TIMESTEPS - 1, 25))))
        return figures, to_image(sheet(rows))

    def _errors(self, model: torch.nn.Module, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Each sample's mean squared error, (B,), in what the network predicts of the noised latents."""
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        target = noise
        if self.config.unet.prediction_type == "v_prediction":
            target = self.scheduler.get_velocity(latents, noise, timesteps)
        predicted = model(noisy, timesteps).sample.float()
        return F.mse_loss(predicted, target, reduction="none").mean(dim=(1, 2, 3))

    def prior(self) -> LatentPrior:
        return LatentPrior(self.vae, self.model, self.scheduler)
