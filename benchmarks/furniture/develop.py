"""From light to a photo, as a phone does it: exposure, white balance, a tone curve, a little grain."""

import numpy as np
from world import Exposure

Array = np.ndarray
KEY = 0.17  # the linear brightness that automatic exposure gives the middle of what it sees
BRIGHT = 0.6  # what most of the picture stays below
LUMINANCE = np.array((0.2126, 0.7152, 0.0722))
CONTRAST_PIVOT = 0.18


def meter(frames: Array) -> float:
    """The factor that exposes a way's frames (N, H, W, 3), linear light, by the mean of their logarithms.

    The middle of the picture counts more; what is brighter than 4 times the mean, as windows are, counts as that.
    A dark thing on a bright floor is left dark.
    """
    luminance = frames @ LUMINANCE
    y, x = np.linspace(-1, 1, frames.shape[1])[:, None], np.linspace(-1, 1, frames.shape[2])[None]
    weight = np.broadcast_to(np.exp(-1.2 * (x**2 + y**2)), luminance.shape)
    log = np.log(luminance + 1e-4)
    mean = np.average(log, weights=weight)
    mean = np.average(np.minimum(log, mean + np.log(4)), weights=weight)
    return float(min(KEY / np.exp(mean), BRIGHT / np.quantile(luminance, 0.85)))


def cast(frames: Array) -> Array:
    """The colour (3,) of a way's light, of luminance 1: what a grey wall would look like, by the grey-world guess."""
    bright = np.minimum(frames, np.quantile(frames, 0.98))
    mean = bright.reshape(-1, 3).mean(0)
    return mean / (mean @ LUMINANCE)


def develop(frames: Array, exposure: Exposure, seed: int) -> Array:
    """Photos (N, H, W, 3) uint8 of linear light (N, H, W, 3)."""
    factor, light = meter(frames), cast(frames)
    gains = light**-exposure.balance * np.array(exposure.tint)
    rng = np.random.default_rng(seed)
    photos = []
    for frame, stops in zip(frames, exposure.stops, strict=True):
        linear = np.maximum(frame * gains * factor * 2.0**stops, 0)
        grey = (linear @ LUMINANCE)[..., None]
        linear = np.maximum(grey + exposure.saturation * (linear - grey), 0)
        linear = linear * (1 + rng.normal(0, 0.012, frame.shape)) + rng.normal(0, 0.0008, frame.shape)
        photos.append(np.round(255 * encode(tone(np.maximum(linear, 0), exposure.contrast))).astype(np.uint8))
    return np.stack(photos)


def tone(linear: Array, contrast: float) -> Array:
    """Compresses light to [0, 1) by an S curve in stops that leaves the pivot where it is."""
    power = linear**contrast
    half = CONTRAST_PIVOT**contrast * (1 - CONTRAST_PIVOT) / CONTRAST_PIVOT
    return power / (power + half)


def encode(linear: Array) -> Array:
    """sRGB of linear light, both in [0, 1]."""
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 1e-9) ** (1 / 2.4) - 0.055)


def decode(srgb: Array) -> Array:
    """Linear light of sRGB, both in [0, 1]."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
