"""Files and folders that are whole or not there, also when a process is killed or the disk takes no more.

Run as a script, this file writes tensors in the folder given to it, in processes that may write no large files.
"""

import errno
import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from sidestep.errors import SidestepError
from sidestep.files import alone, atomic_path, make_folder, save_tensors, sweep, write_json


class Stop(Exception):
    pass


def test_the_file_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "new" / "folder" / "view.png"
    with atomic_path(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
        assert temporary.parent == path.parent  # else the rename would be a copy between file systems
        assert temporary.suffix == ".png"
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_the_old_file_stays_until_the_block_ends(tmp_path):
    path = tmp_path / "view.png"
    path.write_text("old")
    with atomic_path(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


@pytest.mark.parametrize("old", [None, "old"])
def test_a_failing_block_leaves_what_was_there_and_nothing_else(tmp_path, old):
    path = tmp_path / "view.png"
    if old:
        path.write_text(old)
    with pytest.raises(Stop), atomic_path(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise Stop
    assert [file.read_text() for file in tmp_path.iterdir()] == ([old] if old else [])


def test_a_block_that_writes_nothing_keeps_the_old_file(tmp_path):
    path = tmp_path / "view.png"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), atomic_path(path):
        pass
    assert path.read_text() == "old"


def test_two_writers_of_one_file_do_not_share_a_temporary(tmp_path):
    path = tmp_path / "view.png"
    with atomic_path(path) as first, atomic_path(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def folder(path, **files):
    path.mkdir()
    for name, text in files.items():
        (path / name).write_text(text)


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "prior"
    folder(path, kept="old", gone="old")
    with atomic_path(path) as temporary:
        folder(temporary, kept="new")
        assert (path / "gone").exists()
    assert {file.name: file.read_text() for file in path.iterdir()} == {"kept": "new"}
    assert list(tmp_path.iterdir()) == [path]


def test_a_failing_block_leaves_the_old_folder_and_nothing_else(tmp_path):
    path = tmp_path / "prior"
    folder(path, kept="old")
    with pytest.raises(Stop), atomic_path(path) as temporary:  # noqa: PT012
        folder(temporary, kept="half")
        raise Stop
    assert {file.name: file.read_text() for file in path.iterdir()} == {"kept": "old"}
    assert list(tmp_path.iterdir()) == [path]


def test_the_old_folder_is_never_seen_half_deleted(tmp_path, monkeypatch):
    path = tmp_path / "prior"
    folder(path, a="old", b="old")

    def killed(_):
        raise Stop

    monkeypatch.setattr("sidestep.files.shutil.rmtree", killed)
    with pytest.raises(Stop), atomic_path(path) as temporary:
        folder(temporary, a="new", b="new")
    assert {file.name: file.read_text() for file in path.iterdir()} == {"a": "new", "b": "new"}


def test_json_is_read_back_and_a_failure_keeps_the_old(tmp_path):
    path = tmp_path / "store.json"
    write_json(path, {"scenes": ["sofa", "Tür"], "t": 600})
    assert json.loads(path.read_text(encoding="utf-8")) == {"scenes": ["sofa", "Tür"], "t": 600}
    with pytest.raises(TypeError):
        write_json(path, {"scenes": object()})
    assert json.loads(path.read_text(encoding="utf-8"))["t"] == 600
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("has_links", [True, False])
def test_of_two_writers_that_replace_nothing_one_succeeds(tmp_path, monkeypatch, has_links):
    def refuse(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    if not has_links:
        monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "store.json"
    write_json(path, "first", replace=False)
    with pytest.raises(FileExistsError):
        write_json(path, "second", replace=False)
    assert json.loads(path.read_text()) == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_lock_keeps_others_out_while_it_is_held_and_leaves_nothing(tmp_path):
    lock = tmp_path / ".lock"
    lock.write_text("of a process that was killed")
    busy = "somebody is at it"
    for _ in range(2):
        with alone(lock, busy), pytest.raises(SidestepError, match=f"^{busy}$"), alone(lock, busy):
            pass
        assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_folder_that_this_user_may_not_write_to_is_told_in_one_line(tmp_path):
    tmp_path.chmod(0o555)
    user = os.geteuid()
    try:
        if user == 0:  # who may write everywhere
            os.seteuid(65534)
        path = tmp_path / "new" / "a.json"
        with pytest.raises(SidestepError, match=rf"^{path}: cannot be written \(Permission denied\); see to that"):
            write_json(path, {})
    finally:
        os.seteuid(user)
        tmp_path.chmod(0o755)


def test_a_folder_is_made_and_left_as_it_was(tmp_path):
    make_folder(tmp_path / "new" / "folder")
    (tmp_path / "new" / "folder" / "file").write_text("kept")
    make_folder(tmp_path / "new" / "folder")
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["file"]
    with pytest.raises(SidestepError, match=r"file: cannot be a folder to write into \(File exists\); name another"):
        make_folder(tmp_path / "new" / "folder" / "file")


@pytest.fixture
def umask_022():
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path):
    return oct(stat.S_IMODE(path.stat().st_mode))


@pytest.mark.usefixtures("umask_022")
def test_tensors_are_read_back_by_whoever_may_read_new_files(tmp_path):
    from safetensors import safe_open

    path = tmp_path / "new" / "shard.safetensors"
    for value in (1.0, 2.0):  # the second time over the first
        save_tensors(path, {"a": torch_full(value)}, {"about": "a sofa"})
        with safe_open(path, framework="pt") as file:
            assert file.metadata() == {"about": "a sofa"}
            assert file.get_tensor("a").tolist() == [value] * 3
    assert mode(path) == "0o644"
    assert list(path.parent.iterdir()) == [path]


def torch_full(value):
    import torch

    return torch.full((3,), value)


@pytest.mark.usefixtures("umask_022")
def test_so_are_the_tensors_of_a_folder_and_other_modes_stay(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "prior"
    with atomic_path(path) as temporary:
        folder(temporary, private="secret")
        (temporary / "private").chmod(0o600)
        save_file({"a": torch_full(1.0)}, temporary / "model.safetensors")
    assert mode(path / "model.safetensors") == "0o644"
    assert mode(path / "private") == "0o600"
    assert list(tmp_path.iterdir()) == [path]


def test_only_what_writers_of_the_named_files_left_is_swept(tmp_path):
    for name in (".shard.0a.part.safetensors", ".tunet.0b.part", ".other.0c.part.safetensors", "shard.safetensors"):
        folder(tmp_path / name, half="half")
    (tmp_path / ".store.0d.part.json").write_text("half")
    sweep(tmp_path, {"shard.safetensors", "tunet", "store.json"})
    assert {path.name for path in tmp_path.iterdir()} == {".other.0c.part.safetensors", "shard.safetensors"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_writer_that_is_killed_or_has_no_space_harms_nothing(tmp_path):
    path = tmp_path / "shard.safetensors"
    script = subprocess.run([sys.executable, __file__, str(path)], capture_output=True, text=True)
    told, in_folder, ended, left = json.loads(script.stdout or "[]") or pytest.fail(script.stderr)
    advice = "cannot be written (File too large); free some space and run the same command again"
    assert told == [f"{path}: {advice}", [path.name]]
    assert in_folder == [f"{tmp_path / 'model'}: {advice}", [path.name]]
    assert ended == signal.SIGXFSZ
    # What the library had begun is there, so the process was killed in the midst of writing it.
    assert len(left) == 1
    assert path.read_bytes() == b"old"
    sweep(tmp_path, {path.name})
    assert list(tmp_path.iterdir()) == [path]


def _write_too_much(path: Path) -> None:
    import resource

    import torch
    from safetensors.torch import save_file

    tensors = {"a": torch.ones(100_000)}
    path.write_bytes(b"old")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    ends: list[object] = []
    try:
        save_tensors(path, tensors, {})
    except SidestepError as error:
        ends.append([str(error), os.listdir(path.parent)])
    try:
        with atomic_path(path.parent / "model") as temporary:
            temporary.mkdir()
            save_file(tensors, temporary / "model.safetensors")
    except SidestepError as error:
        ends.append([str(error), os.listdir(path.parent)])
    if os.fork() == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # the kernel kills a process that writes past the limit
        save_tensors(path, tensors, {})
        os._exit(0)
    ends.append(os.WTERMSIG(os.wait()[1]))
    left = [file for file in path.parent.rglob("*") if file.is_file() and file != path]
    print(json.dumps([*ends, [str(file) for file in left]]))


if __name__ == "__main__":
    _write_too_much(Path(sys.argv[1]))


@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "No"), PermissionError(errno.EACCES, "No", 3)])
def test_what_the_block_may_not_do_elsewhere_is_not_told_of_the_file(tmp_path, monkeypatch, error):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PermissionError), atomic_path("a.json"):
        raise error
