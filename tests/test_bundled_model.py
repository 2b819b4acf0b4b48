"""The model inside the package: whole, small, and following the camera on a scene that it was not trained on."""

from pathlib import Path

import pytest
import torch

from sidestep import Camera, NovelViewPipeline, distance_scale, read_captures
from sidestep.captures.splits import model_split
from sidestep.images import resize_and_crop, to_tensor
from sidestep.models import BUNDLED, model_folder

FURNITURE = Path(__file__).parent / "data" / "furniture"
SCENES = {scene.id: scene for scene in read_captures(FURNITURE)}


@pytest.fixture(scope="module")
def pipe() -> NovelViewPipeline:
    return NovelViewPipeline.from_pretrained()


def test_it_is_small_and_holds_no_pickles() -> None:
    files = [path for path in Path(model_folder(BUNDLED)).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 90 * 2**20
    assert {path.suffix or path.name for path in files} <= {".safetensors", ".json", ".md", ".py", "SHA256SUMS"}


def test_it_was_not_trained_on_the_scenes_that_test_it() -> None:
    assert {model_split(scene.model) for scene in SCENES.values()} == {"test"}


@pytest.mark.parametrize("name", sorted(SCENES))
def test_turning_the_camera_turns_the_coarse_picture_the_right_way(pipe: NovelViewPipeline, name: str) -> None:
    """The true frames to the left and right are each nearer to their own camera's coarse view than to the other's."""
    scene = SCENES[name]
    middle, targets = scene.frames[12], [scene.frames[6], scene.frames[18]]
    cameras = Camera.stack([frame.camera for frame in scene.frames])
    views = pipe(
        middle.load(),
        [frame.camera for frame in targets],
        middle.camera,
        fusion="variance",
        steps=2,
        scale=distance_scale(middle.camera, cameras, scene.points),
    )
    coarse = torch.stack([to_tensor(image) for image in views.coarse])
    truth = torch.stack([to_tensor(resize_and_crop(frame.load(), 256)) for frame in targets])
    error = (coarse[:, None] - truth[None]).square().mean(dim=(2, 3, 4))  # (view, true frame)
    assert float(error[0, 0]) < float(error[1, 0])
    assert float(error[1, 1]) < float(error[0, 1])


def test_the_views_keep_what_the_reference_showed(pipe: NovelViewPipeline) -> None:
    """Back at the reference's own camera the view is the reference, blurred: far nearer to it than another scene is."""
    chair, sofa = (SCENES[name].frames[12] for name in sorted(SCENES)[:2])
    views = pipe(chair.load(), [chair.camera], chair.camera, scale=1.0, fusion="variance", steps=8)
    seen, own, other = (to_tensor(image) for image in (views.images[0], chair.load(), sofa.load()))
    assert float((seen - own).square().mean()) < 0.25 * float((seen - other).square().mean())
