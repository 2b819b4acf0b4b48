"""The rows of the table that a model makes: its outputs, the readings left open, and what each of its parts loses."""

import copy
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from sidestep.cameras import Camera, distance_scale
from sidestep.devices import autocast
from sidestep.evaluation.protocol import PairOfFrames
from sidestep.evaluation.results import Row
from sidestep.fusion import FusionSettings, Method, choose, fuse, noise_scale
from sidestep.inversion import InversionSettings, Inverted, invert, late_grid, sample
from sidestep.prior import LatentPrior
from sidestep.tunet import TUNet

T = TypeVar("T")

METHODS: tuple[Method, Method] = ("variance", "addition")

# Timesteps beside the trained one, of 1000, at which the true target is inverted to see what t* costs.
LIMIT_TIMESTEPS = (200, 400, 600)

_OF_REFERENCES = ("reference_latents", "inverted", "late", "gaussian")  # stages that no target has a part in


@dataclass(frozen=True)
class Model:
    """What is evaluated: a pipeline's parts, and how they are run."""

    prior: LatentPrior
    tunet: TUNet
    steps: int
    seed: int

    @property
    def inversion(self) -> InversionSettings:
        """How TUNet's latents were inverted."""
        config = self.tunet.config
        return InversionSettings(
            config.t_star, config.inversion_steps, config.inversion_timestep, config.inversion_start
        )


@dataclass(frozen=True)
class Maker:
    """A row and how a batch makes its pictures, (B, 3, S, S) in [-1, 1]."""

    row: Row
    make: Callable[["Batch"], Tensor]


def stage(function: Callable[["Batch"], T]) -> Any:
    """A step that rows share: done once a batch, when the first row asks for it, and timed without the steps in it."""
    name = function.__name__

    def get(batch: "Batch") -> T:
        return batch.once(name, lambda: function(batch))

    return property(get, doc=function.__doc__)


class Batch:
    """Some pairs on their way through the model; every stage is computed once, whichever rows ask for it.

    Args:
        reference_photos, target_photos: (B, 3, S, S) in [-1, 1].
        reference, target: cameras in each reference's frame, scaled as TUNet was trained.
        wrong: other pairs' target cameras, likewise.
        categories: (B,), of `TUNet.category_ids`.
        positions: of the pairs in the list; they seed each pair's noise, so that it does not depend on the batch.
        judge: distance to the target of pictures (B, 3, S, S), (B,): the paper's oracle chooses by it.
    """

    def __init__(
        self,
        model: Model,
        reference_photos: Tensor,
        target_photos: Tensor,
        reference: Camera,
        target: Camera,
        wrong: Camera,
        categories: Tensor,
        positions: Sequence[int],
        judge: Callable[[Tensor], Tensor],
    ) -> None:
        self.model, self.prior = model, model.prior
        self.reference_photos, self.target_photos = reference_photos, target_photos
        self.reference, self.target, self.wrong = reference, target, wrong
        self.categories, self.positions, self.judge = categories, positions, judge
        self.grid = model.inversion.grid
        self.star = math.sqrt(float(self.prior.alphas_cumprod[model.inversion.t_star]))
        self._made: dict[str, Any] = {}
        self._costs: dict[str, float] = {}
        self._needs: dict[str, set[str]] = {}
        self._asking: set[str] = set()
        self._inside = 0.0

    @classmethod
    def of_pairs(
        cls,
        model: Model,
        pairs: Sequence[PairOfFrames],
        others: Sequence[PairOfFrames],
        photos: tuple[Tensor, Tensor],
        judge: Callable[[Tensor], Tensor],
    ) -> "Batch":
        """The batch of these pairs, with cameras and categories as TUNet was trained on.

        Args:
            others: pairs whose target cameras are the wrong ones.
            photos: of the references and of the targets.
        """
        size = model.prior.image_size
        reference, target = relative_cameras(pairs, size)
        _, wrong = relative_cameras(others, size)
        known = model.tunet.config.categories
        categories = [pair.scene.category if pair.scene.category in known else None for pair in pairs]
        positions = [pair.position for pair in pairs]
        return cls(model, *photos, reference, target, wrong, model.tunet.category_ids(categories), positions, judge)

    def towards(self, target: Camera, photos: Tensor) -> "Batch":
        """The same references with other targets; what is made of the references alone is not made again.

        Args:
            target: cameras in each reference's frame, scaled as this batch's.
            photos: their true ones. The judge still judges by this batch's targets.
        """
        other = copy.copy(self)
        other.target, other.target_photos = target, photos
        other._made = {name: self._made[name] for name in _OF_REFERENCES if name in self._made}
        other._costs, other._needs, other._asking = dict(self._costs), dict(self._needs), set()
        return other

    def once(self, name: str, function: Callable[[], T]) -> T:
        """The stage's result, computed at the first call; its cost is its own time without the stages in it."""
        if name not in self._made:
            asking, inside = self._asking, self._inside
            self._asking, self._inside = {name}, 0.0
            began = self._clock()
            self._made[name] = function()
            took = self._clock() - began
            self._costs[name] = took - self._inside
            self._needs[name] = self._asking
            self._asking, self._inside = asking, inside + took
        self._asking |= self._needs[name]
        return self._made[name]

    def run(self, maker: Maker) -> tuple[Tensor, float]:
        """A row's pictures, and the seconds that they would have taken had no other row been made."""
        name = f"row {maker.row.name}"
        pictures = self.once(name, lambda: maker.make(self).float().cpu())
        seconds = sum(self._costs[need] for need in self._needs[name])
        del self._made[name]  # rows are many, and nobody asks again
        return pictures, seconds

    def _clock(self) -> float:
        if self.prior.unet.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    @stage
    def reference_latents(self) -> Tensor:
        return self.prior.encode(self.reference_photos)

    @stage
    def inverted(self) -> Inverted:
        """The reference at t*."""
        return self.inverted_to(self.model.inversion.t_star, self.reference_latents)

    @stage
    def late(self) -> Inverted:
        """The reference at the last step."""
        return self.inverted_on(self.model.inversion.t_star, self.inverted)

    @stage
    def gaussian(self) -> Inverted:
        """Noise of the right strength, drawn for each pair, in place of the reference's."""
        drawn = []
        for position in self.positions:
            generator = torch.Generator().manual_seed(self.model.seed * 1_000_003 + position)
            drawn.append(torch.randn(self.reference_latents.shape[1:], generator=generator))
        noise = torch.stack(drawn).to(self.reference_latents)
        return Inverted(torch.zeros_like(noise), noise_scale(self.prior.alphas_cumprod, self.grid[-1]) * noise)

    @stage
    def mean(self) -> Tensor:
        """TUNet's prediction."""
        return self.translate(self.target)

    @stage
    def wrong_mean(self) -> Tensor:
        """TUNet's prediction for another pair's target camera."""
        return self.translate(self.wrong)

    @stage
    def coarse(self) -> Tensor:
        return self.prior.decode(self.mean / self.star)

    @stage
    def variance(self) -> Tensor:
        return self.fused("variance", FusionSettings())

    @stage
    def addition(self) -> Tensor:
        return self.fused("addition", FusionSettings())

    @stage
    def target_latents(self) -> Tensor:
        return self.prior.encode(self.target_photos)

    @stage
    def target_inverted(self) -> Inverted:
        """The true target at t*."""
        return self.inverted_to(self.model.inversion.t_star, self.target_latents)

    def inverted_to(self, t: int, latents: Tensor) -> Inverted:
        """Latents at timestep t."""
        inversion = replace(self.model.inversion, t_star=t)
        return invert(self.prior, latents, inversion.grid, inversion.timestep)

    def inverted_on(self, t: int, inverted: Inverted) -> Inverted:
        """From timestep t to the last step."""
        inversion = self.model.inversion
        steps = late_grid(t, inversion.steps, self.prior.num_train_timesteps, inversion.start)
        return invert(self.prior, inverted.latents, steps, inversion.timestep) if len(steps) > 1 else inverted

    def translate(self, target: Camera) -> Tensor:
        """TUNet's mean for these target cameras, (B, C, h, w)."""
        device = self.model.tunet.device
        with autocast(device):
            mean = self.model.tunet(
                self.inverted.mean.to(device), self.reference.to(device), target.to(device), self.categories.to(device)
            )
        return mean.float()

    def fused(
        self, method: Method, settings: FusionSettings, mean: Tensor | None = None, reference: Inverted | None = None
    ) -> Tensor:
        """Fusion, sampling and decoding, with TUNet's mean and the reference's noise unless others are given."""
        inversion = self.model.inversion
        fused = fuse(
            self.prior,
            method,
            self.mean if mean is None else mean,
            self.inverted if reference is None else reference,
            self.late if settings.needs_late(method) else None,
            inversion.t_star,
            settings,
        )
        return self.prior.decode(sample(self.prior, fused, settings.sampling_grid(inversion, self.model.steps)))

    def sampled(self, latents: Tensor, t_star: int) -> Tensor:
        """Sampling from t* and decoding."""
        grid = replace(self.model.inversion, t_star=t_star, steps=min(self.model.steps, t_star)).grid
        return self.prior.decode(sample(self.prior, latents, grid))


def relative_cameras(pairs: Sequence[PairOfFrames], size: int) -> tuple[Camera, Camera]:
    """(reference, target) cameras of `size` pixels, batched, in each reference's frame, scaled as TUNet was trained.

    That is, with the subject at distance 1 from the reference, as in the store of latents.
    """
    references, targets = [], []
    for pair in pairs:
        source, target = (frame.camera.resize_and_crop(size) for frame in (pair.reference, pair.target))
        others = Camera.stack([frame.camera.resize_and_crop(size) for frame in pair.scene.frames])
        scale = distance_scale(source, others, pair.scene.points)
        # In double precision: far from a world's origin, small steps are lost in single.
        source, target = source.to(dtype=torch.float64), target.to(dtype=torch.float64)
        references.append(source.relative_to(source).to(dtype=torch.float32))
        targets.append(target.relative_to(source).scaled(scale).to(dtype=torch.float32))
    return Camera.stack(references), Camera.stack(targets)


def model_rows() -> list[Maker]:
    """The method's outputs."""
    return [
        Maker(Row("coarse", "TUNet, coarse", "model", note="TUNet's mean decoded, no noise put back."), _coarse),
        Maker(
            Row(
                "coarse-wrong-camera",
                "TUNet, coarse, wrong camera",
                "model",
                note="The same for another pair's target camera: the difference is what the camera is worth.",
            ),
            lambda batch: batch.prior.decode(batch.wrong_mean / batch.star),
        ),
        Maker(
            Row(
                "random-noise",
                "Gaussian noise, no fusion",
                "model",
                note="TUNet's mean plus Gaussian noise of t*'s strength, sampled.",
            ),
            lambda batch: batch.sampled(batch.mean + batch.gaussian.noise, batch.model.inversion.t_star),
        ),
        Maker(Row("variance", "A, variance fusion", "model"), lambda batch: batch.variance),
        Maker(
            Row(
                "variance-gaussian",
                "A, Gaussian noise",
                "model",
                note="A with seeded Gaussian noise in place of the reference's.",
            ),
            lambda batch: batch.fused("variance", FusionSettings(), None, batch.gaussian),
        ),
        Maker(Row("addition", "B, direct addition", "model"), lambda batch: batch.addition),
        Maker(
            Row(
                "addition-t-star", "B, latents at t*", "model", note="As the paper reads; the reference shines through."
            ),
            lambda batch: batch.fused("addition", FusionSettings(latent="t_star")),
        ),
        Maker(Row("auto", "auto", "model", note="A or B, chosen for each view without the target."), _auto),
        Maker(
            Row(
                "oracle",
                "better of A and B",
                "model",
                uses_target=True,
                note="Chosen by the distance to the true target, as the paper's own figures are.",
            ),
            _oracle,
        ),
    ]


def option_rows(t_star: int) -> list[Maker]:
    """A and B under each reading that the paper leaves open, one changed at a time."""
    makers: list[Maker] = []
    for letter, method in zip("AB", METHODS, strict=True):
        readings: list[tuple[str, str, FusionSettings]] = [
            ("c-paper", "c = sqrt(1 + a*)", FusionSettings(c="paper")),
            ("c-scripts", "c = sqrt(1 - a_700)", FusionSettings(c="scripts")),
        ]
        if method == "variance":
            readings.append(("noise-late", "the last step's noise", FusionSettings(noise="late")))
        # The scripts sample from 581, 601 or 621 where t* is 600.
        readings.extend(
            (f"from-{start}", f"sampled from {start}", FusionSettings(sample_from=start))
            for start in (t_star - 19, t_star + 1, t_star + 21)
        )
        makers.extend(
            Maker(
                Row(f"{method}-{name}", f"{letter}, {title}", "option"),
                _with_settings(method, settings),
            )
            for name, title, settings in readings
        )
    return makers


def limit_rows(model: Model) -> list[Maker]:
    """What each part loses when all that comes before it is perfect: each is given the true target."""

    def row(name: str, title: str, note: str) -> Row:
        return Row(name, title, "limit", uses_target=True, note=note)

    t_star = model.inversion.t_star
    makers = [
        Maker(
            row("autoencoder", "autoencoder alone", "The true target encoded and decoded."),
            lambda batch: batch.prior.decode(batch.target_latents),
        ),
        Maker(
            row("round-trip", f"inverted to {t_star} and back", "The true target, there and back on one grid."),
            lambda batch: batch.prior.decode(sample(batch.prior, batch.target_inverted.latents, batch.grid)),
        ),
    ]
    others = {round(t * model.prior.num_train_timesteps / 1000) for t in LIMIT_TIMESTEPS}
    for t in sorted({t_star, *others}):
        makers.append(
            Maker(
                row(f"mean-{t}", f"true mean at {t}", "The true target's mean decoded: a perfect TUNet."),
                _limit(t, None),
            )
        )
        makers.extend(
            Maker(
                row(f"{method}-true-{t}", f"{letter}, true mean at {t}", "Fusion after a perfect TUNet."),
                _limit(t, method),
            )
            for letter, method in zip("AB", METHODS, strict=True)
        )
    return makers


def by_group(model: Model, groups: Iterable[str]) -> list[Maker]:
    """The makers of the named groups, in the table's order."""
    made = {
        "model": model_rows,
        "option": lambda: option_rows(model.inversion.t_star),
        "limit": lambda: limit_rows(model),
    }
    return [maker for group, makers in made.items() if group in set(groups) for maker in makers()]


def _coarse(batch: Batch) -> Tensor:
    return batch.coarse


def _auto(batch: Batch) -> Tensor:
    candidates = {"variance": batch.variance, "addition": batch.addition}
    names = choose(candidates, batch.coarse, batch.reference_photos.to(batch.coarse))
    return torch.stack([candidates[name][i] for i, name in enumerate(names)])


def _oracle(batch: Batch) -> Tensor:
    candidates = [batch.variance, batch.addition]
    distances = torch.stack([batch.judge(pictures.cpu()) for pictures in candidates])
    best = distances.argmin(0).tolist()
    return torch.stack([candidates[name][i] for i, name in enumerate(best)])


def _with_settings(method: Method, settings: FusionSettings) -> Callable[[Batch], Tensor]:
    return lambda batch: batch.fused(method, settings)


def _limit(t: int, method: Method | None) -> Callable[[Batch], Tensor]:
    def make(batch: Batch) -> Tensor:
        prior, own = batch.prior, t == batch.model.inversion.t_star

        def inverted(name: str, latents: Tensor) -> Inverted:
            return batch.once(f"{name} at {t}", lambda: batch.inverted_to(t, latents))

        mean = (batch.target_inverted if own else inverted("target", batch.target_latents)).mean
        if method is None:
            return prior.decode(mean / math.sqrt(float(prior.alphas_cumprod[t])))
        reference = batch.inverted if own else inverted("reference", batch.reference_latents)
        late = None
        if method == "addition":
            late = batch.late if own else batch.inverted_on(t, reference)
        return batch.sampled(fuse(prior, method, mean, reference, late, t), t)

    return make
