"""Refined, reversible and second-order solvers against a Gaussian's exact ODE, diffusers, and their own way back."""

import inspect
import math

import pytest
import torch
from diffusers import DPMSolverMultistepInverseScheduler, DPMSolverMultistepScheduler

from miniatures import SD
from priors import GaussianPrior, tiny_prior
from sidestep.errors import SidestepError
from sidestep.inversion import Inverted, ddim_step, inversion_grid, invert, sample
from sidestep.solvers import (
    invert_bidirectional,
    invert_multistep,
    invert_refined,
    sample_bidirectional,
    sample_multistep,
    sigma_grid,
)

GRID = inversion_grid(600, 6)
MIXINGS = ("last", "average", "anderson")


def bidirectional(*arguments, **options) -> Inverted:
    return invert_bidirectional(*arguments, **options)[0]


INVERSIONS = {"refined": invert_refined, "multistep": invert_multistep, "bidirectional": bidirectional}
SAMPLERS = {"multistep": sample_multistep, "bidirectional": sample_bidirectional}


@pytest.fixture
def gaussian():
    return GaussianPrior()


@pytest.fixture
def latents():
    return torch.randn(2, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def prior(request):
    """Nonlinear, in double precision."""
    return tiny_prior(request.param).double()


@pytest.fixture(params=INVERSIONS)
def inversion(request):
    return INVERSIONS[request.param]


@pytest.fixture(params=SAMPLERS)
def sampler(request):
    return SAMPLERS[request.param]


def largest(difference):
    return float(difference.abs().max())


class TestGrid:
    @pytest.mark.parametrize("rho", [1, 2, 7, math.inf])
    @pytest.mark.parametrize(("t_star", "steps", "start"), [(600, 30, 0), (400, 4, 1), (999, 12, 0), (40, 39, 0)])
    def test_it_leads_from_start_to_t_star_in_as_many_increasing_steps(self, gaussian, t_star, steps, start, rho):
        grid = sigma_grid(gaussian.alphas_cumprod, t_star, steps, start, rho)
        assert (grid[0], grid[-1], len(grid)) == (start, t_star, steps + 1)
        assert grid == sorted(set(grid))

    @pytest.mark.parametrize("rho", [2, math.inf])
    def test_its_steps_are_equal_in_sigma_to_the_power_or_in_its_logarithm(self, gaussian, rho):
        a = gaussian.alphas_cumprod[sigma_grid(gaussian.alphas_cumprod, 900, 8, 100, rho)]
        sigmas = ((1 - a) / a).sqrt()
        steps = (sigmas.log() if rho == math.inf else sigmas.sqrt()).diff()
        assert largest(steps / steps.mean() - 1) < 0.03

    def test_it_is_dense_where_there_is_little_noise_and_more_so_with_a_large_rho(self, gaussian):
        halves = [sigma_grid(gaussian.alphas_cumprod, 600, 10, rho=rho)[5] for rho in (2, 7, math.inf)]
        assert 300 > halves[0] > halves[1] > halves[2] > 0

    @pytest.mark.parametrize(
        ("arguments", "named"),
        [((600, 0), "do not fit"), ((5, 6), "do not fit"), ((1000, 6), "leaves"), ((600, 6, 0, 0.0), "rho")],
    )
    def test_what_cannot_be_is_refused(self, gaussian, arguments, named):
        with pytest.raises(SidestepError, match=named):
            sigma_grid(gaussian.alphas_cumprod, *arguments)

    def test_a_schedule_that_ends_without_signal_or_begins_without_noise_is_refused_where_it_must(self):
        terminal = tiny_prior("v_prediction", rescale_betas_zero_snr=True).alphas_cumprod
        with pytest.raises(SidestepError, match="runs out"):
            sigma_grid(terminal, 999, 6)
        noiseless = torch.cat([torch.ones(1, dtype=torch.float64), terminal])
        assert sigma_grid(noiseless, 600, 3)[0] == 0
        with pytest.raises(SidestepError, match="runs out"):
            sigma_grid(noiseless, 600, 3, rho=math.inf)


class TestRefined:
    @pytest.mark.parametrize("mixing", MIXINGS)
    def test_without_refinements_it_is_ddim(self, prior, latents, mixing):
        ours, theirs = invert_refined(prior, latents, GRID, 0, mixing), invert(prior, latents, GRID)
        assert torch.equal(ours.mean, theirs.mean)
        assert torch.equal(ours.noise, theirs.noise)

    @pytest.mark.parametrize("mixing", MIXINGS)
    def test_each_refinement_asks_once_more_at_the_timestep_that_sampling_will_ask_at(self, gaussian, latents, mixing):
        invert_refined(gaussian, latents, [0, 20, 40], 2, mixing)
        assert gaussian.asked == [20, 20, 20, 40, 40, 40]

    @pytest.mark.parametrize("mixing", ["last", "anderson"])
    def test_the_round_trip_gets_better_with_each_refinement_until_it_is_exact(self, prior, latents, mixing):
        grid = [100, 200, 300]
        errors = [
            largest(sample(prior, invert_refined(prior, latents, grid, count, mixing).latents, grid) - latents)
            for count in (0, 1, 2, 10)
        ]
        assert errors[0] > 2 * errors[1] > 4 * errors[2] > 0
        assert errors[3] < 1e-6 * errors[0]

    def test_an_average_is_the_step_by_the_mean_of_the_refined_estimates(self, prior, latents):
        grid = [300, 600]
        a, b = (float(prior.alphas_cumprod[t]) for t in grid)
        x, refined = latents, []
        for _ in range(3):
            eps = prior.predict_noise(x, 600)
            refined.append(eps)
            x = ddim_step(latents, eps, a, b).latents
        expected = ddim_step(latents, (refined[1] + refined[2]) / 2, a, b)
        ours = invert_refined(prior, latents, grid, 2, "average")
        torch.testing.assert_close(ours.mean, expected.mean, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(ours.noise, expected.noise, rtol=1e-9, atol=1e-9)

    def test_anderson_solves_a_linear_step_with_one_refinement(self, gaussian, latents):
        gaussian.m = 0.0  # each entry of the residual then shrinks by the same factor
        back = sample(gaussian, invert_refined(gaussian, latents, GRID, 1, "anderson").latents, GRID)
        assert largest(back - latents) < 1e-9
        plain = sample(gaussian, invert_refined(gaussian, latents, GRID, 1).latents, GRID)
        assert largest(plain - latents) > 1e-3

    def test_anderson_mixes_each_picture_by_its_own_residual(self, prior, latents):
        latents = torch.cat([latents[:1], 3 * latents[1:]])
        both = invert_refined(prior, latents, GRID, 2, "anderson").latents
        alone = invert_refined(prior, latents[1:], GRID, 2, "anderson").latents
        torch.testing.assert_close(both[1:], alone, rtol=1e-9, atol=1e-9)

    def test_silly_arguments_are_refused(self, gaussian, latents):
        with pytest.raises(SidestepError, match="refinements is -1"):
            invert_refined(gaussian, latents, GRID, -1)
        with pytest.raises(SidestepError, match="'mean' is unknown; use last, average, anderson"):
            invert_refined(gaussian, latents, GRID, 1, "mean")
        assert gaussian.asked == []


class TestMultistep:
    def test_sampling_agrees_with_diffusers(self, prior, latents):
        grid = sigma_grid(prior.alphas_cumprod, 600, 6)
        theirs = DPMSolverMultistepScheduler(
            **SD,
            prediction_type=prior.prediction_type,
            lower_order_final=False,
            final_sigmas_type="sigma_min",
        )
        theirs.set_timesteps(timesteps=grid[:0:-1])
        x = latents
        for t in theirs.timesteps:
            x = theirs.step(prior.unet(x, t).sample, t, x).prev_sample
        torch.testing.assert_close(sample_multistep(prior, latents, grid), x, rtol=0, atol=1e-4)  # float32 coefficients

    def test_inversion_agrees_with_diffusers(self, prior, latents):
        theirs = DPMSolverMultistepInverseScheduler(
            **SD, prediction_type=prior.prediction_type, lower_order_final=False
        )
        theirs.set_timesteps(9)
        x = latents
        for t in theirs.timesteps:
            x = theirs.step(prior.unet(x, t).sample, t, x).prev_sample
        ours = invert_multistep(prior, latents, [*theirs.timesteps.tolist(), 999])
        torch.testing.assert_close(ours.latents, x, rtol=0, atol=1e-4)

    def test_both_ways_are_of_second_order_where_ddim_is_of_first(self, gaussian, latents):
        def errors(steps):
            grid = inversion_grid(900, steps, 50)
            up, down = gaussian.exact(latents, 50, 900), gaussian.exact(latents, 900, 50)
            return [
                largest(invert_multistep(gaussian, latents, grid).latents - up),
                largest(sample_multistep(gaussian, latents, grid) - down),
                largest(sample(gaussian, latents, grid) - down),
            ]

        gains = [coarse / fine for coarse, fine in zip(errors(50), errors(100), strict=True)]
        assert gains[0] > 3.4
        assert gains[1] > 3.4
        assert gains[2] < 2.3

    def test_the_round_trip_is_nearer_than_ddims(self, gaussian, latents):
        grid, equal = sigma_grid(gaussian.alphas_cumprod, 600, 16), inversion_grid(600, 16)
        ours = sample_multistep(gaussian, invert_multistep(gaussian, latents, grid).latents, grid)
        ddim = sample(gaussian, invert(gaussian, latents, equal).latents, equal)
        assert largest(ours - latents) < 0.2 * largest(ddim - latents)

    def test_one_step_is_ddims(self, prior, latents):
        assert torch.equal(sample_multistep(prior, latents, [0, 600]), sample(prior, latents, [0, 600]))
        ours, theirs = invert_multistep(prior, latents, [0, 600]), invert(prior, latents, [0, 600], "current")
        assert torch.equal(ours.latents, theirs.latents)

    def test_the_network_is_asked_once_a_step(self, gaussian, latents):
        invert_multistep(gaussian, latents, [0, 20, 40])
        sample_multistep(gaussian, latents, [0, 20, 40])
        assert gaussian.asked == [0, 20, 40, 20]

    def test_schedules_without_noise_at_the_start_or_signal_at_the_end(self, gaussian, latents):
        gaussian.alphas_cumprod[0], gaussian.alphas_cumprod[999] = 1.0, 0.0
        grid = sigma_grid(gaussian.alphas_cumprod, 800, 40)
        clean = gaussian.m + gaussian.s * latents
        up = invert_multistep(gaussian, clean, grid).latents
        assert largest(up - gaussian.exact(clean, 0, 800)) < 0.1
        assert largest(sample_multistep(gaussian, up, grid) - clean) < 0.1
        assert not invert_multistep(gaussian, clean, [*grid, 999]).mean.any()

    def test_a_schedule_may_stand_still(self, gaussian, latents):
        gaussian.alphas_cumprod[300:303] = gaussian.alphas_cumprod[300]
        grid = [*range(100, 301, 5), 302, *range(305, 401, 5)]
        up = invert_multistep(gaussian, latents, grid).latents
        assert largest(sample_multistep(gaussian, up, grid) - latents) < 0.1


class TestBidirectional:
    @pytest.mark.parametrize("gamma", [1.0, 0.7])
    def test_the_way_back_is_exact(self, prior, latents, gamma):
        inverted, before = invert_bidirectional(prior, latents, GRID, gamma)
        back = sample_bidirectional(prior, inverted.latents, GRID, before, gamma)
        assert largest(back - latents) < 1e-9

    def test_the_way_back_is_exact_up_to_rounding_in_single_precision(self, latents):
        prior, latents = tiny_prior(), latents.float()
        inverted, before = invert_bidirectional(prior, latents, inversion_grid(600, 30))
        assert largest(sample_bidirectional(prior, inverted.latents, inversion_grid(600, 30), before) - latents) < 1e-4

    def test_from_one_of_the_two_latents_it_is_not(self, prior, latents):
        back = sample_bidirectional(prior, bidirectional(prior, latents, GRID).latents, GRID)
        assert largest(back - latents) > 1e-3

    def test_the_network_is_asked_once_a_step_and_once_less_from_both_latents(self, gaussian, latents):
        grid = [0, 20, 40, 60]
        inverted, before = invert_bidirectional(gaussian, latents, grid)
        sample_bidirectional(gaussian, inverted.latents, grid, before)
        sample_bidirectional(gaussian, inverted.latents, grid)
        assert gaussian.asked == [20, 20, 40, 40, 20, 60, 40, 20]

    def test_one_step_is_ddims(self, prior, latents):
        inverted, before = invert_bidirectional(prior, latents, [0, 600])
        assert torch.equal(inverted.latents, invert(prior, latents, [0, 600]).latents)
        assert torch.equal(before, latents)
        assert torch.equal(sample_bidirectional(prior, latents, [0, 600]), sample(prior, latents, [0, 600]))

    def test_it_converges_to_the_exact_ode(self, gaussian, latents):
        def errors(steps):
            grid = inversion_grid(900, steps, 100)
            up = bidirectional(gaussian, latents, grid).latents - gaussian.exact(latents, 100, 900)
            return largest(up), largest(
                sample_bidirectional(gaussian, latents, grid) - gaussian.exact(latents, 900, 100)
            )

        for coarse, fine in zip(errors(50), errors(400), strict=True):
            assert fine < 0.2 * coarse

    @pytest.mark.parametrize("gamma", [0.0, -1.0, 1.5, math.nan])
    def test_a_gamma_out_of_range_is_refused(self, gaussian, latents, gamma):
        for run in (invert_bidirectional, sample_bidirectional):
            with pytest.raises(SidestepError, match="gamma"):
                run(gaussian, latents, GRID, gamma=gamma)

    def test_latents_of_other_pictures_are_refused(self, gaussian, latents):
        with pytest.raises(SidestepError, match="latents before"):
            sample_bidirectional(gaussian, latents, GRID, latents[:1])


def test_the_two_terms_are_those_of_the_exact_latents(gaussian, latents, inversion):
    """Sum and share: noise is sqrt(1 - a) times the noise in the latents, mean the rest."""
    clean = gaussian.m + gaussian.s * latents
    result = inversion(gaussian, clean, inversion_grid(600, 200))
    exact = gaussian.exact(clean, 0, 600)
    noise = math.sqrt(1 - float(gaussian.alphas_cumprod[600])) * gaussian.predict_noise(exact, 600)
    assert largest(result.latents - exact) < 0.05
    assert largest(result.noise - noise) < 0.05
    assert largest(result.mean - (exact - noise)) < 0.05


def test_latents_stay_float32_while_the_network_is_bfloat16(latents, inversion):
    result = inversion(tiny_prior().to(torch.bfloat16), latents.float(), [0, 300, 600])
    assert (result.mean.dtype, result.noise.dtype) == (torch.float32, torch.float32)
    assert result.latents.isfinite().all()


def test_grids_that_do_not_increase_or_leave_the_schedule_are_refused(gaussian, latents, inversion, sampler):
    for run in (inversion, sampler):
        for grid in ([0], [0, 20, 20], [20, 0], [500, 1000]):
            with pytest.raises(SidestepError, match=r"increasing|leave"):
                run(gaussian, latents, grid)
    assert gaussian.asked == []


def test_nothing_is_sampled_from_where_no_signal_is_left(latents, sampler):
    prior = tiny_prior("v_prediction", rescale_betas_zero_snr=True)
    with pytest.raises(SidestepError, match="no signal left"):
        sampler(prior, latents.float(), [600, 800, 999])


def test_prompts_and_guidance_reach_the_network_at_each_step(gaussian, latents, inversion, sampler):
    given, exact = [], gaussian.predict_noise
    gaussian.predict_noise = lambda x, t, *prompts: given.append(prompts) or exact(x, t)
    inversion(gaussian, latents, GRID, prompt_embeds="prompt")
    assert set(given) == {("prompt",)}
    given.clear()
    sampler(gaussian, latents, GRID, prompt_embeds="prompt", negative_embeds="negative", guidance=2.0)
    assert given == [("prompt", "negative", 2.0)] * 6


def test_progress_counts_every_step(gaussian, latents, inversion, sampler):
    for run in (inversion, sampler):
        seen = []
        name = "callback" if "callback" in inspect.signature(run).parameters else "progress"
        run(gaussian, latents, inversion_grid(600, 3), **{name: lambda *n, seen=seen: seen.append(n)})
        assert seen == [(1, 3), (2, 3), (3, 3)]
