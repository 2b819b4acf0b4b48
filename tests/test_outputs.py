"""What a path's suffix makes of views."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sidestep.cameras import Camera
from sidestep.captures import read_captures
from sidestep.errors import SidestepError
from sidestep.outputs import check_output, save_views
from sidestep.trajectories import orbit

SIZE = 32
COLOURS = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0), (0, 250, 250), (250, 0, 250), (120, 120, 120)]
IMAGES = [Image.new("RGB", (SIZE, SIZE), colour) for colour in COLOURS]
CAMERAS = orbit(Camera.from_fov(45, SIZE, SIZE), len(IMAGES))


def save(path: Path, count: int) -> None:
    save_views(path, IMAGES[:count], CAMERAS[:count], fps=10)


@pytest.mark.parametrize(
    ("name", "format", "tolerance"), [("a.png", "PNG", 0), ("a.JPG", "JPEG", 4), ("a.jpeg", "JPEG", 4)]
)
def test_one_view_is_a_picture_of_its_own_size(tmp_path: Path, name: str, format: str, tolerance: int) -> None:
    save(tmp_path / "deeper" / name, 1)
    (path,) = (tmp_path / "deeper").iterdir()
    assert path.name == name
    with Image.open(path) as picture:
        assert (picture.format, picture.size) == (format, (SIZE, SIZE))
        assert np.abs(np.asarray(picture, dtype=int) - COLOURS[0]).max() <= tolerance


def test_several_views_are_a_sheet_of_six_a_row(tmp_path: Path) -> None:
    save(tmp_path / "a.png", 7)
    sheet = Image.open(tmp_path / "a.png")
    assert sheet.width == 6 * SIZE + 7 * 4
    assert sheet.height == 2 * SIZE + 3 * 4
    cell = SIZE + 4
    shown = [sheet.getpixel((cell * (i % 6) + cell // 2, cell * (i // 6) + cell // 2)) for i in range(7)]
    assert shown == COLOURS


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.GIF"])
def test_an_animation_has_every_view(tmp_path: Path, name: str) -> None:
    save(tmp_path / name, 7)
    with Image.open(tmp_path / name) as animation:
        assert animation.n_frames == 7
        assert animation.size == (SIZE, SIZE)


def test_a_film_has_every_view_at_its_rate(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    save(tmp_path / "a.mp4", 7)
    with av.open(str(tmp_path / "a.mp4")) as film:
        assert film.streams.video[0].average_rate == 10
        assert sum(1 for _ in film.decode(video=0)) == 7


def test_a_loop_plays_there_and_back_without_a_view_twice_in_a_row(tmp_path: Path) -> None:
    for count, shown in ((4, [0, 1, 2, 3, 2, 1]), (2, [0, 1]), (1, [0])):
        save_views(tmp_path / "a.webp", IMAGES[:count], CAMERAS[:count], 10, loop=True)
        with Image.open(tmp_path / "a.webp") as animation:
            colours = []
            for index in range(animation.n_frames):
                animation.seek(index)
                pixel = np.array(animation.convert("RGB").getpixel((9, 9)))
                colours.append(int(np.abs(np.array(COLOURS) - pixel).sum(1).argmin()))
        assert colours == shown
    # Of a picture or a capture it changes nothing.
    save_views(tmp_path / "orbit", IMAGES[:4], CAMERAS[:4], 10, loop=True)
    assert len(list((tmp_path / "orbit" / "images").iterdir())) == 4


def test_a_name_without_a_suffix_is_a_capture(tmp_path: Path) -> None:
    for count in (7, 3):  # the second replaces the first
        save(tmp_path / "orbit", count)
        (scene,) = read_captures(tmp_path / "orbit")
        assert len(scene.frames) == count
        assert [frame.load().getpixel((0, 0)) for frame in scene.frames] == COLOURS[:count]
        centres = [frame.camera.centre.tolist() for frame in scene.frames]
        assert np.allclose(centres, [camera.centre.tolist() for camera in CAMERAS[:count]], atol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == ["orbit"]


@pytest.mark.parametrize("name", ["a.bmp", "a.tiff", "a.obj", "run.v2"])
def test_other_suffixes_are_refused(tmp_path: Path, name: str) -> None:
    for refuse in (lambda: check_output(tmp_path / name), lambda: save(tmp_path / name, 1)):
        with pytest.raises(SidestepError, match=rf"{name}: views are written as \.png"):
            refuse()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["folder.png", "thesis"])
def test_what_is_there_and_of_another_kind_stays(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "notes.txt").write_text("years of work")
    for refuse in (lambda: check_output(tmp_path / name), lambda: save(tmp_path / name, 1)):
        with pytest.raises(SidestepError, match=name):
            refuse()
    assert (tmp_path / name / "notes.txt").read_text() == "years of work"


def test_a_new_place_is_accepted_and_nothing_but_its_folder_is_made(tmp_path: Path) -> None:
    for name in ("a.png", "a.MP4", "orbit", "deeper/still/orbit"):
        check_output(tmp_path / name)
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == ["deeper", "deeper/still"]
