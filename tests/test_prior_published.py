"""Priors as they are published, in miniature: folders of Stable Diffusion 1, 2 and XL and of the first LDMs."""

import copy
import json

import pytest
import torch
from diffusers import DDIMScheduler, LDMPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file

import published
from published import load, noise_like
from sidestep.errors import SidestepError
from sidestep.inversion import inversion_grid, invert, sample
from sidestep.prior import LatentPrior
from sidestep.prompts import PromptEmbeds


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("published")
    kinds = (*published.KINDS, "ldm")
    return {kind: published.write_folder(root / kind, kind, fp16=kind != "ldm") for kind in kinds}


@pytest.fixture(scope="module")
def priors(folders):
    """Each kind, loaded in float32, to look at only."""
    return {kind: load(folder) for kind, folder in folders.items()}


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def edit(path, **changes):
    config = json.loads(path.read_text())
    config |= changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


@pytest.mark.parametrize(
    ("kind", "size", "predicted", "factor"),
    [
        ("sd15", 16, "epsilon", 0.18215),
        ("sd21-base", 16, "epsilon", 0.18215),
        ("sd21", 24, "v_prediction", 0.18215),
        ("sdxl", 32, "epsilon", 0.13025),
        ("ldm", 16, "epsilon", 1.0),
    ],
)
def test_a_published_folder_inverts_and_samples_back(priors, kind, size, predicted, factor):
    prior = copy.deepcopy(priors[kind])
    assert (prior.image_size, prior.prediction_type) == (size, predicted)
    assert prior.vae.config.scaling_factor == factor
    if kind != "ldm":
        assert prior.default_t_star() == 600
    picture = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1
    latents = prior.encode(picture)
    for part in (prior.unet.conv_out.weight, prior.unet.conv_out.bias):
        part.data.mul_(0.05)  # untrained, it would answer any latent with noise of its own
    grid = inversion_grid(300, 6)
    back = sample(prior, invert(prior, latents, grid).latents, grid)
    assert (back - latents).abs().max() < 0.2 * latents.abs().max()
    assert prior.decode(back).shape == picture.shape


@pytest.mark.parametrize("kind", ["sd15", "sd21-base", "sd21"])
def test_noise_is_what_diffusers_pipeline_asks_its_network_for(folders, priors, kind):
    prior, theirs = priors[kind], StableDiffusionPipeline.from_pretrained(folders[kind], safety_checker=None)
    latents = noise_like(prior)
    prompts = ["a chair", "ab"]
    conditional, empty = theirs.encode_prompt(prompts, "cpu", 1, True)
    scheduler = DDIMScheduler.from_config(theirs.scheduler.config, clip_sample=False)
    scheduler.set_timesteps(50)
    for asked, embeds in ((None, empty), (prior.encode_prompt(prompts), conditional)):
        with torch.no_grad():
            output = theirs.unet(latents, 601, encoder_hidden_states=embeds).sample
        x0 = scheduler.step(output, 601, latents).pred_original_sample
        a = float(prior.alphas_cumprod[601])
        noise = (latents - a**0.5 * x0) / (1 - a) ** 0.5
        torch.testing.assert_close(prior.predict_noise(latents, 601, asked), noise, rtol=1e-3, atol=1e-3)


def test_sdxl_is_told_what_diffusers_pipeline_tells_it(folders, priors, monkeypatch):
    prior, theirs = copy.deepcopy(priors["sdxl"]), StableDiffusionXLPipeline.from_pretrained(folders["sdxl"])
    told = []
    for network in (theirs.unet, prior.unet):
        forward = network.forward
        monkeypatch.setattr(network, "forward", lambda *a, _f=forward, **k: told.append((a, k)) or _f(*a, **k))
    theirs.set_progress_bar_config(disable=True)
    theirs("a chair", num_inference_steps=1, guidance_scale=5.0, output_type="latent")
    (latents, _), wanted = told[0]
    prior.predict_noise(latents[:1], 999, prior.encode_prompt(["a chair"]), guidance=5.0)
    prior.predict_noise(latents[:1], 999)
    both, alone = told[1][1], told[2][1]
    torch.testing.assert_close(both["encoder_hidden_states"], wanted["encoder_hidden_states"])
    assert both["encoder_hidden_states"][1].any()
    for name in ("text_embeds", "time_ids"):
        torch.testing.assert_close(both["added_cond_kwargs"][name], wanted["added_cond_kwargs"][name])
        assert torch.equal(alone["added_cond_kwargs"][name], both["added_cond_kwargs"][name][:1])
    assert both["added_cond_kwargs"]["time_ids"][0].tolist() == [32, 32, 0, 0, 32, 32]
    assert not alone["encoder_hidden_states"].any()
    assert not alone["added_cond_kwargs"]["text_embeds"].any()


def test_the_pooled_prompt_and_the_size_reach_the_noise(priors):
    prior = copy.deepcopy(priors["sdxl"])
    latents = noise_like(prior, 1)
    embeds = prior.encode_prompt(["a chair"])
    noise = prior.predict_noise(latents, 300, embeds)
    assert not torch.equal(prior.predict_noise(latents, 300, PromptEmbeds(embeds.tokens, -embeds.pooled)), noise)
    assert not torch.equal(prior.predict_noise(latents, 300), noise)
    prior._sizes *= 2
    assert not torch.equal(prior.predict_noise(latents, 300, embeds), noise)


def test_an_xl_model_without_zeros_is_given_the_encoded_empty_prompt(priors, tmp_path):
    published.write_folder(tmp_path / "xl", "sdxl")
    edit(tmp_path / "xl" / "model_index.json", force_zeros_for_empty_prompt=False)
    prior, zeros = load(tmp_path / "xl"), priors["sdxl"]
    assert prior.encode_prompt([""]).pooled.any()
    assert not zeros.encode_prompt(["a", ""]).pooled[1].any()
    assert zeros.encode_prompt(["a", ""]).pooled[0].any()
    prior.save_pretrained(tmp_path / "saved")
    torch.testing.assert_close(load(tmp_path / "saved").encode_prompt([""]).tokens, prior.encode_prompt([""]).tokens)


def test_the_refiner_of_sdxl_is_refused(tmp_path):
    published.write_folder(tmp_path / "xl", "sdxl")
    edit(tmp_path / "xl" / "model_index.json", requires_aesthetics_score=True)
    with pytest.raises(SidestepError, match="refiner"):
        load(tmp_path / "xl")


def test_text_encoders_of_another_model_are_refused(priors):
    prior, other = priors["sd15"], priors["sd21"]
    with pytest.raises(SidestepError, match="24 wide but the U-Net takes 16"):
        LatentPrior(prior.vae, prior.unet, prior.scheduler, other.text_encoder, other.tokenizer)
    with pytest.raises(SidestepError, match="empty prompt's embeddings are 48 wide"):
        LatentPrior(prior.vae, prior.unet, prior.scheduler, empty_prompt=priors["sdxl"].empty_prompt)
    whole = copy.deepcopy(priors["sdxl"])
    whole.text_encoder_2.text_projection = None
    with pytest.raises(SidestepError, match="second text encoder's pooled embeddings are 0 wide"):
        LatentPrior(**whole.parts)


@pytest.mark.parametrize("kind", ["sd15", "sd21"])
def test_of_a_published_scheduler_only_betas_and_prediction_type_matter(kind, priors, tmp_path):
    published.write_folder(tmp_path / kind, kind)
    path = tmp_path / kind / "scheduler" / "scheduler_config.json"
    left = {"beta_start", "beta_end", "beta_schedule", "num_train_timesteps", "prediction_type"}
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k in left}))
    plain, whole = load(tmp_path / kind), priors[kind]
    assert plain.fingerprint() == whole.fingerprint()
    latents = noise_like(whole)
    assert torch.equal(plain.predict_noise(latents, 600), whole.predict_noise(latents, 600))
    edit(path, beta_end=0.013)
    assert load(tmp_path / kind).fingerprint() != whole.fingerprint()


def test_what_the_network_predicts_can_be_said(folders, priors):
    said = load(folders["sd15"], prediction_type="v_prediction")
    assert (said.prediction_type, priors["sd15"].prediction_type) == ("v_prediction", "epsilon")
    assert said.fingerprint() != priors["sd15"].fingerprint()
    with pytest.raises(SidestepError, match="'sample' is not supported"):
        load(folders["sd15"], prediction_type="sample")


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_the_half_precision_variant_is_read_alone(priors, kind, tmp_path):
    published.write_folder(tmp_path / kind, kind, fp16=True)
    for path in (tmp_path / kind).rglob("*.safetensors"):
        if "fp16" not in path.name:
            path.unlink()
    half, whole = load(tmp_path / kind, variant="fp16"), priors[kind]
    latents = noise_like(whole)
    torch.testing.assert_close(
        half.predict_noise(latents, 600), whole.predict_noise(latents, 600), rtol=0.05, atol=0.05
    )
    with pytest.raises(SidestepError, match="unet cannot be loaded"):
        load(tmp_path / kind)


def test_attention_that_is_to_be_upcast_runs_in_half_precision(folders, priors):
    prior = load(folders["sd21"], torch.bfloat16)
    exact = priors["sd21"]
    latents = noise_like(exact)
    noise = prior.predict_noise(latents, 600)
    assert prior.unet.config.upcast_attention
    torch.testing.assert_close(noise, exact.predict_noise(latents, 600), rtol=0.1, atol=0.1)


def test_an_autoencoder_that_overflows_in_half_precision_runs_in_full(priors):
    prior, exact, fixed = (copy.deepcopy(priors["sdxl"]).half() for _ in range(3))
    picture = torch.rand(1, 3, 32, 32)
    assert torch.equal(prior.encode(picture), exact.float().encode(picture))
    assert (prior.vae.dtype, prior.unet.dtype) == (torch.float32, torch.float16)
    fixed.vae.register_to_config(force_upcast=False)
    fixed.decode(noise_like(fixed, 1))
    assert fixed.vae.dtype == torch.float16


def test_a_quantising_autoencoder_does_so_only_where_it_decodes(priors):
    prior = priors["ldm"]
    picture = torch.rand(1, 3, 16, 16) * 2 - 1
    latents = prior.encode(picture)
    torch.testing.assert_close(latents, prior.vae.encode(picture).latents)
    codes = prior.vae.quantize(latents)[0]
    assert not torch.allclose(latents, codes)
    torch.testing.assert_close(prior.decode(latents), prior.decode(codes))
    pipeline = LDMPipeline(prior.vae, prior.unet, DDIMScheduler.from_config(published.SCHEDULERS["ldm"]))
    assert pipeline.vqvae.config.scaling_factor == 1.0  # its pipeline divides by it


def test_a_scaled_quantising_autoencoder_stays_scaled(priors, tmp_path):
    published.write_folder(tmp_path / "ldm", "ldm")
    edit(tmp_path / "ldm" / "vqvae" / "config.json", scaling_factor=0.5)
    picture = torch.rand(1, 3, 16, 16) * 2 - 1
    torch.testing.assert_close(load(tmp_path / "ldm").encode(picture), 0.5 * priors["ldm"].encode(picture))


@pytest.mark.parametrize("kind", ["sd21", "sdxl", "ldm"])
def test_a_published_prior_saved_again_is_the_same(priors, kind, tmp_path):
    prior = priors[kind]
    prior.save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved")
    latents = noise_like(prior)
    assert torch.equal(again.predict_noise(latents, 600), prior.predict_noise(latents, 600))
    assert torch.equal(again.decode(latents), prior.decode(latents))
    assert again.fingerprint() == prior.fingerprint()
    assert "published" not in "".join(path.read_text() for path in (tmp_path / "saved").rglob("*config.json"))


@pytest.mark.parametrize("kind", ["sdxl", "ldm"])
def test_a_repository_of_the_hub_is_read_from_its_cache(priors, kind, tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--owner--name"
    published.write_folder(repository / "snapshots" / commit, kind)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    cached = load("owner/name", cache_dir=tmp_path, local_files_only=True)
    assert cached.fingerprint() == priors[kind].fingerprint()
    latents = noise_like(cached)
    assert torch.equal(cached.predict_noise(latents, 600), priors[kind].predict_noise(latents, 600))


@pytest.mark.parametrize("kind", ["sd15", "sd21", "sdxl"])
def test_a_prior_without_its_text_encoder_inverts_the_same_and_takes_no_prompt(priors, kind, tmp_path):
    prior = priors[kind]
    prior.save_pretrained(tmp_path / "saved", text=False)
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {"vae", "unet", "scheduler", "empty_prompt"}
    mute = load(tmp_path / "saved")
    assert (mute.needs_prompt, mute.reads_text) == (True, False)
    assert mute.fingerprint() == prior.fingerprint()
    latents = noise_like(prior)
    torch.testing.assert_close(mute.predict_noise(latents, 600), prior.predict_noise(latents, 600))
    with pytest.raises(SidestepError, match="without its text encoder, so it takes no prompt"):
        mute.encode_prompt(["a chair"])
    mute.save_pretrained(tmp_path / "again")
    torch.testing.assert_close(load(tmp_path / "again").predict_noise(latents, 600), prior.predict_noise(latents, 600))


def test_it_is_not_saved_where_parts_of_another_would_be_read_with_it(priors, tmp_path):
    priors["sd15"].save_pretrained(tmp_path)
    with pytest.raises(SidestepError, match=r"holds text_encoder, tokenizer of another prior.*name another folder"):
        priors["sd15"].save_pretrained(tmp_path, text=False)
    assert load(tmp_path).encode_prompt(["a chair"]).tokens.any()


def test_a_text_prior_without_its_encoder_says_the_way_out(folders, tmp_path):
    published.write_folder(tmp_path / "sd15", "sd15")
    (tmp_path / "sd15" / "text_encoder").rename(tmp_path / "elsewhere")
    with pytest.raises(SidestepError, match=r"empty prompt.*sidestep prior PRIOR FOLDER --no-text"):
        load(tmp_path / "sd15")


def test_a_text_encoder_that_is_no_model_is_refused(folders, tmp_path):
    published.write_folder(tmp_path / "sd15", "sd15")
    edit(tmp_path / "sd15" / "text_encoder" / "config.json", architectures=["pipeline"])
    with pytest.raises(SidestepError, match="no model of transformers"):
        load(tmp_path / "sd15")


def test_pickles_beside_safetensors_are_never_read(folders, tmp_path):
    published.write_folder(tmp_path / "sd15", "sd15")
    weights = tmp_path / "sd15" / "text_encoder" / "model.safetensors"
    torch.save(load_file(weights), weights.with_name("pytorch_model.bin"))
    load(tmp_path / "sd15")
    weights.unlink()
    with pytest.raises(SidestepError, match="text_encoder"):
        load(tmp_path / "sd15")
