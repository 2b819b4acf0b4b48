"""The parts of a prior from a folder or a repository of the hub in diffusers' layout."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderTiny,
    DDPMScheduler,
    DiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
)

from sidestep.errors import SidestepError
from sidestep.inputs import leads_out, link_out
from sidestep.models.sums import check_sums
from sidestep.prompts import EmptyPrompt, Readers, encode_prompts

AUTOENCODERS: dict[str, Any] = {c.__name__: c for c in (AutoencoderKL, AutoencoderTiny, AutoencoderDC, VQModel)}
TEXT_PARTS = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
UNETS: dict[str, Any] = {c.__name__: c for c in (UNet2DModel, UNet2DConditionModel)}

# Where neither a folder nor an index tells what a repository holds, it is taken for one of Stable Diffusion's.
USUAL_PARTS = frozenset({"vae", "unet", "scheduler", "text_encoder", "tokenizer"})

# What a config claims is made before any weights are looked at.
_MOST_LAYERS, _MOST_BLOCKS, _MOST_STEPS = 256, 64, 100_000


def load_folder(folder: str, variant: str | None, hub: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """The arguments of `LatentPrior`.

    Args:
        folder: a folder, or the id of a repository on the hub.
        variant: of the weights' files, such as "fp16".
        hub: `revision`, `cache_dir`, `local_files_only`, `token`, as in diffusers.
        dtype: of the autoencoder and the U-Net; the other parts are float32.

    Raises:
        SidestepError: if a part is missing, unreadable, not in safetensors, not what its SHA256SUMS says, or not
            supported.
    """
    _refuse_links_out(folder)
    index = read_index(folder, hub)
    if index.get("requires_aesthetics_score"):
        raise SidestepError(f"{folder}: SDXL's refiner, which only goes on from its base model; use the base model")
    names = _part_names(folder, index)
    parts: dict[str, Any] = {
        # The largest first: while it is loaded, its file takes memory too.
        "unet": _load(UNETS, folder, "unet", variant, hub, dtype),
        "vae": _load(AUTOENCODERS, folder, "vqvae" if "vqvae" in names else "vae", variant, hub, dtype),
        "scheduler": load_schedule(folder, hub),
    }
    unet = parts["unet"]
    if not attends_to_prompt(unet):
        return parts
    if "empty_prompt" in names:
        parts["empty_prompt"] = _load({"EmptyPrompt": EmptyPrompt}, folder, "empty_prompt", variant, hub)
    readers = []
    for suffix in text_suffixes(unet):
        if f"text_encoder{suffix}" in names:
            reader = _load_text(folder, suffix, variant, hub)
            parts[f"text_encoder{suffix}"], parts[f"tokenizer{suffix}"] = reader
            readers.append(reader)
    parts.setdefault("empty_prompt", encoded_empty(unet, index, readers))
    return parts


def attends_to_prompt(unet: Any) -> bool:
    """Whether any block of the network has cross-attention to a prompt."""
    blocks = [unet.config.get(key) for key in ("down_block_types", "mid_block_type", "up_block_types")]
    return unet.config.get("cross_attention_dim") is not None and "CrossAttn" in str(blocks)


def takes_pooled(unet: Any) -> bool:
    """Whether the network is told the prompt as one vector, and sizes, besides (SDXL's is)."""
    return unet.config.get("addition_embed_type") == "text_time"


def text_suffixes(unet: Any) -> tuple[str, ...]:
    """What the names of the network's text encoders end in: one encoder, or two."""
    return ("", "_2") if takes_pooled(unet) else ("",)


@torch.no_grad()
def encoded_empty(unet: Any, index: Mapping[str, Any], readers: Readers) -> EmptyPrompt | None:
    """The empty prompt of an SDXL that was not trained to be told nothing by zeros; None of any other model."""
    if not takes_pooled(unet) or index.get("force_zeros_for_empty_prompt") is not False or len(readers) < 2:
        return None
    return EmptyPrompt.holding(encode_prompts([""], readers))


def load_schedule(folder: str, hub: Mapping[str, Any]) -> dict[str, Any]:
    """The scheduler's config.

    Raises:
        SidestepError: if it is missing or damaged.
    """
    try:
        config: dict[str, Any] = DDPMScheduler.load_config(folder, subfolder="scheduler", **hub)
        steps = config.get("num_train_timesteps", 1000)
        if not isinstance(steps, int) or not 0 < steps <= _MOST_STEPS:
            raise ValueError(f"{steps!r:.40} steps of noise; at most {_MOST_STEPS:,} are read")
    except Exception as error:  # a config of a stranger's fails in many ways
        raise unreadable(f"{folder}/scheduler", error) from error
    return config


def _load_text(folder: str, suffix: str, variant: str | None, hub: Mapping[str, Any]) -> tuple[Any, Any]:
    """(text encoder, tokenizer) of a folder, by transformers, in float32.

    Args:
        suffix: of their names, "" or "_2".

    Raises:
        SidestepError: if they are missing, damaged or not in safetensors, or transformers is not installed.
    """
    transformers = import_transformers()
    name = f"text_encoder{suffix}"
    check_sums(Path(folder) / name)
    try:
        config = transformers.AutoConfig.from_pretrained(folder, subfolder=name, trust_remote_code=False, **hub)
        # The class is named there; AutoModel would give T5's whole model where only its encoder is stored.
        encoder_class = getattr(transformers, (config.architectures or ["AutoModel"])[0], None)
        known = isinstance(encoder_class, type) and issubclass(encoder_class, transformers.PreTrainedModel)
        if encoder_class is None or not known:
            raise ValueError(f"{config.architectures} is no model of transformers")
        encoder, found = encoder_class.from_pretrained(
            folder, subfolder=name, variant=variant, use_safetensors=True, output_loading_info=True, **hub
        )
        if found["missing_keys"]:
            # transformers fills them with random numbers, and says so only in its log.
            raise ValueError(f"{len(found['missing_keys'])} of the text encoder's weights are missing")
    except Exception as error:  # a config of a stranger's fails in many ways
        raise unreadable(f"{folder}/{name}", error) from error
    return encoder.float(), load_tokenizer(folder, suffix, config, hub)


def load_tokenizer(folder: str, suffix: str, config: Any, hub: Mapping[str, Any]) -> Any:
    """The tokenizer of the text encoder that has the config. Not told it, transformers would ask the hub for one.

    Args:
        suffix: of its name, "" or "_2".

    Raises:
        SidestepError: if it is missing or damaged, or knows too few tokens.
    """
    name, transformers = f"tokenizer{suffix}", import_transformers()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, subfolder=name, config=config, trust_remote_code=False, **hub
        )
        if 2 * len(tokenizer) < config.vocab_size:
            # Where its files are missing, transformers makes one that knows no word. Padding does not double a size.
            raise ValueError(f"the tokenizer knows {len(tokenizer)} tokens, the text encoder {config.vocab_size}")
    except Exception as error:  # the tokenizers library raises nothing narrower
        raise unreadable(f"{folder}/{name}", error) from error
    return tokenizer


def import_transformers() -> Any:
    """The library that reads text.

    Raises:
        SidestepError: if it is not installed.
    """
    try:
        import transformers
    except ImportError:
        raise SidestepError("this prior takes prompts; install transformers: pip install 'sidestep[text]'") from None
    return transformers


def unreadable(where: str, error: Exception) -> SidestepError:
    """The error that names a part and, in a line, what a library said of it."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return SidestepError(f"{where} cannot be loaded as part of a latent diffusion model: {reason}")


def _load(
    classes: Mapping[str, Any],
    folder: str,
    name: str,
    variant: str | None,
    hub: Mapping[str, Any],
    dtype: torch.dtype = torch.float32,
) -> Any:
    """One network of a diffusers folder, its class read from its own config.json, from safetensors only."""
    check_sums(Path(folder) / name)
    try:
        config = next(iter(classes.values())).load_config(folder, subfolder=name, **hub)
        refuse_huge(config)
        class_name = config.get("_class_name")
        if class_name not in classes:
            raise SidestepError(f"{folder}/{name}: {class_name} is not supported; use one of {', '.join(classes)}")
        # A VQModel older than the setting was never scaled, and diffusers' default would be wrong for it.
        unscaled = {"scaling_factor": 1.0} if class_name == "VQModel" and "scaling_factor" not in config else {}
        return classes[class_name].from_pretrained(
            folder, subfolder=name, variant=variant, use_safetensors=True, torch_dtype=dtype, **hub, **unscaled
        )
    except SidestepError:
        raise
    except Exception as error:  # a config of a stranger's fails in many ways
        raise unreadable(f"{folder}/{name}", error) from error


def refuse_huge(config: Mapping[str, Any]) -> None:
    """A ValueError where a network's config asks for more blocks or layers than any has, to be made for hours."""
    for key, value in config.items():
        values = value if isinstance(value, list | tuple) else [value]
        most = _MOST_LAYERS if "layers" in key or "depth" in key else None
        if len(values) > _MOST_BLOCKS or (most and any(isinstance(one, int) and one > most for one in values)):
            raise ValueError(f"{key} is {str(value)[:40]}, more than any network has")


def _refuse_links_out(folder: str) -> None:
    """Refuses a model's folder a file of which is a link out of it: where it is handed on, so would that file be.

    Raises:
        SidestepError: naming the file.
    """
    root = Path(folder)
    if not root.is_dir():
        return
    for path in (*root.glob("*"), *root.glob("*/*")):
        if path.is_symlink() and leads_out(path, root):
            raise link_out(path, "the model's folder")


def read_index(folder: str, hub: Mapping[str, Any]) -> dict[str, Any]:
    """model_index.json; empty where there is none."""
    try:
        index: dict[str, Any] = DiffusionPipeline.load_config(folder, **hub)
        return dict(index)
    except Exception:  # there is none, or it is damaged; either way the parts tell themselves
        return {}


def _part_names(folder: str, index: Mapping[str, Any]) -> frozenset[str]:
    """The subfolders there are."""
    if Path(folder).is_dir():
        return frozenset(path.name for path in Path(folder).iterdir() if path.is_dir())
    return frozenset(name for name, part in index.items() if isinstance(part, list) and part[0]) or USUAL_PARTS
