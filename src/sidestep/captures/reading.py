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
    path = Path(path)
    if not path.exists():
        raise SidestepError(f"{path}: no such file or folder")
    if path.is_file():
        return _named_missing([read_transforms(path)])
    if looks_like_scene(path):
        return _named_missing([_read_scene(path, None)])
    folders: list[tuple[Path, str | None]]
    folders = [(folder, None) for folder in sorted(path.iterdir()) if looks_like_scene(folder)]
    if not folders:
        folders = [(folder, folder.parent.name) for folder in scene_folders(path)]
    return _named_missing(_read_set(path, folders))


def _read_scene(folder: Path, category: str | None) -> Scene:
    if find_model(folder) is None and (folder / "transforms.json").is_file():
        return read_transforms(folder, category)
    return read_colmap(folder, category)


def _read_set(path: Path, folders: list[tuple[Path, str | None]]) -> list[Scene]:
    if not folders:
        raise SidestepError(
            f"{path}: no scenes found; expected images/ with a COLMAP model in sparse/0, a transforms.json, or folders "
            "of these, by category or not"
        )
    scenes: list[Scene] = []
    failures: list[SidestepError] = []
    for folder, category in folders:
        try:
            scenes.append(_read_scene(folder, category))
        except SidestepError as error:
            failures.append(error)
            warnings.warn(f"scene left out: {error}", stacklevel=3)
    if not scenes:
        raise SidestepError(f"{path}: none of its {len(failures)} scenes can be read; the first: {failures[0]}")
    return scenes


def _named_missing(scenes: list[Scene]) -> list[Scene]:
    for scene in scenes:
        if scene.missing:
            names = ", ".join(scene.missing)
            warnings.warn(f"scene {scene.id}: {len(scene.missing)} listed photos are missing: {names}", stacklevel=3)
    return scenes
