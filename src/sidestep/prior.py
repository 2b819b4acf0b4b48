"""The frozen latent diffusion model that everything else stands on: encode, decode, predict the noise."""

import hashlib
import json
import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderDC, AutoencoderKL, ModelMixin, UNet2DConditionModel
from torch import Tensor

from sidestep.devices import choose_device, execution_device, hold_in_half, memory_format, network_dtype
from sidestep.errors import SidestepError
from sidestep.files import atomic_path, sweep
from sidestep.models.sums import SUMS, check_sums, write_sums
from sidestep.prior_file import is_file, load_file
from sidestep.prior_folder import TEXT_PARTS, attends_to_prompt, load_folder, takes_pooled, text_suffixes
from sidestep.prior_parts import SCHEDULE_FIELDS, check_widths, latent_shape, plain, pooled_width, read_schedule
from sidestep.prompts import EmptyPrompt, PromptEmbeds, Readers, encode_prompts

# The subfolders of a prior in diffusers' layout; but for the first three only where the U-Net attends to a prompt.
PARTS = ("vae", "unet", "scheduler", *TEXT_PARTS, "empty_prompt")

# alphas_cumprod of Stable Diffusion's schedule at the paper's t* = 600 (0.16078; at 601 it is 0.15982).
ALPHA_AT_T_STAR = 0.1608

NO_TEXT = (
    "this prior has no text encoder, so it takes no prompt; leave it out, or use a model trained on a prior that has "
    "one (Stable Diffusion 1.4, 1.5, 2.1: docs/text.md)"
)
TEXT_LEFT_OUT = (
    "this prior came without its text encoder, so it takes no prompt; leave it out, or load the whole prior "
    "(of a single file with its config: docs/priors.md)"
)
NO_EMPTY_PROMPT = (
    "the U-Net has cross-attention to a prompt but the prior has no text encoder and tokenizer; add text_encoder/ and "
    "tokenizer/, or the embedding of the empty prompt: where they are, `sidestep prior PRIOR FOLDER --no-text` "
    "writes a folder that needs neither"
)

# What an autoencoder on a CPU is given at once: one picture of 512x512, four of 256x256.
CPU_PIXELS = 2**18
# Tokens of a prompt of CLIP's, where no text encoder is there to tell.
PROMPT_LENGTH = 77

# Weights that pictures made of latents depend on, and no latent does.
AFTER_LATENTS = ("decoder.", "post_quant_conv.", "quantize.")

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

    The autoencoder may be AutoencoderKL, AutoencoderTiny, AutoencoderDC or VQModel, the network UNet2DModel or
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
        needs_prompt: whether the U-Net attends to a prompt.
        reads_text: whether a prompt can be given.
    """

    def __init__(
        self,
        vae: torch.nn.Module,
        unet: torch.nn.Module,
        scheduler: Any,
        text_encoder: torch.nn.Module | None = None,
        tokenizer: Any = None,
        text_encoder_2: torch.nn.Module | None = None,
        tokenizer_2: Any = None,
        empty_prompt: EmptyPrompt | None = None,
    ) -> None:
        """Args:
            vae, unet: diffusers models of the classes named above.
            scheduler: a diffusers scheduler or its config; only its betas and its prediction type are read.
            text_encoder, tokenizer: of transformers; needed where the U-Net has cross-attention to a prompt, unless
                `empty_prompt` is given.
            text_encoder_2, tokenizer_2: the second pair, where the U-Net takes a pooled embedding too (SDXL).
            empty_prompt: what the U-Net is given where there is no prompt; what the text encoders make of "" where
                None, and zeros where there are two, as SDXL was trained.

        Raises:
            SidestepError: if a class, the prediction type or the schedule is not supported, or if the parts do not
                fit together.
        """
        super().__init__()
        self.vae: Any = vae
        self.unet: Any = unet
        self.text_encoder: Any = text_encoder
        self.tokenizer = tokenizer
        self.text_encoder_2: Any = text_encoder_2
        self.tokenizer_2 = tokenizer_2
        self.scheduler = read_schedule(scheduler)
        self.prediction_type: str = self.scheduler.config.prediction_type
        self.alphas_cumprod = (1 - self.scheduler.betas.double()).cumprod(0)
        self.num_train_timesteps = len(self.alphas_cumprod)
        self._timesteps = torch.arange(self.num_train_timesteps)
        self.latent_channels, self.latent_size, self.scale = latent_shape(self.vae, self.unet)
        self.image_size = self.latent_size * self.scale
        # Of the photo, of its crop's corner and of the picture that is wanted: what SDXL's U-Net is told.
        self._sizes = torch.tensor([[self.image_size, self.image_size, 0, 0, self.image_size, self.image_size]])
        self.needs_prompt = attends_to_prompt(plain(unet))
        self.reads_text = self.needs_prompt and bool(self._readers())
        self.empty_prompt: EmptyPrompt | None = empty_prompt
        if self.needs_prompt and empty_prompt is None:
            if takes_pooled(plain(unet)):
                self.empty_prompt = self._zeros()
            elif not self.reads_text:
                # Zeros in place of the empty prompt's embedding would run, and quietly be another network.
                raise SidestepError(NO_EMPTY_PROMPT)
        if self.needs_prompt:
            check_widths(unet, self.empty_prompt, [encoder for encoder, _ in self._readers()])
        self._empty_embeds: PromptEmbeds | None = None
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
        config: str | Path | None = None,
        prediction_type: str | None = None,
        **hub: Any,
    ) -> "LatentPrior":
        """Loads a folder or hub repository in diffusers' layout, or a single file in CompVis's.

        Args:
            path: a folder, the id of a repository on the hub, or a .safetensors file.
            device: where to run; the best device present where None.
            dtype: precision of the networks; `network_dtype(device)` where None, and then a CPU may hold a large U-Net
                as `devices.hold_in_half` does. A CPU emulates, slowly, what it does not compute in natively: see
                `devices.compute_in`.
            variant: of the weights' files, such as "fp16".
            config: for a file, a folder or hub id in diffusers' layout that says how its networks are built, and has
                the tokenizers that prompts need; its weights are not read. Where None, the file must be one of Stable
                Diffusion 1, 2 or XL, and the prior takes no prompt.
            prediction_type: "epsilon" or "v_prediction", in place of what is said beside the weights.
            hub: `revision`, `cache_dir`, `local_files_only`, `token`, as in diffusers.

        Raises:
            SidestepError: if a part is missing, unreadable, not in safetensors, or not supported.
        """
        place = choose_device(device)
        held = dtype or network_dtype(place)
        name = str(path)
        if is_file(name):
            parts = load_file(name, None if config is None else str(config), prediction_type, hub)
        elif not Path(path).is_dir() and (name.count("/") != 1 or name.startswith((".", "/"))):
            raise SidestepError(
                f"{path}: no such folder or file; give a folder in diffusers' layout, a model id on the hub, or a "
                ".safetensors checkpoint"
            )
        else:
            if config is not None:
                raise SidestepError(f"{path}: has its own configuration; leave config out, it is for a single file")
            # Rounded to bfloat16 they keep their fingerprint, and no larger copy need be loaded first.
            parts = load_folder(name, variant, hub, held if held == torch.bfloat16 else torch.float32)
            if prediction_type is not None:
                parts["scheduler"]["prediction_type"] = prediction_type
        prior = cls(**parts)
        prior.fingerprint()  # before the weights lose bits to `dtype`
        prior.to(device=place, dtype=held).to(memory_format=memory_format(place))
        if place.type == "cpu" and dtype is None and held == torch.float32:
            hold_in_half(prior.unet)
        return prior

    @property
    def parts(self) -> dict[str, Any]:
        """All that the constructor takes, by name; None where there is none."""
        return {name: getattr(self, name) for name in PARTS}

    def save_pretrained(self, path: str | Path, text: bool = True) -> None:
        """Writes the folder that `from_pretrained` reads, weights in the precision they are held in.

        Other things in the folder stay.

        Args:
            text: with the text encoders. Without, the empty prompt's embedding takes their place: the folder inverts as
                before and has the same fingerprint, but takes no prompt.

        Raises:
            SidestepError: if the folder holds a part that this prior has not, and that would be read with it.
        """
        parts = self.parts
        if not text:
            parts |= dict.fromkeys(TEXT_PARTS)
            if self.needs_prompt:
                parts["empty_prompt"] = EmptyPrompt.holding(self._empty())
        refuse_foreign(path, parts)
        sweep(Path(path), parts)
        for name, part in parts.items():
            if part is not None:
                forget_path(part)
                with atomic_path(Path(path) / name) as temporary:
                    part.save_pretrained(temporary)
                    write_sums(temporary)

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
        self._upcast_vae()
        shift, factor = self._vae_scaling()
        return torch.cat([(self._encode(part) - shift) * factor for part in images.split(self._pictures_at_once())])

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, latent_size, latent_size) to pictures (B, 3, image_size, image_size) clipped to [-1, 1]."""
        self._check_latents(latents)
        self._upcast_vae()
        shift, factor = self._vae_scaling()
        unscaled = (latents / factor + shift).to(execution_device(self.vae), self.vae.dtype)
        parts = unscaled.split(self._pictures_at_once())
        return torch.cat([self.vae.decode(part).sample.float().clamp(-1, 1) for part in parts])

    @torch.no_grad()
    def predict_noise(
        self,
        latents: Tensor,
        timestep: int,
        prompt_embeds: PromptEmbeds | None = None,
        negative_embeds: PromptEmbeds | None = None,
        guidance: float = 1.0,
    ) -> Tensor:
        """The noise in `latents`, eps = eps_theta(x, s).

        A v-predicting network's answer becomes eps = sqrt(a_s) v + sqrt(1 - a_s) x, with a at the timestep s that
        the network was asked at. One pass where there is no prompt, or where guidance is 1 or less, which turns it off
        as in diffusers; else two in one batch: eps = eps_negative + guidance (eps_prompt - eps_negative).

        Args:
            latents: (B, C, latent_size, latent_size).
            timestep: s, in 0 .. num_train_timesteps - 1.
            prompt_embeds: of `encode_prompt`, for 1 or B prompts; the empty prompt where None.
            negative_embeds: likewise, what guidance leads away from; the empty prompt where None.
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
            negative = negative.to(prompt_embeds.tokens.device)
            both = PromptEmbeds.cat([negative.expand(len(latents)), prompt_embeds.expand(len(latents))])
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
    def encode_prompt(self, prompts: Sequence[str]) -> PromptEmbeds:
        """Embeddings, float32, of B prompts; "" is the empty prompt, as it is where there is no prompt.

        A prompt longer than the text encoder reads (75 tokens in Stable Diffusion) is cut there, with a warning.

        Raises:
            SidestepError: if this prior takes no prompt.
        """
        self.check_text()
        embeds = encode_prompts(prompts, self._readers())
        if self.empty_prompt is None or "" not in prompts:
            return embeds
        empty = self._empty().to(embeds.tokens.device)
        return PromptEmbeds.cat([embeds[i : i + 1] if prompt else empty for i, prompt in enumerate(prompts)])

    def check_text(self) -> None:
        """Refuses a prior that takes no prompt, before any work is done for one.

        Raises:
            SidestepError: if this prior has no text encoder.
        """
        if not self.reads_text:
            raise SidestepError(TEXT_LEFT_OUT if self.needs_prompt else NO_TEXT)

    def default_t_star(self) -> int:
        """The timestep as noisy as Stable Diffusion's 600: alphas_cumprod nearest 0.1608. Exactly 600 for SD."""
        return int((self.alphas_cumprod - ALPHA_AT_T_STAR).abs().argmin())

    def fingerprint(self) -> str:
        """sha256 (hex) of what inverted latents depend on: the autoencoder's encoder, the U-Net and the schedule.

        Not of the decoder (nor of a VQModel's codebook): a better one may take its place, and what was trained on the
        latents stays valid. Not of the text encoders either.

        Weights enter as bfloat16, the coarsest precision they are run in, so that the same model loaded (or saved
        again) as float32, bfloat16 or, if stored in half precision, float16 keeps its fingerprint. Computed once:
        a prior is frozen.
        """
        if self._fingerprint is None:
            schedule = [self.scheduler.config[key] for key in SCHEDULE_FIELDS]
            digest = hashlib.sha256(json.dumps([schedule, self.prediction_type]).encode())
            vae = plain(self.vae)
            for network in (vae, plain(self.unet)):
                settings = {key: network.config.get(key) for key in FINGERPRINT_FIELDS}
                if network is vae:
                    settings["sample_size"] = None  # of its training; it encodes pictures of any size
                digest.update(json.dumps([type(network).__name__, settings], sort_keys=True).encode())
                for key, weight in sorted(network.state_dict().items()):
                    if network is vae and key.startswith(AFTER_LATENTS):
                        continue
                    digest.update(f"{key} {tuple(weight.shape)}".encode())
                    half = weight.detach().to(torch.bfloat16).cpu().contiguous()
                    # Flat first, because a contiguous dimension of size 1 may have any stride.
                    digest.update(
                        half.flatten().view(torch.uint8).numpy().data if half.ndim else str(half.item()).encode()
                    )
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

    def _encode(self, images: Tensor) -> Tensor:
        """The autoencoder's own code of pictures, float32."""
        encoded = self.vae.encode(images.to(execution_device(self.vae), self.vae.dtype))
        vae = plain(self.vae)
        if isinstance(vae, AutoencoderKL):
            return encoded.latent_dist.mode().float()
        if isinstance(vae, AutoencoderDC):
            return encoded.latent.float()
        return encoded.latents.float()  # of VQModel not yet quantised, as the U-Net has them

    def _pictures_at_once(self) -> int:
        """How many the autoencoder is given: a CPU gains nothing by more pixels than these, and takes their memory."""
        on_cpu = execution_device(self.vae).type == "cpu"
        return max(1, CPU_PIXELS // self.image_size**2) if on_cpu else sys.maxsize

    def _upcast_vae(self) -> None:
        """From its first use an autoencoder that overflows in float16 stays in float32, as its config asks for."""
        if self.vae.dtype == torch.float16 and plain(self.vae).config.get("force_upcast"):
            self.vae.float()

    def _readers(self) -> Readers:
        """Text encoders with their tokenizers, all that the U-Net needs or none."""
        pairs = [
            (getattr(self, f"text_encoder{suffix}"), getattr(self, f"tokenizer{suffix}"))
            for suffix in text_suffixes(plain(self.unet))
        ]
        return [] if any(part is None for pair in pairs for part in pair) else pairs

    def _zeros(self) -> EmptyPrompt:
        """The empty prompt of SDXL, which was trained to be told nothing by zeros."""
        config = plain(self.unet).config
        lengths = [encoder.config.max_position_embeddings for encoder, _ in self._readers()]
        return EmptyPrompt(min(lengths, default=PROMPT_LENGTH), config.cross_attention_dim, pooled_width(self.unet))

    def _empty(self) -> PromptEmbeds:
        if self.empty_prompt is not None:
            return self.empty_prompt.embeds
        if self._empty_embeds is None:
            self._empty_embeds = self.encode_prompt([""])
        return self._empty_embeds

    def _run_unet(self, latents: Tensor, timestep: int, embeds: PromptEmbeds | None) -> Tensor:
        if embeds is not None and not self.needs_prompt:
            raise SidestepError(NO_TEXT)
        inputs = latents.to(execution_device(self.unet), self.unet.dtype)
        told: dict[str, Any] = {}
        if self.needs_prompt:
            embeds = (self._empty() if embeds is None else embeds).expand(len(latents)).to(inputs)
            told["encoder_hidden_states"] = embeds.tokens
            if embeds.pooled is not None:
                self._sizes = self._sizes.to(inputs)
                told["added_cond_kwargs"] = {
                    "text_embeds": embeds.pooled,
                    "time_ids": self._sizes.expand(len(latents), -1),
                }
        elif isinstance(plain(self.unet), UNet2DConditionModel):
            told["encoder_hidden_states"] = None
        self._timesteps = self._timesteps.to(inputs.device)
        # A tensor that is already there: a number would be copied there each time, and be compiled for each time.
        output = self.unet(inputs, self._timesteps[timestep], **told).sample
        return output.to(latents.device, torch.promote_types(latents.dtype, torch.float32))


def copy_prior(source: str | Path, out: str | Path) -> None:
    """Puts a prior's parts into a model's folder.

    Args:
        source: a folder, whose parts are copied and keep their precision, or one that `save_pretrained` would lay out
            otherwise (SDXL's, VQModel's) or a file, which is loaded, and written in float32.
        out: the folder; other things in it stay.

    Raises:
        SidestepError: if `source` has to be loaded and cannot be, or its weights are not what their SHA256SUMS say.
    """
    source, out = Path(source), Path(out)
    if not is_laid_out(source):
        LatentPrior.from_pretrained(source, "cpu", torch.float32).save_pretrained(out)
        return
    for part in PARTS:
        if (source / part).is_dir():
            with atomic_path(out / part) as temporary:
                check_sums(source / part)
                shutil.copytree(source / part, temporary)
                if not (temporary / SUMS).exists():
                    write_sums(temporary)


def is_laid_out(source: Path) -> bool:
    """Whether `copy_prior` can copy a prior as it is."""
    return (source / "vae").is_dir() and not (source / "text_encoder_2").is_dir()


def refuse_foreign(folder: str | Path, parts: Mapping[str, Any]) -> None:
    """Refuses to write a prior's parts where one that it has not (None) lies, which would be read with them.

    Raises:
        SidestepError: if there is one.
    """
    foreign = [name for name, part in parts.items() if part is None and (Path(folder) / name).is_dir()]
    if foreign:
        raise SidestepError(
            f"{folder}: holds {', '.join(foreign)} of another prior, to be read with this one; name another folder"
        )


def forget_path(part: Any) -> None:
    """Takes where a network was loaded from out of its config: a path on this machine, of no use on another."""
    part = plain(part)
    if isinstance(part, ModelMixin) and "_name_or_path" in part.config:
        part.register_to_config(_name_or_path="")
