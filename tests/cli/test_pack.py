"""`sidestep pack`, and what the other commands do with a pack."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sidestep.captures import read_captures
from sidestep.captures.packing import pack_captures
from sidestep.captures.streaming import stream_scenes
from sidestep.errors import SidestepError

Command = Callable[..., int]  # runs the command line, by its arguments; the exit code
FURNITURE = Path(__file__).parents[1] / "data" / "furniture"


@pytest.fixture(scope="module")
def captures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scenes of 25 photos."""
    root = tmp_path_factory.mktemp("captures")
    for category in ("chair", "sofa"):
        shutil.copytree(FURNITURE / category, root / category)
    return root


@pytest.fixture(scope="module")
def packed(captures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packs") / "pack"
    pack_captures(read_captures(captures), out, frames_per_shard=25)
    return out


def test_pack_tells_what_it_wrote(
    sidestep: Command, captures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "pack"
    for _ in range(2):
        assert sidestep("--json", "pack", captures, out, "--frames-per-shard", 25) == 0
        told = json.loads(capsys.readouterr().out)
        size = sum(path.stat().st_size for path in out.glob("*.tar"))
        assert told == {"pack": str(out), "shards": 2, "scenes": 2, "frames": 50, "bytes": size}
    assert sidestep("pack", captures, out) == 1
    assert "25 frames a shard, not 1000; name another folder" in capsys.readouterr().err


def test_a_pack_is_inspected_as_its_folder_is(
    sidestep: Command, captures: Path, packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for data in (captures, packed):
        assert sidestep("--json", "capture", "inspect", data, "--out", tmp_path / "page.html") == 0
        told = json.loads(capsys.readouterr().out)
        found.append((told["totals"], told["findings"], [(scene["id"], scene["facts"]) for scene in told["scenes"]]))
    assert found[0] == found[1]


def test_a_damaged_photo_in_a_pack_is_found_by_inspecting_it(
    sidestep: Command, packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pack = Path(shutil.copytree(packed, tmp_path / "pack"))
    photo = read_captures(pack)[1].frames[4].path
    with open(pack / "shard-00001.tar", "r+b") as shard:
        shard.seek(photo.start)  # type: ignore[union-attr]
        shard.write(b"\0" * 100)
    assert sidestep("capture", "inspect", pack) == 1
    assert "sofa/scopia076: Photo cannot be decoded" in capsys.readouterr().out


def test_streaming_without_webdataset_says_what_to_install(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(SidestepError, match=r"pip install 'sidestep\[packs\]'"):
        stream_scenes(packed)
