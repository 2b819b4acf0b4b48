"""Where the photos of one thing were taken from, by COLMAP: features, matches, a model, photos without distortion.

COLMAP computes for minutes in C++, writes to the terminal, and where it fails it ends its process. It therefore runs in
a child, `python -m sidestep.captures.reconstruction WORK`, which `reconstruct` starts, listens to, and stops at once
when it is interrupted. Killed at any time, it goes on from what WORK holds:

WORK/photos/000.jpg, ...        the photos, upright
WORK/photos.json                what to do: `photos`, a list of `Photo`s, and the caller's own
WORK/database.db                COLMAP's: features and matches, as far as they were found
WORK/model/, WORK/found.json    the model with lens distortion; a `Found`
WORK/scene/                     images/ and sparse/0/ without distortion
WORK/log.txt                    what COLMAP said
"""

import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from sidestep.cameras import Camera, vertical
from sidestep.errors import SidestepError
from sidestep.files import write_json

Stage = Literal["photos", "features", "matching", "mapping", "undistorting"]
Progress = Callable[[Stage, int, int], None]

MOST_FEATURES = 4096  # of a photo; with COLMAP's 8192, matching takes four times as long
FEATURE_SIZE = 1000  # the longest side that features are looked for at: SIFT doubles it first
EVERY_PAIR = 100  # photos up to which every pair of them is matched
NEIGHBOURS = 10  # above: the next photos that each is matched with, besides those 16, 32, 64, ... further on
TILE = 16  # photos on each side of a block of pairs; features are indexed once a block
LEAST_INLIERS = 15  # that verify a pair; COLMAP's
_FOCAL = 1.2  # of a lens that EXIF does not tell, in longer sides; COLMAP's

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Photo:
    """A photo to find the camera of.

    Attributes:
        name: its file's name in WORK/photos.
        original: the file in the folder it comes from; or the time in the video, "12.35 s", or "frame 17" without one.
        width, height: pixels, upright.
        lens: equal for photos that one camera took at one focal length.
        fov: degrees across the shorter side by EXIF, or None.
    """

    name: str
    original: str
    width: int
    height: int
    lens: str
    fov: float | None


@dataclass(frozen=True)
class Found:
    """What came of the photos. Lists are in the order of `Photo`s.

    Attributes:
        features: of each photo.
        matches: of each photo, the most verified matches with another, and that one's place in the list.
        matches_placed: the same, with a photo that has a camera.
        placed: whether it has a camera in the largest model.
        models: numbers of photos of all models found, the largest first.
        verified: pairs of photos whose matches fit a common geometry.
        deep: photos in a pair that neither a plane nor a turn of the camera on the spot explains.
        points, track_length, reprojection_error: of the largest model; the mean number of photos that see a point; px.
        angle: degrees between the rays to a point, median of the points; the widest of each.
        focal: of each lens, pixels.
    """

    features: list[int]
    matches: list[tuple[int, int]]
    matches_placed: list[tuple[int, int]]
    placed: list[bool]
    models: list[int]
    verified: int
    deep: int
    points: int
    track_length: float
    reprojection_error: float
    angle: float
    focal: dict[str, float]


def reconstruct(work: Path, progress: Progress) -> Found:
    """Runs the child on a working folder with photos/ and photos.json, until WORK/found.json is there.

    WORK/scene is there too if a model was found.

    Args:
        work: the working folder.
        progress: called with a stage, how much of it is done, and of how much.

    Raises:
        SidestepError: if COLMAP is not installed, or dies.
    """
    require_pycolmap()
    command = [sys.executable, "-P", "-m", __name__, str(work)]
    with (work / "log.txt").open("ab") as log:
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # at whose end the child knows that we have died
            stdout=subprocess.PIPE,
            stderr=None if _log.isEnabledFor(logging.DEBUG) else log,
            start_new_session=True,  # a terminal's Ctrl-C is for us, and we stop it
        )
        try:
            assert child.stdout is not None
            for line in child.stdout:
                progress(*json.loads(line))
            code = child.wait()
        finally:
            child.kill()
            child.communicate()
    if code != 0:
        raise SidestepError(
            f"COLMAP ended in the middle (exit code {code}); {work / 'log.txt'} tells why. Run the same command again "
            "to go on, or delete that folder to begin anew"
        )
    return _read_found(work)


def _read_found(work: Path) -> Found:
    """WORK/found.json."""
    return Found(**json.loads((work / "found.json").read_text(encoding="utf-8")))


def require_pycolmap() -> Any:
    """The package `pycolmap`.

    Raises:
        SidestepError: if it is not installed.
    """
    try:
        import pycolmap
    except ImportError:
        raise SidestepError(
            "poses are found by COLMAP, which is not installed: pip install 'sidestep[captures]'"
        ) from None
    return pycolmap


def read_photos(work: Path) -> list[Photo]:
    """WORK/photos.json."""
    return [Photo(**photo) for photo in json.loads((work / "photos.json").read_text(encoding="utf-8"))["photos"]]


def pairs(count: int) -> Iterator[tuple[int, int]]:
    """The pairs (i, j), i < j, of `count` photos in the order of a path that are matched."""
    steps: Sequence[int] = range(1, count)
    if count > EVERY_PAIR:
        steps = [*range(1, NEIGHBOURS + 1), *(2**power for power in range(4, count.bit_length()))]
    for first in range(count):
        yield from ((first, first + step) for step in steps if first + step < count)


def _main(work: Path) -> None:
    """The child."""
    talk = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints is no progress
    threading.Thread(target=_die_with_parent, daemon=True).start()

    def progress(stage: Stage, done: int, total: int) -> None:
        print(json.dumps([stage, done, total]), file=talk)

    pycolmap = require_pycolmap()
    pycolmap.set_random_seed(0)
    photos = read_photos(work)
    if not _has_found(work):
        database = work / "database.db"
        if not database.exists():
            _create_database(database, photos)
        _extract(work, photos, progress)
        _match(work, photos, progress)
        write_json(work / "found.json", asdict(_map(work, photos, progress)))
    if (work / "model").exists():
        progress("undistorting", 0, 1)
        _undistort(work, photos)
        progress("undistorting", 1, 1)


def _has_found(work: Path) -> bool:
    """Whether the model was found before, and what was found is not damaged."""
    try:
        return bool(_read_found(work))
    except (OSError, ValueError, TypeError):
        return False


def _die_with_parent() -> None:
    os.read(0, 1)  # sys.stdin's lock, held by a thread, would crash the interpreter at its end
    os._exit(1)


def _threads() -> int:
    set_by_user = os.environ.get("OMP_NUM_THREADS", "")
    if set_by_user.isdigit() and int(set_by_user) > 0:
        return int(set_by_user)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _create_database(path: Path, photos: Sequence[Photo]) -> None:
    """COLMAP's database with a camera for each lens, and the photos numbered from 1 in their order."""
    pycolmap = require_pycolmap()
    part = path.with_suffix(".part")
    part.unlink(missing_ok=True)
    with pycolmap.Database.open(part) as database:
        rigs: dict[str, tuple[int, int]] = {}
        for photo in photos:
            if photo.lens not in rigs:
                longer, shorter = max(photo.width, photo.height), min(photo.width, photo.height)
                focal = _FOCAL * longer
                if photo.fov is not None:
                    focal = shorter / (2.0 * np.tan(np.radians(photo.fov) / 2.0))
                camera = pycolmap.Camera.create_from_model_name(0, "RADIAL", focal, photo.width, photo.height)
                camera.has_prior_focal_length = photo.fov is not None
                camera.camera_id = database.write_camera(camera)
                rig = pycolmap.Rig()
                rig.add_ref_sensor(camera.sensor_id)
                rigs[photo.lens] = camera.camera_id, database.write_rig(rig)
            camera_id, rig_id = rigs[photo.lens]
            image = pycolmap.Image(name=photo.name, camera_id=camera_id)
            image.image_id = database.write_image(image)
            frame = pycolmap.Frame()
            frame.rig_id = rig_id
            frame.add_data_id(image.data_id)
            database.write_frame(frame)
    part.rename(path)


def _extract(work: Path, photos: Sequence[Photo], progress: Progress) -> None:
    pycolmap = require_pycolmap()
    options = pycolmap.FeatureExtractionOptions()
    options.num_threads = _threads()
    options.max_image_size = FEATURE_SIZE
    options.sift.max_num_features = MOST_FEATURES
    path = work / "database.db"
    with pycolmap.Database.open(path) as database:
        missing = [
            photo.name
            for number, photo in enumerate(photos, start=1)
            if not (database.exists_keypoints(number) and database.exists_descriptors(number))
        ]
    step = 2 * options.num_threads
    for start in range(0, len(missing), step):
        progress("features", len(photos) - len(missing) + start, len(photos))
        names = missing[start : start + step]
        pycolmap.extract_features(path, work / "photos", names, extraction_options=options, device=pycolmap.Device.cpu)
    progress("features", len(photos), len(photos))


def _match(work: Path, photos: Sequence[Photo], progress: Progress) -> None:
    pycolmap = require_pycolmap()
    options = pycolmap.FeatureMatchingOptions()
    options.num_threads = _threads()
    geometry = pycolmap.TwoViewGeometryOptions()
    geometry.ransac.random_seed = 0
    listed = pycolmap.ImportedPairingOptions()
    listed.match_list_path = work / "pairs.txt"
    path = work / "database.db"
    tiles: dict[tuple[int, int], list[tuple[int, int]]] = {}
    total = 0
    with pycolmap.Database.open(path) as database:
        for first, second in pairs(len(photos)):
            total += 1
            if not database.exists_two_view_geometry(first + 1, second + 1):
                tiles.setdefault((first // TILE, second // TILE), []).append((first, second))
    done = total - sum(map(len, tiles.values()))
    for tile in tiles.values():
        progress("matching", done, total)
        lines = (f"{photos[first].name} {photos[second].name}\n" for first, second in tile)
        listed.match_list_path.write_text("".join(lines), encoding="utf-8")
        pycolmap.match_image_pairs(path, options, listed, geometry, device=pycolmap.Device.cpu)
        done += len(tile)
    progress("matching", total, total)


def _map(work: Path, photos: Sequence[Photo], progress: Progress) -> Found:
    """Finds the model, and writes it to WORK/model if there is one."""
    pycolmap = require_pycolmap()
    options = pycolmap.IncrementalPipelineOptions()
    options.num_threads = _threads()
    options.random_seed = options.mapper.random_seed = options.triangulation.random_seed = 0
    options.min_model_size = 3
    placed = 0

    def begin() -> None:
        nonlocal placed
        placed = 1
        more()

    def more() -> None:
        nonlocal placed
        placed += 1
        progress("mapping", min(placed, len(photos)), len(photos))

    progress("mapping", 0, len(photos))
    models_folder, model_folder = work / "models", work / "model"
    for folder in (models_folder, model_folder):
        shutil.rmtree(folder, ignore_errors=True)
    models_folder.mkdir()
    models = pycolmap.incremental_mapping(
        work / "database.db",
        work / "photos",
        models_folder,
        options,
        initial_image_pair_callback=begin,
        next_image_callback=more,
    )
    shutil.rmtree(models_folder)
    ordered = sorted(models.values(), key=lambda model: (-model.num_reg_images(), -model.num_points3D()))
    if ordered:
        model_folder.mkdir()
        ordered[0].write(model_folder)
    return _found(work, photos, ordered)


def _found(work: Path, photos: Sequence[Photo], models: Sequence[Any]) -> Found:
    pycolmap = require_pycolmap()
    best = models[0] if models else None
    placed = [best is not None and _has_pose(best, number) for number in range(1, len(photos) + 1)]
    with pycolmap.Database.open(work / "database.db") as database:
        features = [database.num_keypoints_for_image(number) for number in range(1, len(photos) + 1)]
        ids, geometries = database.read_two_view_geometries()
    matches, matches_placed = [(0, 0)] * len(photos), [(0, 0)] * len(photos)
    verified, deep = 0, set()
    kinds = pycolmap.TwoViewGeometryConfiguration
    for pair, geometry in zip(ids, geometries, strict=True):
        inliers = len(geometry.inlier_matches)
        if inliers < LEAST_INLIERS:
            continue
        verified += 1
        first, second = (number - 1 for number in pycolmap.pair_id_to_image_pair(pair))
        if geometry.config not in (kinds.PLANAR, kinds.PANORAMIC, kinds.PLANAR_OR_PANORAMIC):
            deep |= {first, second}
        for one, other in ((first, second), (second, first)):
            matches[one] = max(matches[one], (inliers, other))
            if placed[other]:
                matches_placed[one] = max(matches_placed[one], (inliers, other))
    numbers = [model.num_reg_images() for model in models]
    if best is None:
        return Found(features, matches, matches_placed, placed, numbers, verified, len(deep), 0, 0.0, 0.0, 0.0, {})
    focal = {
        photos[number - 1].lens: float(best.camera(best.image(number).camera_id).mean_focal_length())
        for number in best.reg_image_ids()
    }
    return Found(
        features,
        matches,
        matches_placed,
        placed,
        numbers,
        verified,
        len(deep),
        best.num_points3D(),
        best.compute_mean_track_length(),
        best.compute_mean_reprojection_error(),
        _median_angle(best),
        focal,
    )


def _has_pose(model: Any, number: int) -> bool:
    return bool(model.exists_image(number) and model.image(number).has_pose)


def _median_angle(model: Any) -> float:
    """The median over the points of the widest angle between two rays to it, in degrees."""
    centres = {number: model.image(number).projection_center() for number in model.reg_image_ids()}
    widest = []
    for point in model.points3D.values():
        rays = np.stack([centres[element.image_id] - point.xyz for element in point.track.elements])
        rays /= np.linalg.norm(rays, axis=1, keepdims=True)
        widest.append(np.degrees(np.arccos(np.clip((rays @ rays.T).min(), -1.0, 1.0))))
    return float(np.median(widest)) if widest else 0.0


def _undistort(work: Path, photos: Sequence[Photo]) -> None:
    """Writes WORK/scene: images/ no larger than the photos, and sparse/0/, whose world's y axis points down."""
    pycolmap = require_pycolmap()
    scene, part = work / "scene", work / "undistorted"
    for folder in (scene, part):
        shutil.rmtree(folder, ignore_errors=True)
    options = pycolmap.UndistortCameraOptions()
    options.max_image_size = max(max(photo.width, photo.height) for photo in photos)  # a barrel's corners stick out
    pycolmap.undistort_images(
        part,
        work / "model",
        work / "photos",
        undistort_options=options,
        jpeg_quality=95,
        num_threads=_threads(),
    )
    model = pycolmap.Reconstruction(part / "sparse")
    _turn_upright(model)
    shutil.rmtree(part / "sparse")
    (part / "sparse" / "0").mkdir(parents=True)
    model.write(part / "sparse" / "0")
    for other in part.iterdir():
        if other.is_dir() and other.name not in ("images", "sparse"):  # what COLMAP's dense stereo would need
            shutil.rmtree(other)
        elif other.is_file():
            other.unlink()
    part.rename(scene)


def _turn_upright(model: Any) -> None:
    """Turns the world so that the cameras' `vertical` is up, -y, where they tell it."""
    pycolmap = require_pycolmap()
    poses = np.tile(np.eye(4), (model.num_reg_images(), 1, 1))
    for pose, number in zip(poses, model.reg_image_ids(), strict=True):
        pose[:3] = model.image(number).cam_from_world().matrix()
    up = vertical(Camera(torch.eye(3), torch.from_numpy(poses), 1, 1))
    if up is None:
        return
    down = -up.numpy()
    right = np.cross(down, poses[0, 2, :3])
    if np.linalg.norm(right) < 1e-3:  # the first camera looks straight down or up
        right = poses[0, 0, :3] - down * (poses[0, 0, :3] @ down)
    right /= np.linalg.norm(right)
    rotation = np.stack((right, down, np.cross(right, down)))
    model.transform(pycolmap.Sim3d(1.0, pycolmap.Rotation3d(rotation), np.zeros(3)))


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
