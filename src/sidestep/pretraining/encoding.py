"""The latents that the U-Net is trained on, encoded once and kept on disk."""

import hashlib
import logging
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderDC
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sidestep.checksums import read_tensors
from sidestep.devices import autocast, choose_device
from sidestep.errors import SidestepError
from sidestep.files import save_tensors, sweep
from sidestep.images import to_tensor
from sidestep.pretraining.config import PretrainConfig
from sidestep.pretraining.pictures import Picture, Pictures, load_picture, open_picture, square_part

logger = logging.getLogger(__name__)

# The U-Net learns from so many crops of a photograph.
CROPS_PER_PHOTOGRAPH = 32


@torch.no_grad()
def encode_once(
    vae: AutoencoderDC, pictures: Pictures, photographs: Pictures | None, config: PretrainConfig, factor: float | None
) -> dict[str, Tensor]:
    """The latents of all training pictures and of some held-out ones, and of crops of photographs, kept on disk.

    Where `factor` is None, sets the autoencoder's scaling factor so that the latents of the training pictures have
    deviation 1; photographs, which are beside them, have no say in it.

    Raises:
        SidestepError: if a picture is damaged, or latents are not finite.
    """
    device = choose_device()
    vae = vae.to(device).eval()
    path = config.out / "unet" / "latents.safetensors"
    digest = _digest(vae, pictures, photographs, config.image_size, factor)
    kept = _kept(path, digest)
    if kept is not None:
        latents, factor = kept
        vae.register_to_config(scaling_factor=factor)
        return latents
    logger.info("encoding %d pictures", len(pictures["train"]))
    size = config.image_size
    latents = {
        "train": _latents(vae, (load_picture(picture, size) for picture in pictures["train"])),
        "val": _latents(vae, (load_picture(picture, size) for picture in pictures["val"][::4])),
    }
    if photographs:
        logger.info("encoding %d crops of each of %d photographs", CROPS_PER_PHOTOGRAPH, len(photographs["train"]))
        latents["train_photographs"] = _latents(vae, _crops_of(photographs["train"], size))
        latents["val_photographs"] = _latents(vae, _crops_of(photographs["val"], size))
    if factor is None:
        factor = 1 / float(latents["train"].std())
    latents = {name: (tensor * factor).half().contiguous() for name, tensor in latents.items()}
    if not all(bool(tensor.isfinite().all()) for tensor in latents.values()):
        raise SidestepError(
            f"{path}: latents would hold numbers that are not finite, or too large for half precision; train the "
            "autoencoder longer, with a lower autoencoder.learning_rate, or with autoencoder.precision=fp32"
        )
    vae.register_to_config(scaling_factor=factor)
    sweep(path.parent, {path.name})
    save_tensors(path, latents, {"made_of": digest, "scaling_factor": repr(factor)})
    return latents


def _kept(path: Path, digest: str) -> tuple[dict[str, Tensor], float] | None:
    """The latents that are there and their scaling factor; None if there are none, damaged ones, or other pictures'."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("made_of") != digest:
                return None
        tensors, metadata = read_tensors(path)
        factor = float(metadata["scaling_factor"])
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        logger.warning("%s: damaged (%s); making it anew", path, error)
        return None
    return tensors, factor


def _latents(vae: AutoencoderDC, images: Iterator[Tensor]) -> Tensor:
    """Latents of pictures (3, H, W), unscaled, on the CPU."""
    parts = []
    while chunk := list(islice(images, 16)):
        with autocast(vae.device):
            parts.append(vae.encode(torch.stack(chunk).to(vae.device)).latent.float().cpu())
    return torch.cat(parts)


def _crops_of(photographs: list[Picture], size: int) -> Iterator[Tensor]:
    """Squares of half to all of each photograph's shorter side, scaled to `size` pixels; the same ones every time."""
    for index, photograph in enumerate(photographs):
        image = open_picture(photograph)
        rng = np.random.default_rng(index)
        for _ in range(CROPS_PER_PHOTOGRAPH):
            yield to_tensor(square_part(image, rng.uniform(0.5, 1), rng.random(), rng.random(), size))


def _digest(
    vae: AutoencoderDC, pictures: Pictures, photographs: Pictures | None, image_size: int, factor: float | None
) -> str:
    """Names what latents depend on: the encoder's weights, the scale, which pictures they are of, and their size."""
    digest = hashlib.sha256(f"{image_size} {factor}".encode())
    for kind, by_split in {"": pictures, "photographs ": photographs or {}}.items():
        for split in ("train", "val"):
            for picture in by_split.get(split, []):
                digest.update(f"{kind}{split} {picture if isinstance(picture, Path) else picture.path}".encode())
    for name, tensor in sorted(vae.encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.float().cpu().numpy().tobytes())
    return digest.hexdigest()
