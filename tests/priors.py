"""Priors that inversions and samplers are tested on: one whose ODE is solved in closed form, and miniature networks."""

import math

import torch
from diffusers import DDIMScheduler

from miniatures import SD, kl, unet
from sidestep.prior import LatentPrior


class GaussianPrior:
    """The exact denoiser of data that is N(m, s^2) in every entry; remembers where it was asked."""

    num_train_timesteps = 1000
    m, s = 0.7, 0.6

    def __init__(self):
        self.alphas_cumprod = (1 - DDIMScheduler(**SD).betas.double()).cumprod(0)
        self.asked = []

    def predict_noise(self, x, timestep, prompt_embeds=None, negative_embeds=None, guidance=1.0):
        self.asked.append(timestep)
        a = float(self.alphas_cumprod[timestep])
        return math.sqrt(1 - a) * (x - math.sqrt(a) * self.m) / (a * self.s**2 + 1 - a)

    def exact(self, x, t_from, t_to):
        """The probability flow ODE solved exactly: standardised values do not change."""
        a, b = (float(self.alphas_cumprod[t]) for t in (t_from, t_to))
        deviation = [math.sqrt(c * self.s**2 + 1 - c) for c in (a, b)]
        return math.sqrt(b) * self.m + deviation[1] / deviation[0] * (x - math.sqrt(a) * self.m)


def tiny_prior(prediction_type="epsilon", **schedule):
    torch.manual_seed(0)
    return LatentPrior(kl(), unet(), {**SD, **schedule, "prediction_type": prediction_type})
