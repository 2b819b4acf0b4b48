"""A user's photo, work and files, with a miniature model and without a page."""

import gc
import weakref
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from threading import Thread, current_thread
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from sidestep.app import session as module
from sidestep.app.poses import Path as CameraPath
from sidestep.app.poses import Pose, target
from sidestep.app.session import Made, Session, Settings, Step
from sidestep.app.studio import Studio
from sidestep.app.turns import Cancelled
from sidestep.cameras import Camera
from sidestep.captures import read_captures
from sidestep.cli.view import _targets
from sidestep.errors import SidestepError
from sidestep.keyframes import read_key_frames
from sidestep.pipeline import NovelViewPipeline

SETTINGS = Settings("tiny", 45.0, steps=3)


@pytest.fixture
def session(studio: Studio, tmp_path: Path) -> Iterator[Session]:
    folder = tmp_path / "session"
    folder.mkdir()
    session = Session(studio, folder)
    yield session
    session.close()


def differ(one: Image.Image, other: Image.Image) -> bool:
    return bool(np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16)).max() > 1)


def finish(session: Session, **options: object) -> Made:
    *_, made = session.make(SETTINGS, Pose(), **options)  # type: ignore[arg-type]
    assert isinstance(made, Made)
    return made


def test_the_coarse_view_follows_the_camera_and_the_photo(session: Session, photo: Path, other_photo: Path) -> None:
    session.open(photo)
    first = session.coarse(SETTINGS, Pose(20))
    assert first.size == (16, 16)
    assert differ(first, session.coarse(SETTINGS, Pose(-40, 10)))
    assert not differ(first, session.coarse(SETTINGS, Pose(20)))
    session.open(other_photo)
    assert differ(first, session.coarse(SETTINGS, Pose(20)))


def test_a_photo_is_inverted_once(
    session: Session, photo: Path, tiny: NovelViewPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    invert = tiny.invert
    monkeypatch.setattr(tiny, "invert", lambda *a, **k: calls.append(a) or invert(*a, **k))
    session.open(photo)
    session.picture("tiny")
    for yaw in (0, 10, 20):
        session.coarse(SETTINGS, Pose(yaw))
    session.coarse(Settings("tiny", 60.0), Pose())
    finish(session)
    assert len(calls) == 1


def test_a_photo_is_inverted_once_also_where_its_camera_is_dragged_meanwhile(
    session: Session, studio: Studio, photo: Path, tiny: NovelViewPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, invert, pipe = [], tiny.invert, studio.pipe
    dragging = [Thread(target=session.coarse, args=(SETTINGS, Pose(yaw))) for yaw in (0, 10)]
    begun: set[Thread] = set()

    def seen(model: str) -> NovelViewPipeline:
        begun.add(current_thread())  # about to look for the inverted photo
        return pipe(model)

    def slow(*options: Any, progress: Any, **named: Any) -> Any:
        calls.append(options)
        if len(calls) == 1:
            for drag in dragging:
                drag.start()
            while not begun.issuperset(dragging):
                progress("invert", 0, 1)  # lends the turn
            for _ in range(200):
                progress("invert", 0, 1)
        return invert(*options, progress=progress, **named)

    monkeypatch.setattr(tiny, "invert", slow)
    monkeypatch.setattr(studio, "pipe", seen)
    session.open(photo)
    finish(session)
    for drag in dragging:
        drag.join()
    assert len(calls) == 1


def test_the_field_of_view_changes_the_view_and_its_camera(session: Session, photo: Path) -> None:
    told = session.open(photo)
    assert told == pytest.approx(2 * np.degrees(np.arctan(16 / np.hypot(24, 16) * 43.2666 / 72)), abs=0.01)
    wide, narrow = (session.coarse(Settings("tiny", fov), Pose()) for fov in (80.0, 20.0))
    assert differ(wide, narrow)
    *_, made = session.make(Settings("tiny", 80.0, steps=2), Pose())
    assert isinstance(made, Made)
    assert float(made.views.cameras[0].fov) == pytest.approx(80, abs=0.1)


def test_work_tells_its_stages_and_ends_with_the_views(session: Session, photo: Path) -> None:
    session.open(photo)
    *steps, made = session.make(SETTINGS, Pose())
    stages = [step.stage for step in steps if isinstance(step, Step)]
    assert len(stages) == len(steps)
    assert any(stage.startswith("Sampling") for stage in stages)
    assert isinstance(made, Made)
    assert made.video is None
    assert not differ(made.views.coarse[0], session.coarse(SETTINGS, Pose()))
    assert differ(made.views.images[0], made.views.coarse[0])


def test_the_archive_holds_the_pictures_with_their_cameras(session: Session, photo: Path, tmp_path: Path) -> None:
    session.open(photo)
    made = finish(session, path=CameraPath("orbit", 3), fps=5)
    assert made.shown == 2
    with zipfile.ZipFile(made.archive) as archive:
        archive.extractall(tmp_path / "out")
    assert (tmp_path / "out/video.mp4").stat().st_size > 0
    scenes = {scene.name: scene for scene in read_captures(tmp_path / "out")}
    assert set(scenes) == {"coarse", "views"}
    assert [len(scene.frames) for scene in scenes.values()] == [4, 4]  # the photo is one
    expected = target(Camera.from_fov(45, 16, 16), Pose(), 20)
    assert torch.allclose(scenes["views"].frames[3].camera.world_to_camera, expected.world_to_camera, atol=1e-4)
    last = scenes["views"].frames[3].load()
    assert not differ(last, made.views.images[2])
    assert made.video is not None


def test_key_frames_are_made_and_kept_for_the_command_line(session: Session, photo: Path, tmp_path: Path) -> None:
    session.open(photo)
    keys = (Pose(0), Pose(30, 10, 0.8), Pose(-20.5, 0, 1.25))
    made = finish(session, path=CameraPath("keys", 5, "smooth", keys))
    with zipfile.ZipFile(made.archive) as archive:
        archive.extract("keys.yaml", tmp_path)
    read = read_key_frames(tmp_path / "keys.yaml")
    assert [(key.yaw, key.pitch, key.distance) for key in read] == [(0, 0, 1), (30, 10, 0.8), (-20.5, 0, 1.25)]
    trajectory = str(tmp_path / "keys.yaml")
    for one, other in zip(
        _targets(made.views.source_camera, trajectory, None, None, 5, 20, "smooth"), made.views.cameras, strict=True
    ):
        assert torch.allclose(one.world_to_camera, other.world_to_camera, atol=1e-5)


def test_a_video_that_comes_back_is_longer(session: Session, photo: Path) -> None:
    session.open(photo)
    counts = []
    for loop in (False, True):
        made = finish(session, path=CameraPath("orbit", 4), loop=loop)
        with av.open(str(made.video)) as video:
            counts.append(sum(1 for _ in video.decode(video=0)))
        assert len(made.views.images) == 4
    assert counts == [4, 6]


def test_consistency_steadies_the_views_of_a_path(session: Session, photo: Path) -> None:
    session.open(photo)
    path = CameraPath("orbit", 3)
    loose = finish(session, path=path)
    *_, steady = session.make(replace(SETTINGS, consistency=0.8), Pose(), path)
    assert isinstance(steady, Made)
    assert differ(loose.views.coarse[0], steady.views.coarse[0])


def test_a_photo_is_described_and_the_words_guide_the_view(
    reading_studio: Studio, photo: Path, other_photo: Path, tmp_path: Path
) -> None:
    session = Session(reading_studio, tmp_path)
    with pytest.raises(SidestepError, match="drop one"):
        session.describe()
    session.open(other_photo)
    another = session.describe()
    session.open(photo)
    told = session.describe()
    assert told != another
    settings = replace(SETTINGS, model="reader", guidance=15.0)
    pictures = []
    for prompt in (None, told, f"zyx {told}"):
        *_, made = session.make(replace(settings, prompt=prompt), Pose())
        assert isinstance(made, Made)
        pictures.append(made.views.images[0])
    plain, described, edited = pictures
    assert differ(plain, described)
    assert differ(described, edited)


def test_cancelling_ends_the_work_and_the_next_work_goes_on(session: Session, photo: Path) -> None:
    session.open(photo)
    work = session.make(Settings("tiny", 45.0, steps=100), Pose())
    next(work)
    session.cancel()
    assert not session.wanted
    with pytest.raises(Cancelled):
        list(work)
    assert finish(session).views.images


def test_closing_the_iterator_stops_the_work(session: Session, photo: Path) -> None:
    session.open(photo)
    work = session.make(Settings("tiny", 45.0, steps=100), Pose(), CameraPath("orbit", 60))
    next(work)
    work.close()
    finish(session)  # waits for the last step of it
    assert not session.busy


def test_cancelled_work_leaves_neither_pictures_nor_files_and_its_turn_to_others(
    session: Session, studio: Studio, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures: list[weakref.ref[Image.Image]] = []
    call = NovelViewPipeline.__call__

    def watched(*inputs: Any, on_coarse: Any, **options: Any) -> Any:
        def seen(images: list[Image.Image]) -> None:
            pictures.append(weakref.ref(images[0]))
            on_coarse(images)

        return call(*inputs, on_coarse=seen, **options)

    monkeypatch.setattr(NovelViewPipeline, "__call__", watched)
    session.open(photo)
    work = session.make(Settings("tiny", 45.0, steps=100), Pose(), CameraPath("orbit", 60))
    while not pictures:
        next(work)
    session.cancel()
    with pytest.raises(Cancelled):
        list(work)
    session.wait(30)
    with studio.turns.take():
        gc.collect()
    assert pictures[0]() is None
    assert [path.name for path in (tmp_path / "session").iterdir()] == ["photo-1"]


def test_new_work_takes_the_place_of_the_old(session: Session, photo: Path) -> None:
    session.open(photo)
    old = session.make(Settings("tiny", 45.0, steps=100), Pose(), CameraPath("orbit", 60))
    next(old)
    finish(session)
    with pytest.raises(Cancelled):
        list(old)


def test_work_that_was_cancelled_while_it_waited_does_not_start(session: Session, photo: Path) -> None:
    session.open(photo)
    turn = session.begin()
    session.cancel()
    with pytest.raises(Cancelled):
        next(session.make(SETTINGS, Pose(), turn=turn))
    assert finish(session)


def test_another_photo_ends_the_work_on_the_last(session: Session, photo: Path, other_photo: Path) -> None:
    session.open(photo)
    work = session.make(Settings("tiny", 45.0, steps=100), Pose(), CameraPath("orbit", 60))
    next(work)
    session.open(other_photo)
    with pytest.raises(Cancelled):
        list(work)


@pytest.mark.parametrize("end", [Session.cancel, Session.close])
def test_work_can_be_ended_while_it_is_written(
    session: Session, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: Callable[[Session], None]
) -> None:
    write = module.save_views

    def ended(*options: object) -> None:
        end(session)
        write(*options)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "save_views", ended)
    session.open(photo)
    with pytest.raises(Cancelled):
        finish(session, path=CameraPath("orbit", 2))
    session.wait(30)
    assert not list(tmp_path.rglob("made-*"))
    assert (tmp_path / "session").exists() == (end is Session.cancel)


def test_each_work_has_files_of_its_own(session: Session, photo: Path) -> None:
    session.open(photo)
    path = CameraPath("orbit", 2)
    first = finish(session, path=path)
    with first.archive.open("rb") as download:
        second = finish(session, path=path)
        assert zipfile.ZipFile(download).testzip() is None  # also while the next is written
    assert first.video != second.video
    assert first.archive.name == second.archive.name
    assert second.archive.exists()
    assert not first.archive.exists()


def test_a_drag_is_answered_while_long_work_goes_on(studio: Studio, photo: Path, tmp_path: Path) -> None:
    busy, dragging = Session(studio, tmp_path / "one"), Session(studio, tmp_path / "two")
    for session in (busy, dragging):
        session._folder.mkdir()
        session.open(photo)
    work = busy.make(Settings("tiny", 45.0, steps=100), Pose(), CameraPath("orbit", 60))
    next(work)
    dragging.coarse(SETTINGS, Pose())
    assert busy.busy
    work.close()


def test_without_a_photo_there_is_a_hint(session: Session) -> None:
    with pytest.raises(SidestepError, match="drop one"):
        session.coarse(SETTINGS, Pose())
    with pytest.raises(SidestepError, match="drop one"):
        list(session.make(SETTINGS, Pose()))


@pytest.mark.parametrize(
    ("settings", "options", "fault"),
    [
        (Settings("other", 45.0), {}, "other"),
        (Settings("tiny", 45.0, steps=0), {}, "0 steps"),
        (Settings("tiny", 45.0, steps=10**9), {}, "1000000000 steps"),
        (Settings("tiny", 45.0, category="spoon"), {}, "spoon"),
        (Settings("tiny", 45.0, prompt="a red chair"), {}, "text"),
        (Settings("tiny", 200.0), {}, "field of view"),
        (SETTINGS, {"path": CameraPath("orbit", 1000)}, "1000 frames"),
        (SETTINGS, {"path": CameraPath("orbit", -1)}, "-1 frames"),
        (SETTINGS, {"path": CameraPath("orbit", 2), "fps": 0}, "0 frames a second"),
        (SETTINGS, {"path": CameraPath("orbit", 2), "fps": 10**9}, "1000000000 frames a second"),
        (SETTINGS, {"path": CameraPath("keys", 5, keys=(Pose(),))}, "1 key frames"),
        (Settings("tiny", 45.0, consistency=2.0), {"path": CameraPath("orbit", 2)}, "consistency"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    session: Session, photo: Path, settings: Settings, options: dict[str, object], fault: str
) -> None:
    session.open(photo)
    with pytest.raises(SidestepError, match=fault):
        list(session.make(settings, Pose(), **options))  # type: ignore[arg-type]
    assert finish(session)  # and nothing stays locked


def test_files_that_are_no_photo_are_refused_by_their_name_alone(session: Session, tmp_path: Path) -> None:
    text = tmp_path / "chair.png"
    text.write_text("no picture at all")
    with pytest.raises(SidestepError, match=r"^chair\.png: not an image"):
        session.open(text)
    cut = tmp_path / "cut.png"
    Image.effect_noise((64, 64), 80).save(cut)
    cut.write_bytes(cut.read_bytes()[:2000])
    with pytest.raises(SidestepError, match=r"^cut\.png: "):
        session.open(cut)
    gif = tmp_path / "picture.png"
    Image.new("RGB", (8, 8)).save(gif, format="GIF")
    with pytest.raises(SidestepError, match=r"^picture\.png: not an image"):
        session.open(gif)
    assert not session.has_photo
    assert not list((tmp_path / "session").iterdir())


@pytest.mark.parametrize(
    "content",
    [
        b"PK\x03\x04" + b"\0" * 100,
        b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
        b"<!doctype html><script>alert(1)</script>",
        b"GIF89a" + b"\0" * 100,
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",  # whose reader would start Ghostscript
        b"P6 1000000 1000000 255\n",
        b"\xff\xd8\xff\xe0",
        b"\x89PNG\r\n\x1a\n",
        b"",
    ],
    ids=lambda content: content[:8],
)
def test_what_is_called_a_photo_is_not_taken_at_its_word(session: Session, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "chair.jpg"
    file.write_bytes(content)
    with pytest.raises(SidestepError, match=r"^chair\.jpg: "):
        session.open(file)
    assert not session.has_photo


def test_photos_beyond_the_limits_are_refused(session: Session, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PIXELS", 24 * 16 - 1)
    with pytest.raises(SidestepError, match="megapixels"):
        session.open(photo)
    monkeypatch.setattr(module, "MAX_BYTES", photo.stat().st_size - 1)
    with pytest.raises(SidestepError, match="MB"):
        session.open(photo)


def test_of_photos_that_are_opened_at_once_the_last_one_stays(
    session: Session, photo: Path, other_photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = module.load_image

    def slow(path: Path) -> Image.Image:
        if path == photo:
            monkeypatch.setattr(module, "load_image", decode)
            session._studio.decoding.release()
            session.open(other_photo)
            session._studio.decoding.acquire()
        return decode(path)

    monkeypatch.setattr(module, "load_image", slow)
    with pytest.raises(Cancelled):
        session.open(photo)
    assert [path.read_bytes() for path in (tmp_path / "session").iterdir()] == [other_photo.read_bytes()]
    assert session._opened_photo().path.exists()


def test_a_photo_that_is_opened_while_its_session_ends_is_not_kept(
    session: Session, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(path: Path) -> float | None:
        session.close()
        return None

    monkeypatch.setattr(module, "exif_fov", ended)
    with pytest.raises(Cancelled):
        session.open(photo)
    assert not session.has_photo
    assert not (tmp_path / "session").exists()
