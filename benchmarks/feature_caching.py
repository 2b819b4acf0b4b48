"""What feature caching costs: round trips and held-out views, against the work that it saves.

For each interval (every how manieth pass of the U-Net is whole), both ways or in sampling alone: the U-Net's
operations for a view from its own photo (inversion, fusion, sampling) as whole passes; the round trip through t*
against the autoencoder's own picture; the views by strategy A, as PSNR against the views without caching, and PSNR and
perceptual distance (EfficientNet-Lite0; lower is better) against the true photos.
"""

import sys
from collections.abc import Sequence
from statistics import fmean

import held_out
import torch
from measuring import flops
from table import markdown, publish, run

from sidestep.caching import cached_features
from sidestep.evaluation.metrics import Metrics
from sidestep.evaluation.rows import Model
from sidestep.fusion import FusionSettings, fuse
from sidestep.inversion import sample
from sidestep.pipeline import NovelViewPipeline
from sidestep.prior import LatentPrior

WAYS = ((1, 1), (1, 2), (2, 1), (2, 2), (3, 3), (5, 5))  # intervals of inversion and sampling


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints the table."""
    parser = held_out.parser(__doc__)
    parser.add_argument("--steps", type=int, default=30, help="of the sampling [30]")
    parser.add_argument("--pairs", type=int, help="how many, evenly spread over the split's [all]")
    options = parser.parse_args(arguments)
    pipe = NovelViewPipeline.from_pretrained(options.prior, device=options.device)
    prior = pipe.prior
    pairs = held_out.spread(held_out.pairs(options.data, options.split), options.pairs)
    model = Model(prior, pipe.tunet, options.steps, seed=0)
    metrics = Metrics(pipe.device)
    settings, star = FusionSettings(), model.inversion.t_star
    grid = settings.sampling_grid(model.inversion, options.steps)

    found: dict[tuple[int, int], dict[str, list[float]]] = {way: {} for way in WAYS}
    for start in range(0, len(pairs), options.batch_size):
        chosen = pairs[start : start + options.batch_size]
        whole = None
        for way in WAYS:
            print(f"pairs from {start + 1} of {len(pairs)}: {way}", file=sys.stderr)
            inverting, sampling = way
            batch, truth = held_out.batch(model, chosen, metrics)
            own = prior.decode(batch.reference_latents)
            with cached_features(prior.unet, inverting):
                inverted = batch.inverted
            with cached_features(prior.unet, sampling):
                returned = prior.decode(sample(prior, inverted.latents, model.inversion.grid))
            fused = fuse(prior, "variance", batch.mean, inverted, None, star, settings)
            with cached_features(prior.unet, sampling):
                views = prior.decode(sample(prior, fused, grid))
            whole = views if whole is None else whole
            compared = metrics.compare("A", views.cpu(), truth, truth.indices)
            figures = {"returned": held_out.psnr(returned, own), "same": held_out.psnr(views, whole)}
            figures |= {name: list(compared[name]) for name in ("psnr", "perceptual")}
            for name, values in figures.items():
                found[way].setdefault(name, []).extend(values)

    rows = []
    for way, figures in found.items():
        passes = _passes(prior, way, model.inversion.steps, options.steps)
        share = passes / _passes(prior, (1, 1), model.inversion.steps, options.steps)
        means = {name: fmean(values) for name, values in figures.items()}
        same = "" if way == (1, 1) else f"{means['same']:.1f}"
        cells = [f"{way[0]}, {way[1]}", f"{passes:.1f}", f"{100 * (1 - share):.0f}%", f"{means['returned']:.1f}", same]
        rows.append([*cells, f"{means['psnr']:.2f}", f"{means['perceptual']:.3f}"])
    caption = (
        f"{len(pairs)} pairs of {options.split} scenes, all distances, t* {star}, {model.inversion.steps} inversion "
        f"and {options.steps} sampling steps. {held_out.measured_on(prior)}"
    )
    header = ["interval in inversion, sampling", "passes", "saved", "round trip, dB", "as without, dB"]
    publish(markdown(caption, [*header, "PSNR, dB", "perceptual distance"], rows), options.out)


def _passes(prior: LatentPrior, way: tuple[int, int], inversion: int, sampling: int) -> float:
    """The U-Net's operations for one view, over those of one whole pass."""
    x = torch.zeros(1, prior.latent_channels, prior.latent_size, prior.latent_size)
    with cached_features(prior.unet, 2):
        whole, cached = (flops(lambda: prior.predict_noise(x, 1)) for _ in range(2))
    walks = ((inversion, way[0]), (1, 1), (sampling, way[1]))
    return sum(-(-steps // every) + (steps - -(-steps // every)) * cached / whole for steps, every in walks)


if __name__ == "__main__":
    run(main)
