"""How much may be sent at a time, and how long it is kept."""

import asyncio
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from sidestep.app import uploads as module
from sidestep.app.uploads import Full, OnePhoto, Uploads, in_time


def test_one_visitor_does_not_take_all_places(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path)
    with ExitStack() as running:
        for _ in range(module.AT_ONCE_EACH):
            running.enter_context(uploads.place("one", 1))
        with pytest.raises(Full, match="wait"), uploads.place("one", 1):
            pass
        with uploads.place("other", 1):
            pass
    with uploads.place("one", 1):
        pass


def test_there_are_not_more_uploads_at_once_than_agreed(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path)
    with ExitStack() as running:
        for visitor in range(module.AT_ONCE):
            running.enter_context(uploads.place(str(visitor), 1))
        with pytest.raises(Full, match="try again"), uploads.place("one more", 1):
            pass


@pytest.mark.parametrize("size", [1, 20 * 2**20])
def test_one_visitor_does_not_take_all_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    now = 0.0
    monkeypatch.setattr(module, "monotonic", lambda: now)
    uploads = Uploads(tmp_path)
    sent = 0

    def send() -> None:
        nonlocal sent
        while sent < module.MAX_PHOTOS:
            with uploads.place("one", size):
                sent += 1

    with pytest.raises(Full, match="You sent too many"):
        send()
    assert 8 <= sent <= module.MAX_PHOTOS / 8
    with uploads.place("other", size):
        pass
    now += module.KEPT
    with uploads.place("one", size):
        pass


@pytest.mark.parametrize("piece", [1, 7, 1000])
@pytest.mark.parametrize("count", [1, 2])
def test_an_upload_is_one_photo(piece: int, count: int) -> None:
    part = b'--b17\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n\x89PNG\r\n--b1--\r\n'
    whole = part * count + b"--b17--\r\n"
    pieces = iter([whole[start : start + piece] for start in range(0, len(whole), piece)])

    async def receive() -> Any:
        return {"type": "http.request", "body": next(pieces)}

    async def read() -> bytes:
        arrived, body = b"", OnePhoto(receive, 'multipart/form-data; boundary="b17"')
        while len(arrived) < len(whole):
            message = await body.receive()
            if message["type"] == "http.disconnect":
                assert body.more
                break
            arrived += message["body"]
        return arrived

    assert (asyncio.run(read()) == whole) == (count == 1)


def test_only_what_no_session_has_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "session-1").mkdir()
    (tmp_path / "session-1" / "photo").touch()
    (tmp_path / "digest").mkdir()
    (tmp_path / "digest" / "photo.png").touch()
    (tmp_path / "tmpbroken").touch()  # of an upload that broke off
    uploads = Uploads(tmp_path)
    asyncio.run(uploads.sweep())
    assert len(list(tmp_path.iterdir())) == 3
    monkeypatch.setattr(module, "KEPT", -1.0)
    asyncio.run(uploads.sweep())
    assert [path.name for path in tmp_path.rglob("*")] == ["session-1", "photo"]


def test_a_photo_that_is_sent_again_during_a_sweep_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = tmp_path / "digest" / "photo.png"
    sent.parent.mkdir()
    sent.touch()

    def remove(folder: Path, ignore_errors: bool) -> None:
        sent.parent.mkdir(exist_ok=True)
        sent.touch()
        rmtree(folder, ignore_errors)

    rmtree = module.shutil.rmtree
    monkeypatch.setattr(module.shutil, "rmtree", remove)
    monkeypatch.setattr(module, "KEPT", -1.0)
    asyncio.run(Uploads(tmp_path).sweep())
    assert list(tmp_path.rglob("*")) == [sent.parent, sent]


def test_an_upload_that_takes_too_long_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never() -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr(module, "SLOWEST", 0.01)
    assert asyncio.run(in_time(never)()) == {"type": "http.disconnect"}
