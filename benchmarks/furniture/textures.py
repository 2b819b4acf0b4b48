"""Pictures of surfaces, painted by seed: floors, walls, rugs, cloth, wood, and what hangs in frames.

A surface repeats without a seam unless it says otherwise. Everything is numpy; noise is made in the frequency domain,
where it repeats by itself and where a stretch of it is a grain.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Array = np.ndarray
Rng = np.random.Generator
SIZE = 512


@dataclass(frozen=True)
class Texture:
    """A picture of a surface.

    Attributes:
        pixels: (H, W, 3) float32 in [0, 1], sRGB.
        metres: how much of the surface the picture's width and height show.
        roughness: 0 a mirror, 1 chalk.
    """

    pixels: Array
    metres: tuple[float, float]
    roughness: float


WOODS = ("#c8a878", "#b58a5a", "#8a5f3c", "#5f3f28", "#d8c29c", "#a9825b", "#9c8f80", "#74513a", "#c49a6c", "#463226")
STONES = ("#cfcac2", "#b8b1a6", "#8d8984", "#e2ddd4", "#a99a88", "#6c6a68", "#d9cfc0", "#4b4b4d", "#b89f88")
PALES = ("#e9e6df", "#dfdad0", "#e4e0e6", "#d9dfe0", "#e8ddcb", "#cfd6cd", "#d8d4cf", "#e6d5c6", "#d3dbe4", "#dedbb9")
STRONGS = ("#7f9a86", "#506680", "#b3705a", "#caa24e", "#8c6b82", "#3f5a57", "#c98f7c", "#6d87a3", "#9aa07a", "#83534a")
CLOTHS = ("#7d7f84", "#b7a990", "#4a5568", "#8b5e52", "#6f7d64", "#c7bfb2", "#9b8aa0", "#ab7b4f", "#5c4a45", "#a8b5bb",
          "#27384f", "#8f3f3a", "#d0a85c", "#3f6360")  # fmt: skip


def colour(rng: Rng, palette: tuple[str, ...], sway: float = 0.03) -> Array:
    """A colour (3,) near one of a palette's, each given as "#rrggbb"."""
    code = palette[rng.integers(len(palette))]
    base = np.array([int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.clip(base + rng.normal(0, sway) + rng.normal(0, sway / 2, 3), 0.03, 0.94)


def noise(rng: Rng, slope: float, stretch: tuple[float, float] = (1, 1), size: int = SIZE) -> Array:
    """Noise (size, size) of mean 0 and deviation 1 that repeats, its amplitude falling with frequency ** slope.

    Args:
        stretch: how many times longer its grains are along x and along y.
    """
    fy, fx = np.meshgrid(np.fft.fftfreq(size) * size, np.fft.rfftfreq(size) * size, indexing="ij")
    radius = np.hypot(fx * stretch[0], fy * stretch[1])
    radius[0, 0] = 1
    spectrum = np.fft.rfft2(rng.standard_normal((size, size))) / radius**slope
    spectrum[0, 0] = 0
    field = np.fft.irfft2(spectrum, (size, size))
    return field / field.std()


def grain(rng: Rng, size: int = SIZE) -> Array:
    """Wood's grain along x, (size, size) around 0: fibres, and rings that wander."""
    fibres = noise(rng, 0.9, (24, 1), size)
    wander = noise(rng, 1.8, (5, 1), size)
    rings = np.sin(2 * np.pi * (rng.uniform(3, 8) * np.linspace(0, 1, size, endpoint=False)[:, None] + 0.35 * wander))
    return 0.55 * fibres + rng.uniform(0.2, 0.6) * rings


def tint(base: Array, field: Array, contrast: float) -> Array:
    """The colour, lighter where the field is above 0 and darker below: (H, W, 3)."""
    return np.clip(base * np.exp(contrast * field)[..., None], 0, 1)


def _grid() -> tuple[Array, Array]:
    """Coordinates (x, y) of the pixels' centres, in [0, 1)."""
    axis = (np.arange(SIZE) + 0.5) / SIZE
    x, y = np.meshgrid(axis, axis)
    return x, y


def _edge(u: Array, width: float) -> Array:
    """1 within `width` of a whole number, 0 elsewhere."""
    return (np.abs((u + 0.5) % 1 - 0.5) < width).astype(float)


def planks(rng: Rng) -> Texture:
    rows, metres = int(rng.integers(6, 14)), (rng.uniform(1.6, 2.4), rng.uniform(1.1, 1.6))
    x, y = _grid()
    row = np.floor(y * rows).astype(int)
    joints = int(rng.integers(1, 3))
    along = x * joints + rng.random(rows)[row]
    board = row * joints + np.floor(along).astype(int) % joints
    lightness = rng.normal(0, rng.uniform(0.05, 0.16), rows * joints)[board]
    shifted = np.take_along_axis(grain(rng), (np.arange(SIZE)[None] + 97 * board) % SIZE, 1)
    pixels = tint(colour(rng, WOODS), rng.uniform(0.06, 0.14) * shifted + lightness, 1)
    seam = np.maximum(_edge(y * rows, 0.012 * rows / 6), _edge(along, 0.0022 * joints))
    return Texture(pixels * (1 - rng.uniform(0.3, 0.7) * seam)[..., None], metres, rng.uniform(0.25, 0.55))


def parquet(rng: Rng) -> Texture:
    """Squares of strips that alternate their direction."""
    squares, strips = 2 * int(rng.integers(1, 3)), int(rng.integers(3, 6))
    x, y = _grid()
    column, row = np.floor(x * squares).astype(int), np.floor(y * squares).astype(int)
    turned = (column + row) % 2 == 1
    across = np.where(turned, x, y) * squares
    strip = np.floor(across % 1 * strips).astype(int)
    board = (column * squares + row) * strips + strip
    lightness = rng.normal(0, 0.13, squares * squares * strips)[board]
    wood = grain(rng)
    pixels = tint(colour(rng, WOODS), 0.09 * np.where(turned, wood.T, wood) + lightness, 1)
    seam = np.maximum(_edge(across * strips, 0.03), np.maximum(_edge(x * squares, 0.006), _edge(y * squares, 0.006)))
    side = rng.uniform(0.4, 0.55) * squares
    return Texture(pixels * (1 - 0.45 * seam)[..., None], (side, side), rng.uniform(0.25, 0.5))


def tiles(rng: Rng) -> Texture:
    count = 2 * int(rng.integers(1, 3))
    x, y = _grid()
    column, row = np.floor(x * count).astype(int), np.floor(y * count).astype(int)
    first = colour(rng, STONES)
    second = colour(rng, STONES) if rng.random() < 0.4 else first
    veins = np.abs(noise(rng, 1.7)) if rng.random() < 0.5 else noise(rng, 1.2)
    each = rng.normal(0, 0.035, (count, count))[row, column]
    base = np.where((((column + row) % 2) == 0)[..., None], first, second)
    pixels = np.clip(base * np.exp(0.06 * veins + each)[..., None], 0, 1)
    seam = np.maximum(_edge(x * count, 0.012), _edge(y * count, 0.012))[..., None]
    side = rng.choice([0.3, 0.45, 0.6]) * count
    return Texture(pixels * (1 - seam) + colour(rng, STONES) * 0.9 * seam, (side, side), rng.uniform(0.12, 0.4))


def concrete(rng: Rng) -> Texture:
    field = noise(rng, 1.5) + 0.4 * noise(rng, 0.6)
    return Texture(tint(colour(rng, STONES), field, rng.uniform(0.04, 0.1)), (2.0, 2.0), rng.uniform(0.35, 0.7))


def carpet(rng: Rng) -> Texture:
    field = noise(rng, 0.2) + 0.35 * noise(rng, 1.2)
    return Texture(tint(colour(rng, CLOTHS), field, rng.uniform(0.07, 0.14)), (1.2, 1.2), 1.0)


def plaster(rng: Rng) -> Texture:
    field = noise(rng, 1.6) + 0.5 * noise(rng, 0.5)
    base = colour(rng, PALES if rng.random() < 0.7 else STRONGS)
    return Texture(tint(base, field, rng.uniform(0.01, 0.035)), (2.5, 2.5), 0.9)


def brick(rng: Rng) -> Texture:
    rows, columns = 8, 4
    x, y = _grid()
    row = np.floor(y * rows).astype(int)
    along = x * columns + 0.5 * (row % 2)
    each = rng.normal(0, 0.13, (rows, columns))[row, np.floor(along).astype(int) % columns]
    base = colour(rng, ("#9c5a45", "#b0796a", "#d8d3cc", "#85503f", "#a88f80", "#c9c2b8"))
    pixels = tint(base, 0.1 * noise(rng, 0.7) + each, 1)
    seam = np.maximum(_edge(y * rows, 0.07), _edge(along, 0.025))[..., None]
    return Texture(pixels * (1 - seam) + colour(rng, STONES) * 0.95 * seam, (0.96, 0.6), 0.95)


def panelling(rng: Rng) -> Texture:
    """Upright boards, painted or bare."""
    boards = int(rng.integers(5, 12))
    x, _ = _grid()
    board = np.floor(x * boards).astype(int)
    bare = rng.random() < 0.6
    base = colour(rng, WOODS if bare else PALES + STRONGS)
    field = grain(rng).T * (0.1 if bare else 0.02) + rng.normal(0, 0.1 if bare else 0.01, boards)[board]
    seam = _edge(x * boards, 0.03)[..., None]
    return Texture(tint(base, field, 1) * (1 - 0.5 * seam), (1.3, 1.3), 0.55)


def wallpaper(rng: Rng) -> Texture:
    x, y = _grid()
    ground = colour(rng, PALES if rng.random() < 0.7 else STRONGS)
    figure = ground + rng.choice([-1, 1]) * rng.uniform(0.06, 0.2)
    if rng.random() < 0.5:
        figure = 0.5 * ground + 0.5 * colour(rng, STRONGS)
    n = int(rng.integers(2, 6))
    match rng.integers(5):
        case 0:
            mask = np.sin(2 * np.pi * n * 2 * x) > rng.uniform(-0.6, 0.7)
        case 1:  # dots on two lattices
            u, v = (x * n) % 1 - 0.5, (y * n) % 1 - 0.5
            u2, v2 = (x * n + 0.5) % 1 - 0.5, (y * n + 0.5) % 1 - 0.5
            mask = np.minimum(np.hypot(u, v), np.hypot(u2, v2)) < rng.uniform(0.08, 0.22)
        case 2:  # leaves between wavy stems
            wave = np.sin(2 * np.pi * (n * x + 0.18 * np.sin(2 * np.pi * n * y)))
            mask = np.abs(wave) * (0.6 + 0.4 * np.sin(4 * np.pi * n * y)) < rng.uniform(0.1, 0.35)
        case 3:  # a damask
            u, v = np.cos(2 * np.pi * n * x), np.cos(2 * np.pi * n * y)
            mask = np.abs(u + v + 0.7 * np.cos(2 * np.pi * 2 * n * x) * v) < rng.uniform(0.25, 0.7)
        case _:  # lozenges
            mask = (np.abs((x * n) % 1 - 0.5) + np.abs((y * n) % 1 - 0.5)) % 0.5 < rng.uniform(0.06, 0.2)
    pixels = np.where(mask[..., None], figure, ground) * np.exp(0.015 * noise(rng, 0.5))[..., None]
    return Texture(np.clip(pixels, 0, 0.95), (rng.uniform(0.35, 0.9),) * 2, 0.85)


def rug(rng: Rng) -> Texture:
    """A whole rug, with its border; it does not repeat."""
    x, y = _grid()
    a, b, c = colour(rng, CLOTHS), colour(rng, CLOTHS + PALES), colour(rng, CLOTHS + STRONGS)
    n = int(rng.integers(2, 7))
    u, v = np.abs(x - 0.5) * 2, np.abs(y - 0.5) * 2
    match rng.integers(6):
        case 0:
            mask = np.sin(2 * np.pi * n * 1.5 * x) > 0
        case 1:
            mask = (np.floor(x * n * 2) + np.floor(y * n * 2)) % 2 == 0
        case 2:
            mask = (np.abs((x * n) % 1 - 0.5) + np.abs((y * n) % 1 - 0.5)) % 0.36 < 0.16
        case 3:  # a medallion
            angle, radius = np.arctan2(y - 0.5, x - 0.5), np.hypot(u, v)
            mask = np.sin(radius * 9 + 1.2 * np.cos(int(rng.integers(4, 10)) * angle)) > 0.2
        case 4:
            mask = (y * n + 0.25 * np.abs((x * n * 2) % 2 - 1)) % 0.5 < 0.2
        case _:
            mask = noise(rng, 1.9) > rng.uniform(0, 0.8)
    pixels = np.where(mask[..., None], b, a)
    edge = np.maximum(u, v)
    if rng.random() < 0.75:
        inner = rng.uniform(0.72, 0.88)
        motif = (np.sin(40 * x) * np.sin(40 * y) > 0.35)[..., None] if rng.random() < 0.5 else False
        pixels = np.where((edge > inner)[..., None], np.where(motif, b, c), pixels)
        pixels = np.where((np.abs(edge - inner) < 0.015)[..., None], b, pixels)
    pile = 0.1 * noise(rng, 0.25) + 0.06 * noise(rng, 1.2)
    return Texture(np.clip(pixels * np.exp(pile)[..., None], 0, 0.92), (1.0, 1.0), 1.0)


def weave(rng: Rng) -> Texture:
    """Grey around 0.8, to be multiplied with a piece's own colour: threads of cloth."""
    x, y = _grid()
    n = int(rng.integers(40, 90))
    threads = np.sin(2 * np.pi * n * x) * np.sin(2 * np.pi * n * y)
    field = 0.5 * threads + 0.6 * noise(rng, 0.4) + 0.2 * noise(rng, 1.3)
    shade = np.ones((SIZE, SIZE, 3)) * 0.8
    if rng.random() < 0.3:
        stripes = np.sin(2 * np.pi * int(rng.integers(4, 14)) * x) > rng.uniform(-0.3, 0.6)
        shade = np.where(stripes[..., None], shade, shade * rng.uniform(0.6, 0.9, 3))
    return Texture(np.clip(shade * np.exp(rng.uniform(0.05, 0.12) * field)[..., None], 0, 1), (0.5, 0.5), 0.95)


def timber(rng: Rng) -> Texture:
    """Grey around 0.8, to be multiplied with a piece's own colour: the grain of wood along x."""
    shade = np.ones(3) * 0.8
    return Texture(tint(shade, grain(rng), rng.uniform(0.08, 0.2)), (1.0, 0.6), 0.45)


def picture(rng: Rng) -> Texture:
    """What hangs in a frame: hills, blocks of colour, or a wash; it does not repeat."""
    x, y = _grid()
    match rng.integers(3):
        case 0:
            sky, low = colour(rng, PALES), colour(rng, STRONGS + PALES)
            pixels = sky * (1 - y[..., None]) + low * y[..., None]
            for level in np.sort(rng.uniform(0.35, 0.95, 4)):
                ridge = level + 0.07 * noise(rng, 1.5)[0] * rng.uniform(0.3, 1)
                pixels = np.where((y > ridge[None])[..., None], colour(rng, STRONGS) * (1.1 - 0.5 * level), pixels)
        case 1:
            pixels = np.ones((SIZE, SIZE, 3)) * colour(rng, PALES)
            for _ in range(int(rng.integers(3, 9))):
                (x0, y0), (w, h) = rng.uniform(-0.1, 0.9, 2), rng.uniform(0.1, 0.5, 2)
                inside = (x > x0) & (x < x0 + w) & (y > y0) & (y < y0 + h)
                if rng.random() < 0.4:
                    inside = np.hypot(x - x0, y - y0) < w / 2
                pixels = np.where(inside[..., None], colour(rng, STRONGS + CLOTHS), pixels)
        case _:
            weight = 1 / (1 + np.exp(-2 * noise(rng, 1.6)))[..., None]
            pixels = weight * colour(rng, STRONGS) + (1 - weight) * colour(rng, PALES)
    margin = rng.choice([0, 0.08, 0.14])
    outside = (np.maximum(np.abs(x - 0.5), np.abs(y - 0.5)) > 0.5 - margin)[..., None]
    return Texture(np.clip(np.where(outside, 0.9, pixels), 0, 0.95), (1.0, 1.0), 0.4)


Painter = Callable[[Rng], Texture]
FLOORS: dict[str, Painter] = {"planks": planks, "parquet": parquet, "tiles": tiles, "carpet": carpet,
                              "concrete": concrete}  # fmt: skip
WALLS: dict[str, Painter] = {"plaster": plaster, "wallpaper": wallpaper, "brick": brick, "panelling": panelling}
OTHERS: dict[str, Painter] = {"rug": rug, "weave": weave, "timber": timber, "picture": picture}
PAINTERS = FLOORS | WALLS | OTHERS


def paint(kind: str, seed: int) -> Texture:
    """The surface of a kind (a key of `PAINTERS`) and a seed."""
    return PAINTERS[kind](np.random.default_rng(seed))
