"""Training in two processes on the CPU (gloo): the same run as in one, and one that survives the loss of a process.

Run as a script, by torchrun, this file is such a process.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from sidestep.captures import read_captures
from sidestep.captures.splits import write_split
from sidestep.checksums import DIGEST
from sidestep.config import save_config
from sidestep.encoding import encode_captures
from sidestep.errors import SidestepError
from sidestep.inversion import InversionSettings
from sidestep.loop import LoopConfig, fit, this_process
from sidestep.pretraining import PretrainConfig, pretrain
from sidestep.pretraining.config import AutoencoderConfig, UNetConfig
from sidestep.prior import LatentPrior
from sidestep.training import TrainConfig, train

STEPS = 23
TUNET = {"block_out_channels": [16, 32], "attention_levels": 1, "head_dim": 8, "cross_attention_dim": 24}
TUNET |= {"time_embed_dim": 24, "norm_groups": 4}
ROOT = Path(__file__).parents[1]
# Sums of float32 in another order: the largest difference that was seen is 4e-7.
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def config() -> LoopConfig:
    return LoopConfig(
        steps=STEPS, batch_size=8, learning_rate=0.05, precision="fp32", save_every=5, sample_every=10, seed=3
    )


class NoisyTask:
    """Fits a small network to noisy data; a sample's noise is its own, whichever process gets it."""

    def __init__(self) -> None:
        torch.manual_seed(this_process().process_index)  # other first weights in every process
        self.model = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
        self.steps = 0
        self.validated = 0

    def draw(self, step: int) -> list[Any]:
        return np.random.default_rng((7, step)).integers(2**40, size=8).tolist()

    def collate(self, samples: list[Any]) -> dict[str, torch.Tensor]:
        generators = [torch.Generator().manual_seed(seed) for seed in samples]
        rows = torch.stack([torch.randn(7, generator=generator) for generator in generators])
        return {"x": rows[:, :6], "noise": 0.1 * rows[:, 6:]}

    def name(self, sample: Any) -> str:
        return f"sample {sample}"

    def loss(self, model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        self.steps += 1
        target = batch["x"].sum(1, keepdim=True) + batch["noise"]
        return torch.nn.functional.mse_loss(model(batch["x"]), target), {"noise": float(batch["noise"].mean())}

    def validate(self, model: torch.nn.Module) -> tuple[dict[str, float], None]:
        self.validated += 1
        torch.rand(3)
        return {"weight": float(model[0].weight.detach().norm())}, None


class OneDiverges(NoisyTask):
    """The last process alone has no number for a loss at step 6."""

    def loss(self, model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        loss, figures = super().loss(model, batch)
        last = this_process().process_index == this_process().num_processes - 1
        return loss * (float("nan") if last and self.steps == 7 else 1.0), figures


class OneIsKilled(NoisyTask):
    """The last process is killed in step 12."""

    def loss(self, model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        if self.steps == 12 and this_process().process_index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().loss(model, batch)


def launch(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Two processes of a script or module."""
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*launcher, *map(str, arguments)], capture_output=True, text=True, env=environment)


def lines(run: Path) -> list[dict[str, float]]:
    """A run's metrics, without the times."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in found]


def assert_same(run: Path, other: Path) -> None:
    """The same curve and weights, but for the order of sums."""
    for line, wanted in zip(lines(run), lines(other), strict=True):
        assert line == pytest.approx(wanted, rel=1e-4, abs=1e-5)
    tensors, wanted_tensors = (load_file(path / "checkpoint.safetensors") for path in (run, other))
    assert tensors.keys() == wanted_tensors.keys()
    for name in tensors.keys() - {DIGEST}:
        torch.testing.assert_close(tensors[name], wanted_tensors[name], **CLOSE)


def test_two_processes_train_as_one_does_and_end_together(tmp_path: Path) -> None:
    done = launch(__file__, "train", tmp_path)
    assert done.returncode == 0, done.stderr
    fit(NoisyTask(), config(), tmp_path / "alone")
    assert_same(tmp_path / "run", tmp_path / "alone")
    first, second = (json.loads((tmp_path / f"process-{rank}.json").read_text()) for rank in range(2))
    assert first["weights"] == second["weights"]  # the averaged ones, bit for bit
    assert [process["validated"] for process in (first, second)] == [3, 0]
    assert [process["steps"] for process in (first, second)] == [STEPS, STEPS]
    for process in (first, second):  # no number in the second alone
        assert "step 6 " in process["error"]
        assert "the loss is nan" in process["error"]
    with safe_open(tmp_path / "diverged" / "checkpoint.safetensors", framework="pt") as file:
        assert file.metadata()["step"] == "5"
    assert "batch_size 9 cannot be shared by 2 processes" in first["odd"]


@pytest.mark.slow
def test_a_run_whose_process_was_killed_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    whole = launch(__file__, "fit", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    killed = launch(__file__, "killed", tmp_path / "run")
    assert killed.returncode != 0
    assert "exitcode  : -9" in killed.stderr
    assert not (tmp_path / "run" / "ended").exists()
    assert lines(tmp_path / "run")[-1]["step"] == 10
    again = launch(__file__, "fit", tmp_path / "run")
    assert again.returncode == 0, again.stderr
    one, other = (tmp_path / name / "checkpoint.safetensors" for name in ("whole", "run"))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.slow
def test_the_training_command_under_accelerate_does_what_one_process_does(
    tmp_path: Path, make_tiny_pipeline: Callable[..., Any]
) -> None:
    pipeline = make_tiny_pipeline()
    prior = LatentPrior(pipeline.vae, pipeline.unet, pipeline.scheduler)
    prior.save_pretrained(tmp_path / "prior")
    scenes = read_captures(ROOT / "tests" / "data" / "furniture")
    write_split(tmp_path / "split.json", {"train": scenes[:2], "val": scenes[2:], "test": []})
    settings = InversionSettings(600, 2)
    encode_captures(prior, scenes, tmp_path / "latents", settings, prior_name=str(tmp_path / "prior"))
    config = TrainConfig(
        latents=tmp_path / "latents",
        out=tmp_path / "alone",
        steps=20,
        batch_size=4,
        learning_rate=1e-3,
        tunet=dict(TUNET),
        mirror=True,
        split=str(tmp_path / "split.json"),
        precision="fp32",
        save_every=10,
        sample_every=10,
    )
    save_config(config, tmp_path / "config.yaml")
    launcher = ("-m", "accelerate.commands.launch", "--config_file", str(ROOT / "configs" / "accelerate-ddp.yaml"))
    command = [sys.executable, *launcher, "-m", "sidestep", "train", str(tmp_path / "config.yaml")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, f"out={tmp_path / 'run'}"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"model: {tmp_path / 'run' / 'model'}\n"
    assert done.stderr.count("step 20: mse") == 1
    train(config)
    assert_same(tmp_path / "run", tmp_path / "alone")
    assert (tmp_path / "run" / "model" / "model_index.json").is_file()


@pytest.mark.slow
def test_a_pretraining_in_two_processes_does_what_one_does(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for index in range(30):
        noise = np.random.default_rng(index).integers(0, 256, (5, 5, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((40, 32)).save(tmp_path / "pictures" / f"{index}.png")
    loop: dict[str, Any] = {"steps": 6, "batch_size": 4, "precision": "fp32"}
    config = PretrainConfig(
        data=tmp_path / "pictures",
        out=tmp_path / "alone",
        image_size=32,
        # The penalty is on the statistics of a process's own share, so it alone depends on how many there are.
        autoencoder=AutoencoderConfig(
            **loop, crop=16, channels=(8, 8, 8), encoder_layers=(0, 1, 1), decoder_layers=(0, 1, 1), latent_weight=0.0
        ),
        unet=UNetConfig(**loop, channels=(32, 32), attention=(False, False)),
    )
    save_config(config, tmp_path / "config.yaml")
    done = launch("-m", "sidestep", "pretrain", tmp_path / "config.yaml", f"out={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    pretrain(config)
    for part in ("autoencoder", "unet"):
        for line, wanted in zip(lines(tmp_path / "run" / part), lines(tmp_path / "alone" / part), strict=True):
            assert line == pytest.approx(wanted, rel=1e-3)
    assert (tmp_path / "run" / "prior" / "unet").is_dir()


def _process(what: str, folder: Path) -> None:
    process = this_process()
    assert process.num_processes == 2
    if what == "fit":
        fit(NoisyTask(), config(), folder)
    elif what == "killed":
        fit(OneIsKilled(), config(), folder)
        (folder / "ended").touch()
    else:
        task = NoisyTask()
        model = fit(task, config(), folder / "run")
        told: dict[str, Any] = {"validated": task.validated, "steps": task.steps}
        told["weights"] = [parameter.tolist() for parameter in model.parameters()]
        errors = {"error": (OneDiverges, config()), "odd": (NoisyTask, LoopConfig(steps=1, batch_size=9))}
        for name, (kind, settings) in errors.items():
            try:
                fit(kind(), settings, folder / "diverged")
            except SidestepError as error:
                told[name] = str(error)
        (folder / f"process-{process.process_index}.json").write_text(json.dumps(told))
    process.destroy_process_group()


if __name__ == "__main__":
    _process(sys.argv[1], Path(sys.argv[2]))
