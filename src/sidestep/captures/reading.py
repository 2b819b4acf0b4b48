"""Captured scenes of any layout that Sidestep knows."""

import os
import re
import warnings
from pathlib import Path

from sidestep.captures.co3d import ANNOTATIONS, is_sequence
from sidestep.captures.findings import listed
from sidestep.captures.folders import looking, spelled_out, subfolders
from sidestep.captures.layouts import looks_like_scene, megascenes_root, read_scene
from sidestep.captures.maps import MASK_SETS
from sidestep.captures.packed import is_pack, read_pack
from sidestep.captures.realestate10k import find_clips, own_clip
from sidestep.captures.scene import Scene
from sidestep.captures.transforms import BLENDER_FILES
from sidestep.errors import SidestepError

DEEPEST = 4  # levels below the given folder at which scenes may lie: archives, categories, scenes, and one to spare


def read_captures(path: str | Path) -> list[Scene]:
    """The scenes at `path`, sorted by category, then by name.

    Args:
        path: a scene's folder (images/ and a COLMAP model, or a transforms.json; the model is read where both are
            there); a folder of scenes; a folder of categories of scenes (MVImgNet's layout), whose names become the
            scenes' categories; any of these as CO3D, RealEstate10K, DTU, NeRF's synthetic scenes, DL3DV and MegaScenes
            have them (docs/formats); or one transforms.json or RealEstate10K's file of cameras; or the folder or URL
            of a pack (`sidestep pack`).

    Raises:
        SidestepError: if nothing is there, or nothing of it can be read. In a set of scenes, one that cannot be read,
            or whose photos are links that lead out of it and of `path` (and of the folders that SIDESTEP_LINKS_TO
            names), is left out with a warning that names it: one bad scene in 200,000 must not stop a run of days.
            Photos that a scene lists but that are not there are named by a warning too, and the rest read.
    """
    if is_pack(path):
        return read_pack(path)
    path = spelled_out(Path(path))
    folders = find_scenes(path)
    scenes: list[Scene] = []
    failures: list[SidestepError] = []
    places: dict[str, Path] = {}
    for folder, category in folders:
        try:
            scene = read_scene(folder, category, None if path.is_file() else path)
        except SidestepError as error:
            if folder == path:
                raise
            failures.append(error)
            warnings.warn(f"scene left out: {error}", stacklevel=2)
            continue
        first = places.setdefault(scene.id, folder)
        if first != folder:
            warnings.warn(f"scene left out: {folder}: {first} is called {scene.id}, too; rename one", stacklevel=2)
            continue
        scenes.append(scene)
        if scene.missing:
            names = listed(scene.missing)
            warnings.warn(f"scene {scene.id}: {len(scene.missing)} listed photos are missing: {names}", stacklevel=2)
    if not scenes:
        raise SidestepError(f"{path}: none of its {len(failures)} scenes can be read; the first: {failures[0]}")
    return scenes


def find_scenes(path: str | Path) -> list[tuple[Path, str | None]]:
    """Where the scenes at `path` are, each with its category, sorted; `read_scene` reads one.

    Args:
        path: as for `read_captures`; where it is one scene itself, it is the only entry.

    Raises:
        SidestepError: if nothing is there, or nothing that looks like a scene. A folder below that may not be read is
            passed over with a warning.
    """
    path = spelled_out(Path(path))
    with looking(path):
        if not path.exists():
            raise SidestepError(f"{path}: no such file or folder")
        if path.is_file():
            return [(path, None)]
        clips = find_clips(path)
        if clips:
            return [(clip, None) for clip in clips]
        megascenes = megascenes_root(path)
        if megascenes is None and looks_like_scene(path):
            return [(path, None)]
        scenes = _scenes_below(megascenes or path)
    if not scenes:
        raise SidestepError(
            f"{path}: no scenes found; expected images/ with a COLMAP model in sparse/0, a transforms.json, the layout "
            "of CO3D, RealEstate10K (with its frames), DTU, NeRF's synthetic scenes, DL3DV or MegaScenes, or folders "
            "of these, by category or not"
        )
    return scenes


def claimed(path: Path) -> Path | None:
    """The first folder at `path` or anywhere below that claims to hold scenes, readable or not; or None."""
    signs = {"sparse", "sparses", "transforms.json", *BLENDER_FILES, ANNOTATIONS}
    with looking(path):
        for parent, folders, files in os.walk(path):
            folder = spelled_out(Path(parent))
            if signs & {*folders, *files} or looks_like_scene(folder) or find_clips(folder):
                return folder
    return None


def _scenes_below(path: Path) -> list[tuple[Path, str | None]]:
    """The scenes below a folder, with their categories, sorted; a scene's folder is not looked into for others."""
    scenes: list[tuple[Path, str | None]] = []
    level = subfolders(path)
    for depth in range(1, DEEPEST + 1):
        below: list[Path] = []
        for folder in level:
            try:
                if looks_like_scene(folder):
                    scenes.append((folder, _category(folder) if depth > 1 or is_sequence(folder) else None))
                elif depth < DEEPEST:
                    inner = subfolders(folder)
                    below += [] if _holds_masks(folder, inner) else inner
            except OSError as error:
                warnings.warn(f"folder passed over: {folder}: cannot be read ({error.strerror})", stacklevel=4)
        level = below
    return sorted(scenes, key=lambda scene: (scene[1] or "", scene[0].name, len(scene[0].parts), scene[0]))


def _holds_masks(folder: Path, inner: list[Path]) -> bool:
    """Whether a folder repeats those beside it for MVImgNet's masks: hundreds of thousands, and no scene among them."""
    return folder.name in MASK_SETS and any((folder.parent / path.name).is_dir() for path in inner)


def _category(scene: Path) -> str | None:
    """What a scene's folder lies in, unless that only divides a data set: DL3DV's 3K/, MegaScenes' 001/, a split."""
    name = scene.parent.name
    divides = re.fullmatch(r"[0-9]+K", name) or (scene / "sparses").is_dir() or own_clip(scene) is not None
    return None if divides or name == scene.name else name
