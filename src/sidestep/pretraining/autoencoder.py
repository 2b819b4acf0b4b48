"""The autoencoder, and its training on crops."""

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderDC
from PIL import Image
from torch import Tensor

from sidestep.devices import autocast
from sidestep.features import ImageFeatures, perceptual_distance
from sidestep.images import gradient_energy, resize_and_crop, to_image, to_tensor
from sidestep.loop import this_process
from sidestep.pretraining.config import AutoencoderConfig, PretrainConfig
from sidestep.pretraining.pictures import (
    Picture,
    Pictures,
    load_pictures,
    open_picture,
    picture_name,
    psnr,
    sheet,
    square_part,
)


def build_autoencoder(config: AutoencoderConfig) -> AutoencoderDC:
    """The autoencoder before training; its scaling factor is measured at the end of it."""
    return AutoencoderDC(
        latent_channels=config.latent_channels,
        encoder_block_out_channels=config.channels,
        decoder_block_out_channels=config.channels,
        encoder_layers_per_block=config.encoder_layers,
        decoder_layers_per_block=config.decoder_layers,
        encoder_qkv_multiscales=((),) * len(config.channels),
        decoder_qkv_multiscales=((),) * len(config.channels),
    )


class _AutoencoderTraining(torch.nn.Module):
    """Encode, mirror, disturb, decode in one forward, so that accelerate's autocast covers all of it.

    Half of the latents are decoded mirrored, to be compared with the mirrored picture: a mirrored latent is then the
    latent of the mirrored picture, so the U-Net and TUNet can be trained on mirrored scenes without encoding twice.
    """

    def __init__(self, vae: AutoencoderDC) -> None:
        super().__init__()
        # On a CPU these convolutions run 1.7 times faster with channels last.
        self.vae = vae.to(memory_format=torch.channels_last)

    def forward(
        self, images: Tensor, noise: Tensor | None = None, mirrored: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        latents = self.vae.encode(images.contiguous(memory_format=torch.channels_last)).latent
        disturbed = latents
        if mirrored is not None:
            disturbed = torch.where(mirrored.view(-1, 1, 1, 1), disturbed.flip(-1), disturbed)
        if noise is not None:
            disturbed = disturbed + noise
        return self.vae.decode(disturbed).sample, latents


class Sample(NamedTuple):
    """One crop to train the autoencoder on: of which picture, how large that is to be, and where the crop lies.

    Attributes:
        picture: index into the captures' pictures and, after them, the photographs.
        size: what the picture's shorter side is scaled to, in pixels.
        down, across: where between the upmost or leftmost crop (0) and the lowest or rightmost (1).
        flipped: whether its latent is decoded mirrored.
        seed: of the noise on its latent.
    """

    picture: int
    size: int
    down: float
    across: float
    mirrored: bool
    flipped: bool
    seed: int


class AutoencoderTask:
    """The autoencoder's part of `loop.fit`: crops of the captures' pictures and of photographs."""

    def __init__(
        self, vae: AutoencoderDC, pictures: Pictures, config: PretrainConfig, photographs: Pictures | None = None
    ) -> None:
        self.model = _AutoencoderTraining(vae)
        vae.encoder.requires_grad_(config.autoencoder.train == "all")
        perceptual = config.autoencoder.perceptual_weight > 0
        self.features = ImageFeatures.load(this_process().device) if perceptual else None
        self.config = config
        self.captured = len(pictures["train"])
        self.pictures = pictures["train"] + (photographs["train"] if photographs else [])
        self.held_out = {"": _some(pictures["val"])}
        if photographs:
            self.held_out["_photographs"] = _some(photographs["val"])

    def draw(self, step: int) -> list[Any]:
        own = self.config.autoencoder
        rng = np.random.default_rng((own.seed, step))
        samples = []
        for _ in range(own.batch_size):
            low, high, size = 0, self.captured, self.config.image_size
            if self.captured < len(self.pictures) and rng.random() < self.config.photograph_share:
                low, high = self.captured, len(self.pictures)
                size = int(rng.integers(size, 2 * size + 1))
            index, down, across = int(rng.integers(low, high)), rng.random(), rng.random()
            mirrored, flipped, seed = rng.integers(2), rng.integers(2), rng.integers(2**62)
            samples.append(Sample(index, size, down, across, bool(mirrored), bool(flipped), int(seed)))
        return samples

    def collate(self, samples: list[Any]) -> dict[str, Tensor]:
        crop = self.config.autoencoder.crop
        vae = self.model.vae
        side = crop // vae.spatial_compression_ratio
        images, noises = [], []
        for index, size, down, across, mirrored, _, seed in samples:
            image = open_picture(self.pictures[index])
            if index < self.captured:  # the prior is only ever shown the centre of these
                image = resize_and_crop(image, size)
            tensor = to_tensor(square_part(image, crop / size, down, across, crop))
            images.append(tensor.flip(-1) if mirrored else tensor)
            own = torch.Generator().manual_seed(seed)
            deviation = self.config.autoencoder.latent_noise * torch.rand(1, generator=own)
            noises.append(deviation * torch.randn(vae.config.latent_channels, side, side, generator=own))
        flipped = torch.tensor([sample.flipped for sample in samples])
        return {"images": torch.stack(images), "noise": torch.stack(noises), "flipped": flipped}

    def name(self, sample: Any) -> str:
        return picture_name(self.pictures[sample.picture])

    def loss(self, model: torch.nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        images, flipped = batch["images"], batch["flipped"]
        reconstruction, latents = model(images, batch["noise"], flipped)
        reconstruction, latents = reconstruction.float(), latents.float()
        target = torch.where(flipped.view(-1, 1, 1, 1), images.flip(-1), images)
        error = F.l1_loss(reconstruction, target) + F.mse_loss(reconstruction, target)
        # Edges outweigh hues in an error of pixels, so that an axis of colour can stay unlearned: hues count on their
        # own, averaged over a latent's cell.
        hues = F.avg_pool2d(reconstruction - target, self.model.vae.spatial_compression_ratio)
        hues = hues - hues.mean(dim=1, keepdim=True)
        own = self.config.autoencoder
        error = error + own.colour_weight * hues.abs().mean()
        figures = {}
        if own.train == "all":
            mean = latents.mean(dim=(0, 2, 3))
            deviation = latents.std(dim=(0, 2, 3))
            penalty = (mean**2 + deviation.clamp(min=1e-3).log() ** 2).mean()
            error = error + own.latent_weight * penalty
            figures["latent_deviation"] = float(deviation.detach().mean())
        if self.features:
            # In float32, outside of autocast: bfloat16 would be no faster here.
            distance = perceptual_distance(self.features, reconstruction, target).mean()
            error = error + own.perceptual_weight * distance
            figures["perceptual"] = float(distance.detach())
        return error, figures

    @torch.no_grad()
    def validate(self, model: torch.nn.Module) -> tuple[dict[str, float], Image.Image]:
        """PSNR of held-out pictures, and of photographs, whose figures end in `_photographs`.

        With a perceptual term also that distance and the sharpness: the energy of the reconstructions' gradients as
        a share of the pictures' own. Below 1 they are blurred, above 1 there is grain in them.
        """
        device = next(model.parameters()).device

        def reconstruct(images: Tensor, flip: bool) -> Tensor:
            with autocast(device):
                chosen = [torch.full((len(chunk),), flip, device=device) for chunk in images.split(4)]
                parts = zip(images.split(4), chosen, strict=True)
                return torch.cat([model(chunk, mirrored=mirrored)[0].float() for chunk, mirrored in parts])

        figures, rows = {}, []
        for name, pictures in self.held_out.items():
            images = load_pictures(pictures, self.config.image_size).to(device)
            result, mirrored = reconstruct(images, False), reconstruct(images, True)
            figures[f"psnr{name}"] = float(psnr(images, result).mean())
            figures[f"psnr_mirrored{name}"] = float(psnr(images.flip(-1), mirrored).mean())
            if self.features:
                pairs = zip(result.split(4), images.split(4), strict=True)
                distances = [perceptual_distance(self.features, *pair) for pair in pairs]
                figures[f"perceptual{name}"] = float(torch.cat(distances).mean())
                figures[f"sharpness{name}"] = float(gradient_energy(result).mean() / gradient_energy(images).mean())
            rows += [images[::2], result[::2]]
        return figures, to_image(sheet(rows))


def _some(pictures: list[Picture]) -> list[Picture]:
    """At most 16 of them, spread evenly."""
    return pictures[:: max(1, len(pictures) // 16)][:16]
