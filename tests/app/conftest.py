"""Miniature models, and photos to give them."""

import json
from collections.abc import Callable
from pathlib import Path
from string import ascii_lowercase

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import ExifTags, Image

import sidestep.devices
from sidestep.app.session import Studio
from sidestep.images import load_image
from sidestep.pipeline import NovelViewPipeline


@pytest.fixture(autouse=True)
def _single_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sidestep.devices, "network_dtype", lambda device: torch.float32)


@pytest.fixture(scope="session")
def tiny(make_tiny_pipeline: Callable[..., NovelViewPipeline]) -> NovelViewPipeline:
    return make_tiny_pipeline(categories=("chair", "table"), elevation=20.0)


@pytest.fixture(scope="session")
def reader(tiny: NovelViewPipeline, tmp_path_factory: pytest.TempPathFactory) -> NovelViewPipeline:
    """The miniature model on a prior that reads text: letters."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("tokenizer")
    words = ["<|startoftext|>", "<|endoftext|>", *ascii_lowercase, *(f"{letter}</w>" for letter in ascii_lowercase)]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    told = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 12, "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "max_position_embeddings": 12}
    torch.manual_seed(0)
    encoder = transformers.CLIPTextModel(transformers.CLIPTextConfig(vocab_size=len(words) + 1, **size, **ends))
    blocks = {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)}
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32,),
        norm_num_groups=8,
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=8,
        **blocks,
    )
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    return NovelViewPipeline(tiny.tunet, tiny.vae, unet, tiny.scheduler, encoder, tokenizer)


@pytest.fixture
def studio(tiny: NovelViewPipeline) -> Studio:
    return Studio(["tiny"], lambda name: tiny)


@pytest.fixture
def reading_studio(tiny: NovelViewPipeline, reader: NovelViewPipeline) -> Studio:
    """A choice of two models, the second of which reads text; its captioner tells photos apart."""

    def describe(photo: Path) -> str:
        return "ab " + ascii_lowercase[np.asarray(load_image(photo), np.int64).sum() % 26]

    return Studio(["tiny", "reader"], {"tiny": tiny, "reader": reader}.__getitem__, describe)


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
