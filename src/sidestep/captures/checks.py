"""What may be wrong with a scene, as far as it shows without decoding a photo."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from sidestep.cameras import Camera
from sidestep.captures.arrangement import Arrangement
from sidestep.captures.colmap import find_models
from sidestep.captures.findings import Finding, listed
from sidestep.captures.folders import hidden, natural
from sidestep.captures.lens import Array
from sidestep.captures.pairs import paper_pairs
from sidestep.captures.scene import Frame, Scene
from sidestep.images import PICTURE_SUFFIXES

JUMP = 5.0  # times the median step
MANY_JUMPS = 8
FAR = 4.0  # times the median distance from the subject, or from the cameras' middle
SAME_PLACE, SAME_TURN = 1e-4, 0.05  # of the distance to the subject; degrees
STANDING = 0.02  # how far apart, in distances to the subject, cameras are that do not move
FEW_POINTS = 10  # in one picture
SCALES = 3.0  # ratio at which two scales of one scene no longer tell the same


def check_frames(scene: Scene, folder: Path) -> Iterator[Finding]:
    """What is to be said about a scene's list of photos, their names and lenses.

    Args:
        folder: the scene's folder, or its transforms.json.
    """
    report = _Report(scene.id, folder)
    names = [frame.name for frame in scene.frames]
    cameras = [frame.camera for frame in scene.frames]
    if scene.missing:
        total = len(names) + len(scene.missing)
        message = f"{len(scene.missing)} of {total} listed photos are not there: {listed(scene.missing)}"
        yield report("missing-photos", message, scene.missing)
    if not paper_pairs(len(names), np.random.default_rng(0)):
        yield report("few-frames", f"{len(names)} frames")
    folders = list(dict.fromkeys(name.rpartition("/")[0] for name in names))
    counted = sorted(names, key=lambda name: (folders.index(name.rpartition("/")[0]), natural(name)))
    for name, other in zip(names, counted, strict=True):
        if name != other:
            yield report("name-order", f"{name} is read before {other}", (name, other))
            break
    sizes = sorted({(camera.width, camera.height) for camera in cameras})
    if len(sizes) > 1:
        yield report("sizes", f"{len(sizes)} sizes: {listed([f'{width}x{height}' for width, height in sizes])}")
    models = find_models(folder) if folder.is_dir() else []
    if len(models) > 1:
        others = listed([str(model.relative_to(folder)) for model in models])
        yield report("several-models", f"{others}: the one with the most photos is read")
    unlisted = _unlisted(scene, (folder if folder.is_dir() else folder.parent) / "images")
    if unlisted:
        yield report("unlisted-photos", f"{len(unlisted)} in images/: {listed(unlisted)}", unlisted)
    lenses = [frame.lens for frame in scene.frames if frame.lens is not None]
    if lenses:
        values = ", ".join(f"{key} {value:.3g}" for key, value in lenses[0].distortion.items() if value)
        yield report("distortion", f"{len(lenses)} of {len(names)} frames; the first: {values}")
    faults = {name: _lens_fault(camera) for name, camera in zip(names, cameras, strict=True)}
    odd = [name for name, fault in faults.items() if fault]
    if odd:
        yield report("odd-lens", f"{len(odd)} of {len(names)} frames; {odd[0]}: {faults[odd[0]]}", odd)


def check_cameras(scene: Scene, folder: Path, arrangement: Arrangement) -> Iterator[Finding]:
    """What is to be said about how a scene's cameras stand, to each other, to the subject and to the points.

    Args:
        folder: as for `check_frames`.
    """
    report = _Report(scene.id, folder)
    names = np.array([frame.name for frame in scene.frames], dtype=object)
    views = _PointViews.of(scene.frames, scene.points) if scene.points is not None and len(scene.points) else None
    depth = None
    if arrangement.has_subject:
        depth = float(np.median(arrangement.distances))
        away = names[~arrangement.sees_origin].tolist()
        if away:
            yield report("looks-away", f"{len(away)} of {len(names)} frames: {listed(away)}", away)
    elif views is not None and views.seen.any():
        depth = float(np.nanmedian(views.depth))
    if len(names) > 1:
        yield from _check_path(scene, report, arrangement, depth)
    if arrangement.has_vertical:
        slanted = np.abs(arrangement.elevations) < 70.0  # the roll of one that looks straight down means nothing
        rolled = names[slanted & (np.abs(arrangement.rolls) > 45.0)].tolist()
        if rolled:
            yield report("rolled", f"{len(rolled)} of {len(names)} frames: {listed(rolled)}", rolled)
    if views is None:
        yield report("no-points", "the model holds none" if scene.points is not None else "the model comes without")
    else:
        yield from _check_points(scene, report, arrangement, views)


@dataclass(frozen=True)
class _Report:
    """Makes findings about one scene."""

    scene: str
    folder: Path

    def __call__(self, kind: str, message: str, frames: Sequence[str] = ()) -> Finding:
        return Finding(kind, self.scene, str(self.folder), message, tuple(frames))


@dataclass(frozen=True)
class _PointViews:
    """How each of N frames sees the scene's points.

    Attributes:
        seen: (N,) how many fall in the picture.
        behind: (N,) share that is not in front of the camera.
        outside: (N,) share, of those in front, that falls outside the picture.
        depth: (N,) median depth of those seen, NaN where there is none.
    """

    seen: Array
    behind: Array
    outside: Array
    depth: Array

    @classmethod
    def of(cls, frames: Sequence[Frame], points: Tensor) -> "_PointViews":
        rows = []
        for frame in frames:
            pixels, depth = frame.camera.project(points)
            size = pixels.new_tensor([frame.camera.width, frame.camera.height])
            front = depth > 0
            seen = front & (pixels >= 0).all(-1) & (pixels <= size).all(-1)
            n_front, n_seen = int(front.sum()), int(seen.sum())
            middle = float(depth[seen].median()) if n_seen else np.nan
            rows.append((n_seen, 1.0 - n_front / len(depth), 1.0 - n_seen / max(n_front, 1), middle))
        return cls(*np.array(rows, dtype=np.float64).T)


def _check_path(scene: Scene, report: _Report, arrangement: Arrangement, depth: float | None) -> Iterator[Finding]:
    names = np.array([frame.name for frame in scene.frames], dtype=object)
    centres = arrangement.centres
    from_middle = np.linalg.norm(centres - np.median(centres, axis=0), axis=1)
    spread = 2.0 * float(from_middle.max())
    same = _same_poses(arrangement, SAME_PLACE * (depth or spread))
    if same:
        pairs = [f"{names[i]} = {names[j]}" for i, j in same]
        yield report("same-pose", listed(pairs), [names[i] for i, _ in same])
    if spread <= STANDING * depth if depth is not None else spread == 0.0:
        apart = "at one point" if depth is None else f"within {spread / depth:.1%} of the distance to what they see"
        yield report("no-baseline", f"all {len(names)} cameras are {apart}")
        return
    if not arrangement.has_subject:
        yield report("no-subject", "no point is in the view of more than half of the cameras")
    if len(names) < 5:  # medians of fewer tell nothing
        return
    distances = arrangement.distances if arrangement.has_subject else from_middle
    far = distances > FAR * np.median(distances)
    if far.any():
        times = float(distances.max() / np.median(distances))
        some = names[far].tolist()
        yield report("far-camera", f"{listed(some)}: up to {times:.1f} times as far away as the median camera", some)
    steps = np.linalg.norm(np.diff(centres, axis=0), axis=1)
    steps[far[1:] | far[:-1]] = 0.0  # already told
    median = float(np.median(steps[steps > 0.0])) if steps.any() else 0.0
    jumps = np.flatnonzero(steps > JUMP * median)
    if len(jumps) > MANY_JUMPS:
        ends = listed([f"{names[at]} to {names[at + 1]}" for at in jumps])
        yield report("jump", f"{len(jumps)} jumps in {len(names)} frames, which are hardly in a path's order: {ends}")
        return
    for at in jumps:
        between = [name for name in scene.missing if names[at] < name < names[at + 1]]
        why = f"; {len(between)} listed photos between them are missing" if between else ""
        message = f"from {names[at]} to {names[at + 1]}, {steps[at] / median:.1f} times the median step{why}"
        yield report("jump", message, (names[at], names[at + 1]))


def _check_points(scene: Scene, report: _Report, arrangement: Arrangement, views: _PointViews) -> Iterator[Finding]:
    names = np.array([frame.name for frame in scene.frames], dtype=object)
    behind, outside = views.behind > 0.5, views.outside > 0.8
    if behind.mean() > 0.5:
        yield report("points-behind", f"most of the points, in {behind.sum()} of {len(names)} frames")
        return
    if outside.mean() > 0.5:
        yield report("points-outside", f"most of the points, in {outside.sum()} of {len(names)} frames")
        return
    few = names[views.seen < FEW_POINTS].tolist()
    if few:
        total = 0 if scene.points is None else len(scene.points)
        message = f"fewer than {FEW_POINTS} of {total} points, in {len(few)} of {len(names)} frames: {listed(few)}"
        yield report("few-points", message, few)
    if arrangement.has_subject and np.isfinite(views.depth).any():
        ratio = float(np.nanmedian(views.depth / np.maximum(arrangement.distances, 1e-12)))
        if not 1.0 / SCALES < ratio < SCALES:
            yield report("scale", f"the points are {ratio:.2g} times as far away as where the cameras look")
        low, high = np.nanpercentile(views.depth, (10, 90)).tolist()  # a single far camera is told as one
        if high > SCALES * low:
            yield report("scale", f"the points are {high / low:.1f} times as far away in some frames as in others")


def _same_poses(arrangement: Arrangement, tolerance: float) -> list[tuple[int, int]]:
    """Each frame with the first earlier one that has its pose."""
    pairs = []
    for i in range(1, len(arrangement.centres)):
        near = np.linalg.norm(arrangement.centres[:i] - arrangement.centres[i], axis=1) <= tolerance
        # |R - R'| (Frobenius) is sqrt(8) sin(angle / 2): unlike the trace, it is exact where the angle is small.
        apart = np.linalg.norm(arrangement.rotations[:i] - arrangement.rotations[i], axis=(1, 2)) / np.sqrt(8.0)
        alike = np.flatnonzero(near & (apart <= np.sin(np.radians(SAME_TURN) / 2.0)))
        if len(alike):
            pairs.append((i, int(alike[0])))
    return pairs


def _unlisted(scene: Scene, images: Path) -> list[str]:
    used = {frame.path.resolve() for frame in scene.frames if isinstance(frame.path, Path)}
    photos = (path for path in images.rglob("*") if path.suffix.lower() in PICTURE_SUFFIXES and not hidden(path))
    return sorted(str(path.relative_to(images)) for path in photos if path.resolve() not in used)


def _lens_fault(camera: Camera) -> str | None:
    (fx, _, cx), (_, fy, cy), _ = camera.intrinsics.tolist()
    fov = float(camera.fov)
    if not 5.0 < fov < 120.0:
        return f"a field of view of {fov:.3g} degrees"
    if not 0.9 < fx / fy < 1.1:
        return f"pixels that are not square, fx {fx:.4g} and fy {fy:.4g}"
    if not (0.25 < cx / camera.width < 0.75 and 0.25 < cy / camera.height < 0.75):
        return f"a principal point ({cx:.4g}, {cy:.4g}) far from the middle of {camera.width}x{camera.height}"
    return None
