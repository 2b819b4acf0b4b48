"""RealEstate10K: <clip>.txt with a camera a line, and the clip's frames in a folder <clip>/ as a downloader left them.

A file's first line is the video's address. Each further line is a time in microseconds, the focal lengths and principal
point in parts of the picture's width and height, two distortion coefficients (0 in every published file), and world to
camera, 3x4 row by row, in OpenCV axes.
"""

import math
from pathlib import Path

import numpy as np

from sidestep.captures.folders import hidden, subfolders
from sidestep.captures.lens import Lens
from sidestep.captures.poses import rigid
from sidestep.captures.scene import Scene, make_frame
from sidestep.errors import SidestepError
from sidestep.images import SUFFIXES, stored_size
from sidestep.inputs import open_file, read_text

CAMERA_FOLDERS = ("RealEstate10K", "cameras", "poses")  # beside the frames; the first is what the archive unpacks to
FRAME_FOLDERS = ("frames", "images", "dataset")
SPLITS = ("train", "test", "validation", "val")
_NUMBERS = 19  # a line
_MOST_LINE = 4096  # bytes of the first two; they take 400
_MOST_BYTES = 4 * 2**20  # of a file; 300 frames take 60 kB


def find_clips(root: Path) -> list[Path]:
    """The files of cameras under a folder whose frames are there, sorted by name; none where it is another layout.

    They are looked for in the folder itself, in its RealEstate10K/, cameras/ or poses/, and in the train/, test/ and
    validation/ of all these.
    """
    found: dict[str, Path] = {}
    places = (root, *(root / name for name in CAMERA_FOLDERS))
    for folder in (place / split for place in places for split in ("", *SPLITS)):
        if not folder.is_dir():
            continue
        texts = {path.stem: path for path in folder.iterdir() if path.suffix == ".txt"}
        if texts:
            names = {path.name for frames in _frame_roots(folder) for path in subfolders(frames)}
            clips = {name: texts[name] for name in sorted(texts.keys() & names)}
            if any(is_clip(path) for path in clips.values()):
                found = clips | found
    return [found[name] for name in sorted(found)]


def own_clip(folder: Path) -> Path | None:
    """The file of cameras <clip>/<clip>.txt of a clip's own folder, or None where it is another folder."""
    path = folder / f"{folder.name}.txt"
    return path if is_clip(path) else None


def is_clip(path: Path) -> bool:
    """Whether a file is one of cameras: text whose first line is an address, and whose second has as many numbers."""
    if path.suffix != ".txt" or hidden(path):
        return False
    try:
        with open_file(path) as file:
            address, camera = (file.readline(_MOST_LINE) for _ in range(2))
            return address.startswith((b"http://", b"https://")) and len([float(x) for x in camera.split()]) == _NUMBERS
    except (OSError, ValueError):
        return False


def read_realestate10k(path: Path, category: str | None = None) -> Scene:
    """The scene of a file of cameras and its folder of frames, in the order of time.

    A frame is <time>.png, .jpg, .jpeg or .webp, with zeros before the time or not.

    Raises:
        SidestepError: naming the file and the line, if it is damaged, or none of its frames are there.
    """
    folder = _frames_folder(path.absolute())
    if folder is None:
        raise SidestepError(f"{path}: no folder {path.stem}/ of frames beside it or in frames/; download the clip")
    photos = {photo.stem.lstrip("0") or "0": photo for photo in folder.iterdir() if photo.suffix.lower() in SUFFIXES}
    frames, missing = [], []
    for where, time, values in _cameras(path):
        photo = photos.get(str(time))
        if photo is None:
            missing.append(f"{time}.png")
            continue
        fx, fy, cx, cy, k1, k2, *pose = values
        width, height, _ = stored_size(photo)
        intrinsics = np.array(((fx * width, 0.0, cx * width), (0.0, fy * height, cy * height), (0.0, 0.0, 1.0)))
        if fx <= 0 or fy <= 0:
            raise SidestepError(f"{where}: a focal length that is not positive; remove the line")
        matrix = np.reshape(pose, (3, 4))
        world_to_camera = rigid(where, matrix[:, :3], matrix[:, 3])
        lens = Lens(intrinsics, width, height, k1, k2)
        frames.append(make_frame(photo.name, photo, lens, world_to_camera, path))
    if not frames:
        raise SidestepError(f"{path}: none of its {len(missing)} frames are in {folder}; name them <time>.png")
    return Scene(path.stem, category, tuple(frames), None, tuple(missing))


def _cameras(path: Path) -> list[tuple[str, int, list[float]]]:
    """("file, line n", time, the line's other numbers) of each frame, in the order of time."""
    lines = read_text(path, _MOST_BYTES).splitlines()
    cameras = {}
    for number, line in enumerate(lines[1:], start=2):
        fields = line.split()
        if not fields:
            continue
        where = f"{path}, line {number}"
        try:
            time, values = int(fields[0]), [float(field) for field in fields[1:]]
        except ValueError:
            raise SidestepError(f"{where}: not a row of numbers; download the file again") from None
        if len(fields) != _NUMBERS:
            raise SidestepError(f"{where}: {len(fields)} numbers; a camera has {_NUMBERS}; download the file again")
        if not all(math.isfinite(value) for value in values):
            raise SidestepError(f"{where}: a number that is not finite; remove the line")
        if time in cameras:
            raise SidestepError(f"{where}: the time {time} comes twice; remove one of the lines")
        cameras[time] = (where, time, values)
    return [cameras[time] for time in sorted(cameras)]


def _frames_folder(path: Path) -> Path | None:
    """Where the frames of a file of cameras are: beside it, in <clip>/ or its images/; or where `_frame_roots` says."""
    if path.parent.name == path.stem:
        return path.parent / "images" if (path.parent / "images").is_dir() else path.parent
    return next((root / path.stem for root in _frame_roots(path.parent) if (root / path.stem).is_dir()), None)


def _frame_roots(cameras: Path) -> list[Path]:
    """The folders that may hold the folders of frames of the clips whose cameras are in a folder.

    It may do so itself; so may frames/, images/ or dataset/ beside it. Where it is a split's, so may the same split of
    these beside the folder of all cameras.
    """
    cameras = cameras.absolute()
    roots = [cameras]
    if cameras.name in SPLITS:
        above = (cameras.parent, cameras.parent.parent)
        roots += [folder / name / cameras.name for folder in above for name in FRAME_FOLDERS]
    else:
        roots += [cameras.parent / name for name in FRAME_FOLDERS]
    return [root for root in roots if root.is_dir()]
