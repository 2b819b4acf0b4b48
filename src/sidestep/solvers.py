"""Other ways along the grid than DDIM's: refined and exactly reversible inversions, and a sampler of second order.

Beside `invert` and `sample` of `sidestep.inversion`, with the same conventions. Each step is a DDIM step (eq. 1) by a
better estimate of the noise than the network's one answer, so each inversion also ends in the two terms of eq. 1.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from sidestep.errors import SidestepError
from sidestep.inversion import Inverted, alphas_along, ddim_step, inversion_grid, invert, refuse_no_signal
from sidestep.prior import LatentPrior
from sidestep.prompts import PromptEmbeds

Mixing = Literal["last", "average", "anderson"]


def sigma_grid(alphas_cumprod: Tensor, t_star: int, steps: int, start: int = 0, rho: float = 2.0) -> list[int]:
    """Timesteps from `start` to t*, as nearly as can be at equal distances of sigma^(1 / rho) (Karras et al. 2022).

    sigma = sqrt((1 - a) / a) is the noise over the signal. The larger rho, the more steps are where there is little
    noise; with infinity they are equal in the logarithm of sigma, and so of the signal-to-noise ratio. None is shorter
    than one timestep.

    Raises:
        SidestepError: if there are fewer timesteps than steps, t* leaves the schedule or has no signal, rho is not
            above 0, or it is infinite and `start` has no noise.
    """
    inversion_grid(t_star, steps, start)  # refuses what it must
    if t_star >= len(alphas_cumprod):
        raise SidestepError(f"t* {t_star} leaves this prior's 0 to {len(alphas_cumprod) - 1}; choose another")
    if not rho > 0:
        raise SidestepError(f"rho is {rho}; it must be above 0")
    a = alphas_cumprod[start : t_star + 1].double()
    sigmas = ((1 - a) / a).sqrt()
    places = sigmas.log() if math.isinf(rho) else sigmas ** (1 / rho)
    if not places.isfinite().all():
        raise SidestepError(f"between timesteps {start} and {t_star} this schedule runs out of noise or of signal")
    grid = [start]
    for k in range(1, steps + 1):
        wanted = places[0] + k / steps * (places[-1] - places[0])
        nearest = start + int((places - wanted).abs().argmin())
        grid.append(min(max(nearest, grid[-1] + 1), t_star - (steps - k)))
    return grid


@torch.no_grad()
def invert_refined(
    prior: LatentPrior,
    latents: Tensor,
    grid: Sequence[int],
    refinements: int = 1,
    mixing: Mixing = "last",
    prompt_embeds: PromptEmbeds | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Inverted:
    """DDIM inversion whose steps undo sampling's: x_{k+1} solves x = step(x_k, eps_theta(x, tau_{k+1})) by iteration.

    The first estimate asks at x_k, as `invert` does, and each refinement at the latents that the one before led to.
    There are 1 + `refinements` forwards a step.

    Args:
        latents, grid, prompt_embeds, progress: as in `invert`.
        refinements: 0 is `invert`.
        mixing: what a step goes by: the last estimate (AIDI's fixed-point iteration, Pan et al. 2023), the average of
            the refined ones (ReNoise, Garibi et al. 2024, without its noise regularisation), or, AIDI's acceleration,
            the mixture of all whose residual is least, from which the next refinement also starts ("anderson").

    Returns:
        The two terms of the latents at grid[-1].

    Raises:
        SidestepError: if the grid is not increasing or leaves the prior's timesteps, or an argument is out of range.
    """
    if refinements < 0:
        raise SidestepError(f"refinements is {refinements}; it must be 0 or more")
    if mixing not in get_args(Mixing):
        raise SidestepError(f"mixing {mixing!r} is unknown; use {', '.join(get_args(Mixing))}")
    alphas = alphas_along(prior, grid)
    x = latents
    for k in range(len(grid) - 1):
        a, a_next = alphas[k], alphas[k + 1]
        guess, estimates, residuals = x, [], []
        for _ in range(1 + refinements):
            eps = prior.predict_noise(guess, grid[k + 1], prompt_embeds)
            estimates.append(eps)
            if mixing == "anderson":
                residuals.append(ddim_step(x, eps, a, a_next).latents - guess)
                eps = _least_residual(estimates, residuals)
            inverted = ddim_step(x, eps, a, a_next)
            guess = inverted.latents
        if mixing == "average" and refinements:
            inverted = ddim_step(x, torch.stack(estimates[1:]).mean(0), a, a_next)
        x = inverted.latents
        if progress is not None:
            progress(k + 1, len(grid) - 1)
    return inverted


def _least_residual(estimates: Sequence[Tensor], residuals: Sequence[Tensor]) -> Tensor:
    """The mixture, with weights of sum 1 for each of the batch, whose mixture of residuals is shortest."""
    if len(estimates) == 1:
        return estimates[0]
    last = residuals[-1].flatten(1)
    away = torch.stack([residual.flatten(1) - last for residual in residuals[:-1]], 1)  # (B, n - 1, C h w)
    gram = (away @ away.mT).double().cpu()
    along = (away @ last[:, :, None]).double().cpu()
    # Residuals may be parallel, or nothing where the iteration has converged.
    weights = -(torch.linalg.pinv(gram, rtol=1e-6, hermitian=True) @ along)[:, :, 0].to(last)  # (B, n - 1)
    changes = torch.stack([estimate - estimates[-1] for estimate in estimates[:-1]], 1)
    return estimates[-1] + torch.einsum("bn,bn...->b...", weights, changes)


@torch.no_grad()
def invert_multistep(
    prior: LatentPrior,
    latents: Tensor,
    grid: Sequence[int],
    prompt_embeds: PromptEmbeds | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Inverted:
    """DPM-Solver++(2M) (Lu et al. 2022) towards more noise: the ODE of `sample_multistep` upwards.

    The network is asked at all timesteps but the last, once each.

    Args:
        latents, grid, prompt_embeds, progress: as in `invert`.

    Returns:
        The two terms of the latents at grid[-1].

    Raises:
        SidestepError: if the grid is not increasing or leaves the prior's timesteps.
    """
    alphas = alphas_along(prior, grid)
    x, before = latents, None
    for k in range(len(grid) - 1):
        eps = prior.predict_noise(x, grid[k], prompt_embeds)
        weight = _second_order(*alphas[k - 1 : k + 2]) if k else 0.0
        eps, before = _extrapolate(x, eps, alphas[k], before, weight)
        inverted = ddim_step(x, eps, alphas[k], alphas[k + 1])
        x = inverted.latents
        if progress is not None:
            progress(k + 1, len(grid) - 1)
    return inverted


@torch.no_grad()
def sample_multistep(
    prior: LatentPrior,
    latents: Tensor,
    grid: Sequence[int],
    prompt_embeds: PromptEmbeds | None = None,
    negative_embeds: PromptEmbeds | None = None,
    guidance: float = 1.0,
    callback: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Sampling by DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): as many forwards as `sample`, at second order.

    Made for the steps of `sigma_grid`. On equal steps of t the last one is many times the one before it in lambda, too
    far to extrapolate to.

    Args:
        latents, grid, prompt_embeds, negative_embeds, guidance, callback: as in `sample`.

    Returns:
        (B, C, h, w), the latents at grid[0].

    Raises:
        SidestepError: if the grid is not increasing, leaves the prior's timesteps, or ends where no signal is left.
    """
    alphas = alphas_along(prior, grid)
    refuse_no_signal(alphas, grid)
    x, before = latents, None
    steps = len(grid) - 1
    for done, k in enumerate(reversed(range(steps))):
        eps = prior.predict_noise(x, grid[k + 1], prompt_embeds, negative_embeds, guidance)
        weight = _second_order(alphas[k + 2], alphas[k + 1], alphas[k]) if done else 0.0
        eps, before = _extrapolate(x, eps, alphas[k + 1], before, weight)
        x = ddim_step(x, eps, alphas[k + 1], alphas[k]).latents
        if callback is not None:
            callback(done + 1, steps)
    return x


def _log_snr(a: float) -> float:
    """lambda = ln(a / (1 - a)) / 2, half the logarithm of the signal-to-noise ratio; infinite at 0 and 1."""
    if a in (0, 1):
        return math.inf if a else -math.inf
    return math.log(a / (1 - a)) / 2


def _second_order(a_before: float, a: float, a_to: float) -> float:
    """How far 2M extrapolates the change of x0_hat: h / (2 h_before), in steps h of lambda; 0 where one is infinite.

    Also 0 after a step from one noise level to the same, as a schedule with a beta of 0 has them.
    """
    before, here, to = _log_snr(a_before), _log_snr(a), _log_snr(a_to)
    if here == before:
        return 0.0
    weight = (to - here) / (2 * (here - before))
    return weight if math.isfinite(weight) else 0.0


def _extrapolate(x: Tensor, eps: Tensor, a: float, before: Tensor | None, weight: float) -> tuple[Tensor, Tensor]:
    """(the noise in x if its x0 is x0_hat + weight (x0_hat - x0_hat before), x0_hat)."""
    clean = (x - math.sqrt(1 - a) * eps) / math.sqrt(a)
    if before is None or weight == 0:
        return eps, clean
    return eps - math.sqrt(a / (1 - a)) * weight * (clean - before), clean


@torch.no_grad()
def invert_bidirectional(
    prior: LatentPrior,
    latents: Tensor,
    grid: Sequence[int],
    gamma: float = 1.0,
    prompt_embeds: PromptEmbeds | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Inverted, Tensor]:
    """BDIA (Zhang et al. 2023) upwards, which `sample_bidirectional` undoes exactly, up to rounding.

        x_{k+1} = step(x_k, eps_k, a_k, a_{k+1}) + (x_{k-1} - step(x_k, eps_k, a_k, a_{k-1})) / gamma

    with eps_k = eps_theta(x_k, tau_k). The first step is `invert`'s. There is one forward a step.

    Args:
        latents, grid, prompt_embeds, progress: as in `invert`.
        gamma: above 0, at most 1. The way back is DDIM's for 0, and the way up amplifies rounding by 1 / gamma a step.

    Returns:
        The two terms of the latents at grid[-1], and the latents at grid[-2], (B, C, h, w): the way back needs both.

    Raises:
        SidestepError: if the grid is not increasing or leaves the prior's timesteps, or gamma is out of range.
    """
    _check_gamma(gamma)
    alphas = alphas_along(prior, grid)
    steps = len(grid) - 1
    x_before, inverted = latents, invert(prior, latents, grid[:2], "next", prompt_embeds)
    for k in range(1, steps):
        if progress is not None:
            progress(k, steps)
        x = inverted.latents
        eps = prior.predict_noise(x, grid[k], prompt_embeds)
        down, up = (ddim_step(x, eps, alphas[k], alphas[to]) for to in (k - 1, k + 1))
        inverted = Inverted(up.mean + (x_before - down.latents) / gamma, up.noise)
        x_before = x
    if progress is not None:
        progress(steps, steps)
    return inverted, x_before


@torch.no_grad()
def sample_bidirectional(
    prior: LatentPrior,
    latents: Tensor,
    grid: Sequence[int],
    before: Tensor | None = None,
    gamma: float = 1.0,
    prompt_embeds: PromptEmbeds | None = None,
    negative_embeds: PromptEmbeds | None = None,
    guidance: float = 1.0,
    callback: Callable[[int, int], None] | None = None,
) -> Tensor:
    """BDIA (Zhang et al. 2023) downwards.

        x_{k-1} = step(x_k, eps_k, a_k, a_{k-1}) + gamma (x_{k+1} - step(x_k, eps_k, a_k, a_{k+1}))

    Args:
        latents: (B, C, h, w) at timestep grid[-1].
        before: those at grid[-2], of `invert_bidirectional`: exactly its way back, with a forward less. Where None,
            the first step is `sample`'s.
        gamma: as in `invert_bidirectional`.
        grid, prompt_embeds, negative_embeds, guidance, callback: as in `sample`.

    Returns:
        (B, C, h, w), the latents at grid[0].

    Raises:
        SidestepError: if the grid is not increasing, leaves the prior's timesteps, or ends where no signal is left, or
            if gamma is out of range or `before` has another shape.
    """
    _check_gamma(gamma)
    alphas = alphas_along(prior, grid)
    refuse_no_signal(alphas, grid)
    if before is not None and before.shape != latents.shape:
        raise SidestepError(f"the latents before are {tuple(before.shape)}, but the latents {tuple(latents.shape)}")
    prompts = prompt_embeds, negative_embeds, guidance
    steps = len(grid) - 1
    x_after = latents
    if before is None:
        eps = prior.predict_noise(latents, grid[-1], *prompts)
        before = ddim_step(latents, eps, alphas[-1], alphas[-2]).latents
    x = before
    for k in reversed(range(1, steps)):
        if callback is not None:
            callback(steps - k, steps)
        eps = prior.predict_noise(x, grid[k], *prompts)
        down, up = (ddim_step(x, eps, alphas[k], alphas[to]).latents for to in (k - 1, k + 1))
        x, x_after = down + gamma * (x_after - up), x
    if callback is not None:
        callback(steps, steps)
    return x


def _check_gamma(gamma: float) -> None:
    if not 0 < gamma <= 1:
        raise SidestepError(f"gamma is {gamma}; it must be above 0 and at most 1")
