"""Captured scenes of any layout that Sidestep knows."""

from pathlib import Path

from sidestep.captures.mvimgnet import read_mvimgnet
from sidestep.captures.scene import Scene


def read_captures(path: str | Path) -> list[Scene]:
    return read_mvimgnet(Path(path))
