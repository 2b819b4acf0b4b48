"""Inversions and samplers: what comes back of a picture, and of a view's figures, for how many forwards?

`round-trip`: pictures inverted to t* and sampled back by the same method on the same grid. Each cell: PSNR against the
autoencoder's own picture, dB, with half its 95% interval over scenes, and in brackets the forwards, both ways together.

`views`: held-out views by each fusion, one pair a scene. First inverted as TUNet was trained and sampled by each
sampler, then inverted otherwise and sampled by DDIM in equal steps, the last of --steps. Columns: the U-Net's forwards
for a lone view; PSNR, SSIM, the perceptual distance to the true photo (EfficientNet-Lite0; lower is better) and
sharpness (mean squared gradient, the photo's = 1); and the changes of PSNR and of the perceptual distance, with 95%
intervals over scenes: of a sampler's row from DDIM's of 30 steps, the pipeline's default, and of an inversion's from
the same sampling after TUNet's own inversion.
"""

import math
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import held_out
from held_out import psnr
from table import markdown, publish, run
from torch import Tensor

from sidestep.evaluation.metrics import Metrics
from sidestep.evaluation.protocol import PairOfFrames
from sidestep.evaluation.results import Estimate
from sidestep.evaluation.rows import METHODS, Model
from sidestep.evaluation.statistics import bootstrap, paired_difference
from sidestep.files import atomic_path
from sidestep.fusion import fuse
from sidestep.inversion import Inverted, inversion_grid, invert, sample
from sidestep.pipeline import NovelViewPipeline
from sidestep.prior import LatentPrior
from sidestep.solvers import (
    invert_bidirectional,
    invert_multistep,
    invert_refined,
    sample_bidirectional,
    sample_multistep,
    sigma_grid,
)

BASE_STEPS = 30  # the pipeline's default


def equal(prior: LatentPrior, t_star: int, steps: int) -> list[int]:
    """Equal steps of t."""
    return inversion_grid(t_star, steps)


def sigma(prior: LatentPrior, t_star: int, steps: int, rho: float = 2.0) -> list[int]:
    """See `sigma_grid`."""
    return sigma_grid(prior.alphas_cumprod, t_star, steps, rho=rho)


def there_and_back(
    up: Callable[..., Inverted], down: Callable[..., Tensor], prior: LatentPrior, latents: Tensor, grid: list[int]
) -> Tensor:
    """Inverted by `up`, sampled from the latents at t* by `down`."""
    return down(prior, up(prior, latents, grid).latents, grid)


def there_and_back_exactly(prior: LatentPrior, latents: Tensor, grid: list[int]) -> Tensor:
    """BDIA from both of its latents."""
    inverted, before = invert_bidirectional(prior, latents, grid)
    return sample_bidirectional(prior, inverted.latents, grid, before)


def bidirectional(prior: LatentPrior, latents: Tensor, grid: list[int]) -> Inverted:
    """BDIA's latents at t* alone."""
    return invert_bidirectional(prior, latents, grid)[0]


class Way(NamedTuple):
    """A round trip: (prior, t*, steps) to a grid, and (prior, latents, grid) to latents."""

    name: str
    grid: Callable[..., list[int]]
    run: Callable[..., Tensor]


ROUND_TRIPS = [
    Way("DDIM, equal steps", equal, partial(there_and_back, invert, sample)),
    Way("DDIM, sigma grid", sigma, partial(there_and_back, invert, sample)),
    Way("refined once", equal, partial(there_and_back, invert_refined, sample)),
    *(
        Way(f"refined twice, {mixing}", equal, partial(there_and_back, refined, sample))
        for mixing in ("average", "anderson")
        for refined in [partial(invert_refined, refinements=2, mixing=mixing)]
    ),
    Way("DPM-Solver++(2M), equal steps", equal, partial(there_and_back, invert_multistep, sample_multistep)),
    Way(
        "DPM-Solver++(2M), log-SNR grid",
        partial(sigma, rho=math.inf),
        partial(there_and_back, invert_multistep, sample_multistep),
    ),
    Way("DPM-Solver++(2M), sigma grid", sigma, partial(there_and_back, invert_multistep, sample_multistep)),
    Way("BDIA, latents at t* alone", equal, partial(there_and_back, bidirectional, sample_bidirectional)),
    Way("BDIA, both latents", equal, there_and_back_exactly),
]
SAMPLERS: dict[str, tuple[Callable[..., list[int]], Callable[..., Tensor]]] = {
    "DDIM, equal steps": (equal, sample),
    "DPM-Solver++(2M), sigma grid": (sigma, sample_multistep),
    "BDIA, equal steps": (equal, sample_bidirectional),
}


class Up(NamedTuple):
    """An inversion in place of the one that TUNet was trained on."""

    steps: int
    forwards: int
    grid: Callable[..., list[int]]
    run: Callable[..., Inverted]


INVERSIONS = {
    "refined once, 8": Up(8, 16, equal, invert_refined),
    "DPM-Solver++(2M), sigma grid, 4": Up(4, 4, sigma, invert_multistep),
    "DPM-Solver++(2M), sigma grid, 8": Up(8, 8, sigma, invert_multistep),
    "BDIA, 8": Up(8, 8, equal, bidirectional),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints the table."""
    parser = held_out.parser(__doc__)
    parser.add_argument("table", choices=("round-trip", "views"))
    parser.add_argument("--steps", type=int, nargs="+", default=[2, 4, 6, 8], help="numbers of steps [2 4 6 8]")
    options = parser.parse_args(arguments)
    (round_trips if options.table == "round-trip" else views)(options)


@contextmanager
def counted(prior: LatentPrior) -> Any:
    """A list with one entry a forward of the prior."""
    asked: list[int] = []
    ask = prior.predict_noise

    def count(latents: Tensor, timestep: int, *rest: Any) -> Tensor:
        asked.append(timestep)
        return ask(latents, timestep, *rest)

    prior.predict_noise = count  # type: ignore
    yield asked
    del prior.predict_noise


def round_trips(options: Any) -> None:
    """The table `round-trip`, one picture a scene."""
    prior = held_out.load_prior(options)
    scenes = held_out.scenes(options.data, options.split, options.scenes)
    frames = [scene.frames[len(scene.frames) // 2] for scene in scenes]
    stars = options.t_star or [prior.default_t_star()]
    values: dict[tuple[int, str, int], list[float]] = defaultdict(list)
    forwards: dict[tuple[int, str, int], int] = {}
    for start in range(0, len(frames), options.batch_size):
        latents = prior.encode(held_out.pictures(frames[start : start + options.batch_size], prior.image_size))
        own = prior.decode(latents)
        for t_star in stars:
            for way in ROUND_TRIPS:
                for steps in [*options.steps, *([BASE_STEPS] if way is ROUND_TRIPS[0] else [])]:
                    print(f"pictures from {start + 1}: t* {t_star}, {way.name}, {steps} steps", file=sys.stderr)
                    with counted(prior) as asked:
                        back = way.run(prior, latents, way.grid(prior, t_star, steps))
                    cell = t_star, way.name, steps
                    forwards[cell] = len(asked)
                    values[cell].extend(min(value, 99.9) for value in psnr(prior.decode(back), own))

    def show(*cell: Any) -> str:
        estimate = bootstrap(values[cell], [scene.id for scene in scenes], seed=0) if cell in values else None
        if estimate is None:
            return ""
        return f"{estimate.value:.1f} ± {(estimate.high - estimate.low) / 2:.1f} ({forwards[cell]})"

    columns = [*options.steps, BASE_STEPS]
    rows = [
        [f"{t_star}, {way.name}", *(show(t_star, way.name, steps) for steps in columns)]
        for t_star in stars
        for way in ROUND_TRIPS
    ]
    caption = f"{len(frames)} pictures of as many {options.split} scenes. {held_out.measured_on(prior)}"
    publish(markdown(caption, ["t*, method", *(f"{steps} steps" for steps in columns)], rows), options.out)


class Measured:
    """What is measured of views: fusion and row -> figure -> one value a pair, and -> forwards."""

    def __init__(self, model: Model, steps: Sequence[int]) -> None:
        """Counts of steps: the last is that of the sampling after other inversions."""
        self.model, self.t_star = model, model.inversion.t_star
        self.metrics = Metrics(model.prior.unet.device)
        self.values: dict[tuple[str, str], dict[str, list[float | None]]] = defaultdict(lambda: defaultdict(list))
        self.forwards: dict[tuple[str, str], int] = {}
        self.scenes: list[str] = []
        self.samplers = {
            f"{name}, {count}": partial(down, model.prior, grid=grid(model.prior, self.t_star, count))
            for name, (grid, down) in SAMPLERS.items()
            for count in [*steps, *([BASE_STEPS] if down is sample else [])]
        }
        self.base, self.same = (f"{next(iter(SAMPLERS))}, {count}" for count in (BASE_STEPS, steps[-1]))

    def measure(self, pairs: Sequence[PairOfFrames]) -> None:
        """All rows of a batch of pairs."""
        prior = self.model.prior
        self.scenes.extend(pair.scene.id for pair in pairs)
        for inversion, up in {"": None, **INVERSIONS}.items():
            batch, truth = held_out.batch(self.model, pairs, self.metrics)
            if up is not None:
                grid = up.grid(prior, self.t_star, up.steps)
                batch.once("inverted", partial(up.run, prior, batch.reference_latents, grid))
            there = len(batch.grid) - 1 if up is None else up.forwards
            _ = batch.inverted  # else `late` would make it, and count it twice
            with counted(prior) as further:
                late = batch.late
            for fusion, method in zip("AB", METHODS, strict=True):
                for sampler in self.samplers if up is None else [self.same]:
                    row = fusion, f"inverted by {inversion}" if inversion else sampler
                    print(f"after {len(self.scenes) - len(pairs)} pairs: {', '.join(row)}", file=sys.stderr)
                    with counted(prior) as asked:
                        fused = fuse(prior, method, batch.mean, batch.inverted, late, self.t_star)
                        pictures = prior.decode(self.samplers[sampler](fused)).cpu()
                    self.forwards[row] = there + len(asked) + (len(further) if method == "addition" else 0)
                    figures = self.metrics.compare(", ".join(row), pictures, truth, truth.indices)
                    for figure, column in figures.items():
                        self.values[row][figure].extend(column)

    def table(self, split: str) -> str:
        """Of the pairs measured so far."""
        rows = []
        for row, figures in self.values.items():
            other = self.values[row[0], self.base if row[1] in self.samplers else self.same]
            means = [bootstrap(figures[figure], self.scenes, seed=0) for figure in ("psnr", "ssim", "perceptual")]
            means.append(bootstrap(figures["gradient"], self.scenes, seed=0, geometric=True))
            changes = [
                paired_difference(figures[figure], other[figure], self.scenes, seed=0) if figures is not other else None
                for figure in ("psnr", "perceptual")
            ]
            cells = [_value(mean, digits) for mean, digits in zip(means, (2, 3, 3, 2), strict=True)]
            cells += [held_out.interval(change, digits, "+") for change, digits in zip(changes, (2, 3), strict=True)]
            rows.append([", ".join(row), f"{self.forwards[row]}", *cells])
        caption = (
            f"{len(self.scenes)} pairs of as many {split} scenes, all distances; t* {self.t_star}, TUNet trained on "
            f"{self.model.inversion.steps} steps of DDIM. {held_out.measured_on(self.model.prior)}"
        )
        header = ["", "forwards", "PSNR, dB", "SSIM", "perceptual", "sharpness", "change of PSNR", "of perceptual"]
        return markdown(caption, header, rows)


def views(options: Any) -> None:
    """The table `views`, written anew after each batch."""
    pipe = NovelViewPipeline.from_pretrained(options.prior, device=options.device)
    of_scene = {pair.scene.id: pair for pair in reversed(held_out.pairs(options.data, options.split))}
    pairs = sorted(of_scene.values(), key=lambda pair: pair.position)[: options.scenes]
    measured = Measured(Model(pipe.prior, pipe.tunet, BASE_STEPS, seed=0), options.steps)
    for start in range(0, len(pairs), options.batch_size):
        measured.measure(pairs[start : start + options.batch_size])
        if options.out is not None:
            with atomic_path(options.out) as temporary:
                temporary.write_text(measured.table(options.split), encoding="utf-8")
    print(measured.table(options.split), end="")


def _value(estimate: Estimate | None, digits: int) -> str:
    return "" if estimate is None else f"{estimate.value:.{digits}f}"


if __name__ == "__main__":
    run(main)
