"""Do views fit together in space? COLMAP triangulates them at their exported cameras, beside the true photos.

Of each scene the middle photo is the reference. Views are made at the cameras of all other photos and written as
`sidestep view --cameras ... --out DIR` does; their SIFT features are matched, and triangulated while the cameras stay
fixed. Columns, means over the scenes: features found in a picture; points, each seen in three pictures or more; and of
these the mean reprojection error, the pictures that see one, and how far one lies from the nearest of the true photos'
points (median, percent of the subject's distance). The photo copied to every camera shows what matches are worth that
stay in place where they ought to move.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import held_out
import pycolmap
import torch
from table import markdown, publish, run

from sidestep.cameras import Camera, distance_scale
from sidestep.captures import Scene, write_capture
from sidestep.images import resize_and_crop
from sidestep.pipeline import NovelViewPipeline

ROWS = ("the true photos", "the photo copied", "coarse", "A (variance)", "B (addition)")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints the table."""
    parser = held_out.parser(__doc__)
    parser.add_argument("--steps", type=int, default=30, help="of the sampling [30]")
    options = parser.parse_args(arguments)
    pipe = NovelViewPipeline.from_pretrained(options.prior, device=options.device)
    scenes = held_out.scenes(options.data, options.split, options.scenes)
    found: dict[str, list[dict[str, float]]] = {row: [] for row in ROWS}
    for number, scene in enumerate(scenes, start=1):
        print(f"scene {number} of {len(scenes)}: {scene.id}", file=sys.stderr)
        with tempfile.TemporaryDirectory() as folder:
            for row, figures in measure(pipe, scene, options.steps, Path(folder)).items():
                found[row].append(figures)
    rows = []
    for row, figures in found.items():
        whole = [one for one in figures if one["points"]]
        cells = [f"{fmean(one[name] for one in figures):.0f}" for name in ("features", "points")]
        for name, digits in (("error", 2), ("track", 1), ("distance", 1)):
            cells.append(f"{fmean(one[name] for one in whole):.{digits}f}" if whole else "")
        rows.append([row, *cells])
    header = ["", "features", "points", "reprojection error, px", "pictures a point", "off the true points, %"]
    caption = (
        f"{len(scenes)} scenes of split {options.split}, {options.steps} sampling steps; pycolmap "
        f"{pycolmap.__version__}, SIFT on the CPU. {held_out.measured_on(pipe.prior)}"
    )
    publish(markdown(caption, header, rows), options.out)


def measure(pipe: NovelViewPipeline, scene: Scene, steps: int, folder: Path) -> dict[str, dict[str, float]]:
    """What is triangulated in a scene from each row's pictures; `folder` is for what is written on the way."""
    reference = scene.frames[len(scene.frames) // 2]
    others = [frame for frame in scene.frames if frame is not reference]
    photo, targets = reference.load(), [frame.camera for frame in others]
    scale = distance_scale(reference.camera, Camera.stack(targets), scene.points)
    pipe.set_progress_bar_config(disable=True)
    inverted = pipe.invert(photo, reference.camera, scale=scale)
    views = {name: pipe(inverted, targets, fusion=name, steps=steps) for name in ("variance", "addition")}
    seen = views["variance"]
    true = [resize_and_crop(frame.load(), pipe.prior.image_size) for frame in others]
    pictures = (true, [seen.source] * len(others), seen.coarse, seen.images, views["addition"].images)
    models = {}
    for index, (row, images) in enumerate(zip(ROWS, pictures, strict=True)):
        capture = folder / str(index)
        write_capture(capture, images, seen.cameras, (seen.source, seen.source_camera))
        models[row] = triangulate(capture, folder)
    truth = points(models[ROWS[0]])
    return {row: figures(model, truth, scale) for row, model in models.items()}


def figures(model: Any, truth: torch.Tensor, scale: float) -> dict[str, float]:
    """The columns of one model; `scale` makes the subject's distance 1."""
    found = points(model)
    counts = {"features": fmean(image.num_points2D() for image in model.images.values()), "points": float(len(found))}
    if not len(found):
        return counts
    return {
        **counts,
        "error": model.compute_mean_reprojection_error(),
        "track": model.compute_mean_track_length(),
        "distance": 100 * scale * float(torch.cdist(found, truth).amin(dim=1).median()),
    }


def points(model: Any) -> torch.Tensor:
    """(N, 3) float64."""
    found = [torch.from_numpy(point.xyz) for point in model.points3D.values()]
    return torch.stack(found) if found else torch.empty(0, 3, dtype=torch.float64)


def triangulate(capture: Path, work: Path) -> Any:
    """COLMAP's model of a capture's pictures: the cameras of its sparse/0, unchanged, and points from SIFT matches.

    Args:
        capture: as `write_capture` leaves it.
        work: an existing folder for the database and the model.
    """
    pycolmap.logging.minloglevel = 2  # errors alone
    pycolmap.set_random_seed(0)
    model = pycolmap.Reconstruction(capture / "sparse" / "0")
    model.delete_all_points2D_and_points3D()
    with tempfile.TemporaryDirectory(dir=work) as folder:
        database = Path(folder) / "database.db"
        with pycolmap.Database.open(database) as open_database:
            for camera in model.cameras.values():
                open_database.write_camera(camera, use_camera_id=True)
            for rig in model.rigs.values():
                open_database.write_rig(rig, use_rig_id=True)
            for frame in model.frames.values():
                open_database.write_frame(frame, use_frame_id=True)
            for image in model.images.values():
                open_database.write_image(image, use_image_id=True)
        names = [image.name for image in model.images.values()]
        pycolmap.extract_features(database, capture / "images", names, device=pycolmap.Device.cpu)
        pycolmap.match_exhaustive(database, device=pycolmap.Device.cpu)
        return pycolmap.triangulate_points(model, database, capture / "images", folder)


if __name__ == "__main__":
    run(main)
