import numpy as np
import pytest
import torch
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import poly_mmd

from sidestep.evaluation.statistics import bootstrap, frechet_distance, kernel_distance, paired_difference


def clustered(seed: int, scenes: int = 25, pairs: int = 8) -> tuple[list[float], list[str]]:
    """Values around 0 whose scenes differ more than the pairs of one scene do."""
    random = np.random.default_rng(seed)
    of_scene = random.normal(size=scenes)
    values = [float(of_scene[scene] + 0.3 * random.normal()) for scene in range(scenes) for _ in range(pairs)]
    return values, [f"scene{scene}" for scene in range(scenes) for _ in range(pairs)]


def test_interval_holds_the_truth_about_as_often_as_it_says_though_pairs_of_a_scene_are_alike():
    estimates = [bootstrap(*clustered(seed), seed=seed) for seed in range(200)]
    assert 0.88 < np.mean([e.low <= 0.0 <= e.high for e in estimates]) < 0.99


def test_pairs_taken_for_scenes_would_be_far_too_sure():
    values, scenes = clustered(0)
    by_scene = bootstrap(values, scenes, seed=0)
    by_pair = bootstrap(values, [str(i) for i in range(len(values))], seed=0)
    assert by_scene.value == pytest.approx(np.mean(values))
    assert by_scene.high - by_scene.low > 2.0 * (by_pair.high - by_pair.low)


def test_the_seed_decides_the_interval():
    values, scenes = clustered(1)
    assert bootstrap(values, scenes, seed=3) == bootstrap(values, scenes, seed=3)
    assert bootstrap(values, scenes, seed=3).low != bootstrap(values, scenes, seed=4).low


def test_missing_values_count_neither_as_pairs_nor_as_scenes():
    estimate = bootstrap([1.0, None, 3.0, None], ["a", "a", "a", "b"], seed=0)
    assert (estimate.value, estimate.low, estimate.high) == (2.0, 2.0, 2.0)  # one scene is left
    assert bootstrap([None, None], ["a", "b"], seed=0) is None


def test_geometric_mean_of_twice_and_half_is_one():
    estimate = bootstrap([2.0, 0.5], ["a", "b"], seed=0, geometric=True)
    assert estimate.value == pytest.approx(1.0)
    assert (estimate.low, estimate.high) == (pytest.approx(0.5), pytest.approx(2.0))


def test_difference_is_surer_than_its_parts_where_rows_share_what_is_hard():
    hard, scenes = clustered(2)
    better = [value + 0.1 + 0.05 * (-1.0) ** i for i, value in enumerate(hard)]
    difference = paired_difference(better, hard, scenes, seed=0)
    parts = [bootstrap(row, scenes, seed=0) for row in (better, hard)]
    assert difference.value == pytest.approx(0.1)
    assert 0.0 < difference.low < difference.high < 0.2
    assert parts[0].low < parts[1].high  # the intervals of the two overlap


def test_difference_is_over_the_pairs_that_both_rows_have():
    estimate = paired_difference([5.0, None, 2.0], [3.0, 9.0, None], ["a", "b", "c"], seed=0)
    assert estimate.value == 2.0
    assert paired_difference([None], [1.0], ["a"], seed=0) is None


def test_difference_of_geometric_means():
    estimate = paired_difference([2.0, 8.0], [1.0, 1.0], ["a", "b"], seed=0, geometric=True)
    assert estimate.value == pytest.approx(3.0)


def samples(n: int = 60, d: int = 16, shift: float = 0.0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=random), torch.randn(n, d, generator=random) + shift


def test_kernel_distance_is_kids():
    real, fake = samples(shift=0.3)
    expected = float(poly_mmd(real.double(), fake.double()))
    for scenes in (["a"] * len(real), [str(i % 7) for i in range(len(real))]):
        assert kernel_distance(real, fake, scenes, seed=0).value == pytest.approx(expected)


def test_kernel_distance_is_the_same_in_pieces(monkeypatch):
    real, fake = samples(shift=0.3)
    scenes = [str(i % 7) for i in range(len(real))]
    whole = kernel_distance(real, fake, scenes, seed=0).value
    monkeypatch.setattr("sidestep.evaluation.statistics._CHUNK", 7)
    assert kernel_distance(real, fake, scenes, seed=0).value == pytest.approx(whole)


def test_kernel_distance_is_about_zero_for_two_samples_of_one_distribution():
    distances = [kernel_distance(*samples(n=40, d=8, seed=seed), ["a"] * 40, seed=0).value for seed in range(40)]
    assert abs(np.mean(distances)) < 0.05
    assert min(distances) < 0.0 < max(distances)


@pytest.mark.parametrize(("pairs", "real_likeness", "fake_likeness"), [(1, 0, 0), (4, 1, 1), (4, 1, 0)])
def test_scenes_drawn_twice_do_not_move_the_kernel_distance(pairs, real_likeness, fake_likeness):
    shifts = []
    for seed in range(20):
        real, fake = samples(n=40 * pairs, d=8, seed=seed)
        of_scene = torch.randn(40, 8, generator=torch.Generator().manual_seed(100 + seed)).repeat_interleave(pairs, 0)
        scenes = [str(i // pairs) for i in range(40 * pairs)]
        estimate = kernel_distance(real + real_likeness * of_scene, fake + fake_likeness * of_scene, scenes, seed=0)
        shifts.append((estimate.low + estimate.high) / 2.0 - estimate.value)
    # Pictures against their own copies would make it 0.36 and more; leaving out only those, not the copies of the
    # scene's other pictures, 0.28 in the last case.
    assert abs(np.mean(shifts)) < 0.1


def test_kernel_distance_sees_a_shift():
    real, fake = samples(n=80, shift=1.0)
    estimate = kernel_distance(real, fake, [str(i // 2) for i in range(80)], seed=0)
    assert 0.0 < estimate.low < estimate.value < estimate.high


def test_kernel_distance_has_no_interval_with_one_scene():
    real, fake = samples(n=2)
    estimate = kernel_distance(real, fake, ["a", "a"], seed=0)
    assert estimate.low == estimate.value == estimate.high
    apart = kernel_distance(real, fake, ["a", "b"], seed=0)  # half of the draws are of one picture only
    assert np.isfinite([apart.low, apart.value, apart.high]).all()


class Given(torch.nn.Module):
    """Stands in for Inception: its pictures are features already."""

    num_features = 6

    def forward(self, features):
        return features


@pytest.mark.parametrize(("real_n", "fake_n"), [(50, 40), (4, 5), (50, 4)])
def test_frechet_distance_is_torchmetrics(real_n, fake_n):
    random = torch.Generator().manual_seed(0)
    real, fake = torch.randn(real_n, 6, generator=random), 1.5 * torch.rand(fake_n, 6, generator=random) + 1.0
    reference = FrechetInceptionDistance(feature=Given())
    reference.update(real.double(), real=True)
    reference.update(fake.double(), real=False)
    assert frechet_distance(real, fake) == pytest.approx(float(reference.compute()), rel=1e-4)
    assert frechet_distance(real, real) == pytest.approx(0.0, abs=1e-9)
