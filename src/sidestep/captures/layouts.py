"""The layouts of a scene's folder: how each is told from the others, and who reads it."""

import re
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from sidestep.captures import co3d, dtu, realestate10k
from sidestep.captures.colmap import find_models, read_colmap
from sidestep.captures.folders import looking, spelled_out
from sidestep.captures.scene import Scene
from sidestep.captures.transforms import blender_files, read_blender, read_transforms
from sidestep.errors import SidestepError
from sidestep.inputs import leads_out, link_out

# DL3DV's benchmark has each scene in both layouts, in folders of these names in one that is called by a hash.
NESTED = ("nerfstudio", "gaussian_splat")
_HASH = re.compile(r"[0-9a-f]{64}")


class Layout(NamedTuple):
    """One layout of a scene's folder.

    Attributes:
        holds: whether a folder has it, by the names of what is in it.
        read: its reader, from the folder and the category.
    """

    holds: Callable[[Path], bool]
    read: Callable[[Path, str | None], Scene]


def _nested(folder: Path) -> Path | None:
    inside = (folder / name for name in NESTED if _HASH.fullmatch(folder.name))
    return next((path for path in inside if find_models(path) or (path / "transforms.json").is_file()), None)


def _read_nested(folder: Path, category: str | None) -> Scene:
    return _read(_nested(folder) or folder, category)


def megascenes_root(folder: Path) -> Path | None:
    """The folder of MegaScenes' reconstructions, where a folder is that of its whole download; or None.

    It keeps the photos of all scenes in one images/ beside it, so that the whole looks like a scene.
    """
    root = folder / "reconstruct"
    return root if root.is_dir() and any(re.fullmatch(r"[0-9]{3}", path.name) for path in root.iterdir()) else None


def _is_megascenes(folder: Path) -> bool:
    """Whether a folder is one of MegaScenes': reconstruct/001/234/, with the photos in images/001/234/."""
    return bool(re.fullmatch(r"[0-9]{3}", folder.name)) and (folder / "sparses").is_dir()


def _read_megascenes(folder: Path, category: str | None) -> Scene:
    folder = folder.absolute()
    number = folder.parent.name, folder.name
    photos = folder.parent.parent.parent / "images" / number[0] / number[1]
    scene = read_colmap(folder, category, photos if photos.is_dir() else None)
    return replace(scene, name="".join(number))


def _read_own_clip(folder: Path, category: str | None) -> Scene:
    return realestate10k.read_realestate10k(folder / f"{folder.name}.txt", category)


# In this order: what is told by a file of its own comes before what is told by folders that others have, too.
LAYOUTS = (
    Layout(co3d.is_sequence, co3d.read_co3d),
    Layout(lambda folder: dtu.camera_file(folder) is not None, dtu.read_dtu),
    Layout(_is_megascenes, _read_megascenes),
    Layout(lambda folder: bool(find_models(folder)), read_colmap),
    Layout(lambda folder: (folder / "transforms.json").is_file(), read_transforms),
    Layout(lambda folder: bool(blender_files(folder)), read_blender),
    Layout(lambda folder: _nested(folder) is not None, _read_nested),
    Layout(lambda folder: realestate10k.own_clip(folder) is not None, _read_own_clip),
)


def scene_name(path: Path) -> str:
    """The name that the scene of a folder or file has, or would have if it could be read."""
    path = path.resolve()
    if path.is_file():
        return path.stem if path.suffix == ".txt" else scene_name(path.parent)
    if _is_megascenes(path):
        return path.parent.name + path.name
    return path.parent.name if path.name in NESTED and _HASH.fullmatch(path.parent.name) else path.name


def looks_like_scene(folder: Path) -> bool:
    """Whether a folder claims to hold one scene, readable or not: photos in images/, or any of the layouts."""
    return folder.is_dir() and ((folder / "images").is_dir() or any(layout.holds(folder) for layout in LAYOUTS))


def read_scene(path: Path, category: str | None = None, root: Path | None = None) -> Scene:
    """The scene of a folder in any of the layouts, of a transforms.json, or of RealEstate10K's file of cameras.

    Args:
        root: a folder that `path` is in; its own if left out. A link to a photo must stay in it, in the scene, or in
            what SIDESTEP_LINKS_TO names: else whoever was sent a scene would hand on, with what is made of it, pictures
            that are this machine's.

    Raises:
        SidestepError: naming the file, if it cannot be read, or is a link that leads out of both.
    """
    path = spelled_out(path)
    scene = _read(path, category)
    own = path if path.is_dir() else path.parent
    with looking(path):
        for frame in scene.frames:
            for file in (*_files(frame.path), *_files(frame.mask), *_files(frame.depth)):
                # The scene's own folder may be a link: sets are put together from several disks that way.
                if leads_out(file, root or own) and leads_out(file, own):
                    raise link_out(file, str(own))
    return scene


def _files(source: Any) -> Iterator[Path]:
    """The files that one of a frame's is, or is made of."""
    if isinstance(source, Path):
        yield source
    elif is_dataclass(source):
        for field in fields(source):
            yield from _files(getattr(source, field.name))


def _read(path: Path, category: str | None) -> Scene:
    with looking(path):
        if path.is_file():
            read = realestate10k.read_realestate10k if path.suffix == ".txt" else read_transforms
            scene = read(path, category)
        else:
            reader = next((layout.read for layout in LAYOUTS if layout.holds(path)), None)
            if reader is None:
                raise SidestepError(
                    f"{path}: photos without cameras: no COLMAP model (sparse/0/images.bin or .txt) and no "
                    "transforms.json; run COLMAP on them"
                )
            scene = reader(path, category)
    return replace(scene, name=scene_name(path)) if scene.name in NESTED else scene
