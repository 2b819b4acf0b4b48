"""A scene on disk, in MVImgNet's layout with masks and depth maps beside the photos; the folder appears whole."""

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image
from world import Plan

from models import FurnitureError, Model

Array = np.ndarray
DEPTH_UNIT = 1e-3  # of a scene unit
FARTHEST = 65.5  # units that 16 bits hold
POINTS = 600
SMALLEST_SHARE = 0.01  # of a picture, in the middle of a scene's frames


def unit_of(model: Model) -> float:
    """The length in metres of a scene's unit: half the diagonal of what it shows, as in the older set."""
    return float(np.linalg.norm(model.size)) / 2


def write_scene(out: Path, plan: Plan, models: dict[str, Model], photos: Array, depths: Array, masks: Array) -> None:
    """Writes a scene's folder.

    Args:
        photos: (N, H, W, 3) uint8.
        depths: (N, H, W) metres along the optical axis.
        masks: (N, H, W) bool, true on what the scene shows.

    Raises:
        FurnitureError: if what the scene shows is hardly in its pictures.
    """
    share = float(np.median(masks.mean((1, 2))))
    if share < SMALLEST_SHARE:
        raise FurnitureError(f"{plan.name}: {plan.items[0].model} fills {share:.2%} of the pictures; left out")
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # what a killed render left
    unit = unit_of(models[plan.items[0].model])
    for folder in ("images", "masks", "depths", "sparse/0"):
        (part / folder).mkdir(parents=True)
    for i, (photo, depth, mask) in enumerate(zip(photos, depths, masks, strict=True)):
        Image.fromarray(photo).save(part / "images" / f"{i:03d}.jpg", quality=92, subsampling=0)
        Image.fromarray(mask.astype(np.uint8) * 255).save(part / "masks" / f"{i:03d}.png", optimize=True)
        units = depth / unit
        thousandths = np.where((units > 0) & (units < FARTHEST), np.round(units / DEPTH_UNIT), 0)
        Image.fromarray(thousandths.astype(np.uint16)).save(part / "depths" / f"{i:03d}.png", optimize=True)
    _write_sparse(part / "sparse" / "0", plan, unit, photos, depths, masks)
    source = json.dumps(source_of(plan, models, unit), indent=1, ensure_ascii=False)
    (part / "source.json").write_text(source + "\n", encoding="utf-8")
    if out.is_dir():
        shutil.rmtree(out)
    os.replace(part, out)


def source_of(plan: Plan, models: dict[str, Model], unit: float) -> dict[str, object]:
    """What a scene was made of, by whom, and how: enough to credit everyone and to make it again."""
    used = {item.model: models[item.model] for item in plan.items}
    keys = ("name", "library", "title", "creator", "licence", "category")
    return {
        "scene": plan.name,
        "shows": plan.items[0].model,
        "split": plan.split,
        "models": [{key: getattr(model, key) for key in keys} for model in used.values()],
        "unit_in_metres": unit,
        "plan": asdict(plan),
    }


def _write_sparse(folder: Path, plan: Plan, unit: float, photos: Array, depths: Array, masks: Array) -> None:
    height, width = photos.shape[1:3]
    cameras, images, fields = [], [], {}
    for i, view in enumerate(plan.views):
        if view.field_of_view not in fields:
            fields[view.field_of_view] = len(fields) + 1
            focal = width / 2 / np.tan(np.radians(view.field_of_view) / 2)
            cameras.append(f"{len(fields)} PINHOLE {width} {height} {focal:.6f} {focal:.6f} {width / 2} {height / 2}")
        rotation = view.axes()
        translation = -rotation @ (np.array(view.eye) / unit)
        pose = " ".join(f"{x:.9f}" for x in (*quaternion(rotation), *translation))
        images.append(f"{i + 1} {pose} {fields[view.field_of_view]} {i:03d}.jpg\n")
    (folder / "cameras.txt").write_text("\n".join(cameras) + "\n", encoding="utf-8")
    (folder / "images.txt").write_text("\n".join(images) + "\n", encoding="utf-8")
    points, colours = surface_points(plan, unit, photos, depths, masks)
    lines = (
        f"{i + 1} {x:.6f} {y:.6f} {z:.6f} {r} {g} {b} 0"
        for i, ((x, y, z), (r, g, b)) in enumerate(zip(points.tolist(), colours.tolist(), strict=True))
    )
    (folder / "points3D.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def surface_points(plan: Plan, unit: float, photos: Array, depths: Array, masks: Array) -> tuple[Array, Array]:
    """Points (P, 3) in scene units and colours (P, 3) of what the frames see, half of them on what the scene shows."""
    rng = np.random.default_rng(plan.seed + 2)
    points, colours = [], []
    size = photos.shape[2]
    for i, view in enumerate(plan.views):
        half = np.tan(np.radians(view.field_of_view) / 2)
        known = (depths[i] > 0) & (depths[i] / unit < FARTHEST)
        for wanted in (known & masks[i], known & ~masks[i]):
            rows, columns = np.nonzero(wanted)
            if not len(rows):
                continue
            chosen = rng.integers(len(rows), size=POINTS // 2 // len(plan.views))
            y, x = rows[chosen], columns[chosen]
            rays = np.stack(((x + 0.5) / size * 2 - 1, (y + 0.5) / size * 2 - 1, np.full(len(x), 1 / half)), 1) * half
            points.append((rays * depths[i, y, x, None]) @ view.axes() + np.array(view.eye))
            colours.append(photos[i, y, x])
    return np.concatenate(points) / unit, np.concatenate(colours)


def quaternion(rotation: Array) -> Array:
    """The unit quaternion (w, x, y, z) of a rotation (3, 3), w not negative."""
    m = rotation
    k = np.array(
        (
            (m[0, 0] - m[1, 1] - m[2, 2], 0, 0, 0),
            (m[0, 1] + m[1, 0], m[1, 1] - m[0, 0] - m[2, 2], 0, 0),
            (m[0, 2] + m[2, 0], m[1, 2] + m[2, 1], m[2, 2] - m[0, 0] - m[1, 1], 0),
            (m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1], m.trace()),
        )
    )
    _, vectors = np.linalg.eigh(k)  # of the lower triangle
    x, y, z, w = vectors[:, -1]
    return np.array((w, x, y, z)) * (1 if w >= 0 else -1)
