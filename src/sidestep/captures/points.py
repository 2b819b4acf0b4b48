"""Points for a splatting program to start from, where there is no reconstruction to take any from."""

import numpy as np
import torch
from PIL import Image

from sidestep.cameras import Camera, distance_scale
from sidestep.captures.lens import Array
from sidestep.captures.ply import Colours

GREY = 128  # of points that the picture does not show


def starting_points(
    cameras: list[Camera], seen: tuple[Image.Image, Camera], count: int = 1000
) -> tuple[Array, Colours]:
    """Random points in a ball about the subject, half its distance in radius; the same at every call.

    They are not measured: splatting programs start from points, move them, and fail or start badly without any.

    Args:
        cameras: all of a scene's, not batched.
        seen: a picture and its camera. The subject is where this camera looks, at the distance where all axes meet,
            and points take the colours that it sees in their direction.
        count: of the points.

    Returns:
        (count, 3) float64 in the cameras' world, and (count, 3) uint8 RGB.
    """
    picture, camera = seen
    first = camera.to("cpu", torch.float64)
    others = Camera.stack([other.to("cpu", torch.float64).resize(first.width, first.height) for other in cameras])
    distance = 1.0 / distance_scale(first, others)
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(count, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    offsets = directions * rng.uniform(size=(count, 1)) ** (1 / 3) * distance / 2
    points = np.asarray(first.centre.numpy() + distance * first.rotation[2].numpy() + offsets, dtype=np.float64)
    colours = np.full((count, 3), GREY, dtype=np.uint8)
    pixels = first.project(torch.from_numpy(points))[0].floor().long()
    within = ((pixels >= 0) & (pixels < torch.tensor((first.width, first.height)))).all(dim=1).numpy()
    columns, rows = pixels[within].T.numpy()
    colours[within] = np.asarray(picture.convert("RGB"))[rows, columns]
    return points, colours
