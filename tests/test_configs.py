"""The experiments in configs/: their settings load, and the commands that their headers show are right and fit them."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

from sidestep.cli.main import app
from sidestep.config import load_config
from sidestep.pretraining import PretrainConfig
from sidestep.training import SIZES, TrainConfig
from sidestep.tunet import TUNet

CONFIGS = Path(__file__).parents[1] / "configs"
TRAINED = sorted(path.name for path in CONFIGS.glob("*.yaml") if "latents:" in path.read_text())


def commands(name: str) -> dict[str, dict[str, Any]]:
    """The options of each command in a file's header, by the command's name."""
    text = (CONFIGS / name).read_text().replace("\\\n#", "")
    group: Any = typer.main.get_command(app)
    found = {}
    for line in re.findall(r"^#   sidestep (.*)$", text, re.M):
        command, *words = shlex.split(line)
        found[command] = group.commands[command].make_context(command, words).params
    return found


@pytest.mark.parametrize("name", TRAINED)
def test_the_commands_of_a_header_fit_its_settings(name: str) -> None:
    config = load_config(TrainConfig, CONFIGS / name)
    shown = commands(name)
    assert shown["train"]["config"] == Path("configs", name)
    if "encode" in shown:
        assert shown["encode"]["out"] == config.latents
    if "evaluate" in shown:
        assert shown["evaluate"]["model"] == str(config.out / "model")
        assert shown["evaluate"]["protocol"] == config.split
    with torch.device("meta"):
        TUNet(**SIZES[config.size] | config.tunet)


@pytest.mark.parametrize(("name", "epochs"), [("paper-3class.yaml", 650), ("paper-167class.yaml", 450)])
def test_the_papers_models_are_trained_as_the_paper_says(name: str, epochs: int) -> None:
    config = load_config(TrainConfig, CONFIGS / name)
    assert (config.size, config.pairs, config.split) == ("paper", "paper", name.removesuffix(".yaml"))
    assert (config.epochs, config.batch_size, config.learning_rate, config.weight_decay) == (epochs, 32, 1e-5, 0.01)
    assert (config.mirror, config.tunet, config.init) == (False, {}, None)
    shown = commands(name)
    assert list(shown) == ["encode", "train", "evaluate"]
    assert (shown["encode"]["t_star"], shown["encode"]["steps"]) == (None, 30)  # 600 by the prior's schedule
    assert shown["encode"]["prior"] == shown["evaluate"]["prior"] == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert shown["encode"]["data"] == Path(shown["evaluate"]["data"])


def test_the_ablations_differ_from_the_papers_model_in_one_thing() -> None:
    whole = load_config(TrainConfig, CONFIGS / "paper-3class.yaml")
    for name, change in (("concat", {"conditioning": "concat"}), ("no-cross-attention", {"cross_attention": False})):
        config = load_config(TrainConfig, CONFIGS / f"ablation-{name}.yaml")
        assert config.tunet == change
        config.tunet, config.out = whole.tunet, whole.out
        assert config == whole


def test_the_167_classes_are_167_folders() -> None:
    classes = (CONFIGS / "mvimgnet-167-classes.txt").read_text().split()
    assert len(set(classes)) == len(classes) == 167
    assert all(name.isdecimal() for name in classes)


def test_the_small_prior_is_trained_as_its_header_shows() -> None:
    load_config(PretrainConfig, CONFIGS / "small-prior.yaml")
    assert commands("small-prior.yaml")["pretrain"]["config"] == Path("configs/small-prior.yaml")
