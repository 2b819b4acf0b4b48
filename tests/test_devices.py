import copy

import pytest
import torch
from diffusers import UNet2DModel

from sidestep.devices import autocast, choose_device, compute_in, network_dtype
from sidestep.errors import SidestepError


def present(monkeypatch, cuda: bool, mps: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("cuda", "mps", "best"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu"), (True, False, "cuda")]
)
def test_the_best_device_present_is_taken(monkeypatch, cuda, mps, best):
    present(monkeypatch, cuda, mps)
    assert choose_device().type == best


def test_a_named_device_is_taken_even_where_there_is_a_better_one(monkeypatch):
    present(monkeypatch, cuda=True, mps=False)
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["quantum", "", "cpu:x", "cuda:99", "mps:7"])
def test_a_device_that_is_not_there_is_refused_with_a_way_out(name):
    with pytest.raises(SidestepError, match=f"{name!r} cannot be used here.*try cpu, cuda or mps") as error:
        choose_device(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_cpu_computes_in_bfloat16_only_where_it_does_so_natively(monkeypatch, native, dtype):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native, raising=False)
    assert network_dtype(torch.device("cpu")) == dtype


def test_a_torch_that_cannot_say_so_computes_in_float32(monkeypatch):
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported", raising=False)
    assert network_dtype(torch.device("cpu")) == torch.float32


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_autocast_computes_in_that_precision_without_a_warning(monkeypatch, recwarn, native, dtype):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native, raising=False)
    with autocast(torch.device("cpu")):
        assert torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype == dtype
    assert not recwarn.list


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float16)])
def test_a_gpu_without_native_bfloat16_computes_in_float16(monkeypatch, native, dtype):
    # An older GPU emulates bfloat16, and torch says that it is supported unless asked to leave that out.
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    assert network_dtype(torch.device("cuda")) == dtype


def test_apple_gpus_compute_in_float16():
    assert network_dtype(torch.device("mps")) == torch.float16


def test_weights_held_in_half_compute_as_if_they_were_single():
    torch.manual_seed(0)
    blocks = {"down_block_types": ("AttnDownBlock2D",), "up_block_types": ("AttnUpBlock2D",)}
    unet = UNet2DModel(sample_size=8, block_out_channels=(16,), norm_num_groups=4, attention_head_dim=8, **blocks)
    unet.requires_grad_(False).to(torch.bfloat16)
    exact = copy.deepcopy(unet).float()
    x = torch.randn(2, 3, 8, 8)
    expected = exact(x, 7).sample
    compute_in(unet, torch.float32)
    assert unet.dtype == torch.float32
    for _ in range(2):  # they go back after each layer
        assert torch.equal(unet(x, 7).sample, expected)
        assert unet.conv_in.weight.dtype == torch.bfloat16
    held, single = (sum(p.nbytes for p in network.parameters()) for network in (unet, exact))
    assert held < 0.52 * single


@pytest.mark.gpu
def test_a_gpu_is_chosen_where_there_is_one():
    device = choose_device()
    assert device.type == "cuda"
    torch.ones(2, device=device, dtype=network_dtype(device)).sum().item()
