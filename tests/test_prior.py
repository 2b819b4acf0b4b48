"""The latent prior on miniature diffusers models, each saved to a folder and loaded again."""

import copy
import math
import warnings

import pytest
import torch
from diffusers import (
    AsymmetricAutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    DDPMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file

from miniatures import SD, dc, kl, unet
from sidestep.errors import SidestepError
from sidestep.prior import LatentPrior
from sidestep.prompts import PromptEmbeds


def tiny(**options):
    channels = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    blocks = {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
    return AutoencoderTiny(**channels, **blocks, latent_channels=4, **options)


def text_unet(**options):
    return UNet2DConditionModel(
        **{
            "sample_size": 8,
            "block_out_channels": (32, 32),
            "norm_num_groups": 8,
            "layers_per_block": 1,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "cross_attention_dim": 16,
            "attention_head_dim": 8,
            **options,
        }
    )


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def images():
    return torch.rand(2, 3, 16, 16) * 2 - 1


@pytest.fixture
def latents():
    return torch.randn(2, 4, 8, 8)


@pytest.fixture
def text_parts(make_text_parts):
    """A small CLIP text encoder, and a tokenizer whose vocabulary is single letters."""
    return make_text_parts()


@pytest.fixture
def text_prior(text_parts):
    return LatentPrior(kl(), text_unet(), SD, *text_parts)


def load(path, dtype=torch.float32):
    return LatentPrior.from_pretrained(path, "cpu", dtype)


@pytest.mark.parametrize("vae", [kl, tiny, dc])
def test_every_autoencoder_survives_saving_and_loading(vae, tmp_path, images, latents):
    prior = LatentPrior(vae(), unet(), SD)
    prior.save_pretrained(tmp_path / "prior")
    loaded = load(tmp_path / "prior")
    encoded = loaded.encode(images)
    assert encoded.shape == (2, 4, 8, 8)
    assert encoded.dtype == torch.float32
    torch.testing.assert_close(encoded, prior.encode(images))
    decoded = loaded.decode(encoded)
    assert decoded.shape == images.shape
    torch.testing.assert_close(decoded, prior.decode(encoded))
    torch.testing.assert_close(loaded.predict_noise(latents, 300), prior.predict_noise(latents, 300))
    assert (loaded.latent_channels, loaded.latent_size, loaded.image_size, loaded.scale) == (4, 8, 16, 2)
    assert loaded.fingerprint() == prior.fingerprint()
    assert sorted(p.name for p in (tmp_path / "prior").iterdir()) == ["scheduler", "unet", "vae"]


def test_kl_latents_are_the_mode_shifted_and_scaled(images):
    vae = kl(scaling_factor=0.3, shift_factor=0.2)
    prior = LatentPrior(vae, unet(), SD)
    mode = vae.encode(images).latent_dist.mode()
    encoded = prior.encode(images)
    torch.testing.assert_close(encoded, (mode - 0.2) * 0.3)
    torch.testing.assert_close(prior.encode(images), encoded, rtol=0, atol=0)
    torch.testing.assert_close(prior.decode(encoded), vae.decode(mode).sample.clamp(-1, 1))


def test_tiny_latents_are_taken_as_they_come(images):
    vae = tiny()
    torch.testing.assert_close(LatentPrior(vae, unet(), SD).encode(images), vae.encode(images).latents)


def test_dc_latents_are_scaled(images):
    vae = dc()
    prior = LatentPrior(vae, unet(), SD)
    code = vae.encode(images).latent
    torch.testing.assert_close(prior.encode(images), 0.5 * code)
    torch.testing.assert_close(prior.decode(0.5 * code), vae.decode(code).sample.clamp(-1, 1))


def test_decoded_pictures_are_clipped(latents):
    prior = LatentPrior(kl(), unet(), SD)
    decoded = prior.decode(latents * 1e3)
    assert decoded.abs().max() <= 1
    prior.vae.decoder.conv_out.weight.data.mul_(1e3)
    assert prior.decode(latents).abs().max() == 1


def test_only_betas_and_prediction_type_are_read(latents):
    torch.manual_seed(0)
    plain = LatentPrior(kl(), unet(), DDIMScheduler(**SD))
    torch.manual_seed(0)
    dressed = LatentPrior(
        kl(),
        unet(),
        DDIMScheduler(**SD, clip_sample=True, thresholding=True, steps_offset=1, timestep_spacing="trailing"),
    )
    assert dressed.fingerprint() == plain.fingerprint()
    torch.testing.assert_close(dressed.predict_noise(latents, 10), plain.predict_noise(latents, 10), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("scheduler", "at_600"),
    [
        (PNDMScheduler(**SD), 0.161),
        (EulerDiscreteScheduler(**SD), 0.161),
        (DDPMScheduler(), 0.026),
        (DDIMScheduler(beta_schedule="squaredcos_cap_v2"), 0.339),
        (DDIMScheduler(trained_betas=[0.001] * 700), 0.999**601),
    ],
)
def test_schedules(scheduler, at_600):
    prior = LatentPrior(kl(), unet(), scheduler)
    assert prior.alphas_cumprod.dtype == torch.float64
    assert float(prior.alphas_cumprod[600]) == pytest.approx(at_600, abs=6e-4)
    assert prior.num_train_timesteps == len(prior.alphas_cumprod) == len(scheduler.betas)


def test_zero_terminal_snr_schedule_ends_without_signal():
    prior = LatentPrior(kl(), unet(), {**SD, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"})
    assert prior.alphas_cumprod[-1] == 0
    assert prior.alphas_cumprod[0] == pytest.approx(1 - SD["beta_start"], abs=1e-6)


def test_default_t_star_is_600_for_stable_diffusion():
    assert LatentPrior(kl(), unet(), PNDMScheduler(**SD)).default_t_star() == 600


@pytest.mark.parametrize("config", [{"beta_schedule": "linear"}, {"beta_schedule": "squaredcos_cap_v2"}])
def test_default_t_star_is_equally_noisy_on_other_schedules(config):
    prior = LatentPrior(kl(), unet(), config)
    t = prior.default_t_star()
    assert t != 600
    assert float(prior.alphas_cumprod[t]) == pytest.approx(0.16, abs=0.002)


def test_v_prediction_becomes_noise(latents):
    prior = LatentPrior(kl(), unet(), {**SD, "prediction_type": "v_prediction"})
    a = float(prior.alphas_cumprod[400])
    v = prior.unet(latents, 400).sample
    torch.testing.assert_close(prior.predict_noise(latents, 400), math.sqrt(a) * v + math.sqrt(1 - a) * latents)


def test_network_runs_in_half_precision_and_latents_do_not(tmp_path, images, latents):
    exact = LatentPrior(kl(), unet(), SD)
    exact.save_pretrained(tmp_path)
    half = load(tmp_path, torch.bfloat16)
    assert half.unet.dtype == half.vae.dtype == torch.bfloat16
    eps = half.predict_noise(latents, 300)
    assert eps.dtype == half.encode(images).dtype == half.decode(latents).dtype == torch.float32
    difference = (eps - exact.predict_noise(latents, 300)).abs().max()
    assert 0 < difference < 0.1


@pytest.mark.parametrize("stored", [torch.float16, torch.float32])
def test_a_large_network_stored_in_half_is_held_so_on_a_cpu_and_computes_the_same(
    tmp_path, latents, monkeypatch, stored
):
    monkeypatch.setattr("sidestep.devices.LARGE", 0)
    monkeypatch.setattr("sidestep.prior.network_dtype", lambda device: torch.float32)
    LatentPrior(kl(), unet(), SD).to(stored).save_pretrained(tmp_path)
    held, single = LatentPrior.from_pretrained(tmp_path, "cpu"), load(tmp_path, torch.float32)
    assert single.unet.conv_in.weight.dtype == torch.float32
    for _ in range(2):
        assert held.unet.conv_in.weight.dtype == stored
        assert torch.equal(held.predict_noise(latents, 300), single.predict_noise(latents, 300))
    assert held.fingerprint() == single.fingerprint()


def test_a_compiled_network_is_saved_without_the_path_it_came_from(tmp_path):
    LatentPrior(kl(), unet(), SD).save_pretrained(tmp_path / "first")
    prior = load(tmp_path / "first")
    prior.unet = torch.compile(prior.unet)
    prior.save_pretrained(tmp_path / "second")
    assert load(tmp_path / "second").fingerprint() == prior.fingerprint()
    assert str(tmp_path) not in (tmp_path / "second" / "unet" / "config.json").read_text()


def test_a_prior_is_frozen_even_inside_a_training_module(latents):
    prior = LatentPrior(kl(), unet(dropout=0.5), SD)
    parent = torch.nn.Sequential(prior)
    parent.train()
    assert not any(p.requires_grad for p in parent.parameters())
    assert not prior.unet.training
    eps = prior.predict_noise(latents.requires_grad_(), 300)
    assert not eps.requires_grad
    torch.testing.assert_close(prior.predict_noise(latents, 300), eps, rtol=0, atol=0)


def test_fingerprint_does_not_depend_on_precision(tmp_path):
    prior = LatentPrior(kl(), unet(), SD).half()  # stored in half precision
    prior.save_pretrained(tmp_path)
    prints = {load(tmp_path, dtype).fingerprint() for dtype in (torch.float32, torch.bfloat16, torch.float16)}
    assert prints == {prior.fingerprint()}
    load(tmp_path, torch.bfloat16).save_pretrained(tmp_path / "again")
    assert load(tmp_path / "again").fingerprint() == prior.fingerprint()


def test_fingerprint_changes_with_whatever_changes_latents():
    def fingerprint(vae_options=(), unet_options=(), schedule=(), change=None):
        torch.manual_seed(0)
        prior = LatentPrior(kl(**dict(vae_options)), unet(**dict(unet_options)), {**SD, **dict(schedule)})
        if change is not None:
            change(prior)
        return prior.fingerprint()

    prints = [
        fingerprint(),
        fingerprint(vae_options={"scaling_factor": 0.2}),
        fingerprint(vae_options={"shift_factor": 0.1}),
        fingerprint(unet_options={"norm_num_groups": 4}),
        fingerprint(schedule={"beta_end": 0.013}),
        fingerprint(schedule={"prediction_type": "v_prediction"}),
        fingerprint(change=lambda prior: prior.unet.conv_in.bias.data.add_(0.1)),
        fingerprint(change=lambda prior: prior.vae.encoder.conv_out.bias.data.add_(0.1)),
        fingerprint(change=lambda prior: prior.vae.quant_conv.bias.data.add_(0.1)),
    ]
    assert len(set(prints)) == len(prints)
    assert fingerprint() == prints[0]


@pytest.mark.parametrize("make", [kl, tiny, dc])
def test_fingerprint_allows_another_decoder_but_no_other_encoder(make):
    torch.manual_seed(0)
    prior = LatentPrior(make(), unet(), SD)

    def changed(*names):
        other = copy.deepcopy(prior)
        other._fingerprint = None
        for name in names:
            for weight in getattr(other.vae, name).parameters():
                weight.data.add_(0.1)
        return other

    other = changed("decoder", *(["post_quant_conv"] if make is kl else []))
    pictures = torch.rand(1, 3, 16, 16) * 2 - 1
    latents = prior.encode(pictures)
    torch.testing.assert_close(other.encode(pictures), latents, rtol=0, atol=0)
    assert not torch.allclose(other.decode(latents), prior.decode(latents))
    assert other.fingerprint() == prior.fingerprint()
    assert changed("encoder").fingerprint() != prior.fingerprint()


def test_text_prior_survives_saving_and_loading(text_prior, tmp_path, latents):
    text_prior.save_pretrained(tmp_path / "prior")
    loaded = load(tmp_path / "prior")
    chairs = [prior.encode_prompt(["a chair"]).tokens for prior in (loaded, text_prior)]
    torch.testing.assert_close(*chairs)
    torch.testing.assert_close(loaded.predict_noise(latents, 300), text_prior.predict_noise(latents, 300))


def test_no_prompt_is_the_empty_prompt_encoded_once(text_prior, latents, monkeypatch):
    empty = text_prior.encode_prompt([""])
    calls = []
    forward = text_prior.text_encoder.forward
    monkeypatch.setattr(text_prior.text_encoder, "forward", lambda *a, **k: calls.append(1) or forward(*a, **k))
    first = text_prior.predict_noise(latents, 300)
    torch.testing.assert_close(text_prior.predict_noise(latents, 300, empty), first, rtol=0, atol=0)
    text_prior.predict_noise(latents, 320)
    assert len(calls) == 1


def test_guidance_and_when_it_costs_a_second_pass(text_prior, latents, monkeypatch):
    chair, sofa = text_prior.encode_prompt(["a chair"]), text_prior.encode_prompt(["a sofa"])
    batches = []
    forward = text_prior.unet.forward
    monkeypatch.setattr(text_prior.unet, "forward", lambda x, *a, **k: batches.append(len(x)) or forward(x, *a, **k))
    empty = text_prior.predict_noise(latents, 300)
    assert torch.equal(text_prior.predict_noise(latents, 300, guidance=3.5), empty)
    conditional = text_prior.predict_noise(latents, 300, chair)
    assert batches == [2, 2, 2]
    guided = text_prior.predict_noise(latents, 300, chair, guidance=3.5)
    assert batches[3:] == [4]
    assert not torch.equal(conditional, empty)
    torch.testing.assert_close(guided, empty + 3.5 * (conditional - empty), rtol=1e-4, atol=1e-5)
    away = text_prior.predict_noise(latents, 300, chair, sofa, guidance=3.5)
    other = text_prior.predict_noise(latents, 300, sofa)
    torch.testing.assert_close(away, other + 3.5 * (conditional - other), rtol=1e-4, atol=1e-5)


def test_v_prediction_is_guided_like_epsilon(text_parts, latents):
    prior = LatentPrior(kl(), text_unet(), {**SD, "prediction_type": "v_prediction"}, *text_parts)
    chair = prior.encode_prompt(["a chair"])
    empty, conditional = prior.predict_noise(latents, 300), prior.predict_noise(latents, 300, chair)
    guided = prior.predict_noise(latents, 300, chair, guidance=3.5)
    torch.testing.assert_close(guided, empty + 3.5 * (conditional - empty), rtol=1e-4, atol=1e-5)


def test_each_picture_can_have_its_own_prompt(text_prior, latents):
    both = text_prior.encode_prompt(["a chair", "a sofa"])
    together = text_prior.predict_noise(latents, 300, both)
    torch.testing.assert_close(text_prior.predict_noise(latents[1:], 300, both[1:]), together[1:], rtol=1e-4, atol=1e-5)


def test_guidance_of_one_or_less_is_the_prompt_alone(text_prior, latents):
    chair, sofa = text_prior.encode_prompt(["a chair"]), text_prior.encode_prompt(["a sofa"])
    conditional = text_prior.predict_noise(latents, 300, chair)
    for guidance in (0.0, 0.5, 1.0):
        assert torch.equal(text_prior.predict_noise(latents, 300, chair, sofa, guidance=guidance), conditional)


def test_a_long_prompt_is_cut_to_the_encoders_length(text_prior):
    with pytest.warns(UserWarning, match="13 tokens, 10 are read; not read: 'ab r s'"):
        cut = text_prior.encode_prompt(["q q q q q q q q q q ab r s"])
    assert cut.tokens.shape == (1, 12, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole = text_prior.encode_prompt(["q q q q q q q q q q"])
    assert torch.equal(cut.tokens, whole.tokens)


def test_a_text_encoder_with_weights_missing_is_refused(text_prior, tmp_path):
    text_prior.save_pretrained(tmp_path)
    path = tmp_path / "text_encoder" / "model.safetensors"
    weights = load_file(path)
    del weights[next(key for key in weights if "q_proj.weight" in key)]
    save_file(weights, path, metadata={"format": "pt"})
    path.with_name("SHA256SUMS").unlink()  # as of a folder from elsewhere
    with pytest.raises(SidestepError, match=r"text_encoder.*1 of the text encoder's weights are missing"):
        load(tmp_path)


def test_a_tokenizer_without_its_vocabulary_is_refused(text_prior, tmp_path):
    text_prior.save_pretrained(tmp_path)
    for path in (tmp_path / "tokenizer").iterdir():
        if path.name != "tokenizer_config.json":
            path.unlink()
    with pytest.raises(SidestepError, match="tokenizer"):
        load(tmp_path)


def test_a_prior_without_text_refuses_prompts(latents):
    prior = LatentPrior(kl(), unet(), SD)
    with pytest.raises(SidestepError, match=r"no text encoder.*Stable Diffusion 1\.4, 1\.5, 2\.1"):
        prior.encode_prompt(["a chair"])
    for guidance in (1.0, 3.5):
        with pytest.raises(SidestepError, match="no prompt"):
            prior.predict_noise(latents, 300, PromptEmbeds(torch.zeros(1, 12, 16)), guidance=guidance)


def test_cross_attention_without_a_text_encoder_is_refused():
    with pytest.raises(SidestepError, match="text_encoder"):
        LatentPrior(kl(), text_unet(), SD)


def test_a_conditional_unet_without_cross_attention_needs_no_text(latents):
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    prior = LatentPrior(kl(), text_unet(**blocks, mid_block_type="UNetMidBlock2D"), SD)
    assert prior.predict_noise(latents, 300).shape == latents.shape


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (lambda: (AsymmetricAutoencoderKL(), unet(), SD), "AsymmetricAutoencoderKL"),
        (lambda: (kl(), kl(), SD), "AutoencoderKL"),
        (lambda: (kl(latent_channels=8), unet(), SD), "8 channels"),
        (lambda: (kl(), unet(out_channels=8), SD), "gives 8"),
        (lambda: (kl(), unet(sample_size=None), SD), "sample_size"),
        (lambda: (kl(), unet(sample_size=(8, 16)), SD), "sample_size"),
        (lambda: (kl(), text_unet(sample_size=9), SD), "sample_size"),
        (lambda: (kl(), unet(num_class_embeds=3), SD), "num_class_embeds"),
        (lambda: (kl(), text_unet(time_cond_proj_dim=8), SD), "time_cond_proj_dim"),
        (lambda: (kl(), unet(), DDIMScheduler(prediction_type="sample")), "sample"),
        (lambda: (kl(), unet(), FlowMatchEulerDiscreteScheduler()), "no betas"),
        (lambda: (kl(), unet(), {"beta_schedule": "zigzag"}), "zigzag"),
    ],
)
def test_parts_that_cannot_work_are_refused(parts, message):
    with pytest.raises(SidestepError, match=message):
        LatentPrior(*parts())


def test_wrong_shapes_and_timesteps_are_refused(images, latents):
    prior = LatentPrior(kl(), unet(), SD)
    with pytest.raises(SidestepError, match="pictures of shape"):
        prior.encode(images[..., :8])
    for wrong in (latents[:, :3], latents[..., :4], latents[0]):
        with pytest.raises(SidestepError, match="latents of shape"):
            prior.predict_noise(wrong, 300)
        with pytest.raises(SidestepError, match="latents of shape"):
            prior.decode(wrong)
    for timestep in (-1, 1000):
        with pytest.raises(SidestepError, match="timestep"):
            prior.predict_noise(latents, timestep)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(SidestepError, match="nothing_here"):
        load(tmp_path / "nothing_here")
    with pytest.raises(SidestepError, match="no such folder"):
        load("nothing_here")


@pytest.mark.parametrize("part", ["vae", "unet", "scheduler"])
def test_a_missing_part_is_named(tmp_path, part):
    LatentPrior(kl(), unet(), SD).save_pretrained(tmp_path)
    (tmp_path / part).rename(tmp_path / "elsewhere")
    with pytest.raises(SidestepError, match=f"{tmp_path.name}/{part}"):
        load(tmp_path)


def test_a_missing_tokenizer_is_named(text_prior, tmp_path):
    text_prior.save_pretrained(tmp_path / "prior")
    (tmp_path / "prior" / "tokenizer").rename(tmp_path / "elsewhere")
    with pytest.raises(SidestepError, match="tokenizer"):
        load(tmp_path / "prior")


def test_a_broken_tokenizer_is_refused(text_prior, tmp_path):
    text_prior.save_pretrained(tmp_path / "prior")
    for file in (tmp_path / "prior" / "tokenizer").glob("*.json"):
        file.write_text("{}")
    with pytest.raises(SidestepError, match="tokenizer"):
        load(tmp_path / "prior")


def test_pickled_weights_are_refused(tmp_path):
    LatentPrior(kl(), unet(), SD).save_pretrained(tmp_path)
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(unet().state_dict(), tmp_path / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(SidestepError, match="unet"):
        load(tmp_path)


def test_truncated_weights_are_refused(tmp_path):
    LatentPrior(kl(), unet(), SD).save_pretrained(tmp_path)
    weights = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    weights.with_name("SHA256SUMS").unlink()
    with pytest.raises(SidestepError, match="unet"):
        load(tmp_path)


def test_saving_leaves_the_rest_of_the_folder_alone(tmp_path):
    (tmp_path / "tunet").mkdir()
    prior = LatentPrior(kl(), unet(), SD)
    prior.save_pretrained(tmp_path)
    prior.save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["scheduler", "tunet", "unet", "vae"]


def test_a_prior_saved_again_does_not_say_where_it_was_loaded_from(tmp_path):
    LatentPrior(kl(), unet(), SD).save_pretrained(tmp_path / "first")
    LatentPrior.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    for config in (tmp_path / "second").rglob("*.json"):
        assert str(tmp_path) not in config.read_text()
