"""Are cameras found again from photos alone? `capture import` beside the cameras that a capture comes with.

The given poses are withheld: only the photos are read. Found and given cameras are compared after the similarity that
brings the found centres nearest to the given ones (Umeyama 1991). Rotation: the angle between the two. Position: the
distance of the centres, in percent of the cameras' spread, which is the given centres' root mean square distance from
their mean.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pycolmap
from table import markdown, publish, run

from sidestep.cameras import Camera
from sidestep.captures import read_captures
from sidestep.captures.photos import import_photos


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a capture with images/ and cameras")
    parser.add_argument("--scene", type=Path, help="made of its photos before, by `capture import`; else it is made")
    parser.add_argument("--out", type=Path, help="write the table to this file too")
    options = parser.parse_args(arguments)
    (given,) = read_captures(options.data)
    with tempfile.TemporaryDirectory() as folder:
        scene = options.scene or Path(folder) / "scene"
        result = import_photos(options.data / "images", scene)
        (found,) = read_captures(scene)
    originals = {photo.name: photo.original for photo in result.photos}
    by_name = {frame.name: frame.camera for frame in given.frames}
    turned, moved = errors(
        [frame.camera for frame in found.frames], [by_name[originals[frame.name]] for frame in found.frames]
    )
    rows = [
        ["photos with a camera", f"{result.placed} of {len(result.photos)}", ""],
        ["rotation, degrees", f"{np.median(turned):.3f}", f"{turned.max():.3f}"],
        ["position, % of the spread", f"{np.median(moved):.3f}", f"{moved.max():.3f}"],
        ["reprojection error, px", f"{result.reprojection_error:.3f} (mean)", ""],
    ]
    caption = f"{given.name}, {len(given.frames)} photos; pycolmap {pycolmap.__version__}, SIFT on the CPU."
    publish(markdown(caption, ["", "median", "worst"], rows), options.out)


def errors(found: list[Camera], given: list[Camera]) -> tuple[np.ndarray, np.ndarray]:
    """Degrees, and percent of the spread, of each camera."""
    a, b = (np.stack([camera.centre.double().numpy() for camera in cameras]) for cameras in (found, given))
    away_a, away_b = a - a.mean(0), b - b.mean(0)
    u, s, vt = np.linalg.svd(away_b.T @ away_a)
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    rotation = u * signs @ vt
    moved = (s * signs).sum() / (away_a**2).sum() * away_a @ rotation.T
    spread = np.sqrt((away_b**2).sum(1).mean())
    traces = [
        np.trace(one.rotation.double().numpy() @ rotation.T @ other.rotation.double().numpy().T)
        for one, other in zip(found, given, strict=True)
    ]
    angles = np.degrees(np.arccos(np.clip((np.array(traces) - 1.0) / 2.0, -1.0, 1.0)))
    return angles, 100.0 * np.linalg.norm(moved - away_b, axis=1) / spread


if __name__ == "__main__":
    run(main)
