"""Fusion judged without any TUNet, by giving it the target's true mean, or that mean blurred 3x3 in its place.

The blurred mean stands in for a predicted one. Each cell: PSNR against the autoencoder's picture of the target, then
the mean absolute gradient (of pictures in [-1, 1]). Columns: the mean decoded, divided by sqrt(a*) first; strategy A
with the reference's noise and with Gaussian noise; strategy B with the reference inverted to the last step and to t*.
"""

import sys
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean

import held_out
import torch
import torch.nn.functional as F
from held_out import gradient, psnr, signal
from table import markdown, publish, run
from torch import Tensor

from sidestep.captures import Frame, Scene
from sidestep.errors import SidestepError
from sidestep.fusion import FusionSettings, Method, fuse
from sidestep.inversion import InversionSettings, Inverted, invert, late_grid, sample
from sidestep.prior import LatentPrior

COLUMNS: dict[str, tuple[Method, FusionSettings]] = {
    "A, reference's noise": ("variance", FusionSettings(noise="reference")),
    "A, Gaussian noise": ("variance", FusionSettings(noise="gaussian")),
    "B, late latent": ("addition", FusionSettings(latent="late")),
    "B, latent at t*": ("addition", FusionSettings(latent="t_star")),
}
DECODED = "mean decoded"
MEANS = ("true", "blurred")
COPY, OWN = "reference copied", "autoencoder's picture"


def pairs_of(scenes: Sequence[Scene], gap: int) -> list[tuple[Frame, Frame]]:
    """(reference, target) from the middle of each scene, `gap` frames apart; scenes too short give none."""
    starts = [(scene, (len(scene.frames) - 1 - gap) // 2) for scene in scenes if len(scene.frames) > gap]
    return [(scene.frames[start], scene.frames[start + gap]) for scene, start in starts]


def invert_late(prior: LatentPrior, reference: Inverted, inversion: InversionSettings) -> Inverted:
    """The reference inverted on from t* to the last step."""
    grid = late_grid(inversion.t_star, inversion.steps, prior.num_train_timesteps)
    return invert(prior, reference.latents, grid) if len(grid) > 1 else reference


def blur(mean: Tensor) -> Tensor:
    """(B, C, h, w) averaged over 3x3, the borders repeated."""
    return F.avg_pool2d(F.pad(mean, (1, 1, 1, 1), mode="replicate"), 3, stride=1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints the table."""
    parser = held_out.parser(__doc__)
    parser.add_argument("--gap", type=int, default=8, help="frames from the reference to the target [8]")
    parser.add_argument("--steps", type=int, default=30, help="of the inversion and of the sampling [30]")
    parser.add_argument("--seed", type=int, default=0, help="of the Gaussian noise [0]")
    options = parser.parse_args(arguments)
    prior = held_out.load_prior(options)
    scenes = held_out.scenes(options.data, options.split, options.scenes)
    pairs = pairs_of(scenes, options.gap)
    if not pairs:
        raise SidestepError(f"{options.data}: no {options.split} scene has {options.gap + 1} frames; lower --gap")
    stars = {t_star: signal(prior, t_star) for t_star in options.t_star or [prior.default_t_star()]}

    # Row and column of the table -> what it holds for each pair: (PSNR, gradient).
    cells: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    alone: list[float] = []
    for start in range(0, len(pairs), options.batch_size):
        references, targets = zip(*pairs[start : start + options.batch_size], strict=True)
        reference_latents = prior.encode(held_out.pictures(references, prior.image_size))
        photos = held_out.pictures(targets, prior.image_size)
        target_latents = prior.encode(photos)
        own = prior.decode(target_latents)

        def add(row: str, column: str, latents: Tensor, own: Tensor = own) -> None:
            picture = prior.decode(latents)
            cells[row, column].extend(zip(psnr(picture, own), gradient(picture), strict=True))

        alone.extend(psnr(own, photos))
        add(OWN, DECODED, target_latents)
        add(COPY, DECODED, reference_latents)
        for t_star, star in stars.items():
            print(f"pairs from {start + 1} of {len(pairs)}: t* {t_star}", file=sys.stderr)
            inversion = InversionSettings(t_star, options.steps)
            reference = invert(prior, reference_latents, inversion.grid)
            late = invert_late(prior, reference, inversion)
            true = invert(prior, target_latents, inversion.grid).mean
            for name, mean in zip(MEANS, (true, blur(true)), strict=True):
                row = _row(t_star, star, name)
                add(row, DECODED, mean / star)
                for column, (method, settings) in COLUMNS.items():
                    generator = torch.Generator().manual_seed(options.seed + start)
                    drawn = torch.randn(mean.shape, generator=generator)
                    fused = fuse(prior, method, mean, reference, late, t_star, settings, drawn)
                    add(row, column, sample(prior, fused, settings.sampling_grid(inversion, options.steps)))

    names = {_row(t_star, star, mean): "" for mean in MEANS for t_star, star in stars.items()}
    names |= {COPY: "", OWN: f" ({fmean(alone):.1f} dB against the photo)"}
    rows = [
        [row + note] + [_cell(cells[row, column]) if (row, column) in cells else "" for column in (DECODED, *COLUMNS)]
        for row, note in names.items()
    ]
    caption = (
        f"{len(pairs)} pairs of {options.split} scenes, {options.gap} frames apart, {options.steps} steps. "
        f"{held_out.measured_on(prior)}"
    )
    publish(markdown(caption, ["t* (a)", DECODED, *COLUMNS], rows), options.out)


def _row(t_star: int, star: float, mean: str) -> str:
    return f"{t_star} ({star**2:.2f}), {mean} mean"


def _cell(values: Sequence[tuple[float, float]]) -> str:
    decibels, gradients = (fmean(column) for column in zip(*values, strict=True))
    return f"{decibels:.1f}, {gradients:.3f}" if decibels != float("inf") else f"{gradients:.3f}"


if __name__ == "__main__":
    run(main)
