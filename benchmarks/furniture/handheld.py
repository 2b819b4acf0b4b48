"""The way of a camera in a hand about a thing: it goes to and fro, up and down, sways, and is held a little askew."""

from dataclasses import dataclass

import numpy as np

Array = np.ndarray
Rng = np.random.Generator

FRAMES = 25
ELEVATION = (0.0, 60.0)  # degrees above the thing's centre, the limits of every way
ARC = (70.0, 150.0)  # degrees about the thing from one end of a way to the other
FIELD_OF_VIEW = (35.0, 65.0)  # degrees
ROLL = 8.0  # degrees at most


@dataclass(frozen=True)
class View:
    """A camera: where it is and looks to, in metres, how it is held, and its field of view, in degrees.

    Positive roll turns the camera clockwise about its axis, as seen from behind it.
    """

    eye: tuple[float, float, float]
    aim: tuple[float, float, float]
    roll: float
    field_of_view: float

    def axes(self) -> Array:
        """(3, 3): the camera's right, down and forward in the world (OpenCV's axes), a row each."""
        forward = np.subtract(self.aim, self.eye)
        forward /= np.linalg.norm(forward)
        right = np.cross(forward, (0.0, 0.0, 1.0))
        right /= np.linalg.norm(right)
        down = np.cross(forward, right)
        c, s = np.cos(np.radians(self.roll)), np.sin(np.radians(self.roll))
        return np.stack((c * right + s * down, c * down - s * right, forward))

    def project(self, points: Array) -> Array:
        """Points (..., 3) as (..., 3): x and y in half pictures from the centre (1 is the border), and the depth."""
        local = (points - np.array(self.eye)) @ self.axes().T
        half = np.tan(np.radians(self.field_of_view) / 2)
        depth = np.maximum(local[..., 2:], 1e-6)
        return np.concatenate((local[..., :2] / depth / half, local[..., 2:]), -1)


def smooth(rng: Rng, frames: int, knots: int) -> Array:
    """A wandering line (frames,) within [-1, 1] that bends about `knots` times."""
    t = np.linspace(0, 1, frames)[:, None]
    k = np.arange(1, knots + 1)
    waves = rng.normal(0, 1, knots) * np.sin(np.pi * k * t + rng.uniform(0, 2 * np.pi, knots)) / k
    line = waves.sum(1)
    return line / max(1.0, float(np.abs(line).max()))


def turns(rng: Rng, frames: int) -> Array:
    """How far round the camera is, (frames,) in [-0.5, 0.5]: straight through, there and partly back, or to and fro."""
    match rng.integers(4):
        case 0 | 1:
            times, places = [0.0, 1.0], [-0.5, 0.5]
        case 2:
            times, places = [0.0, rng.uniform(0.55, 0.8), 1.0], [-0.5, 0.5, rng.uniform(-0.1, 0.35)]
        case _:
            times, places = [0.0, rng.uniform(0.2, 0.4), 1.0], [rng.uniform(-0.2, 0.2), 0.5, -0.5]
    t = np.linspace(0, 1, frames)
    dense = np.interp(np.linspace(0, 1, 400), times, places)
    kernel = np.hanning(61) / np.hanning(61).sum()
    soft = np.convolve(np.pad(dense, 30, mode="reflect", reflect_type="odd"), kernel, "valid")
    hurried = np.clip(t + 0.04 * smooth(rng, frames, 3), 0, 1)
    line = np.interp(hurried, np.linspace(0, 1, 400), soft)
    line = (line - line.min()) / (line.max() - line.min()) - 0.5
    return line * rng.choice([-1, 1])


def elevations(rng: Rng, frames: int, lowest: float, highest: float) -> Array:
    """Degrees (frames,) within the limits, most often as one looks at a thing: somewhat from above."""
    low, high = np.sort(lowest + (highest - lowest) * rng.beta((1.0, 1.4), (2.2, 1.2)))
    if high - low < 20:
        low, high = max(lowest, low - 12), min(highest, high + 12)
    line = smooth(rng, frames, 3)
    line = (line - line.min()) / max(float(np.ptp(line)), 1e-6)
    return low + (high - low) * line


def corners(half: Array) -> Array:
    """The corners (8, 3) of a box around 0."""
    return np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) * half


def fitting_distance(field_of_view: float, box: Array, azimuth: float, elevation: float) -> float:
    """How far from its centre a box's corners (8, 3) just fill the picture, in metres; angles in degrees."""
    low, high = 0.05, 100.0
    for _ in range(40):
        distance = (low + high) / 2
        view = View(on_sphere(azimuth, elevation, distance), (0.0, 0.0, 0.0), 0.0, field_of_view)
        seen = view.project(box)
        low, high = (low, distance) if seen[:, 2].min() > 0.02 and np.abs(seen[:, :2]).max() <= 1 else (distance, high)
    return high


def on_sphere(azimuth: float, elevation: float, distance: float) -> tuple[float, float, float]:
    """A point about 0; azimuth 0 lies at -y, where a thing's front looks to, and grows towards +x. Degrees."""
    a, e = np.radians(azimuth), np.radians(elevation)
    x, y, z = distance * np.sin(a) * np.cos(e), -distance * np.cos(a) * np.cos(e), distance * np.sin(e)
    return float(x), float(y), float(z)


def walk(
    rng: Rng, centre: Array, box: Array, azimuth: float, arc: float, heights: tuple[float, float], frames: int = FRAMES
) -> list[View]:
    """A way about a thing.

    Args:
        centre: the thing's, (3,) in metres.
        box: its corners around the centre, (8, 3).
        azimuth, arc: the middle and the length of the way about it, in degrees.
        heights: the lowest and the highest that the camera may be, in metres above the floor.
    """
    field = rng.uniform(*FIELD_OF_VIEW)
    zoom = 1 + 0.06 * smooth(rng, frames, 2) * (rng.random() < 0.25)
    around = azimuth + arc * turns(rng, frames) + 1.0 * smooth(rng, frames, 6)
    rise = elevations(rng, frames, *ELEVATION)
    middle = fitting_distance(field, box, azimuth, float(rise.mean())) * rng.uniform(0.92, 1.35)
    away = middle * (1 + rng.uniform(0.03, 0.14) * smooth(rng, frames, 3) + 0.01 * smooth(rng, frames, 8))
    size = float(np.linalg.norm(box, axis=1).max())
    sway = np.stack([smooth(rng, frames, 4) for _ in range(3)], 1) * size * rng.uniform(0.03, 0.16)
    shift = rng.uniform(-0.12, 0.12, 3) * size
    roll = np.clip(rng.normal(0, 1.5) + rng.uniform(0.5, 4) * smooth(rng, frames, 4), -ROLL, ROLL)
    views = []
    for i in range(frames):
        # Where the ceiling or the floor is in the way, the camera stays as far away and goes less high or low.
        reach = (np.array(heights) - centre[2]) / away[i]
        limits = np.degrees(np.arcsin(np.clip(reach, -0.99, 0.99)))
        elevation = float(np.clip(rise[i], max(limits[0], ELEVATION[0]), max(limits[1], ELEVATION[0])))
        eye = np.add(centre, on_sphere(float(around[i]), elevation, float(away[i])))
        aim = centre + shift + sway[i]
        views.append(View(tuple(eye.tolist()), tuple(aim.tolist()), float(roll[i]), float(field * zoom[i])))
    return views
