"""DDIM inversion and DDIM sampling on one grid of timesteps (the paper, eq. 1).

Coefficients are Python floats taken from float64; latents stay float32 (or float64 where they come so).
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sidestep.errors import SidestepError
from sidestep.prior import LatentPrior
from sidestep.prompts import PromptEmbeds

TimestepReading = Literal["next", "current"]


@dataclass(frozen=True)
class InversionSettings:
    """How latents were inverted; TUNet is trained for one such setting.

    Attributes:
        t_star: the timestep that inversion ends at.
        steps: how many steps lead there.
        timestep: where the network is asked on the way from tau_k to tau_{k+1}: at tau_{k+1} ("next") or at tau_k
            ("current", as the paper prints it).
        start: tau_0. With 1, t_star = 601 and 30 steps the grid is diffusers' own for Stable Diffusion.
    """

    t_star: int
    steps: int = 30
    timestep: TimestepReading = "next"
    start: int = 0

    def __post_init__(self) -> None:
        if self.timestep not in ("next", "current"):
            raise SidestepError(f"inversion timestep {self.timestep!r} is neither 'next' nor 'current'")
        inversion_grid(self.t_star, self.steps, self.start)

    @property
    def grid(self) -> list[int]:
        """The timesteps tau_0 .. tau_steps."""
        return inversion_grid(self.t_star, self.steps, self.start)


@dataclass(frozen=True)
class Inverted:
    """Latents inverted to one timestep, in the two terms of eq. 1.

    Attributes:
        mean: (B, C, h, w), z_mu = sqrt(a) x0_hat; divide by sqrt(a) before decoding it for display.
        noise: (B, C, h, w), z_sigma = sqrt(1 - a) eps.
    """

    mean: Tensor
    noise: Tensor

    @property
    def latents(self) -> Tensor:
        """(B, C, h, w): the inverted latents, mean + noise."""
        return self.mean + self.noise

    def to(self, device: torch.device) -> "Inverted":
        """The same on another device."""
        return Inverted(self.mean.to(device), self.noise.to(device))


def inversion_grid(t_star: int, steps: int, start: int = 0) -> list[int]:
    """tau_k = start + round(k (t* - start) / steps), k = 0 .. steps; the clean latents sit at tau_0.

    Raises:
        SidestepError: if there are fewer timesteps than steps.
    """
    if start < 0 or steps < 1 or t_star - start < steps:
        raise SidestepError(f"{steps} steps do not fit between timesteps {start} and {t_star}")
    return [start + round(k * (t_star - start) / steps) for k in range(steps + 1)]


def late_grid(t_star: int, steps: int, num_train_timesteps: int, start: int = 0) -> list[int]:
    """The inversion's grid carried on from t*, same spacing, to its last step below `num_train_timesteps`.

    [600, 620, ..., 980] for t* = 600 and 30 steps of 1000. Just [t*] where no further step fits.
    """
    inversion_grid(t_star, steps, start)  # refuses what it must
    last = (num_train_timesteps - 1 - start) * steps // (t_star - start) + 1
    grid = [start + round(k * (t_star - start) / steps) for k in range(steps, max(last, steps) + 1)]
    return [t for t in grid if t < num_train_timesteps]


@torch.no_grad()
def invert(
    prior: LatentPrior,
    latents: Tensor,
    grid: Sequence[int],
    timestep: TimestepReading = "next",
    prompt_embeds: PromptEmbeds | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Inverted:
    """DDIM inversion along `grid` (the paper, eq. 1). To go on to later steps, invert the result's `latents` again.

    Args:
        latents: (B, C, h, w) at timestep grid[0].
        grid: increasing timesteps, two or more.
        timestep: see `InversionSettings`.
        prompt_embeds: of 1 or B prompts; the empty prompt where None. There is no guidance in an inversion.
        progress: called with (steps done, steps in all) after each step.

    Returns:
        The two terms of the latents at grid[-1].

    Raises:
        SidestepError: if the grid is not increasing or leaves the prior's timesteps.
    """
    alphas = alphas_along(prior, grid)
    x = latents
    for k in range(len(grid) - 1):
        s = grid[k + 1] if timestep == "next" else grid[k]
        eps = prior.predict_noise(x, s, prompt_embeds)
        inverted = ddim_step(x, eps, alphas[k], alphas[k + 1])
        x = inverted.latents
        if progress is not None:
            progress(k + 1, len(grid) - 1)
    return inverted


@torch.no_grad()
def sample(
    prior: LatentPrior,
    latents: Tensor,
    grid: Sequence[int],
    prompt_embeds: PromptEmbeds | None = None,
    negative_embeds: PromptEmbeds | None = None,
    guidance: float = 1.0,
    callback: Callable[[int, int], None] | None = None,
    on_step_end: Callable[[int, int, Tensor], Tensor | None] | None = None,
) -> Tensor:
    """Deterministic DDIM sampling along the same grid, from its last entry to its first. Nothing is clipped.

    Args:
        latents: (B, C, h, w) at timestep grid[-1].
        grid: increasing timesteps, two or more; the network is asked at all but the first.
        prompt_embeds, negative_embeds, guidance: see `LatentPrior.predict_noise`.
        callback: called with (steps done, steps in all) after each step.
        on_step_end: called with (steps done before, timestep asked at, latents) after each step. Sampling goes on from
            the latents that it returns, or ends where it returns None.

    Returns:
        (B, C, h, w), the latents at grid[0], or where sampling was ended.

    Raises:
        SidestepError: if the grid is not increasing, leaves the prior's timesteps, or ends where no signal is left.
    """
    alphas = alphas_along(prior, grid)
    refuse_no_signal(alphas, grid)
    x = latents
    steps = len(grid) - 1
    for done, k in enumerate(reversed(range(steps))):
        eps = prior.predict_noise(x, grid[k + 1], prompt_embeds, negative_embeds, guidance)
        x = ddim_step(x, eps, alphas[k + 1], alphas[k]).latents
        if callback is not None:
            callback(done + 1, steps)
        if on_step_end is not None:
            changed = on_step_end(done, grid[k + 1], x)
            if changed is None:
                break
            x = changed
    return x


def ddim_step(x: Tensor, eps: Tensor, a: float, a_to: float) -> Inverted:
    """Latents x moved by their noise estimate eps from alphas_cumprod `a`, not 0, to `a_to`, up or down (eq. 1)."""
    mean = (x - math.sqrt(1 - a) * eps) * math.sqrt(a_to / a)  # eq. 1, signal / mean: sqrt(a_to) x0_hat
    noise = math.sqrt(1 - a_to) * eps  # eq. 1, noise / variance
    return Inverted(mean, noise)


def alphas_along(prior: LatentPrior, grid: Sequence[int]) -> list[float]:
    """alphas_cumprod along the grid.

    Raises:
        SidestepError: if the grid is not of two or more increasing timesteps of the prior.
    """
    if len(grid) < 2 or any(t >= later for t, later in itertools.pairwise(grid)):
        raise SidestepError(f"a grid needs two or more increasing timesteps, not {list(grid)}")
    if grid[0] < 0 or grid[-1] >= prior.num_train_timesteps:
        raise SidestepError(
            f"timesteps {grid[0]} to {grid[-1]} leave this prior's 0 to {prior.num_train_timesteps - 1}; "
            "choose another t*"
        )
    return [float(prior.alphas_cumprod[t]) for t in grid]


def refuse_no_signal(alphas: Sequence[float], grid: Sequence[int]) -> None:
    """Refuses to sample from where alphas_cumprod is 0, as at the last step of a zero terminal SNR."""
    if alphas[-1] == 0:
        raise SidestepError(f"at timestep {grid[-1]} this prior's schedule has no signal left; start sampling earlier")
