"""Feature caching: most steps run the U-Net's outer levels only, on the deep features of an earlier step.

After DeepCache (Ma, Fang and Wang 2024, arXiv 2312.00858): from one step to the next a U-Net's deep features change
least, and they cost most. Every `interval`-th pass of a walk over the grid is whole. Those between take what the deep
levels gave to the outer ones from the last whole pass, and neither go down to them nor through the middle. It is an
approximation, the same for inversion and sampling; docs/speed.md has what it costs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers import UNet2DConditionModel, UNet2DModel
from diffusers.hooks import HookRegistry, ModelHook
from torch import Tensor, nn

from sidestep.errors import SidestepError

NAME = "sidestep_feature_caching"


@contextmanager
def cached_features(unet: Any, interval: int, levels: int = 1) -> Iterator[None]:
    """Caches the features of `unet` for one walk over a grid: one inversion, or the sampling of one batch.

    The first pass inside is whole, and so is one on a batch of another shape than that before it. What was cached is
    forgotten at the end.

    Args:
        unet: a UNet2DModel or UNet2DConditionModel with two or more levels, not compiled.
        interval: every how manieth pass is whole; 1 changes nothing at all.
        levels: how many of the outer levels run at each pass.

    Raises:
        SidestepError: if the interval or the levels do not fit, or the network is of another kind, compiled, or cached
            by another call at this time.
    """
    if interval < 1:
        raise SidestepError(f"the cache interval is {interval}; it must be 1 (no caching) or more")
    if interval == 1:
        yield
        return
    _refuse_unfit(unet, levels)
    walk = _Walk(interval)
    *deep, entry = unet.up_blocks[: len(unet.up_blocks) - levels]
    passing = [module for module in (unet.mid_block, *deep) if module is not None]
    hooks: list[tuple[nn.Module, ModelHook]] = [
        *((block, _SkipDown(walk)) for block in unet.down_blocks[levels:]),
        *((module, _Skip(walk)) for module in passing),
        (entry, _Enter(walk)),
    ]
    registries = [HookRegistry.check_if_exists_or_initialize(module) for module, _ in hooks]
    if any(registry.get_hook(NAME) is not None for registry in registries):
        raise SidestepError("another call is caching this U-Net's features; let it end first")
    counting = unet.conv_in.register_forward_pre_hook(lambda _, inputs: walk.begin(inputs[0]))
    try:
        for registry, (_, hook) in zip(registries, hooks, strict=True):
            registry.register_hook(hook, NAME)
        yield
    finally:
        counting.remove()
        for registry in registries:
            registry.remove_hook(NAME, recurse=False)


class _Walk:
    """Where a walk is: whether this pass is whole, and the features that the outer levels get where it is not."""

    def __init__(self, interval: int) -> None:
        self.interval = interval
        self.passes = 0
        self.whole = True
        self.shape: tuple[int, ...] = ()
        self.features: Tensor | None = None

    def begin(self, inputs: Tensor) -> None:
        self.passes = self.passes + 1 if tuple(inputs.shape) == self.shape else 0
        self.shape = tuple(inputs.shape)
        self.whole = self.passes % self.interval == 0


class _Skip(ModelHook):
    """Hands its input on in place of its output, which nothing computed reads."""

    def __init__(self, walk: _Walk) -> None:
        super().__init__()
        self.walk = walk

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if self.walk.whole:
            return self.fn_ref.original_forward(*args, **kwargs)
        return self.instead(module, kwargs["hidden_states"] if "hidden_states" in kwargs else args[0])

    def instead(self, module: Any, hidden: Tensor) -> Any:
        return hidden


class _SkipDown(_Skip):
    """The same for a block going down, which also hands on one feature a layer."""

    def instead(self, module: Any, hidden: Tensor) -> Any:
        sampler = getattr(module, "downsamplers", None)
        return hidden, (hidden,) * (len(module.resnets) + (0 if sampler is None else len(sampler)))


class _Enter(_Skip):
    """The last deep block: what it gives is what is cached."""

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if self.walk.whole:
            self.walk.features = self.fn_ref.original_forward(*args, **kwargs)
        return self.walk.features


def _refuse_unfit(unet: Any, levels: int) -> None:
    if hasattr(unet, "_orig_mod") or getattr(unet, "_compiled_call_impl", None) is not None:
        raise SidestepError("feature caching needs a U-Net that is not compiled; leave out one or the other")
    if not isinstance(unet, UNet2DModel | UNet2DConditionModel):
        raise SidestepError(f"feature caching knows UNet2DModel and UNet2DConditionModel, not {type(unet).__name__}")
    if any(hasattr(block, "skip_conv") for block in unet.down_blocks):
        raise SidestepError("feature caching does not know this U-Net's skip convolutions; leave it out")
    count = len(unet.down_blocks)
    if not 1 <= levels < count:
        raise SidestepError(f"feature caching runs {levels} of this U-Net's {count} levels; it needs 1 to {count - 1}")
