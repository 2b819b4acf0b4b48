import json

import pytest

from sidestep.errors import SidestepError
from sidestep.files import atomic_path, make_folder, write_json


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


def test_a_folder_is_made_and_left_as_it_was(tmp_path):
    make_folder(tmp_path / "new" / "folder")
    (tmp_path / "new" / "folder" / "file").write_text("kept")
    make_folder(tmp_path / "new" / "folder")
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["file"]
    with pytest.raises(SidestepError, match=r"file: cannot be a folder to write into \(File exists\); name another"):
        make_folder(tmp_path / "new" / "folder" / "file")
