"""Captured scenes on disk, read into `Scene`s."""

from sidestep.captures.reading import read_captures
from sidestep.captures.scene import Frame, Scene

__all__ = ["Frame", "Scene", "read_captures"]
