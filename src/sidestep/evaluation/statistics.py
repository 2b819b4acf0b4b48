"""Means and distances of sets, with 95% intervals from a bootstrap over scenes.

Pairs of one scene are alike, so whole scenes are drawn, with replacement, and all of a scene's pairs go with it. With
one scene nothing can be said of others: the interval is then the value itself, at both ends. The same seed draws the
same scenes, whatever is measured, so figures and rows stay comparable.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sidestep.evaluation.results import Estimate

DRAWS = 2000

_Floats = NDArray[np.float64]
_CHUNK = 1024


def bootstrap(
    values: Sequence[float | None], scenes: Sequence[str], seed: int, *, geometric: bool = False
) -> Estimate | None:
    """The mean of the values over pairs, or None if there is none.

    Args:
        values: one a pair; None where there is none.
        scenes: the scene of each.
        geometric: the geometric mean, for ratios (figures that are best at 1); values must then be above 0.
    """
    kept = [(value, scene) for value, scene in zip(values, scenes, strict=True) if value is not None]
    if not kept:
        return None
    present = [value for value, _ in kept]
    membership = _membership([scene for _, scene in kept])
    return _estimate(_mean_by_counts(present, membership, geometric), len(membership), seed)


def paired_difference(
    a: Sequence[float | None],
    b: Sequence[float | None],
    scenes: Sequence[str],
    seed: int,
    *,
    geometric: bool = False,
) -> Estimate | None:
    """The mean of `a` minus the mean of `b`, over the pairs that both have; None if there is no such pair.

    Both means are of the same drawn scenes, so what makes a scene hard for both cancels.
    """
    both = [
        (left, right, scene)
        for left, right, scene in zip(a, b, scenes, strict=True)
        if left is not None and right is not None
    ]
    if not both:
        return None
    membership = _membership([scene for _, _, scene in both])
    of_a = _mean_by_counts([left for left, _, _ in both], membership, geometric)
    of_b = _mean_by_counts([right for _, right, _ in both], membership, geometric)
    return _estimate(lambda counts: of_a(counts) - of_b(counts), len(membership), seed)


def kernel_distance(real: Tensor, fake: Tensor, scenes: Sequence[str], seed: int) -> Estimate:
    """How far apart two sets of feature vectors are: KID's unbiased estimator.

    The squared maximum mean discrepancy under the kernel (x·y/d + 1)³ (Bińkowski et al. 2018); about 0, and as often
    below as above, for two samples of one distribution. Each of a set meets all of the other, as in KID, its own
    partner too, so a set of views that follow their photos closely comes out below 0, by the order of 1/n.

    A scene that is drawn twice is two scenes, but the pictures of one copy against those of the other are left out:
    they are the same pictures, which two scenes never share, and would bias the distance upwards.

    Args:
        real: (n, d), the true photo's features for each pair; n at least 2.
        fake: (n, d), the view's.
        scenes: each pair's scene.
    """
    kernel = _Kernel(real, fake, scenes)
    return _estimate(kernel.discrepancy, len(kernel.pairs), seed, kernel.value())


def frechet_distance(real: Tensor, fake: Tensor) -> float:
    """The Fréchet distance of two normal distributions fitted to feature vectors, (n, d) and (m, d), n, m at least 2.

    |μ₁ - μ₂|² + tr Σ₁ + tr Σ₂ - 2 tr √(Σ₁Σ₂). With Σ = AᵀA, the last trace is the sum of A₁A₂ᵀ's singular values, so
    no root of a d × d matrix is taken, which is slow and, for fewer pictures than features, ill-conditioned.
    """
    real, fake = real.double(), fake.double()
    a, b = _covariance_root(real), _covariance_root(fake)
    means = (real.mean(0) - fake.mean(0)).square().sum()
    distance = means + a.square().sum() + b.square().sum() - 2.0 * torch.linalg.svdvals(a @ b.T).sum()
    return float(distance)


def _covariance_root(features: Tensor) -> Tensor:
    centred = (features - features.mean(0)) / (len(features) - 1) ** 0.5
    return torch.linalg.qr(centred, mode="r").R if len(centred) > centred.shape[1] else centred


def _estimate(statistic: Callable[[_Floats], _Floats], scenes: int, seed: int, value: float | None = None) -> Estimate:
    """Of a statistic of how often each scene is counted, (draws, scenes) to (draws,); `value` is that of each once."""
    if value is None:
        value = float(statistic(np.ones((1, scenes)))[0])
    if scenes == 1:
        return Estimate(value, value, value)
    counts = np.random.default_rng(seed).multinomial(scenes, np.full(scenes, 1.0 / scenes), size=DRAWS)
    drawn = statistic(counts.astype(np.float64))
    low, high = np.quantile(drawn[np.isfinite(drawn)], (0.025, 0.975))
    return Estimate(value, float(low), float(high))


def _membership(scenes: Sequence[str]) -> _Floats:
    """(scenes, pairs): 1 where the pair is of the scene; scenes in the order of their names."""
    names, index = np.unique(np.array(scenes), return_inverse=True)
    return (np.arange(len(names))[:, None] == index).astype(np.float64)


def _mean_by_counts(values: Sequence[float], membership: _Floats, geometric: bool) -> Callable[[_Floats], _Floats]:
    terms = np.array(values, dtype=np.float64)
    sums, pairs = membership @ (np.log(terms) if geometric else terms), membership.sum(1)

    def mean(counts: _Floats) -> _Floats:
        means: _Floats = (counts @ sums) / (counts @ pairs)
        return np.exp(means) if geometric else means

    return mean


class _Kernel:
    """Kernel sums between scenes, all that a draw needs of the pictures."""

    def __init__(self, real: Tensor, fake: Tensor, scenes: Sequence[str]):
        membership = _membership(scenes)
        self.pairs = membership.sum(1)
        self._within = _kernel_sums(real, real, membership, same=False) + _kernel_sums(
            fake, fake, membership, same=False
        )
        self._across = _kernel_sums(real, fake, membership, same=True)

    def value(self) -> float:
        pairs = self.pairs.sum()
        return float(self._within.sum() / (pairs * (pairs - 1.0)) - 2.0 * self._across.sum() / pairs**2)

    def discrepancy(self, counts: _Floats) -> _Floats:
        everything = np.outer(self.pairs, self.pairs)
        with np.errstate(invalid="ignore"):  # a draw of one scene with one pair, over and over, has no distance
            within = _counted(self._within, counts) / _counted(everything - np.diag(self.pairs), counts)
            across: _Floats = _counted(self._across, counts) / _counted(everything, counts)
        return within - 2.0 * across


def _counted(by_scenes: _Floats, counts: _Floats) -> _Floats:
    """(draws,): sums of a (scenes, scenes) table over drawn scenes, where a copy of a scene does not meet another."""
    scenes = len(by_scenes)
    own = np.diag(by_scenes)
    between: _Floats = ((counts @ (by_scenes - np.diag(own))) * counts).sum(1)
    # Two given scenes are drawn together 1 - 1/scenes times on average, one with itself once.
    return between / (1.0 - 1.0 / scenes) + counts @ own


def _kernel_sums(x: Tensor, y: Tensor, membership: _Floats, *, same: bool) -> _Floats:
    """(scenes, scenes): the kernel summed over their pictures; `same` says whether picture i meets picture i."""
    x, y, scene = x.double(), y.double(), torch.from_numpy(membership.argmax(0))
    sums = torch.zeros(len(membership), len(membership), dtype=torch.float64)
    for start in range(0, len(x), _CHUNK):  # the whole n × n matrix may not fit in memory
        kernel = (x[start : start + _CHUNK] @ y.T / x.shape[1] + 1.0) ** 3
        if not same:
            kernel.diagonal(start).zero_()
        by_scene = torch.zeros(len(kernel), len(membership), dtype=torch.float64).index_add_(1, scene, kernel)
        sums.index_add_(0, scene[start : start + _CHUNK], by_scene)
    result: _Floats = sums.numpy()
    return result
