"""A miniature model, and photos to give it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DModel
from PIL import ExifTags, Image

import sidestep.devices
from sidestep.app.session import Studio
from sidestep.pipeline import NovelViewPipeline
from sidestep.tunet import TUNet


@pytest.fixture(autouse=True)
def _single_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sidestep.devices, "network_dtype", lambda device: torch.float32)


@pytest.fixture(scope="session")
def tiny() -> NovelViewPipeline:
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    vae = AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, **blocks)
    vae.decoder.conv_out.weight.data.mul_(3)  # else its pictures are nearly grey
    one = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (32,)}
    unet = UNet2DModel(sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, norm_num_groups=8, **one)
    tunet = TUNet(
        sample_size=8,
        block_out_channels=(16, 32),
        attention_levels=1,
        head_dim=8,
        cross_attention_dim=24,
        time_embed_dim=24,
        norm_groups=4,
        categories=("chair", "table"),
        inversion_steps=4,
        elevation=20.0,
    ).eval()
    schedule = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    return NovelViewPipeline(tunet, vae, unet, schedule)


@pytest.fixture
def studio(tiny: NovelViewPipeline) -> Studio:
    return Studio(["tiny"], lambda name: tiny)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    return write_photo(tmp_path / "photo.png", seed=0)


@pytest.fixture
def other_photo(tmp_path: Path) -> Path:
    return write_photo(tmp_path / "other.jpg", seed=1)


def write_photo(path: Path, seed: int) -> Path:
    noise = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[ExifTags.IFD.Exif] = {ExifTags.Base.FocalLengthIn35mmFilm: 36}
    Image.fromarray(noise).resize((24, 16), Image.Resampling.BICUBIC).save(path, exif=exif)
    return path
