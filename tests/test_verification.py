"""Reading all of a store, a pack or a run, and what that finds."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from sidestep.captures import read_captures
from sidestep.captures.packing import pack_captures
from sidestep.cli import main
from sidestep.errors import SidestepError
from sidestep.files import save_tensors
from sidestep.latents import TENSORS
from sidestep.verification import verify

FURNITURE = Path(__file__).parent / "data" / "furniture"
pytestmark = pytest.mark.usefixtures("own_process")


def damage(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packs") / "pack"
    pack_captures(read_captures(FURNITURE), out, frames_per_shard=25)
    return out


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for name in ("autoencoder", "unet"):
        save_tensors(tmp_path / "run" / name / "checkpoint.safetensors", {"model/a": torch.arange(9.0)}, {"step": "3"})
    return tmp_path / "run"


def test_a_store_of_latents(store_copy: Path) -> None:
    found = verify(store_copy)
    assert (found.kind, found.files, found.faults) == ("store of latents", 3, [])
    assert found.bytes == sum(path.stat().st_size for path in store_copy.glob("shard-*"))
    damage(store_copy / "shard-00001.safetensors")
    (fault,) = verify(store_copy).faults
    assert fault.startswith(f"{store_copy}/shard-00001.safetensors: damaged (")


def test_a_pack(packed: Path, tmp_path: Path) -> None:
    assert verify(packed).faults == []
    copy = tmp_path / "pack"
    shutil.copytree(packed, copy)
    damage(copy / "shard-00001.tar")
    (copy / "shard-00002.safetensors").unlink()
    told: list[tuple[int, int]] = []
    assert verify(copy, lambda *counts: told.append(counts)).faults == [
        f"{copy}/shard-00001.tar: damaged; copy it again, or delete it and pack again",
        f"{copy}/shard-00002.safetensors: no such file; copy the pack again, or pack again",
    ]
    assert told == [(done, 6) for done in range(1, 7)]
    (copy / "SHA256SUMS").unlink()
    with pytest.raises(SidestepError, match=f"^{copy}: not whole"):
        verify(copy)


def test_a_run_and_one_checkpoint(run: Path) -> None:
    found = verify(run)
    assert (found.kind, found.files, found.faults) == ("run", 2, [])
    path = run / "unet" / "checkpoint.safetensors"
    damage(path)
    for each in (run, path):
        assert verify(each).faults == [f"{path}: damaged; delete it and run the command that made it again"]
    path.write_bytes(path.read_bytes()[:100])
    assert verify(run).faults[0].startswith(f"{path}: damaged, or no .safetensors file")


def test_what_writers_are_at_is_passed_over(run: Path) -> None:
    hidden = run / "unet" / ".checkpoint.0a1b2c3d.part.safetensors"
    hidden.mkdir()
    (hidden / "checkpoint.safetensors").write_bytes(b"half")
    (run / ".model.0a1b2c3d.part.safetensors").write_bytes(b"half")
    assert (verify(run).files, verify(run).faults) == (2, [])


def test_what_has_no_checksums_is_refused_or_counted(run: Path, tmp_path: Path, store_copy: Path) -> None:
    with pytest.raises(SidestepError, match=f"^{tmp_path}/absent: no such file or folder$"):
        verify(tmp_path / "absent")
    (tmp_path / "old").mkdir()
    with pytest.raises(SidestepError, match=f"^{tmp_path}/old: holds nothing that has checksums"):
        verify(tmp_path / "old")
    save_file({"a": torch.ones(3)}, run / "old.safetensors")
    assert (verify(run).files, verify(run).without_checksums, verify(run).faults) == (3, 1, [])
    for number in range(3):  # a store of a version that wrote none
        shard = store_copy / f"shard-{number:05d}.safetensors"
        with safe_open(shard, framework="pt") as file:
            tensors, metadata = {name: file.get_tensor(name).clone() for name in TENSORS}, file.metadata()
        save_file(tensors, shard, metadata=metadata)
        if number == 0:
            assert verify(store_copy).without_checksums == 1
    with pytest.raises(SidestepError, match=f"^{store_copy}: holds nothing that has checksums"):
        verify(store_copy)


def test_checksums_of_rows_where_there_are_none_are_damage(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(3), "crc32/x": torch.zeros(3, dtype=torch.int64)}, tmp_path / "a.safetensors")
    assert verify(tmp_path).faults == [
        f"{tmp_path}/a.safetensors: damaged; delete it and run the command that made it again"
    ]


@pytest.mark.parametrize("as_json", [True, False])
def test_the_command_names_what_is_damaged(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    def sidestep() -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["sidestep", "verify", str(run), *(["--json"] if as_json else [])])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), capsys.readouterr().out

    assert sidestep()[0] == 0
    damage(run / "unet" / "checkpoint.safetensors")
    code, out = sidestep()
    assert code == 1
    if as_json:
        assert json.loads(out)["damaged"] == len(json.loads(out)["faults"]) == 1
    else:
        assert out.startswith(f"{run}/unet/checkpoint.safetensors: damaged; delete it")
        assert "damaged: 1" in out
