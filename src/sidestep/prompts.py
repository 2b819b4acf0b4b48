"""What a prompt tells the U-Net: embeddings, how CLIP's encoders make them, and the empty prompt's, stored."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from sidestep.devices import execution_device

# Text encoders and tokenizers, pairs that read a prompt one beside the other.
Readers = Sequence[tuple[Any, Any]]


@dataclass(frozen=True)
class PromptEmbeds:
    """B prompts as a U-Net takes them.

    Attributes:
        tokens: (B, L, D), what cross-attention looks at.
        pooled: (B, P), each prompt as one vector; None where the U-Net takes none (only SDXL's does).
    """

    tokens: Tensor
    pooled: Tensor | None = None

    def __getitem__(self, rows: slice) -> "PromptEmbeds":
        return PromptEmbeds(self.tokens[rows], None if self.pooled is None else self.pooled[rows])

    def to(self, *place: Any) -> "PromptEmbeds":
        """The same on another device or in another precision, as `torch.Tensor.to`."""
        return PromptEmbeds(self.tokens.to(*place), None if self.pooled is None else self.pooled.to(*place))

    def expand(self, batch: int) -> "PromptEmbeds":
        """One prompt for each of `batch` latents; as many prompts stay as they are."""
        pooled = None if self.pooled is None else self.pooled.expand(batch, -1)
        return PromptEmbeds(self.tokens.expand(batch, -1, -1), pooled)

    @staticmethod
    def cat(parts: "Sequence[PromptEmbeds]") -> "PromptEmbeds":
        """One batch after the other."""
        pooled = [part.pooled for part in parts if part.pooled is not None]
        return PromptEmbeds(torch.cat([part.tokens for part in parts]), torch.cat(pooled) if pooled else None)


class EmptyPrompt(ModelMixin, ConfigMixin):
    """The embedding of the empty prompt as a part of a prior, saved and loaded like a network.

    With it a prior needs no text encoder; and SDXL's, which is zeros, is not what its encoders make of "".
    """

    @register_to_config
    def __init__(self, length: int, width: int, pooled_width: int | None = None) -> None:
        """Zeros: (1, length, width), and (1, pooled_width) where the U-Net takes a pooled embedding."""
        super().__init__()
        self.register_buffer("tokens", torch.zeros(1, length, width))
        self.register_buffer("pooled", None if pooled_width is None else torch.zeros(1, pooled_width))

    @classmethod
    def holding(cls, embeds: PromptEmbeds) -> "EmptyPrompt":
        """The part that holds the embedding of one prompt."""
        part = cls(*embeds.tokens.shape[1:], None if embeds.pooled is None else embeds.pooled.shape[1])
        part.tokens = embeds.tokens.float().cpu().contiguous()
        part.pooled = None if embeds.pooled is None else embeds.pooled.float().cpu().contiguous()
        return part

    @property
    def embeds(self) -> PromptEmbeds:
        """The embedding, batch 1, float32."""
        return PromptEmbeds(self.tokens, self.pooled).to(torch.float32)


def encode_prompts(prompts: Sequence[str], readers: Readers) -> PromptEmbeds:
    """What one or two text encoders make of prompts, float32.

    One (Stable Diffusion 1 and 2): its last hidden states. Two (SDXL): the last but one of each, side by side, and the
    second's projection of the whole prompt. A prompt longer than an encoder reads is cut, with a warning.
    """
    tokens, pooled = [], None
    for encoder, tokenizer in readers:
        limit = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
        text = tokenizer(list(prompts), padding="max_length", max_length=limit, truncation=True, return_tensors="pt")
        if encoder is readers[0][0]:
            _warn_of_cuts(prompts, tokenizer, limit)
        output = encoder(text.input_ids.to(execution_device(encoder)), output_hidden_states=len(readers) > 1)
        if len(readers) == 1:
            return PromptEmbeds(output[0].float())
        tokens.append(output.hidden_states[-2].float())
        pooled = output[0].float()
    return PromptEmbeds(torch.cat(tokens, dim=-1), pooled)


def _warn_of_cuts(prompts: Sequence[str], tokenizer: Any, limit: int) -> None:
    room = limit - tokenizer.num_special_tokens_to_add()
    for prompt in prompts:
        tokens = tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids
        if len(tokens) > room:
            lost = tokenizer.decode(tokens[room:])
            warnings.warn(f"the prompt has {len(tokens)} tokens, {room} are read; not read: {lost!r}", stacklevel=2)
