"""Fusion's equations, its readings, and the choice that never sees a target."""

import math

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler

from sidestep.errors import SidestepError
from sidestep.fusion import FusionSettings, choose, direct_addition, fuse, noise_scale, score, variance_fusion
from sidestep.inversion import InversionSettings, Inverted

ALPHAS = (1 - DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012).betas.double()).cumprod(
    0
)


class Prior:
    """A noise estimate that is a known function of what it is asked."""

    alphas_cumprod = ALPHAS
    num_train_timesteps = 1000

    def predict_noise(self, x, timestep):
        return torch.sin(x) + timestep / 1000


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


MEAN = noise(3, 4, 8, 8)
REFERENCE = Inverted(noise(1, 4, 8, 8, seed=1), noise(1, 4, 8, 8, seed=2))
LATE = Inverted(noise(1, 4, 8, 8, seed=3), noise(1, 4, 8, 8, seed=4))


@pytest.mark.parametrize(("reading", "value"), [("algebra", 0.916), ("paper", 1.077), ("scripts", 0.958)])
def test_the_three_scales_for_stable_diffusion(reading, value):
    assert noise_scale(ALPHAS, 600, reading) == pytest.approx(value, abs=6e-4)


def test_algebra_follows_t_star_and_scripts_follow_the_schedules_length():
    assert noise_scale(ALPHAS, 400) == pytest.approx(math.sqrt(1 - float(ALPHAS[400])))
    assert noise_scale(ALPHAS[:500], 400, "scripts") == pytest.approx(math.sqrt(1 - float(ALPHAS[350])))


def test_variance_fusion():
    eps = torch.sin(MEAN + REFERENCE.noise) + 0.6
    fused = variance_fusion(Prior(), MEAN, REFERENCE.noise, 600)
    torch.testing.assert_close(fused, MEAN + math.sqrt(1 - float(ALPHAS[600])) * eps)
    torch.testing.assert_close(variance_fusion(Prior(), MEAN, REFERENCE.noise, 600, 0.5), MEAN + 0.5 * eps)


def test_direct_addition():
    torch.testing.assert_close(direct_addition(MEAN, LATE.latents, 0.9), MEAN + 0.9 * (LATE.mean + LATE.noise))


def test_defaults_of_both_methods():
    c = math.sqrt(1 - float(ALPHAS[600]))
    a = fuse(Prior(), "variance", MEAN, REFERENCE, None, 600)
    torch.testing.assert_close(a, variance_fusion(Prior(), MEAN, REFERENCE.noise, 600, c))
    b = fuse(Prior(), "addition", MEAN, REFERENCE, LATE, 600)
    torch.testing.assert_close(b, MEAN + c * LATE.latents)


def test_readings_of_the_scripts_and_of_the_paper():
    late_noise = fuse(Prior(), "variance", MEAN, REFERENCE, LATE, 600, FusionSettings(noise="late"))
    torch.testing.assert_close(
        late_noise, variance_fusion(Prior(), MEAN, math.sqrt(1 - float(ALPHAS[800])) * LATE.noise, 600)
    )
    at_t_star = fuse(Prior(), "addition", MEAN, REFERENCE, None, 600, FusionSettings(latent="t_star", c="paper"))
    torch.testing.assert_close(at_t_star, MEAN + math.sqrt(1 + float(ALPHAS[600])) * REFERENCE.latents)


def test_gaussian_noise_is_what_the_caller_drew():
    drawn = noise(1, 4, 8, 8, seed=5)
    settings = FusionSettings(noise="gaussian")
    fused = fuse(Prior(), "variance", MEAN, REFERENCE, None, 600, settings, drawn)
    torch.testing.assert_close(fused, variance_fusion(Prior(), MEAN, noise_scale(ALPHAS, 600) * drawn, 600))
    with pytest.raises(SidestepError, match="needs the noise"):
        fuse(Prior(), "variance", MEAN, REFERENCE, None, 600, settings)


def test_every_reading_changes_the_start():
    starts = [
        fuse(Prior(), "variance", MEAN, REFERENCE, LATE, 600, FusionSettings(c=c, noise=n))
        for c in ("algebra", "paper", "scripts")
        for n in ("reference", "late")
    ] + [
        fuse(Prior(), "addition", MEAN, REFERENCE, LATE, 600, FusionSettings(c=c, latent=z))
        for c in ("algebra", "paper", "scripts")
        for z in ("late", "t_star")
    ]
    assert len(starts) == 12
    for i, first in enumerate(starts):
        for second in starts[:i]:
            assert (first - second).abs().max() > 0.01


def test_targets_are_fused_independently():
    together = fuse(Prior(), "variance", MEAN, REFERENCE, None, 600)
    alone = fuse(Prior(), "variance", MEAN[1:2], REFERENCE, None, 600)
    torch.testing.assert_close(together[1:2], alone)


def test_where_sampling_starts_and_lands():
    paper, scripts = InversionSettings(t_star=600), InversionSettings(t_star=601, start=1)
    assert FusionSettings().sampling_grid(paper, 30) == list(range(0, 601, 20))
    assert FusionSettings(sample_from=621).sampling_grid(scripts, 31) == list(range(1, 622, 20))
    assert FusionSettings(sample_from=581).sampling_grid(scripts, 29) == list(range(1, 582, 20))


@pytest.mark.parametrize(("method", "name"), [("addition", "latent"), ("variance", "noise")])
def test_a_late_reading_without_a_late_inversion_is_refused(method, name):
    settings = FusionSettings(**{name: "late"})
    assert settings.needs_late(method)
    with pytest.raises(SidestepError, match="last step"):
        fuse(Prior(), method, MEAN, REFERENCE, None, 600, settings)


def test_unknown_readings_and_methods_are_refused():
    for name in ("c", "noise", "latent"):
        with pytest.raises(SidestepError, match=f"fusion {name}"):
            FusionSettings(**{name: "both"})
    with pytest.raises(SidestepError, match="unknown"):
        fuse(Prior(), "average", MEAN, REFERENCE, LATE, 600)


def picture(seed, detail=0.15):
    """A smooth layout with fine texture upon it, (1, 3, 64, 64)."""
    layout = F.interpolate(noise(1, 3, 4, 4, seed=seed) * 0.3, size=64, mode="bicubic")
    return (layout + detail * noise(1, 3, 64, 64, seed=seed + 100)).clamp(-1, 1)


def blurred(images):
    return F.avg_pool2d(images, 5, stride=1, padding=2, count_include_pad=False)


@pytest.fixture
def scene():
    """(reference, target, what a translation network would give for the target)."""
    return picture(1), picture(2), blurred(picture(2))


def test_choice_takes_the_sharp_view_over_the_blurred_and_over_the_wrong_one(scene):
    reference, target, coarse = scene
    candidates = {"blurred": blurred(target), "copied": reference, "sharp": target}
    assert choose(candidates, coarse, reference) == ["sharp"]
    assert choose({"copied": reference, "blurred": blurred(target)}, coarse, reference) == ["blurred"]


def test_choice_takes_clean_over_noisy(scene):
    reference, target, coarse = scene
    noisy = (target + 0.5 * noise(*target.shape, seed=9)).clamp(-1, 1)
    assert choose({"noisy": noisy, "clean": target}, coarse, reference) == ["clean"]


def test_each_target_gets_its_own_choice(scene):
    reference, target, coarse = scene
    candidates = {"variance": torch.cat([target, reference]), "addition": torch.cat([blurred(target), target])}
    coarse = coarse.expand(2, -1, -1, -1)
    assert choose(candidates, coarse, reference) == ["variance", "addition"]
    assert choose({"x": candidates["addition"], "y": candidates["addition"]}, coarse, reference) == ["x", "x"]


def test_score_is_zero_only_for_perfect_agreement_and_ignores_contrast(scene):
    reference, target, coarse = scene
    assert score(reference, reference, reference).item() == 0
    plain = score(target, coarse, reference)
    assert plain > 0
    torch.testing.assert_close(score(target / 2, coarse / 2, reference / 2), plain)
    heavier = score(blurred(target), coarse, reference, sharpness_weight=1.0)
    assert heavier > score(blurred(target), coarse, reference)


def test_flat_pictures_have_finite_scores():
    flat = torch.zeros(1, 3, 64, 64)
    assert score(flat, flat, flat).item() == 0
    assert score(picture(1), flat, flat).isfinite().all()


def test_choosing_from_nothing_is_refused(scene):
    with pytest.raises(SidestepError, match="no candidate"):
        choose({}, scene[2], scene[0])
