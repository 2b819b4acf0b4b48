import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, DDPMScheduler, UNet2DConditionModel, UNet2DModel
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from sidestep import Camera, NovelViewPipeline, TUNet, step_aside
from sidestep.caching import cached_features
from sidestep.errors import SidestepError
from sidestep.inversion import inversion_grid, invert, sample
from sidestep.prior import LatentPrior

GRID = inversion_grid(400, 8)


def make_unet(kind):
    torch.manual_seed(0)
    sizes = {"sample_size": 16, "in_channels": 4, "out_channels": 4, "layers_per_block": 1, "norm_num_groups": 8}
    sizes["block_out_channels"] = (16, 32, 32)
    if kind == "plain":
        down, up = ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D")
        unet = UNet2DModel(**sizes, down_block_types=down, up_block_types=up, attention_head_dim=8)
    else:
        down = ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D")
        up = ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D")
        options = {"cross_attention_dim": 8, "attention_head_dim": 2}
        unet = UNet2DConditionModel(**sizes, down_block_types=down, up_block_types=up, **options)
    return unet.eval().requires_grad_(False)


def run(unet, x, timestep):
    if isinstance(unet, UNet2DConditionModel):
        return unet(x, timestep, encoder_hidden_states=torch.ones(len(x), 3, 8)).sample
    return unet(x, timestep).sample


def make_prior(unet):
    stages = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    blocks = {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
    schedule = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    return LatentPrior(AutoencoderTiny(**stages, **blocks, latent_channels=4), unet, schedule)


@pytest.fixture(params=["plain", "conditioned"])
def unet(request):
    return make_unet(request.param)


def test_an_interval_of_one_changes_no_bit(unet):
    x = torch.randn(2, 4, 16, 16)
    without = [run(unet, x, t) for t in (100, 200)]
    with cached_features(unet, 1):
        assert all(torch.equal(run(unet, x, t), expected) for t, expected in zip((100, 200), without, strict=True))


def test_every_other_pass_is_whole_and_the_next_differs_a_little(unet):
    x = torch.randn(2, 4, 16, 16)
    whole = [run(unet, x, t) for t in (100, 150, 200, 250)]
    with cached_features(unet, 2):
        cached = [run(unet, x, t) for t in (100, 150, 200, 250)]
    for step in (0, 2):
        assert torch.equal(cached[step], whole[step])
    for step in (1, 3):
        error = (cached[step] - whole[step]).square().mean().sqrt()
        assert 0 < error < 0.2 * whole[step].std()


@pytest.mark.parametrize("levels", [1, 2])
def test_a_pass_between_costs_less_the_fewer_levels_run(unet, levels):
    x = torch.randn(1, 4, 16, 16)
    counted = []
    with cached_features(unet, 3, levels):
        for timestep in (100, 200, 300, 400):
            with FlopCounterMode(display=False) as counter:
                run(unet, x, timestep)
            counted.append(counter.get_total_flops())
    first, second, third, fourth = counted
    assert first == fourth
    assert second == third < (0.75 if levels == 1 else 0.95) * first


def test_nothing_of_it_stays_behind(unet):
    x = torch.randn(2, 4, 16, 16)
    before = run(unet, x, 300)
    keys = list(unet.state_dict())

    def fail():
        with cached_features(unet, 2):
            run(unet, x, 100)
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        fail()
    assert torch.equal(run(unet, x, 200), run(unet, x, 200))
    assert torch.equal(run(unet, x, 300), before)
    assert list(unet.state_dict()) == keys


def test_a_second_call_is_refused_and_the_first_goes_on(unet):
    x = torch.randn(1, 4, 16, 16)
    whole = run(unet, x, 150)
    with cached_features(unet, 2):
        run(unet, x, 100)
        with pytest.raises(SidestepError, match="another call"), cached_features(unet, 2):
            pass
        assert not torch.equal(run(unet, x, 150), whole)  # still from what was cached


def test_a_batch_of_another_size_is_computed_whole(unet):
    one, two = torch.randn(1, 4, 16, 16), torch.randn(2, 4, 16, 16)
    whole = run(unet, two, 200)
    with cached_features(unet, 4):
        run(unet, one, 100)
        assert torch.equal(run(unet, two, 200), whole)


def test_inversion_and_sampling_return_the_latents_nearly_as_well_with_it():
    prior = make_prior(make_unet("plain"))
    x = torch.randn(1, 4, 16, 16)
    errors = []
    for interval in (1, 2):
        with cached_features(prior.unet, interval):
            inverted = invert(prior, x, GRID)
        with cached_features(prior.unet, interval):
            back = sample(prior, inverted.latents, GRID)
        errors.append(float((back - x).square().mean().sqrt()))
    assert errors[0] < errors[1] < 0.1


def test_what_cannot_be_cached_is_refused():
    unet = make_unet("plain")
    for interval in (0, -1):
        with pytest.raises(SidestepError, match="must be 1"), cached_features(unet, interval):
            pass
    with pytest.raises(SidestepError, match="it needs 1 to 2"), cached_features(unet, 2, levels=3):
        pass
    with pytest.raises(SidestepError, match="not Linear"), cached_features(torch.nn.Linear(1, 1), 2):
        pass
    with pytest.raises(SidestepError, match="not compiled"), cached_features(torch.compile(unet), 2):
        pass
    unet.compile()
    with pytest.raises(SidestepError, match="not compiled"), cached_features(unet, 2):
        pass


def test_a_pipeline_caches_both_ways_and_not_unless_asked():
    torch.manual_seed(0)
    prior = make_prior(make_unet("plain"))
    sizes = {"sample_size": 16, "block_out_channels": (16, 32), "attention_levels": 1, "head_dim": 8, "norm_groups": 4}
    tunet = TUNet(**sizes, cross_attention_dim=24, time_embed_dim=24, inversion_steps=4).eval()
    pipe = NovelViewPipeline(tunet, **prior.parts)
    pipe.set_progress_bar_config(disable=True)
    photo = Image.effect_noise((32, 32), 60)
    targets = [step_aside(Camera.from_fov(45, 32, 32), 10.0)]

    def make(**options):
        with FlopCounterMode(display=False) as counter:
            views = pipe(photo, targets, steps=4, **options)
        return np.asarray(views.images[0], np.float64), counter.get_total_flops()

    plain, whole = make()
    same, again = make(cache_interval=1)
    cached, less = make(cache_interval=2)
    assert again == whole
    assert (same == plain).all()
    assert less < 0.9 * whole
    assert 0 < np.abs(cached - plain).mean() < 10
    inverted = pipe.invert(photo, cache_interval=2)
    half, _ = make(cache_interval=2)
    assert (np.asarray(pipe(inverted, targets, steps=4, cache_interval=2).images[0]) == half).all()
