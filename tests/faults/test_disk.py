"""A disk that is full, and one that can only be read: small ones of memory, which need root to mount."""

import subprocess
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sidestep.captures import Scene, read_captures
from sidestep.captures.packing import pack_captures
from sidestep.captures.photos import import_photos
from sidestep.errors import SidestepError
from sidestep.files import write_json
from sidestep.latents import LatentStore
from sidestep.loop import LoopConfig, fit
from sidestep.prior import LatentPrior

FURNITURE = Path(__file__).parents[1] / "data" / "furniture"
FULL = r"cannot be written \(No space left on device\); free some space and run the same command again"


class Disk:
    """A folder on a disk of its own."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def mount(self, options: str) -> None:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.place)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("no disk can be mounted here")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    place = tmp_path / "disk"
    place.mkdir()
    found = Disk(place)
    found.mount("size=4k")
    try:
        yield found
    finally:
        subprocess.run(["umount", str(place)], check=True)


class Wide:
    """A network whose checkpoint has 160 kB."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = torch.nn.Linear(1000, 10)

    def draw(self, step: int) -> list[Any]:
        return np.random.default_rng(step).integers(2**40, size=4).tolist()

    def collate(self, samples: list[Any]) -> dict[str, torch.Tensor]:
        return {"x": torch.stack([torch.randn(1000, generator=torch.Generator().manual_seed(s)) for s in samples])}

    def name(self, sample: Any) -> str:
        return str(sample)

    def loss(self, model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        return model(batch["x"]).square().mean(), {}

    def validate(self, model: torch.nn.Module) -> tuple[dict[str, float], None]:
        return {"norm": float(model.weight.detach().norm())}, None


def train(run: Path) -> None:
    fit(Wide(), LoopConfig(steps=6, batch_size=4, save_every=2, precision="fp32"), run)


def pack(out: Path) -> None:
    pack_captures(read_captures(FURNITURE), out, frames_per_shard=25)


def contents(folder: Path) -> dict[str, bytes]:
    varying = ("metrics.jsonl", "git-revision.txt")
    found = {path.name: path for path in folder.iterdir() if path.is_file() and path.name not in varying}
    return {name: path.read_bytes() for name, path in found.items()}


def fill(disk: Disk, work: Callable[[Path], object], size: int, whole: Path) -> None:
    """Works in a folder of a disk that is too small, makes that larger, and works again."""
    out = disk.place / "out"
    work(whole)
    disk.mount(f"remount,size={size}k")
    with pytest.raises(SidestepError, match=FULL):
        work(out)
    assert not [path for path in out.glob(".*") if path.name != ".lock"]
    left = contents(out)
    assert left.items() <= contents(whole).items() or "checkpoint.safetensors" in left
    disk.mount("remount,size=100m")
    work(out)
    assert contents(out) == contents(whole)


def test_a_store_of_latents(
    disk: Disk, prior: LatentPrior, scenes: list[Scene], miniatures: ModuleType, tmp_path: Path
) -> None:
    fill(disk, lambda out: miniatures.encode(prior, scenes, out), 64, tmp_path / "whole")


def test_a_pack(disk: Disk, tmp_path: Path) -> None:
    fill(disk, pack, 500, tmp_path / "whole")


def test_a_training(disk: Disk, tmp_path: Path) -> None:
    fill(disk, train, 280, tmp_path / "whole")


def test_an_import(disk: Disk, tmp_path: Path) -> None:
    pytest.importorskip("pycolmap")
    (tmp_path / "photos").mkdir()
    for number in range(4):
        noise = np.random.default_rng(number).integers(0, 256, (200, 300, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "photos" / f"{number}.png")
    disk.mount("remount,size=100k")
    with pytest.raises(SidestepError, match=FULL):
        import_photos(tmp_path / "photos", disk.place / "scene")
    assert not list(disk.place.iterdir())


def test_what_can_only_be_read_is_read_and_nothing_is_begun_in_it(
    disk: Disk, prior: LatentPrior, scenes: list[Scene], miniatures: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk.mount("remount,size=100m")
    done = {"store": lambda out: miniatures.encode(prior, scenes, out), "run": train}
    for name, work in done.items():
        work(disk.place / name)
    (disk.place / "store" / ".shard-00001.0a1b2c3d.part.safetensors").write_bytes(b"half")
    disk.mount("remount,ro")
    for name, work in done.items():
        work(disk.place / name)
    assert LatentStore(disk.place / "store").scenes

    with pytest.raises(SidestepError, match=r"a\.json: cannot be written \(Read-only file system\); see to that"):
        write_json(disk.place / "a.json", {})

    def worked(*_: Any) -> None:
        pytest.fail("work was begun")

    monkeypatch.setattr(LatentPrior, "encode", worked)
    monkeypatch.setattr(Wide, "loss", worked)
    told = r"cannot be a folder to write into \(Read-only file system\); name another"
    for work in (*done.values(), pack):
        with pytest.raises(SidestepError, match=told), warnings.catch_warnings():
            work(disk.place / "new")
