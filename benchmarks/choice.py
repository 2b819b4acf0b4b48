"""Is `auto` worth its cost, and how much should sharpness weigh in it? Held-out views by A, by B and by choice.

The choice (`sidestep.fusion.score`) never sees the target; what it weighs sharpness by against layout is varied here.
Columns: how often A was taken; the perceptual distance to the true photo (EfficientNet-Lite0; lower is better), PSNR,
and the share of views whose layout is nearer to the true photo's than to the reference's.
"""

import sys
from collections.abc import Sequence
from statistics import fmean

import held_out
import torch
from table import markdown, publish, run
from torch import Tensor

from sidestep.evaluation.metrics import Metrics
from sidestep.evaluation.rows import Model
from sidestep.fusion import score
from sidestep.pipeline import NovelViewPipeline

WEIGHTS = (0.0, 0.25, 0.5, 1.0, 2.0)
FIGURES = ("perceptual", "psnr", "moved")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints the table."""
    parser = held_out.parser(__doc__)
    parser.add_argument("--steps", type=int, default=30, help="of the sampling [30]")
    parser.set_defaults(split="val")
    options = parser.parse_args(arguments)
    pipe = NovelViewPipeline.from_pretrained(options.prior, device=options.device)
    pairs = held_out.pairs(options.data, options.split)
    if options.scenes:
        pairs = pairs[: 6 * options.scenes]
    model = Model(pipe.prior, pipe.tunet, options.steps, seed=0)
    metrics = Metrics(pipe.device)

    # For A and B: figure -> one value a pair, and its score under each weight.
    values: list[dict[str, list[float]]] = [{name: [] for name in FIGURES} for _ in "AB"]
    scores: list[dict[float, list[float]]] = [{weight: [] for weight in WEIGHTS} for _ in "AB"]
    for start in range(0, len(pairs), options.batch_size):
        chosen = pairs[start : start + options.batch_size]
        print(f"pairs from {start + 1} of {len(pairs)}", file=sys.stderr)
        batch, truth = held_out.batch(model, chosen, metrics)
        for place, (name, views) in enumerate((("A", batch.variance), ("B", batch.addition))):
            for figure, column in metrics.compare(name, views.cpu(), truth, truth.indices).items():
                if figure in FIGURES:
                    values[place][figure].extend(column)
            photos = batch.reference_photos.to(views)
            for weight in WEIGHTS:
                scores[place][weight].extend(score(views, batch.coarse, photos, weight).tolist())

    a, b = (torch.tensor(side["perceptual"]) for side in values)
    choices: dict[str, Tensor] = {
        "always A": torch.ones(len(pairs), dtype=torch.bool),
        "always B": torch.zeros(len(pairs), dtype=torch.bool),
    }
    for weight in WEIGHTS:
        of_a, of_b = (torch.tensor(side[weight]) for side in scores)
        choices[f"auto, sharpness weighs {weight:g}"] = of_a <= of_b
    choices["the nearer to the true photo (sees it)"] = a <= b
    rows = [[name, f"{choice.float().mean():.2f}", *_figures(values, choice)] for name, choice in choices.items()]
    caption = (
        f"{len(pairs)} pairs of {options.split} scenes, all distances, {options.steps} sampling steps. "
        f"{held_out.measured_on(pipe.prior)}"
    )
    publish(markdown(caption, ["", "share of A", "perceptual distance", "PSNR, dB", "moved"], rows), options.out)


def _figures(values: Sequence[dict[str, list[float]]], takes_a: Tensor) -> list[str]:
    chosen = {
        name: [values[0][name][i] if of_a else values[1][name][i] for i, of_a in enumerate(takes_a.tolist())]
        for name in FIGURES
    }
    return [f"{fmean(chosen['perceptual']):.3f}", f"{fmean(chosen['psnr']):.2f}", f"{fmean(chosen['moved']):.2f}"]


if __name__ == "__main__":
    run(main)
