"""A miniature model on disk, and no network."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.error import URLError

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DModel

import sidestep.devices
import sidestep.evaluation.published
from sidestep.pipeline import NovelViewPipeline
from sidestep.prior import LatentPrior
from sidestep.tunet import TUNet


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise URLError("no network in tests")

    monkeypatch.setattr(sidestep.evaluation.published, "urlopen", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch-home"))
    monkeypatch.setattr(sidestep.devices, "network_dtype", lambda device: torch.float32)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random networks for pictures of 32 px, in a model folder."""
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    vae = AutoencoderKL(block_out_channels=(8, 8, 8), norm_num_groups=4, latent_channels=4, **blocks)
    vae.decoder.conv_out.weight.data.mul_(3)  # else its pictures are nearly grey
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (32,)}
    unet = UNet2DModel(sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, norm_num_groups=8, **blocks)
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
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
        prior_fingerprint=LatentPrior(vae, unet, scheduler).fingerprint(),
    )
    folder = tmp_path_factory.mktemp("tiny-model")
    NovelViewPipeline(tunet, vae, unet, scheduler).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def room() -> ModuleType:
    """The module `room.py` beside this file: a room with exact depth maps and masks."""
    path = Path(__file__).with_name("room.py")
    spec = importlib.util.spec_from_file_location("room", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["room"] = module  # where dataclasses look for their annotations
    spec.loader.exec_module(module)
    return module
