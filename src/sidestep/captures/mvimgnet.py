"""MVImgNet's layout: <category>/<scene>/images/*.jpg and <category>/<scene>/sparse/0/ (COLMAP)."""

import warnings
from pathlib import Path

from sidestep.captures.colmap import read_colmap
from sidestep.captures.scene import Scene
from sidestep.errors import SidestepError


def read_mvimgnet(root: Path) -> list[Scene]:
    """All scenes of all categories, sorted by category, then by scene, as strings.

    A scene that cannot be read is left out with a warning that names it, because one bad scene in 200,000 must not
    stop a run of days.

    Raises:
        SidestepError: if no scene can be read.
    """
    scenes: list[Scene] = []
    failures: list[str] = []
    for folder in scene_folders(root):
        try:
            scenes.append(read_colmap(folder, category=folder.parent.name))
        except SidestepError as error:
            failures.append(str(error))
            warnings.warn(f"scene left out: {error}", stacklevel=2)
    if not scenes:
        reason = f"the first of {len(failures)} faults: {failures[0]}" if failures else "there are no scene folders"
        raise SidestepError(f"{root}: no scene can be read; {reason}")
    return scenes


def scene_folders(root: Path) -> list[Path]:
    """The folders <category>/<scene> under `root` that hold an images folder, sorted."""
    return sorted(images.parent for images in root.glob("*/*/images") if images.is_dir())
