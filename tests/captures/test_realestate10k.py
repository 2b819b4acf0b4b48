"""RealEstate10K: files of cameras as the data set's page describes them, frames where downloaders leave them."""

from pathlib import Path

import numpy as np
import pytest

from sidestep.captures import read_captures
from sidestep.captures.layouts import read_scene
from sidestep.captures.splits import read_split
from sidestep.errors import SidestepError

URL = "https://www.youtube.com/watch?v=abc"
TIMES = (9_943_267, 10_010_000, 10_076_733, 120_143_000)  # of different lengths: text would sort them wrongly


def line(rig, index: int) -> str:
    (fx, _, cx), (_, fy, cy), _ = rig.intrinsics
    width, height = rig.size
    pose = rig.pose(index)[:3].ravel()
    values = (fx / width, fy / height, cx / width, cy / height, 0.0, 0.0, *pose)
    return " ".join([str(TIMES[index]), *(repr(float(value)) for value in values)])


def save(path: Path, rig, lines: list[str] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([URL, *(lines or [line(rig, index) for index in range(4)])]) + "\n")


def save_frames(folder: Path, rig, suffix: str = "png", size: tuple[int, int] | None = None) -> None:
    for index, time in enumerate(TIMES):
        rig.photo(folder / f"{time}.{suffix}", index, size)


LAYOUTS = {
    "beside": ("0c4c.txt", "0c4c", "."),
    "in it": ("0c4c/0c4c.txt", "0c4c", "."),
    "in it, in images": ("0c4c/0c4c.txt", "0c4c/images", "."),
    "in it, by split": ("train/0c4c/0c4c.txt", "train/0c4c", "."),
    "cameras and frames": ("cameras/0c4c.txt", "frames/0c4c", "."),
    "by split": ("cameras/train/0c4c.txt", "frames/train/0c4c", "."),
    "by split, images": ("cameras/test/0c4c.txt", "images/test/0c4c", "."),
    "as unpacked and downloaded": ("RealEstate10K/train/0c4c.txt", "dataset/train/0c4c", "."),
    "by split, beside": ("RealEstate10K/train/0c4c.txt", "RealEstate10K/train/0c4c", "."),
    "one split of cameras": ("cameras/train/0c4c.txt", "frames/train/0c4c", "cameras/train"),
    "one file": ("cameras/train/0c4c.txt", "frames/train/0c4c", "cameras/train/0c4c.txt"),
}


@pytest.mark.parametrize(("cameras", "frames", "given"), LAYOUTS.values(), ids=LAYOUTS)
def test_cameras_come_back_in_the_order_of_time(tmp_path, rig, cameras, frames, given):
    save(tmp_path / cameras, rig)
    save_frames(tmp_path / frames, rig)
    (scene,) = read_captures(tmp_path / given)
    assert (scene.id, scene.missing) == ("0c4c", ())
    assert [frame.name for frame in scene.frames] == [f"{time}.png" for time in TIMES]
    rig.check(scene)


@pytest.mark.parametrize("suffix", ["jpg", "PNG", "jpeg"])
@pytest.mark.parametrize("size", [(128, 96), (40, 40)], ids=["larger", "square"])
def test_intrinsics_are_parts_of_the_picture_whatever_its_size(tmp_path, rig, suffix, size):
    save(tmp_path / "0c4c.txt", rig)
    save_frames(tmp_path / "0c4c", rig, suffix, size)
    rig.check(read_captures(tmp_path)[0])


def test_clips_without_frames_are_no_scenes_and_bad_ones_are_left_out(tmp_path, rig):
    for clip in ("00aa", "00bb", "00cc"):
        save(tmp_path / "cameras" / "train" / f"{clip}.txt", rig)
    save(tmp_path / "cameras" / "test" / "00dd.txt", rig)
    (tmp_path / "cameras" / "train" / "._00aa.txt").write_bytes(b"\0")
    for place in ("train/00aa", "train/00cc", "test/00dd"):
        save_frames(tmp_path / "frames" / place, rig)
    with (tmp_path / "cameras" / "train" / "00cc.txt").open("a") as file:
        file.write("1 2 3\n")
    with pytest.warns(UserWarning, match=r"scene left out: .*00cc\.txt, line 6"):
        scenes = read_captures(tmp_path)
    assert [scene.id for scene in scenes] == ["00aa", "00dd"]


def test_a_damaged_clip_among_good_ones_is_named(tmp_path, rig):
    for clip in ("00aa", "00bb"):
        save(tmp_path / f"{clip}.txt", rig)
        save_frames(tmp_path / clip, rig)
    (tmp_path / "00bb.txt").write_text(URL)
    with pytest.warns(UserWarning, match=r"scene left out: .*00bb\.txt: none of its 0 frames"):
        assert [scene.id for scene in read_captures(tmp_path)] == ["00aa"]


def test_frames_that_are_not_there_are_named(tmp_path, rig):
    save(tmp_path / "0c4c.txt", rig)
    save_frames(tmp_path / "0c4c", rig)
    (tmp_path / "0c4c" / f"{TIMES[1]}.png").unlink()
    with pytest.warns(UserWarning, match=f"1 listed photos are missing: {TIMES[1]}"):
        (scene,) = read_captures(tmp_path)
    rig.check(scene, [0, 2, 3])


def test_times_with_zeros_before_them(tmp_path, rig):
    save(tmp_path / "0c4c.txt", rig)
    for index, time in enumerate(TIMES):
        rig.photo(tmp_path / "0c4c" / f"{time:012d}.jpg", index)
    rig.check(read_captures(tmp_path)[0])


def test_distortion_is_taken_out(tmp_path, rig):
    lines = [line(rig, index).replace(" 0.0 0.0 ", " -0.05 0.01 ", 1) for index in range(4)]
    save(tmp_path / "0c4c.txt", rig, lines)
    save_frames(tmp_path / "0c4c", rig)
    lens = read_captures(tmp_path)[0].frames[0].lens
    assert lens is not None
    assert (lens.k1, lens.k2) == (-0.05, 0.01)


def change(rig, place: int, value: str) -> str:
    fields = line(rig, 2).split()
    fields[place] = value
    return " ".join(fields)


@pytest.mark.parametrize(
    ("place", "value", "fault"),
    [
        (0, "soon", "line 4: not a row of numbers"),
        (1, "-0.5", "line 4: a focal length that is not positive"),
        (3, "nan", "line 4: a number that is not finite"),
        (7, "7", "not a rotation"),
        (18, "", "line 4: 18 numbers"),
        (18, "1 2", "line 4: 20 numbers"),
        (0, str(TIMES[0]), "line 4: the time 9943267 comes twice"),
    ],
)
def test_a_bad_line_is_named(tmp_path, rig, place, value, fault):
    save(tmp_path / "0c4c.txt", rig, [line(rig, 0), line(rig, 1), change(rig, place, value)])
    save_frames(tmp_path / "0c4c", rig)
    with pytest.raises(SidestepError, match=rf"0c4c\.txt.*{fault}"):
        read_scene(tmp_path / "0c4c.txt")


@pytest.mark.parametrize("text", [b"", b"\xff\xfe", b"\n1 2 3\n"])
def test_a_file_that_is_none_of_cameras(tmp_path, rig, text):
    save_frames(tmp_path / "0c4c", rig)
    (tmp_path / "0c4c.txt").write_bytes(text)
    with pytest.raises(SidestepError, match="no scenes found"):
        read_captures(tmp_path)


@pytest.mark.parametrize("frames", ["nothing", "others"])
def test_no_frame_there_at_all(tmp_path, rig, frames):
    save(tmp_path / "0c4c.txt", rig)
    if frames == "others":
        rig.photo(tmp_path / "0c4c" / "0001.png")
    with pytest.raises(SidestepError, match=r"0c4c\.txt: no(ne| folder)"):
        read_captures(tmp_path / "0c4c.txt")


def test_points_in_front_at_their_depth(tmp_path, rig):
    save(tmp_path / "0c4c.txt", rig)
    save_frames(tmp_path / "0c4c", rig)
    centre = read_captures(tmp_path)[0].frames[3].camera.centre.numpy()
    assert np.allclose(centre, -rig.pose(3)[:3, :3].T @ rig.pose(3)[:3, 3], atol=1e-5)


def test_the_page_shows_how_to_keep_the_clips_of_a_video_on_one_side(tmp_path, rig, monkeypatch):
    clips = {f"{video}{clip}": f"https://example.org/{video}" for video in "abcdefghijkl" for clip in range(2)}
    for clip, address in clips.items():
        (tmp_path / "DATA").mkdir(exist_ok=True)
        (tmp_path / "DATA" / f"{clip}.txt").write_text(f"{address}\n{line(rig, 0)}\n")
        rig.photo(tmp_path / "DATA" / clip / f"{TIMES[0]}.png")
    page = Path(__file__).parents[2] / "docs" / "formats" / "realestate10k.md"
    program = page.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    exec(program, {})
    split_of = {clip: split for split, ids in read_split("by-video.json").items() for clip in ids}
    assert split_of.keys() == clips.keys()
    assert len(set(split_of.values())) > 1
    assert len({(clips[clip], split) for clip, split in split_of.items()}) == 12
