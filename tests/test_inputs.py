import json
import os

import pytest

from sidestep.errors import SidestepError
from sidestep.inputs import leads_out, read_json


def test_a_file_that_claims_a_terabyte_is_refused_before_it_is_read(tmp_path):
    with (tmp_path / "a").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(SidestepError, match="a: larger than 64 MiB"):
        read_json(tmp_path / "a")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_byte_order_mark_is_no_text(tmp_path, encoding):
    (tmp_path / "a.json").write_text('{"ä": 1}', encoding=encoding)
    assert read_json(tmp_path / "a.json") == {"ä": 1}


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ('{"a": 1}'.encode("utf-16"), "cannot be read as text .*save it as UTF-8"),
        (b'{"a": "\xff"}', "cannot be read as text"),
        (b'{"a": 1', "cannot be read as JSON"),
        (b"\0", "cannot be read as JSON"),
        (b"", "cannot be read as JSON"),
        (b"[" * 100_000, "cannot be read as JSON"),
        (b'{"a":' * 100_000, "cannot be read as JSON"),
        (b"1" * 10_000, "cannot be read as JSON"),
    ],
)
def test_what_is_no_json_is_refused(tmp_path, data, told):
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(SidestepError, match=rf"a\.json: {told}"):
        read_json(tmp_path / "a.json")


def test_numbers_that_python_writes_are_read(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([float("nan"), float("inf"), 1e308]) + "\n")
    assert repr(read_json(tmp_path / "a.json")) == "[nan, inf, 1e+308]"


def test_links_that_lead_out_of_a_folder(tmp_path):
    for name in ("set/scene/a.jpg", "set/other.jpg", "elsewhere.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    scene = tmp_path / "set" / "scene"
    (scene / "in.jpg").symlink_to("a.jpg")
    (scene / "beside.jpg").symlink_to("../other.jpg")
    (scene / "out.jpg").symlink_to(tmp_path / "elsewhere.jpg")
    (scene / "up").symlink_to("../..")
    assert [leads_out(scene / name, scene) for name in ("a.jpg", "in.jpg", "beside.jpg", "out.jpg")] == [
        False, False, True, True,
    ]  # fmt: skip
    assert leads_out(scene / "up" / "elsewhere.jpg", scene)
    assert not leads_out(scene / "beside.jpg", tmp_path / "set")
    assert not leads_out(tmp_path / "set" / "other.jpg", scene)  # no link: what names it has been checked


def test_links_to_folders_that_the_user_names(tmp_path, monkeypatch):
    for name in ("disk/photos/a.jpg", "disk2/a.jpg", "scene/own.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    scene = tmp_path / "scene"
    (scene / "named.jpg").symlink_to(tmp_path / "disk" / "photos" / "a.jpg")
    (scene / "other.jpg").symlink_to(tmp_path / "disk2" / "a.jpg")
    (tmp_path / "alias").symlink_to(tmp_path / "disk")
    for named in (f"{tmp_path}/disk", f"{tmp_path}/alias/", f"{tmp_path}/none{os.pathsep}{os.pathsep}{tmp_path}/disk"):
        monkeypatch.setenv("SIDESTEP_LINKS_TO", named)
        assert [leads_out(scene / name, scene) for name in ("named.jpg", "other.jpg")] == [False, True]
    monkeypatch.setenv("SIDESTEP_LINKS_TO", "")
    monkeypatch.chdir(tmp_path / "disk")
    assert leads_out(scene / "named.jpg", scene)  # an empty name is not the folder that one is in


def test_links_of_the_hubs_cache_lead_to_its_blobs(tmp_path):
    repository = tmp_path / "datasets--owner--name"
    revision = repository / "snapshots" / "0123"
    revision.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for path in (repository / "blobs" / "abc", repository / "secret"):
        path.touch()
    (revision / "a.jpg").symlink_to("../../blobs/abc")
    (revision / "b.jpg").symlink_to("../../secret")
    assert not leads_out(revision / "a.jpg", revision)
    assert leads_out(revision / "b.jpg", revision)
