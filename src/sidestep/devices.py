"""Which device to run on, and in which precision a network runs there."""

from typing import Any

import torch

from sidestep.errors import SidestepError

# Parameters of a network that is held in half precision on a CPU: a GiB in float32.
LARGE = 2**28


def choose_device(name: str | torch.device | None = None) -> torch.device:
    """The named device, or the best one present: cuda, then mps, then cpu.

    Raises:
        SidestepError: if `name` is no device, or one that this machine does not have.
    """
    if name is not None:
        try:
            device = torch.device(name)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            reason = str(error).splitlines()[0]
            raise SidestepError(f"device {str(name)!r} cannot be used here ({reason}); try cpu, cuda or mps") from None
        return device
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def execution_device(network: Any) -> torch.device:
    """Where a network computes. Under accelerate's offloading that is not where its weights wait (`network.device`).

    Args:
        network: a model of diffusers or transformers.
    """
    if not hasattr(network, "_hf_hook"):
        return network.device
    for module in network.modules():
        device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device(device)
    return network.device


def autocast(device: torch.device) -> torch.autocast:
    """The context in which networks with float32 weights compute in `network_dtype`; no change where that is float32.

    Asked for float32 itself, torch would warn each time.
    """
    dtype = network_dtype(device)
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def network_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the processor multiplies it natively, float32 elsewhere.

    On a CPU without such instructions bfloat16 is emulated and slower than float32.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "mps":
        return torch.float16
    # A private name, so its absence in another torch release must not break anything.
    has_bf16 = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return torch.bfloat16 if has_bf16() else torch.float32


def compute_in(network: Any, dtype: torch.dtype, held: torch.dtype | None = None) -> None:
    """Has a network compute in `dtype`, each layer's weights raised to it only while the layer runs.

    For weights that a processor cannot multiply as they are. Those of normalisations are few, and raised for good.

    Args:
        network: a model of diffusers, its weights in one precision.
        held: precision that the weights are held in; as they are where None.
    """
    network.enable_layerwise_casting(storage_dtype=held or network.dtype, compute_dtype=dtype)
    for module in network.modules():
        hooks = getattr(module, "_diffusers_hook", None)
        if hooks is None or hooks.get_hook("layerwise_casting") is None:
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(dtype)


def hold_in_half(network: Any) -> None:
    """Holds the weights of a large float32 network in float16 where that loses nothing, as where they were stored so.

    It computes the same as before, but for one thread at a time, and stays so whatever precision it is asked to take
    (`to(dtype)`). Nothing is done where it is small, where what is saved is not worth the time.
    """
    parameters = list(network.parameters())
    if sum(parameter.numel() for parameter in parameters) < LARGE:
        return
    if all(torch.equal(parameter, parameter.half().float()) for parameter in parameters):
        compute_in(network, torch.float32, torch.float16)


def halve(network: torch.nn.Module, name: str) -> None:
    """Takes a network's weights to half precision, in place.

    Args:
        name: of what is written, for the error.

    Raises:
        SidestepError: if a weight is too large for it, or no number.
    """
    network.half()
    for key, weight in network.named_parameters():
        if not bool(weight.isfinite().all()):
            raise SidestepError(
                f"{name}: the weight {key} is not finite in half precision; train with a lower learning_rate"
            )


def memory_format(device: torch.device) -> torch.memory_format:
    """How the weights of convolutions lie in memory where they run fastest: channels last on CPUs and CUDA devices."""
    return torch.channels_last if device.type in ("cpu", "cuda") else torch.contiguous_format
