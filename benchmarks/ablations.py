"""What each part of TUNet and of its training is worth: variants trained alike, judged on the same held-out pairs.

Every variant differs from the full one in what its line names and nothing else: seed, steps, batches and latents are
the same. Training goes on where a killed run stopped. Columns: weights of TUNet; PSNR of the coarse view; how much less
it has for another pair's target camera (what the camera is worth); the perceptual distance (EfficientNet-Lite0; lower
is better) of the view by A. In brackets 95% intervals over scenes; a variant's figures are differences from the full
one's on the same pairs.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import held_out
from table import markdown, publish, run

from sidestep.config import load_config
from sidestep.evaluation.metrics import Metrics
from sidestep.evaluation.protocol import PairOfFrames, wrong_partners
from sidestep.evaluation.rows import Model
from sidestep.evaluation.statistics import bootstrap, paired_difference
from sidestep.prior import LatentPrior
from sidestep.training import TrainConfig, train
from sidestep.tunet import TUNet, load_tunet

CONFIG = Path(__file__).parents[1] / "configs" / "small.yaml"
FULL = "full"

# Variant -> what it is called, and the settings that make it. The first two are the paper's.
VARIANTS: dict[str, tuple[str, list[str]]] = {
    FULL: ("full", []),
    "concat": ("embeddings joined to the input", ["tunet.conditioning=concat"]),
    "no-cross-attention": ("no cross-attention", ["tunet.cross_attention=false"]),
    "random-attention": ("cross-attention starts random", ["tunet.attention_init=random"]),
    "no-finest-attention": ("no cross-attention at the finest level", ["tunet.finest_attention=false"]),
    "raw-input": ("input not normalised", ["tunet.normalise=false"]),
    "one-way": ("the earlier frame is the reference", ["pairs=forward"]),
    "one-way-unmirrored": ("the same, never mirrored", ["pairs=forward", "mirror=false"]),
    "unmirrored": ("never mirrored", ["mirror=false"]),
}

Figures = dict[str, list[float | None]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latents", type=Path, required=True, help="store that all variants train on")
    parser.add_argument("--data", type=Path, required=True, help="captures to judge on")
    parser.add_argument("--split", choices=("test", "val"), default="test", help="whose scenes, by model [test]")
    parser.add_argument("--variants", nargs="+", choices=[v for v in VARIANTS if v != FULL], help="[all]")
    parser.add_argument("--config", type=Path, default=CONFIG, help="of the full one [configs/small.yaml]")
    parser.add_argument("--steps", type=int, default=400, help="of training, of each [400]")
    parser.add_argument("--sampling-steps", type=int, default=10, help="of A [10]")
    parser.add_argument("--pairs", type=int, help="how many of the list's, from its start [all]")
    parser.add_argument("--runs", type=Path, default=Path("runs/ablations"), help="folder of the runs [runs/ablations]")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="other settings, for all variants")
    parser.add_argument("--batch-size", type=int, default=8, help="pairs judged at once [8]")
    parser.add_argument("--device", help="to judge on: cpu, cuda or mps [the best one present]")
    parser.add_argument("--out", type=Path, help="markdown file to write the table to")
    options = parser.parse_args(arguments)
    names = [FULL, *(options.variants or [name for name in VARIANTS if name != FULL])]
    models = {}
    for name in names:
        print(f"{name}: {options.steps} steps", file=sys.stderr)
        models[name] = train(_config(options, name))
    prior = LatentPrior.from_pretrained(models[FULL], options.device)
    pairs = held_out.pairs(options.data, options.split)[: options.pairs]
    metrics = Metrics(prior.unet.device)
    ids = [pair.scene.id for pair in pairs]
    rows, full = [], None
    for name, folder in models.items():
        print(f"{name}: {len(pairs)} pairs", file=sys.stderr)
        tunet = load_tunet(str(folder)).to(prior.unet.device).eval()
        figures = _judge(Model(prior, tunet, options.sampling_steps, seed=0), pairs, metrics, options.batch_size)
        full = full or figures
        rows.append([VARIANTS[name][0], _size(tunet), *_cells(figures, None if name == FULL else full, ids)])
    config = _config(options, FULL)
    caption = (
        f"{options.steps} steps of {config.batch_size} pairs each on {options.latents.name}, learning rate "
        f"{config.learning_rate:g}; {len(pairs)} {options.split} pairs of {len(set(ids))} scenes, "
        f"{options.sampling_steps} sampling steps. {held_out.measured_on(prior)}"
    )
    header = ["", "weights", "coarse, dB", "lost with a wrong camera, dB", "A, perceptual distance"]
    publish(markdown(caption, header, rows), options.out)


def _config(options: argparse.Namespace, name: str) -> TrainConfig:
    own = [f"latents={options.latents}", f"out={options.runs / name}", f"steps={options.steps}"]
    return load_config(TrainConfig, options.config, [*own, *options.set, *VARIANTS[name][1]])


def _judge(model: Model, pairs: Sequence[PairOfFrames], metrics: Metrics, batch_size: int) -> Figures:
    """Figure -> one value a pair."""
    others = [pairs[position] for position in wrong_partners(pairs, model.seed)]
    found: Figures = {"coarse": [], "camera": [], "perceptual": []}
    for start in range(0, len(pairs), batch_size):
        chosen, wrong = pairs[start : start + batch_size], others[start : start + batch_size]
        batch, truth = held_out.batch(model, chosen, metrics, wrong)
        coarse, away = (
            held_out.psnr(model.prior.decode(mean / batch.star), batch.target_photos)
            for mean in (batch.mean, batch.wrong_mean)
        )
        found["coarse"] += coarse
        found["camera"] += [right - left for right, left in zip(coarse, away, strict=True)]
        found["perceptual"] += metrics.compare("A", batch.variance.cpu(), truth, truth.indices)["perceptual"]
    return found


def _size(tunet: TUNet) -> str:
    return f"{sum(weight.numel() for weight in tunet.parameters()) / 1e6:.1f}M"


def _cells(figures: Figures, full: Figures | None, scenes: Sequence[str]) -> list[str]:
    cells = []
    for name, digits in (("coarse", 2), ("camera", 2), ("perceptual", 3)):
        if full is None:
            cells.append(held_out.interval(bootstrap(figures[name], scenes, seed=0), digits))
        else:
            cells.append(held_out.interval(paired_difference(figures[name], full[name], scenes, seed=0), digits, "+"))
    return cells


if __name__ == "__main__":
    run(main)
