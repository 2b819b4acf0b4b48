"""Fusion: from TUNet's predicted mean and the reference's noise to latents that sampling can start from.

Two ways, the paper's strategies A (variance fusion) and B (direct addition), and a choice between their results that
never sees the target. The paper keeps whichever has the lower LPIPS against the true target: an oracle, which belongs
to an evaluation and not here.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from sidestep.errors import SidestepError
from sidestep.inversion import InversionSettings, Inverted, inversion_grid
from sidestep.prior import LatentPrior

ScaleReading = Literal["algebra", "paper", "scripts"]
NoiseReading = Literal["reference", "late", "gaussian"]
LatentReading = Literal["late", "t_star"]
Method = Literal["variance", "addition"]


@dataclass(frozen=True)
class FusionSettings:
    """The readings that the paper and its authors' scripts leave open.

    Attributes:
        c: the factor of the added noise, see `noise_scale`.
        noise: what A adds before it asks the network: the reference's noise term at t* ("reference"), that of the
            last step times sqrt(1 - a_800) ("late"; the scripts take it from t = 941), or noise that knows nothing of
            the reference's layout, sqrt(1 - a*) times a standard normal ("gaussian", ours).
        latent: what B adds: the reference inverted to the last step, almost pure noise ("late"; the scripts stop at
            t = 961), or to t* ("t_star", as the paper reads), where its own picture comes along as a ghost.
        sample_from: the timestep that sampling starts from, t* where None (the scripts: 581, 601 or 621).
    """

    c: ScaleReading = "algebra"
    noise: NoiseReading = "reference"
    latent: LatentReading = "late"
    sample_from: int | None = None

    def __post_init__(self) -> None:
        for name, readings in (("c", ScaleReading), ("noise", NoiseReading), ("latent", LatentReading)):
            if getattr(self, name) not in get_args(readings):
                raise SidestepError(
                    f"fusion {name} is {getattr(self, name)!r}; it must be one of {', '.join(get_args(readings))}"
                )

    def needs_late(self, method: Method) -> bool:
        """Whether `method` needs the reference inverted to the last step besides t*."""
        return (self.noise if method == "variance" else self.latent) == "late"

    def sampling_grid(self, inversion: InversionSettings, steps: int) -> list[int]:
        """The timesteps that `sample` walks down after fusion, `steps` of them, to where the inversion began."""
        last = inversion.t_star if self.sample_from is None else self.sample_from
        return inversion_grid(last, steps, inversion.start)


def noise_scale(alphas_cumprod: Tensor, t_star: int, reading: ScaleReading = "algebra") -> float:
    """c, the factor of the noise that fusion adds to a mean at t*.

    "algebra": sqrt(1 - a*), the noise's share in eq. 1 (0.916 for Stable Diffusion at 600); "paper": sqrt(1 + a*) as
    printed (1.077); "scripts": sqrt(1 - a_700) (0.958), 700 standing for 0.7 T where T is not 1000.
    """
    if reading == "algebra":
        return math.sqrt(1 - float(alphas_cumprod[t_star]))
    if reading == "paper":
        return math.sqrt(1 + float(alphas_cumprod[t_star]))
    return math.sqrt(1 - float(alphas_cumprod[_of_thousand(700, alphas_cumprod)]))


def variance_fusion(
    prior: LatentPrior, mean_target: Tensor, noise_reference: Tensor, t_star: int, c: float | None = None
) -> Tensor:
    """A: the network's own estimate of the noise takes the place of the reference's (the paper, strategy A).

    Args:
        mean_target: (B, C, h, w), TUNet's prediction at t*.
        noise_reference: (1 or B, C, h, w), the reference's noise term.
        c: see `noise_scale`; its "algebra" where None.

    Returns:
        (B, C, h, w), the latents that sampling starts from at t*.
    """
    noisy = mean_target + noise_reference  # z_noisy = mean_tar + noise_ref
    eps = prior.predict_noise(noisy, t_star)  # eps = eps_theta(z_noisy, t*)
    if c is None:
        c = noise_scale(prior.alphas_cumprod, t_star)
    return mean_target + c * eps


def direct_addition(mean_target: Tensor, latents_reference: Tensor, c: float) -> Tensor:
    """B: the reference's inverted latents as noise (the paper, strategy B).

    Args:
        mean_target: (B, C, h, w), TUNet's prediction at t*.
        latents_reference: (1 or B, C, h, w), the reference inverted to the last step or to t*.
        c: see `noise_scale`.

    Returns:
        (B, C, h, w), the latents that sampling starts from at t*.
    """
    return mean_target + c * latents_reference


def fuse(
    prior: LatentPrior,
    method: Method,
    mean_target: Tensor,
    reference: Inverted,
    late: Inverted | None,
    t_star: int,
    settings: FusionSettings | None = None,
    drawn: Tensor | None = None,
) -> Tensor:
    """One of the two methods under the given readings.

    Args:
        mean_target: (B, C, h, w), TUNet's prediction at t*.
        reference: the reference inverted to t*, batch 1 or B.
        late: the reference inverted to the last step; may be None where `settings.needs_late(method)` is false.
        drawn: standard normal noise, (1 or B, C, h, w); what the reading "gaussian" takes.

    Returns:
        (B, C, h, w), the latents that sampling starts from.

    Raises:
        SidestepError: if the method is unknown, or `late` or `drawn` is missing where it is needed.
    """
    settings = settings or FusionSettings()
    if method not in get_args(Method):
        raise SidestepError(f"fusion method {method!r} is unknown; use variance or addition")
    added = late if settings.needs_late(method) else reference
    if added is None:
        raise SidestepError(f"fusion {method} needs the reference inverted to the last step; see late_grid")
    c = noise_scale(prior.alphas_cumprod, t_star, settings.c)
    if method == "addition":
        return direct_addition(mean_target, added.latents, c)
    noise = added.noise
    if settings.noise == "late":
        noise = math.sqrt(1 - float(prior.alphas_cumprod[_of_thousand(800, prior.alphas_cumprod)])) * noise
    elif settings.noise == "gaussian":
        if drawn is None:
            raise SidestepError("fusion with Gaussian noise needs the noise; draw it with torch.randn")
        noise = noise_scale(prior.alphas_cumprod, t_star) * drawn.to(mean_target)
    return variance_fusion(prior, mean_target, noise, t_star, c)


def choose(candidates: Mapping[str, Tensor], coarse: Tensor, reference: Tensor) -> list[str]:
    """For each target, the name of the candidate with the lowest `score`; the first of equals.

    Args:
        candidates: name -> (B, 3, H, W), decoded pictures in [-1, 1].
        coarse: (B, 3, H, W), TUNet's prediction decoded (divided by sqrt(a*) first).
        reference: (1 or B, 3, H, W), the input photo.

    Raises:
        SidestepError: if there is no candidate.
    """
    if not candidates:
        raise SidestepError("there is no candidate to choose from")
    names = list(candidates)
    scores = torch.stack([score(candidates[name], coarse, reference) for name in names])
    return [names[i] for i in scores.argmin(0).tolist()]


def score(candidate: Tensor, coarse: Tensor, reference: Tensor, sharpness_weight: float = 0.25) -> Tensor:
    """How little a result can be trusted, judged without the target; lower is better.

        score = rms(low(candidate) - low(coarse)) / std(low(reference)) + weight |ln(g(candidate) / g(reference))|

    low(.) averages over a 16x16 grid of cells, g(.) is the mean absolute gradient. The coarse prediction is right
    about the layout and wrong about sharpness; the reference is right about sharpness and wrong about the layout. The
    first term catches a result that shows the reference's layout, the second one that stayed blurred or got noisy.
    The division makes the score independent of the photo's contrast. The weight makes a result half as sharp as the
    reference (0.17) as bad as a layout off by a sixth of the photo's contrast; it is a judgement, not fitted.

    Args:
        candidate, coarse: (B, 3, H, W) in [-1, 1].
        reference: (1 or B, 3, H, W) in [-1, 1], of any size near theirs.

    Returns:
        (B,).
    """
    contrast = _low(reference).std(dim=(1, 2, 3), correction=0).clamp_min(1e-3)
    layout = (_low(candidate) - _low(coarse)).square().mean(dim=(1, 2, 3)).sqrt() / contrast
    sharpness = (_gradient(candidate) / _gradient(reference)).log().abs()
    return layout + sharpness_weight * sharpness


def _low(images: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(images.float(), 16)


def _gradient(images: Tensor) -> Tensor:
    """(B,): mean absolute difference of neighbouring pixels, kept off zero for flat pictures."""
    across = images.float().diff(dim=-1).abs().mean(dim=(1, 2, 3))
    down = images.float().diff(dim=-2).abs().mean(dim=(1, 2, 3))
    return ((across + down) / 2).clamp_min(1e-6)


def _of_thousand(t: int, alphas_cumprod: Tensor) -> int:
    """A timestep of the scripts' 1000, on this schedule."""
    return round(t * len(alphas_cumprod) / 1000)
