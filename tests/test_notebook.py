"""How results show themselves, and that the notebook and the code of the Python guide run and show what is kept."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import huggingface_hub
import nbformat
import numpy as np
import pytest
import torch
from diffusers.utils import dynamic_modules_utils
from PIL import Image

import sidestep.pipeline
from sidestep import Camera, NovelViewPipeline, Reference, Views, orbit, read_captures
from sidestep.inversion import Inverted
from sidestep.models import BUNDLED

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs/notebooks/start.ipynb"
GUIDE = ROOT / "docs/python.md"


def make_views(count: int, size: int = 256, fusion: str = "variance") -> Views:
    """Views whose pictures can be told apart by their red."""
    ramp = np.linspace(0, 255, size, dtype=np.uint8)
    pictures = [
        Image.fromarray(np.stack([np.full((size, size), 10 * i, np.uint8), *np.meshgrid(ramp, ramp)], axis=2))
        for i in range(2 * count + 1)
    ]
    source = Camera.from_fov(45, size, size)
    images, coarse = pictures[1 : count + 1], pictures[count + 1 :]
    return Views(images, orbit(source, count), coarse, [fusion] * count, pictures[0], source)


class Page(HTMLParser):
    """The pictures of a piece of HTML and their names, in order; everything in it is closed and nothing is fetched."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.names, self.reds, self.sizes, self.open = list[str](), list[int](), list[tuple[int, int]](), list[str]()
        self.feed(html)
        assert self.open == []
        assert not re.search("http|url|<script|background|color", re.sub(r"base64,[^\"]*", "", html))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag != "img":
            self.open.append(tag)
            return
        told = dict(attributes)
        kind, _, data = str(told["src"]).partition("base64,")
        assert kind == "data:image/jpeg;"
        picture = Image.open(BytesIO(base64.b64decode(data, validate=True)))
        self.names.append(str(told["alt"]))
        self.sizes.append(picture.size)
        self.reds.append(round(float(np.asarray(picture)[..., 0].mean()) / 10))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_one_view_stands_beside_the_photo_and_its_coarse_view() -> None:
    page = Page(make_views(1)._repr_html_())
    assert page.names == ["photo", "coarse", "view"]
    assert page.reds == [0, 2, 1]
    assert set(page.sizes) == {(256, 256)}


def test_a_few_views_have_their_coarse_ones_below() -> None:
    page = Page(make_views(3)._repr_html_())
    assert page.names == ["photo", *(f"view {i}" for i in (1, 2, 3)), *(f"view {i}, coarse" for i in (1, 2, 3))]
    assert page.reds == [0, 1, 2, 3, 4, 5, 6]


def test_many_views_are_small() -> None:
    html = make_views(12)._repr_html_()
    page = Page(html)
    assert page.names == ["photo", *(f"view {i + 1}" for i in range(12))]
    assert page.reds == list(range(13))
    assert set(page.sizes) == {(128, 128)}
    assert len(html) < 13 * 8_000


def test_how_noise_was_put_back_is_said_where_it_differs() -> None:
    views = make_views(2)
    assert not any("variance" in name for name in Page(views._repr_html_()).names)
    views.fusion[1] = "addition"
    assert Page(views._repr_html_()).names[1:3] == ["view 1, variance", "view 2, addition"]


def test_pictures_smaller_than_a_place_are_not_enlarged() -> None:
    assert set(Page(make_views(1, size=16)._repr_html_()).sizes) == {(16, 16)}


def test_results_print_in_one_line() -> None:
    assert repr(make_views(3)) == "Views(3 of 256x256, variance)"
    views, latents = make_views(1), torch.zeros(1, 4, 8, 8)
    reference = Reference(views.source, views.source_camera, 1.0, Inverted(latents, latents))
    assert repr(reference) == "Reference(256x256, latents (1, 4, 8, 8))"
    assert Page(reference._repr_html_()).names == ["photo, inverted"]


def test_a_camera_prints_what_it_is() -> None:
    camera = Camera.from_fov(45, 640, 480)
    assert repr(camera) == "Camera(640x480, fov 45°, at (0, 0, 0), looking along (0, 0, 1))"
    pose = torch.tensor([[0, 0, -1, 2], [0, 1, 0, 0], [1, 0, 0, 3], [0, 0, 0, 1]])  # looks along x from (-3, 0, 2)
    assert repr(Camera.from_fov(60, 8, 8, pose)).endswith("fov 60°, at (-3, 0, 2), looking along (1, 0, 0))")
    both = Camera.stack([Camera.from_fov(fov, 8, 8) for fov in (60, 30)])
    assert repr(both) == "Camera(batch (2,), 8x8, fov 30 to 60°)"


def test_views_are_saved_as_the_suffix_asks(tmp_path: Path) -> None:
    views = make_views(3, size=16)
    for name, kind in (("sheet.png", "PNG"), ("turn.gif", "GIF"), ("turn.webp", "WEBP")):
        views.save(tmp_path / name)
        with Image.open(tmp_path / name) as written:
            assert written.format == kind
    views.save(tmp_path / "turn.mp4", fps=3)
    views.save(str(tmp_path / "turn"))
    (scene,) = read_captures(tmp_path / "turn")
    found = Camera.stack([frame.camera for frame in scene.frames])
    for camera in [*views.cameras, views.source_camera]:
        distances = (found.world_to_camera - camera.world_to_camera).abs().amax(dim=(1, 2))
        assert float(distances.min()) < 1e-4


@pytest.fixture
def tiny_bundled(
    make_tiny_pipeline: Callable[..., NovelViewPipeline], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """In place of the bundled model, a miniature one with random weights; works in `tmp_path`."""
    make_tiny_pipeline().save_pretrained(tmp_path / "tiny")
    other = sidestep.pipeline.model_folder
    monkeypatch.setattr(
        sidestep.pipeline,
        "model_folder",
        lambda name: str(tmp_path / "tiny") if str(name) == BUNDLED else other(name),
    )
    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def code_cells() -> list[Any]:
    return [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]


def test_the_notebooks_code_runs(tiny_bundled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(NOTEBOOK.parent)
    names: dict[str, Any] = {}
    for cell in code_cells():
        exec(compile(cell.source, str(NOTEBOOK), "exec"), names)
    assert len(names["turn"].images) == 24
    shutil.rmtree(names["folder"])


def test_the_notebook_is_kept_as_it_ran() -> None:
    assert NOTEBOOK.stat().st_size < 400_000
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells()
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    kept = json.dumps([cell.outputs for cell in cells])
    assert not re.search(r"\"(stderr|error|image/png)\"", kept)
    texts = "".join(
        str(output.get("text", output.get("data", {}).get("text/plain"))) for c in cells for output in c.outputs
    )
    assert not re.search(r"(?<!\w)/\w+/", texts)  # no path of the machine it ran on
    shown = [kind for cell in cells for output in cell.outputs for kind in output.get("data", {})]
    assert shown.count("image/jpeg") == 3
    html = "".join(output.data.get("text/html", "") for c in cells for output in c.outputs if "data" in output)
    assert html.count("data:video/mp4") == 1
    assert html.count("<img") > 30


@pytest.mark.slow
def test_the_notebook_runs_again_and_shows_as_much(tmp_path: Path) -> None:
    copy = tmp_path / "docs/notebooks/start.ipynb"
    copy.parent.mkdir(parents=True)
    shutil.copy(NOTEBOOK, copy)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    subprocess.run([sys.executable, ROOT / "scripts/run_notebook.py", copy], check=True, env={**os.environ})
    again = [cell for cell in nbformat.read(copy, as_version=4).cells if cell.cell_type == "code"]
    for cell, kept in zip(again, code_cells(), strict=True):
        kinds = [[sorted(output.get("data", {"text": 0})) for output in each.outputs] for each in (cell, kept)]
        assert kinds[0] == kinds[1]


def test_the_guides_code_runs(
    tiny_bundled: Path, make_tiny_pipeline: Callable[..., NovelViewPipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In order, in one namespace, on a photo; what needs a GPU only where there is one."""
    Image.open(ROOT / "examples/chair.jpg").save(tiny_bundled / "photo.jpg")
    pipe = make_tiny_pipeline()
    pipe.tunet.save_pretrained(tiny_bundled / "run/model/tunet")
    pipe.prior.save_pretrained(tiny_bundled / "prior")
    uploaded: list[str] = []
    monkeypatch.setattr(
        huggingface_hub,
        "create_repo",
        lambda repo_id, **options: huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}"),
    )
    monkeypatch.setattr(huggingface_hub, "file_exists", lambda *arguments, **options: False)
    monkeypatch.setattr(huggingface_hub, "upload_folder", lambda repo_id, **options: uploaded.append(repo_id))

    blocks = re.findall(r"(<!-- needs a GPU -->\n)?```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert len(blocks) > 10
    names: dict[str, Any] = {}
    for needs_gpu, block in blocks:
        if not needs_gpu or torch.cuda.is_available():
            exec(compile(block, str(GUIDE), "exec"), names)
    assert uploaded == ["me/chairs"]
    for name in ("right.png", "turn.mp4", "turn.jpg", "turn/transforms.json", "chairs/model_index.json"):
        assert (tiny_bundled / name).is_file()
