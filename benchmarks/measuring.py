"""How the benchmarks of speed, memory and growth measure: seconds, operations, and what a device can do at most."""

import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

Call = Callable[[], Any]


def seconds(call: Call, device: torch.device, repeats: int) -> tuple[float, float]:
    """(the first call's, the fastest of the `repeats` after it): as many for every rival, since more find a faster."""
    return _once(call, device), min(_once(call, device) for _ in range(repeats))


def flops(call: Call) -> int:
    """Floating-point operations of convolutions and matrix products in `call`, a product and its sum counted as two.

    Attention is made of matrix products for that one call, because the counter knows its fused kernels on a GPU only.
    """
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        call()
    return counter.get_total_flops()


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """The most operations a second that a product of two square matrices reaches in `dtype`."""
    size = 8192 if device.type == "cuda" else 2048
    with torch.device(device):
        a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    repeats = 10 if device.type == "cuda" else 1

    def products() -> None:
        for _ in range(repeats):
            a @ b

    return 2 * size**3 * repeats / seconds(products, device, 5)[1]


def forget_peak(device: torch.device) -> None:
    """Starts `peak_memory` anew, where that can be done: on a CUDA device."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_memory(device: torch.device) -> float:
    """GiB: what torch has held of a CUDA device since `forget_peak`; else the most this process has had resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved() / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def _once(call: Call, device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
    elif device.type == "mps":
        torch.mps.synchronize()
