"""COLMAP's sparse models, binary and text: read into frames, and written (text) for other programs.

The formats are those of COLMAP's documentation ("Output format"). Only what a scene needs is read: cameras, poses
and 3D points; observations are skipped.
"""

import math
import os
import struct
import warnings
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from sidestep.cameras import Camera, quaternions
from sidestep.captures.folders import Finder, within
from sidestep.captures.lens import SIDE_LIMIT, Array, Lens
from sidestep.captures.maps import Maps
from sidestep.captures.ply import Colours
from sidestep.captures.scene import MOST_FRAMES, Scene, make_frame
from sidestep.errors import SidestepError
from sidestep.files import atomic_path
from sidestep.inputs import open_file

MODEL_FOLDERS = ("sparse", "colmap/sparse", "sparses")  # COLMAP's, nerfstudio's and MegaScenes'
MOST_POINTS = 20_000_000
_MOST_LINE = 16 * 2**20  # bytes; a photo's observations take 25 each
_MOST_NAME = 4096  # bytes

# COLMAP's number for each camera model, and what its parameters mean in order.
_MODELS = {
    "SIMPLE_PINHOLE": (0, ("f", "cx", "cy")),
    "PINHOLE": (1, ("fx", "fy", "cx", "cy")),
    "SIMPLE_RADIAL": (2, ("f", "cx", "cy", "k1")),
    "RADIAL": (3, ("f", "cx", "cy", "k1", "k2")),
    "OPENCV": (4, ("fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2")),
}
_NAMES = {number: name for name, (number, _) in _MODELS.items()}
_NAMES |= {5: "OPENCV_FISHEYE", 6: "FULL_OPENCV", 7: "FOV", 8: "SIMPLE_RADIAL_FISHEYE", 9: "RADIAL_FISHEYE"}
_NAMES |= {10: "THIN_PRISM_FISHEYE", 11: "RAD_TAN_THIN_PRISM_FISHEYE"}


@dataclass(frozen=True)
class Pose:
    """A photo's entry in the model: its lens's number, and (4, 4) world to camera in OpenCV axes."""

    camera_id: int
    world_to_camera: Array


def find_models(folder: Path) -> list[Path]:
    """The folders of the sparse models in a scene's folder: sparse/0, sparse/1, ..., or else sparse/, or else itself.

    COLMAP numbers its models where it cannot join all photos into one.
    """
    for parent in (folder / name for name in MODEL_FOLDERS):
        # A colmap/ with photos of its own is a scene itself, and no part of this one.
        own = parent.parent == folder or not (parent.parent / "images").is_dir()
        if own and parent.is_dir():
            numbered = [path for path in parent.iterdir() if path.name.isdigit() and _holds_model(path)]
            if numbered:
                return sorted(numbered, key=lambda path: int(path.name))
            if _holds_model(parent):
                return [parent]
    has_cameras = any((folder / f"cameras{suffix}").is_file() for suffix in (".bin", ".txt"))
    return [folder] if has_cameras and _holds_model(folder) else []


def read_colmap(folder: Path, category: str | None = None, photos: Path | None = None) -> Scene:
    """A scene from a folder with images/ and a sparse model (sparse/0, sparse, or beside images/).

    Of several models the one with the most photos that are there is read, the first of equals; the others are in worlds
    of their own, and cannot be joined to it. One that is damaged is passed over with a warning if another can be read.

    Args:
        folder: the scene's.
        photos: where the photos are; otherwise images/ in the scene's folder, or its smaller copies (images_2/, ...).

    Raises:
        SidestepError: naming the file, if there is no model, it is damaged, has a lens that is not supported, or none
            of its photos are there.
    """
    models = find_models(folder)
    if not models:
        raise SidestepError(f"{folder}: no COLMAP model (sparse/0/images.bin or .txt); run COLMAP, or name its folder")
    scenes: list[Scene] = []
    failures: list[SidestepError] = []
    for model in models:
        try:
            scenes.append(_read_model(model, folder, category, photos))
        except SidestepError as error:
            failures.append(error)
    if not scenes:
        raise failures[0]
    for failure in failures:
        warnings.warn(f"another model of the scene is read instead: {failure}", stacklevel=2)
    return max(scenes, key=lambda scene: len(scene.frames))


def _read_model(model: Path, folder: Path, category: str | None, photos: Path | None) -> Scene:
    lenses = read_lenses(_either(model, "cameras"))
    images_file = _either(model, "images")
    finder, maps = Finder(), Maps(folder)
    frames, missing = [], []
    for name, pose in sorted(read_poses(images_file).items()):
        if not within(folder / "images" / name, folder / "images"):
            raise SidestepError(f"{images_file}: lists the photo {name}, outside of images/; move it into it")
        path = finder.find_photo(folder, name) if photos is None else finder.find(photos, name)
        if path is None:
            missing.append(name)
            continue
        lens = lenses.get(pose.camera_id)
        if lens is None:
            raise SidestepError(f"{images_file}: frame {name} has camera {pose.camera_id}, which cameras lacks")
        beside = maps.mask(name), maps.depth(name)
        frames.append(make_frame(name, path, lens, pose.world_to_camera, images_file, *beside))
    if not frames and not missing:
        raise SidestepError(f"{images_file}: no photo has a pose in it; run COLMAP again, or delete the model")
    if not frames:
        raise SidestepError(
            f"{images_file}: none of its {len(missing)} photos are in {photos or folder / 'images'}; put them there"
        )
    has_points = any((model / f"points3D{suffix}").is_file() for suffix in (".bin", ".txt"))
    points = read_points(_either(model, "points3D")) if has_points else None
    return Scene(folder.resolve().name, category, tuple(frames), points, tuple(missing))


def read_lenses(path: Path) -> dict[int, Lens]:
    """The cameras of cameras.bin or cameras.txt by their number."""
    rows: dict[int, tuple[str, int, int, tuple[float, ...]]] = {}
    if path.suffix == ".bin":
        with _binary(path) as data:
            for _ in range(data.count(smallest=24 + 8 * 3, most=MOST_FRAMES)):
                number, model, width, height = data.take("<IiQQ")
                name = _NAMES.get(model, f"number {model}")
                rows[number] = name, width, height, data.take(f"<{len(_parameters(path, name))}d")
    else:
        for line_number, line in _lines(path):
            fields = line.split()
            with _parsing(path, line_number):
                number, name, width, height = int(fields[0]), fields[1], int(fields[2]), int(fields[3])
                _parameters(path, name)
                rows[number] = name, width, height, tuple(float(value) for value in fields[4:])
            _refuse_many(path, len(rows), MOST_FRAMES)
    return {number: _lens(path, number, *row) for number, row in rows.items()}


def read_poses(path: Path) -> dict[str, Pose]:
    """The photos of images.bin or images.txt by file name."""
    poses: dict[str, Pose] = {}
    if path.suffix == ".bin":
        with _binary(path) as data:
            for _ in range(data.count(smallest=4 + 7 * 8 + 4 + 1 + 8, most=MOST_FRAMES)):
                values = data.take("<I7dI")
                name = data.text()
                data.skip(data.count(smallest=24), 24)
                poses[name] = Pose(values[8], _world_to_camera(path, name, values[1:8]))
        return poses
    lines = _lines(path, keep_empty=True)
    for number, line in lines:
        if not line:
            continue
        with _parsing(path, number):
            fields = line.split(maxsplit=9)
            name, camera_id = fields[9], int(fields[8])
            values = tuple(float(value) for value in fields[1:8])
        poses[name] = Pose(camera_id, _world_to_camera(path, name, values))
        _refuse_many(path, len(poses), MOST_FRAMES)
        next(lines, None)  # the photo's observations, on a line of their own that may be empty
    return poses


def read_points(path: Path) -> Tensor:
    """The points of points3D.bin or points3D.txt, (N, 3) float32; points that are not finite are left out."""
    points = array("d")
    if path.suffix == ".bin":
        with _binary(path) as data:
            for _ in range(data.count(smallest=8 + 3 * 8 + 3 + 8 + 8, most=MOST_POINTS)):
                points.extend(data.take("<Q3d3Bd")[1:4])
                data.skip(data.count(smallest=8), 8)
    else:
        for number, line in _lines(path):
            with _parsing(path, number):
                _, x, y, z, *_rest = line.split(maxsplit=4)
                points.extend((float(x), float(y), float(z)))
            _refuse_many(path, len(points) // 3, MOST_POINTS)
    with np.errstate(over="ignore"):  # what is too large for float32 is left out with what is not finite
        single = np.asarray(points, dtype=np.float64).astype(np.float32).reshape(-1, 3)
    tensor = torch.from_numpy(single)
    return tensor[tensor.isfinite().all(dim=1)]


def write_colmap(folder: str | Path, cameras: list[Camera], names: list[str], points: tuple[Array, Colours]) -> None:
    """Writes cameras as a COLMAP text model: sparse/0/{cameras,images,points3D}.txt.

    Args:
        folder: the scene's folder, where images/ is.
        cameras: one a photo, not batched.
        names: the photos' file names in images/.
        points: positions (N, 3) and colours (N, 3) uint8; gsplat's trainer fails without any.

    Raises:
        SidestepError: if the numbers differ, or a name is empty, doubled or holds a space or newline.
    """
    check_names(cameras, names)
    model = Path(folder) / "sparse" / "0"
    camera_lines = ["# CAMERA_ID MODEL WIDTH HEIGHT FX FY CX CY"]
    image_lines = ["# IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME, then a line of observations (none)"]
    for number, (camera, name) in enumerate(zip(cameras, names, strict=True), start=1):
        k = camera.intrinsics.double()
        lens = _numbers((k[0, 0], k[1, 1], k[0, 2], k[1, 2]))
        camera_lines.append(f"{number} PINHOLE {camera.width} {camera.height} {lens}")
        quaternion = quaternions(camera.rotation.double().cpu())
        image_lines += [f"{number} {_numbers((*quaternion, *camera.translation.double()))} {number} {name}", ""]
    point_lines = ["# POINT3D_ID X Y Z R G B ERROR TRACK; random points to start from, not measured ones"]
    positions, colours = points
    for number, (point, colour) in enumerate(zip(positions, colours.tolist(), strict=True), start=1):
        point_lines.append(f"{number} {_numbers(point)} {' '.join(map(str, colour))} 0")
    for stem, lines in (("cameras", camera_lines), ("images", image_lines), ("points3D", point_lines)):
        with atomic_path(model / f"{stem}.txt") as temporary:
            temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def check_names(cameras: list[Camera], names: list[str]) -> None:
    """Refuses names that no file of cameras can hold, or of another number than the cameras."""
    if not cameras or len(cameras) != len(names):
        raise SidestepError(f"{len(cameras)} cameras but {len(names)} photo names; give one name a camera")
    for name in names:
        if not name or len(name.split()) != 1 or names.count(name) > 1:
            raise SidestepError(f"photo name {name!r} is empty, doubled or has a space in it, which COLMAP cannot read")


def _holds_model(folder: Path) -> bool:
    return any((folder / f"images{suffix}").is_file() for suffix in (".bin", ".txt"))


def _either(model: Path, stem: str) -> Path:
    binary = model / f"{stem}.bin"
    return binary if binary.is_file() else model / f"{stem}.txt"


def _parameters(path: Path, model: str) -> tuple[str, ...]:
    if model not in _MODELS:
        raise SidestepError(
            f"{path}: camera model {model} is not supported; undistort the photos (colmap image_undistorter) or use "
            f"one of {', '.join(_MODELS)}"
        )
    return _MODELS[model][1]


def _lens(path: Path, number: int, model: str, width: int, height: int, values: tuple[float, ...]) -> Lens:
    names = _parameters(path, model)
    if len(values) != len(names):
        raise SidestepError(f"{path}: camera {number} has {len(values)} parameters; {model} has {len(names)}")
    if not all(math.isfinite(value) for value in values) or not (0 < width < SIDE_LIMIT and 0 < height < SIDE_LIMIT):
        raise SidestepError(f"{path}: camera {number} has a size or parameter that no camera has; run COLMAP again")
    given = dict(zip(names, values, strict=True))
    fx, fy = given.pop("fx", given.get("f", 0.0)), given.pop("fy", given.pop("f", 0.0))
    if fx <= 0 or fy <= 0:
        raise SidestepError(f"{path}: camera {number} has a focal length that is not positive; run COLMAP again")
    intrinsics = np.array(((fx, 0.0, given.pop("cx")), (0.0, fy, given.pop("cy")), (0.0, 0.0, 1.0)))
    return Lens(intrinsics, width, height, **given)


def _world_to_camera(path: Path, name: str, values: tuple[float, ...]) -> Array:
    quaternion, translation = np.array(values[:4]), np.array(values[4:])
    norm = np.linalg.norm(quaternion)
    if not (np.isfinite(values).all() and abs(norm - 1.0) < 1e-2):
        raise SidestepError(f"{path}: frame {name} has a pose that is not finite or not a rotation; run COLMAP again")
    pose = np.eye(4)
    w, x, y, z = quaternion / norm
    pose[:3, :3] = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    pose[:3, 3] = translation
    return pose


def _numbers(values: Any) -> str:
    return " ".join(f"{float(value):.12g}" for value in values)


def _lines(path: Path, keep_empty: bool = False) -> Iterator[tuple[int, str]]:
    """The lines that are no comments, one at a time, each with its number."""
    with _opened(path) as file:
        for number, raw in enumerate(iter(lambda: file.readline(_MOST_LINE), b""), start=1):
            if len(raw) == _MOST_LINE:
                raise SidestepError(f"{path}, line {number}: longer than {_MOST_LINE // 2**20} MiB; export it again")
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                raise SidestepError(f"{path}: cannot be read as text ({error}); save it as UTF-8") from None
            if not line.startswith("#") and (line or keep_empty):
                yield number, line


@contextmanager
def _parsing(path: Path, number: int) -> Iterator[None]:
    """Turns a missing or bad number in the block into one line that names the place."""
    try:
        yield
    except (ValueError, IndexError) as error:
        raise SidestepError(
            f"{path}, line {number}: not in COLMAP's text format ({error}); export the model again"
        ) from None


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with open_file(path) as file:
            yield file
    except FileNotFoundError:
        raise SidestepError(f"{path}: no such file; a COLMAP model needs cameras and images") from None
    except OSError as error:
        raise SidestepError(f"{path}: cannot be read ({error.strerror or error})") from None


def _refuse_many(path: Path, number: int, most: int) -> None:
    if number > most:
        raise SidestepError(f"{path}: more than {most:,} entries, which is more than Sidestep reads; divide the model")


class _Binary:
    """A binary file read front to back; every read is checked against what is left."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self._file = path, file
        self._size = os.fstat(file.fileno()).st_size

    def take(self, layout: str) -> tuple[Any, ...]:
        size = struct.calcsize(layout)
        data = self._file.read(size)
        if len(data) < size:
            raise self._short()
        return struct.unpack(layout, data)

    def count(self, smallest: int, most: int | None = None) -> int:
        """A count of entries of `smallest` bytes or more, which must fit in the rest of the file; at most `most`."""
        number: int = self.take("<Q")[0]
        if number * smallest > self._size - self._file.tell():
            raise self._short()
        if most is not None:
            _refuse_many(self.path, number, most)
        return number

    def skip(self, number: int, size: int) -> None:
        self._file.seek(number * size, os.SEEK_CUR)

    def text(self) -> str:
        start = self._file.tell()
        raw, end, _ = self._file.read(_MOST_NAME).partition(b"\0")
        if not end:
            raise self._short()
        self._file.seek(start + len(raw) + 1)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise SidestepError(f"{self.path}: a photo's name is not UTF-8; export the model again") from None

    def _short(self) -> SidestepError:
        at = self._file.tell()
        return SidestepError(f"{self.path}: cut short or damaged (at byte {at}); export or copy the model again")


@contextmanager
def _binary(path: Path) -> Iterator[_Binary]:
    with _opened(path) as file:
        yield _Binary(path, file)
