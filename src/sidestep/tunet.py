"""TUNet, the translation network (Singh and Subramanyam 2025, section "TUNet architecture").

It maps the inverted mean of the reference view, z_ref,mu, to the target view's, z_tar,mu, at one fixed time t*:

    Down   sees the reference camera   self-attention in the lowest levels
    Mid    sees both cameras           a transformer block with cross-attention (eq. 2)
    Up     sees the target camera      transformer blocks with cross-attention in the lowest levels

Shapes below: B batch, C latent channels, h = w latent size, N tokens of one level, D channels of one level.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention import FeedForward
from diffusers.models.embeddings import TimestepEmbedding, get_timestep_embedding
from safetensors import SafetensorError
from torch import Tensor, nn

from sidestep.cameras import Camera
from sidestep.errors import SidestepError
from sidestep.models.sums import check_sums

RAY = 6  # origin and direction
# Where the cross-attention starts looking, with `attention_init="geometric"`.
FIELD_OF_VIEW = 0.8  # radians, of a common lens, across the shorter side
SPREAD = 0.6  # deviation of the attention about the ray, in tokens: about four tokens share it
DEEPEST = 1.2  # the heads' depths reach from 1 / 1.2 to 1.2


class ViewTokens(NamedTuple):
    """What cross-attention reads on one level's token grid, N = rows * columns tokens."""

    target_rays: Tensor  # r_tar (B, N, 6)
    reference_rays: Tensor  # r_ref (B, N, 6)
    reference_mean: Tensor  # z_ref,mu (B, N, C p p): the p x p patch of the latent at each token


class ResBlock(nn.Module):
    """GroupNorm, SiLU, convolution, + embedding, GroupNorm, SiLU, convolution, + skip.

    `embedding_dim` is the width of [gamma(t) ⊕ e_C ⊕ e_c], or 0 for a block without conditions; `time_dim` is the
    width that Proj maps it to. (B, D_in, rows, columns) and (B, embedding_dim) -> (B, D_out, rows, columns).
    """

    def __init__(self, in_channels: int, out_channels: int, embedding_dim: int, time_dim: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.skip = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()
        if embedding_dim:
            self.proj_combined = nn.Linear(embedding_dim, time_dim)
            self.to_channels = nn.Linear(time_dim, out_channels)

    def forward(self, f: Tensor, embedding: Tensor | None) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(f)))
        if embedding is not None:  # f' = f + Proj_combined[gamma(t) ⊕ e_C ⊕ e_c]
            hidden = hidden + self.to_channels(F.silu(self.proj_combined(embedding)))[:, :, None, None]
        return self.skip(f) + self.conv2(F.silu(self.norm2(hidden)))


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """The paper, eq. 2: softmax(QK' / sqrt(d)) V. (B, N, width), (B, M, width), (B, M, width) -> (B, N, width)."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def to_tokens(f: Tensor) -> Tensor:
    """(B, D, rows, columns) -> (B, N, D)."""
    return f.flatten(2).transpose(1, 2)


def to_map(tokens: Tensor, like: Tensor) -> Tensor:
    """(B, N, D) -> (B, D, rows, columns) of `like`."""
    return tokens.transpose(1, 2).unflatten(2, like.shape[2:])


class SelfAttention(nn.Module):
    """(B, N, D) -> (B, N, D). No biases before the softmax: one on the keys would not change it."""

    def __init__(self, channels: int, head_dim: int) -> None:
        super().__init__()
        self.heads = channels // head_dim
        self.norm = nn.LayerNorm(channels)
        self.to_qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.to_out = nn.Linear(channels, channels)

    def forward(self, f: Tensor) -> Tensor:
        query, key, value = self.to_qkv(self.norm(f)).chunk(3, dim=-1)
        return f + self.to_out(attend(query, key, value, self.heads))


class CrossAttention(nn.Module):
    """The target's tokens (B, N, D) find the reference's by their rays -> (B, N, D)."""

    def __init__(self, channels: int, patch_channels: int, inner_dim: int, head_dim: int) -> None:
        super().__init__()
        self.heads = inner_dim // head_dim
        self.norm = nn.LayerNorm(channels)
        self.w_q = nn.Linear(RAY + channels, inner_dim, bias=False)
        self.w_k = nn.Linear(RAY + patch_channels, inner_dim, bias=False)
        self.w_v = nn.Linear(patch_channels, inner_dim, bias=False)
        self.to_out = nn.Linear(inner_dim, channels)

    @torch.no_grad()
    def look_along_rays(self, rows: int) -> None:
        """Starts W_Q and W_K so that each target token attends to where its ray is seen from the reference.

        At depth z the target's ray (o, d) passes o + z d, which the reference, at its own origin, sees in that
        direction: the logit is (o + z d) · d_ref, bilinear in the rays, times a sharpness that lets a few tokens of a
        grid of `rows` rows through. From small random weights Adam would need tens of thousands of steps to grow it.
        Each head starts at a depth of its own about the subject's, which is 1.
        """
        if self.w_q.weight.is_meta:  # no values: they are about to be loaded
            return
        head_dim = self.w_q.out_features // self.heads
        sharpness = (rows / (SPREAD * FIELD_OF_VIEW)) ** 2  # exp(sharpness cos x) is a Gaussian about the ray
        size = math.sqrt(sharpness * math.sqrt(head_dim))  # eq. 2 divides by sqrt(d)
        for head, depth in enumerate(torch.linspace(-1, 1, self.heads).mul(math.log(DEEPEST)).exp().tolist()):
            axes = size * nn.init.orthogonal_(torch.empty(head_dim, 3, device=self.w_q.weight.device))
            own = slice(head * head_dim, (head + 1) * head_dim)
            self.w_q.weight[own, :RAY] = torch.cat([axes, depth * axes], dim=1)
            self.w_k.weight[own, :RAY] = torch.cat([torch.zeros_like(axes), axes], dim=1)

    def forward(self, f: Tensor, view: ViewTokens) -> Tensor:
        with torch.autocast(f.device.type, enabled=False):  # neighbouring rays differ too little for half precision
            features = self.norm(f).to(view.target_rays)
            query = self.w_q(torch.cat([view.target_rays, features], dim=-1))  # eq. 2: Q = W_Q [r_tar ‖ f_tar]
            key = self.w_k(torch.cat([view.reference_rays, view.reference_mean], dim=-1))  # K = W_K [r_ref ‖ z_ref,mu]
            key = key - key.mean(dim=1, keepdim=True)  # softmax does not see it, and half precision keeps the rest
        value = self.w_v(view.reference_mean)  # V = W_V z_ref,mu
        return f + self.to_out(attend(query, key, value, self.heads))  # f'_tar = f_tar + Attn(Q, K, V)


class TransformerBlock(nn.Module):
    """Self-, cross-attention (width `inner_dim`, 0: none), feed-forward. (B, D, rows, columns) -> the same."""

    def __init__(self, channels: int, patch_channels: int, inner_dim: int, head_dim: int, groups: int) -> None:
        super().__init__()
        self.norm_in = nn.GroupNorm(groups, channels)
        self.proj_in = nn.Linear(channels, channels)
        self.self_attention = SelfAttention(channels, head_dim)
        if inner_dim:
            self.cross_attention = CrossAttention(channels, patch_channels, inner_dim, head_dim)
        self.norm = nn.LayerNorm(channels)
        self.feed_forward = FeedForward(channels, activation_fn="geglu")
        self.proj_out = nn.Linear(channels, channels)

    def forward(self, f: Tensor, view: ViewTokens | None) -> Tensor:
        tokens = self.self_attention(self.proj_in(to_tokens(self.norm_in(f))))
        if view is not None:
            tokens = self.cross_attention(tokens, view)
        tokens = tokens + self.feed_forward(self.norm(tokens))
        return f + to_map(self.proj_out(tokens), f)


class Down(nn.Module):
    """Down_i: one level of the encoder. Returns its features and every one of them that Up_i joins to its own."""

    def __init__(self, res_blocks: list[ResBlock], attentions: list[SelfAttention], channels: int, last: bool):
        super().__init__()
        self.res_blocks = nn.ModuleList(res_blocks)
        self.attentions = nn.ModuleList(attentions)
        self.downsample = None if last else nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, f: Tensor, embedding: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        skips = []
        for index, res_block in enumerate(self.res_blocks):
            f = res_block(f, embedding)
            if self.attentions:
                f = to_map(self.attentions[index](to_tokens(f)), f)
            skips.append(f)
        if self.downsample is not None:
            f = self.downsample(f)
            skips.append(f)
        return f, skips


class Mid(nn.Module):
    """The bottleneck: residual block, transformer block, residual block."""

    def __init__(self, res_blocks: list[ResBlock], transformer: TransformerBlock) -> None:
        super().__init__()
        self.res_blocks = nn.ModuleList(res_blocks)
        self.transformer = transformer

    def forward(self, f: Tensor, embedding: Tensor | None, view: ViewTokens | None) -> Tensor:
        f = self.res_blocks[0](f, embedding)
        f = self.transformer(f, view)
        return self.res_blocks[1](f, embedding)


class Up(nn.Module):
    """Up_i: one level of the decoder. `skips` are the encoder's features, one a residual block, lowest first.

    A level without transformer blocks may have one cross-attention, `entry`, before its residual blocks.
    """

    def __init__(
        self,
        res_blocks: list[ResBlock],
        transformers: list[TransformerBlock],
        channels: int,
        last: bool,
        entry: CrossAttention | None = None,
    ) -> None:
        super().__init__()
        self.entry = entry
        self.res_blocks = nn.ModuleList(res_blocks)
        self.transformers = nn.ModuleList(transformers)
        self.upsample = None if last else nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, f: Tensor, skips: list[Tensor], embedding: Tensor | None, view: ViewTokens | None) -> Tensor:
        if self.entry is not None and view is not None:
            f = to_map(self.entry(to_tokens(f), view), f)
        for index, (res_block, skip) in enumerate(zip(self.res_blocks, skips, strict=True)):
            f = res_block(torch.cat([f, skip], dim=1), embedding)
            if self.transformers:
                f = self.transformers[index](f, view)
        if self.upsample is not None:
            f = self.upsample(F.interpolate(f, scale_factor=2.0, mode="nearest"))
        return f


class TUNet(ModelMixin, ConfigMixin):
    """Translates the reference view's inverted mean to the target view's.

    Args:
        in_channels, sample_size: C and h = w of the latent; h a multiple of 2 ** (levels - 1).
        block_out_channels: D of each level, full size first; multiples of `norm_groups`, of `head_dim` where attended.
        down_layers, up_layers: residual blocks of a level; one more going up, where each takes one encoder feature.
        attention_levels: how many of the lowest levels have self-attention going down and transformer blocks going up.
        head_dim, cross_attention_dim: width of one attention head, and of all heads of the cross-attention.
        time_embed_dim, camera_dim, category_dim: widths of gamma(t) (and of every Proj's output), e_C and e_c.
        num_categories, categories: how many, and their names in the order of their indices; either may be left out.
        norm_groups: groups of every GroupNorm.
        conditioning: "blocks": the embeddings enter every residual block. "concat" (the paper's ablation): e_C and e_c
            are joined to the input as extra channels; the blocks have no embedding, and t, being fixed, has none.
        cross_attention: False for the paper's ablation "no cross-attention".
        finest_attention: one more cross-attention at the latent's own resolution, before the last level's residual
            blocks. What it brings over from the reference needs no unpacking of patches, so it is learned first.
        attention_init: "random" as the paper leaves it, or "geometric": see `CrossAttention.look_along_rays`.
        normalise: divide the input by sqrt(alpha_star) and multiply the output back, so that the network sees what
            the mean estimates, clean latents at the prior's own scale.
        t_star, alpha_star: the timestep the means were inverted to and the prior's alphas_cumprod there (SD 1.5's).
        inversion_steps, inversion_timestep, inversion_start, prior_fingerprint: how and by which prior; TUNet fits
            only such means.
        elevation: the training set's median camera elevation, degrees.

    Raises:
        SidestepError: if the arguments do not fit each other.
    """

    _supports_gradient_checkpointing = True
    PAPER: ClassVar[dict[str, Any]] = dict(
        in_channels=4, sample_size=64, block_out_channels=(128, 256, 512, 512), head_dim=64, cross_attention_dim=768
    )
    # For 32 x 32 latents on a CPU: token grids of 16 x 16 and 8 x 8, as fine as the paper's.
    SMALL: ClassVar[dict[str, Any]] = dict(
        in_channels=4,
        sample_size=32,
        block_out_channels=(64, 128, 192),
        finest_attention=True,
        cross_attention_dim=256,
        time_embed_dim=256,
        attention_init="geometric",
    )

    @register_to_config
    def __init__(
        self,
        in_channels: int = 4,
        sample_size: int = 64,
        block_out_channels: tuple[int, ...] = (128, 256, 512, 512),
        down_layers: int = 2,
        up_layers: int = 3,
        attention_levels: int = 2,
        head_dim: int = 64,
        cross_attention_dim: int = 768,
        time_embed_dim: int = 512,
        camera_dim: int = 64,
        category_dim: int = 64,
        num_categories: int | None = None,
        categories: tuple[str, ...] = (),
        norm_groups: int = 32,
        conditioning: Literal["blocks", "concat"] = "blocks",
        cross_attention: bool = True,
        finest_attention: bool = False,
        attention_init: Literal["random", "geometric"] = "random",
        normalise: bool = True,
        alpha_star: float = 0.1608,
        t_star: int = 600,
        inversion_steps: int = 30,
        inversion_timestep: Literal["next", "current"] = "next",
        inversion_start: int = 0,
        prior_fingerprint: str = "",
        elevation: float = 0.0,
    ) -> None:
        super().__init__()
        channels, levels = tuple(block_out_channels), len(block_out_channels)
        num_categories = len(categories) if num_categories is None else num_categories
        attended = (*channels[levels - max(attention_levels, 1) :], cross_attention_dim)  # the lowest in any case: Mid
        for fault, found in {
            f"sample_size {sample_size} is not divisible by {2 ** (levels - 1)}": sample_size % 2 ** (levels - 1),
            f"up_layers is {up_layers}, not down_layers + 1": up_layers != down_layers + 1,
            f"attention_levels is {attention_levels} of {levels}": not 0 <= attention_levels <= levels,
            f"channels {channels} do not split into {norm_groups} groups": any(d % norm_groups for d in channels),
            f"attention widths {attended} do not split into heads of {head_dim}": any(d % head_dim for d in attended),
            f"{len(categories)} names for {num_categories} categories": len(categories) not in (0, num_categories),
            f"conditioning {conditioning!r} is not 'blocks' or 'concat'": conditioning not in ("blocks", "concat"),
            f"attention_init {attention_init!r} is not 'random' or 'geometric'": attention_init
            not in ("random", "geometric"),
            f"alpha_star {alpha_star} is not in (0, 1]": not 0 < alpha_star <= 1,
        }.items():
            if found:
                raise SidestepError(f"TUNet cannot be built: {fault}")

        in_blocks = conditioning == "blocks"
        self.register_to_config(num_categories=num_categories)
        self.camera_embedding = nn.Linear(16, camera_dim)  # of (fx, fy, cx, cy; R; t)
        self.category_embedding = nn.Embedding(num_categories + 1, category_dim)  # the last is "unknown"
        if in_blocks:
            self.time_embedding = TimestepEmbedding(channels[0], time_embed_dim)
        joined = 0 if in_blocks else 2 * camera_dim + category_dim
        one_camera = time_embed_dim + camera_dim + category_dim if in_blocks else 0
        two_cameras = one_camera + camera_dim if in_blocks else 0
        inner_dim = cross_attention_dim if cross_attention else 0

        def res_block(d_in: int, d_out: int, embedding_dim: int = one_camera) -> ResBlock:
            return ResBlock(d_in, d_out, embedding_dim, time_embed_dim, norm_groups)

        def started(attention: CrossAttention, level: int) -> CrossAttention:
            if attention_init == "geometric":
                attention.look_along_rays(sample_size // 2**level)
            return attention

        def transformer(level: int) -> TransformerBlock:
            block = TransformerBlock(channels[level], in_channels * 4**level, inner_dim, head_dim, norm_groups)
            if inner_dim:
                started(block.cross_attention, level)
            return block

        self.conv_in = nn.Conv2d(in_channels + joined, channels[0], 3, padding=1)
        self.downs = nn.ModuleList()
        width, skip_widths = channels[0], [channels[0]]
        for level, d in enumerate(channels):
            last, attends = level == levels - 1, level >= levels - attention_levels
            res_blocks = [res_block(d if layer else width, d) for layer in range(down_layers)]
            attentions = [SelfAttention(d, head_dim) for _ in range(down_layers)] if attends else []
            self.downs.append(Down(res_blocks, attentions, d, last))
            skip_widths += [d] * (down_layers + (not last))
            width = d
        self.mid = Mid([res_block(width, width, two_cameras) for _ in range(2)], transformer(levels - 1))
        self.ups = nn.ModuleList()
        for level, d in reversed(list(enumerate(channels))):
            res_blocks = [res_block((d if layer else width) + skip_widths.pop(), d) for layer in range(up_layers)]
            transformers = [transformer(level) for _ in range(up_layers)] if level >= levels - attention_levels else []
            entry = None
            if level == 0 and finest_attention and inner_dim and not transformers:
                entry = started(CrossAttention(width, in_channels, inner_dim, head_dim), level)
            width = d
            self.ups.append(Up(res_blocks, transformers, d, level == 0, entry))
        self.norm_out = nn.GroupNorm(norm_groups, width)
        self.conv_out = nn.Conv2d(width, in_channels, 3, padding=1)
        self.gradient_checkpointing = False

    def to(self, *args: Any, **kwargs: Any) -> "TUNet":
        """As torch's, but the weights stay float32 at least: in half, rays and cameras lose too much. Use autocast."""
        wanted = torch.empty(1, 1, 1, 1, dtype=self.dtype).to(*args, **kwargs)
        return super().to(wanted.device) if wanted.dtype.itemsize < 4 else super().to(*args, **kwargs)

    def category_ids(self, names: Sequence[str | None]) -> Tensor:
        """Indices (B,) for `forward`, int64, on the CPU; None is -1, unknown.

        Raises:
            SidestepError: if TUNet was not trained with a category of that name.
        """
        known = {None: -1} | {name: index for index, name in enumerate(self.config.categories)}
        for name in set(names) - set(known):
            choices = ", ".join(self.config.categories) or "none"
            raise SidestepError(f"category {name!r} is not one that TUNet knows ({choices}); leave it out")
        return torch.tensor([known[name] for name in names], dtype=torch.int64)

    def forward(self, mean: Tensor, reference: Camera, target: Camera, category: Tensor | None = None) -> Tensor:
        """The target view's inverted mean, z_tar,mu (B, C, h, w), scaled like `mean` and in its dtype.

        Args:
            mean: z_ref,mu (B, C, h, w), at the scale that the inversion gives it.
            reference, target: B cameras each, in the reference's frame and at the scene's scale, of any pixel size.
            category: (B,) int64, 0 to num_categories - 1, or -1 for unknown; None: all unknown.

        Raises:
            SidestepError: if the latent or the cameras have another shape than TUNet's.
        """
        self._check_shapes(mean, reference, target)
        scale = math.sqrt(self.config.alpha_star) if self.config.normalise else 1.0
        z = (mean / scale).to(self.dtype)
        e_ref, e_tar, e_c = self._camera(reference, z), self._camera(target, z), self._category(category, z)
        views = self._views(z, reference, target)

        if self.config.conditioning == "blocks":
            f, gamma = z, self._time(z).expand(len(mean), -1)
            down, up = (torch.cat([gamma, e_camera, e_c], dim=1) for e_camera in (e_ref, e_tar))
            mid = torch.cat([gamma, e_ref, e_tar, e_c], dim=1)
        else:
            joined = torch.cat([e_ref, e_tar, e_c], dim=1)[:, :, None, None].expand(-1, -1, *z.shape[2:])
            f, down, mid, up = torch.cat([z, joined], dim=1), None, None, None
        f = self.conv_in(f)
        skips = [f]
        for block in self.downs:
            f, features = self._run(block, f, down)  # f_i = Down_i(f_{i-1}; t, C_ref, c)
            skips += features
        f = self._run(self.mid, f, mid, views.get(len(self.downs) - 1))  # f_mid = Mid(f_enc; t, C_ref, C_tar, c)
        for level, block in zip(reversed(range(len(self.ups))), self.ups, strict=True):
            taken = [skips.pop() for _ in range(self.config.up_layers)]
            f = self._run(block, f, taken, up, views.get(level))  # f_i = Up_i(f_{i-1}; t, C_tar, c)
        return self.conv_out(F.silu(self.norm_out(f))).to(mean.dtype) * scale

    def _run(self, block: nn.Module, *inputs: Any) -> Any:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(block, *inputs)
        return block(*inputs)

    def _time(self, z: Tensor) -> Tensor:
        """gamma(t*), (1, time_embed_dim)."""
        t_star = torch.tensor([self.config.t_star], device=z.device)
        return self.time_embedding(get_timestep_embedding(t_star, self.config.block_out_channels[0]).to(z.dtype))

    def _camera(self, camera: Camera, z: Tensor) -> Tensor:
        """e_C, (B, camera_dim). Outside autocast: half precision would round small turns away."""
        with torch.autocast(z.device.type, enabled=False):
            return self.camera_embedding(camera.vector().to(z))

    def _category(self, category: Tensor | None, z: Tensor) -> Tensor:
        """e_c, (B, category_dim)."""
        category = torch.full((len(z),), -1) if category is None else category
        index = torch.where(category < 0, self.config.num_categories, category)
        return self.category_embedding(index.to(z.device))

    def _views(self, z: Tensor, reference: Camera, target: Camera) -> dict[int, ViewTokens]:
        """The tokens of each level that has cross-attention (the middle block works on the lowest level's)."""
        if not self.config.cross_attention:
            return {}
        levels, views = len(self.downs), {}
        attending = set(range(levels - max(self.config.attention_levels, 1), levels))
        for level in sorted(attending | ({0} if self.config.finest_attention else set())):
            patches = F.pixel_unshuffle(z, 2**level)  # one patch a token, so that token grid and ray grid agree
            rows, columns = patches.shape[2:]
            with torch.autocast(z.device.type, enabled=False):
                r_tar, r_ref = (torch.cat(c.rays(rows, columns), dim=-1).flatten(1, 2) for c in (target, reference))
            views[level] = ViewTokens(r_tar.to(z), r_ref.to(z), to_tokens(patches))
        return views

    def _check_shapes(self, mean: Tensor, reference: Camera, target: Camera) -> None:
        batch, size = len(mean), self.config.sample_size
        if mean.shape != (batch, self.config.in_channels, size, size):
            raise SidestepError(
                f"TUNet was built for latents of shape (batch, {self.config.in_channels}, {size}, {size}), not "
                f"{tuple(mean.shape)}; use it with the prior that it was trained on"
            )
        if not reference.batch_shape == target.batch_shape == (batch,):
            shapes = f"{tuple(reference.batch_shape)} and {tuple(target.batch_shape)}"
            raise SidestepError(f"{batch} latents need {batch} reference and target cameras, not {shapes}")


def load_tunet(folder: str | Path, **hub: Any) -> TUNet:
    """The TUNet of a model's folder (its `tunet/`) or hub id, in float32 whatever it is stored in.

    Args:
        hub: `variant`, `revision`, `cache_dir`, `local_files_only`, `token`, as in diffusers.

    Raises:
        SidestepError: if it is missing, damaged, not what its SHA256SUMS says, or not in safetensors.
    """
    check_sums(Path(folder) / "tunet")
    try:
        return TUNet.from_pretrained(
            str(folder), subfolder="tunet", torch_dtype=torch.float32, use_safetensors=True, **hub
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise SidestepError(f"{folder}/tunet cannot be loaded: {reason}") from None
