"""A corner of a room, three textured planes, photographed by cameras that are known."""

import numpy as np
import torch
from PIL import Image

from sidestep.cameras import Camera

FOV = 55.0


def cameras(count: int, width: int = 400, height: int = 300, turn_only: bool = False) -> list[Camera]:
    """Cameras on an arc of 60 degrees that look at the corner, or that turn by 30 degrees on one spot."""
    found = []
    for angle in np.linspace(-0.5, 0.5, count):
        place = angle if not turn_only else 0.0
        centre = np.array([4.0 * np.sin(place), -1.6 + 0.3 * np.cos(3.0 * place), -4.0 * np.cos(place)])
        ahead = np.array([0.5 * np.sin(angle) if turn_only else 0.0, -0.4, 0.6]) - centre
        ahead /= np.linalg.norm(ahead)
        right = np.cross([0.0, 1.0, 0.0], ahead)
        right /= np.linalg.norm(right)
        pose = np.eye(4)
        pose[:3, :3] = np.stack((right, np.cross(ahead, right), ahead))
        pose[:3, 3] = -pose[:3, :3] @ centre
        lens = Camera.from_fov(FOV, width, height).intrinsics
        found.append(Camera(lens, torch.from_numpy(pose).float(), width, height))
    return found


def photograph(camera: Camera, seed: int = 0) -> Image.Image:
    """What the camera sees of the corner whose patterns are drawn from `seed`."""
    origins, rays = camera.rays(camera.height, camera.width)
    origin, directions = origins[0, 0].double().numpy(), rays.double().numpy()
    turned = np.array([[1.0, 0.0, 1.0], [-1.0, 0.0, 1.0]]) / np.sqrt(2.0)
    walls = [(np.array([0.0, 1.0, 0.0]), 0.0)] + [(normal, 1.5) for normal in turned]  # the floor is y = 0
    nearest = np.full(directions.shape[:2], np.inf)
    picture = np.full(directions.shape[:2], 0.5)
    for number, (normal, distance) in enumerate(walls):
        depth = (distance - normal @ origin) / (directions @ normal)
        hit = (depth > 0) & (depth < nearest)
        point = origin + depth[..., None] * directions
        along = np.cross(normal, [0.0, 1.0, 0.0] if number else [1.0, 0.0, 0.0])
        u, v = point @ along, point @ np.cross(normal, along)
        nearest = np.where(hit, depth, nearest)
        picture = np.where(hit, _pattern(u, v, np.random.default_rng(10 * seed + number)), picture)
    return Image.fromarray((255 * picture).astype(np.uint8)).convert("RGB")


def _pattern(u: np.ndarray, v: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Smooth noise of three sizes in [0, 1], repeated only far away."""
    total = np.zeros_like(u)
    for size, weight in ((0.4, 0.4), (0.13, 0.35), (0.05, 0.25)):
        grid = random.random((256, 256))
        x, y = np.clip(u, -99, 99) / size, np.clip(v, -99, 99) / size
        left, top = np.floor(x).astype(int), np.floor(y).astype(int)
        a, b = x - left, y - top
        rows, cols = top % 256, left % 256
        below, beside = (rows + 1) % 256, (cols + 1) % 256
        upper = (1 - a) * grid[rows, cols] + a * grid[rows, beside]
        lower = (1 - a) * grid[below, cols] + a * grid[below, beside]
        total += weight * ((1 - b) * upper + b * lower)
    return np.clip(0.5 + 1.8 * (total - 0.5), 0.0, 1.0)
