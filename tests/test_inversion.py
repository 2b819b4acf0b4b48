"""DDIM inversion against closed forms, the exact ODE of a Gaussian, and diffusers' own schedulers."""

import itertools
import math

import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler

from miniatures import SD
from priors import GaussianPrior, tiny_prior
from sidestep.errors import SidestepError
from sidestep.inversion import InversionSettings, inversion_grid, invert, late_grid, sample


@pytest.fixture
def gaussian():
    return GaussianPrior()


@pytest.fixture
def latents():
    return torch.randn(2, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_the_papers_grid():
    assert inversion_grid(600, 30) == list(range(0, 601, 20))


def test_diffusers_grid_for_stable_diffusion_is_an_option():
    assert InversionSettings(t_star=601, start=1).grid == list(range(1, 602, 20))


@pytest.mark.parametrize("t_star", [31, 50, 421, 777, 999])
def test_grid_reaches_any_t_star_in_increasing_steps(t_star):
    grid = inversion_grid(t_star, 30)
    assert grid[0] == 0
    assert grid[-1] == t_star
    assert len(grid) == 31
    assert grid == sorted(set(grid))
    late = late_grid(t_star, 30, 1000)
    spacing = t_star / 30
    assert late[0] == t_star
    assert late == sorted(set(late))
    assert 1000 - spacing - 1 <= late[-1] <= 999
    assert all(abs(b - a - spacing) <= 1 for a, b in itertools.pairwise(late))


def test_late_grid_keeps_the_spacing_to_the_last_step():
    assert late_grid(600, 30, 1000) == list(range(600, 981, 20))
    assert late_grid(601, 30, 1000, start=1) == list(range(601, 982, 20))
    assert late_grid(990, 30, 1000) == [990]


@pytest.mark.parametrize(("t_star", "steps"), [(10, 30), (600, 0), (0, 1)])
def test_impossible_grids_are_refused(t_star, steps):
    with pytest.raises(SidestepError, match="steps do not fit"):
        InversionSettings(t_star=t_star, steps=steps)


def test_unknown_timestep_reading_is_refused():
    with pytest.raises(SidestepError, match="later"):
        InversionSettings(t_star=600, timestep="later")


def test_t_star_past_the_schedule_is_refused_not_clipped(gaussian, latents):
    with pytest.raises(SidestepError, match="1000"):
        invert(gaussian, latents, inversion_grid(1000, 30))
    with pytest.raises(SidestepError, match="1000"):
        sample(gaussian, latents, inversion_grid(1000, 30))
    assert gaussian.asked == []


def test_a_grid_must_increase(gaussian, latents):
    for grid in ([0], [0, 20, 20], [20, 0]):
        with pytest.raises(SidestepError, match="increasing"):
            invert(gaussian, latents, grid)


def test_where_the_network_is_asked(gaussian, latents):
    invert(gaussian, latents, [0, 20, 40], "next")
    invert(gaussian, latents, [0, 20, 40], "current")
    sample(gaussian, latents, [0, 20, 40])
    assert gaussian.asked == [20, 40, 0, 20, 40, 20]


def test_one_step_is_the_closed_form(gaussian, latents):
    a, b = (float(gaussian.alphas_cumprod[t]) for t in (580, 600))
    eps = gaussian.predict_noise(latents, 600)
    clean = (latents - math.sqrt(1 - a) * eps) / math.sqrt(a)
    result = invert(gaussian, latents, [580, 600])
    torch.testing.assert_close(result.mean, math.sqrt(b) * clean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(result.noise, math.sqrt(1 - b) * eps, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(result.latents, result.mean + result.noise, rtol=0, atol=0)


def test_sampling_undoes_a_step_exactly_where_the_noise_estimate_is_the_same(latents):
    prior = GaussianPrior()
    constant = torch.ones_like(latents) * 0.3
    prior.predict_noise = lambda *args: constant
    grid = inversion_grid(600, 30)
    back = sample(prior, invert(prior, latents, grid).latents, grid)
    torch.testing.assert_close(back, latents, rtol=1e-12, atol=1e-12)


def test_a_step_of_sampling_can_change_the_latents_or_be_the_last(gaussian, latents):
    seen = []

    def end(step, timestep, x):
        seen.append((step, timestep))
        return None if step == 1 else x + 1

    ended = sample(gaussian, latents, [0, 200, 400, 600], on_step_end=end)
    assert seen == [(0, 600), (1, 400)]
    changed = sample(gaussian, latents, [400, 600]) + 1
    torch.testing.assert_close(ended, sample(gaussian, changed, [200, 400]), rtol=1e-12, atol=1e-12)


def test_inversion_can_go_on_from_where_it_stopped(gaussian, latents):
    whole = invert(gaussian, latents, [0, 20, 40, 60])
    part = invert(gaussian, invert(gaussian, latents, [0, 20]).latents, [20, 40, 60])
    torch.testing.assert_close(part.latents, whole.latents, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("reading", ["next", "current"])
def test_inversion_converges_to_the_exact_ode(gaussian, latents, reading):
    latents = gaussian.m + gaussian.s * latents
    exact = gaussian.exact(latents, 0, 600)

    def error(steps):
        return (invert(gaussian, latents, inversion_grid(600, steps), reading).latents - exact).abs().max()

    assert error(30) < 0.15
    assert error(300) < 0.25 * error(30)
    assert error(600) < 0.6 * error(300)


def test_sampling_converges_to_the_exact_ode(gaussian, latents):
    exact = gaussian.exact(latents, 600, 0)

    def error(steps):
        return (sample(gaussian, latents, inversion_grid(600, steps)) - exact).abs().max()

    assert error(300) < 0.25 * error(30)


def test_round_trip_error_is_smaller_with_next_than_with_current(gaussian, latents):
    grid = inversion_grid(600, 30)
    errors = {
        reading: (sample(gaussian, invert(gaussian, latents, grid, reading).latents, grid) - latents).abs().max()
        for reading in ("next", "current")
    }
    assert errors["next"] < 0.5 * errors["current"]


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_agrees_with_diffusers_inverse_scheduler(latents, prediction_type):
    prior = tiny_prior(prediction_type).double()
    # 50 of 1000 steps give diffusers' own grid the spacing 20; step() is called with the timestep it arrives at.
    theirs = DDIMInverseScheduler(**SD, clip_sample=False, set_alpha_to_one=False, prediction_type="epsilon")
    theirs.set_timesteps(50)
    x = latents
    for t in inversion_grid(600, 30)[1:]:
        x = theirs.step(prior.predict_noise(x, t), t, x).prev_sample
    ours = invert(prior, latents, inversion_grid(600, 30)).latents
    torch.testing.assert_close(ours, x, rtol=0, atol=1e-5)  # their coefficients are float32


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_agrees_with_diffusers_ddim_scheduler(latents, prediction_type):
    prior = tiny_prior(prediction_type).double()
    theirs = DDIMScheduler(**SD, clip_sample=False, set_alpha_to_one=False, prediction_type=prediction_type)
    theirs.set_timesteps(50)
    x = latents
    for t in reversed(inversion_grid(600, 30)[1:]):
        x = theirs.step(prior.unet(x, t).sample, t, x).prev_sample
    torch.testing.assert_close(sample(prior, latents, inversion_grid(600, 30)), x, rtol=0, atol=1e-5)


def test_diffusers_default_clipping_is_not_ours(latents):
    prior = tiny_prior().double()
    clipping = DDIMScheduler(**SD)
    clipping.set_timesteps(50)
    clipped = clipping.step(prior.unet(latents, 600).sample, 600, latents).prev_sample
    assert (sample(prior, latents, [580, 600]) - clipped).abs().max() > 0.1


@pytest.mark.parametrize("reading", ["next", "current"])
def test_v_prediction_is_epsilon_where_the_network_is_the_same_function(latents, reading):
    epsilon, v = tiny_prior("epsilon").double(), tiny_prior("v_prediction").double()
    as_epsilon = v.unet.forward

    def as_v(x, timestep, **kwargs):
        a = v.alphas_cumprod[timestep]
        output = as_epsilon(x, timestep, **kwargs)
        output.sample = (output.sample - (1 - a).sqrt() * x) / a.sqrt()
        return output

    v.unet.forward = as_v
    ours = invert(v, latents, inversion_grid(600, 5), reading)
    expected = invert(epsilon, latents, inversion_grid(600, 5), reading)
    torch.testing.assert_close(ours.mean, expected.mean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours.noise, expected.noise, rtol=1e-9, atol=1e-9)


def test_v_prediction_inverts_into_zero_terminal_snr_but_does_not_sample_from_it(latents):
    prior = tiny_prior("v_prediction", rescale_betas_zero_snr=True)
    result = invert(prior, latents.float(), [600, 800, 999])
    assert result.latents.isfinite().all()
    assert not result.mean.any()
    with pytest.raises(SidestepError, match="no signal left"):
        sample(prior, result.latents, [600, 800, 999])


def test_latents_stay_float32_while_the_network_is_bfloat16(latents):
    prior = tiny_prior().to(torch.bfloat16)
    result = invert(prior, latents.float(), [0, 300, 600])
    assert (result.mean.dtype, result.noise.dtype) == (torch.float32, torch.float32)
    assert sample(prior, result.latents, [0, 300, 600]).dtype == torch.float32


@pytest.mark.parametrize("run", [invert, sample])
def test_progress_counts_every_step(gaussian, latents, run):
    seen = []
    run(
        gaussian,
        latents,
        inversion_grid(600, 3),
        **{{invert: "progress", sample: "callback"}[run]: lambda *n: seen.append(n)},
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]
