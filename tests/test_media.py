"""Animations are decoded again, and contact sheets looked at pixel by pixel."""

from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from sidestep.errors import SidestepError
from sidestep.media import contact_sheet, save_animation


def picture(phase: int, width: int = 64, height: int = 48) -> Image.Image:
    """Smooth colours that change with `phase`, and a pure red corner."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(20, 220, width)[None]
    pixels[..., 1] = np.linspace(220, 40, height)[:, None]
    pixels[..., 2] = 20 + 25 * phase
    pixels[:16, :16] = (255, 0, 0)
    return Image.fromarray(pixels)


@pytest.fixture
def pictures() -> list[Image.Image]:
    return [picture(phase) for phase in range(7)]


def decode(path) -> tuple[list[np.ndarray], float]:
    """The pictures of an animation, and how long it runs in seconds."""
    if path.suffix == ".mp4":
        with av.open(str(path)) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
            stream = container.streams.video[0]
            return frames, float(len(frames) / stream.average_rate)
    frames, seconds = [], 0.0
    with Image.open(path) as image:
        for index in range(image.n_frames):
            image.seek(index)
            frames.append(np.asarray(image.convert("RGB")))
            seconds += image.info["duration"] / 1000
    return frames, seconds


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".webp", ".MP4"])
def test_every_picture_comes_back_in_its_place_with_its_colours(tmp_path, pictures, suffix):
    path = tmp_path / f"orbit{suffix}"
    save_animation(pictures, path, fps=12)
    frames, seconds = decode(path.rename(path.with_suffix(suffix.lower())))
    assert len(frames) == len(pictures)
    assert seconds == pytest.approx(7 / 12, abs=0.006)
    for frame, expected in zip(frames, pictures, strict=True):
        expected = np.asarray(expected)
        assert frame.shape == expected.shape
        assert np.abs(frame.astype(int) - expected).mean() < 4
        # A wrong YUV matrix or range moves saturated colours by far more.
        assert np.abs(frame[4:12, 4:12].astype(int) - (255, 0, 0)).max() < 8


def test_mp4_plays_in_browsers(tmp_path, pictures):
    path = tmp_path / "orbit.mp4"
    save_animation(pictures, path, fps=29.97)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert float(stream.average_rate) == pytest.approx(29.97, abs=0.01)
        assert isinstance(stream.average_rate, Fraction)
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # else a browser waits for the whole file


def test_mp4_of_odd_size_is_padded_by_its_own_edge(tmp_path):
    odd = [picture(phase, width=63, height=47) for phase in range(3)]
    save_animation(odd, tmp_path / "odd.mp4")
    frames, _ = decode(tmp_path / "odd.mp4")
    for frame, expected in zip(frames, odd, strict=True):
        assert frame.shape == (48, 64, 3)
        assert np.abs(frame[:47, :63].astype(int) - np.asarray(expected)).mean() < 4
        assert np.abs(frame[:, 63].astype(int) - frame[:, 62]).mean() < 6
        assert np.abs(frame[47].astype(int) - frame[46]).mean() < 6


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_gif_and_webp_loop_forever(tmp_path, pictures, suffix):
    path = tmp_path / f"orbit{suffix}"
    save_animation(pictures, path)
    with Image.open(path) as image:
        assert image.info["loop"] == 0


def test_gif_asks_for_no_delay_that_browsers_slow_down(tmp_path, pictures):
    save_animation(pictures, tmp_path / "fast.gif", fps=1000)
    with Image.open(tmp_path / "fast.gif") as image:
        for index in range(image.n_frames):
            image.seek(index)
            assert image.info["duration"] >= 20


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".webp"])
def test_one_picture_of_any_mode_is_an_animation(tmp_path, suffix):
    path = tmp_path / f"one{suffix}"
    save_animation([picture(0).convert("L")], path)
    if suffix == ".mp4":
        assert len(decode(path)[0]) == 1
    else:
        with Image.open(path) as image:
            assert image.size == (64, 48)


@pytest.mark.parametrize("name", ["orbit.avi", "orbit", "orbit.png"])
def test_unknown_suffix_names_what_can_be_written(tmp_path, pictures, name):
    with pytest.raises(SidestepError, match=rf"{name}: .*\.mp4, \.gif, \.webp"):
        save_animation(pictures, tmp_path / name)


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".webp"])
def test_unusable_pictures_are_refused_and_the_old_file_stays(tmp_path, pictures, suffix):
    path = tmp_path / f"orbit{suffix}"
    path.write_bytes(b"old")
    with pytest.raises(SidestepError, match="no pictures"):
        save_animation([], path)
    with pytest.raises(SidestepError, match="one size"):
        save_animation([pictures[0], picture(0, width=32)], path)
    with pytest.raises(SidestepError, match="more than 0"):
        save_animation(pictures, path, fps=0)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_contact_sheet_places_rows_and_columns():
    colours = ["red", "lime", "blue", "cyan", "magenta"]
    tiles = [Image.new("RGB", (30, 20), colour) for colour in colours]
    sheet = contact_sheet([tiles[:3], tiles[3:]], margin=4)
    assert sheet.size == (4 + 3 * 34, 4 + 2 * 24)
    for index, tile in enumerate(tiles):
        row, column = divmod(index, 3)
        left, top = 4 + 34 * column, 4 + 24 * row
        assert sheet.crop((left, top, left + 30, top + 20)).tobytes() == tile.tobytes()
    assert sheet.getpixel((sheet.width - 6, sheet.height - 6)) == (255, 255, 255)  # the short row's empty place
    assert sheet.getpixel((1, 1)) == (255, 255, 255)


def test_labels_stand_above_their_columns_and_are_never_cut():
    tiles = [Image.new("RGB", (40, 20), "lime")] * 2
    plain = contact_sheet([tiles])
    labelled = contact_sheet([tiles], ["photo", "a caption much wider than its picture"])
    assert labelled.height > plain.height
    assert labelled.width > plain.width
    ink = (np.asarray(labelled).sum(-1) < 200).nonzero()
    assert set(ink[0]) <= set(range(labelled.height - 20 - 4))  # above the pictures
    assert (ink[1] < 4 + 40).any()
    assert (ink[1] > 4 + 40 + 4).any()
    assert ink[1].min() > 0
    assert ink[1].max() < labelled.width - 1


def test_contact_sheet_takes_pictures_of_several_sizes_and_modes():
    rows = [[Image.new("RGB", (10, 30), "red"), Image.new("L", (20, 10), 128)], [Image.new("RGB", (16, 8), "blue")]]
    sheet = contact_sheet(rows, margin=2)
    assert sheet.size == (2 + 16 + 2 + 20 + 2, 2 + 30 + 2 + 8 + 2)
    assert sheet.getpixel((20, 2)) == (128, 128, 128)
    assert sheet.getpixel((2, 34)) == (0, 0, 255)


def test_contact_sheet_refuses_what_has_no_grid():
    tile = Image.new("RGB", (8, 8))
    with pytest.raises(SidestepError, match="at least one picture"):
        contact_sheet([[]])
    with pytest.raises(SidestepError, match="2 columns needs 2 labels, not 1"):
        contact_sheet([[tile, tile]], ["only one"])
