"""Do views along a path agree with each other, and what does `consistency` change? Paths of true cameras.

From one photo of each held-out scene, the views of the next cameras of its path, without and with `consistency`.
Columns: the agreement of neighbouring views (PSNR in dB between their colours at the same places of the scene,
`sidestep.evaluation.agreement`), with its 95% interval over scenes; its change from consistency 0 of the same fusion,
with the interval of the paired difference; flicker, by how much a pixel leaves the mean of the frames before and after
(8-bit levels; the camera's motion alone makes some); the perceptual distance to the true photos (EfficientNet-Lite0)
and PSNR; sharpness (mean absolute gradient, the photos' = 1); and the share of views whose layout is nearer to the true
photo's than to the reference's. Blur alone raises agreement and lowers flicker: read them beside the sharpness.
"""

import sys
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean

import held_out
import torch
import torch.nn.functional as F
from table import markdown, publish, run
from torch import Tensor

from sidestep.cameras import Camera, distance_scale
from sidestep.captures import Frame, Scene
from sidestep.errors import SidestepError
from sidestep.evaluation.agreement import agreement, shared_places
from sidestep.evaluation.statistics import bootstrap, paired_difference
from sidestep.features import ImageFeatures, perceptual_distance
from sidestep.fusion import FusionSettings
from sidestep.images import to_tensor
from sidestep.pipeline import Fusion, NovelViewPipeline

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
FUSIONS: dict[str, tuple[Fusion, FusionSettings, Sequence[float]]] = {
    "A": ("variance", FusionSettings(), STRENGTHS),
    "B": ("addition", FusionSettings(), STRENGTHS),
    "A, Gaussian noise": ("variance", FusionSettings(noise="gaussian"), (0.0, 0.25)),
}
PHOTOS, COARSE = "the true photos", "coarse views"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints the table."""
    parser = held_out.parser(__doc__)
    parser.add_argument("--steps", type=int, default=30, help="of the sampling [30]")
    parser.add_argument("--frames", type=int, default=6, help="views of a path, 3 or more [6]")
    parser.set_defaults(split="val")
    options = parser.parse_args(arguments)
    pipe = NovelViewPipeline.from_pretrained(options.prior, device=options.device)
    pipe.set_progress_bar_config(disable=True)
    features = ImageFeatures.load(pipe.device)
    scenes = held_out.scenes(options.data, options.split, options.scenes)
    scenes = [scene for scene in scenes if len(scene.frames) > options.frames and _tells_places(scene)]
    if options.frames < 3 or not scenes:
        raise SidestepError(
            f"no {options.split} scene has points or depth maps, and a path of {options.frames} views, 3 or more"
        )

    # Row -> figure -> one value a scene.
    values: dict[str, dict[str, list[float | None]]] = defaultdict(lambda: defaultdict(list))
    for number, scene in enumerate(scenes, start=1):
        print(f"scene {number} of {len(scenes)}, {scene.id}", file=sys.stderr)
        start = (len(scene.frames) - options.frames) // 3
        frames = scene.frames[start : start + 1 + options.frames]
        photos = held_out.pictures(frames, pipe.prior.image_size)
        path = [frame.camera for frame in frames[1:]]
        reference = pipe.invert(frames[0].load(), frames[0].camera, scale=_scale(scene, frames[0].camera))
        category = scene.category if scene.category in pipe.tunet.config.categories else None
        path_of = Path(scene, frames[1:], photos)

        def add(row: str, views: Tensor, path_of: "Path" = path_of) -> None:
            for figure, value in path_of.measure(views, features).items():
                values[row][figure].append(value)

        add(PHOTOS, photos[1:])
        for name, (fusion, settings, strengths) in FUSIONS.items():
            for strength in strengths:
                views = pipe(
                    reference,
                    path,
                    category=category,
                    fusion=fusion,
                    steps=options.steps,
                    settings=settings,
                    batch_size=options.batch_size,
                    consistency=strength,
                )
                if name == "A":
                    add(_row(COARSE, strength), torch.stack([to_tensor(picture) for picture in views.coarse]))
                add(_row(name, strength), torch.stack([to_tensor(picture) for picture in views.images]))

    ids = [scene.id for scene in scenes]
    rows = [[PHOTOS, *_cells(values[PHOTOS], None, ids)]]
    for name, strengths in [(COARSE, STRENGTHS), *((name, strengths) for name, (_, _, strengths) in FUSIONS.items())]:
        plain = values[_row(name, 0.0)]
        rows += [[_row(name, s), *_cells(values[_row(name, s)], plain if s else None, ids)] for s in strengths]
    caption = (
        f"{len(scenes)} {options.split} scenes, paths of {options.frames} views from a photo on, {options.steps} "
        f"sampling steps. {held_out.measured_on(pipe.prior)}"
    )
    header = ["fusion, consistency", "agreement, dB", "change", "flicker", "perceptual distance", "PSNR, dB"]
    header += ["sharpness", "moved"]
    publish(markdown(caption, header, rows), options.out)


class Path:
    """A path of true cameras with its true photos, to measure views of it by.

    Args:
        frames: N.
        photos: (N + 1, 3, S, S) in [-1, 1]: the reference's and the frames'.
    """

    def __init__(self, scene: Scene, frames: Sequence[Frame], photos: Tensor) -> None:
        self.photos, self.reference = photos[1:], photos[:1]
        neighbours = [slice(i, i + 2) for i in range(len(self.photos) - 1)]
        shared = [(pair, shared_places(frames[pair], scene.points, self.photos[pair])) for pair in neighbours]
        self.shared = [(pair, pixels) for pair, pixels in shared if pixels is not None]

    def measure(self, views: Tensor, features: ImageFeatures) -> dict[str, float | None]:
        """Figure -> value of views (N, 3, S, S) in [-1, 1]."""
        agreements = [value for pair, pixels in self.shared if (value := agreement(views[pair], pixels)) is not None]
        curve = views[1:-1] - (views[:-2] + views[2:]) / 2
        own, photo, reference = (F.adaptive_avg_pool2d(x, 16) for x in (views, self.photos, self.reference))
        nearer = (own - photo).square().mean((1, 2, 3)) < (own - reference).square().mean((1, 2, 3))
        with torch.inference_mode():
            perceptual = perceptual_distance(features, views, self.photos)
        same = torch.equal(views, self.photos)
        return {
            "agreement": fmean(agreements) if agreements else None,
            "flicker": float(curve.abs().mean()) * 127.5,
            "perceptual": float(perceptual.mean()),
            "psnr": None if same else fmean(held_out.psnr(views, self.photos)),
            "sharpness": fmean(held_out.gradient(views)) / fmean(held_out.gradient(self.photos)),
            "moved": float(nearer.float().mean()),
        }


def _tells_places(scene: Scene) -> bool:
    return scene.points is not None or all(frame.depth is not None for frame in scene.frames)


def _scale(scene: Scene, reference: Camera) -> float:
    sizes = {(frame.camera.width, frame.camera.height) for frame in scene.frames}
    others = Camera.stack([frame.camera for frame in scene.frames]) if len(sizes) == 1 else None
    return distance_scale(reference, others, scene.points)


def _row(name: str, strength: float) -> str:
    return f"{name}, {strength:g}"


def _cells(
    values: dict[str, list[float | None]], plain: dict[str, list[float | None]] | None, scenes: Sequence[str]
) -> list[str]:
    agreed = held_out.interval(bootstrap(values["agreement"], scenes, seed=0), 2)
    change = paired_difference(values["agreement"], plain["agreement"], scenes, seed=0) if plain else None
    digits = {"flicker": 2, "perceptual": 3, "psnr": 2, "sharpness": 2, "moved": 2}
    means = {figure: [value for value in values[figure] if value is not None] for figure in digits}
    others = [f"{fmean(means[figure]):.{places}f}" if means[figure] else "" for figure, places in digits.items()]
    return [agreed, held_out.interval(change, 2, "+"), *others]


if __name__ == "__main__":
    run(main)
