"""Miniatures of published latent diffusion models, with random weights, as those lie on disks.

Configs are those of the hub's repositories, with smaller numbers and with the keys that these have, not those that
today's diffusers would write.
"""

import json
import string
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet2DModel, VQModel
from safetensors.torch import save_file

from sidestep.prior import LatentPrior

transformers = pytest.importorskip("transformers")

KINDS = ("sd15", "sd21-base", "sd21", "sdxl")
VOCABULARY = [
    "!",
    *string.ascii_lowercase,
    *(f"{letter}</w>" for letter in string.ascii_lowercase),
    "ab</w>",
    "<|startoftext|>",
    "<|endoftext|>",
]
START, END = len(VOCABULARY) - 2, len(VOCABULARY) - 1
CLIP, OPENCLIP, OPENCLIP_2 = 16, 24, 32  # widths of the text encoders
POOLED = 20

_SD_SCHEDULE = {
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
SCHEDULERS = {
    "sd15": _SD_SCHEDULE | {"_class_name": "PNDMScheduler"},
    "sd21-base": _SD_SCHEDULE | {"_class_name": "PNDMScheduler", "prediction_type": "epsilon"},
    "sd21": _SD_SCHEDULE | {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"},
    "sdxl": _SD_SCHEDULE
    | {
        "_class_name": "EulerDiscreteScheduler",
        "interpolation_type": "linear",
        "prediction_type": "epsilon",
        "sample_max_value": 1.0,
        "timestep_spacing": "leading",
        "use_karras_sigmas": False,
    },
    "ldm": {
        "_class_name": "DDIMScheduler",
        "_diffusers_version": "0.0.4",
        "beta_end": 0.0195,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.0015,
        "clip_sample": False,
        "num_train_timesteps": 1000,
        "timestep_values": None,
        "trained_betas": None,
    },
}

_UNET = {
    "_class_name": "UNet2DConditionModel",
    "act_fn": "silu",
    "attention_head_dim": 2,
    "block_out_channels": [32, 64],
    "center_input_sample": False,
    "cross_attention_dim": CLIP,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 1,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 8,
    "out_channels": 4,
    "sample_size": 8,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}
_UNET_2 = _UNET | {"attention_head_dim": [1, 2], "cross_attention_dim": OPENCLIP, "use_linear_projection": True}
UNETS = {
    "sd15": _UNET,
    "sd21-base": _UNET_2,
    "sd21": _UNET_2 | {"sample_size": 12, "upcast_attention": True},
    "sdxl": _UNET
    | {
        "addition_embed_type": "text_time",
        "addition_embed_type_num_heads": 64,
        "addition_time_embed_dim": 8,
        "attention_head_dim": [1, 2],
        "cross_attention_dim": CLIP + OPENCLIP_2,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "layers_per_block": 2,
        "projection_class_embeddings_input_dim": POOLED + 6 * 8,
        "sample_size": 16,
        "transformer_layers_per_block": [1, 2],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "use_linear_projection": True,
    },
    "ldm": {
        "_class_name": "UNet2DModel",
        "act_fn": "silu",
        "attention_head_dim": 8,
        "block_out_channels": [32, 32],
        "center_input_sample": False,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": 3,
        "layers_per_block": 1,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-06,
        "norm_num_groups": 8,
        "out_channels": 3,
        "sample_size": 8,
        "time_embedding_type": "positional",
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    },
}

_VAE = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [8, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "out_channels": 3,
    "sample_size": 512,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
}
VAES = {
    "sd15": _VAE,
    "sd21-base": _VAE | {"sample_size": 768},
    "sd21": _VAE | {"sample_size": 768},
    "sdxl": _VAE | {"sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True},
    "ldm": _VAE | {"_class_name": "VQModel", "latent_channels": 3, "num_vq_embeddings": 32, "sample_size": 256},
}

# The ids are those of the published configs, which no token has.
_TEXT = {
    "architectures": ["CLIPTextModel"],
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "dropout": 0.0,
    "eos_token_id": 2,
    "hidden_act": "quick_gelu",
    "hidden_size": CLIP,
    "intermediate_size": 32,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "pad_token_id": 1,
    "projection_dim": CLIP,
    "torch_dtype": "float32",
    "transformers_version": "4.22.0.dev0",
    "vocab_size": len(VOCABULARY),
}
_TEXT_2 = _TEXT | {"hidden_act": "gelu", "hidden_size": OPENCLIP, "projection_dim": 512}
_BIG_G = _TEXT | {
    "architectures": ["CLIPTextModelWithProjection"],
    "hidden_act": "gelu",
    "hidden_size": OPENCLIP_2,
    "projection_dim": POOLED,
}
TEXTS: dict[str, dict[str, dict[str, Any]]] = {
    "sd15": {"": _TEXT},
    "sd21-base": {"": _TEXT_2},
    "sd21": {"": _TEXT_2},
    "sdxl": {"": _TEXT, "_2": _BIG_G},
    "ldm": {},
}
CLASSES = {"sd15": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline", "ldm": "LDMPipeline"}


def load(path: Path | str, dtype: torch.dtype = torch.float32, **options: Any) -> LatentPrior:
    return LatentPrior.from_pretrained(path, "cpu", dtype, **options)


def noise_like(prior: LatentPrior, batch: int = 2) -> torch.Tensor:
    """Latents of a prior, the same ones every time."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, prior.latent_channels, prior.latent_size, prior.latent_size, generator=generator)


def networks(kind: str) -> dict[str, torch.nn.Module]:
    """The networks of a model by the names of its subfolders, always the same for a kind."""
    torch.manual_seed(KINDS.index(kind) if kind in KINDS else 9)
    made: dict[str, torch.nn.Module] = {}
    vae, unet = (VQModel, UNet2DModel) if kind == "ldm" else (AutoencoderKL, UNet2DConditionModel)
    made["vqvae" if kind == "ldm" else "vae"] = vae.from_config(VAES[kind])
    made["unet"] = unet.from_config(UNETS[kind])
    for suffix, config in TEXTS[kind].items():
        network = getattr(transformers, config["architectures"][0])
        made[f"text_encoder{suffix}"] = network(transformers.CLIPTextConfig(**config)).eval()
    return made


def write_folder(folder: Path, kind: str, fp16: bool = False) -> Path:
    """A model in diffusers' layout; with its weights a second time, in half precision, where asked."""
    index: dict[str, Any] = {"_class_name": CLASSES.get(kind, CLASSES["sd15"]), "_diffusers_version": "0.6.0"}
    if kind == "sdxl":
        index["force_zeros_for_empty_prompt"] = True
    configs = {"vqvae" if kind == "ldm" else "vae": VAES[kind], "unet": UNETS[kind]}
    configs |= {f"text_encoder{suffix}": config for suffix, config in TEXTS[kind].items()}
    for name, network in networks(kind).items():
        path = folder / name
        path.mkdir(parents=True)
        config = configs[name] | {"_name_or_path": f"./models/{kind}/{name}"}
        (path / "config.json").write_text(json.dumps(config))
        stem, weights = "diffusion_pytorch_model", network.state_dict()
        if "text" in name:
            stem, weights = "model", _published_text(weights)
            index[name] = ["transformers", config["architectures"][0]]
        else:
            index[name] = ["diffusers", config["_class_name"]]
        save_file(weights, path / f"{stem}.safetensors", metadata={"format": "pt"})
        if fp16:
            half = {key: weight.half() if weight.is_floating_point() else weight for key, weight in weights.items()}
            save_file(half, path / f"{stem}.fp16.safetensors", metadata={"format": "pt"})
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULERS[kind]))
    index["scheduler"] = ["diffusers", SCHEDULERS[kind]["_class_name"]]
    for suffix in TEXTS[kind]:
        write_tokenizer(folder / f"tokenizer{suffix}", "!" if kind.startswith("sd2") or suffix else "<|endoftext|>")
        index[f"tokenizer{suffix}"] = ["transformers", "CLIPTokenizer"]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def write_tokenizer(folder: Path, padding: str) -> None:
    """A tokenizer's four files. Stable Diffusion 2's pads with "!" by one of them, with the last token by another."""
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(VOCABULARY)}))
    (folder / "merges.txt").write_text("#version: 0.2\na b</w>\n")
    ends = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    special = {
        key: {"content": word, "lstrip": False, "normalized": True, "rstrip": False} for key, word in ends.items()
    }
    (folder / "special_tokens_map.json").write_text(json.dumps({**special, "pad_token": padding}))
    typed = {key: {"__type": "AddedToken", "single_word": False, **token} for key, token in special.items()}
    config = {"add_prefix_space": False, "do_lower_case": True, "errors": "replace", "model_max_length": 77}
    config |= {"pad_token": "<|endoftext|>", "tokenizer_class": "CLIPTokenizer", **typed}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def compvis_weights(kind: str) -> dict[str, torch.Tensor]:
    """The same model's weights under the names that CompVis's and Stability's code have for them."""
    parts = networks(kind)
    weights = {f"model.diffusion_model.{key}": value for key, value in compvis_unet(parts["unet"]).items()}
    weights |= {f"first_stage_model.{key}": value for key, value in compvis_vae(parts["vae"]).items()}
    text = parts["text_encoder"].state_dict()
    if kind == "sd15":
        prefix = "cond_stage_model.transformer."
        weights |= {prefix + key: value for key, value in _published_text(text).items()}
    elif kind == "sdxl":
        prefix = "conditioner.embedders.0.transformer."
        weights |= {prefix + key: value for key, value in _published_text(text).items()}
        second = _openclip(parts["text_encoder_2"].state_dict())
        weights |= {f"conditioner.embedders.1.model.{key}": value for key, value in second.items()}
        weights["conditioner.embedders.1.model.logit_scale"] = torch.tensor(4.6)
    else:
        # The 24th layer is there too, and not used.
        last = {key.replace("layers.1.", "layers.23."): value + 1 for key, value in text.items() if "layers.1." in key}
        second = _openclip({**text, **last})
        second["text_projection"] = torch.randn(OPENCLIP, OPENCLIP)
        weights |= {f"cond_stage_model.model.{key}": value for key, value in second.items()}
        weights["cond_stage_model.model.logit_scale"] = torch.tensor(4.6)
    # What training leaves in such files.
    weights["betas"] = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    return {key: value.clone().contiguous() for key, value in weights.items()}


def _published_text(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As transformers wrote them before version 5.6, with positions that are no weights."""
    named = {key if key.startswith("text_") else f"text_model.{key}": value for key, value in weights.items()}
    return {**named, "text_model.embeddings.position_ids": torch.arange(77)[None]}


def _renamed(key: str, names: dict[str, str]) -> str:
    for theirs, ours in names.items():
        key = key.replace(theirs, ours)
    return key


def compvis_unet(unet: Any) -> dict[str, torch.Tensor]:
    """A U-Net's weights under CompVis's names, without the prefix that they have in a file."""
    layers = unet.config.layers_per_block
    resnet = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1"}
    resnet |= {"norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
    plain = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"}
    plain |= {"add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}
    plain |= {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}
    found = {}
    for key, value in unet.state_dict().items():
        side, *rest = key.split(".")
        if side in ("down_blocks", "up_blocks"):
            block, kind, index, *tail = rest
            into = "input_blocks" if side == "down_blocks" else "output_blocks"
            first = 1 + int(block) * (layers + 1) if side == "down_blocks" else int(block) * (layers + 1)
            if kind == "resnets":
                name = _renamed(f"{into}.{first + int(index)}.0.{'.'.join(tail)}", resnet)
            elif kind == "attentions":
                name = f"{into}.{first + int(index)}.1.{'.'.join(tail)}"
            elif kind == "downsamplers":
                name = f"{into}.{first + layers}.0.op.{tail[-1]}"
            else:
                crossed = "CrossAttn" in unet.config.up_block_types[int(block)]
                name = f"{into}.{first + layers}.{2 if crossed else 1}.conv.{tail[-1]}"
        elif side == "mid_block":
            kind, index, *tail = rest
            place = 1 if kind == "attentions" else 2 * int(index)
            name = _renamed(f"middle_block.{place}.{'.'.join(tail)}", resnet if kind == "resnets" else {})
        else:
            name = _renamed(key, plain)
        found[name] = value
    return found


def compvis_vae(vae: Any) -> dict[str, torch.Tensor]:
    """An AutoencoderKL's weights, likewise."""
    levels = len(vae.config.block_out_channels)
    attention = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
    found = {}
    for key, value in vae.state_dict().items():
        if ".mid_block.attentions.0." in key:
            name = _renamed(key, {"mid_block.attentions.0": "mid.attn_1", **attention})
            value = value[:, :, None, None] if value.ndim == 2 else value
        elif ".mid_block.resnets." in key:
            name = _renamed(key, {"mid_block.resnets.0": "mid.block_1", "mid_block.resnets.1": "mid.block_2"})
        else:
            name = key
            for level in range(levels):
                name = name.replace(f"up_blocks.{level}.", f"up.{levels - 1 - level}.")
            names = {"down_blocks": "down", "resnets": "block", "downsamplers.0": "downsample"}
            name = _renamed(name, {**names, "upsamplers.0": "upsample", "conv_norm_out": "norm_out"})
        found[name.replace("conv_shortcut", "nin_shortcut")] = value
    return found


def _openclip(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    plain = {"embeddings.token_embedding.weight": "token_embedding.weight"}
    plain |= {"embeddings.position_embedding.weight": "positional_embedding", "final_layer_norm": "ln_final"}
    plain |= {"encoder.layers": "transformer.resblocks", "layer_norm1": "ln_1", "layer_norm2": "ln_2"}
    plain |= {"mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj", "self_attn.out_proj": "attn.out_proj"}
    weights = {key.removeprefix("text_model."): value for key, value in weights.items()}
    found = {}
    for key, value in weights.items():
        if "q_proj" in key:
            joined = torch.cat([weights[key.replace("q_proj", name)] for name in ("q_proj", "k_proj", "v_proj")])
            name = _renamed(key.replace("self_attn.q_proj.", "attn.in_proj_"), plain)
            found[name] = joined
        elif key == "text_projection.weight":
            found["text_projection"] = value.T
        elif "k_proj" not in key and "v_proj" not in key:
            found[_renamed(key, plain)] = value
    return found
