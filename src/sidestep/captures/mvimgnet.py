"""MVImgNet's layout: <category>/<scene>/images/*.jpg and <category>/<scene>/sparse/0/ (COLMAP)."""

from pathlib import Path


def looks_like_scene(folder: Path) -> bool:
    """Whether the folder claims to hold one scene, readable or not: photos in images/, or a transforms.json."""
    return (folder / "images").is_dir() or (folder / "transforms.json").is_file()


def scene_folders(root: Path) -> list[Path]:
    """The folders <category>/<scene> under `root`, sorted by category, then by scene, as strings."""
    return sorted(folder for folder in root.glob("*/*") if looks_like_scene(folder))
