"""Miniature models, and photos to give them."""

from collections.abc import Callable
from pathlib import Path
from string import ascii_lowercase
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

import sidestep.devices
from sidestep.app.studio import Studio
from sidestep.images import load_image
from sidestep.pipeline import NovelViewPipeline


@pytest.fixture(autouse=True)
def _single_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sidestep.devices, "network_dtype", lambda device: torch.float32)


@pytest.fixture(scope="session")
def tiny(make_tiny_pipeline: Callable[..., NovelViewPipeline]) -> NovelViewPipeline:
    return make_tiny_pipeline(categories=("chair", "table"), elevation=20.0)


@pytest.fixture(scope="session")
def reader(miniatures: ModuleType, tiny: NovelViewPipeline, make_text_parts: Callable[..., Any]) -> NovelViewPipeline:
    """The miniature model on a prior that reads text: letters."""
    return miniatures.reading(tiny, *make_text_parts())


@pytest.fixture
def studio(tiny: NovelViewPipeline) -> Studio:
    return Studio(["tiny"], lambda name: tiny)


@pytest.fixture
def reading_studio(tiny: NovelViewPipeline, reader: NovelViewPipeline) -> Studio:
    """A choice of two models, the second of which reads text; its captioner tells photos apart."""

    def describe(photo: Path) -> str:
        return "ab " + ascii_lowercase[np.asarray(load_image(photo), np.int64).sum() % 26]

    return Studio(["tiny", "reader"], {"tiny": tiny, "reader": reader}.__getitem__, describe)


@pytest.fixture(scope="session")
def build(tiny: NovelViewPipeline, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Makes the page, whose private folder is `app.state.folder`; options are those of `build_app`."""
    pytest.importorskip("gradio", reason="the page's extra is not installed")
    from sidestep.app.server import build_app

    def built(**options: Any) -> Any:
        folder = tmp_path_factory.mktemp("private")
        app = build_app(Studio(["tiny"], lambda name: tiny), folder, **options)
        app.state.folder = folder
        return app

    # What `build_app` sets in the environment stays: a copy of it in os.environ's place, for as long as this is there,
    # would keep from other tests' processes what those tests set for them.
    return built


@pytest.fixture(scope="session")
def app(build: Callable[..., Any]) -> Any:
    """The page on loopback, which takes a while to make; each test is to use names of its own for sessions."""
    return build()


@pytest.fixture
def client(app: Any) -> Any:
    """A visitor of the page on loopback who was not there before."""
    from starlette.testclient import TestClient

    return TestClient(app, base_url="http://127.0.0.1")


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
