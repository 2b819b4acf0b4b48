"""Captured scenes on disk, read into `Scene`s, and views written as one."""

from sidestep.captures.reading import read_captures
from sidestep.captures.scene import Frame, Scene
from sidestep.captures.transforms import read_cameras
from sidestep.captures.writing import write_capture

__all__ = ["Frame", "Scene", "read_cameras", "read_captures", "write_capture"]
