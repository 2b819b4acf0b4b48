"""The parts of a prior from a single .safetensors file in CompVis's layout, as model-sharing sites have them.

Such a file holds weights and hardly a word of how they are put together. That is taken from a folder in diffusers'
layout, or from `LAYOUTS`; diffusers converts the weights. No network is asked unless `config` names the hub.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import create_diffusers_clip_model_from_ldm
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sidestep.errors import SidestepError
from sidestep.prior_folder import (
    attends_to_prompt,
    encoded_empty,
    import_transformers,
    load_schedule,
    load_tokenizer,
    read_index,
    refuse_huge,
    text_suffixes,
    unreadable,
)
from sidestep.prior_layouts import LAYOUTS
from sidestep.prompts import EmptyPrompt, PromptEmbeds

PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")

UNET, AVERAGED = "model.diffusion_model.", "model_ema."
NEEDED = {UNET: "U-Net", "first_stage_model.": "autoencoder"}
TEXT = {"": ("cond_stage_model.", "conditioner.embedders.0."), "_2": ("conditioner.embedders.1.",)}
# Cross-attention of the U-Net's first block that has it: the second dimension is the prompt's width.
PROMPT_WIDTH = tuple(f"{UNET}input_blocks.{i}.1.transformer_blocks.0.attn2.to_k.weight" for i in (1, 4))

# Schedules that are none of DDPM's betas, by the marks that such files carry.
OTHER_SCHEDULES = ("edm_mean", "edm_vpred.sigma_max")


def is_file(path: str) -> bool:
    """Whether a prior's name is that of a single file, there or not."""
    return Path(path).suffix in (".safetensors", *PICKLES) and not Path(path).is_dir()


def load_file(path: str, config: str | None, prediction_type: str | None, hub: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `LatentPrior`, networks in float32.

    Args:
        path: a .safetensors file.
        config: a folder or hub id in diffusers' layout; see `LatentPrior.from_pretrained`.
        prediction_type: what the U-Net predicts, in place of what the file or `config` says.
        hub: `revision`, `cache_dir`, `local_files_only`, `token`, for a `config` on the hub.

    Raises:
        SidestepError: if the file is missing, a pickle, damaged, no whole latent diffusion model, or not one that is
            known; or if nothing says what its U-Net predicts.
    """
    weights, said = _read(path)
    for prefix, part in NEEDED.items():
        if not any(key.startswith(prefix) for key in weights):
            raise SidestepError(f"{path}: holds no {part} ({prefix}*), so it is no whole latent diffusion model")
    if any(mark in weights for mark in OTHER_SCHEDULES):
        raise SidestepError(f"{path}: its noise schedule is EDM's; Sidestep needs a DDPM-like one")
    prediction_type = prediction_type or _marked_prediction(weights, said)
    if config is not None:
        folder = _config_folder(config, hub)
        return _convert(path, weights, folder, prediction_type)
    layout = _layout(path, weights, prediction_type)
    with TemporaryDirectory() as folder:
        for part, settings in layout.items():
            (Path(folder) / part).mkdir()
            name = "scheduler_config.json" if part == "scheduler" else "config.json"
            (Path(folder) / part / name).write_text(json.dumps(settings), encoding="utf-8")
        return _convert(path, weights, folder, prediction_type)


def _config_folder(config: str, hub: Mapping[str, Any]) -> str:
    """The folder of a config, or of what there is of configs and tokenizers in a repository of the hub."""
    if Path(config).is_dir():
        return config
    try:
        found: str = snapshot_download(config, allow_patterns=["model_index.json", "*/*.json", "tokenizer*/*"], **hub)
    except (OSError, ValueError) as error:
        raise unreadable(config, error) from error
    return found


def _convert(path: str, weights: dict[str, Tensor], folder: str, prediction_type: str | None) -> dict[str, Any]:
    """The parts, built as the configs in `folder` say, with its tokenizers if it has them."""
    schedule = load_schedule(folder, {})
    if prediction_type is not None:
        schedule["prediction_type"] = prediction_type
    if "ztsnr" in weights:
        schedule["rescale_betas_zero_snr"] = True
    unet = _network(UNet2DConditionModel, path, weights, folder, "unet")
    parts: dict[str, Any] = {
        "vae": _network(AutoencoderKL, path, weights, folder, "vae"),
        "unet": unet,
        "scheduler": schedule,
    }
    if not attends_to_prompt(unet):
        return parts
    suffixes = text_suffixes(unet)
    reads = all((Path(folder) / f"tokenizer{suffix}").is_dir() for suffix in suffixes)
    if len(suffixes) > 1 and not reads:
        return parts  # SDXL's empty prompt is zeros, so its encoders would be converted for nothing
    readers = []
    for suffix in suffixes:
        if not any(key.startswith(TEXT[suffix]) for key in weights):
            continue
        encoder = _text_encoder(path, weights, folder, f"text_encoder{suffix}")
        if reads:
            reader = encoder, load_tokenizer(folder, suffix, encoder.config, {})
            parts[f"text_encoder{suffix}"], parts[f"tokenizer{suffix}"] = reader
            readers.append(reader)
        else:
            parts["empty_prompt"] = EmptyPrompt.holding(_encode_empty(weights, encoder))
    parts.setdefault("empty_prompt", encoded_empty(unet, read_index(folder, {}), readers))
    return parts


def _read(path: str) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    """(weights, what is said beside them) of a file; the averaged weights of its U-Net where it holds both."""
    file = Path(path)
    if file.suffix in PICKLES:
        raise SidestepError(
            f"{path}: a pickle, which can run code when it is read; docs/priors.md says how to convert it"
        )
    if not file.is_file():
        raise SidestepError(f"{path}: no such file")
    try:
        with safe_open(file, framework="pt") as opened:
            said = opened.metadata() or {}
            weights = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 (it is no dictionary)
    except (SafetensorError, OSError) as error:
        raise SidestepError(f"{path}: damaged, or no .safetensors file ({error}); fetch it again") from None
    for key in [key for key in weights if key.startswith(UNET)]:
        # Averages are named without dots: model_ema.diffusion_modelinput_blocks00weight.
        averaged = weights.pop(AVERAGED + key.removeprefix("model.").replace(".", ""), None)
        if averaged is not None:
            weights[key] = averaged
    return weights, said


def _marked_prediction(weights: Mapping[str, Tensor], said: Mapping[str, str]) -> str | None:
    """What the file itself says that its U-Net predicts: an empty tensor "v_pred", or ModelSpec's metadata."""
    if "v_pred" in weights:
        return "v_prediction"
    named = said.get("modelspec.prediction_type", "")
    return {"v": "v_prediction", "v_prediction": "v_prediction", "epsilon": "epsilon", "eps": "epsilon"}.get(named)


def _layout(path: str, weights: Mapping[str, Tensor], prediction_type: str | None) -> Mapping[str, Any]:
    """How one of the well-known models is built, told by the width of the prompts that it attends to."""
    width = next((weights[key].shape[-1] for key in PROMPT_WIDTH if key in weights), None)
    known = {layout["unet"]["cross_attention_dim"] for layout in LAYOUTS.values()}
    if width not in known:
        raise SidestepError(
            f"{path}: its U-Net is none of Stable Diffusion 1, 2 and XL; name a folder in diffusers' layout that says "
            "how it is built, config=FOLDER (`sidestep prior FILE FOLDER --config FOLDER`)"
        )
    fitting = {
        layout["scheduler"]["prediction_type"]: layout
        for layout in LAYOUTS.values()
        if layout["unet"]["cross_attention_dim"] == width
    }
    if prediction_type is None and len(fitting) > 1:
        raise SidestepError(
            f"{path}: Stable Diffusion 2's 512-pixel model predicts epsilon and its 768-pixel model v, and their files "
            "look alike; say which, prediction_type=... (`sidestep prior FILE FOLDER --prediction-type v_prediction`)"
        )
    return fitting.get(prediction_type or "epsilon") or next(iter(fitting.values()))


def _network(network: Any, path: str, weights: dict[str, Tensor], folder: str, part: str) -> Any:
    """The U-Net or autoencoder, by diffusers."""
    try:
        config = network.load_config(folder, subfolder=part)
        refuse_huge(config)
        named = config.get("_class_name", network.__name__)
        if named != network.__name__:
            raise SidestepError(f"{folder}/{part}: a single file holds a {network.__name__}, not a {named}")
        found = network.from_single_file(
            dict(weights),
            config=folder,
            subfolder=part,
            torch_dtype=torch.float32,
        )
    except NotImplementedError:  # torch's, of weights that the file gave no values
        raise SidestepError(f"{path}: some of the {part}'s weights are missing") from None
    except SidestepError:
        raise
    except Exception as error:  # weights and configs of a stranger's fail in many ways
        raise unreadable(f"{path}: its {part}", error) from error
    return found


def _text_encoder(path: str, weights: dict[str, Tensor], folder: str, part: str) -> Any:
    """A text encoder of CLIP's, by diffusers."""
    transformers = import_transformers()
    network = transformers.CLIPTextModelWithProjection if part.endswith("_2") else transformers.CLIPTextModel
    try:
        found = create_diffusers_clip_model_from_ldm(
            network,
            dict(weights),
            subfolder=part,
            config=folder,
            torch_dtype=torch.float32,
        )
    except Exception as error:  # weights and configs of a stranger's fail in many ways
        raise unreadable(f"{path}: its {part}", error) from error
    if any(weight.is_meta for weight in found.parameters()):
        raise SidestepError(f"{path}: some of the {part}'s weights are missing")
    return found


@torch.no_grad()
def _encode_empty(weights: Mapping[str, Tensor], encoder: Any) -> PromptEmbeds:
    """The empty prompt needs no tokenizer: a token that begins it, one that ends it, and padding.

    They are CLIP's last two tokens. OpenAI's encoder is padded with the last of them, OpenCLIP's with token 0.
    """
    length, last = encoder.config.max_position_embeddings, encoder.config.vocab_size - 1
    openclip = any(key.startswith("cond_stage_model.model.") for key in weights)
    tokens = torch.full((1, length), 0 if openclip else last)
    tokens[0, :2] = torch.tensor([last - 1, last])
    return PromptEmbeds(encoder(tokens)[0].float())
