"""What an interrupted evaluation keeps."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
import torch

from sidestep.captures import read_captures
from sidestep.captures.packed import Slice
from sidestep.captures.packing import pack_captures
from sidestep.captures.pairs import Pair
from sidestep.evaluation import kept, measuring
from sidestep.evaluation.kept import Kept, Measured, digest_of
from sidestep.evaluation.protocol import PairOfFrames, pairs_of_frames
from sidestep.files import sweep

FURNITURE = Path(__file__).parents[1] / "data" / "furniture"


@pytest.fixture
def pair() -> PairOfFrames:
    return pairs_of_frames([Pair("chair/scopia024", "003.jpg", "005.jpg")], read_captures(FURNITURE))[0]


def begun(out: Path) -> Kept:
    """With a picture and a batch."""
    folder = Kept(out, "this")
    (folder.pictures / "00000.png").touch()
    measured = Measured()
    measured.note("coarse", "psnr", {0: 1.0})
    folder.write(0, measured, {"features": torch.ones(2)})
    return folder


def test_what_was_made_of_something_else_is_never_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun(tmp_path)
    measured, features = Kept(tmp_path, "this").read(0) or (Measured(), {})
    assert measured.values == {"coarse": {"psnr": {0: 1.0}}}
    assert features.keys() == {"features"}
    monkeypatch.setattr(kept, "delete_folder", lambda path: None)  # as of files that are another's, or open on NFS
    assert Kept(tmp_path, "other").read(0) is None


def test_killed_while_it_is_deleted_it_is_gone_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(path: Path, *_: Any, **__: Any) -> NoReturn:
        os.unlink(path / "pictures" / "00000.png")
        raise KeyboardInterrupt

    folder = begun(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            folder.clear()
    assert Kept(tmp_path, "this").read(0) is None
    sweep(tmp_path, {kept.FOLDER})
    assert [path.name for path in tmp_path.iterdir()] == [kept.FOLDER]


def test_pictures_are_on_the_disk_before_their_batch_is(
    pair: PairOfFrames, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file).st_ino))
    measuring._keep(tmp_path / "coarse", [pair], torch.zeros(1, 3, 8, 8))
    assert synced == [path.stat().st_ino for path in (tmp_path / "coarse").iterdir()] != []


def test_a_pack_is_not_read_once_more_for_its_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack_captures(read_captures(FURNITURE)[:1], tmp_path / "pack")
    scenes = read_captures(tmp_path / "pack")
    frames = scenes[0].frames
    pairs = pairs_of_frames([Pair(scenes[0].id, frames[3].name, frames[5].name)], scenes)
    monkeypatch.setattr(Slice, "read_bytes", lambda self: pytest.fail(f"{self} was read"))
    first = digest_of([], pairs, {})
    object.__setattr__(pairs[0].target.path, "crc32", 1)
    assert digest_of([], pairs, {}) != first


def test_an_evaluation_that_another_version_began_is_begun_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    network: Any = torch.nn.Linear(1, 1)
    network.unet = SimpleNamespace(device="cpu", dtype="float32")
    model = SimpleNamespace(prior=network, tunet=network, steps=2, seed=0)
    run: Any = SimpleNamespace(model=model, pairs=[], rows=[], figures=[], predictions=[], size=16)
    first = measuring.Measuring.made_of(run, 1, 0)
    assert measuring.Measuring.made_of(run, 1, 0) == first
    monkeypatch.setattr(measuring, "version", lambda name: "0.2.0")
    assert measuring.Measuring.made_of(run, 1, 0) != first
