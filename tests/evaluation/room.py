"""A made-up room with exact depth maps and masks: a patterned floor and wall, and before the wall a ball."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sidestep.cameras import Camera
from sidestep.captures.maps import write_depth, write_mask
from sidestep.captures.writing import write_capture
from sidestep.images import to_image

BALL, RADIUS = torch.tensor([0.0, -0.5, 0.0], dtype=torch.float64), 0.5  # y points down; it stands on the floor y = 0
WALL = 1.5  # z of the wall behind the ball
NOTHING = 1e6


@dataclass(frozen=True)
class View:
    """A camera's picture (3, S, S) in [-1, 1], its depth (S, S) float32, and where the ball is, (S, S) bool."""

    camera: Camera
    photo: Tensor
    depth: Tensor
    ball: Tensor


def look(azimuth: float, size: int = 96, distance: float = 3.0) -> Camera:
    """A camera on a ring about the ball, 1 above the floor; azimuth in degrees, positive to the right."""
    angle = math.radians(azimuth)
    centre = torch.tensor([distance * math.sin(angle), -1.0, -distance * math.cos(angle)], dtype=torch.float64)
    forward = torch.nn.functional.normalize(BALL - centre, dim=0)
    down = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    right = torch.nn.functional.normalize(torch.linalg.cross(down, forward), dim=0)
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = torch.stack([right, torch.linalg.cross(forward, right), forward])
    pose[:3, 3] = -pose[:3, :3] @ centre
    return Camera.from_fov(40, size, size, pose)


def paint(places: Tensor) -> Tensor:
    """A smooth pattern in space, (..., 3) to (..., 3)."""
    x, y, z = places.unbind(-1)
    waves = [torch.sin(5 * x + 2 * z), torch.cos(4 * z - 3 * y + x), torch.sin(6 * y + 3 * x - 2 * z)]
    return 0.7 * torch.stack(waves, dim=-1)


def hit(origins: Tensor, directions: Tensor, ball: bool = True) -> tuple[Tensor, Tensor]:
    """How far along rays the room is, and whether the ball is what is there."""
    floor = -origins[..., 1] / directions[..., 1]
    wall = (WALL - origins[..., 2]) / directions[..., 2]
    far = torch.where(floor > 0, floor, NOTHING).minimum(torch.where(wall > 0, wall, NOTHING))
    offset = origins - BALL
    along = (offset * directions).sum(-1)
    root = along.square() - offset.square().sum(-1) + RADIUS**2
    near = torch.where(root > 0, -along - root.clamp_min(0).sqrt(), NOTHING)
    on_ball = (near < far) & (near > 0) & ball
    return torch.where(on_ball, near, far), on_ball


def render(camera: Camera, ball: bool = True) -> View:
    """What the camera sees of the room, with or without the ball."""
    origins, directions = camera.to(dtype=torch.float64).rays(camera.height, camera.width)
    distance, on_ball = hit(origins, directions, ball)
    places = origins + directions * distance[..., None]
    colours = torch.where(on_ball[..., None], paint(2 * places + 1), paint(places))
    depth = distance * (directions @ camera.rotation[2].double())
    return View(camera, colours.movedim(-1, 0).float(), depth.float(), on_ball)


def visible(places: Tensor, camera: Camera) -> Tensor:
    """Whether a camera sees places of the room, (..., 3): inside its picture, and nothing before them."""
    pixels, depth = camera.project(places.reshape(-1, 3))
    inside = (depth > 0) & (pixels >= 0).all(-1) & (pixels <= camera.width).all(-1)
    away = places - camera.centre
    distance = away.norm(dim=-1)
    nearest, _ = hit(camera.centre.expand_as(places), away / distance[..., None])
    return inside.reshape(places.shape[:-1]) & (nearest > distance * (1 - 1e-6))


def places(view: View) -> Tensor:
    """What a view's pixels show, (S, S, 3)."""
    origins, directions = view.camera.rays(view.camera.height, view.camera.width)
    return origins + directions * (view.depth / (directions @ view.camera.rotation[2]))[..., None]


def write_scene(folder: Path, azimuths: list[float], size: int = 64, maps: bool = True) -> None:
    """A captured scene of the room: photos, cameras and, unless left out, depth maps and masks."""
    views = [render(look(azimuth, size)) for azimuth in azimuths]
    write_capture(folder, [to_image(view.photo) for view in views], [view.camera for view in views])
    if maps:
        for kind in ("masks", "depths"):
            (folder / kind).mkdir()
        for index, view in enumerate(views):
            write_depth(folder / "depths" / f"{index:03d}.png", view.depth)
            write_mask(folder / "masks" / f"{index:03d}.png", view.ball)
