"""What Sidestep is timed against: the same networks in the same precision, driven as others drive them.

Both use strategy A, decode only the final view, and step with diffusers' own schedulers, whose grid is the one of
`sidestep.inversion` where the number of steps divides t*.
"""

import math
from collections.abc import Sequence

import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler, UNet2DConditionModel
from PIL import Image
from torch import Tensor

from sidestep import Camera, NovelViewPipeline
from sidestep.devices import autocast, execution_device
from sidestep.images import to_image, to_tensor

GUIDANCE = 3.5


@torch.no_grad()
def published(
    pipe: NovelViewPipeline, photo: Image.Image, source: Camera, targets: Sequence[Camera], steps: int
) -> list[Image.Image]:
    """As the method's authors publish it: each view from the photo anew, and each step with a guidance pass.

    The pass is by the empty prompt both ways, so it changes nothing and costs as much as the other. The two are one
    batch, as diffusers' pipelines have them.
    """
    return [_view(pipe, *_invert(pipe, photo, True), source, target, steps, True) for target in targets]


@torch.no_grad()
def plain_loop(
    pipe: NovelViewPipeline, photo: Image.Image, source: Camera, targets: Sequence[Camera], steps: int
) -> list[Image.Image]:
    """As one would write it with diffusers' schedulers: inverted once, one pass a step, one view at a time."""
    mean, noise = _invert(pipe, photo, False)
    return [_view(pipe, mean, noise, source, target, steps, False) for target in targets]


def passes(pipe: NovelViewPipeline, steps: int, targets: int, guided: bool) -> float:
    """How many latents the U-Net sees for one view, of `targets` views made of one photo."""
    inversion = pipe.tunet.config.inversion_steps
    return 2 * inversion + 1 + 2 * steps if guided else inversion / targets + 1 + steps


def _invert(pipe: NovelViewPipeline, photo: Image.Image, guided: bool) -> tuple[Tensor, Tensor]:
    trained = pipe.tunet.config
    scheduler = DDIMInverseScheduler.from_config(pipe.prior.scheduler.config, clip_sample=False, steps_offset=0)
    scheduler.set_timesteps(_steps_of_all(pipe, trained.inversion_steps))
    x = pipe.prior.encode(to_tensor(photo)[None])
    mean = x
    # Its first step would lead from "before 0" to 0, where the clean latents already are.
    for t in scheduler.timesteps[1 : trained.inversion_steps + 1]:
        done = scheduler.step(_predict(pipe, x, t, guided), t, x)
        mean = math.sqrt(scheduler.alphas_cumprod[t]) * done.pred_original_sample
        x = done.prev_sample
    return mean, x - mean


def _view(
    pipe: NovelViewPipeline, mean: Tensor, noise: Tensor, source: Camera, target: Camera, steps: int, guided: bool
) -> Image.Image:
    device, size = execution_device(pipe.tunet), pipe.prior.image_size
    source, target = source.resize_and_crop(size), target.resize_and_crop(size)
    pair = Camera.stack([source, target]).relative_to(source).to(device, torch.float32)
    with autocast(device):
        translated = pipe.tunet(mean.to(device), pair[:1], pair[1:]).float()
    scheduler = DDIMScheduler.from_config(pipe.prior.scheduler.config, clip_sample=False, steps_offset=0)
    count = _steps_of_all(pipe, steps)
    scheduler.set_timesteps(count)
    timesteps = scheduler.timesteps[-steps - 1 : -1]
    t_star = pipe.tunet.config.t_star
    eps = _predict(pipe, translated + noise, torch.tensor(t_star), False)
    x = translated + math.sqrt(1 - scheduler.alphas_cumprod[t_star]) * eps
    for t in timesteps:
        x = scheduler.step(_predict(pipe, x, t, guided), t, x).prev_sample
    return to_image(pipe.prior.decode(x)[0])


def _steps_of_all(pipe: NovelViewPipeline, steps: int) -> int:
    """How many steps over the whole schedule put `steps` of them below t*."""
    return round(pipe.prior.num_train_timesteps * steps / pipe.tunet.config.t_star)


def _predict(pipe: NovelViewPipeline, x: Tensor, t: Tensor, guided: bool) -> Tensor:
    inputs = torch.cat([x, x]) if guided else x
    inputs = inputs.to(pipe.unet.device, pipe.unet.dtype)
    if isinstance(pipe.unet, UNet2DConditionModel):
        empty = pipe.empty_prompt.tokens.expand(len(inputs), -1, -1).to(inputs)
        output = pipe.unet(inputs, t, encoder_hidden_states=empty).sample
    else:
        output = pipe.unet(inputs, t).sample
    if guided:
        away, towards = output.chunk(2)
        output = away + GUIDANCE * (towards - away)
    return output.to(x.device, x.dtype)
