"""The model's rows: the same pictures as the pipeline makes, and honest costs."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from sidestep.cameras import Camera, distance_scale
from sidestep.captures import Scene, read_captures
from sidestep.evaluation import rows
from sidestep.evaluation.protocol import PairOfFrames, distance_pairs, pairs_of_frames
from sidestep.evaluation.rows import (
    Batch,
    Maker,
    Model,
    by_group,
    limit_rows,
    model_rows,
    option_rows,
    relative_cameras,
)
from sidestep.fusion import FusionSettings
from sidestep.images import resize_and_crop, to_tensor
from sidestep.pipeline import NovelViewPipeline

FURNITURE = Path(__file__).parents[1] / "data" / "furniture"
SIZE, STEPS = 32, 3


@pytest.fixture(scope="module")
def pairs() -> list[PairOfFrames]:
    scenes: list[Scene] = read_captures(FURNITURE)
    return pairs_of_frames(distance_pairs(scenes, seed=0), scenes)


@pytest.fixture
def pipe(tiny_model: Path) -> NovelViewPipeline:
    return NovelViewPipeline.from_pretrained(tiny_model, dtype=torch.float32)


def scale(pair: PairOfFrames) -> float:
    cameras = Camera.stack([frame.camera.resize_and_crop(SIZE) for frame in pair.scene.frames])
    return distance_scale(pair.reference.camera.resize_and_crop(SIZE), cameras, pair.scene.points)


def known(pipe: NovelViewPipeline, pair: PairOfFrames) -> str | None:
    return pair.scene.category if pair.scene.category in pipe.tunet.config.categories else None


def make_batch(pipe: NovelViewPipeline, pairs: list[PairOfFrames], **changed: Any) -> Batch:
    reference, target = relative_cameras(pairs, SIZE)
    photos = [
        torch.stack([to_tensor(resize_and_crop(frame.load(), SIZE)) for frame in frames])
        for frames in ([pair.reference for pair in pairs], [pair.target for pair in pairs])
    ]
    arguments = {
        "model": Model(pipe.prior, pipe.tunet, STEPS, seed=0),
        "reference_photos": photos[0],
        "target_photos": photos[1],
        "reference": reference,
        "target": target,
        "wrong": target[torch.arange(len(pairs)).roll(1)],
        "categories": pipe.tunet.category_ids([known(pipe, pair) for pair in pairs]),
        "positions": [pair.position for pair in pairs],
        "judge": lambda pictures: (pictures - photos[1]).square().mean((1, 2, 3)),
    }
    return Batch(**{**arguments, **changed})


def maker(name: str, makers: list[Maker]) -> Maker:
    (found,) = [maker for maker in makers if maker.row.name == name]
    return found


def view(batch: Batch, name: str) -> torch.Tensor:
    model = batch.model
    return batch.run(maker(name, by_group(model, ("model", "option", "limit"))))[0]


def test_cameras_are_relative_to_the_reference_and_scaled(pairs: list[PairOfFrames]) -> None:
    chosen = pairs[:4]
    reference, target = relative_cameras(chosen, 64)
    torch.testing.assert_close(reference.world_to_camera, torch.eye(4).expand(4, 4, 4), atol=1e-5, rtol=0)
    for i, pair in enumerate(chosen):
        relative = pair.target.camera.resize_and_crop(64).relative_to(pair.reference.camera)
        torch.testing.assert_close(target[i].centre, scale(pair) * relative.centre, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(target[i].intrinsics, relative.intrinsics)


@pytest.mark.parametrize(
    ("name", "fusion", "settings"),
    [
        ("variance", "variance", FusionSettings()),
        ("addition", "addition", FusionSettings()),
        ("auto", "auto", FusionSettings()),
        ("addition-t-star", "addition", FusionSettings(latent="t_star")),
        ("variance-c-paper", "variance", FusionSettings(c="paper")),
        ("variance-noise-late", "variance", FusionSettings(noise="late")),
        ("addition-c-scripts", "addition", FusionSettings(c="scripts")),
        ("addition-from-621", "addition", FusionSettings(sample_from=621)),
    ],
)
def test_a_row_is_what_the_pipeline_makes(
    pipe: NovelViewPipeline, pairs: list[PairOfFrames], name: str, fusion: Any, settings: FusionSettings
) -> None:
    chosen = [pairs[0], pairs[7]]
    batch = make_batch(pipe, chosen)
    made = view(batch, name)
    coarse = view(batch, "coarse")
    for i, pair in enumerate(chosen):
        views = pipe(
            pair.reference.load(),
            [pair.target.camera],
            pair.reference.camera,
            known(pipe, pair),
            fusion,
            steps=STEPS,
            settings=settings,
            scale=scale(pair),
        )
        for ours, theirs in ((made[i], views.images[0]), (coarse[i], views.coarse[0])):
            assert (ours - to_tensor(theirs)).abs().max() < 2 / 127.5


def test_the_camera_changes_the_coarse_view_and_its_wrong_one_is_anothers(
    pipe: NovelViewPipeline, pairs: list[PairOfFrames]
) -> None:
    chosen = pairs[:3]
    batch = make_batch(pipe, chosen)
    coarse, wrong = view(batch, "coarse"), view(batch, "coarse-wrong-camera")
    assert ((coarse - wrong).abs().amax((1, 2, 3)) > 1e-3).all()
    right = make_batch(pipe, chosen, target=batch.wrong)
    torch.testing.assert_close(view(right, "coarse"), wrong)


def test_other_targets_of_the_same_references_share_what_is_made_of_the_references(
    pipe: NovelViewPipeline, pairs: list[PairOfFrames], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, other = make_batch(pipe, pairs[:2]), make_batch(pipe, [pairs[1], pairs[0]])
    own = view(first, "addition")
    alone = view(make_batch(pipe, pairs[:2], target=other.target), "addition")
    monkeypatch.setattr(rows, "invert", lambda *_: pytest.fail("the references were inverted twice"))
    towards = first.towards(other.target, other.target_photos)
    torch.testing.assert_close(view(towards, "addition"), alone)
    assert (alone - own).abs().max() > 1e-3
    torch.testing.assert_close(view(first, "addition"), own)


@pytest.mark.parametrize("name", ["random-noise", "variance-gaussian"])
def test_drawn_noise_is_a_pairs_own_whatever_the_batch(
    pipe: NovelViewPipeline, pairs: list[PairOfFrames], name: str
) -> None:
    together = view(make_batch(pipe, pairs[:3]), name)
    alone = view(make_batch(pipe, pairs[2:3]), name)
    torch.testing.assert_close(together[2:], alone, atol=1e-4, rtol=1e-4)
    model = Model(pipe.prior, pipe.tunet, STEPS, seed=1)
    assert (view(make_batch(pipe, pairs[:3], model=model), name) - together).abs().max() > 1e-3


def test_noise_without_fusion_has_the_strength_that_the_prior_expects_at_t_star(
    pipe: NovelViewPipeline, pairs: list[PairOfFrames], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[torch.Tensor] = []

    def sampled(prior: Any, latents: torch.Tensor, grid: list[int]) -> torch.Tensor:
        started.append(latents)
        return latents

    monkeypatch.setattr(rows, "sample", sampled)
    batch = make_batch(pipe, pairs)
    view(batch, "random-noise")
    strength = float((started[0] - batch.mean).std())
    assert strength == pytest.approx(math.sqrt(1 - float(pipe.prior.alphas_cumprod[600])), rel=0.04)


def test_the_oracle_takes_the_nearer_one(pipe: NovelViewPipeline, pairs: list[PairOfFrames]) -> None:
    batch = make_batch(pipe, pairs[:6])
    both = torch.stack([view(batch, "variance"), view(batch, "addition")])
    errors = (both - batch.target_photos).square().mean((2, 3, 4))
    oracle = (view(batch, "oracle") - batch.target_photos).square().mean((1, 2, 3))
    torch.testing.assert_close(oracle, errors.amin(0))


def test_limits_are_given_the_true_target(pipe: NovelViewPipeline, pairs: list[PairOfFrames]) -> None:
    batch = make_batch(pipe, pairs[:2])
    prior = pipe.prior
    torch.testing.assert_close(view(batch, "autoencoder"), prior.decode(prior.encode(batch.target_photos)))
    star = math.sqrt(float(prior.alphas_cumprod[600]))
    torch.testing.assert_close(view(batch, "mean-600"), prior.decode(batch.target_inverted.mean / star))
    assert all(each.row.uses_target for each in limit_rows(batch.model))
    assert (view(batch, "mean-200") - view(batch, "mean-600")).abs().max() > 1e-3


def test_names_are_unique(pipe: NovelViewPipeline) -> None:
    names = [each.row.name for each in by_group(Model(pipe.prior, pipe.tunet, 3, 0), ("model", "option", "limit"))]
    assert (
        len(set(names))
        == len(names)
        == len(model_rows()) + len(option_rows(600)) + len(limit_rows(Model(pipe.prior, pipe.tunet, 3, 0)))
    )


class Counted(Batch):
    """A batch whose clock counts the U-Net's forwards."""

    forwards = 0

    def _clock(self) -> float:
        return self.forwards


def test_a_row_costs_what_it_would_alone(
    pipe: NovelViewPipeline, pairs: list[PairOfFrames], monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = make_batch(pipe, pairs[:1])
    batch = Counted.__new__(Counted)
    batch.__dict__.update(reference.__dict__)
    predict = pipe.prior.predict_noise

    def counted(*arguments: Any, **options: Any) -> torch.Tensor:
        batch.forwards += 1
        return predict(*arguments, **options)

    monkeypatch.setattr(pipe.prior, "predict_noise", counted)
    makers = model_rows()
    inversion, late = 4, 2  # 0, 150, ..., 600; 750, 900
    for name, cost in (
        ("oracle", inversion + late + (1 + STEPS) + STEPS),
        ("auto", inversion + late + (1 + STEPS) + STEPS),
        ("variance", inversion + 1 + STEPS),
        ("addition", inversion + late + STEPS),
        ("coarse", inversion),
        ("random-noise", inversion + STEPS),
    ):
        assert batch.run(maker(name, makers))[1] == cost
