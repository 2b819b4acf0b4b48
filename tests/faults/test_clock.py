"""Files with times of a clock that was wrong, long past or far ahead."""

import os
from pathlib import Path
from types import ModuleType

import pytest

from sidestep.captures import Scene, read_captures, write_capture
from sidestep.captures.packing import pack_captures
from sidestep.errors import SidestepError
from sidestep.prior import LatentPrior

FURNITURE = Path(__file__).parents[1] / "data" / "furniture"
PAST, FUTURE = 1.0, 4e9  # seconds: 1970 and 2096


def date(folder: Path, seconds: float) -> None:
    for path in folder.rglob("*"):
        os.utime(path, (seconds, seconds))


@pytest.mark.parametrize("written", [PAST, FUTURE])
def test_a_store_of_latents_goes_on(
    written: float,
    store_copy: Path,
    whole: Path,
    prior: LatentPrior,
    scenes: list[Scene],
    miniatures: ModuleType,
) -> None:
    (store_copy / "shard-00001.safetensors").unlink()
    date(store_copy, written)
    kept = (store_copy / "shard-00000.safetensors").stat().st_mtime
    miniatures.encode(prior, scenes, store_copy)
    assert miniatures.contents(store_copy) == miniatures.contents(whole)
    assert (store_copy / "shard-00000.safetensors").stat().st_mtime == kept


@pytest.fixture
def captures(tmp_path: Path) -> Path:
    frames = read_captures(FURNITURE)[0].frames[:3]
    write_capture(tmp_path / "set" / "chair", [frame.load() for frame in frames], [frame.camera for frame in frames])
    return tmp_path / "set"


@pytest.mark.parametrize("written", [PAST, FUTURE])
def test_a_pack_goes_on(written: float, captures: Path, tmp_path: Path) -> None:
    out = tmp_path / "pack"
    pack_captures(read_captures(captures), out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    date(captures, written)
    (out / "SHA256SUMS").unlink()
    pack_captures(read_captures(captures), out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_photo_that_was_rewritten_at_its_size_is_not_taken_for_the_packed_one(captures: Path, tmp_path: Path) -> None:
    out = tmp_path / "pack"
    scenes = read_captures(captures)
    pack_captures(scenes, out)
    photo = scenes[0].frames[1].path
    assert isinstance(photo, Path)
    data = photo.read_bytes()
    photo.write_bytes(data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])
    os.utime(photo, (FUTURE, FUTURE))
    with pytest.raises(SidestepError, match=f"^{photo}: has changed since it was packed; .*delete {out}"):
        pack_captures(read_captures(captures), out)
