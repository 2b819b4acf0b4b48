"""transforms.json of nerfstudio, instant-ngp and NeRF's Blender scenes: read into frames or cameras, and written.

Its poses are camera to world in OpenGL axes (x right, y up, z backward). They are turned into this package's
convention here and nowhere else.
"""

import math
import os
from collections import ChainMap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sidestep.cameras import Camera
from sidestep.captures.colmap import check_names
from sidestep.captures.folders import COPIES, Finder, is_file, natural, within
from sidestep.captures.lens import DISTORTION, SIDE_LIMIT, Array, Lens
from sidestep.captures.maps import Alpha
from sidestep.captures.poses import rigid
from sidestep.captures.scene import MOST_FRAMES, Frame, Scene, make_frame
from sidestep.errors import SidestepError
from sidestep.files import write_json
from sidestep.images import stored_size
from sidestep.inputs import read_json

_FLIP = np.diag((1.0, -1.0, -1.0, 1.0))  # OpenGL camera axes <-> OpenCV camera axes
_PERSPECTIVE = (None, "SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV")
BLENDER_FILES = ("transforms_train.json", "transforms_val.json", "transforms_test.json")
_SUFFIXES = ("", ".png", ".jpg", ".jpeg")  # what a photo may be listed without


def read_transforms(path: str | Path, category: str | None = None) -> Scene:
    """The scene that a transforms.json describes.

    Args:
        path: the file, or its folder. Photos are looked for relative to the file, with .png, .jpg or .jpeg added where
            the file names them without, and in images_2/, images_4/ or images_8/ where they are not in images/.

    Raises:
        SidestepError: naming the file and the frame, if it is damaged, a pose is no rigid motion, a lens is not
            supported, or none of its photos are there.
    """
    path = transforms_file(path)
    frames, missing = _read_frames(path)
    if not frames:
        raise SidestepError(f"{path}: none of its {len(missing)} photos are there; put them beside it as it lists them")
    ordered = tuple(frames[name] for name in sorted(frames))
    return Scene(path.resolve().parent.name, category, ordered, None, tuple(sorted(missing)))


def blender_files(folder: Path) -> list[Path]:
    """The transforms_train.json, transforms_val.json and transforms_test.json that are in a folder, in this order."""
    return [folder / name for name in BLENDER_FILES if (folder / name).is_file()]


def read_blender(folder: Path, category: str | None = None) -> Scene:
    """The scene of NeRF's synthetic layout: all photos of its train, val and test files, in this order.

    The files divide the photos of one scene for a radiance field, which learns that scene alone. Here a scene is the
    smallest thing that is divided, so all its photos belong together; one of the files alone is read by
    `read_transforms`. Within a file frames are in the order of their numbers (r_2 before r_10).

    Raises:
        SidestepError: as `read_transforms`.
    """
    frames: dict[str, Frame] = {}
    missing: list[str] = []
    for path in blender_files(folder):
        some, lacking = _read_frames(path)
        doubled = sorted(frames.keys() & some.keys())
        if doubled:
            raise SidestepError(f"{path}: frame {doubled[0]} is in another file of the scene, too; keep one of them")
        frames |= {name: some[name] for name in sorted(some, key=natural)}
        missing += lacking
    if not frames:
        raise SidestepError(f"{folder}: none of the {len(missing)} photos of its transforms_*.json are there")
    return Scene(folder.resolve().name, category, tuple(frames.values()), None, tuple(missing))


def _read_frames(path: Path) -> tuple[dict[str, Frame], list[str]]:
    """The frames of a file by name, and the names of those whose photos are missing, both in its own order."""
    data = _load(path)
    finder = Finder()
    frames: dict[str, Frame] = {}
    missing: list[str] = []
    for index, entry in enumerate(data["frames"]):
        listed = entry.get("file_path")
        if not isinstance(listed, str) or not listed:
            raise SidestepError(f"{path}: frame {index} has no file_path; every frame needs a photo")
        name = listed.removeprefix("./").removeprefix("images/")
        _refuse_far(path, name, listed)
        photo = _find_photo(finder, path.parent, listed)
        if photo is None:
            missing.append(name)
            continue
        if name in frames:
            raise SidestepError(f"{path}: frame {name} is listed twice; keep one of them")
        frames[name] = _frame(path, data, entry, name, photo)
    return frames, missing


def frame_of_photo(path: str | Path, photo: Path) -> Frame | None:
    """The frame that a transforms.json lists under the photo's file name, or None; the photo may lie anywhere.

    Raises:
        SidestepError: as `read_transforms`, or if several frames have that file name.
    """
    path = transforms_file(path)
    data = _load(path)
    own = [entry for entry in data["frames"] if Path(str(entry.get("file_path", ""))).name == photo.name]
    if len(own) > 1:
        raise SidestepError(
            f"{path}: lists {len(own)} photos named {photo.name}; rename the photo so that one is meant"
        )
    return _frame(path, data, own[0], photo.name, photo) if own else None


def _frame(path: Path, data: dict[str, Any], entry: dict[str, Any], name: str, photo: Path) -> Frame:
    width, height, orientation = stored_size(photo)
    shown = (height, width) if orientation >= 5 else (width, height)
    lens = _lens(path, name, ChainMap(entry, data), shown)
    mask, depth = (_listed(path, name, entry.get(key)) for key in ("mask_path", "depth_file_path"))
    return make_frame(name, photo, lens, _world_to_camera(path, name, entry), path, mask or Alpha.of(photo), depth)


def _listed(path: Path, name: str, listed: object) -> Path | None:
    """The map that a frame lists, if it is there: in the scene's folder, or beside it in the set (../masks/003.png)."""
    if not isinstance(listed, str) or not is_file(path.parent / listed):
        return None
    _refuse_far(path, name, listed)
    return path.parent / listed


def _refuse_far(path: Path, name: str, listed: str) -> None:
    if not within(path.parent / listed, path.parent / ".."):
        raise SidestepError(f"{path}: frame {name} lists {listed}, far from the scene's folder; move it into it")


def read_cameras(path: str | Path) -> list[Camera]:
    """The cameras of a transforms.json in its own order, as `read_named_cameras` has them."""
    return [camera for _, camera in read_named_cameras(path)]


def read_named_cameras(path: str | Path) -> list[tuple[str, Camera]]:
    """(name, camera) of each frame of a transforms.json in its own order.

    A name is the frame's file_path, or its number where it has none. Photos need not exist, but sizes (w, h) must be
    given.

    Where the file describes a distorting lens, its camera is the pinhole that the undistorted photo would have.

    Raises:
        SidestepError: as `read_transforms`.
    """
    path = transforms_file(path)
    data = _load(path)
    cameras = []
    for index, entry in enumerate(data["frames"]):
        name = str(entry.get("file_path", index))
        pose = torch.from_numpy(_world_to_camera(path, name, entry)).float()
        lens = _lens(path, name, ChainMap(entry, data), None)
        try:
            intrinsics = torch.from_numpy(lens.pinhole_intrinsics()).float()
            cameras.append((name, Camera(intrinsics, pose, lens.width, lens.height)))
        except SidestepError as error:
            raise SidestepError(f"{path}: frame {name}: {error}") from None
    return cameras


def write_transforms(
    folder: str | Path, cameras: list[Camera], names: list[str], points_file: str | None = None
) -> None:
    """Writes transforms.json, which nerfstudio and instant-ngp read, for photos in the folder's images/.

    Args:
        folder: the scene's folder.
        cameras: one a photo, not batched. Intrinsics that all share are written once, others with each frame.
        names: the photos' file names in images/.
        points_file: name of a PLY in the folder, with points in the cameras' world.

    Raises:
        SidestepError: if the numbers differ, or a name is empty, doubled or holds a space.
    """
    check_names(cameras, names)
    intrinsics = [_intrinsics_entry(camera) for camera in cameras]
    shared = all(entry == intrinsics[0] for entry in intrinsics)
    frames = []
    for camera, name, own in zip(cameras, names, intrinsics, strict=True):
        camera_to_world = np.linalg.inv(camera.world_to_camera.double().cpu().numpy()) @ _FLIP
        frame = {"file_path": f"images/{name}", "transform_matrix": camera_to_world.tolist()}
        frames.append(frame if shared else frame | own)
    common: dict[str, Any] = {"camera_model": "PINHOLE"}
    if shared:
        common |= intrinsics[0]
    if points_file is not None:
        common["ply_file_path"] = points_file
    write_json(Path(folder) / "transforms.json", {**common, "frames": frames})


def transforms_file(path: str | Path) -> Path:
    """The transforms.json that is meant by it or by its folder."""
    path = Path(path)
    return path / "transforms.json" if os.path.isdir(path) else path


def _intrinsics_entry(camera: Camera) -> dict[str, Any]:
    k = camera.intrinsics.double().tolist()
    return {
        "fl_x": k[0][0], "fl_y": k[1][1], "cx": k[0][2], "cy": k[1][2], "w": camera.width, "h": camera.height,
    }  # fmt: skip


def _load(path: Path) -> dict[str, Any]:
    data = read_json(path)
    frames = data.get("frames") if isinstance(data, dict) else None
    if not isinstance(frames, list) or not frames or not all(isinstance(frame, dict) for frame in frames):
        raise SidestepError(f"{path}: no list of frames in it; is it a nerfstudio or instant-ngp transforms.json?")
    if len(frames) > MOST_FRAMES:
        raise SidestepError(f"{path}: {len(frames):,} frames; at most {MOST_FRAMES:,} are read: divide the scene")
    result: dict[str, Any] = data
    return result


def _find_photo(finder: Finder, folder: Path, listed: str) -> Path | None:
    inside = listed.removeprefix("./")
    copies = [f"{copy}/{inside.removeprefix('images/')}" for copy in COPIES[1:] if inside.startswith("images/")]
    found = (finder.find(folder, name + suffix) for name in (listed, *copies) for suffix in _SUFFIXES)
    return next((path for path in found if path is not None), None)


def _world_to_camera(path: Path, name: str, entry: dict[str, Any]) -> Array:
    """(4, 4) in OpenCV axes from the frame's transform_matrix, its rotation made exact within the tolerance."""
    fault = f"{path}: frame {name} has"
    if "transform_matrix" not in entry:
        raise SidestepError(f"{fault} no transform_matrix; remove the frame, or give it a pose")
    try:
        matrix: Array = np.array(entry["transform_matrix"], dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise SidestepError(f"{fault} a transform_matrix that is not an array of numbers") from None
    if matrix.shape not in ((3, 4), (4, 4)):
        raise SidestepError(f"{fault} a transform_matrix of shape {matrix.shape}; it must be 4x4")
    if matrix.shape == (4, 4) and not np.abs(matrix[3] - (0.0, 0.0, 0.0, 1.0)).max() <= 1e-6:
        raise SidestepError(f"{fault} a transform_matrix whose last row is not 0 0 0 1; is it transposed?")
    camera_to_world = rigid(f"{path}: frame {name}", matrix[:3, :3], matrix[:3, 3])
    return np.asarray(np.linalg.inv(camera_to_world @ _FLIP), dtype=np.float64)


def _lens(path: Path, name: str, entry: Mapping[str, Any], photo_size: tuple[int, int] | None) -> Lens:
    """The lens that a frame's own entries, or else the file's, describe."""

    def number(key: str, default: float | None = None) -> float | None:
        value = entry.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
            raise SidestepError(f"{path}: frame {name} has {key} = {value!r:.40}, which is not a number")
        return float(value)

    model = entry.get("camera_model")
    if model not in _PERSPECTIVE or entry.get("is_fisheye") or number("k4", 0.0):
        raise SidestepError(
            f"{path}: frame {name} has the camera model {model or 'of a fisheye (is_fisheye, k4)'}, which is not "
            "supported; undistort the photos to a pinhole camera first"
        )
    width, height = number("w"), number("h")
    if width is None or height is None:
        if photo_size is None:
            raise SidestepError(f"{path}: frame {name} has no picture size; add w and h in pixels")
        width, height = photo_size
    if not (1 <= width < SIDE_LIMIT and 1 <= height < SIDE_LIMIT):
        raise SidestepError(f"{path}: frame {name} has a picture size of {width:g}x{height:g}")
    fx = number("fl_x", _focal(number("camera_angle_x"), width))
    fy = number("fl_y", _focal(number("camera_angle_y"), height))
    if fx is None:
        fx = fy
    if fx is None:
        raise SidestepError(f"{path}: frame {name} has no focal length; add fl_x in pixels, or camera_angle_x")
    fy = fx if fy is None else fy
    if fx <= 0 or fy <= 0:
        raise SidestepError(f"{path}: frame {name} has a focal length that is not positive")
    cx, cy = number("cx", width / 2), number("cy", height / 2)
    intrinsics = np.array(((fx, 0.0, cx), (0.0, fy, cy), (0.0, 0.0, 1.0)), dtype=np.float64)
    distortion = {key: number(key, 0.0) or 0.0 for key in DISTORTION}
    return Lens(intrinsics, round(width), round(height), **distortion)


def _focal(angle: float | None, side: float) -> float | None:
    return None if angle is None or not 0 < angle < math.pi else side / 2.0 / math.tan(angle / 2.0)
