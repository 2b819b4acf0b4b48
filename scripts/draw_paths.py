"""Draws docs/paths.svg: the cameras of each trajectory about their subject, seen from above and behind.

python scripts/draw_paths.py docs/paths.svg
"""

import sys
from pathlib import Path

import torch

from sidestep.cameras import Camera
from sidestep.files import atomic_path
from sidestep.keyframes import KeyFrame, along
from sidestep.trajectories import dolly, dolly_zoom, orbit, spiral

PHOTO = Camera.from_fov(40, 40, 30)
ELEVATION = 20.0
KEYS = [KeyFrame(), KeyFrame(yaw=40, pitch=10), KeyFrame(yaw=40, pitch=10, distance=0.6), KeyFrame(yaw=-30)]
PATHS: dict[str, list[Camera]] = {
    "orbit": orbit(PHOTO, 9, elevation=ELEVATION),
    "spiral": spiral(PHOTO, 25, yaw=25, pitch=14, elevation=ELEVATION),
    "dolly": dolly(PHOTO, 5, distance=(1.0, 0.6)),
    "dolly-zoom": dolly_zoom(PHOTO, 5, distance=(1.0, 0.6)),
    "key frames": along(KEYS, PHOTO, 21, elevation=ELEVATION, easing="smooth"),
}
WIDTH, HEIGHT = 168, 170
DEPTH = 0.13  # of a drawn frustum
FIRST, LAST = (217, 119, 6), (37, 99, 235)  # amber to blue, legible on white and on black


def viewer() -> Camera:
    """Who looks at the scene: from above, behind and to the right of the photo's camera, upright."""
    eye = torch.tensor([1.15, -1.5, -1.35])
    forward = torch.nn.functional.normalize(torch.tensor([-0.05, 0.06, 0.42]) - eye, dim=0)
    right = torch.nn.functional.normalize(torch.linalg.cross(torch.tensor([0.0, 1.0, 0.0]), forward), dim=0)
    rotation = torch.stack([right, torch.linalg.cross(forward, right), forward])
    pose = torch.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation, -rotation @ eye
    return Camera.from_fov(24, WIDTH, HEIGHT - 20, pose)


def frustum(camera: Camera) -> torch.Tensor:
    """The tip and the four corners in the world, (5, 3)."""
    corners = torch.tensor([[0.0, 0.0], [40, 0], [40, 30], [0, 30]])
    homogeneous = torch.cat([corners, torch.ones(4, 1)], 1)
    local = homogeneous @ camera.intrinsics.inverse().mT * DEPTH
    tip = torch.zeros(1, 3)
    return (torch.cat([tip, local]) - camera.translation) @ camera.rotation


def polygon(points: torch.Tensor, left: float, style: str) -> str:
    where = " ".join(f"{x + left:.1f},{y + 20:.1f}" for x, y in points.tolist())
    return f'<polygon points="{where}" {style}/>'


def draw() -> str:
    """The whole picture."""
    look = viewer()
    size = f'width="{WIDTH * len(PATHS)}" height="{HEIGHT}" viewBox="0 0 {WIDTH * len(PATHS)} {HEIGHT}"'
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="13">']
    half = 0.1
    box = torch.cartesian_prod(*[torch.tensor([-half, half])] * 3) + torch.tensor([0.0, 0.0, 1.0])
    edges = [(i, j) for i in range(8) for j in range(i) if bin(i ^ j).count("1") == 1]
    for place, (name, cameras) in enumerate(PATHS.items()):
        left = WIDTH * place
        parts.append(f'<text x="{left + WIDTH / 2:.0f}" y="14" text-anchor="middle" fill="#808080">{name}</text>')
        corners, _ = look.project(box)
        for i, j in edges:
            parts.append(polygon(corners[[i, j]], left, 'fill="none" stroke="#808080"'))
        centres, _ = look.project(torch.stack([camera.centre for camera in cameras]))
        line = " ".join(f"{x + left:.1f},{y + 20:.1f}" for x, y in centres.tolist())
        parts.append(f'<polyline points="{line}" fill="none" stroke="#808080" stroke-dasharray="2 2"/>')
        for index, camera in enumerate(cameras):
            if index % max(1, round((len(cameras) - 1) / 8)):
                continue
            s = index / (len(cameras) - 1)
            colour = "rgb(" + ",".join(f"{a + (b - a) * s:.0f}" for a, b in zip(FIRST, LAST, strict=True)) + ")"
            tip, *corner = look.project(frustum(camera))[0]
            style = f'fill="{colour}" fill-opacity="0.12" stroke="{colour}" stroke-width="0.8"'
            sides = [torch.stack([tip, corner[i], corner[(i + 1) % 4]]) for i in range(4)]
            parts += [polygon(side, left, style) for side in sides]
    return "\n".join([*parts, "</svg>\n"])


if __name__ == "__main__":
    with atomic_path(Path(sys.argv[1])) as temporary:
        temporary.write_text(draw(), encoding="utf-8")
