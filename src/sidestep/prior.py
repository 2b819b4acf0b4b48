"""The frozen latent diffusion model that everything else stands on: encode, decode, predict the noise."""

import hashlib
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderTiny,
    DDPMScheduler,
    ModelMixin,
    UNet2DConditionModel,
    UNet2DModel,
)
from safetensors import SafetensorError
from torch import Tensor

from sidestep.devices import choose_device, execution_device, network_dtype
from sidestep.errors import SidestepError
from sidestep.files import atomic_path

AUTOENCODERS: dict[str, Any] = {c.__name__: c for c in (AutoencoderKL, AutoencoderTiny, AutoencoderDC)}
UNETS: dict[str, Any] = {c.__name__: c for c in (UNet2DModel, UNet2DConditionModel)}

# The subfolders of a prior in diffusers' layout; the last two only where it takes prompts.
PARTS = ("vae", "unet", "scheduler", "text_encoder", "tokenizer")

# All that is read of a scheduler's config: no clipping, no thresholding, no offset, no spacing.
SCHEDULE_FIELDS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
)

# alphas_cumprod of Stable Diffusion's schedule at the paper's t* = 600 (0.16078; at 601 it is 0.15982).
ALPHA_AT_T_STAR = 0.1608

NO_TEXT = (
    "this prior has no text encoder, so it takes no prompt; leave it out, or use a model trained on a prior that has "
    "one (Stable Diffusion 1.4, 1.5, 2.1: docs/text.md)"
)

# Settings that change what a network computes without changing the shape of any weight.
FINGERPRINT_FIELDS = (
    "act_fn",
    "attention_head_dim",
    "center_input_sample",
    "flip_sin_to_cos",
    "freq_shift",
    "norm_eps",
    "norm_num_groups",
    "num_attention_heads",
    "sample_size",
    "scaling_factor",
    "shift_factor",
    "time_embedding_type",
)


class LatentPrior(torch.nn.Module):
    """A frozen latent diffusion model made of diffusers' own networks.

    The autoencoder may be AutoencoderKL, AutoencoderTiny or AutoencoderDC, the network UNet2DModel or
    UNet2DConditionModel, the prediction epsilon or v. Latents are float32 (float64 where the caller's are): each
    network's input is cast to that network's own precision and its output back.

    Attributes:
        scheduler: a DDPMScheduler that holds the betas and the prediction type, and clips nothing.
        alphas_cumprod: (T,) float64 on the CPU, for T training timesteps.
        num_train_timesteps: T.
        prediction_type: "epsilon" or "v_prediction".
        latent_channels: C of a (C, latent_size, latent_size) latent.
        latent_size: height and width of a latent.
        image_size: height and width of a picture in pixels.
        scale: image_size / latent_size.
        needs_prompt: whether the U-Net attends to a prompt, and so whether one can be given.
    """

    def __init__(
        self,
        vae: torch.nn.Module,
        unet: torch.nn.Module,
        scheduler: Any,
        text_encoder: torch.nn.Module | None = None,
        tokenizer: Any = None,
    ) -> None:
        """Args:
            vae, unet: diffusers models of the classes named above.
            scheduler: a diffusers scheduler or its config; only its betas and its prediction type are read.
            text_encoder, tokenizer: of transformers; needed where the U-Net has cross-attention to a prompt.

        Raises:
            SidestepError: if a class, the prediction type or the schedule is not supported, or if the parts do not
                fit together.
        """
        super().__init__()
        self.vae: Any = vae
        self.unet: Any = unet
        self.text_encoder: Any = text_encoder
        self.tokenizer = tokenizer
        self.scheduler = _read_schedule(scheduler)
        self.prediction_type: str = self.scheduler.config.prediction_type
        self.alphas_cumprod = (1 - self.scheduler.betas.double()).cumprod(0)
        self.num_train_timesteps = len(self.alphas_cumprod)
        self.latent_channels, self.latent_size, self.scale = _fit(self.vae, self.unet)
        self.image_size = self.latent_size * self.scale
        self.needs_prompt = _needs_prompt(unet)
        if self.needs_prompt and (text_encoder is None or tokenizer is None):
            # Zeros in place of the empty prompt's embedding would run, and quietly be another network.
            raise SidestepError(
                "the U-Net has cross-attention to a prompt but the prior has no text encoder and tokenizer; "
                "add text_encoder/ and tokenizer/"
            )
        self._empty_prompt: Tensor | None = None
        self._fingerprint: str | None = None
        self.requires_grad_(False)
        super().train(False)

    def train(self, mode: bool = True) -> "LatentPrior":
        """Does nothing: a prior is frozen, so that a parent's train() does not wake its dropout."""
        return self

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        *,
        variant: str | None = None,
        **hub: Any,
    ) -> "LatentPrior":
        """Loads vae/, unet/, scheduler/ and, where the U-Net needs them, text_encoder/ and tokenizer/.

        Args:
            path: a folder in diffusers' layout, or the id of such a model on the hub.
            device: where to run; the best device present where None.
            dtype: precision of the networks; `network_dtype(device)` where None.
            variant: of the weights' files, such as "fp16".
            hub: `revision`, `cache_dir`, `local_files_only`, `token`, as in diffusers.

        Raises:
            SidestepError: if a part is missing, unreadable, not in safetensors, or not supported.
        """
        place = choose_device(None if device is None else str(device))
        folder = str(path)
        if not Path(path).is_dir() and (folder.count("/") != 1 or folder.startswith((".", "/"))):
            raise SidestepError(f"{path}: no such folder; give a folder in diffusers' layout or a model id on the hub")
        vae = _load(AUTOENCODERS, folder, "vae", variant, hub)
        unet = _load(UNETS, folder, "unet", variant, hub)
        try:
            schedule = DDPMScheduler.load_config(folder, subfolder="scheduler", **hub)
        except (OSError, ValueError) as error:
            raise _unreadable(folder, "scheduler", error) from error
        text_encoder, tokenizer = None, None
        if _needs_prompt(unet):
            text_encoder, tokenizer = _load_text(folder, variant, hub)
        prior = cls(vae, unet, schedule, text_encoder, tokenizer)
        prior.fingerprint()  # before the weights lose bits to `dtype`
        return prior.to(device=place, dtype=dtype or network_dtype(place))

    def save_pretrained(self, path: str | Path) -> None:
        """Writes the folder that `from_pretrained` reads, weights in the precision they are held in.

        Other things in the folder stay.
        """
        for name in PARTS:
            part = getattr(self, name)
            if part is not None:
                forget_path(part)
                with atomic_path(Path(path) / name) as temporary:
                    part.save_pretrained(temporary)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Pictures to latents: the mode of the autoencoder's posterior (where it has one), shifted and scaled.

        Args:
            images: (B, 3, image_size, image_size) in [-1, 1].

        Returns:
            (B, C, latent_size, latent_size), float32.

        Raises:
            SidestepError: if the pictures have another shape.
        """
        wanted = (3, self.image_size, self.image_size)
        if images.ndim != 4 or tuple(images.shape[1:]) != wanted:
            raise SidestepError(f"this prior encodes pictures of shape {wanted}, not {tuple(images.shape[1:])}")
        encoded = self.vae.encode(images.to(execution_device(self.vae), self.vae.dtype))
        vae = _plain(self.vae)
        if isinstance(vae, AutoencoderKL):
            latents = encoded.latent_dist.mode()
        elif isinstance(vae, AutoencoderTiny):
            latents = encoded.latents
        else:
            latents = encoded.latent
        shift, factor = self._vae_scaling()
        return (latents.float() - shift) * factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, latent_size, latent_size) to pictures (B, 3, image_size, image_size) clipped to [-1, 1]."""
        self._check_latents(latents)
        shift, factor = self._vae_scaling()
        unscaled = latents / factor + shift
        images = self.vae.decode(unscaled.to(execution_device(self.vae), self.vae.dtype)).sample
        return images.float().clamp(-1, 1)

    @torch.no_grad()
    def predict_noise(
        self,
        latents: Tensor,
        timestep: int,
        prompt_embeds: Tensor | None = None,
        negative_embeds: Tensor | None = None,
        guidance: float = 1.0,
    ) -> Tensor:
        """The noise in `latents`, eps = eps_theta(x, s).

        A v-predicting network's answer becomes eps = sqrt(a_s) v + sqrt(1 - a_s) x, with a at the timestep s that
        the network was asked at. One pass where there is no prompt, or where guidance is 1 or less, which turns it off
        as in diffusers; else two in one batch: eps = eps_negative + guidance (eps_prompt - eps_negative).

        Args:
            latents: (B, C, latent_size, latent_size).
            timestep: s, in 0 .. num_train_timesteps - 1.
            prompt_embeds: (1 or B, L, D) of `encode_prompt`; the empty prompt where None.
            negative_embeds: (1 or B, L, D), what guidance leads away from; the empty prompt where None.
            guidance: scale of classifier-free guidance; without a prompt it has nothing to act on.

        Returns:
            eps, shaped like `latents`, float32 (float64 for float64 latents).

        Raises:
            SidestepError: if the latents or the timestep do not fit, or a prompt meets a prior without text.
        """
        self._check_latents(latents)
        if not 0 <= timestep < self.num_train_timesteps:
            raise SidestepError(f"timestep {timestep} is outside this prior's 0 .. {self.num_train_timesteps - 1}")
        if prompt_embeds is not None and guidance > 1.0:
            negative = self._empty() if negative_embeds is None else negative_embeds
            # The empty prompt's embedding is kept, and may be from before the networks were moved.
            negative = negative.to(prompt_embeds.device)
            both = torch.cat([_expand(negative, len(latents)), _expand(prompt_embeds, len(latents))])
            output = self._run_unet(torch.cat([latents, latents]), timestep, both)
            away, towards = output.chunk(2)
            output = away + guidance * (towards - away)
        else:
            output = self._run_unet(latents, timestep, prompt_embeds)
        if self.prediction_type == "epsilon":
            return output
        # v is linear in the network's output, so guiding v and then converting equals guiding eps.
        alpha = float(self.alphas_cumprod[timestep])
        return math.sqrt(alpha) * output + math.sqrt(1 - alpha) * latents

    @torch.no_grad()
    def encode_prompt(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings (B, L, D), float32, of B prompts; "" is the empty prompt.

        A prompt longer than the text encoder reads (75 tokens in Stable Diffusion) is cut there, with a warning.

        Raises:
            SidestepError: if this prior takes no prompt.
        """
        self.check_text()
        limit = min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)
        tokens = self.tokenizer(
            list(prompts), padding="max_length", max_length=limit, truncation=True, return_tensors="pt"
        )
        self._warn_of_cuts(prompts, limit)
        return self.text_encoder(tokens.input_ids.to(execution_device(self.text_encoder)))[0].float()

    def check_text(self) -> None:
        """Refuses a prior that takes no prompt, before any work is done for one.

        Raises:
            SidestepError: if this prior has no text encoder.
        """
        if not self.needs_prompt:
            raise SidestepError(NO_TEXT)

    def default_t_star(self) -> int:
        """The timestep as noisy as Stable Diffusion's 600: alphas_cumprod nearest 0.1608. Exactly 600 for SD."""
        return int((self.alphas_cumprod - ALPHA_AT_T_STAR).abs().argmin())

    def fingerprint(self) -> str:
        """sha256 (hex) of what inverted latents depend on: the autoencoder's encoder, the U-Net and the schedule.

        Not of the decoder: a better one may take its place, and what was trained on the latents stays valid.

        Weights enter as bfloat16, the coarsest precision they are run in, so that the same model loaded (or saved
        again) as float32, bfloat16 or, if stored in half precision, float16 keeps its fingerprint. Computed once:
        a prior is frozen.
        """
        if self._fingerprint is None:
            schedule = [self.scheduler.config[key] for key in SCHEDULE_FIELDS]
            digest = hashlib.sha256(json.dumps([schedule, self.prediction_type]).encode())
            vae = _plain(self.vae)
            for network in (vae, _plain(self.unet)):
                settings = {key: network.config.get(key) for key in FINGERPRINT_FIELDS}
                digest.update(json.dumps([type(network).__name__, settings], sort_keys=True).encode())
                for key, weight in sorted(network.state_dict().items()):
                    if network is vae and key.startswith(("decoder.", "post_quant_conv.")):
                        continue
                    digest.update(f"{key} {tuple(weight.shape)}".encode())
                    half = weight.detach().to(torch.bfloat16).cpu().contiguous()
                    digest.update(half.view(torch.uint8).numpy().data if half.ndim else str(half.item()).encode())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def _vae_scaling(self) -> tuple[float, float]:
        """(shift, factor): latent = (code - shift) * factor. AutoencoderTiny's code comes scaled, its factor is 1."""
        config = self.vae.config
        return config.get("shift_factor") or 0.0, config.get("scaling_factor") or 1.0

    def _check_latents(self, latents: Tensor) -> None:
        wanted = (self.latent_channels, self.latent_size, self.latent_size)
        if latents.ndim != 4 or tuple(latents.shape[1:]) != wanted:
            raise SidestepError(f"this prior works on latents of shape {wanted}, not {tuple(latents.shape[1:])}")

    def _empty(self) -> Tensor:
        if self._empty_prompt is None:
            self._empty_prompt = self.encode_prompt([""])
        return self._empty_prompt

    def _warn_of_cuts(self, prompts: Sequence[str], limit: int) -> None:
        room = limit - self.tokenizer.num_special_tokens_to_add()
        for prompt in prompts:
            tokens = self.tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids
            if len(tokens) > room:
                lost = self.tokenizer.decode(tokens[room:])
                warnings.warn(f"the prompt has {len(tokens)} tokens, {room} are read; not read: {lost!r}", stacklevel=2)

    def _run_unet(self, latents: Tensor, timestep: int, embeds: Tensor | None) -> Tensor:
        if embeds is not None:
            self.check_text()
        inputs = latents.to(execution_device(self.unet), self.unet.dtype)
        if isinstance(_plain(self.unet), UNet2DConditionModel):
            if embeds is None and self.needs_prompt:
                embeds = self._empty()
            states = None if embeds is None else _expand(embeds, len(latents)).to(inputs)
            output = self.unet(inputs, timestep, encoder_hidden_states=states).sample
        else:
            output = self.unet(inputs, timestep).sample
        return output.to(latents.device, torch.promote_types(latents.dtype, torch.float32))


def forget_path(part: Any) -> None:
    """Takes where a network was loaded from out of its config: a path on this machine, of no use on another."""
    if isinstance(part, ModelMixin) and "_name_or_path" in part.config:
        part.register_to_config(_name_or_path="")


def _expand(embeds: Tensor, batch: int) -> Tensor:
    return embeds.expand(batch, -1, -1)


def _read_schedule(scheduler: Any) -> DDPMScheduler:
    """The betas and the prediction type of a scheduler or its config, and nothing else of it."""
    config: Mapping[str, Any] = getattr(scheduler, "config", scheduler)
    if config.get("beta_schedule") is None and config.get("trained_betas") is None:
        name = config.get("_class_name", type(scheduler).__name__)
        raise SidestepError(f"scheduler {name} has no betas; Sidestep needs a DDPM-like noise schedule")
    prediction_type = config.get("prediction_type", "epsilon")
    if prediction_type not in ("epsilon", "v_prediction"):
        raise SidestepError(f"prediction type {prediction_type!r} is not supported; use epsilon or v_prediction")
    fields = {key: config[key] for key in SCHEDULE_FIELDS if key in config}
    if fields.get("trained_betas") is not None:
        fields["trained_betas"] = [float(beta) for beta in fields["trained_betas"]]
        fields["num_train_timesteps"] = len(fields["trained_betas"])
    try:
        return DDPMScheduler(**fields, prediction_type=prediction_type, clip_sample=False)
    except NotImplementedError as error:
        raise SidestepError(f"beta schedule {config.get('beta_schedule')!r} is not known to diffusers") from error


def _plain(network: Any) -> Any:
    """The network itself where it came from torch.compile, which wraps it in a class of its own."""
    return getattr(network, "_orig_mod", network)


def _needs_prompt(unet: Any) -> bool:
    """Whether any block attends to a prompt."""
    blocks = [unet.config.get(key) for key in ("down_block_types", "mid_block_type", "up_block_types")]
    return isinstance(_plain(unet), UNet2DConditionModel) and "CrossAttn" in str(blocks)


def _fit(vae: Any, unet: Any) -> tuple[int, int, int]:
    """(latent channels, latent size, pixels per latent); refuses parts that do not belong together."""
    vae, unet = _plain(vae), _plain(unet)
    if type(vae).__name__ not in AUTOENCODERS:
        raise SidestepError(f"autoencoder {type(vae).__name__} is not supported; use one of {', '.join(AUTOENCODERS)}")
    if type(unet).__name__ not in UNETS:
        raise SidestepError(f"network {type(unet).__name__} is not supported; use one of {', '.join(UNETS)}")
    channels = vae.config.latent_channels
    if unet.config.in_channels != channels or unet.config.out_channels != channels:
        raise SidestepError(
            f"the autoencoder's latents have {channels} channels but the U-Net takes {unet.config.in_channels} "
            f"and gives {unet.config.out_channels}; they do not belong together"
        )
    for extra in ("num_class_embeds", "class_embed_type", "addition_embed_type", "encoder_hid_dim_type"):
        if unet.config.get(extra) is not None:
            raise SidestepError(f"the U-Net is conditioned by {extra}={unet.config[extra]!r}, which is not supported")
    size = unet.config.sample_size
    height, width = size if isinstance(size, list | tuple) else (size, size)
    divisor = 2 ** (len(unet.config.block_out_channels) - 1)
    if not isinstance(height, int) or height != width or height % divisor:
        raise SidestepError(f"the U-Net's sample_size is {size}; it must be one number divisible by {divisor}")
    stages = vae.config.get("encoder_block_out_channels") or vae.config.block_out_channels
    return channels, height, 2 ** (len(stages) - 1)


def _load(classes: Mapping[str, Any], folder: str, name: str, variant: str | None, hub: Mapping[str, Any]) -> Any:
    """One network of a diffusers folder, its class read from its own config.json, float32, from safetensors only."""
    try:
        class_name = next(iter(classes.values())).load_config(folder, subfolder=name, **hub).get("_class_name")
        if class_name not in classes:
            raise SidestepError(f"{folder}/{name}: {class_name} is not supported; use one of {', '.join(classes)}")
        return classes[class_name].from_pretrained(
            folder, subfolder=name, variant=variant, use_safetensors=True, torch_dtype=torch.float32, **hub
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise _unreadable(folder, name, error) from error


def _load_text(folder: str, variant: str | None, hub: Mapping[str, Any]) -> tuple[Any, Any]:
    """(text encoder, tokenizer) of a diffusers folder, by transformers."""
    try:
        import transformers
    except ImportError:
        raise SidestepError("this prior takes prompts; install transformers: pip install 'sidestep[text]'") from None
    try:
        config = transformers.AutoConfig.from_pretrained(
            folder, subfolder="text_encoder", trust_remote_code=False, **hub
        )
        # The class is named there; AutoModel would give T5's whole model where only its encoder is stored.
        encoder_class = getattr(transformers, (config.architectures or ["AutoModel"])[0])
        encoder, found = encoder_class.from_pretrained(
            folder, subfolder="text_encoder", variant=variant, use_safetensors=True, output_loading_info=True, **hub
        )
        if found["missing_keys"]:
            # transformers fills them with random numbers, and says so only in its log.
            raise ValueError(f"{len(found['missing_keys'])} of the text encoder's weights are missing")
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, subfolder="tokenizer", trust_remote_code=False, **hub
        )
        if 2 * len(tokenizer) < config.vocab_size:
            # Where its files are missing, transformers makes one that knows no word. Padding does not double a size.
            raise ValueError(f"the tokenizer knows {len(tokenizer)} tokens, the text encoder {config.vocab_size}")
        return encoder.float(), tokenizer
    except Exception as error:  # the tokenizers library raises nothing narrower
        raise _unreadable(folder, "text_encoder or tokenizer", error) from error


def _unreadable(folder: str, name: str, error: Exception) -> SidestepError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return SidestepError(f"{folder}/{name} cannot be loaded as part of a latent diffusion model: {reason}")
