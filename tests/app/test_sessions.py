"""All users' sessions: who has a place, and for how long."""

from pathlib import Path

import pytest

from sidestep.app import sessions as module
from sidestep.app.poses import Pose
from sidestep.app.session import Session, Settings
from sidestep.app.sessions import Sessions
from sidestep.app.studio import Studio
from sidestep.app.turns import Cancelled
from sidestep.errors import SidestepError

SETTINGS = Settings("tiny", 45.0, steps=3)


def of(sessions: Sessions, name: str) -> Session:
    """A session that was used just now."""
    with sessions.use(name) as session:
        return session


def folders(root: Path) -> int:
    return len(list(root.glob("session-*")))


def test_users_do_not_see_each_other(studio: Studio, photo: Path, other_photo: Path, tmp_path: Path) -> None:
    sessions = Sessions(studio, tmp_path)
    of(sessions, "one").open(photo)
    of(sessions, "two").open(other_photo)
    one, two = (of(sessions, name).picture("tiny") for name in ("one", "two"))
    assert one.tobytes() != two.tobytes()
    assert not of(sessions, "three").has_photo


def test_a_session_leaves_no_files(
    studio: Studio, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions = Sessions(studio, tmp_path)
    of(sessions, "one").open(photo)
    list(of(sessions, "one").make(SETTINGS, Pose()))
    assert list(tmp_path.rglob("session-*/*/*.zip"))
    monkeypatch.setattr(module, "AWAY", -1.0)
    sessions.leave("one")
    sessions.leave("one")
    sessions.sweep()
    assert not folders(tmp_path)


def test_a_session_outlives_a_broken_connection_but_its_work_does_not(
    studio: Studio, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(module, "monotonic", lambda: now)
    sessions = Sessions(studio, tmp_path)
    of(sessions, "one").open(photo)
    turn = of(sessions, "one").begin()
    sessions.leave("one")
    with pytest.raises(Cancelled):
        list(of(sessions, "one").make(SETTINGS, Pose(), turn=turn))
    for _ in range(3):  # it is seen again, each time before it is given up
        now += module.AWAY - 1
        sessions.sweep()
        assert of(sessions, "one").has_photo
    now += module.AWAY + 1
    sessions.sweep()
    assert not of(sessions, "one").has_photo


def test_what_a_closed_page_asked_for_last_does_not_keep_its_session(
    studio: Studio, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(module, "monotonic", lambda: now)
    sessions = Sessions(studio, tmp_path)
    for name in ("closed", "open"):
        of(sessions, name).open(photo)
    sessions.leave("closed")
    of(sessions, "closed")  # its last request, which waited behind others
    now += module.AWAY + 1
    sessions.sweep()
    assert folders(tmp_path) == 1
    assert of(sessions, "open").has_photo
    now += module.UNUSED + 1
    sessions.sweep()
    assert folders(tmp_path) == 0


def test_there_are_not_more_sessions_than_agreed(
    studio: Studio, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(module, "monotonic", lambda: now)
    monkeypatch.setattr(module, "MAX_SESSIONS", 2)
    sessions = Sessions(studio, tmp_path)
    for name in ("one", "two"):
        of(sessions, name).open(photo)
    with pytest.raises(SidestepError, match=r"2 people .* try again"):
        of(sessions, "three")
    now += module.SPARE + 1
    assert of(sessions, "one").has_photo
    of(sessions, "three")  # in place of two, who did nothing
    assert folders(tmp_path) == 2
    assert of(sessions, "one").has_photo
    sessions.leave("three")
    of(sessions, "four")  # at once
    assert sessions.find("three") is None
    assert of(sessions, "one").has_photo


def test_who_waits_for_others_work_keeps_the_place(
    studio: Studio, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(module, "monotonic", lambda: now)
    monkeypatch.setattr(module, "MAX_SESSIONS", 1)
    sessions = Sessions(studio, tmp_path)
    of(sessions, "one").open(photo)
    of(sessions, "one").begin()
    now += module.SPARE + 1
    with pytest.raises(SidestepError, match="try again"):
        of(sessions, "two")
    now += module.SPARE_WAITING
    of(sessions, "two")  # it never came
    of(sessions, "two").begin()  # of nothing
    now += module.SPARE + 1
    assert not of(sessions, "three").has_photo
