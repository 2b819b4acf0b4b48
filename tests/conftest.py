"""What several test files need: a pipeline of miniature networks, and a store of latents of a miniature prior."""

import json
import logging
import os
import string
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    # Before torch is imported, and for the processes that tests start: several workers of all cores each would get
    # into each other's way.
    os.environ.setdefault(
        "OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])))
    )

if TYPE_CHECKING:
    from sidestep.captures import Scene
    from sidestep.pipeline import NovelViewPipeline
    from sidestep.prior import LatentPrior


@pytest.fixture
def own_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What `sidestep.cli.main` sets for its process does not stay set in that of the other tests."""
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    level = logging.getLogger("sidestep").level
    yield
    logging.captureWarnings(False)
    logging.getLogger("sidestep").setLevel(level)


@pytest.fixture
def sidestep(own_process: None, monkeypatch: pytest.MonkeyPatch) -> "Callable[..., int]":
    """Runs the command line with some arguments in this process; returns its exit code."""
    from sidestep.cli import main

    def run(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["sidestep", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0)

    return run


@pytest.fixture(scope="session")
def make_tiny_pipeline(miniatures: ModuleType) -> "Callable[..., NovelViewPipeline]":
    """Makes a pipeline with random weights, for pictures of 16x16, inverted in 4 steps; options are TUNet's."""
    return miniatures.tiny_pipeline


@pytest.fixture(scope="session")
def make_text_parts(tmp_path_factory: pytest.TempPathFactory) -> "Callable[..., tuple[Any, Any]]":
    """Makes a text encoder and a tokenizer of CLIP's classes, with random weights, whose words are letters and "ab".

    A prompt has `length` tokens, with the one that begins and the one that ends it.
    """
    import torch

    transformers = pytest.importorskip("transformers")

    def make(length: int = 12) -> tuple[Any, Any]:
        folder = tmp_path_factory.mktemp("tokenizer")
        letters = string.ascii_lowercase
        words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters), "ab</w>"]
        (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
        (folder / "merges.txt").write_text("#version: 0.2\na b</w>\n")
        settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": length, "pad_token": "<|endoftext|>"}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "max_position_embeddings": length}
        torch.manual_seed(0)
        encoder = transformers.CLIPTextModel(transformers.CLIPTextConfig(vocab_size=len(words) + 1, **size, **ends))
        return encoder, transformers.CLIPTokenizer.from_pretrained(folder)

    return make


@pytest.fixture(scope="session")
def miniatures() -> ModuleType:
    """The module `miniatures.py` beside this file, which brings torch, so that it is imported where it is needed."""
    import miniatures

    return miniatures


@pytest.fixture(scope="session")
def prior(miniatures: ModuleType) -> "LatentPrior":
    return miniatures.tiny_prior()


@pytest.fixture(scope="session")
def scenes(miniatures: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> "list[Scene]":
    return miniatures.write_scenes(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="session")
def whole(
    miniatures: ModuleType, prior: "LatentPrior", scenes: "list[Scene]", tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A store of the scenes' latents, which no test changes."""
    out = tmp_path_factory.mktemp("stores") / "whole"
    miniatures.encode(prior, scenes, out)
    return out


@pytest.fixture
def store_copy(miniatures: ModuleType, whole: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    folder = tmp_path / "store"
    folder.mkdir()
    for name, data in miniatures.contents(whole).items():
        (folder / name).write_bytes(data)
    return folder
