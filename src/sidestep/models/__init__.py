"""The model that comes with the package, and what a model folder's name means."""

from pathlib import Path

BUNDLED = "bundled"


def model_folder(name: str | Path) -> str:
    """The folder or hub id of a model: "bundled" is the small model inside the package, anything else is itself."""
    return str(Path(__file__).parent / "small") if str(name) == BUNDLED else str(name)
