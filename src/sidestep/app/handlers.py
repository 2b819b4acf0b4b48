"""What the page's controls do: gradio's events in, updates of its components out."""

import html
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import gradio as gr

from sidestep.app import poses
from sidestep.app.parts import told
from sidestep.app.poses import Pose
from sidestep.app.session import Made, Session, Settings
from sidestep.app.sessions import Sessions
from sidestep.app.studio import Studio
from sidestep.app.turns import Cancelled
from sidestep.cameras import Camera
from sidestep.errors import SidestepError
from sidestep.images import jpeg_url
from sidestep.pipeline import DEFAULT_FOV, NovelViewPipeline

logger = logging.getLogger(__name__)

SINGLE = "view"  # the choice beside the paths
MAX_KEYS = 24
MAKE_VIEW, MAKE_VIDEO = "Make the view", "Make the video"
WAITING, STARTING = "Waiting for its turn", "Starting"
ON_DEMAND = "detail, on demand"
SEED = (0, 2**32 - 1)
FAULT = "Something went wrong; the terminal that runs sidestep app says what."

Updates = tuple[Any, ...]


class Handlers:
    """The events of one page, for all who have it open: what differs between them is in their sessions."""

    def __init__(self, studio: Studio, sessions: Sessions, examples: Sequence[Path]) -> None:
        self._studio, self._sessions, self._examples = studio, sessions, examples

    def upload(self, path: str, model: str, request: gr.Request) -> Iterator[Updates]:
        """A dropped photo. Its file stays for others: gradio keeps one of what several send."""
        yield from self._open(Path(path), model, request)

    def example(self, model: str, event: gr.EventData, request: gr.Request) -> Iterator[Updates]:
        number = event.index
        if not isinstance(number, int) or not 0 <= number < len(self._examples):
            raise gr.Error("There is no such example.", print_exception=False)
        yield from self._open(self._examples[number], model, request)

    def _open(self, path: Path, model: str, request: gr.Request) -> Iterator[Updates]:
        """upload, fov, photo, viewport, final, compare, video, download, status"""
        kept = (gr.skip(),) * 7
        yield (gr.skip(), *kept, told("Inversion of the photo"))
        try:
            with self._use(request) as session:
                fov = session.open(path)
                photo = jpeg_url(session.picture(model))
        except Exception as error:
            yield (None, *kept, _refused(error))
            return
        note = "by EXIF" if fov else "guessed"
        yield (
            None,
            gr.update(value=round(fov or DEFAULT_FOV, 1), info=f"Shorter side, {note}."),
            photo,
            gr.update(photo=photo, preview=""),
            gr.update(value="", note=ON_DEMAND),
            None,
            gr.update(value=None, visible=False),
            gr.update(value=None, visible=False),
            told("Ready. Choose where to look from."),
        )

    def follow(
        self,
        pose: Any,
        fov: float | None,
        model: str,
        category: str,
        kind: str,
        frames: float | None,
        smooth: bool,
        keys: Any,
        has_photo: bool,
        request: gr.Request,
    ) -> Updates:
        """coarse, viewport, photo: what the target sees, roughly, and the path.

        Args:
            has_photo: whether the page shows one.
        """
        try:
            where, fov = Pose.read(pose), _filled(fov, "field of view", poses.FOV)
            elevation = self._studio.elevation(model)
            drawn: dict[str, Any] = {"scene": poses.scene(elevation, fov), "path": []}
            if (path := _path(kind, frames, smooth, keys)) is not None:
                source = Camera.from_fov(fov, 2, 2)
                drawn["path"] = poses.matrices(poses.drawn(path, source, where, elevation), source)
            with self._use(request) as session:
                if not session.has_photo:
                    if has_photo:
                        gr.Warning("The server no longer has the photo; choose it again.")
                    return "", gr.update(**drawn, photo="", preview=""), ""
                preview = jpeg_url(session.coarse(Settings(model, fov, category or None), where))
        except Exception as error:
            raise _error(error) from None
        return preview, gr.update(**drawn, preview=preview), gr.skip()

    def choose_path(self, name: str, pose: Any) -> Updates:
        """viewport, yaw, pitch, distance, key frames, film, make: a path needs a target to reach."""
        kind = _kind(name)
        moved: Updates = (gr.skip(),) * 4  # what stays is not sent, as the user may have moved it by now
        try:
            stays = kind is None or poses.spans(kind, Pose.read(pose))
        except SidestepError:
            stays = False
        if kind is not None and not stays:
            start = poses.START.get(kind, Pose())
            numbers = {"yaw": start.yaw, "pitch": start.pitch, "distance": start.distance}
            moved = (numbers, *numbers.values())
        recorder, film = gr.update(visible=kind == "keys"), gr.update(visible=kind is not None)
        return *moved, recorder, film, gr.update(value=MAKE_VIEW if kind is None else MAKE_VIDEO)

    def choose_model(self, model: str, request: gr.Request) -> Updates:
        """category, text settings, photo, viewport"""
        try:
            pipe = self._studio.pipe(model)
            with self._use(request) as session:
                photo = jpeg_url(session.picture(model)) if session.has_photo else ""
        except Exception as error:
            raise _error(error) from None
        return (
            gr.update(choices=categories(pipe), value=""),
            gr.update(visible=reads_text(pipe)),
            photo,
            gr.update(photo=photo),
        )

    def describe(self, request: gr.Request) -> Iterator[Updates]:
        """prompt, status"""
        yield gr.skip(), told("Description of the photo")
        try:
            with self._use(request) as session:
                words = session.describe()
        except Exception as error:
            yield gr.skip(), _refused(error)
            return
        yield words, told("Described. Edit the words under Prompt.")

    def begin(self, request: gr.Request) -> Updates:
        """turn, status, cancel: at once, also where others' work goes first."""
        waiting = told(WAITING if self._sessions.busy else STARTING)
        try:
            with self._use(request) as session:
                return session.begin(), waiting, gr.update(interactive=True)
        except SidestepError as error:
            raise _error(error) from None

    def make(
        self,
        turn: int,
        pose: Any,
        fov: float | None,
        model: str,
        category: str,
        kind: str,
        frames: float | None,
        smooth: bool,
        keys: Any,
        fps: float | None,
        loop: bool,
        fusion: Any,
        steps: float | None,
        seed: float | None,
        consistency: float | None,
        prompt: str,
        negative_prompt: str,
        guidance: float | None,
        request: gr.Request,
    ) -> Iterator[Updates]:
        """status, final, compare, video, download, cancel: the last results stay until there are others."""

        def only(status: dict[str, Any], working: bool) -> Updates:
            return status, *(gr.skip(),) * 4, gr.update(interactive=working)

        try:
            settings = Settings(
                model,
                _filled(fov, "field of view", poses.FOV),
                category or None,
                fusion,
                _whole(steps, "steps"),
                _whole(seed, "seed", SEED),
                _filled(consistency, "consistency"),
                prompt,
                negative_prompt,
                _filled(guidance, "guidance"),
            )
            path = _path(kind, frames, smooth, keys)
            where = Pose.read(pose)
            with self._use(request) as session:
                for event in session.make(settings, where, path, _whole(fps, "fps"), loop, turn):
                    if isinstance(event, Made):
                        yield self._made(event, where)
                    else:
                        yield only(told(event.stage, event.done, event.total), True)
        except Cancelled:
            yield only(told(WAITING if session.wanted else "Cancelled."), session.wanted)
        except Exception as error:
            yield only(_refused(error), False)

    def _made(self, made: Made, where: Pose) -> Updates:
        views, index = made.views, made.shown
        coarse, final = jpeg_url(views.coarse[index]), jpeg_url(views.images[index])
        count = len(views.images)
        if count == 1:
            done, note = "Done.", f"yaw {where.yaw:g}°, pitch {where.pitch:g}°, distance {where.distance:g}"
        else:
            done, note = f"Done: {count} views.", f"view {index + 1} of {count}"
        return (
            told(done),
            gr.update(value=final, note=note),
            {"coarse": coarse, "final": final},
            gr.update(value=made.video and str(made.video), visible=made.video is not None),
            gr.update(value=str(made.archive), visible=True),
            gr.update(interactive=False),
        )

    def fail(self, request: gr.Request) -> Updates:
        """status, cancel: gradio itself refused to start the work, and said why."""
        self._cancel(request)
        return told("Nothing was made.", tone="bad"), gr.update(interactive=False)

    def cancel(self, request: gr.Request) -> Updates:
        """status, cancel"""
        self._cancel(request)
        return told("Cancelled."), gr.update(interactive=False)

    def leave(self, request: gr.Request) -> None:
        """The page was closed."""
        self._sessions.leave(str(request.session_hash))

    def _use(self, request: gr.Request) -> AbstractContextManager[Session]:
        return self._sessions.use(str(request.session_hash))

    def _cancel(self, request: gr.Request) -> None:
        if (session := self._sessions.find(str(request.session_hash))) is not None:
            session.cancel()


def categories(pipe: NovelViewPipeline) -> list[tuple[str, str]]:
    """The choices of a model's categories, that of none first."""
    return [("not said", ""), *((name, name) for name in pipe.tunet.config.categories)]


def reads_text(pipe: NovelViewPipeline) -> bool:
    """Whether a prompt can guide the model."""
    return pipe.text_encoder is not None


def _kind(name: str) -> poses.Kind | None:
    if name == SINGLE:
        return None
    for kind in poses.KINDS:
        if kind == name:
            return kind
    raise SidestepError(f"path {name!r} is unknown; use {', '.join(poses.KINDS)}")


def _path(name: str, frames: float | None, smooth: bool, keys: Any) -> poses.Path | None:
    kind = _kind(name)
    if kind is None:
        return None
    recorded: tuple[Pose, ...] = ()
    if kind == "keys":
        recorded = tuple(Pose.read(key) for key in keys or ())
        if len(recorded) > MAX_KEYS:
            raise SidestepError(f"{len(recorded)} key frames; use up to {MAX_KEYS}")
    return poses.Path(kind, _whole(frames, "frames"), "smooth" if smooth else "linear", recorded)


def _filled(number: float | None, name: str, limits: tuple[float, float] = (-math.inf, math.inf)) -> float:
    if number is None:
        raise SidestepError(f"the {name} is empty; fill it in")
    low, high = limits
    if not math.isfinite(number) or not low <= number <= high:
        raise SidestepError(f"{name} {number:g} is out of range; use {low:g} to {high:g}")
    return number


def _whole(number: float | None, name: str, limits: tuple[float, float] = (-math.inf, math.inf)) -> int:
    number = _filled(number, name, limits)
    if number != int(number):
        raise SidestepError(f"{name} must be a whole number, not {number:g}")
    return int(number)


def _in_words(error: Exception) -> str:
    """What a user is told of an error; of a defect, the terminal is told the rest."""
    if isinstance(error, SidestepError):
        return str(error)
    if isinstance(error, Cancelled):
        return "Cancelled."
    logger.error("the page could not do what was asked", exc_info=error)
    return FAULT


def _error(error: Exception) -> gr.Error:
    return gr.Error(html.escape(_in_words(error)), print_exception=False)


def _refused(error: Exception) -> dict[str, Any]:
    """Shows a fault where it is seen, and returns it as the status."""
    words = _in_words(error)
    gr.Warning(html.escape(words))
    return told(words, tone="bad")
