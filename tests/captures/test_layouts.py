"""Sets as they lie on people's disks: MVImgNet's, DL3DV's and MegaScenes' layouts, and what unpacking makes of them."""

import json
import os
import shutil
import tempfile
import unicodedata
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from sidestep.captures import Scene, layouts, read_captures
from sidestep.captures.inspection import inspect_captures
from sidestep.captures.reading import find_scenes
from sidestep.captures.sources import fingerprint
from sidestep.errors import SidestepError

NAMES = [f"{index:03d}.jpg" for index in range(1, 5)]


def save_model(folder: Path, rig, names: list[str], points: str = "") -> Path:
    """A COLMAP text model of the rig's cameras, by COLMAP's description of the format."""
    folder.mkdir(parents=True, exist_ok=True)
    (fx, _, cx), (_, fy, cy), _ = rig.intrinsics
    (folder / "cameras.txt").write_text(f"1 PINHOLE {rig.size[0]} {rig.size[1]} {fx} {fy} {cx} {cy}\n")
    lines = []
    for index, name in enumerate(names):
        pose = rig.pose(index)
        w = np.sqrt(1 + np.trace(pose[:3, :3])) / 2
        r = pose[:3, :3]
        x, y, z = np.array((r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1])) / (4 * w)
        lines += [f"{index + 1} {w} {x} {y} {z} {' '.join(map(str, pose[:3, 3]))} 1 {name}", ""]
    (folder / "images.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "points3D.txt").write_text(points)
    return folder


def save_scene(folder: Path, rig, model: str = "sparse/0") -> Path:
    names = [f"{index:03d}.jpg" for index in range(1, rig.count + 1)]
    save_model(folder / model, rig, names)
    for index, name in enumerate(names):
        rig.photo(folder / "images" / name, index)
    return folder


# MVImgNet


@pytest.mark.parametrize("above", ["", "mvi_00", "data/mvi_00"])
def test_archives_unpacked_into_folders_of_their_own(tmp_path, rig, above):
    for scene in ("36/1200b", "8/0a00", "36/0b"):
        save_scene(tmp_path / above / scene, rig)
    (tmp_path / "__MACOSX" / "36" / "0b" / "images").mkdir(parents=True)
    (tmp_path / "Thumbs.db").touch()
    scenes = read_captures(tmp_path)
    assert [scene.id for scene in scenes] == ["36/0b", "36/1200b", "8/0a00"]
    for scene in scenes:
        rig.check(scene)


def test_a_scene_that_two_archives_have_is_read_once(tmp_path, rig):
    for archive in ("mvi_00", "mvi_01"):
        save_scene(tmp_path / archive / "36" / "0b", rig)
    with pytest.warns(UserWarning, match=r"scene left out: .*mvi_01/36/0b: .*mvi_00/36/0b is called 36/0b, too"):
        assert [scene.id for scene in read_captures(tmp_path)] == ["36/0b"]


def test_scenes_that_colmap_could_not_solve_are_left_out(tmp_path, rig):
    save_scene(tmp_path / "8" / "good", rig)
    for name in ("no-sparse", "empty-sparse", "empty-model", "no-photo-solved", "damaged"):
        save_scene(tmp_path / "8" / name, rig)
    shutil.rmtree(tmp_path / "8" / "no-sparse" / "sparse")
    shutil.rmtree(tmp_path / "8" / "empty-sparse" / "sparse" / "0")
    for name in ("images", "cameras", "points3D"):
        (tmp_path / "8" / "empty-model" / "sparse" / "0" / f"{name}.txt").unlink()
    (tmp_path / "8" / "no-photo-solved" / "sparse" / "0" / "images.txt").write_text("# none\n")
    (tmp_path / "8" / "damaged" / "sparse" / "0" / "images.bin").write_bytes(b"\x07")
    with pytest.warns(UserWarning, match="scene left out") as warned:
        assert [scene.id for scene in read_captures(tmp_path)] == ["8/good"]
    told = sorted(str(warning.message) for warning in warned)
    assert len(told) == 5
    for name, message in zip(
        ("damaged", "empty-model", "empty-sparse", "no-photo-solved", "no-sparse"), told, strict=True
    ):
        assert f"8/{name}" in message


@pytest.mark.filterwarnings("ignore:another model")
def test_of_several_models_the_one_with_the_most_photos_is_read(tmp_path, rig):
    folder = save_scene(tmp_path / "scene", rig, "sparse/10")
    save_model(folder / "sparse" / "2", rig, NAMES[:2])
    save_model(folder / "sparse" / "9", rig, [f"gone{index}.jpg" for index in range(9)])
    rig.check(read_captures(folder)[0])
    (folder / "sparse" / "10" / "cameras.txt").write_text("nonsense\n")
    with pytest.warns(UserWarning, match=r"another model of the scene is read instead: .*sparse/10/cameras\.txt"):
        (scene,) = read_captures(folder)
    rig.check(scene, [0, 1])


def save_mask(path: Path, column: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros((48, 64), np.uint8)
    mask[:, :column] = 255
    Image.fromarray(mask).save(path)


@pytest.mark.parametrize(
    "place", ["8/0a/masks", "8/0a/mask", "masks/8/0a", "mask/8/0a", "MVImgNet_mask/8/0a", "8/0a"], ids=str
)
def test_masks_beside_the_photos_and_as_they_are_distributed(tmp_path, rig, place):
    save_scene(tmp_path / "8" / "0a", rig)
    for index, name in enumerate(NAMES[:3]):
        save_mask(tmp_path / place / f"{name}.png", 5 * index + 3)
    (scene,) = read_captures(tmp_path)
    found = [frame.load_mask() for frame in scene.frames]
    assert [None if mask is None else int(mask[0].sum()) for mask in found] == [3, 8, 13, None]


def test_masks_that_are_distributed_apart_are_not_searched_for_scenes(tmp_path, rig, monkeypatch):
    save_scene(tmp_path / "8" / "0a", rig)
    save_scene(tmp_path / "mask" / "0b", rig)
    save_mask(tmp_path / "masks" / "8" / "0a" / "001.jpg.png", 3)
    looked: list[str] = []
    listing = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: looked.append(Path(path).name) or listing(path))
    assert [folder.name for folder, _ in find_scenes(tmp_path)] == ["0a", "0b"]
    assert sorted(looked) == sorted([tmp_path.name, "8", "mask", "masks"])


def test_what_systems_leave_in_folders_is_no_photo(tmp_path, rig):
    folder = save_scene(tmp_path / "scene", rig)
    for name in ("._001.jpg", ".DS_Store", "Thumbs.db", "desktop.ini"):
        (folder / "images" / name).write_bytes(b"\0\5\26\7")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rig.check(read_captures(folder)[0])


def test_photos_whose_names_changed_their_case(tmp_path, rig):
    folder = save_scene(tmp_path / "scene", rig)
    (folder / "images" / "002.jpg").rename(folder / "images" / "002.JPG")
    (scene,) = read_captures(folder)
    rig.check(scene)
    assert scene.frames[1].path.name == "002.JPG"
    assert scene.frames[1].name == "002.jpg"


@pytest.mark.filterwarnings("ignore:scene scene")
def test_two_photos_that_differ_in_case_alone_are_not_confused(tmp_path, rig):
    folder = save_scene(tmp_path / "scene", rig)
    for name in ("002.JPG", "002.Jpg"):
        shutil.copy(folder / "images" / "002.jpg", folder / "images" / name)
    (folder / "images" / "002.jpg").unlink()
    assert read_captures(folder)[0].missing == ("002.jpg",)


def test_landscape_and_portrait_in_one_scene(tmp_path, rig):
    folder = save_scene(tmp_path / "scene", rig)
    rig.photo(folder / "images" / "upright.jpg", 0, (48, 64))
    with (folder / "sparse/0/cameras.txt").open("a") as file:
        file.write("2 PINHOLE 48 64 70 72 22 33\n")
    with (folder / "sparse/0/images.txt").open("a") as file:
        file.write("9 1 0 0 0 0 0 4 2 upright.jpg\n\n")
    (scene,) = read_captures(folder)
    assert [(frame.camera.width, frame.camera.height) for frame in scene.frames] == [(64, 48)] * 4 + [(48, 64)]
    assert scene.frames[-1].load().size == (48, 64)


@pytest.mark.parametrize("size", [(32, 24), (96, 72), (21, 16)])
def test_photos_made_smaller_or_larger_since(tmp_path, rig, size):
    folder = save_scene(tmp_path / "scene", rig)
    for index, name in enumerate(NAMES):
        rig.photo(folder / "images" / name, index, size)
    rig.check(read_captures(folder)[0])


def test_photos_turned_by_exif(tmp_path, rig):
    folder = save_scene(tmp_path / "scene", rig)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    for index, name in enumerate(NAMES):
        rig.photo(folder / "images" / name, index, exif=exif)
    for index, frame in enumerate(read_captures(folder)[0].frames):
        assert frame.load().size == (48, 64)
        pixels = frame.camera.to("cpu", torch.float64).project(torch.from_numpy(rig.points))[0].numpy()
        stored = rig.pixels(index)  # turned clockwise, a stored pixel (u, v) is shown at (height - v, u)
        assert np.abs(pixels - np.stack((48 - stored[:, 1], stored[:, 0]), axis=1)).max() < 1e-3


# DL3DV


HASH = "032dee9fb0a8bc1b90871dc5fe950080d0bcd3caf166447f44e60ca50ac04ec7"


def save_transforms(folder: Path, rig, copies: dict[str, tuple[int, int]], **more) -> Path:
    """nerfstudio's transforms.json of the rig's cameras at four times the size, with copies of the photos."""
    (fx, _, cx), (_, fy, cy), _ = rig.intrinsics * 4
    frames = []
    for index in range(rig.count):
        pose = np.linalg.inv(rig.pose(index)) @ np.diag((1, -1, -1, 1))
        frames.append(
            {"file_path": f"images/frame_{index + 1:05d}.png", "transform_matrix": pose.tolist(), "colmap_im_id": 1}
        )
        for copy, size in copies.items():
            rig.photo(folder / copy / f"frame_{index + 1:05d}.png", index, size)
    lens = {"w": rig.size[0] * 4, "h": rig.size[1] * 4, "fl_x": fx, "fl_y": fy, "cx": cx, "cy": cy}
    lens |= {"camera_model": "OPENCV", "k1": 0.0, "k2": 0.0, "p1": 0.0, "p2": 0.0}
    turn = [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, -1, 0]]
    (folder / "transforms.json").write_text(json.dumps({**lens, "applied_transform": turn, "frames": frames, **more}))
    return folder


@pytest.mark.parametrize(
    "place", [f"1K/{HASH}", f"1K/{HASH}/{HASH}", f"{HASH}/nerfstudio", f"10K/{HASH}/nerfstudio"], ids=range(4)
)
def test_smaller_copies_of_the_photos_stand_for_them(tmp_path, rig, place):
    save_transforms(tmp_path / place, rig, {"images_4": (64, 48), "images_8": (32, 24)})
    (scene,) = read_captures(tmp_path)
    assert (scene.id, scene.missing) == (HASH, ())
    rig.check(scene)
    assert {frame.path.parent.name for frame in scene.frames} == {"images_4"}


def test_the_benchmarks_two_layouts_of_a_scene_are_one_scene(tmp_path, rig):
    save_transforms(tmp_path / HASH / "nerfstudio", rig, {"images_8": (32, 24)})
    save_model(tmp_path / HASH / "gaussian_splat" / "sparse" / "0", rig, NAMES)
    for given in (tmp_path, tmp_path / HASH):
        (scene,) = read_captures(given)
        assert scene.id == HASH
        rig.check(scene)


def test_3d_gaussian_splattings_layout_alone(tmp_path, rig):
    folder = tmp_path / HASH / "gaussian_splat"
    save_model(folder / "sparse" / "0", rig, NAMES, "1 0.5 0.5 0.5 9 9 9 0\n")
    for index, name in enumerate(NAMES):
        rig.photo(folder / "images_2" / name, index, (32, 24))
    (scene,) = read_captures(tmp_path)
    rig.check(scene)
    assert (scene.id, len(scene.points)) == (HASH, 1)


@pytest.mark.parametrize("inside", ["nerfstudio", "nerfstudio/transforms.json", "gaussian_splat"])
def test_one_of_the_benchmarks_layouts_is_called_by_the_hash(tmp_path, rig, inside):
    save_transforms(tmp_path / HASH / "nerfstudio", rig, {"images_8": (32, 24)})
    save_scene(tmp_path / HASH / "gaussian_splat", rig)
    assert [scene.id for scene in read_captures(tmp_path / HASH / inside)] == [HASH]
    assert layouts.scene_name(tmp_path / HASH / inside) == HASH


def test_scenes_that_are_called_as_the_benchmarks_layouts_are_scenes(tmp_path, rig):
    for name in ("nerfstudio", "phone"):
        save_scene(tmp_path / "captures" / name, rig)
    assert [scene.id for scene in read_captures(tmp_path / "captures")] == ["nerfstudio", "phone"]


def test_scenes_unpacked_both_ways_are_all_read(tmp_path, rig):
    for place in ("1K/aa", "1K/bb/bb", "cc"):
        save_transforms(tmp_path / place, rig, {"images_8": (32, 24)})
    assert [scene.id for scene in read_captures(tmp_path)] == ["aa", "bb", "cc"]


def test_nerfstudios_cache_of_colmap(tmp_path, rig):
    folder = save_scene(tmp_path / "1K" / HASH, rig, "colmap/sparse/0")
    rig.check(read_captures(tmp_path)[0])
    assert find_scenes(tmp_path) == [(folder, None)]


def test_a_colmap_with_photos_of_its_own_is_a_scene(tmp_path, rig):
    save_scene(tmp_path / "fox" / "colmap", rig)
    assert [scene.id for scene in read_captures(tmp_path / "fox")] == ["colmap"]
    save_scene(tmp_path / "fox" / "other", rig)
    assert [scene.id for scene in read_captures(tmp_path / "fox")] == ["colmap", "other"]


# MegaScenes


def save_megascenes(root: Path, rig, number: str, names: list[str], photos: int = 4) -> None:
    save_model(root / "reconstruct" / number / "sparses" / "1", rig, names)
    save_model(root / "reconstruct" / number / "sparses" / "0", rig, names[:1])
    for index, name in enumerate(names[:photos]):
        rig.photo(root / "images" / number / name, index)


COMMONS = [f"commons/Façade de l'Étoile {index}/0/pictures/Photo {index} (été).JPG" for index in range(4)]


@pytest.mark.parametrize("given", ["", "reconstruct", "reconstruct/001", "reconstruct/001/234"])
def test_scenes_and_photos_in_two_trees(tmp_path, rig, given):
    save_megascenes(tmp_path, rig, "001/234", COMMONS)
    (tmp_path / "metadata").mkdir()
    (scene,) = read_captures(tmp_path / given)
    assert (scene.id, scene.missing) == ("001234", ())
    rig.check(scene)


def test_scenes_of_one_number_in_two_folders_are_two(tmp_path, rig):
    save_megascenes(tmp_path, rig, "001/234", COMMONS)
    save_megascenes(tmp_path, rig, "458/234", COMMONS)
    assert [scene.id for scene in read_captures(tmp_path)] == ["001234", "458234"]


def test_names_in_another_unicode_form(tmp_path, rig):
    names = [unicodedata.normalize("NFC", name) for name in COMMONS]
    save_megascenes(tmp_path, rig, "001/234", names, 0)
    for index, name in enumerate(names):
        rig.photo(tmp_path / "images" / "001" / "234" / unicodedata.normalize("NFD", name), index)
    rig.check(read_captures(tmp_path)[0])


def test_photos_in_folders_of_a_scenes_own_images(tmp_path, rig):
    save_model(tmp_path / "Arc de Triomphe" / "sparse" / "0", rig, COMMONS)
    for index, name in enumerate(COMMONS):
        rig.photo(tmp_path / "Arc de Triomphe" / "images" / name, index)
    (scene,) = read_captures(tmp_path)
    assert scene.id == "Arc de Triomphe"
    rig.check(scene)


def test_a_folder_near_the_root(monkeypatch, tmp_path):
    monkeypatch.setattr(layouts, "read_colmap", lambda folder, *given: Scene(folder.name, None, ()))
    assert layouts._read_megascenes(Path(tmp_path.anchor, "7", "234"), None).name == "7234"


# what is none of them


def test_a_tree_without_scenes_is_searched_so_far_and_no_further(tmp_path, rig):
    save_scene(tmp_path / "a" / "b" / "c" / "d" / "scene", rig)
    with pytest.raises(SidestepError, match="no scenes found"):
        read_captures(tmp_path)
    assert len(read_captures(tmp_path / "a")) == 1


@pytest.mark.parametrize("note", ["images.txt", "sofa.txt"])
@pytest.mark.parametrize("text", ["1 chair\n2 sofa\n", "https://example.org/sofa (CC BY 4.0)\nhttps://example.org/b\n"])
def test_notes_beside_scenes_are_no_cameras(tmp_path, rig, note, text):
    for name in ("chair", "sofa"):
        save_scene(tmp_path / name, rig)
    (tmp_path / note).write_text(text)
    assert [scene.id for scene in read_captures(tmp_path)] == ["chair", "sofa"]


def test_a_list_of_addresses_in_a_scene_is_no_file_of_cameras(tmp_path, rig):
    folder = save_scene(tmp_path / "sofa", rig)
    (folder / "images.txt").write_text("https://example.org/1.jpg\nhttps://example.org/2.jpg\n")
    rig.check(read_captures(folder)[0])


def test_a_link_back_is_not_followed(tmp_path, rig):
    save_scene(tmp_path / "set" / "8" / "0a", rig)
    (tmp_path / "set" / "all").symlink_to(tmp_path / "set", target_is_directory=True)
    assert [scene.id for scene in read_captures(tmp_path / "set")] == ["8/0a"]


def test_loose_files_are_not_looked_at_one_by_one(tmp_path, rig, monkeypatch):
    save_scene(tmp_path / "8" / "0a", rig)
    for index in range(50):
        (tmp_path / f"a{index}.jpg").touch()
        (tmp_path / f"a{index}.txt").write_text("a caption")
    looked: list[Path] = []
    stat, opened = Path.stat, Path.open
    monkeypatch.setattr(Path, "stat", lambda path, **options: looked.append(path) or stat(path, **options))
    monkeypatch.setattr(Path, "open", lambda path, *given: looked.append(path) or opened(path, *given))
    assert find_scenes(tmp_path) == [(tmp_path / "8" / "0a", "8")]
    assert not [path for path in looked if path.parent == tmp_path and path.name.startswith("a")]


@pytest.mark.parametrize("inside", [".", "images/.."])
def test_the_folder_that_one_is_in(tmp_path, rig, monkeypatch, inside):
    save_megascenes(tmp_path, rig, "001/234", COMMONS)
    (tmp_path / "reconstruct" / "001" / "234" / "images").mkdir()
    monkeypatch.chdir(tmp_path / "reconstruct" / "001" / "234")
    (scene,) = read_captures(inside)
    assert scene.id == "001234"
    rig.check(scene)


@pytest.fixture
def unprivileged(furniture) -> Iterator[Path]:
    """A folder, for a test that is not run with the rights of root, who may read everything."""
    if os.name != "posix":
        pytest.skip("folders have no such rights here")
    read_captures(furniture)  # imports what others may not be allowed to
    with tempfile.TemporaryDirectory() as name:
        folder, user = Path(name), os.geteuid()
        folder.chmod(0o777)
        if user == 0:
            os.seteuid(65534)
        try:
            yield folder
        finally:
            for path in folder.iterdir():
                path.chmod(0o700)
            os.seteuid(user)


def test_a_folder_that_may_not_be_read_is_passed_over(unprivileged, rig):
    save_scene(unprivileged / "8" / "0a", rig)
    (unprivileged / "lost+found").mkdir(mode=0)
    with pytest.warns(UserWarning, match=r"folder passed over: .*lost\+found: cannot be read"):
        assert [scene.id for scene in read_captures(unprivileged)] == ["8/0a"]
    for read in (read_captures, fingerprint):
        with pytest.raises(SidestepError, match=r"lost\+found.*: cannot be read"):
            read(unprivileged / "lost+found")


def test_a_scene_of_which_a_part_may_not_be_read_is_left_out(unprivileged, rig):
    save_scene(unprivileged / "0a", rig)
    (save_scene(unprivileged / "0b", rig) / "images").chmod(0)
    try:
        with pytest.warns(UserWarning, match=r"scene left out: .*0b/images.*: cannot be read"):
            assert [scene.id for scene in read_captures(unprivileged)] == ["0a"]
    finally:
        (unprivileged / "0b" / "images").chmod(0o700)


# what an inspection says of them


def kinds(path: Path) -> list[tuple[str, str]]:
    return [(finding.kind, finding.scene) for finding in inspect_captures(path, photos=False).findings]


def test_inspecting_unpacked_archives(tmp_path, rig):
    rig.count = 12
    for scene in ("mvi_00/8/0a", "mvi_01/8/0a", "mvi_01/9/0b"):
        save_scene(tmp_path / scene, rig)
    save_model(tmp_path / "mvi_01/9/0b/sparse/1", rig, ["001.jpg"])
    (tmp_path / "mvi_01" / "masks" / "9").mkdir(parents=True)
    (tmp_path / "notes").mkdir()
    found = [item for item in kinds(tmp_path) if item[0] not in ("no-points", "same-model")]
    assert found == [("same-name", "8/0a"), ("no-scene", "notes"), ("several-models", "9/0b")]


def test_inspecting_two_trees_says_nothing_of_the_other_folders(tmp_path, rig):
    rig.count = 12
    save_megascenes(tmp_path, rig, "001/234", [f"commons/{index:02d}.jpg" for index in range(12)], 12)
    (tmp_path / "metadata").mkdir()
    assert kinds(tmp_path) == [("no-points", "001234"), ("several-models", "001234")]


def test_inspecting_names_what_cannot_be_read_as_it_would_be_called(tmp_path, rig):
    save_megascenes(tmp_path, rig, "001/234", COMMONS, 0)
    assert kinds(tmp_path) == [("unreadable", "001234")]
