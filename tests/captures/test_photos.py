"""Photos and videos become scenes: of a drawn corner whose cameras are known, and of the shared captures' fox."""

import json
import shutil
import struct
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import ExifTags, Image, ImageFilter

from sidestep.cameras import Camera, vertical
from sidestep.captures import read_captures
from sidestep.captures.photos import import_photos
from sidestep.captures.reconstruction import Found, Photo, Progress, _has_found, _undistort, pairs
from sidestep.captures.sharpness import sharp_frames
from sidestep.captures.sources import collect
from sidestep.errors import SidestepError

pytest.importorskip("pycolmap", minversion="4")
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(Path(__file__).parent)
    patch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    import corner
    from import_photos import errors  # degrees, and percent of the spread
FOX = Path(__file__).parents[3] / "shared/data/fox"


def write_photos(folder: Path, cameras: list[Camera], seed: int = 0) -> None:
    folder.mkdir()
    exif = Image.Exif()
    diagonal = (
        np.hypot(36, 24) * min(cameras[0].width, cameras[0].height) / np.hypot(cameras[0].width, cameras[0].height)
    )
    focal = round(diagonal / 2 / np.tan(np.radians(corner.FOV / 2)))
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.FocalLengthIn35mmFilm] = focal
    for number, camera in enumerate(cameras, start=1):
        corner.photograph(camera, seed).save(folder / f"IMG_{number}.jpg", quality=95, exif=exif)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight photos of the corner, one of another thing, and a damaged one."""
    folder = tmp_path_factory.mktemp("source") / "photos"
    write_photos(folder, corner.cameras(8, 240, 180))
    corner.photograph(corner.cameras(1, 240, 180)[0], seed=7).save(folder / "IMG_9.png")
    (folder / "IMG_10.jpg").write_bytes((folder / "IMG_1.jpg").read_bytes()[:3000])
    return folder


KILLED = """
import os, signal, sys
from sidestep.captures.photos import import_photos
def progress(stage, done, total):
    if stage == sys.argv[3]:
        os.kill(os.getpid(), signal.SIGKILL)
import_photos(sys.argv[1], sys.argv[2], progress=progress)
"""


def killed_then_resumed(source: Path, folder: Path, stage: str) -> None:
    command = [sys.executable, "-c", KILLED, str(source), str(folder), stage]
    assert subprocess.run(command, capture_output=True, check=False).returncode == -9
    assert not folder.exists()
    resume(source, folder)


def resume(source: Path, folder: Path) -> None:
    told: list[tuple[str, int, int]] = []
    import_photos(source, folder, progress=lambda *state: told.append(state))
    assert "photos" not in {stage for stage, _, _ in told}
    assert {done for stage, done, _ in told if stage == "features"} <= {9}


@pytest.fixture(scope="module")
def scene(source: Path) -> Path:
    """Made by a run that was interrupted after the features, and the same call again."""
    folder = source.parent / "captures" / "corner"

    def interrupt(stage: str, done: int, total: int) -> None:
        if stage == "matching":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), pytest.warns(UserWarning, match=r"IMG_10\.jpg: the image is damaged"):
        import_photos(source, folder, progress=interrupt)
    resume(source, folder)
    return folder


def test_the_cameras_are_where_they_were(scene: Path) -> None:
    (found,) = read_captures(scene)
    assert [frame.name for frame in found.frames] == [f"{number:03d}.jpg" for number in range(8)]
    turned, moved = errors([frame.camera for frame in found.frames], corner.cameras(8))
    assert turned.max() < 0.5
    assert moved.max() < 2.0
    assert found.points is not None
    assert len(found.points) > 300
    up = vertical(Camera.stack([frame.camera for frame in found.frames]))
    assert up is not None
    assert np.allclose(up.numpy(), (0.0, -1.0, 0.0), atol=1e-3)
    for frame in found.frames:
        assert frame.lens is None
        assert frame.load().size == (frame.camera.width, frame.camera.height)


def offs(scene: Path) -> np.ndarray:
    """How far points are from where pinhole cameras saw them, in pixels."""
    import pycolmap

    model = pycolmap.Reconstruction(scene / "sparse" / "0")
    assert {camera.model.name for camera in model.cameras.values()} == {"PINHOLE"}
    distances = [
        np.linalg.norm(image.project_point(model.points3D[seen.point3D_id].xyz) - seen.xy)
        for image in model.images.values()
        for seen in image.get_observation_points2D()
    ]
    return np.array(distances)


def test_points_are_where_the_photos_show_them(scene: Path) -> None:
    """The observations are of the written photos, so that what trains on them need not undistort."""
    assert offs(scene).mean() < 0.5


def test_a_lens_that_bulges_makes_photos_no_larger(tmp_path: Path) -> None:
    import pycolmap

    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_frames_per_rig = 1, 3
    options.camera_width, options.camera_height = 320, 240
    options.camera_params = [240.0, 160.0, 120.0, -0.2]
    model = pycolmap.synthesize_dataset(options)
    for folder in ("model", "photos"):
        (tmp_path / folder).mkdir()
    model.write(tmp_path / "model")
    photos = [Photo(image.name, "", 320, 240, "", None) for image in model.images.values()]
    for photo, picture in zip(photos, noise(3), strict=True):
        picture.resize((320, 240)).save(tmp_path / "photos" / photo.name)
    _undistort(tmp_path, photos)
    for path in (tmp_path / "scene" / "images").iterdir():
        assert max(Image.open(path).size) <= 320
    assert offs(tmp_path / "scene").max() < 1e-3


def test_the_report_says_what_came_of_each_photo(scene: Path, source: Path) -> None:
    report = json.loads((scene / "import.json").read_text(encoding="utf-8"))
    assert (report["registered"], report["total"]) == (8, 10)
    assert report["photos"][7] == {"name": "007.jpg", "original": "IMG_8.jpg", "reason": None}
    *_, other, damaged = report["photos"]
    assert (other["original"], other["reason"]) == ("IMG_9.png", "overlaps with no other photo")
    assert (damaged["original"], damaged["reason"]) == ("IMG_10.jpg", "damaged")
    assert report["mean_reprojection_error"] < 0.5
    (lens,) = report["lenses"]
    assert lens["photos"] == 8
    assert abs(lens["fov"] - corner.FOV) < 1.5
    assert abs(lens["exif_fov"] - corner.FOV) < 2.0
    assert "corner" in (scene / "import.html").read_text(encoding="utf-8")
    assert [path.name for path in scene.parent.iterdir()] == ["corner"]


def test_a_scene_that_is_there_is_kept_and_nothing_else_is_overwritten(
    scene: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sidestep.captures.photos.reconstruct", None)
    left = scene.with_name(".corner.import")  # by a run that was killed between its last two steps
    (left / "photos").mkdir(parents=True)
    assert import_photos(source, scene).placed == 8
    assert [path.name for path in scene.parent.iterdir()] == ["corner"]
    copy = tmp_path / "copy"
    shutil.copytree(scene, copy)
    other = tmp_path / "other"
    shutil.copytree(source, other, copy_function=shutil.copyfile)
    with pytest.raises(SidestepError, match="made from other photos"):
        import_photos(other, copy)
    (copy / "notes.txt").write_text("mine")
    with pytest.raises(SidestepError, match=r"notes\.txt, which this command did not write"):
        import_photos(source, copy)


@pytest.mark.parametrize("report", ["{}", "{", '{"settings": {"source": "x"}, "photos": 3}'])
def test_an_import_json_that_is_not_ours_is_left_alone(source: Path, tmp_path: Path, report: str) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "import.json").write_text(report)
    with pytest.raises(SidestepError, match=r"out: holds an import\.json that this command did not write"):
        import_photos(source, folder)
    assert (folder / "import.json").read_text() == report


def test_a_folder_that_cannot_be_replaced_is_refused_before_the_work(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(SidestepError, match=r"\.: cannot be replaced, being in use or mounted; name a folder in it"):
        import_photos(source, ".", progress=unexpected)


def unexpected(stage: str, done: int, total: int) -> None:
    raise AssertionError("work was begun")


def test_a_link_to_a_folder_stays_one(
    scene: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reconstruct(work: Path, progress: Progress) -> Found:
        count = len(json.loads((work / "photos.json").read_text(encoding="utf-8"))["photos"])
        shutil.copytree(scene, work / "scene")
        matches = [(100, 0)] * count
        return Found([900] * count, matches, matches, [True] * count, [count], 9, count, 9, 3.0, 0.5, 9.0, {})

    monkeypatch.setattr("sidestep.captures.photos.reconstruct", reconstruct)
    (tmp_path / "disk" / "corner").mkdir(parents=True)
    (tmp_path / "corner").symlink_to(tmp_path / "disk" / "corner")
    with pytest.warns(UserWarning, match="damaged"):
        import_photos(source, tmp_path / "corner")
    assert (tmp_path / "corner").is_symlink()
    assert (tmp_path / "disk" / "corner" / "import.json").is_file()
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["corner"]


def test_two_imports_into_one_folder_do_not_meet(source: Path, tmp_path: Path) -> None:
    def begin_another(stage: str, done: int, total: int) -> None:
        with pytest.raises(SidestepError, match="out: another import into it is running"):
            import_photos(source, tmp_path / "out", frames=4, progress=unexpected)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_photos(source, tmp_path / "out", progress=begin_another)
    assert [path.name for path in tmp_path.iterdir()] == [".out.import"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["matching", "mapping", "undistorting"])
def test_a_killed_run_ends_as_one_that_was_not(scene: Path, source: Path, tmp_path: Path, stage: str) -> None:
    folder = tmp_path / "again"
    killed_then_resumed(source, folder, stage)
    with pytest.warns(UserWarning, match=r"IMG_10\.jpg: the image is damaged"):
        import_photos(source, tmp_path / "whole")
    for other in (folder, tmp_path / "whole"):
        (first,), (again,) = read_captures(scene), read_captures(other)
        for one, two in zip(first.frames, again.frames, strict=True):
            assert np.allclose(one.camera.world_to_camera, two.camera.world_to_camera, atol=1e-5)
            assert np.array_equal(np.asarray(one.load()), np.asarray(two.load()))


def test_damaged_notes_of_a_killed_import_are_made_anew(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed, found = tmp_path / ".out.import" / "photos.json", tmp_path / ".out.import" / "found.json"
    seen: list[str] = []

    def killed(work: Path, progress: Progress) -> Found:
        seen.append(listed.read_text())
        raise KeyboardInterrupt

    monkeypatch.setattr("sidestep.captures.photos.reconstruct", killed)
    for _ in range(2):
        with pytest.warns(UserWarning, match="damaged"), pytest.raises(KeyboardInterrupt):
            import_photos(source, tmp_path / "out")
        listed.write_text(seen[0][:-40])
    assert seen[0] == seen[1]
    whole = Found([900], [(0, 0)], [(0, 0)], [True], [1], 0, 0, 0, 0.0, 0.0, 0.0, {})
    for text, there in ((json.dumps(asdict(whole)), True), (json.dumps(asdict(whole))[:-9], False), ("{}", False)):
        found.write_text(text)
        assert _has_found(found.parent) is there


def test_a_refused_import_leaves_nothing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = Found([900] * 9, [(0, 0)] * 9, [(0, 0)] * 9, [False] * 9, [], 0, 0, 0, 0.0, 0.0, 0.0, {})
    monkeypatch.setattr("sidestep.captures.photos.reconstruct", lambda work, progress: nothing)
    with (
        pytest.warns(UserWarning, match="damaged"),
        pytest.raises(SidestepError, match="only 0 of 9 photos can be put together, because they do not overlap"),
    ):
        import_photos(source, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_photos_of_different_things_are_refused(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for seed in range(3):
        corner.photograph(corner.cameras(3, 160, 120)[1], seed).save(tmp_path / "photos" / f"{seed}.png")
    with pytest.raises(SidestepError, match="only 0 of 3 photos can be put together, because they do not overlap"):
        import_photos(tmp_path / "photos", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


@pytest.mark.slow
def test_a_camera_that_only_turned_is_refused(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", corner.cameras(4, 320, 240, turn_only=True))
    with pytest.raises(SidestepError, match="show no depth, as if the camera had only turned"):
        import_photos(tmp_path / "photos", tmp_path / "out")


def test_what_holds_no_scene_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos, captures = tmp_path / "photos", tmp_path / "captures"
    photos.mkdir()
    with pytest.raises(SidestepError, match="no photos in it"):
        import_photos(photos, captures / "out")
    for name in ("IMG_7.HEIC", "IMG_8.dng"):
        (photos / name).write_bytes(b"what a phone wrote")
    with pytest.raises(SidestepError, match=r"but 2 that cannot be read, such as IMG_7\.HEIC: save them as JPEG"):
        import_photos(photos, captures / "out")
    picture = corner.photograph(corner.cameras(1, 64, 48)[0])
    for number in range(4):
        picture.save(photos / f"{number}.png")
    with (
        pytest.warns(UserWarning, match=r"2 photos left out: IMG_7\.HEIC, IMG_8\.dng; save them as JPEG"),
        pytest.raises(SidestepError, match="1 usable photos, 3 the same, 2 of a kind that is not read"),
    ):
        import_photos(photos, captures / "out")
    (tmp_path / "a.mp4").write_bytes(b"no video")
    with pytest.raises(SidestepError, match=r"a\.mp4: cannot be read as a video"):
        import_photos(tmp_path / "a.mp4", captures / "out")
    with pytest.raises(SidestepError, match="no such file or folder"):
        import_photos(tmp_path / "b.mp4", captures / "out")
    assert not list(captures.iterdir())
    monkeypatch.setitem(sys.modules, "pycolmap", None)
    with pytest.raises(SidestepError, match=r"pip install 'sidestep\[captures\]'"):
        import_photos(photos, captures / "out")


def write_video(path: Path, pictures: list[Image.Image]) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height = pictures[0].size
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "8"}
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode())


def blurred_but_for_one_in_four(cameras: list[Camera]) -> list[Image.Image]:
    sharp = [corner.photograph(camera) for camera in cameras]
    soft = ImageFilter.GaussianBlur(1.5)
    return [picture if place == 1 else picture.filter(soft) for picture in sharp for place in range(4)]


def test_the_sharp_frames_of_a_video_are_taken_upright(tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    write_video(path, blurred_but_for_one_in_four(corner.cameras(5, 160, 120)))
    taken = list(sharp_frames(path, 5))
    assert [time for time, _ in taken] == ["0.10 s", "0.50 s", "0.90 s", "1.30 s", "1.70 s"]
    assert len(list(sharp_frames(path, 100))) == 20

    data = path.read_bytes()
    matrix = data.index(b"tkhd") + 44
    turned = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)  # as a phone held upright has it
    path.write_bytes(data[:matrix] + turned + data[matrix + 36 :])
    upright = next(iter(sharp_frames(path, 5)))[1]
    assert np.array_equal(np.asarray(upright), np.rot90(np.asarray(taken[0][1]), -1))


def noise(count: int) -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 255, (48, 64, 3), dtype=np.uint8)) for _ in range(count)]


def test_a_damaged_frame_of_a_video_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    write_video(path, noise(20))
    with av.open(str(path)) as container:
        packet = list(container.demux(video=0))[10]
        place, size = packet.pos, packet.size
    data = path.read_bytes()
    path.write_bytes(data[:place] + b"\xff" * size + data[place + size :])
    with pytest.warns(UserWarning, match=r"video\.mp4: frames that are damaged and were passed over: 1"):
        assert len(list(sharp_frames(path, 100))) == 19


def test_frames_without_times_have_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "video.h264"
    pictures = noise(4)
    write_video(path, [pictures[0], pictures[0], *pictures[1:]])
    (tmp_path / "photos").mkdir()
    photos, left_out = collect(path, tmp_path / "photos", None, 1600, lambda done, total: None)
    assert [photo.original for photo in photos] == ["frame 0", "frame 2", "frame 3", "frame 4"]
    assert left_out == [("frame 1", "the same picture as frame 0")]


def test_names_of_more_than_a_thousand_photos_sort_in_their_order(tmp_path: Path) -> None:
    write_video(tmp_path / "video.mp4", noise(3))
    for count, last in ((1000, "002.jpg"), (1001, "0002.jpg")):
        (tmp_path / str(count)).mkdir()
        photos, _ = collect(tmp_path / "video.mp4", tmp_path / str(count), count, 1600, lambda done, total: None)
        assert photos[2].name == last


@pytest.mark.slow
def test_a_video_becomes_a_scene(tmp_path: Path) -> None:
    cameras = corner.cameras(10, 320, 240)
    write_video(tmp_path / "video.mp4", blurred_but_for_one_in_four(cameras))
    result = import_photos(tmp_path / "video.mp4", tmp_path / "out", frames=10)
    assert result.photos[2].original == "0.90 s"
    (scene,) = read_captures(tmp_path / "out")
    turned, moved = errors([frame.camera for frame in scene.frames], cameras)
    assert turned.max() < 0.5
    assert moved.max() < 2.0


def test_many_photos_are_matched_with_their_neighbours_alone() -> None:
    assert len(list(pairs(50))) == 50 * 49 / 2
    found = set(pairs(400))
    assert len(found) < 400 * 16
    assert {(7, 8), (7, 17), (7, 23), (7, 263)} < found
    assert (7, 18) not in found


@pytest.mark.slow
@pytest.mark.skipif(not FOX.is_dir(), reason="needs the shared captures")
def test_the_foxs_cameras_are_found_again(tmp_path: Path) -> None:
    result = import_photos(FOX / "images", tmp_path / "fox")
    assert result.placed >= 45
    (given,), (found,) = read_captures(FOX), read_captures(tmp_path / "fox")
    original = {photo.name: photo.original for photo in result.photos}
    by_name = {frame.name: frame.camera for frame in given.frames}
    turned, moved = errors(
        [frame.camera for frame in found.frames], [by_name[original[frame.name] or ""] for frame in found.frames]
    )
    assert np.median(turned) < 1.0
    assert np.median(moved) < 2.0
