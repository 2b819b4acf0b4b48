"""How much may be sent at a time, and how long it is kept."""

import asyncio
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from sidestep.app import uploads as module
from sidestep.app.uploads import Full, Uploads, in_time


def test_one_visitor_does_not_take_all_places(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path)
    with ExitStack() as running:
        for _ in range(module.AT_ONCE_EACH):
            running.enter_context(uploads.place("one"))
        with pytest.raises(Full, match="wait"), uploads.place("one"):
            pass
        with uploads.place("other"):
            pass
    with uploads.place("one"):
        pass


def test_there_are_not_more_uploads_at_once_than_agreed(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path)
    with ExitStack() as running:
        for visitor in range(module.AT_ONCE):
            running.enter_context(uploads.place(str(visitor)))
        with pytest.raises(Full, match="try again"), uploads.place("one more"):
            pass


def test_only_what_no_session_has_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "session-1").mkdir()
    (tmp_path / "session-1" / "photo").touch()
    (tmp_path / "digest").mkdir()
    (tmp_path / "digest" / "photo.png").touch()
    (tmp_path / "tmpbroken").touch()  # of an upload that broke off
    uploads = Uploads(tmp_path)
    uploads.sweep()
    assert len(list(tmp_path.iterdir())) == 3
    monkeypatch.setattr(module, "KEPT", -1.0)
    uploads.sweep()
    assert [path.name for path in tmp_path.rglob("*")] == ["session-1", "photo"]


def test_an_upload_that_takes_too_long_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never() -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr(module, "SLOWEST", 0.01)
    assert asyncio.run(in_time(never)()) == {"type": "http.disconnect"}
