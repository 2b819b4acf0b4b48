"""Whose a session is, and how many a visitor has."""

from pathlib import Path

import pytest

from sidestep.app.sessions import MAX_SESSIONS, Sessions
from sidestep.app.studio import Studio

pytest.importorskip("gradio", reason="the page's extra is not installed")

from starlette.datastructures import Headers

from sidestep.app import visitors as module
from sidestep.app.visitors import PROGRAM, Visitors


@pytest.fixture
def sessions(studio: Studio, tmp_path: Path) -> Sessions:
    return Sessions(studio, tmp_path)


@pytest.fixture
def visitors(sessions: Sessions) -> Visitors:
    return Visitors(None, "cookie", sessions, sessions.end)


def use(sessions: Sessions, name: str) -> None:
    with sessions.use(name) as session:
        session.begin()


def test_one_visitor_does_not_take_all_sessions(visitors: Visitors, sessions: Sessions) -> None:
    for number in range(MAX_SESSIONS + 1):
        assert visitors.may_use("greedy", f"s{number}")
        use(sessions, f"s{number}")
    kept = [number for number in range(MAX_SESSIONS + 1) if sessions.find(f"s{number}") is not None]
    assert kept == list(range(MAX_SESSIONS + 1))[-module.MAX_EACH :]
    assert visitors.may_use("newcomer", "n")
    use(sessions, "n")


def test_the_session_in_use_stays_with_its_visitor(visitors: Visitors, sessions: Sessions) -> None:
    for number in range(20):
        assert visitors.may_use("one", "first")
        use(sessions, "first")
        assert visitors.may_use("one", f"s{number}")
    assert sessions.find("first") is not None
    assert not visitors.may_use("other", "first")


def test_no_flood_of_names_takes_a_session_from_its_visitor(
    visitors: Visitors, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_OWNED", 50)
    assert visitors.may_use("victim", "mine")
    use(sessions, "mine")
    for number in range(200):
        assert visitors.may_use(f"v{number}", f"s{number}")
    assert not visitors.may_use("stranger", "mine")
    assert visitors.may_use("victim", "mine")
    assert visitors.may_use("stranger", "s0")  # that there are not more than so many is so, too


def test_a_page_that_outlives_the_server_keeps_its_name_unless_a_token_is_asked_for(
    visitors: Visitors, sessions: Sessions
) -> None:
    def known(cookie: str, by: Visitors) -> str | None:
        return by.known(Headers({"cookie": cookie}))

    given, _, _ = visitors.greet(secure=False).partition(";")
    name = known(given, visitors)
    assert name not in (None, PROGRAM)
    assert known(given, Visitors(None, "cookie", sessions, sessions.end)) == name
    assert known(given, Visitors("a token of words", "cookie", sessions, sessions.end)) is None
    assert "SameSite=Lax" in visitors.greet(secure=False)  # a link elsewhere brings it along, so it gets no other
    for odd in ("cookie=", "cookie=.", "cookie=a", "cookie=" + "a" * 5000, "cookie=é.é"):
        assert known(odd, visitors) == PROGRAM
