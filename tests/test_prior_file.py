"""Priors from single files in CompVis's layout, against the same miniatures' folders."""

import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from safetensors.torch import load_file, save_file

import published
from published import load, noise_like, transformers
from sidestep.errors import SidestepError
from sidestep.prior_file import LAYOUTS, _layout

PAGE = Path(__file__).parents[1] / "docs" / "priors.md"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("published")
    return {kind: published.write_folder(root / kind, kind) for kind in published.KINDS}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("files")
    for kind in published.KINDS:
        save_file(published.compvis_weights(kind), root / f"{kind}.safetensors")
    return {kind: root / f"{kind}.safetensors" for kind in published.KINDS}


@pytest.fixture(scope="module")
def priors(folders):
    """Each kind's folder, loaded, to look at only."""
    return {kind: load(folder) for kind, folder in folders.items()}


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("socket.socket.connect", lambda *a: pytest.fail("a single file asked the network"))


def without_tokenizers(folder, into):
    """Configs alone, which is what a single file needs beside it."""
    for config in folder.rglob("*config.json"):
        if "tokenizer" not in config.parent.name:
            copy = into / config.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(config.read_bytes())
    return into


def changed(file, tmp_path, metadata=None, drop=(), **added):
    weights = {key: value for key, value in load_file(file).items() if not key.startswith(tuple(drop))}
    save_file({**weights, **added}, tmp_path / "changed.safetensors", metadata)
    return tmp_path / "changed.safetensors"


@pytest.mark.parametrize("kind", published.KINDS)
def test_a_file_is_the_same_prior_as_its_folder(kind, files, folders, priors):
    whole, single = priors[kind], load(files[kind], config=folders[kind])
    assert single.fingerprint() == whole.fingerprint()
    assert (single.prediction_type, single.reads_text) == (whole.prediction_type, True)
    latents = noise_like(whole)
    picture = torch.rand(1, 3, whole.image_size, whole.image_size)
    torch.testing.assert_close(single.encode(picture), whole.encode(picture))
    torch.testing.assert_close(single.decode(latents), whole.decode(latents))
    torch.testing.assert_close(single.predict_noise(latents, 600), whole.predict_noise(latents, 600))
    chairs = [prior.predict_noise(latents, 600, prior.encode_prompt(["a chair"])) for prior in (single, whole)]
    torch.testing.assert_close(*chairs)


@pytest.mark.parametrize("kind", ["sd15", "sd21", "sdxl"])
def test_without_a_tokenizer_it_inverts_the_same_and_takes_no_prompt(kind, files, folders, priors, tmp_path):
    whole, single = priors[kind], load(files[kind], config=without_tokenizers(folders[kind], tmp_path))
    latents = noise_like(whole)
    torch.testing.assert_close(single.predict_noise(latents, 600), whole.predict_noise(latents, 600))
    assert single.fingerprint() == whole.fingerprint()
    assert (single.needs_prompt, single.reads_text, single.text_encoder) == (True, False, None)
    with pytest.raises(SidestepError, match="takes no prompt"):
        single.encode_prompt(["a chair"])


def test_a_file_saved_as_a_folder_is_the_same_prior(files, folders, priors, tmp_path):
    load(files["sd21"], config=folders["sd21"]).save_pretrained(tmp_path)
    again = load(tmp_path)
    latents = noise_like(again)
    assert again.fingerprint() == priors["sd21"].fingerprint()
    torch.testing.assert_close(again.predict_noise(latents, 600), priors["sd21"].predict_noise(latents, 600))


def test_of_averaged_and_last_weights_the_averaged_are_taken(files, folders, priors, tmp_path):
    weights = load_file(files["sd15"])
    prefix = "model.diffusion_model."
    for key in [key for key in weights if key.startswith(prefix)]:
        weights["model_ema." + key.removeprefix("model.").replace(".", "")] = weights[key]
        weights[key] = weights[key] + 1
    save_file(weights, tmp_path / "both.safetensors")
    both = load(tmp_path / "both.safetensors", config=folders["sd15"])
    assert both.fingerprint() == priors["sd15"].fingerprint()


def test_what_a_file_predicts_is_said_by_the_user_the_file_or_the_config(files, folders, tmp_path):
    config = folders["sd15"]
    assert load(files["sd15"], config=config).prediction_type == "epsilon"
    spec = {"modelspec.prediction_type": "v"}
    marked = changed(files["sd15"], tmp_path, metadata=spec)
    assert load(marked, config=config).prediction_type == "v_prediction"
    assert load(marked, config=config, prediction_type="epsilon").prediction_type == "epsilon"
    zero = changed(files["sd15"], tmp_path, v_pred=torch.zeros(0), ztsnr=torch.zeros(0))
    prior = load(zero, config=config)
    assert prior.prediction_type == "v_prediction"
    assert prior.alphas_cumprod[-1] == 0
    with pytest.raises(SidestepError, match="'sample' is not supported"):
        load(files["sd15"], config=config, prediction_type="sample")


@functools.cache
def full_size(name):
    """The U-Net and the autoencoder of a known layout, without values."""
    with torch.device("meta"):
        return UNet2DConditionModel.from_config(LAYOUTS[name]["unet"]), AutoencoderKL.from_config(LAYOUTS[name]["vae"])


@pytest.mark.parametrize(
    ("name", "unet", "vae", "texts"),
    [
        ("Stable Diffusion 1", 859_520_964, 83_653_863, [123_060_480]),
        ("Stable Diffusion 2, 512 pixels", 865_910_724, 83_653_863, [340_387_840]),
        ("Stable Diffusion 2, 768 pixels", 865_910_724, 83_653_863, [340_387_840]),
        ("Stable Diffusion XL", 2_567_463_684, 83_653_863, []),
    ],
)
def test_known_layouts_have_the_published_numbers_of_parameters(name, unet, vae, texts):
    layout, networks = LAYOUTS[name], [*full_size(name)]
    with torch.device("meta"):
        if "text_encoder" in layout:
            networks.append(transformers.CLIPTextModel(transformers.CLIPTextConfig(**layout["text_encoder"])))
    counts = [sum(weight.numel() for weight in network.parameters()) for network in networks]
    assert counts == [unet, vae, *texts]


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_weight_of_a_known_layout_has_its_name_in_a_file(name):
    layout, (unet, vae) = LAYOUTS[name], full_size(name)
    weights = {f"model.diffusion_model.{key}": value for key, value in published.compvis_unet(unet).items()}
    weights |= {f"first_stage_model.{key}": value for key, value in published.compvis_vae(vae).items()}
    assert _layout("file", weights, layout["scheduler"]["prediction_type"]) is layout
    found = convert_ldm_unet_checkpoint(weights, unet.config), convert_ldm_vae_checkpoint(weights, vae.config)
    for converted, network in zip(found, (unet, vae), strict=True):
        shapes = {key: value.shape for key, value in network.state_dict().items()}
        assert {key: value.shape for key, value in converted.items()} == shapes


def small_layout(monkeypatch, kind, name):
    """Makes a miniature pass for one of the well-known models, whose weights would be too large."""
    parts = {"unet": published.UNETS, "vae": published.VAES, "scheduler": published.SCHEDULERS}
    layout = {part: kinds[kind] for part, kinds in parts.items()}
    layout["scheduler"] = LAYOUTS[name]["scheduler"]
    layout |= {f"text_encoder{suffix}": config for suffix, config in published.TEXTS[kind].items()}
    monkeypatch.setitem(LAYOUTS, name, layout)


def test_a_well_known_file_needs_nothing_beside_it(files, priors, monkeypatch):
    small_layout(monkeypatch, "sd15", "Stable Diffusion 1")
    single = load(files["sd15"])
    latents = noise_like(single)
    torch.testing.assert_close(single.predict_noise(latents, 600), priors["sd15"].predict_noise(latents, 600))
    assert single.fingerprint() == priors["sd15"].fingerprint()
    assert not single.reads_text


def test_well_known_sdxl_is_told_by_its_second_level_and_needs_no_text_encoders(files, priors, monkeypatch, tmp_path):
    small_layout(monkeypatch, "sdxl", "Stable Diffusion XL")
    assert load(changed(files["sdxl"], tmp_path, drop=["conditioner."])).fingerprint() == priors["sdxl"].fingerprint()


def test_a_configuration_without_zeros_has_the_empty_prompt_encoded(files, tmp_path):
    published.write_folder(tmp_path / "xl", "sdxl")
    index = tmp_path / "xl" / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "force_zeros_for_empty_prompt": False}))
    single, whole = load(files["sdxl"], config=tmp_path / "xl"), load(tmp_path / "xl")
    latents = noise_like(whole)
    assert single.encode_prompt([""]).pooled.any()
    torch.testing.assert_close(single.predict_noise(latents, 600), whole.predict_noise(latents, 600))


def test_what_stable_diffusion_2_predicts_is_never_guessed(files, priors, monkeypatch):
    small_layout(monkeypatch, "sd21-base", "Stable Diffusion 2, 512 pixels")
    small_layout(monkeypatch, "sd21", "Stable Diffusion 2, 768 pixels")
    with pytest.raises(SidestepError, match=r"predicts epsilon.*v, and their files look alike.*--prediction-type"):
        load(files["sd21"])
    assert load(files["sd21"], prediction_type="v_prediction").fingerprint() == priors["sd21"].fingerprint()
    assert load(files["sd21-base"], prediction_type="epsilon").fingerprint() == priors["sd21-base"].fingerprint()


def test_another_model_needs_its_configuration(files):
    with pytest.raises(SidestepError, match=r"none of Stable Diffusion 1, 2 and XL.*--config FOLDER"):
        load(files["sd15"])


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "model.bin"])
def test_pickles_are_refused_unread(tmp_path, name):
    class Armed:
        def __reduce__(self):
            return (Path(tmp_path / "ran").touch, ())

    torch.save({"state_dict": {}, "armed": Armed()}, tmp_path / name)
    with pytest.raises(SidestepError, match=r"a pickle, which can run code.*docs/priors\.md"):
        load(tmp_path / name)
    (tmp_path / name).rename(tmp_path / "renamed.safetensors")
    with pytest.raises(SidestepError, match=r"damaged, or no \.safetensors"):
        load(tmp_path / "renamed.safetensors")
    assert not (tmp_path / "ran").exists()


def test_the_page_says_how_to_convert_a_pickle(files, folders, priors, tmp_path):
    weights = load_file(files["sd15"])
    torch.save({"state_dict": weights, "global_step": 470000}, tmp_path / "model.ckpt")
    program = re.search(r"```python\n(# ckpt.*?)```", PAGE.read_text(), re.DOTALL)[1]
    (tmp_path / "convert.py").write_text(program)
    subprocess.run([sys.executable, "convert.py", "model.ckpt", "model.safetensors"], cwd=tmp_path, check=True)
    made = load(tmp_path / "model.safetensors", config=folders["sd15"])
    assert made.fingerprint() == priors["sd15"].fingerprint()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"drop": ["first_stage_model."]}, "holds no autoencoder"),
        ({"drop": ["model.diffusion_model."]}, "holds no U-Net"),
        ({"drop": ["model.diffusion_model.out.2.weight"]}, "some of the unet's weights are missing"),
        ({"drop": ["first_stage_model.encoder.conv_in.bias"]}, "some of the vae's weights are missing"),
        (
            {"drop": ["cond_stage_model.transformer.text_model.final_layer_norm.bias"]},
            "some of the text_encoder",
        ),
        ({"drop": ["cond_stage_model."]}, "no text encoder"),
        ({"edm_mean": torch.zeros(1, 4, 1, 1)}, "EDM"),
        ({"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(32, 9, 3, 3)}, "its unet cannot be loaded"),
    ],
)
def test_files_that_are_no_whole_prior_are_refused(files, folders, tmp_path, change, message):
    with pytest.raises(SidestepError, match=message) as refused:
        load(changed(files["sd15"], tmp_path, **change), config=folders["sd15"])
    assert "\n" not in str(refused.value)


def test_damaged_and_missing_files_and_strange_names_are_refused(files, folders, tmp_path):
    (tmp_path / "cut.safetensors").write_bytes(files["sd15"].read_bytes()[:5000])
    with pytest.raises(SidestepError, match=r"cut\.safetensors: damaged"):
        load(tmp_path / "cut.safetensors")
    with pytest.raises(SidestepError, match="no such file"):
        load(tmp_path / "nothing.safetensors")
    for name in ("https://host.example/a/b", "../up/here", "a/b/c", "owner/na me"):
        with pytest.raises(SidestepError):
            load(name)
    with pytest.raises(SidestepError, match="leave config out"):
        load(folders["sd15"], config=folders["sd15"])


def test_a_configuration_on_the_hub_is_read_from_its_cache(files, priors, tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--owner--name"
    published.write_folder(repository / "snapshots" / commit, "sd15")
    for weights in repository.rglob("*.safetensors"):
        weights.unlink()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    cached = {"cache_dir": tmp_path, "local_files_only": True}
    prior = load(files["sd15"], config="owner/name", **cached)
    assert (prior.fingerprint(), prior.reads_text) == (priors["sd15"].fingerprint(), True)
    with pytest.raises(SidestepError, match="owner/other cannot be loaded"):
        load(files["sd15"], config="owner/other", **cached)


def test_a_configuration_of_another_kind_is_refused(files, folders, tmp_path):
    published.write_folder(tmp_path / "ldm", "ldm")
    (tmp_path / "ldm" / "vqvae").rename(tmp_path / "ldm" / "vae")
    with pytest.raises(SidestepError, match="holds a UNet2DConditionModel, not a UNet2DModel"):
        load(files["sd15"], config=tmp_path / "ldm")
    with pytest.raises(SidestepError, match="cannot be loaded"):
        load(files["sd15"], config=folders["sdxl"])
