import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from miniatures import TINY_TUNET
from sidestep.cameras import Camera
from sidestep.errors import SidestepError
from sidestep.trajectories import step_aside
from sidestep.tunet import TUNet, to_map, to_tokens

TINY: dict[str, Any] = {
    "in_channels": 3,
    "sample_size": 8,
    **TINY_TUNET,
    "categories": ("chair", "table"),
}
B = 2


def build(**changes: Any) -> TUNet:
    torch.manual_seed(0)
    return TUNet(**{**TINY, **changes}).eval()


def camera(yaw: float = 0.0, fov: float = 50.0, size: int = 64) -> Camera:
    return Camera.stack([step_aside(Camera.from_fov(fov, size, size), yaw + index) for index in range(B)])


def mean(model: TUNet, seed: int = 1) -> Tensor:
    shape = (B, model.config.in_channels, model.config.sample_size, model.config.sample_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inputs(model: TUNet) -> dict[str, Any]:
    return {"mean": mean(model), "reference": camera(), "target": camera(20), "category": torch.tensor([0, 1])}


def block_outputs(model: TUNet, **arguments: Any) -> dict[str, Tensor]:
    """The output of every down, middle and up block, and of the network."""
    kept: dict[str, Tensor] = {}
    hooks = []
    for name, block in [
        *((f"down{i}", block) for i, block in enumerate(model.downs)),
        ("mid", model.mid),
        *((f"up{i}", block) for i, block in enumerate(model.ups)),
    ]:

        def keep(_: nn.Module, __: Any, output: Any, name: str = name) -> None:
            kept[name] = output[0] if isinstance(output, tuple) else output

        hooks.append(block.register_forward_hook(keep))
    with torch.no_grad():
        kept["out"] = model(**arguments)
    for hook in hooks:
        hook.remove()
    return kept


def changed(model: TUNet, **changes: Any) -> set[str]:
    """The blocks whose output differs when these inputs change."""
    before, after = block_outputs(model, **inputs(model)), block_outputs(model, **{**inputs(model), **changes})
    return {name for name in before if not torch.allclose(before[name], after[name], atol=1e-6)}


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_papers_size_counts_about_148_million() -> None:
    with torch.device("meta"):
        model = TUNet(**TUNet.PAPER, num_categories=167)
    assert 146e6 < parameters(model) < 149e6
    transformer = model.ups[0].transformers[0]
    assert (transformer.self_attention.heads, transformer.cross_attention.heads) == (8, 12)
    assert [len(block.res_blocks) for block in model.downs] == [2] * 4
    assert [len(block.res_blocks) for block in model.ups] == [3] * 4
    assert [len(block.attentions) for block in model.downs] == [0, 0, 2, 2]
    assert [len(block.transformers) for block in model.ups] == [3, 3, 0, 0]


def test_the_small_size_counts_about_16_million() -> None:
    with torch.device("meta"):
        assert 15e6 < parameters(TUNet(**TUNet.SMALL)) < 17e6


@pytest.mark.parametrize(
    "changes",
    [
        {"in_channels": 16, "sample_size": 4},
        {"sample_size": 12, "block_out_channels": (8, 16, 24), "attention_levels": 2},
        {"sample_size": 7, "block_out_channels": (16,)},
        {"attention_levels": 0},
        {"attention_levels": 2, "down_layers": 1, "up_layers": 2},
    ],
    ids=str,
)
def test_any_latent_and_any_depth(changes: dict[str, Any]) -> None:
    model = build(**changes)
    arguments = inputs(model)
    with torch.no_grad():
        predicted = model(**arguments)
    assert predicted.shape == arguments["mean"].shape
    assert predicted.isfinite().all()


def test_a_batch_predicts_what_its_members_do_alone() -> None:
    model = build()
    arguments = inputs(model)
    with torch.no_grad():
        together = model(**arguments)
        alone = model(**{name: value[1:] for name, value in arguments.items()})
    torch.testing.assert_close(together[1:], alone, atol=1e-5, rtol=1e-4)


def test_the_size_of_the_cameras_pictures_does_not_matter() -> None:
    model = build()
    with torch.no_grad():
        predicted = [
            model(**{**inputs(model), "reference": camera(0, size=n), "target": camera(9, size=n)}) for n in (64, 96)
        ]
    torch.testing.assert_close(*predicted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("changes", [{}, {"conditioning": "concat"}, {"cross_attention": False}], ids=str)
def test_saving_and_loading_keeps_the_outputs_and_the_config(changes: dict[str, Any], tmp_path: Any) -> None:
    model = build(**changes, alpha_star=0.3, t_star=432, prior_fingerprint="abc", elevation=12.5)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "diffusion_pytorch_model.safetensors").exists()
    loaded = TUNet.from_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs(model)), model(**inputs(model)))
    config = loaded.config
    assert (config.alpha_star, config.t_star, config.prior_fingerprint, config.elevation) == (0.3, 432, "abc", 12.5)
    assert loaded.category_ids(["table", None]).tolist() == [1, -1]


def test_the_target_camera_reaches_middle_and_up_blocks_only() -> None:
    assert changed(build(), target=camera(-20)) == {"mid", "up0", "up1", "out"}


def test_the_reference_camera_reaches_the_down_blocks() -> None:
    assert changed(build(), reference=camera(0, fov=70)) == {"down0", "down1", "mid", "up0", "up1", "out"}


def test_the_category_and_the_latent_reach_every_block() -> None:
    model = build()
    everything = {"down0", "down1", "mid", "up0", "up1", "out"}
    assert changed(model, category=torch.tensor([1, 0])) == everything
    assert changed(model, mean=mean(model, seed=2)) == everything


@torch.no_grad()
def test_the_two_cameras_reach_the_up_blocks_own_embeddings_apart() -> None:
    """Each residual block's Proj is fed the camera of its own side; the middle block's both."""
    model = build()
    seen: dict[str, Tensor] = {}
    for name, block in (("down", model.downs[0]), ("mid", model.mid), ("up", model.ups[0])):
        block.res_blocks[0].proj_combined.register_forward_hook(
            lambda _, args, __, name=name: seen.__setitem__(name, args[0])
        )

    def embeddings(**changes: Any) -> dict[str, Tensor]:
        model(**{**inputs(model), **changes})
        return dict(seen)

    def differing(**changes: Any) -> set[str]:
        before, after = embeddings(), embeddings(**changes)
        return {name for name in before if not torch.equal(before[name], after[name])}

    assert differing(reference=camera(0, fov=70)) == {"down", "mid"}
    assert differing(target=camera(-20)) == {"mid", "up"}
    assert differing(category=None) == {"down", "mid", "up"}


@pytest.mark.parametrize("side", ["reference", "target"])
def test_rays_act_through_cross_attention_alone(side: str) -> None:
    """With the camera embedding silenced, rays are all that is left of a camera."""
    turned = {side: camera(-20, fov=70)}
    for cross_attention, expected in ((True, {"mid", "up0", "up1", "out"}), (False, set())):
        model = build(cross_attention=cross_attention)
        nn.init.zeros_(model.camera_embedding.weight)
        assert changed(model, **turned) == expected


@torch.no_grad()
def test_cross_attention_reads_the_patch_that_its_ray_goes_through() -> None:
    """The token grid and the ray grid agree: token n's mean is the latent's patch, its ray that patch's centre."""
    model = build(in_channels=1, normalise=False)
    views: list[Any] = []
    model.mid.transformer.cross_attention.register_forward_hook(lambda _, args, __: views.append(args[1]))
    ramp = torch.arange(8.0).expand(B, 1, 8, 8)  # each latent pixel holds its column
    model(ramp, camera(), camera(20))
    columns = views[0].reference_mean.mean(-1)[0] + 0.5
    direction = views[0].reference_rays[0, :, 3:]
    focal = 4 / math.tan(math.radians(25))
    torch.testing.assert_close(direction[:, 0] / direction[:, 2], (columns - 4) / focal, atol=1e-4, rtol=0)
    assert not torch.allclose(views[0].target_rays, views[0].reference_rays, atol=1e-2)


def test_what_attention_finds_returns_to_the_place_that_asked() -> None:
    f = torch.arange(24.0).reshape(1, 2, 3, 4)
    assert to_tokens(f)[0, :, 0].tolist() == list(range(12))  # row by row, like the rays
    assert torch.equal(to_map(to_tokens(f), f), f)


@pytest.mark.parametrize(
    "changes",
    [{}, {"conditioning": "concat"}, {"cross_attention": False}, {"attention_levels": 2}, {"finest_attention": True}],
    ids=str,
)
def test_every_parameter_learns(changes: dict[str, Any]) -> None:
    model = build(**changes)
    arguments = {**inputs(model), "category": torch.tensor([0, -1])}
    model(**arguments).square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 1e-9] == []


def test_without_cross_attention_no_weights_of_it_are_left() -> None:
    def names(model: TUNet) -> set[str]:
        return {name for name, _ in model.named_parameters() if "cross_attention" in name}

    assert names(build())
    assert not names(build(cross_attention=False))


def test_concat_joins_the_embeddings_to_the_input_and_keeps_them_out_of_the_blocks() -> None:
    model = build(conditioning="concat", cross_attention=False)
    assert not [name for name, _ in model.named_parameters() if "proj_combined" in name or "time_embedding" in name]
    everything = {"down0", "down1", "mid", "up0", "up1", "out"}
    assert changed(model, target=camera(-20)) == everything
    assert changed(model, category=None) == everything
    nn.init.zeros_(model.conv_in.weight[:, TINY["in_channels"] :])  # what is joined to the input is all there is
    assert changed(model, target=camera(-20), reference=camera(0, fov=70), category=None) == set()


def test_normalising_scales_the_input_and_scales_the_output_back() -> None:
    plain, scaled = build(normalise=False), build(alpha_star=0.25)
    arguments = inputs(plain)
    with torch.no_grad():
        expected = 0.5 * plain(**{**arguments, "mean": arguments["mean"] / 0.5})
        torch.testing.assert_close(scaled(**arguments), expected)


def test_no_category_is_the_learned_unknown_one() -> None:
    model = build()
    with torch.no_grad():
        omitted, unknown, known = (
            model(**{**inputs(model), "category": c}) for c in (None, torch.tensor([-1, -1]), torch.tensor([0, 0]))
        )
    assert torch.equal(omitted, unknown)
    assert not torch.allclose(omitted, known)
    without_categories = build(categories=())
    assert without_categories(**{**inputs(model), "category": None}).isfinite().all()


def test_category_names_map_to_their_places() -> None:
    assert build().category_ids(["table", "chair", None]).tolist() == [1, 0, -1]
    with pytest.raises(SidestepError, match=r"'lamp'.*chair, table"):
        build().category_ids(["chair", "lamp"])


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    gradients = []
    for checkpointing in (False, True):
        model = build().train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        runs: list[int] = []
        model.mid.register_forward_pre_hook(lambda *_, runs=runs: runs.append(1))
        model(**inputs(model)).square().mean().backward()
        assert len(runs) == 1 + checkpointing  # it really runs the block again, in place of keeping its features
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("way", ["autocast", "weights"])
def test_half_precision_stays_close_and_returns_the_inputs_dtype(way: str) -> None:
    model = build()
    with torch.no_grad():
        exact = model(**inputs(model))
        if way == "weights":
            model.to(torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"):
            half = model(**inputs(model))
    assert half.dtype == torch.float32
    assert (half - exact).abs().mean() < 0.03 * exact.abs().mean()


def test_autocast_leaves_camera_embeddings_and_rays_exact() -> None:
    model, views, embedded = build(), [], []
    model.mid.transformer.cross_attention.register_forward_hook(lambda _, args, __: views.append(args[1]))
    model.camera_embedding.register_forward_hook(lambda *args: embedded.append(args[2]))
    with torch.no_grad():
        model(**inputs(model))
        with torch.autocast("cpu", torch.bfloat16):
            model(**inputs(model))
    assert torch.equal(torch.stack(embedded[:2]), torch.stack(embedded[2:]))
    assert torch.equal(views[0].target_rays, views[1].target_rays)


@pytest.mark.parametrize("shape", [(B, 3, 16, 16), (B, 4, 8, 8), (B, 3, 8, 4), (3, 8, 8)], ids=str)
def test_a_latent_of_another_prior_is_refused(shape: tuple[int, ...]) -> None:
    model = build()
    with pytest.raises(SidestepError, match=r"\(batch, 3, 8, 8\)"):
        model(**{**inputs(model), "mean": torch.zeros(shape)})


def test_too_few_cameras_are_refused() -> None:
    model = build()
    with pytest.raises(SidestepError, match="2 latents need 2 reference and target cameras"):
        model(**{**inputs(model), "target": camera()[:1]})


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"sample_size": 9}, "sample_size 9"),
        ({"up_layers": 2}, "up_layers"),
        ({"attention_levels": 3}, "attention_levels"),
        ({"norm_groups": 5}, "5 groups"),
        ({"head_dim": 9}, "heads of 9"),
        ({"num_categories": 3}, "2 names for 3"),
        ({"conditioning": "add"}, "conditioning 'add'"),
        ({"alpha_star": 0.0}, "alpha_star"),
    ],
    ids=str,
)
def test_arguments_that_do_not_fit_are_refused(changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(SidestepError, match=fault):
        build(**changes)


def test_geometric_attention_starts_where_each_ray_is_seen_from_the_reference() -> None:
    """A target token attends, in the reference, to about where the point at its ray's own depth projects."""
    tunet = TUNet(**{**TUNet.SMALL, "block_out_channels": (32, 64, 64), "cross_attention_dim": 192})
    attention = tunet.ups[1].transformers[0].cross_attention
    rows, heads = 16, attention.heads
    reference = Camera.from_fov(45.0, 64, 64)
    target = step_aside(reference, 15.0, 5.0, elevation=20.0)
    origins, directions = (x.flatten(0, 1) for x in target.rays(rows, rows))
    rays = torch.cat([origins, directions], dim=1)
    seen_from = torch.cat([x.flatten(0, 1) for x in reference.rays(rows, rows)], dim=1)
    query = (rays @ attention.w_q.weight[:, :6].T).unflatten(1, (heads, -1)).transpose(0, 1)
    key = (seen_from @ attention.w_k.weight[:, :6].T).unflatten(1, (heads, -1)).transpose(0, 1)
    weights = (query @ key.mT / math.sqrt(query.shape[-1])).softmax(-1)  # (heads, N, N)
    centres = torch.stack(torch.meshgrid(*[torch.arange(rows) + 0.5] * 2, indexing="xy"), dim=-1).flatten(0, 1)
    for head, depth in enumerate((1 / 1.2, 1.0, 1.2)):
        pixels, _ = reference.resize(rows, rows).project(origins + depth * directions)
        inside = ((pixels > 2) & (pixels < rows - 2)).all(1)
        assert inside.sum() > 80
        error = (weights[head] @ centres - pixels)[inside].norm(dim=1)
        assert float(error.detach().max()) < 0.5  # tokens


def test_geometric_attention_survives_saving(tmp_path: Path) -> None:
    tunet = TUNet(**{**TINY, "attention_init": "geometric"})
    tunet.save_pretrained(tmp_path)
    loaded = TUNet.from_pretrained(tmp_path)
    for name, weight in tunet.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name


def test_the_finest_attention_brings_over_the_reference_at_the_latents_own_resolution() -> None:
    model = build(finest_attention=True)
    seen: list[Tensor] = []
    model.ups[-1].entry.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    given = inputs(model)
    model(**given)
    model(**{**given, "target": camera(yaw=40.0)})
    assert seen[0].shape == (B, 64, 32)  # a token a latent pixel
    assert not torch.allclose(seen[0], seen[1])
    assert build().ups[-1].entry is None
    assert build(finest_attention=True, cross_attention=False).ups[-1].entry is None
