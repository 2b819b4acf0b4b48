from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sidestep.captures import Scene


@pytest.fixture(scope="session")
def furniture() -> Path:
    """Three rendered scenes in MVImgNet's layout."""
    return Path(__file__).parents[1] / "data" / "furniture"


@dataclass
class Rig:
    """Known cameras about the origin, for tests that write a format and read it: OpenCV's axes, pixel centres at +0.5.

    They are plain arithmetic, so that a reader is held against something that it does not share code with.
    """

    count: int = 4
    size: tuple[int, int] = (64, 48)
    intrinsics: np.ndarray = field(default_factory=lambda: np.array(((70.0, 0, 33.5), (0, 72.0, 22.25), (0, 0, 1))))

    def pose(self, index: int) -> np.ndarray:
        """(4, 4) world to camera: on a circle about the origin, a little above it, looking at it, slightly rolled."""
        angle = 0.3 + 0.4 * index
        centre = 4.0 * np.array((np.sin(angle), -0.3, -np.cos(angle)))
        forward = -centre / np.linalg.norm(centre)
        right = np.cross((0.05, 1.0, 0.0), forward)
        right /= np.linalg.norm(right)
        pose = np.eye(4)
        pose[:3, :3] = np.stack((right, np.cross(forward, right), forward))
        pose[:3, 3] = -pose[:3, :3] @ centre
        return pose

    @property
    def points(self) -> np.ndarray:
        return np.random.default_rng(5).uniform(-0.7, 0.7, (12, 3))

    def pixels(self, index: int) -> np.ndarray:
        """Where camera `index` sees the points."""
        pose = self.pose(index)
        seen = (self.points @ pose[:3, :3].T + pose[:3, 3]) @ self.intrinsics.T
        return seen[:, :2] / seen[:, 2:]

    def photo(self, path: Path, index: int = 0, size: tuple[int, int] | None = None, **options) -> None:
        """Saves a small picture, another for each index."""
        width, height = size or self.size
        rows, cols = np.mgrid[:height, :width]
        pixels = np.stack((cols * 3 % 256, rows * 5 % 256, np.full_like(rows, 40 * index % 256)), axis=-1)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path, **options)

    def check(self, scene: Scene, indices: list[int] | None = None, points: np.ndarray | None = None) -> None:
        """Every frame's camera must see the points within a thousandth of a pixel of where it should."""
        indices = list(range(self.count)) if indices is None else indices
        assert len(scene.frames) == len(indices)
        for frame, index in zip(scene.frames, indices, strict=True):
            world = torch.from_numpy(self.points if points is None else points)
            pixels, depth = frame.camera.to("cpu", torch.float64).project(world)
            scale = np.array((frame.camera.width, frame.camera.height)) / self.size
            assert bool((depth > 0).all())
            assert np.abs(pixels.numpy() / scale - self.pixels(index)).max() < 1e-3
            assert frame.load().size == (frame.camera.width, frame.camera.height)


@pytest.fixture
def rig() -> Rig:
    return Rig()
