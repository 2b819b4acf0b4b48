"""Points for a splatting program to start from, where there is no reconstruction to take any from."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from sidestep.cameras import Camera, distance_scale
from sidestep.captures.lens import Array
from sidestep.files import atomic_path

Colours = npt.NDArray[np.uint8]
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


def write_ply(path: str | Path, points: Array, colours: Colours) -> None:
    """Writes points (N, 3) and their colours (N, 3) as an ASCII PLY, which nerfstudio's splatfacto starts from."""
    header = ["ply", "format ascii 1.0", f"element vertex {len(points)}"]
    header += [f"property double {axis}" for axis in "xyz"]
    header += [f"property uchar {channel}" for channel in ("red", "green", "blue")]
    lines = (
        " ".join([*(f"{value:.12g}" for value in point), *map(str, colour)])
        for point, colour in zip(points, colours.tolist(), strict=True)
    )
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join([*header, "end_header", *lines]) + "\n", encoding="ascii")
