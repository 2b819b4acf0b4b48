"""Priors of every kind on the way through commands and the pipeline: encoding, training, views, saving."""

import json
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file

import published
from sidestep import NovelViewPipeline, TUNet
from sidestep.cameras import Camera
from sidestep.cli import main
from sidestep.errors import SidestepError
from sidestep.images import to_tensor
from sidestep.latents import LatentStore
from sidestep.prior import LatentPrior
from sidestep.prior_layouts import LAYOUTS
from sidestep.trajectories import orbit

pytestmark = pytest.mark.usefixtures("own_process")
FURNITURE = Path(__file__).parent / "data" / "furniture"
TARGETS = orbit(Camera.from_fov(45, 16, 16), 2)
TUNET = {"block_out_channels": [16, 32], "attention_levels": 1, "head_dim": 8, "cross_attention_dim": 24}
TUNET |= {"time_embed_dim": 24, "norm_groups": 4}


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def photo():
    return Image.new("RGB", (40, 30), (200, 120, 40))


def sidestep(monkeypatch, capsys, *arguments):
    """Runs the command in this process; its JSON."""
    monkeypatch.setattr(sys, "argv", ["sidestep", *map(str, arguments), "--json"])
    with pytest.raises(SystemExit) as end:
        main()
    told = json.loads(capsys.readouterr().out)
    assert (end.value.code or 0) == (1 if "error" in told else 0), told
    return told


def tunet(prior, steps=2):
    torch.manual_seed(1)
    fits = {"in_channels": prior.latent_channels, "sample_size": prior.latent_size, "inversion_steps": steps}
    return TUNet(**TUNET, **fits, prior_fingerprint=prior.fingerprint()).eval()


def views(pipe, photo, **options):
    pipe.set_progress_bar_config(disable=True)
    made = pipe(photo, TARGETS, steps=2, **options)
    return torch.stack([to_tensor(image) for image in made.images]).add(1).mul(127.5).round()


@pytest.mark.parametrize(("kind", "text"), [("sd15", False), ("sdxl", True)], ids=["without text", "with two encoders"])
def test_a_pipeline_is_saved_whole_and_loads_in_diffusers(kind, text, tmp_path, photo):
    published.write_folder(tmp_path / kind, kind)
    LatentPrior.from_pretrained(tmp_path / kind, "cpu", torch.float32).save_pretrained(tmp_path / "prior", text=text)
    prior = LatentPrior.from_pretrained(tmp_path / "prior", "cpu", torch.float32)
    pipe = NovelViewPipeline(tunet(prior), **prior.parts)
    plain = views(pipe, photo)
    pipe.save_pretrained(tmp_path / "model")
    ours = NovelViewPipeline.from_pretrained(tmp_path / "model", device="cpu", dtype=torch.float32)
    theirs = DiffusionPipeline.from_pretrained(tmp_path / "model", trust_remote_code=True)
    for loaded in (ours, theirs):
        assert (views(loaded, photo) - plain).abs().max() <= 1
    if not text:
        with pytest.raises(SidestepError, match="takes no prompt"):
            views(ours, photo, prompt="a red chair")
        with pytest.raises(SidestepError, match="holds text_encoder, tokenizer of another prior"):
            pipe.save_pretrained(tmp_path / kind)
        return
    guided = views(ours, photo, prompt="a red chair", negative_prompt="ab", guidance=30.0)
    assert (guided - plain).abs().max() > 1
    assert (views(theirs, photo, prompt="a red chair", negative_prompt="ab", guidance=30.0) - guided).abs().max() <= 1


def test_a_tunet_takes_the_same_weights_from_a_file_and_no_others(tmp_path, photo, monkeypatch):
    monkeypatch.setitem(LAYOUTS, "Stable Diffusion 1", small_layout())
    published.write_folder(tmp_path / "sd15", "sd15")
    prior = LatentPrior.from_pretrained(tmp_path / "sd15", "cpu", torch.float32)
    tunet(prior).save_pretrained(tmp_path / "model" / "tunet")
    weights = published.compvis_weights("sd15")
    save_file(weights, tmp_path / "sd15.safetensors")
    loaded = {"device": "cpu", "dtype": torch.float32}
    pipe = NovelViewPipeline.from_pretrained(tmp_path / "model", prior=str(tmp_path / "sd15.safetensors"), **loaded)
    whole = NovelViewPipeline.from_pretrained(tmp_path / "model", prior=str(tmp_path / "sd15"), **loaded)
    assert (views(pipe, photo) - views(whole, photo)).abs().max() <= 1
    weights["model.diffusion_model.out.2.bias"] += 0.1
    save_file(weights, tmp_path / "tuned.safetensors")
    with pytest.raises(SidestepError, match=r"another prior than .*tuned\.safetensors"):
        NovelViewPipeline.from_pretrained(tmp_path / "model", prior=str(tmp_path / "tuned.safetensors"), **loaded)


def small_layout():
    return {
        "unet": published.UNETS["sd15"],
        "vae": published.VAES["sd15"],
        "scheduler": LAYOUTS["Stable Diffusion 1"]["scheduler"],
        "text_encoder": published.TEXTS["sd15"][""],
    }


def train(monkeypatch, capsys, store, out):
    scenes = [scene.id for scene in LatentStore(store).scenes]
    split = out.with_name("split.json")
    split.write_text(json.dumps({"train": scenes[:-1], "val": scenes[-1:], "test": []}))
    config = out.with_suffix(".yaml")
    config.write_text(
        f"latents: {store}\nout: {out}\nsize: small\nsteps: 1\nbatch_size: 1\npairs: any\nsplit: {split}\n"
    )
    settings = [f"tunet.{name}={value}" for name, value in TUNET.items()]
    return sidestep(monkeypatch, capsys, "train", config, *settings)


@pytest.mark.parametrize("kind", ["file", "ldm"])
def test_encode_train_and_view_on_a_prior_of_another_layout(kind, tmp_path, monkeypatch, capsys, photo):
    monkeypatch.setitem(LAYOUTS, "Stable Diffusion 1", small_layout())
    monkeypatch.chdir(tmp_path)
    if kind == "file":
        name = "sd15.safetensors"
        save_file(published.compvis_weights("sd15"), tmp_path / name)
    else:
        name = "ldm"
        published.write_folder(tmp_path / name, "ldm")
    options = ("--prior", name, "--steps", 2, "--device", "cpu", "--out", "latents")
    encoded = sidestep(monkeypatch, capsys, "encode", FURNITURE, *options)
    assert encoded["scenes"] == 3
    assert LatentStore(tmp_path / "latents").prior == str(tmp_path / name)
    model = Path(train(monkeypatch, capsys, tmp_path / "latents", tmp_path / "run")["model"])
    parts = {path.name for path in model.iterdir() if path.is_dir()}
    assert parts == {"tunet", "vae", "unet", "scheduler"} | ({"empty_prompt"} if kind == "file" else set())
    photo.save(tmp_path / "photo.png")
    out = ("--out", tmp_path / "view.png", "--steps", 2, "--device", "cpu")
    assert sidestep(monkeypatch, capsys, "view", tmp_path / "photo.png", "--yaw", 20, "--model", model, *out)["written"]
    theirs = DiffusionPipeline.from_pretrained(model, trust_remote_code=True)
    assert views(theirs, photo).isfinite().all()


def test_the_prior_command_writes_plain_folders(tmp_path, monkeypatch, capsys):
    published.write_folder(tmp_path / "sd21", "sd21", fp16=True)
    save_file(published.compvis_weights("sd21"), tmp_path / "sd21.safetensors")
    refused = sidestep(monkeypatch, capsys, "prior", tmp_path / "sd21.safetensors", tmp_path / "out")
    assert "--config FOLDER" in refused["error"]
    told = sidestep(
        monkeypatch, capsys, "prior", tmp_path / "sd21.safetensors", tmp_path / "out", "--config", tmp_path / "sd21"
    )
    assert (told["predicts"], told["takes_prompts"], told["image_size"]) == ("v_prediction", True, 24)
    whole = LatentPrior.from_pretrained(tmp_path / "sd21", "cpu", torch.float32)
    assert told["fingerprint"] == whole.fingerprint()
    assert LatentPrior.from_pretrained(tmp_path / "out").fingerprint() == whole.fingerprint()
    (tmp_path / "mute" / ".vae.0123abcd.part").mkdir(parents=True)  # of a run that was killed
    told = sidestep(monkeypatch, capsys, "prior", tmp_path / "sd21", tmp_path / "mute", "--no-text")
    assert not told["takes_prompts"]
    assert {path.name for path in (tmp_path / "mute").iterdir()} == {"vae", "unet", "scheduler", "empty_prompt"}
    told = sidestep(
        monkeypatch, capsys, "prior", tmp_path / "sd21", tmp_path / "half", "--variant", "fp16", "--no-text",
        "--prediction-type", "epsilon",
    )  # fmt: skip
    assert told["predicts"] == "epsilon"
    half = load_file(tmp_path / "half" / "unet" / "diffusion_pytorch_model.safetensors")["conv_in.weight"]
    torch.testing.assert_close(half, whole.unet.conv_in.weight, rtol=1e-3, atol=1e-3)
