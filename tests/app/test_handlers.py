"""What the page's controls do to its components, with miniature models and without a browser."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sidestep.app import session as session_module
from sidestep.app import sessions as sessions_module
from sidestep.app.poses import Pose
from sidestep.app.session import Session, Settings
from sidestep.app.sessions import Sessions
from sidestep.app.studio import Studio
from sidestep.errors import SidestepError
from sidestep.pipeline import NovelViewPipeline

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
    with sessions.use("one") as session:
        session.open(photo)
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
    with sessions.use("one") as session:
        session.open(photo)
    *_, (_, status) = handlers.describe(USER)
    assert status["tone"] == "bad"
    assert warnings == ["some/captioner: BLIP cannot be loaded"]


def test_the_path_through_key_frames_is_drawn_as_it_grows(handlers: Handlers) -> None:
    def path(name: str, keys: list[dict[str, float]]) -> list[list[float]]:
        _, viewport, _ = handlers.follow(POSE, 45, "tiny", "", name, 5, False, keys, False, USER)
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
        handlers.follow(POSE, 45, "tiny", "", "orbit", 5, smooth, [], False, USER)[1]["path"]
        for smooth in (False, True)
    )
    assert even != gentle
    assert even[-1] == gentle[-1]


def test_a_photo_that_the_server_no_longer_has_is_asked_for_again(handlers: Handlers, warnings: list[str]) -> None:
    def follow(has_photo: bool) -> Any:
        return handlers.follow(POSE, 45, "tiny", "", SINGLE, 5, False, [], has_photo, USER)

    follow(has_photo=False)
    assert not warnings
    coarse, viewport, photo = follow(has_photo=True)
    assert "choose it again" in warnings[0]
    assert coarse == photo == viewport["photo"] == ""


def make(handlers: Handlers, turn: int | None, **changed: Any) -> list[Any]:
    inputs = {
        "pose": POSE,
        "fov": 45,
        "model": "tiny",
        "category": "",
        "kind": SINGLE,
        "frames": 5,
        "smooth": False,
        "keys": [],
        "fps": 5,
        "loop": False,
        "fusion": "variance",
        "steps": 2,
        "seed": 0,
        "consistency": 0,
        "prompt": "",
        "negative_prompt": "",
        "guidance": 3.5,
    }
    return list(handlers.make(turn, **{**inputs, **changed}, request=USER))


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"steps": 500}, "500 steps"),
        ({"steps": float("inf")}, "steps inf"),
        ({"steps": 2.5}, "steps must be a whole number"),
        ({"seed": -1}, "seed -1"),
        ({"fov": 4}, "field of view 4 is out of range; use 5 to 120"),
        ({"fov": float("nan")}, "field of view nan"),
        ({"fov": None}, "field of view is empty"),
        ({"pose": {**POSE, "pitch": 80}}, "pitch 80"),
    ],
)
def test_a_number_out_of_its_range_is_named_and_nothing_waits_on(
    handlers: Handlers, sessions: Sessions, photo: Path, warnings: list[str], changed: dict[str, Any], fault: str
) -> None:
    with sessions.use("one") as session:
        session.open(photo)
    turn, *_ = handlers.begin(USER)
    *_, (status, *_, cancel) = make(handlers, turn, **changed)
    assert fault in status["text"]
    assert status["tone"] == "bad"
    assert not cancel["interactive"]
    assert warnings == [status["text"]]


def test_a_made_view_tells_where_it_was_seen_from(handlers: Handlers, sessions: Sessions, photo: Path) -> None:
    with sessions.use("one") as session:
        session.open(photo)
    *_, (status, final, *_) = make(handlers, None, pose={"yaw": -70, "pitch": 5, "distance": 0.95})
    assert status["text"] == "Done."
    assert final["note"] == "yaw -70°, pitch 5°, distance 0.95"
    *_, (_, final, *_) = make(handlers, None, kind="orbit", frames=3)
    assert final["note"] == "view 3 of 3"


def test_work_that_was_cancelled_before_it_began_does_not_start(
    handlers: Handlers, sessions: Sessions, photo: Path
) -> None:
    with sessions.use("one") as session:
        session.open(photo)
    turn, *_ = handlers.begin(USER)
    handlers.cancel(USER)
    assert [update[0]["text"] for update in make(handlers, turn)] == ["Cancelled."]
    first, *_ = handlers.begin(USER)
    second, *_ = handlers.begin(USER)
    assert [update[0]["text"] for update in make(handlers, first)] == ["Waiting for its turn"]
    assert make(handlers, second)[-1][0]["text"] == "Done."


def test_who_is_alone_does_not_wait(handlers: Handlers, sessions: Sessions, photo: Path) -> None:
    assert handlers.begin(USER)[1]["text"] == "Starting"
    with sessions.use("two") as other:
        other.open(photo)
    work = other.make(Settings("tiny", 45.0, steps=100), Pose())
    next(work)
    assert handlers.begin(USER)[1]["text"] == "Waiting for its turn"
    work.close()
    other.wait(30)


def test_a_defect_is_told_in_words_and_its_trace_to_the_terminal(
    handlers: Handlers,
    sessions: Sessions,
    photo: Path,
    warnings: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(*options: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Session, "picture", broken)
    monkeypatch.setattr(Session, "coarse", broken)
    *_, (_, *_, status) = handlers.upload(str(photo), "tiny", USER)
    assert "terminal" in status["text"]
    with pytest.raises(gr.Error, match="terminal"):
        handlers.follow(POSE, 45, "tiny", "", SINGLE, 5, False, [], True, USER)
    assert "out of memory" in caplog.text


def test_two_people_may_send_one_photo(handlers: Handlers, sessions: Sessions, photo: Path) -> None:
    for name in ("one", "two"):  # gradio keeps one file of both
        user: Any = SimpleNamespace(session_hash=name)
        *_, (*_, status) = handlers.upload(str(photo), "tiny", user)
        assert status["tone"] == ""
        with sessions.use(name) as session:
            assert session.has_photo


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


def test_who_finds_no_place_is_told(handlers: Handlers, warnings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidestep.app.sessions.MAX_SESSIONS", 0)
    with pytest.raises(gr.Error, match="try again"):
        handlers.begin(USER)
    *_, (status, *_, cancel) = make(handlers, None)
    assert "try again" in status["text"]
    assert not cancel["interactive"]
    assert handlers.cancel(USER)[0]["text"] == "Cancelled."
    assert len(warnings) == 1


@pytest.mark.parametrize("control", ["upload", "follow", "choose_model", "describe", "make"])
def test_whose_photo_is_at_work_keeps_the_place(
    tiny: NovelViewPipeline,
    photo: Path,
    tmp_path: Path,
    warnings: list[str],
    monkeypatch: pytest.MonkeyPatch,
    control: str,
) -> None:
    now = 0.0
    monkeypatch.setattr(sessions_module, "monotonic", lambda: now)
    monkeypatch.setattr(sessions_module, "MAX_SESSIONS", 1)

    def come() -> None:
        with pytest.raises(SidestepError, match="try again"), sessions.use("two"):
            pass

    def a_newcomer(*_: object, **__: object) -> Any:
        nonlocal now
        now += sessions_module.UNUSED + 1
        sessions.sweep()
        come()
        raise SidestepError("was here")

    studio = Studio(["tiny"], lambda name: tiny, a_newcomer)
    sessions = Sessions(studio, tmp_path)
    handlers = Handlers(studio, sessions, [])
    with sessions.use("one") as session:
        session.open(photo)
    monkeypatch.setattr(tiny, "invert", a_newcomer)
    monkeypatch.setattr(session_module, "load_image", a_newcomer)
    controls: dict[str, Callable[[], Any]] = {
        "upload": lambda: list(handlers.upload(str(photo), "tiny", USER)),
        "follow": lambda: handlers.follow(POSE, 45, "tiny", "", SINGLE, 5, False, [], True, USER),
        "choose_model": lambda: handlers.choose_model("tiny", USER),
        "describe": lambda: list(handlers.describe(USER)),
        "make": lambda: make(handlers, None),
    }
    try:
        controls[control]()
    except gr.Error as error:
        warnings.append(error.message)
    assert warnings == ["was here"]
    now += sessions_module.SPARE - 1  # since it ended
    come()
    now += 2
    with sessions.use("two"):
        pass


@pytest.mark.parametrize("index", [-1, 10**9, None, "1", [1], 0.5])
def test_only_the_examples_are_offered(handlers: Handlers, index: Any) -> None:
    event: Any = SimpleNamespace(index=index)
    with pytest.raises(gr.Error, match="no such example"):
        list(handlers.example("tiny", event, USER))
