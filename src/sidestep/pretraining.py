"""A small latent prior from a folder of pictures: an autoencoder first, then a latent U-Net.

Stable Diffusion needs no pretraining. This is for those who have no such prior at hand, and for the bundled model.
"""

import copy
import hashlib
import logging
import math
from collections.abc import Iterator
from dataclasses import field
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import PartialState
from diffusers import AutoencoderDC, DDIMScheduler, UNet2DModel
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sidestep.captures import Frame, read_captures
from sidestep.captures.splits import Split, model_split
from sidestep.config import settings
from sidestep.devices import autocast, choose_device
from sidestep.errors import SidestepError
from sidestep.features import ImageFeatures, perceptual_distance
from sidestep.files import atomic_path
from sidestep.images import load_image, resize_and_crop, to_image, to_tensor
from sidestep.inversion import inversion_grid, invert, sample
from sidestep.loop import LoopConfig, fit
from sidestep.models import model_folder
from sidestep.prior import LatentPrior

logger = logging.getLogger(__name__)

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}

# The U-Net learns from so many crops of a photograph, encoded once.
CROPS_PER_PHOTOGRAPH = 32

Picture = Path | Frame
Pictures = dict[Split, list[Picture]]


@settings
class AutoencoderConfig(LoopConfig):
    """The autoencoder: diffusers' AutoencoderDC with residual blocks only, 8 times smaller on each side.

    Attributes:
        train: "decoder" leaves the encoder of `init` as it is, and with it every latent: the U-Net and a TUNet that
            were trained on its latents stay valid.
        crop: side of the square crops that it is trained on, in pixels.
        latent_noise: largest deviation of the noise put on the latents before decoding, because the latents that
            the decoder will be given are never exact.
        colour_weight: of the error in hue, averaged over a latent's cell.
        latent_weight: of the penalty that draws each latent channel towards mean 0 and deviation 1.
        perceptual_weight: of `features.perceptual_distance`, for texture where an error of pixels prefers a blur; 0
            does without, and without the packages that it needs.
    """

    steps: int = 1000
    batch_size: int = 16
    learning_rate: float = 1.5e-3
    save_every: int = 50
    sample_every: int = 200
    ema_decay: float = 0.995
    train: Literal["all", "decoder"] = "all"
    crop: int = 128
    latent_channels: int = 4
    channels: tuple[int, ...] = (32, 48, 96, 192)
    encoder_layers: tuple[int, ...] = (0, 2, 2, 2)
    decoder_layers: tuple[int, ...] = (0, 2, 2, 3)
    latent_noise: float = 0.1
    latent_weight: float = 0.02
    colour_weight: float = 4.0
    perceptual_weight: float = 0.0


@settings
class UNetConfig(LoopConfig):
    """The latent U-Net, trained to predict the noise at every timestep.

    Attributes:
        low_share: share of the samples whose timestep lies below `t_low`, where inversion and sampling spend most
            forwards; the rest lie above, because direct addition inverts to the last timestep.
        snr_gamma: weighs each sample's loss so that it counts, in terms of the clean latent's error, by the
            signal-to-noise ratio up to this value (min-SNR, Hang et al. 2023; they use 5). None weighs all alike.
    """

    steps: int = 3000
    batch_size: int = 16
    learning_rate: float = 5e-4
    channels: tuple[int, ...] = (64, 128, 192)
    attention: tuple[bool, ...] = (False, True, True)
    layers_per_block: int = 2
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon"
    t_low: int = 600
    low_share: float = 0.75
    snr_gamma: float | None = None


@settings
class PretrainConfig:
    """What `sidestep pretrain` does.

    Attributes:
        data: captures, or a folder of pictures. Validation and test models (or pictures) are left out.
        out: the run's folder; the finished prior lies in `out/prior`.
        init: start from the weights of this model folder, or of the bundled model ("bundled").
        photographs: a folder of other pictures, for a prior of more than what the captures show. Both networks learn
            from random crops of them, so they should be twice `image_size` on their shorter side.
        photograph_share: how much of the training samples they make up, 0 to 1.
    """

    data: Path
    out: Path
    image_size: int = 256
    init: str | None = None
    photographs: Path | None = None
    photograph_share: float = 0.25
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    unet: UNetConfig = field(default_factory=UNetConfig)


def pretrain(config: PretrainConfig) -> Path:
    """Trains the autoencoder, then the U-Net; returns the folder of the finished prior. Run again to resume.

    An encoder that stays `init`'s (`autoencoder.train="decoder"`, or no steps) keeps its scaling factor, so that its
    latents stay the same; with no steps of the U-Net either, nothing is encoded.

    Raises:
        SidestepError: if there are no pictures, or a folder given by `init` does not fit.
    """
    if config.autoencoder.train == "decoder" and config.init is None:
        raise SidestepError("autoencoder.train=decoder: needs init, the prior whose encoder is kept")
    if not 0 <= config.photograph_share <= 1:
        raise SidestepError(f"photograph_share={config.photograph_share}: must be a share between 0 and 1")
    pictures = pictures_by_split(config.data)
    photographs = pictures_by_split(config.photographs) if config.photographs else None
    initial = _initial_prior(config)
    vae = initial.vae if initial else build_autoencoder(config.autoencoder)
    training = _AutoencoderTask(vae, pictures, config, photographs)
    fit(training, config.autoencoder, config.out / "autoencoder", config)
    vae = training.model.vae
    process = PartialState()
    encoder_kept = config.autoencoder.train == "decoder" or config.autoencoder.steps == 0
    if initial and encoder_kept and config.unet.steps == 0:
        prior = initial  # whose decoder has been trained where it is
    else:
        latent_size = config.image_size // 2 ** (len(vae.config.encoder_block_out_channels) - 1)
        unet = initial.unet if initial else build_unet(config.unet, latent_size, vae.config.latent_channels)
        factor = vae.config.scaling_factor if initial and encoder_kept else None
        with process.main_process_first():  # the others find it on disk
            latents = _encode_once(vae, pictures, photographs, config, factor)
        task = _UNetTask(unet, vae, latents, config)
        fit(task, config.unet, config.out / "unet", config)
        prior = task.prior()
    prior = prior.half()  # before anything is inverted with it: the stored weights are the prior
    if process.is_main_process:
        with atomic_path(config.out / "prior") as temporary:
            prior.save_pretrained(temporary)
    return config.out / "prior"


def pictures_by_split(root: Path) -> Pictures:
    """The pictures below `root`, split by the model they show; loose pictures are split by their file name.

    Raises:
        SidestepError: if there are none to train on or none to validate with.
    """
    result: Pictures = {"train": [], "val": [], "test": []}
    try:
        scenes = read_captures(root)
    except SidestepError:
        if not root.is_dir():
            raise SidestepError(f"{root}: no such folder of pictures or captures") from None
        if any(root.rglob("sparse")) or any(root.rglob("transforms.json")):
            raise  # captures that cannot be read: as loose pictures, held-out models would be trained on
        for path in sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES):
            result[model_split(path.stem)].append(path)
    else:
        for scene in scenes:
            result[model_split(scene.model)].extend(scene.frames)
    for split in ("train", "val"):
        if not result[split]:
            raise SidestepError(f"{root}: no pictures in the {split} split; add more models or pictures")
    return result


def build_autoencoder(config: AutoencoderConfig) -> AutoencoderDC:
    """The autoencoder before training; its scaling factor is measured at the end of it."""
    return AutoencoderDC(
        latent_channels=config.latent_channels,
        encoder_block_out_channels=config.channels,
        decoder_block_out_channels=config.channels,
        encoder_layers_per_block=config.encoder_layers,
        decoder_layers_per_block=config.decoder_layers,
        encoder_qkv_multiscales=((),) * len(config.channels),
        decoder_qkv_multiscales=((),) * len(config.channels),
    )


def build_unet(config: UNetConfig, sample_size: int, latent_channels: int) -> UNet2DModel:
    """The latent U-Net before training."""
    down = tuple("AttnDownBlock2D" if attention else "DownBlock2D" for attention in config.attention)
    up = tuple("AttnUpBlock2D" if attention else "UpBlock2D" for attention in reversed(config.attention))
    return UNet2DModel(
        sample_size=sample_size,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=config.channels,
        layers_per_block=config.layers_per_block,
        down_block_types=down,
        up_block_types=up,
        attention_head_dim=32,
    )


class _AutoencoderTraining(torch.nn.Module):
    """Encode, mirror, disturb, decode in one forward, so that accelerate's autocast covers all of it.

    Half of the latents are decoded mirrored, to be compared with the mirrored picture: a mirrored latent is then the
    latent of the mirrored picture, so the U-Net and TUNet can be trained on mirrored scenes without encoding twice.
    """

    def __init__(self, vae: AutoencoderDC) -> None:
        super().__init__()
        # On a CPU these convolutions run 1.7 times faster with channels last.
        self.vae = vae.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor, noise: float = 0.0, mirrored: Tensor | None = None) -> tuple[Tensor, Tensor]:
        latents = self.vae.encode(images.contiguous(memory_format=torch.channels_last)).latent
        disturbed = latents
        if mirrored is not None:
            disturbed = torch.where(mirrored.view(-1, 1, 1, 1), disturbed.flip(-1), disturbed)
        if noise:
            deviation = noise * torch.rand(len(latents), 1, 1, 1, device=latents.device)
            disturbed = disturbed + deviation * torch.randn_like(disturbed)
        return self.vae.decode(disturbed).sample, latents


class _Sample(NamedTuple):
    """One crop to train the autoencoder on: of which picture, how large that is to be, and where the crop lies.

    Attributes:
        picture: index into the captures' pictures and, after them, the photographs.
        size: what the picture's shorter side is scaled to, in pixels.
        down, across: where between the upmost or leftmost crop (0) and the lowest or rightmost (1).
    """

    picture: int
    size: int
    down: float
    across: float
    mirrored: bool


class _AutoencoderTask:
    def __init__(
        self, vae: AutoencoderDC, pictures: Pictures, config: PretrainConfig, photographs: Pictures | None = None
    ) -> None:
        self.model = _AutoencoderTraining(vae)
        vae.encoder.requires_grad_(config.autoencoder.train == "all")
        perceptual = config.autoencoder.perceptual_weight > 0
        self.features = ImageFeatures.load(PartialState().device) if perceptual else None
        self.config = config
        self.captured = len(pictures["train"])
        self.pictures = pictures["train"] + (photographs["train"] if photographs else [])
        self.held_out = {"": _some(pictures["val"])}
        if photographs:
            self.held_out["_photographs"] = _some(photographs["val"])

    def draw(self, step: int) -> list[Any]:
        own = self.config.autoencoder
        rng = np.random.default_rng((own.seed, step))
        samples = []
        for _ in range(own.batch_size):
            low, high, size = 0, self.captured, self.config.image_size
            if self.captured < len(self.pictures) and rng.random() < self.config.photograph_share:
                low, high = self.captured, len(self.pictures)
                size = int(rng.integers(size, 2 * size + 1))
            index, down, across = int(rng.integers(low, high)), rng.random(), rng.random()
            samples.append(_Sample(index, size, down, across, bool(rng.integers(2))))
        return samples

    def collate(self, samples: list[Any]) -> dict[str, Tensor]:
        crop = self.config.autoencoder.crop
        images = []
        for index, size, down, across, mirrored in samples:
            image = _open(self.pictures[index])
            if index < self.captured:  # the prior is only ever shown the centre of these
                image = resize_and_crop(image, size)
            tensor = to_tensor(_square(image, crop / size, down, across, crop))
            images.append(tensor.flip(-1) if mirrored else tensor)
        return {"images": torch.stack(images)}

    def loss(self, model: torch.nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        images = batch["images"]
        mirrored = torch.rand(len(images), device=images.device) < 0.5
        reconstruction, latents = model(images, self.config.autoencoder.latent_noise, mirrored)
        reconstruction, latents = reconstruction.float(), latents.float()
        target = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(-1), images)
        error = F.l1_loss(reconstruction, target) + F.mse_loss(reconstruction, target)
        # Edges outweigh hues in an error of pixels, so that an axis of colour can stay unlearned: hues count on their
        # own, averaged over a latent's cell.
        hues = F.avg_pool2d(reconstruction - target, 2 ** (len(self.config.autoencoder.channels) - 1))
        hues = hues - hues.mean(dim=1, keepdim=True)
        own = self.config.autoencoder
        error = error + own.colour_weight * hues.abs().mean()
        figures = {}
        if own.train == "all":
            mean = latents.mean(dim=(0, 2, 3))
            deviation = latents.std(dim=(0, 2, 3))
            penalty = (mean**2 + deviation.clamp(min=1e-3).log() ** 2).mean()
            error = error + own.latent_weight * penalty
            figures["latent_deviation"] = float(deviation.detach().mean())
        if self.features:
            # In float32, outside of autocast: bfloat16 would be no faster here.
            distance = perceptual_distance(self.features, reconstruction, target).mean()
            error = error + own.perceptual_weight * distance
            figures["perceptual"] = float(distance.detach())
        return error, figures

    @torch.no_grad()
    def validate(self, model: torch.nn.Module) -> tuple[dict[str, float], Image.Image]:
        """PSNR of held-out pictures, and of photographs, whose figures end in `_photographs`.

        With a perceptual term also that distance and the sharpness: the energy of the reconstructions' gradients as
        a share of the pictures' own. Below 1 they are blurred, above 1 there is grain in them.
        """
        device = next(model.parameters()).device

        def reconstruct(images: Tensor, flip: bool) -> Tensor:
            with autocast(device):
                chosen = [torch.full((len(chunk),), flip, device=device) for chunk in images.split(4)]
                parts = zip(images.split(4), chosen, strict=True)
                return torch.cat([model(chunk, mirrored=mirrored)[0].float() for chunk, mirrored in parts])

        figures, rows = {}, []
        for name, pictures in self.held_out.items():
            images = _load_batch(pictures, self.config.image_size).to(device)
            result, mirrored = reconstruct(images, False), reconstruct(images, True)
            figures[f"psnr{name}"] = float(_psnr(images, result).mean())
            figures[f"psnr_mirrored{name}"] = float(_psnr(images.flip(-1), mirrored).mean())
            if self.features:
                pairs = zip(result.split(4), images.split(4), strict=True)
                distances = [perceptual_distance(self.features, *pair) for pair in pairs]
                figures[f"perceptual{name}"] = float(torch.cat(distances).mean())
                figures[f"sharpness{name}"] = float(_gradient_energy(result) / _gradient_energy(images))
            rows += [images[::2], result[::2]]
        return figures, to_image(_sheet(rows))


class _UNetTask:
    def __init__(
        self, unet: UNet2DModel, vae: AutoencoderDC, latents: dict[str, Tensor], config: PretrainConfig
    ) -> None:
        self.model = unet
        self.vae = vae
        self.latents = latents
        self.config = config
        self.captured = len(latents["train"])
        self.train = torch.cat([latents[name] for name in ("train", "train_photographs") if name in latents])
        self.scheduler = DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            prediction_type=config.unet.prediction_type,
        )

    def draw(self, step: int) -> list[Any]:
        unet = self.config.unet
        rng = np.random.default_rng((unet.seed, step))
        size = unet.batch_size
        last = self.scheduler.config.num_train_timesteps
        indices = rng.integers(self.captured, size=size)
        low = rng.random(size) < unet.low_share
        timesteps = np.where(low, rng.integers(unet.t_low, size=size), rng.integers(unet.t_low, last, size=size))
        mirrored = rng.random(size) < 0.5
        if self.captured < len(self.train):
            photographs = rng.integers(self.captured, len(self.train), size=size)
            indices = np.where(rng.random(size) < self.config.photograph_share, photographs, indices)
        return list(zip(indices.tolist(), timesteps.tolist(), mirrored.tolist(), strict=True))

    def collate(self, samples: list[Any]) -> dict[str, Tensor]:
        indices, timesteps, mirrored = zip(*samples, strict=True)
        latents = self.train[list(indices)].float()
        flip = torch.tensor(mirrored).view(-1, 1, 1, 1)
        return {"latents": torch.where(flip, latents.flip(-1), latents), "timesteps": torch.tensor(timesteps)}

    def loss(self, model: torch.nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        latents, timesteps = batch["latents"], batch["timesteps"]
        errors = self._errors(model, latents, torch.randn_like(latents), timesteps)
        if self.config.unet.snr_gamma is not None:
            alpha = self.scheduler.alphas_cumprod.to(errors)[timesteps]
            snr = alpha / (1 - alpha)
            # What the network's error has to be multiplied with to be that of the clean latent.
            to_clean = snr if self.config.unet.prediction_type == "epsilon" else snr + 1
            errors = errors * snr.clamp(max=self.config.unet.snr_gamma) / to_clean
        return errors.mean(), {}

    @torch.no_grad()
    def validate(self, model: torch.nn.Module) -> tuple[dict[str, float], Image.Image]:
        """The loss over fixed noise and timesteps, and four held-out pictures inverted to t* and sampled back.

        Of photographs too, where there are any: their figures end in `_photographs`.
        """
        device = next(model.parameters()).device
        # A prior freezes its networks; this one is still being trained, so a copy goes in.
        prior = LatentPrior(self.vae, copy.deepcopy(model), self.scheduler)
        t_star = prior.default_t_star()
        grid = inversion_grid(t_star, 15)
        figures: dict[str, float] = {}
        rows: list[Tensor] = []
        for kind in ("", "_photographs"):
            if f"val{kind}" not in self.latents:
                continue
            latents = self.latents[f"val{kind}"].float()
            generator = torch.Generator().manual_seed(0)
            noise = torch.randn(latents.shape, generator=generator)
            timesteps = torch.arange(len(latents)) * 37 % self.config.unet.t_low
            losses = []
            with autocast(device):
                for chunk in torch.arange(len(latents)).split(32):
                    tensors = (latents[chunk], noise[chunk], timesteps[chunk])
                    losses.append(self._errors(model, *(tensor.to(device) for tensor in tensors)))
            clean = latents[:: max(1, len(latents) // 4)][:4].to(device)
            inverted = invert(prior, clean, grid)
            back = sample(prior, inverted.latents, grid)
            mean = inverted.mean / math.sqrt(prior.alphas_cumprod[t_star])
            decoded = [prior.decode(item) for item in (clean, mean, back)]
            figures[f"loss{kind}"] = float(torch.cat(losses).mean())
            figures[f"round_trip_psnr{kind}"] = float(_psnr(decoded[0], decoded[2]).mean())
            rows += decoded
        noise = torch.randn(clean.shape, generator=generator).to(device)
        rows.append(prior.decode(sample(prior, noise, inversion_grid(999, 25))))
        return figures, to_image(_sheet(rows))

    def _errors(self, model: torch.nn.Module, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Each sample's mean squared error, (B,), in what the network predicts of the noised latents."""
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        target = noise
        if self.config.unet.prediction_type == "v_prediction":
            target = self.scheduler.get_velocity(latents, noise, timesteps)
        predicted = model(noisy, timesteps).sample.float()
        return F.mse_loss(predicted, target, reduction="none").mean(dim=(1, 2, 3))

    def prior(self) -> LatentPrior:
        return LatentPrior(self.vae, self.model, self.scheduler)


@torch.no_grad()
def _encode_once(
    vae: AutoencoderDC, pictures: Pictures, photographs: Pictures | None, config: PretrainConfig, factor: float | None
) -> dict[str, Tensor]:
    """The latents of all training pictures and of some held-out ones, and of crops of photographs, kept on disk.

    Where `factor` is None, sets the autoencoder's scaling factor so that the latents of the training pictures have
    deviation 1; photographs, which are beside them, have no say in it.
    """
    device = choose_device()
    vae = vae.to(device).eval()
    path = config.out / "unet" / "latents.safetensors"
    digest = _digest(vae, pictures, photographs, config.image_size, factor)
    if path.exists():
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            if metadata.get("made_of") == digest:
                vae.register_to_config(scaling_factor=float(metadata["scaling_factor"]))
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    logger.info("encoding %d pictures", len(pictures["train"]))
    size = config.image_size
    latents = {
        "train": _latents(vae, (_load(picture, size) for picture in pictures["train"])),
        "val": _latents(vae, (_load(picture, size) for picture in pictures["val"][::4])),
    }
    if photographs:
        logger.info("encoding %d crops of each of %d photographs", CROPS_PER_PHOTOGRAPH, len(photographs["train"]))
        latents["train_photographs"] = _latents(vae, _crops_of(photographs["train"], size))
        latents["val_photographs"] = _latents(vae, _crops_of(photographs["val"], size))
    if factor is None:
        factor = 1 / float(latents["train"].std())
    latents = {name: (tensor * factor).half().contiguous() for name, tensor in latents.items()}
    vae.register_to_config(scaling_factor=factor)
    with atomic_path(path) as temporary:
        save_file(latents, temporary, metadata={"made_of": digest, "scaling_factor": repr(factor)})
    return latents


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
        image = _open(photograph)
        rng = np.random.default_rng(index)
        for _ in range(CROPS_PER_PHOTOGRAPH):
            yield to_tensor(_square(image, rng.uniform(0.5, 1), rng.random(), rng.random(), size))


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


def _initial_prior(config: PretrainConfig) -> LatentPrior | None:
    if config.init is None:
        return None
    prior = LatentPrior.from_pretrained(model_folder(config.init), dtype=torch.float32).requires_grad_(True)
    if not isinstance(prior.vae, AutoencoderDC) or not isinstance(prior.unet, UNet2DModel):
        kinds = f"{type(prior.vae).__name__} and {type(prior.unet).__name__}"
        raise SidestepError(
            f"init={config.init}: holds {kinds}; pretraining goes on from AutoencoderDC and UNet2DModel only"
        )
    for name, found, wanted in (
        ("image_size", prior.image_size, config.image_size),
        ("unet.prediction_type", prior.prediction_type, config.unet.prediction_type),
    ):
        if found != wanted:
            raise SidestepError(f"init={config.init}: has {name} {found}, not {wanted}; set {name}={found} to go on")
    return prior


def _open(picture: Picture) -> Image.Image:
    return load_image(picture) if isinstance(picture, Path) else picture.load()


def _load(picture: Picture, size: int) -> Tensor:
    return to_tensor(resize_and_crop(_open(picture), size))


def _load_batch(pictures: list[Picture], size: int) -> Tensor:
    return torch.stack([_load(picture, size) for picture in pictures])


def _square(image: Image.Image, share: float, down: float, across: float, size: int) -> Image.Image:
    """A square part of the image, `share` of its shorter side wide, scaled to `size` pixels.

    Args:
        down, across: where, from 0 for the upper left corner to 1 for the lower right.
    """
    side = share * min(image.size)
    # From a whole pixel on: a part that is not scaled is then not interpolated either.
    left, top = (
        min(int(place * (length - side + 1)), int(length - side))
        for place, length in ((across, image.width), (down, image.height))
    )
    return image.resize((size, size), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))


def _some(pictures: list[Picture]) -> list[Picture]:
    """At most 16 of them, spread evenly."""
    return pictures[:: max(1, len(pictures) // 16)][:16]


def _sheet(rows: list[Tensor]) -> Tensor:
    """Batches of pictures (B, 3, H, W), each as a row, one below the other, as (3, ..., ...); short rows end white."""
    longest = max(len(images) for images in rows)
    padded = [F.pad(images.float().cpu(), (0, 0) * 3 + (0, longest - len(images)), value=1.0) for images in rows]
    return torch.cat([torch.cat(list(images), dim=-1) for images in padded], dim=1)


def _gradient_energy(images: Tensor) -> Tensor:
    """Mean square of the differences between neighbouring pixels, down and across."""
    return images.diff(dim=-1).square().mean() + images.diff(dim=-2).square().mean()


def _psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture in dB, for values in [-1, 1]."""
    return 10 * torch.log10(4 / F.mse_loss(a, b, reduction="none").mean(dim=(1, 2, 3)).clamp(min=1e-10))
