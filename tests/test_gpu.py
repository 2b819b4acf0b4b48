"""What a CPU and a GPU compute is the same, within rounding; and on one GPU it can be had to the last bit."""

import copy
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import Tensor

from sidestep.cameras import Camera
from sidestep.inversion import invert, sample
from sidestep.loop import LoopConfig, fit
from sidestep.prior import LatentPrior
from sidestep.trajectories import orbit
from sidestep.tunet import TUNet

pytestmark = pytest.mark.gpu
# Of float32 without TF32: sums in another order, over the steps of an inversion or of a training.
CLOSE = {"rtol": 1e-3, "atol": 1e-4}
DEVICES = ("cpu", "cuda")


@pytest.fixture(autouse=True)
def _full_precision() -> Iterator[None]:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.fixture(scope="module")
def folder(prior: LatentPrior, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("priors") / "prior"
    prior.save_pretrained(out)
    return out


def test_encoding_inversion_sampling_and_decoding_agree(folder: Path, miniatures: ModuleType) -> None:
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found: list[dict[str, Tensor]] = []
    for device in DEVICES:
        loaded = LatentPrior.from_pretrained(folder, device, torch.float32)
        latents = loaded.encode(images)
        inverted = invert(loaded, latents, miniatures.SETTINGS.grid)
        back = sample(loaded, inverted.latents, miniatures.SETTINGS.grid)
        tensors = {"latents": latents, "mean": inverted.mean, "noise": inverted.noise, "back": back}
        found.append({name: tensor.cpu() for name, tensor in {**tensors, "picture": loaded.decode(back)}.items()})
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, **CLOSE, msg=lambda told, name=name: f"{name}: {told}")


def test_tunet_agrees() -> None:
    torch.manual_seed(0)
    small = {"sample_size": 16, "block_out_channels": (16, 32), "attention_levels": 1, "head_dim": 8}
    tunet = TUNet(**small, cross_attention_dim=24, time_embed_dim=24, norm_groups=4, categories=("chair",)).eval()
    cameras = Camera.stack(orbit(Camera.from_fov(45, 128, 128), 4))
    mean = torch.randn(4, 4, 16, 16)
    results = []
    for device in DEVICES:
        network = copy.deepcopy(tunet).to(device)
        first, second = (
            Camera(some.intrinsics.to(device), some.world_to_camera.to(device), 128, 128)
            for some in (cameras[torch.tensor([0, 0, 0, 0])], cameras)
        )
        categories = network.category_ids(["chair", None, "chair", None]).to(device)
        with torch.no_grad():
            results.append(network(mean.to(device), first, second, categories).cpu())
    torch.testing.assert_close(results[1], results[0], **CLOSE)


class Denoising:
    """Fits a small convolutional network to take noise away; all that is random is in the batch."""

    def __init__(self) -> None:
        torch.manual_seed(1)
        layers = torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.SiLU(), torch.nn.Conv2d(8, 3, 3, padding=1)
        self.model = torch.nn.Sequential(*layers, torch.nn.Upsample(scale_factor=2), torch.nn.AvgPool2d(2))
        self.losses: list[float] = []

    def draw(self, step: int) -> list[Any]:
        return np.random.default_rng((7, step)).integers(2**40, size=8).tolist()

    def collate(self, samples: list[Any]) -> dict[str, Tensor]:
        drawn = [torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in samples]
        clean, noise = torch.stack(drawn).unbind(1)
        return {"clean": clean, "noisy": clean + 0.3 * noise}

    def name(self, sample: Any) -> str:
        return f"seed {sample}"

    def loss(self, model: torch.nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        loss = (model(batch["noisy"]) - batch["clean"]).square().mean()
        self.losses.append(float(loss.detach()))
        return loss, {}

    def validate(self, model: torch.nn.Module) -> tuple[dict[str, float], None]:
        return {"bias": float(model[0].bias.detach().norm())}, None


def train(run: Path, device: str, monkeypatch: pytest.MonkeyPatch, **options: Any) -> list[float]:
    monkeypatch.setenv("ACCELERATE_USE_CPU", str(device == "cpu").lower())
    AcceleratorState._reset_state(reset_partial_state=True)
    task = Denoising()
    try:
        fit(task, LoopConfig(steps=30, batch_size=8, learning_rate=1e-3, precision="fp32", **options), run)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    return task.losses


def test_training_agrees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = [train(tmp_path / device, device, monkeypatch) for device in DEVICES]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)
    weights = [load_file(tmp_path / device / "checkpoint.safetensors") for device in DEVICES]
    for name in weights[0]:
        if name.startswith(("model/", "ema/")):
            torch.testing.assert_close(weights[1][name], weights[0][name], **CLOSE)


def test_deterministic_training_gives_the_same_bits_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for run in ("first", "second"):
        train(tmp_path / run, "cuda", monkeypatch, deterministic=True)
    first, second = ((tmp_path / run / "checkpoint.safetensors").read_bytes() for run in ("first", "second"))
    assert first == second
