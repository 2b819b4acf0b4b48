"""A folder of views: what `sidestep view --out DIR` leaves for programs that reconstruct."""

from pathlib import Path

import numpy as np
from PIL import Image

from sidestep.cameras import Camera
from sidestep.captures import read_captures
from sidestep.pipeline import Views


def test_a_folder_holds_the_photo_as_the_model_saw_it(tmp_path: Path) -> None:
    cameras = [Camera.from_fov(45, 16, 16) for _ in range(2)]
    photo = Image.new("RGB", (16, 16), (200, 50, 50))
    views = Views([Image.new("RGB", (16, 16))] * 2, cameras, [], ["variance"] * 2, photo, Camera.from_fov(50, 16, 16))
    views.save(tmp_path / "out")
    (scene,) = read_captures(tmp_path / "out")
    _, own, _ = scene.frames
    assert own.name == "000_photo.png"
    assert np.array_equal(np.asarray(own.load()), np.asarray(photo))
    assert abs(float(own.camera.fov) - 50) < 1e-3
    views.save(tmp_path / "sheet.png")  # a picture and an animation are of the views alone
    assert Image.open(tmp_path / "sheet.png").width < 3 * 16
