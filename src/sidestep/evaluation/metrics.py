"""Measures views against true photos, batch by batch; no picture is kept."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from sidestep.errors import SidestepError
from sidestep.evaluation.published import NotAtHandError, load_inception, load_lpips
from sidestep.evaluation.results import Estimate, Figure
from sidestep.evaluation.statistics import frechet_distance, kernel_distance
from sidestep.features import ImageFeatures, stage_distance
from sidestep.images import gradient_energy

SMALLEST = 32  # px; AlexNet has nothing left of less
HIGHEST_PSNR = 100.0  # dB; two equal pictures would have infinitely many, and no mean

PSNR = Figure("psnr", "PSNR (dB)", "higher", 2)
SSIM = Figure("ssim", "SSIM", "higher", 3)
LPIPS_ALEX = Figure("lpips_alex", "LPIPS (Alex)", "lower", 3)
LPIPS_VGG = Figure("lpips_vgg", "LPIPS (VGG)", "lower", 3)
PERCEPTUAL = Figure("perceptual", "Perceptual distance", "lower", 3)
MOVED = Figure("moved", "Moved", "higher", 2)
SAME_CLASS = Figure("same_class", "Same class", "higher", 2)
GRADIENT = Figure("gradient", "Sharpness", "one", 2)
KERNEL = Figure("kernel", "Kernel distance", "lower", 4, per_pair=False)
FID = Figure("fid", "FID", "lower", 1, per_pair=False)

_LPIPS_BACKBONES: dict[Figure, Literal["alex", "vgg"]] = {LPIPS_ALEX: "alex", LPIPS_VGG: "vgg"}
_PER_PICTURE = (PSNR, SSIM, LPIPS_ALEX, LPIPS_VGG, PERCEPTUAL)
_OF_PARTS = (PSNR, SSIM, PERCEPTUAL)
# The energy that rounding to 8 bits alone makes: a flat view counts as that, or its ratio would have no logarithm.
_ROUNDING_ENERGY = (1.0 / 127.5) ** 2 / 3.0

_Size = int | None  # None is the pictures' own


@dataclass(frozen=True)
class Targets:
    """A batch's true photos with what is computed from them once, for all rows.

    Attributes:
        pictures: size -> (B, 3, size, size).
        stages: size -> their feature maps.
        layouts: of the photos and of the references, (B, 3, 16, 16) each.
        classes: (B,), the ImageNet class that the network sees.
        energy: (B,), their gradient energy.
        parts: name -> where the part is, (B, S, S) bool; empty for a photo without it.
    """

    indices: tuple[int, ...]
    pictures: dict[_Size, Tensor]
    stages: dict[_Size, list[Tensor]]
    layouts: tuple[Tensor, Tensor]
    classes: Tensor
    energy: Tensor
    parts: dict[str, Tensor]

    def of(self, indices: Sequence[int]) -> "Targets":
        """Those of these pairs, in this order."""
        places = [self.indices.index(index) for index in indices]
        return Targets(
            tuple(indices),
            {size: pictures[places] for size, pictures in self.pictures.items()},
            {size: [stage[places] for stage in stages] for size, stages in self.stages.items()},
            (self.layouts[0][places], self.layouts[1][places]),
            self.classes[places],
            self.energy[places],
            {name: part[places] for name, part in self.parts.items()},
        )


class Metrics:
    """The figures of an evaluation, of pictures as they are and at each of `sizes`.

    Of each pair, a view against its true photo, both clipped to [-1, 1] and not rounded to 8 bits:

    - `psnr` (at most 100 dB) and `ssim` (Gaussian window of 11 px, mean of the three channels), by torchmetrics.
    - `lpips_alex`, `lpips_vgg`: LPIPS 0.1, by torchmetrics; where the published weights can be had.
    - `perceptual`: `features.perceptual_distance`.
    - `moved`: 1 where the view's layout is nearer to the true photo's than to the reference's, otherwise 0: by the mean
      squared difference of pictures averaged to 16x16 cells, whatever their sharpness. A sharp copy of the reference is
      often nearer to the target than a blurred view from the right place; this says which of the two a row shows.
    - `same_class`: 1 where the ImageNet network's first choice is the same for both, otherwise 0.
    - `gradient`: mean squared difference of neighbouring pixels, the view's over the photo's; 1 is as sharp, less is
      blurred. The mean over pairs is the geometric one (`statistics.bootstrap(geometric=True)`), where a view twice
      as sharp and one half as sharp make 1.

    - `psnr_object`, `ssim_object`, `perceptual_object`, and the same of other `parts`: over the pixels of a part of the
      target alone: of its mean squared error; the mean of the map of SSIM there, whose windows reach past its outline;
      and of the feature maps, each place by its share of the part. LPIPS, which torchmetrics has no map of, and figures
      of whole sets are not measured so.

    Of a whole set:

    - `kernel`: `statistics.kernel_distance` on EfficientNet-Lite0's pooled features.
    - `fid`: FID, on torch-fidelity's Inception; where its published weights can be had.

    `psnr`, `ssim`, `lpips_*`, `perceptual` and `fid` are measured at the pictures' own size and, named "psnr@256" and
    the like, with both pictures resized, bilinearly with antialiasing. `gradient` is measured at their own size alone,
    and the other figures at one that is part of them.

    Attributes:
        figures: what is measured, in the order of the tables.
        missing: title -> why a figure is not measured and what to do.
    """

    def __init__(
        self,
        device: torch.device,
        sizes: Sequence[int] = (),
        weights: Path | None = None,
        parts: Sequence[str] = (),
    ):
        """Loads the networks.

        Args:
            device: where to compute.
            sizes: px, besides the pictures' own.
            weights: a folder with the published weights of LPIPS and FID, looked into before torch's cache and before
                their addresses are asked.
            parts: names of parts of the targets that figures are given for too.

        Raises:
            SidestepError: if the extra `evaluate` is not installed, a size is too small, the folder is not there, or a
                file of weights is not what its name says.
        """
        for package in ("torchmetrics", "torchvision", "torch_fidelity"):
            if find_spec(package) is None:
                raise SidestepError(f"{package} is not installed; run: pip install 'sidestep[evaluate]'")
        if weights is not None and not weights.is_dir():
            raise SidestepError(f"{weights}: no such folder; name the one that holds the published weights")
        for size in sizes:
            if size < SMALLEST:
                raise SidestepError(f"a size of {size} px is too small to measure at; take {SMALLEST} or more")
        self._device = device
        self._sizes: tuple[_Size, ...] = (None, *sizes)
        self._parts = tuple(parts)
        self._features = ImageFeatures.load(device)
        self.missing: dict[str, str] = {}
        self._lpips: dict[Figure, nn.Module] = {}
        for figure, backbone in _LPIPS_BACKBONES.items():
            if network := self._if_at_hand(figure, partial(load_lpips, backbone, weights, device)):
                self._lpips[figure] = network
        self._inception = self._if_at_hand(FID, partial(load_inception, weights, device))
        self.figures = self._list_figures()
        # Row -> figure of whole sets -> pair -> feature vector, on the CPU.
        self._views: dict[str, dict[str, dict[int, Tensor]]] = defaultdict(lambda: defaultdict(dict))
        self._photos: dict[str, dict[int, Tensor]] = defaultdict(dict)

    @torch.inference_mode()
    def target(
        self,
        photos: Tensor,
        references: Tensor,
        indices: Sequence[int],
        parts: Mapping[str, Tensor] | None = None,
    ) -> Targets:
        """A batch's true photos and reference photos, each (B, 3, H, W) in [-1, 1], of the pairs with these indices.

        Args:
            parts: name -> where that part of each photo is, (B, H, W) bool; empty for a photo without it.

        Raises:
            SidestepError: if they are too small to measure.
        """
        if min(photos.shape[-2:]) < SMALLEST:
            height, width = photos.shape[-2:]
            raise SidestepError(f"photos of {width}x{height} px are too small to measure; take {SMALLEST} or more")
        pictures = self._at_sizes(photos)
        description = self._features.describe(pictures[None])
        _keep(self._photos[KERNEL.name], indices, description.pooled)
        for name, features in self._inception_features(pictures).items():
            _keep(self._photos[name], indices, features)
        return Targets(
            tuple(indices),
            pictures,
            {size: self._features.stages(picture) for size, picture in pictures.items()},
            (_layout(pictures[None]), _layout(references.to(self._device, torch.float32))),
            description.logits.argmax(1),
            gradient_energy(pictures[None]),
            {name: part.to(self._device) for name, part in (parts or {}).items()},
        )

    @torch.inference_mode()
    def compare(
        self, row: str, views: Tensor, targets: Targets, indices: Sequence[int]
    ) -> dict[str, list[float | None]]:
        """Figure -> one value a view, for the figures that have one; None where a target has no such part.

        Args:
            row: whose views.
            views: (N, 3, H, W) in [-1, 1], as large as the photos.
            targets: of a batch that holds these pairs.
            indices: N pairs, each view's; those that the row has no view for are just not among them.

        Raises:
            SidestepError: if a view has values that are no number.
        """
        if not views.isfinite().all():
            index = indices[int((~views.isfinite()).flatten(1).any(1).nonzero()[0])]
            raise SidestepError(f"{row}: the view of pair {index} holds NaN or infinity; the model is damaged")
        targets = targets.of(indices)
        pictures = self._at_sizes(views)
        values: dict[str, Tensor] = {}
        for size, picture in pictures.items():
            stages = self._features.stages(picture)
            for figure, measured in self._measure(picture, stages, targets, size).items():
                values[_at(figure, size).name] = measured
            if size is None:
                values |= self._measure_parts(picture, stages, targets)
        description = self._features.describe(pictures[None])
        values[SAME_CLASS.name] = (description.logits.argmax(1) == targets.classes).float()
        values[GRADIENT.name] = (gradient_energy(pictures[None]) + _ROUNDING_ENERGY) / (
            targets.energy + _ROUNDING_ENERGY
        )
        _keep(self._views[row][KERNEL.name], indices, description.pooled)
        for name, features in self._inception_features(pictures).items():
            _keep(self._views[row][name], indices, features)
        return {
            figure.name: [None if math.isnan(value) else value for value in values[figure.name].tolist()]
            for figure in self.figures
            if figure.per_pair
        }

    @property
    def judge(self) -> str:
        """What `distance` measures."""
        return (LPIPS_ALEX if LPIPS_ALEX in self._lpips else PERCEPTUAL).title

    @torch.inference_mode()
    def distance(self, views: Tensor, targets: Targets) -> Tensor:
        """How far views (B, 3, H, W) are from their photos, (B,) on the CPU: by LPIPS (Alex), or by the perceptual
        distance where that is missing. What the paper's choice between fusions goes by.
        """
        views = views.to(self._device, torch.float32).clamp(-1.0, 1.0)
        if LPIPS_ALEX in self._lpips:
            return self._lpips[LPIPS_ALEX](views, targets.pictures[None]).flatten().cpu()
        return stage_distance(self._features.stages(views), targets.stages[None]).cpu()

    def features_of(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """What figures of whole sets need of the pictures of some pairs, for `take_up`."""
        found = {}
        sets = [(f"photos/{figure}", kept) for figure, kept in self._photos.items()]
        sets += [(f"views/{row}/{figure}", kept) for row, own in self._views.items() for figure, kept in own.items()]
        for name, kept in sets:
            there = [index for index in indices if index in kept]
            if there:
                found[name] = torch.stack([kept[index] for index in there])
                found[f"{name}/pairs"] = torch.tensor(there)
        return found

    def take_up(self, features: Mapping[str, Tensor]) -> None:
        """Takes what `features_of` gave in another process for what was measured here."""
        for name, vectors in features.items():
            if name.endswith("/pairs"):
                continue
            kind, *row, figure = name.split("/")
            kept = self._views[row[0]][figure] if kind == "views" else self._photos[figure]
            _keep(kept, features[f"{name}/pairs"].tolist(), vectors)

    def whole(self, row: str, indices: Sequence[int], scenes: Sequence[str], seed: int) -> dict[str, Estimate]:
        """Figure -> estimate, for the figures of whole sets, over those of the pairs that the row has views for.

        Nothing for fewer than two. FID has no interval (both ends are the value): drawing pictures twice lowers the
        spread that it compares, so a bootstrap of it is biased. Both figures depend on how many pairs there are, FID
        strongly, so rows compare only over the same pairs.

        Args:
            indices: the pairs of a subset.
            scenes: the scene of each.
        """
        estimates: dict[str, Estimate] = {}
        for figure in self.figures:
            views, photos = self._views[row][figure.name], self._photos[figure.name]
            chosen = [(index, scene) for index, scene in zip(indices, scenes, strict=True) if index in views]
            if figure.per_pair or len(chosen) < 2:
                continue
            real = torch.stack([photos[index] for index, _ in chosen])
            fake = torch.stack([views[index] for index, _ in chosen])
            if figure == KERNEL:
                estimates[figure.name] = kernel_distance(real, fake, [scene for _, scene in chosen], seed)
            else:
                value = frechet_distance(real, fake)
                estimates[figure.name] = Estimate(value, value, value)
        return estimates

    def _if_at_hand(self, figure: Figure, load: Callable[[], nn.Module]) -> nn.Module | None:
        try:
            return load()
        except NotAtHandError as reason:
            self.missing[figure.title] = str(reason)
            return None

    def _list_figures(self) -> list[Figure]:
        measured = [figure for figure in _PER_PICTURE if figure.title not in self.missing]
        whole = [FID] if self._inception is not None else []
        own_size = [*measured, MOVED, SAME_CLASS, GRADIENT, KERNEL, *whole]
        resized = [_at(figure, size) for size in self._sizes[1:] for figure in [*measured, *whole]]
        return own_size + resized + [_on(figure, part) for part in self._parts for figure in _OF_PARTS]

    def _measure(self, views: Tensor, stages: list[Tensor], targets: Targets, size: _Size) -> dict[Figure, Tensor]:
        photos = targets.pictures[size]
        measured = {
            PSNR: _psnr(views, photos),
            SSIM: _ssim(views, photos),
            PERCEPTUAL: stage_distance(stages, targets.stages[size]),
            **{figure: network(views, photos).flatten() for figure, network in self._lpips.items()},
        }
        if size is None:
            to_target, to_reference = ((_layout(views) - layout).square().mean((1, 2, 3)) for layout in targets.layouts)
            measured[MOVED] = (to_target < to_reference).float()
        return measured

    def _measure_parts(self, views: Tensor, stages: list[Tensor], targets: Targets) -> dict[str, Tensor]:
        """Figure's name -> (N,), NaN where a target has no such part."""
        photos = targets.pictures[None]
        errors, similar = (views - photos).square().mean(1), _ssim_map(views, photos)
        found: dict[str, Tensor] = {}
        for name in self._parts:
            part = targets.parts.get(name, torch.zeros_like(errors, dtype=torch.bool))
            pixels = part.sum((1, 2))
            error = (errors * part).sum((1, 2)) / pixels
            measured = {
                PSNR: (10 * torch.log10(4.0 / error)).clamp(max=HIGHEST_PSNR),
                SSIM: (similar * part).sum((1, 2)) / pixels,
                PERCEPTUAL: stage_distance(stages, targets.stages[None], part),
            }
            found |= {_on(figure, name).name: values for figure, values in measured.items()}
        return found

    def _at_sizes(self, pictures: Tensor) -> dict[_Size, Tensor]:
        pictures = pictures.to(self._device, torch.float32).clamp(-1.0, 1.0)
        return {size: pictures if size is None else _resized(pictures, size) for size in self._sizes}

    def _inception_features(self, pictures: dict[_Size, Tensor]) -> dict[str, Tensor]:
        """FID's name at each size -> (N, 2048); nothing where there is no FID."""
        if self._inception is None:
            return {}
        return {
            _at(FID, size).name: self._inception(((picture + 1.0) * 127.5).round().to(torch.uint8))[0]
            for size, picture in pictures.items()
        }


def _at(figure: Figure, size: _Size) -> Figure:
    if size is None:
        return figure
    return replace(figure, name=f"{figure.name}@{size}", title=f"{figure.title} at {size} px")


def _on(figure: Figure, part: str) -> Figure:
    title = figure.title.replace(" (dB)", "")
    unit = figure.title.removeprefix(title)
    return replace(figure, name=f"{figure.name}_{part}", title=f"{title} {part}{unit}", part=part)


def _keep(kept: dict[int, Tensor], indices: Sequence[int], features: Tensor) -> None:
    kept.update(zip(indices, features.float().cpu(), strict=True))


def _resized(pictures: Tensor, size: int) -> Tensor:
    return functional.interpolate(pictures, size=(size, size), mode="bilinear", antialias=True)


def _psnr(views: Tensor, photos: Tensor) -> Tensor:
    from torchmetrics.functional.image import peak_signal_noise_ratio

    values = peak_signal_noise_ratio(views, photos, data_range=2.0, reduction="none", dim=(1, 2, 3))
    return values.clamp(max=HIGHEST_PSNR)


def _ssim(views: Tensor, photos: Tensor) -> Tensor:
    from torchmetrics.functional.image import structural_similarity_index_measure

    values = structural_similarity_index_measure(views, photos, data_range=2.0, reduction="none")
    assert isinstance(values, Tensor)
    return values


def _ssim_map(views: Tensor, photos: Tensor) -> Tensor:
    """(B, H, W): SSIM of the window about each pixel, mean of the channels."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    _, places = structural_similarity_index_measure(
        views, photos, data_range=2.0, reduction="none", return_full_image=True
    )
    return places.mean(1)


def _layout(pictures: Tensor) -> Tensor:
    return functional.adaptive_avg_pool2d(pictures, 16)
