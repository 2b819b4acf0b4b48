"""Captured scenes of any layout that Sidestep knows."""

import warnings
from pathlib import Path

from sidestep.captures.colmap import find_model, read_colmap
from sidestep.captures.mvimgnet import looks_like_scene, scene_folders
from sidestep.captures.scene import Scene
from sidestep.captures.transforms import read_transforms
from sidestep.errors import SidestepError


def read_captures(path: str | Path) -> list[Scene]:
    """The scenes at `path`, sorted by category, then by name.

    Args:
        path: a transforms.json; a scene's folder (images/ and a COLMAP model, or a transforms.json; the model is read
            where both are there); a folder of scenes; or a folder of categories of scenes (MVImgNet's layout), whose
            names become the scenes' categories.

    Raises:
        SidestepError: if nothing is there, or nothing of it can be read. In a set of scenes, one that cannot be read
            is left out with a warning that names it: one bad scene in 200,000 must not stop a run of days. Photos that
            a scene lists but that are not there are named by a warning too, and the rest read.
    """
    folders = find_scenes(path)
    scenes: list[Scene] = []
    failures: list[SidestepError] = []
    for folder, category in folders:
        try:
            scene = read_scene(folder, category)
        except SidestepError as error:
            if folder == Path(path):
                raise
            failures.append(error)
            warnings.warn(f"scene left out: {error}", stacklevel=2)
            continue
        scenes.append(scene)
        if scene.missing:
            names = ", ".join(scene.missing)
            warnings.warn(f"scene {scene.id}: {len(scene.missing)} listed photos are missing: {names}", stacklevel=2)
    if not scenes:
        raise SidestepError(f"{path}: none of its {len(failures)} scenes can be read; the first: {failures[0]}")
    return scenes


def find_scenes(path: str | Path) -> list[tuple[Path, str | None]]:
    """Where the scenes at `path` are, each with its category, sorted; `read_scene` reads one.

    Args:
        path: as for `read_captures`; where it is one scene itself, it is the only entry.

    Raises:
        SidestepError: if nothing is there, or nothing that looks like a scene.
    """
    path = Path(path)
    if not path.exists():
        raise SidestepError(f"{path}: no such file or folder")
    if path.is_file() or looks_like_scene(path):
        return [(path, None)]
    scenes: list[tuple[Path, str | None]]
    scenes = [(folder, None) for folder in sorted(path.iterdir()) if looks_like_scene(folder)]
    scenes = scenes or [(folder, folder.parent.name) for folder in scene_folders(path)]
    if not scenes:
        raise SidestepError(
            f"{path}: no scenes found; expected images/ with a COLMAP model in sparse/0, a transforms.json, or folders "
            "of these, by category or not"
        )
    return scenes


def read_scene(path: Path, category: str | None = None) -> Scene:
    """The scene of a transforms.json, or of a folder with one or with images/ and a COLMAP model.

    Raises:
        SidestepError: naming the file, if it cannot be read.
    """
    if path.is_file() or (find_model(path) is None and (path / "transforms.json").is_file()):
        return read_transforms(path, category)
    return read_colmap(path, category)
