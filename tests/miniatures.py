"""Miniature models, scenes and a store of latents, which several files of tests are about."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderDC, AutoencoderKL, DDIMScheduler, UNet2DConditionModel, UNet2DModel
from PIL import Image

from sidestep.cameras import Camera
from sidestep.captures import Frame, Scene
from sidestep.encoding import encode_captures
from sidestep.inversion import InversionSettings
from sidestep.latents import LatentStore
from sidestep.pipeline import NovelViewPipeline
from sidestep.prior import LatentPrior
from sidestep.trajectories import orbit
from sidestep.tunet import TUNet

SETTINGS = InversionSettings(t_star=600, steps=3)
SHARDS = 3
# Stable Diffusion's schedule.
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
# Of TUNet, whatever the latents.
TINY_TUNET = {
    "block_out_channels": (16, 32),
    "attention_levels": 1,
    "head_dim": 8,
    "cross_attention_dim": 24,
    "time_embed_dim": 24,
    "camera_dim": 8,
    "category_dim": 8,
    "norm_groups": 4,
}


def kl(**options: Any) -> AutoencoderKL:
    """Of pictures and latents of any size, 2 pixels a latent."""
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    sizes = {"block_out_channels": (8, 8), "norm_num_groups": 4, "latent_channels": 4}
    return AutoencoderKL(**{**sizes, **blocks, **options})


def dc(**options: Any) -> AutoencoderDC:
    """The same of another class."""
    sizes = {
        "latent_channels": 4,
        "encoder_block_types": "ResBlock",
        "decoder_block_types": "ResBlock",
        "encoder_block_out_channels": (8, 8),
        "decoder_block_out_channels": (8, 8),
        "encoder_layers_per_block": (0, 1),
        "decoder_layers_per_block": (0, 1),
        "encoder_qkv_multiscales": ((), ()),
        "decoder_qkv_multiscales": ((), ()),
        "scaling_factor": 0.5,
    }
    return AutoencoderDC(**{**sizes, **options})


def unet(**options: Any) -> UNet2DModel:
    """For latents of 4 × 8 × 8."""
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (32,)}
    size = {"sample_size": 8, "in_channels": 4, "out_channels": 4, "layers_per_block": 1, "norm_num_groups": 8}
    return UNet2DModel(**{**size, **blocks, **options})


def tiny_prior(seed: int = 0) -> LatentPrior:
    """For pictures of 32 × 32 pixels and latents of 4 × 16 × 16."""
    torch.manual_seed(seed)
    return LatentPrior(dc(), unet(sample_size=16), SD)


def tiny_pipeline(seed: int = 0, **options: Any) -> NovelViewPipeline:
    """With random weights, for pictures of 16 × 16 pixels, inverted in 4 steps; options are TUNet's."""
    torch.manual_seed(seed)
    vae = kl()
    vae.decoder.conv_out.weight.data.mul_(3)  # else its pictures are nearly grey
    network = unet()
    small = {"sample_size": 8, "block_out_channels": (16, 32), "attention_levels": 1, "head_dim": 8}
    small |= {"cross_attention_dim": 24, "time_embed_dim": 24, "norm_groups": 4, "inversion_steps": 4}
    tunet = TUNet(**{**small, **options}).eval()
    return NovelViewPipeline(tunet, vae, network, DDIMScheduler(**SD))


def reading(pipeline: NovelViewPipeline, *text: Any) -> NovelViewPipeline:
    """The pipeline on a prior that reads text, by an encoder of 16 numbers a token and its tokenizer."""
    blocks = {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)}
    torch.manual_seed(0)
    network = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32,),
        norm_num_groups=8,
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=8,
        **blocks,
    )
    return NovelViewPipeline(pipeline.tunet, pipeline.vae, network, pipeline.scheduler, *text)


def write_scenes(folder: Path) -> list[Scene]:
    """Five scenes of 60 × 48 pictures, in no order, with and without points and categories."""
    scenes = []
    for number, (name, category) in enumerate(
        [("room7s2", "sofa"), ("room7", "sofa"), ("lamp", None), ("chair3", "chair"), ("bed", "bed")]
    ):
        rng = np.random.default_rng(number)
        cameras = orbit(Camera.from_fov(50, 60, 48), 3 + number % 2, yaw=(-20, 25), elevation=15)
        frames = []
        for index, camera in enumerate(cameras):
            path = folder / f"{name}-{index}.png"
            low = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
            low.resize((60, 48), Image.Resampling.BICUBIC).save(path)
            frames.append(Frame(path.name, path, camera.scaled(1.0 + number)))
        points = torch.from_numpy(rng.normal((0, 0, 1 + number), 0.3, (40, 3))).float() if number % 2 else None
        scenes.append(Scene(name, category, tuple(frames), points))
    return scenes


def encode(prior, scenes, out, settings=SETTINGS, **options) -> LatentStore:
    options = {"prior_name": "tiny", "scenes_per_shard": 2, "batch_size": 2, **options}
    encode_captures(prior, scenes, out, settings, **options)
    return LatentStore(out)


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a store; a hidden leftover of a killed run is none of them."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if not path.name.startswith(".")}
