"""A pipeline of Stable Diffusion 1.5's size, with random weights: it takes as long and as much memory as the real one.

Nothing is downloaded. Its pictures are noise.
"""

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel

from sidestep import NovelViewPipeline, TUNet
from sidestep.devices import memory_format
from sidestep.prompts import EmptyPrompt


def stable_diffusion_sized(device: torch.device, dtype: torch.dtype) -> NovelViewPipeline:
    """SD 1.5's U-Net (860M parameters) and autoencoder (84M) in `dtype`, the paper's TUNet, no text encoder."""
    with torch.device(device):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8).to(dtype)
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            sample_size=512,
        ).to(dtype)
        tunet = TUNet(**TUNet.PAPER).requires_grad_(False).eval()
    for network in (unet, vae, tunet):
        network.to(memory_format=memory_format(device))
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    return NovelViewPipeline(tunet, vae, unet, scheduler, empty_prompt=EmptyPrompt(77, 768))
