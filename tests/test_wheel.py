"""The wheel: what it holds, and that the same sources give the same bytes. Weights are stood in for, to be quick."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("hatchling")
ROOT = Path(__file__).parents[1]
BESIDE = ("pyproject.toml", "README.md", "LICENSE", "THIRD_PARTY.md", ".gitignore")
LICENCES = ("LICENSE", "THIRD_PARTY.md", "src/sidestep/app/static/three/LICENSE")


@pytest.fixture(scope="module")
def paths() -> list[str]:
    """What the wheel is made of, from the root: what git has, and what is about to be added to it."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "src", "examples"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("no git repository here")
    return [path for path in listed.stdout.split("\0") if path and (ROOT / path).exists()]


def build(folder: Path, paths: list[str], mode: int = 0o644, modified: float = 1e9) -> Path:
    """The wheel of a copy of the sources, whose files have the mode and the date."""
    for path in (*paths, *BESIDE):
        copy = folder / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        if copy.suffix == ".safetensors":
            copy.write_bytes(path.encode())
        else:
            shutil.copy(ROOT / path, copy)
        copy.chmod(mode)
        os.utime(copy, (modified, modified))
    for junk in ("src/sidestep/__pycache__/cli.pyc", "dist/old.whl", "data/photo.jpg"):
        (folder / junk).parent.mkdir(parents=True, exist_ok=True)
        (folder / junk).write_bytes(b"junk")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", "built"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    (wheel,) = (folder / "built").iterdir()
    return wheel


def test_it_holds_the_package_its_weights_photos_and_licences_and_nothing_else(
    tmp_path: Path, paths: list[str]
) -> None:
    with zipfile.ZipFile(build(tmp_path, paths)) as wheel:
        names = set(wheel.namelist())
        about = wheel.read(next(name for name in names if name.endswith(".dist-info/METADATA"))).decode()
    info = next(name for name in names if name.endswith("/WHEEL")).partition("/")[0]
    package = {re.sub(r"^examples/", "sidestep/app/examples/", path).removeprefix("src/") for path in paths}
    assert {name for name in names if not name.startswith(info)} == package
    said = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", *(f"licenses/{name}" for name in LICENCES)}
    assert {name.removeprefix(f"{info}/") for name in names if name.startswith(info)} == said
    for needed in ("models/small/tunet/diffusion_pytorch_model.safetensors", "app/static/three/LICENSE", "py.typed"):
        assert f"sidestep/{needed}" in names
    assert "License-Expression: Apache-2.0 AND MIT AND CC-BY-3.0" in about


def test_the_same_sources_give_the_same_bytes(tmp_path: Path, paths: list[str]) -> None:
    """Wherever they lie, whenever they were copied, whoever may read them."""
    first = build(tmp_path / "here", paths)
    second = build(tmp_path / "elsewhere" / "copy", paths[::-1], 0o600, 1.5e9)
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()
