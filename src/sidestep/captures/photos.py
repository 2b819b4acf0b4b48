"""A folder of photos, or a video, made into a scene in MVImgNet's layout: `import_photos`.

DIR/images/000.jpg, ...     without lens distortion
DIR/sparse/0/*.bin          COLMAP's model: pinhole cameras, points and observations
DIR/import.json             what came of each photo (`Import`)
DIR/import.html             pictures of the cameras

Until all of it is there, the work is in a hidden folder beside DIR, and the same call goes on with it.
"""

import logging
import math
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sidestep.captures.inspection import inspect_captures
from sidestep.captures.inspection_page import write_page
from sidestep.captures.reconstruction import (
    LEAST_INLIERS,
    Found,
    Photo,
    Progress,
    read_photos,
    reconstruct,
    require_pycolmap,
)
from sidestep.captures.sources import collect, fingerprint
from sidestep.errors import SidestepError
from sidestep.files import alone, bring_to_disk, make_folder, write_json, writing
from sidestep.inputs import read_json

MAX_SIZE = 1600  # pixels of the longest side; Gaussian splatting's usual limit too
LEAST_PLACED, LEAST_SHARE = 3, 0.2
LEAST_DEEP = 0.2  # share of the photos that show depth; of a camera that only turns, none do
LEAST_ANGLE = 2.0  # degrees between rays, median; COLMAP keeps points from 1.5 on
_log = logging.getLogger(__name__)
_FEW_FEATURES, _LEAST_TO_PLACE = 150, 30  # the latter is COLMAP's
_OWN = re.compile(r"images/\d{3,}\.jpg|sparse/0/(cameras|images|points3D|rigs|frames)\.bin|import\.(json|html)")
_ADVICE = (
    "take more photos, each sharing two thirds with the next, of a thing that stands still and has texture "
    "(a newspaper under it helps)"
)


@dataclass(frozen=True)
class Imported:
    """A photo that was used, or was to be.

    Attributes:
        name: the file in DIR/images; None for a photo that has no camera.
        original: the file in the source; or the time in the video, "12.35 s", or "frame 17" without one.
        reason: why it has no camera, or None.
    """

    name: str | None
    original: str
    reason: str | None = None


@dataclass(frozen=True)
class LensFound:
    """One camera at one focal length: what it is called, how many photos it took, degrees across the shorter side."""

    lens: str
    photos: int
    fov: float
    exif_fov: float | None


@dataclass(frozen=True)
class Import:
    """What came of an import.

    Attributes:
        folder: the scene.
        photos: those that were tried, in the source's order, then those left out.
        models: photos in each of the models that were found, the largest first; the first became the scene.
        points, track_length: points, and the mean number of photos that see one.
        reprojection_error: mean distance of a point from where it was seen, in pixels.
        lenses: the cameras.
    """

    folder: Path
    photos: tuple[Imported, ...]
    models: tuple[int, ...]
    points: int
    track_length: float
    reprojection_error: float
    lenses: tuple[LensFound, ...]

    @property
    def placed(self) -> int:
        """How many photos have a camera."""
        return sum(photo.reason is None for photo in self.photos)

    def to_dict(self) -> dict[str, Any]:
        """The report, for JSON."""
        return {
            "folder": str(self.folder),
            "total": len(self.photos),
            "registered": self.placed,
            "mean_reprojection_error": round(self.reprojection_error, 3),
            "points": self.points,
            "mean_track_length": round(self.track_length, 2),
            "models": list(self.models),
            "lenses": [asdict(lens) for lens in self.lenses],
            "photos": [asdict(photo) for photo in self.photos],
        }

    @classmethod
    def from_dict(cls, folder: Path, report: dict[str, Any]) -> "Import":
        """The report of a scene that was imported before, from its import.json."""
        return cls(
            folder,
            tuple(Imported(**photo) for photo in report["photos"]),
            tuple(report["models"]),
            report["points"],
            report["mean_track_length"],
            report["mean_reprojection_error"],
            tuple(LensFound(**lens) for lens in report["lenses"]),
        )

    def lines(self) -> list[str]:
        """The report in plain text."""
        lines = [f"no camera: {photo.original}: {photo.reason}" for photo in self.photos if photo.reason is not None]
        if len(self.models) > 1:
            others = ", ".join(map(str, self.models[1:]))
            lines.append(
                f"models: {len(self.models)} that do not connect; kept: the one of {self.models[0]}, not {others}"
            )
        lines.append(f"photos with a camera: {self.placed} of {len(self.photos)}")
        lines.append(f"reprojection error: {self.reprojection_error:.2f} px")
        lines.append(f"points: {self.points}, each in {self.track_length:.1f} photos")
        for lens in self.lenses:
            told = "none in EXIF" if lens.exif_fov is None else f"{lens.exif_fov:.1f}° by EXIF"
            lines.append(f"field of view: {lens.fov:.1f}° ({told}), {lens.photos} photos")
        lines.append(f"scene: {self.folder}")
        return lines


def import_photos(
    source: str | Path,
    folder: str | Path,
    frames: int | None = None,
    max_size: int = MAX_SIZE,
    progress: Progress | None = None,
) -> Import:
    """Finds the cameras of photos by COLMAP, and writes them as a scene that `read_captures` reads.

    Interrupted or killed, the same call goes on in the stage that it was in; with another source or other settings it
    begins anew. The scene's folder appears whole. An earlier import of the same photos is returned as it is, or
    replaced if the settings differ. Random numbers start from one seed.

    Args:
        source: a folder of photos, or a video.
        folder: the scene.
        frames: how many photos; None for all of a folder, and the 50 sharpest in their stretch of a video.
        max_size: pixels of the longest side that photos are scaled down to, at least 200.
        progress: called with a stage, how much of it is done, and of how much.

    Raises:
        SidestepError: if COLMAP is not installed, the source cannot be read, `folder` holds anything else, is in use,
            or is imported into by another process, or the photos do not overlap enough: fewer than 3, or fewer than a
            fifth of them find a place, or all were taken from one. What is refused leaves no working folder.
    """
    source, folder = Path(source), Path(folder)
    tell = progress or (lambda stage, done, total: None)
    if max_size < 200 or (frames is not None and frames < 3):
        raise SidestepError("frames must be 3 or more, and max_size 200 or more")
    require_pycolmap()
    settings = {"source": fingerprint(source), "frames": frames, "max_size": max_size}
    place = folder.resolve()  # a link to a folder stays one
    if Path.cwd().is_relative_to(place) or os.path.ismount(place):
        raise SidestepError(f"{folder}: cannot be replaced, being in use or mounted; name a folder in it")
    make_folder(place.parent)
    lock = place.with_name(f".{place.name}.import.lock")
    with alone(lock, f"{folder}: another import into it is running; wait for it, or choose another folder"):
        work = place.with_name(f".{place.name}.import")
        earlier = _earlier(folder, settings)
        if earlier is not None:
            shutil.rmtree(work, ignore_errors=True)  # of a run that was killed once its scene had its name
            return earlier
        with _nothing_left_if_refused(work):
            photos, left_out = _prepare(work, source, settings, tell)
        found = reconstruct(work, tell)
        with _nothing_left_if_refused(work):
            _check(source, photos, found)
        result = _report(folder, photos, found, left_out)
        write_json(work / "scene" / "import.json", {**result.to_dict(), "settings": settings})
        _write_page(work, folder)
        bring_to_disk(work / "scene")
        if place.exists():
            # Moved away before it is deleted: a kill in between must not leave half a folder under its name.
            shutil.rmtree(work / "old", ignore_errors=True)
            os.replace(place, work / "old")
        os.replace(work / "scene", place)
        shutil.rmtree(work)
    return result


@contextmanager
def _nothing_left_if_refused(work: Path) -> Iterator[None]:
    try:
        yield
    except SidestepError:
        shutil.rmtree(work)
        raise


def _earlier(folder: Path, settings: dict[str, Any]) -> Import | None:
    """The import that `folder` holds if it has these settings, or None if there is nothing worth keeping.

    Raises:
        SidestepError: if `folder` holds anything that would be lost.
    """
    if not folder.exists():
        return None
    if not folder.is_dir():
        raise SidestepError(f"{folder}: is a file; choose another name for the folder")
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if not path.is_dir()]
    foreign = [name for name in names if not _OWN.fullmatch(name)]
    if names and (foreign or "import.json" not in names):
        held = (foreign or names)[0]
        raise SidestepError(f"{folder}: holds {held}, which this command did not write; choose another folder")
    if not names:
        return None
    try:
        report = read_json(folder / "import.json")
        before, earlier = report["settings"], Import.from_dict(folder, report)
        other = before["source"] != settings["source"]
    except (SidestepError, TypeError, KeyError, AttributeError):
        raise SidestepError(
            f"{folder}: holds an import.json that this command did not write, or that is damaged; choose another folder"
        ) from None
    if before == settings:
        return earlier
    if other:
        raise SidestepError(f"{folder}: was made from other photos; choose another folder, or delete it")
    return None


def _prepare(
    work: Path, source: Path, settings: dict[str, Any], progress: Progress
) -> tuple[list[Photo], list[tuple[str, str]]]:
    """Fills the working folder with photos, unless it is of these settings already; these, and what was left out."""
    listed = work / "photos.json"
    if listed.is_file():
        try:
            kept = read_json(listed)
            if kept["settings"] == settings:
                return read_photos(work), kept["left_out"]
            _log.info("%s: the photos or the settings have changed; beginning anew", source)
        except (SidestepError, TypeError, KeyError) as error:
            _log.warning("%s: damaged (%s); beginning anew", listed, error)
    shutil.rmtree(work, ignore_errors=True)
    (work / "photos").mkdir(parents=True)
    with writing(work):
        photos, left_out = collect(
            source,
            work / "photos",
            settings["frames"],
            settings["max_size"],
            lambda done, total: progress("photos", done, total),
        )
    kept = {"settings": settings, "photos": [asdict(photo) for photo in photos], "left_out": left_out}
    write_json(listed, kept)
    return photos, left_out


def _check(source: Path, photos: list[Photo], found: Found) -> None:
    """Refuses what is no scene."""
    placed = sum(found.placed)
    is_deep = found.deep >= LEAST_DEEP * len(photos) and (found.angle >= LEAST_ANGLE or not placed)
    if is_deep and placed >= max(LEAST_PLACED, LEAST_SHARE * len(photos)):
        return
    if not is_deep and found.verified >= len(photos) / 2:
        raise SidestepError(
            f"{source}: the photos overlap but show no depth, as if the camera had only turned, or the thing were "
            "flat; step to the side between photos, walking around the thing"
        )
    poor = sum(count < _FEW_FEATURES for count in found.features)
    why = f"; {poor} of them are blurred or show hardly any texture" if poor else ""
    raise SidestepError(
        f"{source}: only {placed} of {len(photos)} photos can be put together, because they do not overlap enough"
        f"{why}; {_ADVICE}"
    )


def _report(folder: Path, photos: list[Photo], found: Found, left_out: list[tuple[str, str]]) -> Import:
    named = []
    for number, photo in enumerate(photos):
        reason = None if found.placed[number] else _reason(number, photos, found)
        named.append(Imported(None if reason else photo.name, photo.original, reason))
    named += [Imported(None, original, reason) for original, reason in left_out]
    lenses = []
    for lens, focal in found.focal.items():
        of_it = [photo for number, photo in enumerate(photos) if photo.lens == lens and found.placed[number]]
        fov = _fov(min(of_it[0].width, of_it[0].height), focal)
        lenses.append(LensFound(lens, len(of_it), round(fov, 2), of_it[0].fov and round(of_it[0].fov, 2)))
    return Import(
        folder,
        tuple(named),
        tuple(found.models),
        found.points,
        found.track_length,
        found.reprojection_error,
        tuple(lenses),
    )


def _fov(side: int, focal: float) -> float:
    """Degrees across a side of so many pixels."""
    return math.degrees(2.0 * math.atan(side / 2.0 / focal))


def _reason(number: int, photos: list[Photo], found: Found) -> str:
    """Why a photo has no camera, as likely as not."""
    features = found.features[number]
    most, other = found.matches[number]
    with_placed, placed = found.matches_placed[number]
    if features < _FEW_FEATURES:
        return f"blurred, or hardly any texture ({features} features)"
    if most < LEAST_INLIERS:
        return "overlaps with no other photo"
    if with_placed < LEAST_INLIERS:
        return f"overlaps only with photos that have no camera either (most with {photos[other].original})"
    if with_placed < _LEAST_TO_PLACE:
        return f"overlaps too little ({with_placed} matches with {photos[placed].original}, the most)"
    fault = "fit no place: repeated patterns, or things that moved"
    return f"its {with_placed} matches with {photos[placed].original} {fault}"


def _write_page(work: Path, folder: Path) -> None:
    """WORK/scene/import.html, as `capture inspect` draws it, under the name that the scene will have."""
    scene = work / "page" / folder.resolve().name
    shutil.rmtree(scene.parent, ignore_errors=True)
    scene.parent.mkdir()
    os.replace(work / "scene", scene)
    try:
        found = inspect_captures(scene, photos=False)
        findings = tuple(replace(finding, path=str(folder)) for finding in found.findings)
        write_page(scene / "import.html", replace(found, path=folder, findings=findings))
    finally:
        os.replace(scene, work / "scene")
