"""`sidestep pack`, and what the other commands do with a pack."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from sidestep.captures import read_captures
from sidestep.captures.packing import pack_captures
from sidestep.captures.streaming import stream_scenes
from sidestep.cli import main
from sidestep.errors import SidestepError
from sidestep.pretraining.pictures import pictures_by_split

pytestmark = pytest.mark.usefixtures("own_process")
FURNITURE = Path(__file__).parents[1] / "data" / "furniture"


def sidestep(monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> int:
    """Runs the command in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["sidestep", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packs") / "pack"
    pack_captures(read_captures(FURNITURE), out, frames_per_shard=50)
    return out


def test_pack_tells_what_it_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "pack"
    for _ in range(2):
        assert sidestep(monkeypatch, "--json", "pack", FURNITURE, out, "--frames-per-shard", 50) == 0
        told = json.loads(capsys.readouterr().out)
        size = sum(path.stat().st_size for path in out.glob("*.tar"))
        assert told == {"pack": str(out), "shards": 2, "scenes": 3, "frames": 75, "bytes": size}
    assert sidestep(monkeypatch, "pack", FURNITURE, out) == 1
    assert "50 frames a shard, not 1000; name another folder" in capsys.readouterr().err


def test_a_pack_is_inspected_as_its_folder_is(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for data in (FURNITURE, packed):
        assert sidestep(monkeypatch, "--json", "capture", "inspect", data, "--out", tmp_path / "page.html") == 0
        told = json.loads(capsys.readouterr().out)
        found.append((told["totals"], told["findings"], [(scene["id"], scene["facts"]) for scene in told["scenes"]]))
    assert found[0] == found[1]


def test_a_damaged_photo_in_a_pack_is_found_by_inspecting_it(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pack = Path(shutil.copytree(packed, tmp_path / "pack"))
    photo = read_captures(pack)[1].frames[4].path
    with open(pack / "shard-00000.tar", "r+b") as shard:
        shard.seek(photo.start)  # type: ignore[union-attr]
        shard.write(b"\0" * 100)
    assert sidestep(monkeypatch, "capture", "inspect", pack) == 1
    assert "sofa/scopia076: Photo cannot be decoded" in capsys.readouterr().out


def test_a_pack_gives_a_prior_the_pictures_of_its_folder(tmp_path: Path) -> None:
    # The rule puts them into train, val and test.
    for name in ("scopia001", "scopia005", "scopia024"):
        shutil.copytree(FURNITURE / "chair" / "scopia024", tmp_path / "set" / "chair" / name)
    pack_captures(read_captures(tmp_path / "set"), tmp_path / "pack")
    splits = []
    for data in (tmp_path / "set", tmp_path / "pack"):
        pictures = pictures_by_split(data)
        splits.append({split: [picture.path.read_bytes() for picture in pictures[split]] for split in pictures})  # type: ignore[union-attr]
    assert splits[0] == splits[1]


def test_a_pack_that_cannot_be_read_is_not_searched_for_loose_pictures(packed: Path, tmp_path: Path) -> None:
    pack = Path(shutil.copytree(packed, tmp_path / "pack"))
    (pack / "shard-00001.safetensors").unlink()
    with pytest.raises(SidestepError, match="incomplete, shard 2 of 2"):
        pictures_by_split(pack)
    with pytest.raises(SidestepError, match=r"memory://nothing: no pack"):
        pictures_by_split(Path("memory://nothing"))


def test_streaming_without_webdataset_says_what_to_install(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(SidestepError, match=r"pip install 'sidestep\[packs\]'"):
        stream_scenes(packed)
