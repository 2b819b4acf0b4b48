"""One user's photo, work and files."""

import shutil
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from threading import Lock, Thread

from PIL import Image, UnidentifiedImageError

from sidestep.app.poses import Path as CameraPath
from sidestep.app.poses import Pose, along, target
from sidestep.app.studio import Studio
from sidestep.app.turns import Cancelled
from sidestep.cameras import Camera
from sidestep.captures.writing import write_capture
from sidestep.errors import SidestepError
from sidestep.files import atomic_path
from sidestep.images import exif_fov, load_image, stored_size
from sidestep.keyframes import write_key_frames
from sidestep.outputs import save_views
from sidestep.pipeline import Fusion, Progress, Reference, Views

MAX_BYTES = 20 * 2**20
MAX_PIXELS = 50_000_000
MAX_FRAMES = 60
MAX_FPS = 60
MAX_STEPS = 100
REFERENCES = 2  # inverted photos that a session keeps, one a model
LAST_STEP = 30.0  # seconds that a cancelled step may still take
FORMATS = ("JPEG", "PNG", "WEBP")  # no format whose reader starts another program
ARCHIVE, VIDEO = "sidestep-views.zip", "video.mp4"


@dataclass(frozen=True)
class Settings:
    """What a user chose beside the photo and the camera; named as in `NovelViewPipeline.__call__`."""

    model: str
    fov: float
    category: str | None = None
    fusion: Fusion = "variance"
    steps: int = 30
    seed: int = 0
    consistency: float = 0.0
    prompt: str | None = None
    negative_prompt: str | None = None
    guidance: float = 3.5


@dataclass(frozen=True)
class Step:
    """Work went on.

    Attributes:
        stage: what is being done, as a user would say it.
        done, total: steps of it.
    """

    stage: str
    done: int
    total: int


@dataclass(frozen=True)
class Made:
    """The work is done.

    Attributes:
        views: as the pipeline returns them.
        shown: which of them stands for all.
        archive: a zip with the pictures and their cameras.
        video: where there are several views.
    """

    views: Views
    shown: int
    archive: Path
    video: Path | None


@dataclass(frozen=True)
class _Photo:
    """An open photo and what was inverted of it, by model."""

    path: Path
    size: tuple[int, int]
    references: "OrderedDict[str, Reference]" = field(default_factory=OrderedDict)
    inverting: Lock = field(default_factory=Lock)

    def seen_through(self, fov: float, inverted: Reference) -> Reference:
        """The photo inverted, with the camera of a field of view, on which the latents do not depend."""
        camera = Camera.from_fov(fov, *self.size)
        return replace(inverted, camera=camera.resize_and_crop(inverted.image.width))


class Session:
    """One user's photo, what was made of it, and the private folder that all of it lies in."""

    def __init__(self, studio: Studio, folder: Path) -> None:
        """
        Args:
            studio: shared with all others.
            folder: removed with the session.
        """
        self._studio, self._folder = studio, folder
        self._photo: _Photo | None = None
        self._count = 0  # of photos that were to be opened
        self._opened = 0  # the number of the one that is
        self._turn = 0  # of the work that may go on
        self.wanted = False  # whether work was asked for and not cancelled
        self._lock = Lock()  # of all of these
        self._working = Lock()
        self._closed = False

    @property
    def busy(self) -> bool:
        """Whether views are being made."""
        return self._working.locked()

    @property
    def has_photo(self) -> bool:
        return self._photo is not None

    def made(self, file: Path) -> bool:
        """Whether this is a result of it that its user may have."""
        return file.name in (ARCHIVE, VIDEO) and file.parent.parent == self._folder

    def open(self, path: Path) -> float | None:
        """Takes a copy of a photo, forgets the one before and ends the work on it.

        Returns:
            The field of view that its EXIF tells, degrees across the shorter side.

        Raises:
            Cancelled: if another was opened meanwhile, or the session ended.
            SidestepError: if it is too large, or no JPEG, PNG or WebP that can be decoded.
        """
        with self._lock:
            self._count += 1
            number = self._count
        try:
            if path.stat().st_size > MAX_BYTES:
                raise SidestepError(f"{path}: larger than {MAX_BYTES // 2**20} MB; shrink it first")
            _check_format(path)
            width, height, _ = stored_size(path)
            if width * height > MAX_PIXELS:
                raise SidestepError(
                    f"{path}: {width}x{height} is larger than {MAX_PIXELS // 10**6} megapixels; shrink it first"
                )
            with self._studio.decoding:
                size = load_image(path).size
            fov = exif_fov(path)
        except SidestepError as error:
            raise SidestepError(str(error).replace(str(path), path.name)) from None
        copy = self._folder / f"photo-{number}"
        try:
            shutil.copyfile(path, copy)
        except FileNotFoundError:
            if self._closed:
                raise Cancelled from None
            raise
        with self._lock:
            late = self._closed or number < self._opened
            if not late:
                last, self._photo, self._opened = self._photo, _Photo(copy, size), number
        if late:
            copy.unlink(missing_ok=True)
            raise Cancelled
        self.cancel()
        if last is not None:
            last.path.unlink(missing_ok=True)
        return fov

    def picture(self, model: str) -> Image.Image:
        """The photo as a model sees it; it is inverted first, if it was not yet.

        Raises:
            SidestepError: if no photo is open.
        """
        return self._inverted(self._opened_photo(), model).image

    def coarse(self, settings: Settings, pose: Pose) -> Image.Image:
        """What the target camera sees, roughly, soon.

        Raises:
            SidestepError: if no photo is open, or a setting does not fit the model.
        """
        photo = self._opened_photo()
        reference = photo.seen_through(settings.fov, self._inverted(photo, settings.model))
        camera = target(reference.camera, pose, self._studio.elevation(settings.model))
        with self._studio.turns.take():
            return self._studio.pipe(settings.model).coarse(reference, [camera], settings.category)[0]

    def describe(self) -> str:
        """What the photo shows, in words.

        Raises:
            SidestepError: if no photo is open, or the captioner cannot be had.
        """
        return self._studio.describe(self._opened_photo().path)

    def begin(self) -> int:
        """Makes way for new work, as `cancel` does, and returns the number that it is to give."""
        with self._lock:
            self._turn += 1
            self.wanted = True
            return self._turn

    def cancel(self, turn: int | None = None) -> None:
        """Ends the work at its next step, and that which waits for its turn; with a number, that work alone."""
        with self._lock:
            if turn in (None, self._turn):
                self._turn += 1
                self.wanted = False

    def make(
        self,
        settings: Settings,
        pose: Pose,
        path: CameraPath | None = None,
        fps: int = 12,
        loop: bool = False,
        turn: int | None = None,
    ) -> Iterator[Step | Made]:
        """Makes the view from a pose, or those along a path, in a thread, and tells how it goes.

        Steps that nobody has asked for yet are left out. Closing the iterator stops the work.

        Args:
            fps: views a second of a path's video.
            loop: the video plays them forwards and back again.
            turn: of `begin`, where it was called when the work was asked for and not when it can start.

        Raises:
            Cancelled: if `cancel` or `begin` was called since.
            SidestepError: if there is no photo, or a setting does not fit the model.
        """
        turn = self.begin() if turn is None else turn
        if not self._working.acquire(timeout=LAST_STEP):
            raise SidestepError("the last work has not ended yet; try again")
        events: SimpleQueue[Step | Made | BaseException] = SimpleQueue()

        def work() -> None:
            end: Made | BaseException
            try:
                end = self._make(settings, pose, path, fps, loop, turn, events.put)
            except BaseException as error:  # told to whoever waits, of whatever kind
                end = error
            if self._closed:
                shutil.rmtree(self._folder, ignore_errors=True)  # what was written since
            self._working.release()
            events.put(end)

        Thread(target=work, daemon=True).start()
        try:
            while True:
                event = events.get()
                while isinstance(event, Step) and not events.empty():
                    event = events.get()
                if self._turn != turn:
                    raise Cancelled
                if isinstance(event, BaseException):
                    raise event
                yield event
                if isinstance(event, Made):
                    return
        finally:
            self.cancel(turn)

    def wait(self, patience: float) -> None:
        """Waits until the work has ended, up to so many seconds."""
        if self._working.acquire(timeout=patience):
            self._working.release()

    def close(self) -> None:
        """Ends the work and removes what the session has on the disk."""
        with self._lock:
            self._closed = True
            self._photo = None
        self.cancel()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _opened_photo(self) -> _Photo:
        if self._photo is None:
            raise SidestepError("there is no photo yet; drop one on the page, or choose an example")
        return self._photo

    def _inverted(self, photo: _Photo, model: str, progress: Progress | None = None) -> Reference:
        """The photo inverted, once for each model; its camera is a stand-in."""
        pipe = self._studio.pipe(model)
        with photo.inverting:  # before the turn, which whoever inverts it lends
            if model not in photo.references:
                lend = progress or (lambda *_: self._studio.turns.lend())
                with self._studio.turns.take():
                    photo.references[model] = pipe.invert(photo.path, progress=lend)
                while len(photo.references) > REFERENCES:
                    photo.references.popitem(last=False)
            photo.references.move_to_end(model)
            return photo.references[model]

    def _make(
        self,
        settings: Settings,
        pose: Pose,
        path: CameraPath | None,
        fps: int,
        loop: bool,
        turn: int,
        tell: Callable[[Step], None],
    ) -> Made:
        if not 1 <= settings.steps <= MAX_STEPS:
            raise SidestepError(f"{settings.steps} steps of sampling; use 1 to {MAX_STEPS}")
        if path is not None and not 2 <= path.frames <= MAX_FRAMES:
            raise SidestepError(f"a path of {path.frames} frames; use 2 to {MAX_FRAMES}")
        if not 1 <= fps <= MAX_FPS:
            raise SidestepError(f"{fps} frames a second; use 1 to {MAX_FPS}")

        def go_on() -> None:
            if self._turn != turn:
                raise Cancelled

        def progress(stage: str, done: int, total: int) -> None:
            go_on()
            tell(Step(_in_words(stage), done, total))
            self._studio.turns.lend()

        go_on()
        pipe = self._studio.pipe(settings.model)
        elevation = self._studio.elevation(settings.model)
        photo = self._opened_photo()
        inverted = self._inverted(photo, settings.model, progress)
        reference = photo.seen_through(settings.fov, inverted)
        cameras = (
            [target(reference.camera, pose, elevation)]
            if path is None
            else along(path, reference.camera, pose, elevation)
        )
        with self._studio.turns.take():
            go_on()
            views = pipe(
                reference,
                cameras,
                category=settings.category,
                fusion=settings.fusion,
                prompt=settings.prompt or None,
                steps=settings.steps,
                seed=settings.seed,
                negative_prompt=settings.negative_prompt or None,
                guidance=settings.guidance,
                consistency=settings.consistency,
                progress=progress,
                on_coarse=lambda _: tell(Step("Translation", 1, 1)),
            )
            inverted.late = reference.late
        return self._write(views, path, fps, loop, turn, go_on)

    def _write(
        self, views: Views, path: CameraPath | None, fps: int, loop: bool, turn: int, go_on: Callable[[], None]
    ) -> Made:
        # Another folder each time: a browser would play the last video on under its name.
        folder = self._folder / f"made-{turn}"
        photo = (views.source, views.source_camera)
        try:
            write_capture(folder / "views", views.images, views.cameras, photo)
            go_on()
            write_capture(folder / "coarse", views.coarse, views.cameras, photo)
            go_on()
            video = None
            if path is not None:
                video = folder / VIDEO
                save_views(video, views.images, views.cameras, fps, loop)
                if path.keys:
                    write_key_frames(path.key_frames, folder / "keys.yaml")
            files = sorted(folder.rglob("*"))
            archive = folder / ARCHIVE
            with atomic_path(archive) as temporary, zipfile.ZipFile(temporary, "w") as whole:
                for file in files:
                    whole.write(file, file.relative_to(folder))
            go_on()
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        for last in self._folder.glob("made-*"):
            if last != folder:
                shutil.rmtree(last, ignore_errors=True)
        return Made(views, 0 if path is None else path.shown, archive, video)


def _check_format(path: Path) -> None:
    try:
        with Image.open(path, formats=FORMATS):
            pass
    except (UnidentifiedImageError, SyntaxError):
        raise SidestepError(f"{path}: not an image; JPEG, PNG and WebP can be read") from None
    except Exception:  # what else is wrong with it, `load_image` says
        pass


def _in_words(stage: str) -> str:
    """The pipeline's name of a stage as the page shows it."""
    if stage.startswith("sample "):
        views, _, method = stage.removeprefix("sample ").partition(", ")
        first, _, rest = views.partition("-")
        last, _, count = rest.partition(" of ")
        which = "" if count == "1" else f", view {last} of {count}" if first == last else f", views {views}"
        return f"Sampling{which} ({method})" if method else f"Sampling{which}"
    return "Inversion"
