"""What the page's controls do to its components, with miniature models and without a browser."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sidestep.app.session import Sessions, Studio
from sidestep.errors import SidestepError

pytest.importorskip("gradio", reason="the page's extra is not installed")

import gradio as gr

from sidestep.app.handlers import SINGLE, Handlers
from sidestep.app.page import build_page

USER: Any = SimpleNamespace(session_hash="one")
POSE = {"yaw": 20, "pitch": 0, "distance": 1}


@pytest.fixture
def sessions(reading_studio: Studio, tmp_path: Path) -> Sessions:
    return Sessions(reading_studio, tmp_path)


@pytest.fixture
def handlers(reading_studio: Studio, sessions: Sessions) -> Handlers:
    return Handlers(reading_studio, sessions, [])


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    shown: list[str] = []
    monkeypatch.setattr(gr, "Warning", shown.append)
    return shown


def test_prompts_are_offered_where_the_model_reads_text(
    reading_studio: Studio, sessions: Sessions, handlers: Handlers
) -> None:
    for models, offered in ((["tiny", "reader"], False), (["reader", "tiny"], True)):
        reading_studio.models = models
        config = build_page(reading_studio, sessions, []).get_config_file()
        (group,) = (each for each in config["components"] if each["props"].get("elem_id") == "text")
        assert group["props"]["visible"] is offered
    _, text, *_ = handlers.choose_model("reader", USER)
    assert text["visible"]
    _, text, *_ = handlers.choose_model("tiny", USER)
    assert not text["visible"]


def test_describing_fills_the_prompt(handlers: Handlers, sessions: Sessions, photo: Path, warnings: list[str]) -> None:
    *_, (prompt, status) = handlers.describe(USER)
    assert "drop one" in status["text"]
    sessions.of("one").open(photo)
    *_, (prompt, status) = handlers.describe(USER)
    assert prompt.startswith("ab ")
    assert "Edit" in status["text"]
    assert len(warnings) == 1


def test_a_captioner_that_cannot_be_had_is_told_in_words(
    handlers: Handlers, sessions: Sessions, photo: Path, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(path: Path) -> str:
        raise SidestepError("some/captioner: BLIP cannot be loaded")

    monkeypatch.setattr(sessions._studio, "describe", unreachable)
    sessions.of("one").open(photo)
    *_, (_, status) = handlers.describe(USER)
    assert status["tone"] == "bad"
    assert warnings == ["some/captioner: BLIP cannot be loaded"]


def test_the_path_through_key_frames_is_drawn_as_it_grows(handlers: Handlers) -> None:
    def path(name: str, keys: list[dict[str, float]]) -> list[list[float]]:
        _, viewport = handlers.follow(POSE, 45, "tiny", "", name, 5, False, keys, USER)
        return list(viewport["path"])

    keys = [POSE, {**POSE, "yaw": -20}, {**POSE, "distance": 0.5}]
    assert [len(path("keys", keys[:count])) for count in range(4)] == [0, 1, 5, 5]
    assert path("keys", keys[:2]) != path("keys", keys)
    assert path(SINGLE, keys) == []
    with pytest.raises(gr.Error, match="25 key frames"):
        path("keys", [POSE] * 25)
    with pytest.raises(gr.Error, match="yaw 200"):
        path("keys", [{**POSE, "yaw": 200}])


def test_a_gentle_path_is_drawn_gently(handlers: Handlers) -> None:
    even, gentle = (
        handlers.follow(POSE, 45, "tiny", "", "orbit", 5, smooth, [], USER)[1]["path"] for smooth in (False, True)
    )
    assert even != gentle
    assert even[-1] == gentle[-1]


def test_key_frames_are_offered_for_their_path_alone(handlers: Handlers) -> None:
    for name, shown in ((SINGLE, (False, False)), ("dolly-zoom", (False, True)), ("keys", (True, True))):
        *_, recorder, film, _ = handlers.choose_path(name, POSE)
        assert (recorder["visible"], film["visible"]) == shown


def test_only_a_path_that_would_stay_where_it_is_moves_the_camera(handlers: Handlers) -> None:
    for name in ("orbit", "keys", SINGLE):
        assert handlers.choose_path(name, POSE)[:4] == (gr.skip(),) * 4
    assert handlers.choose_path("dolly-zoom", POSE)[1:4] == (0, 0, 0.7)
    assert handlers.choose_path("dolly-zoom", {**POSE, "distance": 0.9})[:4] == (gr.skip(),) * 4
    assert handlers.choose_path("orbit", {**POSE, "yaw": None})[1:4] == (30, 0, 1)
