import shutil
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from sidestep.cameras import Camera
from sidestep.captures.colmap import read_colmap, read_lenses, read_points, read_poses, write_colmap
from sidestep.captures.points import starting_points
from sidestep.errors import SidestepError

MODELS = {
    "SIMPLE_PINHOLE": [60, 31, 25],
    "PINHOLE": [60, 61, 31, 25],
    "SIMPLE_RADIAL": [60, 31, 25, 0.05],
    "RADIAL": [60, 31, 25, 0.05, -0.02],
    "OPENCV": [60, 61, 31, 25, 0.05, -0.02, 0.001, -0.002],
}


def synthetic(model: str, params: list[float]):
    """A COLMAP reconstruction with two cameras, six photos, points and observations."""
    pycolmap = pytest.importorskip("pycolmap")
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_cameras_per_rig, options.num_frames_per_rig = 2, 1, 3
    options.num_points3D = 40
    options.camera_model_id = getattr(pycolmap.CameraModelId, model)
    options.camera_width, options.camera_height, options.camera_params = 64, 48, params
    return pycolmap.synthesize_dataset(options)


def save_scene(folder, reconstruction, binary: bool):
    model = folder / "sparse" / "0"
    model.mkdir(parents=True)
    (reconstruction.write_binary if binary else reconstruction.write_text)(str(model))
    (folder / "images").mkdir()
    for image in reconstruction.images.values():
        Image.new("RGB", (64, 48)).save(folder / "images" / image.name)
    return folder


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "text"])
@pytest.mark.parametrize("model", MODELS)
def test_reading_agrees_with_pycolmap(tmp_path, model, binary):
    reconstruction = synthetic(model, MODELS[model])
    scene = read_colmap(save_scene(tmp_path / "scene", reconstruction, binary))

    images = {image.name: image for image in reconstruction.images.values()}
    assert [frame.name for frame in scene.frames] == sorted(images)
    for frame in scene.frames:
        image = images[frame.name]
        pose = torch.from_numpy(image.cam_from_world().matrix()).float()
        assert torch.allclose(frame.camera.world_to_camera[:3], pose, atol=1e-5)
        # The distorted lens as COLMAP has it, by where it projects.
        camera = reconstruction.cameras[image.camera_id]
        rays = np.array(((0.1, 0.2, 1.0), (-0.3, 0.1, 1.0), (0.2, -0.3, 1.0)))
        lens = frame.lens
        if lens is None:
            ours = (rays @ frame.camera.intrinsics.double().numpy().T)[:, :2]
        else:
            ours = lens.distort(rays[:, :2]) * lens.intrinsics.diagonal()[:2] + lens.intrinsics[:2, 2]
        assert np.allclose(ours, camera.img_from_cam(rays), atol=1e-5)
    points = np.array([point.xyz for point in reconstruction.points3D.values()])
    assert scene.points is not None
    assert np.allclose(np.sort(scene.points.numpy(), axis=0), np.sort(points, axis=0), atol=1e-5)


def test_listed_photos_that_are_not_there_are_named(tmp_path, furniture):
    shutil.copytree(furniture / "chair" / "scopia024", tmp_path / "scene")
    for name in ("003.jpg", "010.jpg"):
        (tmp_path / "scene" / "images" / name).unlink()
    scene = read_colmap(tmp_path / "scene")
    assert scene.missing == ("003.jpg", "010.jpg")
    assert len(scene.frames) == 23


def test_no_photo_there_at_all(tmp_path, furniture):
    shutil.copytree(furniture / "chair" / "scopia024" / "sparse", tmp_path / "scene" / "sparse")
    with pytest.raises(SidestepError, match=r"images\.txt: none of its 25 photos"):
        read_colmap(tmp_path / "scene")


@pytest.mark.parametrize("model", [{"sparse/0": "sparse"}, {"sparse/0": "."}])
def test_model_may_lie_beside_the_photos(tmp_path, furniture, model):
    source = furniture / "chair" / "scopia024"
    shutil.copytree(source / "images", tmp_path / "images")
    for old, new in model.items():
        shutil.copytree(source / old, tmp_path / new, dirs_exist_ok=True)
    assert len(read_colmap(tmp_path).frames) == 25


@pytest.mark.parametrize("model", ["OPENCV_FISHEYE", "FULL_OPENCV", "NONSENSE"])
def test_lens_that_is_not_supported_is_refused_by_name(tmp_path, model):
    (tmp_path / "cameras.txt").write_text(f"1 {model} 64 48 60 61 31 25 0 0 0 0 0 0 0 0\n")
    with pytest.raises(SidestepError, match=rf"cameras\.txt.*{model}"):
        read_lenses(tmp_path / "cameras.txt")


def test_binary_fisheye_is_refused_by_name(tmp_path):
    (tmp_path / "cameras.bin").write_bytes(struct.pack("<QIiQQ8d", 1, 1, 5, 64, 48, *range(8)))
    with pytest.raises(SidestepError, match=r"cameras\.bin.*OPENCV_FISHEYE"):
        read_lenses(tmp_path / "cameras.bin")


@pytest.mark.parametrize("quaternion", ["nan 0 0 0", "0 0 0 0", "2 0 0 0", "1 0 0 inf"])
def test_pose_that_is_none_is_refused_by_frame(tmp_path, quaternion):
    (tmp_path / "images.txt").write_text(f"1 {quaternion} 0 0 0 1 first.jpg\n\n")
    with pytest.raises(SidestepError, match=r"images\.txt.*first\.jpg"):
        read_poses(tmp_path / "images.txt")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("cameras.txt", "1 PINHOLE 64 48 60 61 31\n"),
        ("cameras.txt", "1 PINHOLE 64 x 60 61 31 25\n"),
        ("cameras.txt", "1 PINHOLE 64 48 -60 61 31 25\n"),
        ("cameras.txt", "1 PINHOLE 64 48 nan 61 31 25\n"),
        ("cameras.txt", "1 PINHOLE 0 48 60 61 31 25\n"),
        ("cameras.txt", "1\n"),
        ("images.txt", "1 1 0 0 0 0 0 0 1\n"),
        ("images.txt", "1 1 0 0 0 0 0 zero 1 a.jpg\n"),
        ("points3D.txt", "1 0.5 0.5\n"),
    ],
)
def test_damaged_text_is_refused_by_file(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    read = {"cameras.txt": read_lenses, "images.txt": read_poses, "points3D.txt": read_points}[name]
    with pytest.raises(SidestepError, match=name):
        read(tmp_path / name)


def test_every_cut_of_a_binary_model_is_refused(tmp_path):
    synthetic("OPENCV", MODELS["OPENCV"]).write_binary(str(tmp_path))
    for name, read in (("cameras.bin", read_lenses), ("images.bin", read_poses), ("points3D.bin", read_points)):
        whole = (tmp_path / name).read_bytes()
        for length in {*range(0, len(whole), 97), *range(120), len(whole) - 1}:
            (tmp_path / name).write_bytes(whole[:length])
            with pytest.raises(SidestepError, match=name):
                read(tmp_path / name)


def test_counts_beyond_the_file_are_refused_before_anything_is_allocated(tmp_path):
    for name, read in (("cameras.bin", read_lenses), ("images.bin", read_poses), ("points3D.bin", read_points)):
        (tmp_path / name).write_bytes(struct.pack("<Q", 2**62) + bytes(500))
        with pytest.raises(SidestepError, match=name):
            read(tmp_path / name)


def test_photo_whose_camera_is_not_listed(tmp_path, furniture):
    shutil.copytree(furniture / "chair" / "scopia024", tmp_path / "scene")
    (tmp_path / "scene" / "sparse" / "0" / "cameras.txt").write_text("7 PINHOLE 256 256 353 353 128 128\n")
    with pytest.raises(SidestepError, match=r"images\.txt.*000\.jpg.*camera 1"):
        read_colmap(tmp_path / "scene")


def test_names_with_spaces_are_read_whole(tmp_path):
    (tmp_path / "images.txt").write_text("# a comment\n1 1 0 0 0 0 0 0 1 my photo 1.jpg\n1.0 2.0 -1\n")
    assert list(read_poses(tmp_path / "images.txt")) == ["my photo 1.jpg"]


def test_written_model_is_what_pycolmap_reads(tmp_path, furniture):
    pycolmap = pytest.importorskip("pycolmap")
    frames = read_colmap(furniture / "table" / "scopia091").frames
    half_turn = torch.diag(torch.tensor([-1.0, -1.0, 1.0, 1.0]))  # where a naive quaternion divides by zero
    cameras = [frame.camera for frame in frames] + [Camera.from_fov(40.0, 90, 60, half_turn)]
    names = [frame.name for frame in frames] + ["last.png"]

    write_colmap(tmp_path, cameras, names, starting_points(cameras, (frames[0].load(), cameras[0])))

    reconstruction = pycolmap.Reconstruction(str(tmp_path / "sparse" / "0"))
    images = {image.name: image for image in reconstruction.images.values()}
    assert sorted(images) == sorted(names)
    assert len(reconstruction.points3D) > 0
    for camera, name in zip(cameras, names, strict=True):
        theirs = reconstruction.cameras[images[name].camera_id]
        assert (theirs.width, theirs.height) == (camera.width, camera.height)
        assert np.allclose(theirs.calibration_matrix(), camera.intrinsics, atol=1e-4)
        assert np.allclose(images[name].cam_from_world().matrix(), camera.world_to_camera[:3], atol=1e-6)


def test_starting_points_lie_where_the_cameras_look(tmp_path, furniture):
    frames = read_colmap(furniture / "chair" / "scopia024").frames
    cameras = [frame.camera for frame in frames]
    starting = starting_points(cameras, (frames[0].load(), cameras[0]))
    write_colmap(tmp_path, cameras, [frame.name for frame in frames], starting)
    points = read_points(tmp_path / "sparse" / "0" / "points3D.txt")
    for frame in frames:
        pixels, depth = frame.camera.project(points)
        assert bool((depth > 0).all())
        assert torch.allclose(pixels.median(dim=0).values, torch.tensor([128.0, 128.0]), atol=40.0)


NO_POINTS = (np.zeros((0, 3)), np.zeros((0, 3), np.uint8))


@pytest.mark.parametrize("names", [["a.png"], ["a.png", "a.png"], ["a.png", "b c.png"], ["a.png", ""]])
def test_names_that_cannot_be_written_are_refused(tmp_path, names):
    with pytest.raises(SidestepError):
        write_colmap(tmp_path, [Camera.from_fov(40.0, 8, 8)] * 2, names, NO_POINTS)
    assert not (tmp_path / "sparse").exists()
