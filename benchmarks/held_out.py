"""What `round_trip.py` and `fusion.py` share: a prior, pictures that it never saw, and how to compare pictures."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from sidestep.captures import Frame, Scene, read_captures
from sidestep.captures.splits import SPLITS, Split, split_scenes
from sidestep.errors import SidestepError
from sidestep.images import resize_and_crop, to_tensor
from sidestep.models import model_folder
from sidestep.prior import LatentPrior


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that both scripts take."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--prior", default="bundled", help="folder or hub id of the prior [bundled]")
    options.add_argument("--data", type=Path, required=True, help="captures")
    options.add_argument("--split", choices=SPLITS, default="test", help="whose scenes, by model [test]")
    options.add_argument("--scenes", type=int, help="how many, evenly spread over the split [all]")
    options.add_argument("--t-star", type=int, nargs="+", help="timesteps to invert to")
    options.add_argument("--batch-size", type=int, default=8, help="pictures at once [8]")
    options.add_argument("--device", help="cpu, cuda or mps [the best one present]")
    options.add_argument("--out", type=Path, help="markdown file to write the table to")
    return options


def load_prior(options: argparse.Namespace) -> LatentPrior:
    """The prior that the options name."""
    return LatentPrior.from_pretrained(model_folder(options.prior), options.device)


def held_out(data: Path, split: Split, count: int | None) -> list[Scene]:
    """`count` scenes evenly spread over a split's, sorted by id; all of them where None.

    Raises:
        SidestepError: if there are none.
    """
    scenes = sorted(split_scenes(read_captures(data), "model")[split], key=lambda scene: scene.id)
    if not scenes:
        raise SidestepError(f"{data}: no scene of its is in split {split}; name another --split")
    count = min(count or len(scenes), len(scenes))
    return [scenes[i * len(scenes) // count] for i in range(count)]


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


def measured_on(prior: LatentPrior) -> str:
    """The prior and the machine, for a table's caption."""
    dtype = str(prior.unet.dtype).removeprefix("torch.")
    return (
        f"Prior {prior.fingerprint()[:12]}, {prior.image_size} px; {prior.unet.device.type}, {dtype}, "
        f"torch {torch.__version__}, {torch.get_num_threads()} threads."
    )
