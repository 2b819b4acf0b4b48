"""Whose a session is, and how many a visitor has."""

from pathlib import Path

import pytest

from sidestep.app.session import MAX_SESSIONS, Sessions, Studio

pytest.importorskip("gradio", reason="the page's extra is not installed")

from sidestep.app import visitors as module
from sidestep.app.visitors import Visitors


@pytest.fixture
def sessions(studio: Studio, tmp_path: Path) -> Sessions:
    return Sessions(studio, tmp_path)


@pytest.fixture
def visitors(sessions: Sessions) -> Visitors:
    return Visitors(None, "cookie", sessions)


def test_one_visitor_does_not_take_all_sessions(visitors: Visitors, sessions: Sessions) -> None:
    for number in range(MAX_SESSIONS + 1):
        assert visitors.may_use("greedy", f"s{number}")
        sessions.of(f"s{number}").begin()
    assert len(sessions) == module.MAX_EACH
    assert visitors.may_use("newcomer", "n")
    sessions.of("n")
    assert sessions.find(f"s{MAX_SESSIONS}") is not None  # the last stay


def test_the_session_in_use_stays_with_its_visitor(visitors: Visitors, sessions: Sessions) -> None:
    for number in range(20):
        assert visitors.may_use("one", "first")
        sessions.of("first")
        assert visitors.may_use("one", f"s{number}")
    assert sessions.find("first") is not None
    assert not visitors.may_use("other", "first")


def test_no_flood_of_names_takes_a_session_from_its_visitor(
    visitors: Visitors, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_OWNED", 50)
    assert visitors.may_use("victim", "mine")
    sessions.of("mine")
    for number in range(200):
        assert visitors.may_use(f"v{number}", f"s{number}")
    assert not visitors.may_use("stranger", "mine")
    assert visitors.may_use("victim", "mine")
    assert visitors.may_use("stranger", "s0")  # that there are not more than so many is so, too
