"""How the well-known latent diffusion models are built, in the words of diffusers' configs.

Single files of weights do not say it. The sizes are the published ones; a test holds the parameters' counts against
them.
"""

from typing import Any

_SCHEDULE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000}

_VAE = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
    "scaling_factor": 0.18215,
}

_UNET = {
    "sample_size": 64,
    "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}

_CLIP_L = {
    "model_type": "clip_text_model",
    "architectures": ["CLIPTextModel"],
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
    "bos_token_id": 49406,
    "eos_token_id": 49407,
}

# ViT-H without its last layer: Stable Diffusion 2 takes the last but one's states.
_OPENCLIP_H = _CLIP_L | {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "projection_dim": 512,
    "hidden_act": "gelu",
    "pad_token_id": 0,
}

_UNET_2 = _UNET | {
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
}

LAYOUTS: dict[str, dict[str, dict[str, Any]]] = {
    "Stable Diffusion 1": {
        "unet": _UNET,
        "vae": _VAE,
        "scheduler": _SCHEDULE | {"prediction_type": "epsilon"},
        "text_encoder": _CLIP_L,
    },
    "Stable Diffusion 2, 512 pixels": {
        "unet": _UNET_2,
        "vae": _VAE,
        "scheduler": _SCHEDULE | {"prediction_type": "epsilon"},
        "text_encoder": _OPENCLIP_H,
    },
    "Stable Diffusion 2, 768 pixels": {
        "unet": _UNET_2 | {"sample_size": 96, "upcast_attention": True},
        "vae": _VAE,
        "scheduler": _SCHEDULE | {"prediction_type": "v_prediction"},
        "text_encoder": _OPENCLIP_H,
    },
    "Stable Diffusion XL": {
        "unet": _UNET
        | {
            "sample_size": 128,
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "block_out_channels": [320, 640, 1280],
            "transformer_layers_per_block": [1, 2, 10],
            "cross_attention_dim": 2048,
            "attention_head_dim": [5, 10, 20],
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        "vae": _VAE | {"scaling_factor": 0.13025, "force_upcast": True},
        "scheduler": _SCHEDULE | {"prediction_type": "epsilon"},
    },
}
