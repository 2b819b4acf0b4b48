"""What benchmarks on held-out scenes share: options, a prior, pictures that it never saw, and how to compare them."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from sidestep.captures import Frame, Scene, read_captures
from sidestep.captures.splits import SPLITS, Split, split_scenes
from sidestep.errors import SidestepError
from sidestep.evaluation.metrics import Metrics, Targets
from sidestep.evaluation.protocol import PROTOCOLS, PairOfFrames, held_out_pairs, pairs_of_frames
from sidestep.evaluation.results import Estimate
from sidestep.evaluation.rows import Batch, Model
from sidestep.images import resize_and_crop, to_tensor
from sidestep.models import model_folder
from sidestep.prior import LatentPrior

T = TypeVar("T")


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that these scripts take."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--prior", default="bundled", help="folder or hub id of the prior [bundled]")
    options.add_argument("--data", type=Path, required=True, help="captures")
    options.add_argument("--split", choices=SPLITS, default="test", help="whose scenes, by model [test]")
    options.add_argument("--scenes", type=int, help="how many of the split [all]")
    options.add_argument("--t-star", type=int, nargs="+", help="timesteps to invert to")
    options.add_argument("--batch-size", type=int, default=8, help="pictures at once [8]")
    options.add_argument("--device", help="cpu, cuda or mps [the best one present]")
    options.add_argument("--out", type=Path, help="markdown file to write the table to")
    return options


def load_prior(options: argparse.Namespace) -> LatentPrior:
    """The prior that the options name."""
    return LatentPrior.from_pretrained(model_folder(options.prior), options.device)


def spread(items: Sequence[T], count: int | None) -> list[T]:
    """`count` of the items, evenly spread over them; all of them where None."""
    count = min(count or len(items), len(items))
    return [items[i * len(items) // count] for i in range(count)]


def scenes(data: Path, split: Split, count: int | None) -> list[Scene]:
    """`count` scenes evenly spread over a split's, sorted by id; all of them where None.

    Raises:
        SidestepError: if there are none.
    """
    found = sorted(split_scenes(read_captures(data), "model")[split], key=lambda scene: scene.id)
    if not found:
        raise SidestepError(f"{data}: no scene of its is in split {split}; name another --split")
    return spread(found, count)


def pairs(data: Path, split: Split) -> list[PairOfFrames]:
    """The list that `sidestep evaluate` measures on: pairs of all distances.

    Raises:
        SidestepError: if there are none.
    """
    captures = read_captures(data)
    return pairs_of_frames(held_out_pairs(captures, PROTOCOLS["distance"], split, seed=0), captures)


def batch(
    model: Model, pairs: Sequence[PairOfFrames], metrics: Metrics, others: Sequence[PairOfFrames] | None = None
) -> tuple[Batch, Targets]:
    """Pairs on their way through the model, and their true photos, for `Metrics.compare`.

    Args:
        others: pairs whose target cameras are the wrong ones, where a row asks for them.
    """
    photos, targets = (
        pictures([getattr(pair, which) for pair in pairs], model.prior.image_size) for which in ("reference", "target")
    )
    truth = metrics.target(targets, photos, [pair.position for pair in pairs])
    made = Batch.of_pairs(
        model, pairs, others or pairs, (photos, targets), lambda views: metrics.distance(views, truth)
    )
    return made, truth


def pictures(frames: Sequence[Frame], size: int) -> Tensor:
    """The photos, scaled and cropped, (B, 3, size, size) in [-1, 1]."""
    return torch.stack([to_tensor(resize_and_crop(frame.load(), size)) for frame in frames])


def psnr(pictures: Tensor, truth: Tensor) -> list[float]:
    """Peak signal-to-noise ratio of each picture, dB; both (B, 3, H, W) in [-1, 1]."""
    error = (pictures.cpu().double() - truth.cpu().double()).square().mean(dim=(1, 2, 3))
    return (10 * torch.log10(4 / error)).tolist()


def gradient(pictures: Tensor) -> list[float]:
    """Mean absolute difference of neighbouring pixels of each (B, 3, H, W) in [-1, 1]: how sharp it is."""
    across, down = (pictures.float().cpu().diff(dim=d).abs().mean(dim=(1, 2, 3)) for d in (-1, -2))
    return ((across + down) / 2).tolist()


def signal(prior: LatentPrior, t_star: int) -> float:
    """sqrt(alphas_cumprod) at t*, what a mean is divided by before it is decoded.

    Raises:
        SidestepError: if the prior has no such timestep.
    """
    if not 0 < t_star < prior.num_train_timesteps:
        raise SidestepError(f"t* {t_star} is outside this prior's 1 .. {prior.num_train_timesteps - 1}")
    return math.sqrt(float(prior.alphas_cumprod[t_star]))


def interval(estimate: Estimate | None, digits: int, sign: str = "") -> str:
    """An estimate with its interval as "value [low, high]"; empty where there is none.

    Args:
        sign: "+" where differences bear their sign.
    """
    if estimate is None:
        return ""
    value, low, high = (f"{x:{sign}.{digits}f}" for x in (estimate.value, estimate.low, estimate.high))
    return f"{value} [{low}, {high}]"


def measured_on(prior: LatentPrior) -> str:
    """The prior and the machine, for a table's caption."""
    dtype = str(prior.unet.dtype).removeprefix("torch.")
    return (
        f"Prior {prior.fingerprint()[:12]}, {prior.image_size} px; {prior.unet.device.type}, {dtype}, "
        f"torch {torch.__version__}, {torch.get_num_threads()} threads."
    )
