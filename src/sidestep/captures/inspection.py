"""What a captured set holds, and what is broken in it: the facts, scene by scene."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sidestep.cameras import Camera, distance_scale
from sidestep.captures.arrangement import Arrangement
from sidestep.captures.checks import check_cameras, check_frames
from sidestep.captures.findings import KINDS, SEVERITIES, Finding, listed
from sidestep.captures.folders import hidden, spelled_out
from sidestep.captures.layouts import megascenes_root, read_scene, scene_name
from sidestep.captures.maps import MASK_SETS
from sidestep.captures.packed import is_pack, read_pack
from sidestep.captures.pairs import paper_pairs
from sidestep.captures.reading import find_scenes
from sidestep.captures.scene import Scene
from sidestep.captures.splits import SPLITS, Split, model_split
from sidestep.errors import SidestepError
from sidestep.images import Stored, load_image

Turning = Literal["left", "right", "both", "none"]
Range = tuple[float, float]
NO_SCENES = (*MASK_SETS, "set_lists", "eval_batches")  # folders of MVImgNet's masks, and of CO3D's, beside scenes


@dataclass(frozen=True)
class SceneFacts:
    """A scene in figures; ranges are (lowest, highest), and what nothing tells is None.

    Attributes:
        model: the thing in the scene, which decides its split (`Scene.model`).
        pairs: how many pairs an epoch of training draws from it (`paper_pairs`): 10 of 25 frames or more, up to 7 of
            10 to 24, 0 of fewer.
        sizes: pictures' sizes, "WIDTHxHEIGHT", the most frequent first.
        fov: degrees across the shorter side.
        points: how many the scene's model has, or None where the format has none.
        arc: degrees about the vertical through the subject that the cameras cover, 0 to 360.
        turning: the side that the cameras step to, going from frame to frame; "both" where more than a tenth of the
            way goes back; "none" where it is less than a degree.
        elevation: degrees by which the cameras look down (`cameras.elevations`).
        distance: from the subject, in the unit in which the first frame's is 1 (`cameras.distance_scale`).
        step: median degrees between neighbouring frames, seen from the subject.
    """

    model: str
    split: Split
    frames: int
    pairs: int
    sizes: tuple[str, ...]
    fov: Range
    points: int | None
    arc: float | None
    turning: Turning | None
    elevation: Range | None
    distance: Range | None
    step: float | None


@dataclass(frozen=True)
class InspectedScene:
    """One scene of the set.

    Attributes:
        id: as `Scene.id`; of a scene that cannot be read, what it would be.
        folder: the scene's folder, or its transforms.json.
        facts: None for a scene that cannot be read; so are `arrangement` and `photos` empty.
        photos: the frames' names and files.
    """

    id: str
    category: str | None
    folder: Path
    facts: SceneFacts | None = None
    arrangement: Arrangement | None = None
    photos: tuple[tuple[str, Path | Stored], ...] = ()


@dataclass(frozen=True)
class Inspection:
    """A captured set.

    Attributes:
        path: what was inspected.
        scenes: in the order of `read_captures`.
        findings: errors first, then warnings, then notes; within these by kind and scene.
        decoded: whether every photo was decoded; without, damaged and doubled photos go unseen.
    """

    path: Path
    scenes: tuple[InspectedScene, ...]
    findings: tuple[Finding, ...]
    decoded: bool

    @property
    def totals(self) -> dict[str, Any]:
        """Counts of scenes, frames, categories, splits and findings."""
        read = [scene.facts for scene in self.scenes if scene.facts is not None]
        severities = Counter(finding.severity for finding in self.findings)
        splits = Counter(facts.split for facts in read)
        return {
            "scenes": len(self.scenes),
            "unreadable": len(self.scenes) - len(read),
            "frames": sum(facts.frames for facts in read),
            "categories": dict(Counter(scene.category for scene in self.scenes if scene.category is not None)),
            "models": len({facts.model for facts in read}),
            "splits": {split: splits[split] for split in SPLITS},
            "pairs": sum(facts.pairs for facts in read),
            "errors": severities["error"],
            "warnings": severities["warning"],
            "notes": severities["note"],
        }

    def lines(self) -> list[str]:
        """The set in plain text: a line for each error and warning, one for each kind of note, and the totals."""
        lines = [
            f"{finding.severity}: {finding.scene}: {KINDS[finding.kind].title}: {finding.message}"
            for finding in self.findings
            if finding.severity != "note"
        ]
        notes: dict[str, list[str]] = {}
        for finding in self.findings:
            if finding.severity == "note":
                notes.setdefault(finding.kind, []).append(finding.scene)
        lines += [f"note: {KINDS[kind].title}: {listed(scenes)}" for kind, scenes in notes.items()]
        totals = self.totals
        counted = ("scenes", "unreadable", "models", "frames", "pairs", "errors", "warnings", "notes")
        lines.append(", ".join(f"{totals[name]} {name}" for name in counted))
        for name in ("splits", "categories"):
            if totals[name]:
                lines.append(f"{name}: " + ", ".join(f"{key} {count}" for key, count in totals[name].items()))
        return lines

    def to_dict(self) -> dict[str, Any]:
        """All but the arrangements, for JSON."""
        findings = [
            {**asdict(finding), "severity": finding.severity, "advice": KINDS[finding.kind].advice}
            for finding in self.findings
        ]
        scenes = [
            {
                "id": scene.id,
                "category": scene.category,
                "folder": str(scene.folder),
                "facts": scene.facts and asdict(scene.facts),
            }
            for scene in self.scenes
        ]
        return {
            "path": str(self.path),
            "decoded": self.decoded,
            "totals": self.totals,
            "findings": findings,
            "scenes": scenes,
        }


def inspect_captures(
    path: str | Path, photos: bool = True, progress: Callable[[int, int], None] | None = None
) -> Inspection:
    """What the captures at `path` hold and what is broken in them. One bad scene does not stop the rest.

    Args:
        path: as for `read_captures`.
        photos: whether to decode every photo, as encoding will: most of the time that this takes.
        progress: called with (scenes done, scenes in all).

    Raises:
        SidestepError: if nothing is there, or nothing that looks like a scene.
    """
    places = _places(path)
    scenes: list[InspectedScene] = []
    findings = [] if is_pack(path) else list(_not_scenes(spelled_out(Path(path)), [folder for folder, _, _ in places]))
    seen: dict[bytes, tuple[str, str]] = {}
    models: dict[str, list[str]] = {}
    first_of: dict[str, Path] = {}
    for done, (folder, category, read) in enumerate(places, start=1):
        try:
            scene = read()
        except SidestepError as error:
            name = scene_name(folder)
            scene_id = f"{category}/{name}" if category else name
            scenes.append(InspectedScene(scene_id, category, folder))
            findings.append(Finding("unreadable", scene_id, str(folder), str(error)))
        else:
            first = first_of.setdefault(scene.id, folder)
            if first != folder:
                findings.append(Finding("same-name", scene.id, str(folder), f"{first} is called {scene.id}, too"))
            arrangement = Arrangement.of(scene)
            facts = _facts(scene, arrangement)
            named = tuple((frame.name, frame.path) for frame in scene.frames)
            scenes.append(InspectedScene(scene.id, category, folder, facts, arrangement, named))
            models.setdefault(scene.model, []).append(scene.id)
            findings += check_frames(scene, folder)
            findings += check_cameras(scene, folder, arrangement)
            if photos:
                findings += _check_photos(scene, seen)
        if progress is not None:
            progress(done, len(places))
    for ids in models.values():
        if len(ids) > 1:
            message = f"{len(ids)} scenes of one thing: {listed(ids)}"
            findings.append(Finding("same-model", ids[0], str(path), message))
    findings.sort(key=lambda finding: (SEVERITIES.index(finding.severity), list(KINDS).index(finding.kind)))
    return Inspection(Path(path), tuple(scenes), tuple(findings), photos)


def _places(path: str | Path) -> list[tuple[Path, str | None, Callable[[], Scene]]]:
    """Where the scenes are, each with its category and what reads it; a pack's are told by where they lie in it."""
    if is_pack(path):
        return [(Path(path, scene.id), scene.category, partial(replace, scene)) for scene in read_pack(path)]
    root = Path(path) if Path(path).is_dir() else None
    return [(folder, category, partial(read_scene, folder, category, root)) for folder, category in find_scenes(path)]


def _facts(scene: Scene, arrangement: Arrangement) -> SceneFacts:
    cameras = [frame.camera for frame in scene.frames]
    fov = [float(camera.fov) for camera in cameras]
    sizes = Counter(f"{camera.width}x{camera.height}" for camera in cameras)
    turned = arrangement.has_subject and len(cameras) > 1
    others = Camera.stack([camera.resize(cameras[0].width, cameras[0].height) for camera in cameras])
    scale = distance_scale(cameras[0], others, scene.points) if arrangement.has_subject else None
    return SceneFacts(
        model=scene.model,
        split=model_split(scene.model),
        frames=len(cameras),
        pairs=len(paper_pairs(len(cameras), np.random.default_rng(0))),
        sizes=tuple(size for size, _ in sizes.most_common()),
        fov=(min(fov), max(fov)),
        points=None if scene.points is None else len(scene.points),
        arc=arrangement.arc if turned else None,
        turning=_turning(arrangement.turns) if turned else None,
        elevation=_range(arrangement.elevations) if arrangement.has_vertical else None,
        distance=_range(arrangement.distances * scale) if scale is not None else None,
        step=float(np.median(arrangement.steps)) if turned else None,
    )


def _range(values: Any) -> Range:
    return float(np.min(values)), float(np.max(values))


def _turning(turns: Any) -> Turning:
    right, left = float(turns[turns > 0].sum()), float(-turns[turns < 0].sum())
    if right + left < 1.0:
        return "none"
    if min(right, left) > 0.1 * (right + left):
        return "both"
    return "right" if right > left else "left"


def _check_photos(scene: Scene, seen: dict[bytes, tuple[str, str]]) -> Iterator[Finding]:
    """Decodes every photo of a scene; `seen` maps the digest of each one's pixels to its scene and frame."""
    same: list[str] = []
    shared: dict[str, list[str]] = {}
    for frame in scene.frames:
        try:
            picture = load_image(frame.path)
        except SidestepError as error:
            yield Finding("damaged-photo", scene.id, str(frame.path), str(error), (frame.name,))
            continue
        digest = hashlib.blake2b(f"{picture.size}".encode() + picture.tobytes(), digest_size=16).digest()
        other, other_name = seen.setdefault(digest, (scene.id, frame.name))
        if other != scene.id:
            shared.setdefault(other, []).append(frame.name)
        elif other_name != frame.name:
            same.append(f"{frame.name} = {other_name}")
    folder = str(Path(str(scene.frames[0].path)).parent)
    if same:
        names = tuple(pair.split(" = ")[0] for pair in same)
        yield Finding("same-photo", scene.id, folder, listed(same), names)
    for other, frames in shared.items():
        message = f"{len(frames)} of its photos are also in {other}: {listed(frames)}"
        yield Finding("shared-photo", scene.id, folder, message, tuple(frames))


def _not_scenes(path: Path, folders: Sequence[Path]) -> Iterator[Finding]:
    """Folders that stand where scenes or categories stand in this set, and that every command passes over."""
    if folders[0] == path or folders[0].is_file() or megascenes_root(path) is not None:
        return
    parents = {parent for folder in folders for parent in folder.parents if parent.is_relative_to(path)}
    known = set(folders) | parents
    for parent in sorted(parents):
        for folder in sorted(parent.iterdir()):
            if folder.is_dir() and not hidden(folder) and folder not in known and folder.name not in NO_SCENES:
                name = str(folder.relative_to(path))
                yield Finding("no-scene", name, str(folder), "neither images/ nor a transforms.json in it")
