"""The measuring of an evaluation: pairs stream through the rows, a batch at a time, and leave figures behind."""

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from sidestep.errors import SidestepError
from sidestep.evaluation.agreement import AGREEMENT, Pixels, agreement, shared_places
from sidestep.evaluation.baseline_rows import BASELINES, PHOTOS, baseline_views
from sidestep.evaluation.baselines import BestBlur
from sidestep.evaluation.gallery import COLUMNS, PARTS_COLUMN, SIDE, mark_parts
from sidestep.evaluation.kept import Kept, Measured, digest_of
from sidestep.evaluation.maps import PairMaps, measured_parts
from sidestep.evaluation.metrics import GRADIENT, HIGHEST_PSNR, Metrics
from sidestep.evaluation.predictions import Predictions
from sidestep.evaluation.protocol import PairOfFrames, frame_beside, wrong_partners
from sidestep.evaluation.results import Row
from sidestep.evaluation.rows import Batch, Model, by_group, relative_cameras
from sidestep.files import bring_to_disk
from sidestep.images import resize_and_crop, to_image, to_tensor

# Rows that make a second view of each pair, of the next camera, to be compared with the first.
AGREEING = {row.name for row in BASELINES} | {"coarse", "variance", "addition", "auto"}
LEAST_SHARED = 20  # places that two views must share for their agreement to count


class Measuring:
    """A list of pairs on its way through the rows.

    Attributes:
        rows: all that are asked for; some may turn out to have no view.
        figures: what is measured of each.
        sigma: of the blur that scores best on the list, once it has been measured.
    """

    def __init__(
        self,
        pairs: list[PairOfFrames],
        model: Model,
        metrics: Metrics,
        groups: Sequence[str],
        predictions: list[Predictions],
    ) -> None:
        """Takes what `evaluate` was given.

        Raises:
            SidestepError: if every row sees the true target.
        """
        self.pairs, self.model, self.metrics = pairs, model, metrics
        self.groups, self.predictions = groups, predictions
        self.makers = by_group(model, groups)
        self.prediction_rows = [Row(each.name, each.name, "predictions") for each in predictions]
        self.rows = [
            *((*BASELINES, PHOTOS) if "baseline" in groups else ()),
            *(maker.row for maker in self.makers),
            *self.prediction_rows,
        ]
        if all(row.uses_target for row in self.rows):
            raise SidestepError("no row, or only such that see the true target; add the rows baseline or model")
        self.size = model.prior.image_size
        self.sigma = 0.0
        self.figures = list(metrics.figures)
        self.figures.insert(self.figures.index(GRADIENT) + 1, AGREEMENT)

    def read_all(self) -> None:
        """Reads every photo and map that the evaluation will, so that a damaged one is found before the work.

        Raises:
            SidestepError: if one cannot be read or does not fit.
        """
        frames = [frame for pair in self.pairs for frame in (pair.reference, pair.target)]
        if any(row.name in AGREEING for row in self.rows):
            frames += [frame for pair in self.pairs if (frame := frame_beside(pair))]
        for frame in {str(frame.path): frame for frame in frames}.values():
            frame.load()
            frame.load_mask()
            frame.load_depth()

    def made_of(self, batch_size: int, seed: int) -> str:
        """A digest of all that the results depend on."""
        prior, tunet = self.model.prior, self.model.tunet
        settings = {
            "rows": [asdict(row) for row in self.rows],
            "figures": [figure.name for figure in self.figures],
            "predictions": [each.checksum() for each in self.predictions],
            "numbers": [self.model.steps, self.model.seed, batch_size, seed, self.size],
            "computed by": [version("sidestep"), torch.__version__, str(prior.unet.device), str(prior.unet.dtype)],
        }
        return digest_of([prior, tunet], self.pairs, settings)

    def run(
        self, kept: Kept, batch_size: int, seed: int, progress: Callable[[int, int], None] | None = None
    ) -> Measured:
        """Measures what `kept` does not hold yet, batch by batch, and gives all of it."""
        self.sigma = self._best_blur(batch_size) if "baseline" in self.groups else 0.0
        partners = wrong_partners(self.pairs, seed)
        everything = Measured()
        done = 0
        for number, start in enumerate(range(0, len(self.pairs), batch_size)):
            chosen = self.pairs[start : start + batch_size]
            before = kept.read(number)
            if before is not None:
                measured, features = before
                self.metrics.take_up(features)
            else:
                measured = self._measure(chosen, partners, kept.pictures)
                kept.write(number, measured, self.metrics.features_of([pair.position for pair in chosen]))
            everything.add(measured)
            done += len(chosen)
            if progress is not None:
                progress(done, len(self.pairs))
        return everything

    def _measure(self, chosen: list[PairOfFrames], partners: Sequence[int], pictures: Path) -> Measured:
        """Makes the views of a batch and measures them.

        Args:
            pictures: a folder for small ones.
        """
        measured = Measured()
        references, targets = (self._photos(chosen, which) for which in ("reference", "target"))
        maps = [PairMaps.load(pair, self.size) for pair in chosen]
        positions = [pair.position for pair in chosen]
        truth = self.metrics.target(targets, references, positions, measured_parts(maps))
        others = [self.pairs[partners[pair.position]] for pair in chosen]
        batch = Batch.of_pairs(
            self.model, chosen, others, (references, targets), lambda views: self.metrics.distance(views, truth)
        )
        _keep(pictures / "reference", chosen, references)
        _keep(pictures / "target", chosen, targets)
        for pair, photo, own in zip(chosen, targets, maps, strict=True):
            if own.parts:
                _keep(pictures / PARTS_COLUMN, [pair], mark_parts(photo, own.parts)[None])
        measured.shares = {pair.position: own.shares for pair, own in zip(chosen, maps, strict=True)}
        firsts: dict[str, dict[int, Tensor]] = {}
        for row, members, views, seconds in self._rows(chosen, references, maps, batch):
            if seconds:
                measured.seconds[row.name] += seconds
            members, views = _finite(measured, row, members, views)
            if not members:
                continue
            positions = [pair.position for pair in members]
            for figure, values in self.metrics.compare(row.name, views, truth, positions).items():
                measured.note(row.name, figure, dict(zip(positions, values, strict=True)))
            if row.name in AGREEING:
                firsts[row.name] = dict(zip(positions, views, strict=True))
            if row.name in COLUMNS or row.group == "predictions":
                _keep(pictures / row.name, members, views)
        self._agree(measured, chosen, references, targets, maps, batch, firsts)
        return measured

    def _agree(
        self,
        measured: Measured,
        pairs: list[PairOfFrames],
        references: Tensor,
        targets: Tensor,
        maps: list[PairMaps],
        batch: Batch,
        firsts: dict[str, dict[int, Tensor]],
    ) -> None:
        """How far rows' views agree with their views for the next cameras; a pair lacks it where either is not finite.

        Args:
            firsts: row -> pair's position -> its view, (3, S, S).
        """
        if not firsts:
            return
        # A pair without a next camera keeps its place in the batch, and is looked past.
        beside = [replace(pair, target=frame_beside(pair) or pair.target) for pair in pairs]
        photos = self._photos(beside, "target")
        shared: dict[int, Pixels] = {}
        for pair, next_one, both in zip(pairs, beside, zip(targets, photos, strict=True), strict=True):
            if next_one.target is pair.target:
                continue
            pixels = shared_places((pair.target, next_one.target), pair.scene.points, torch.stack(both))
            if pixels is not None and len(pixels[0]) >= LEAST_SHARED:
                shared[pair.position] = pixels
        if not shared:
            return

        def measure(row: Row, first: Mapping[int, Tensor], second: Mapping[int, Tensor]) -> None:
            found = {}
            for position in shared.keys() & first.keys() & second.keys():
                views = torch.stack([first[position], second[position]]).clamp(-1.0, 1.0)
                value = agreement(views, shared[position])
                found[position] = None if value is None else min(value, HIGHEST_PSNR)
            measured.note(row.name, AGREEMENT.name, found)

        positions = [pair.position for pair in pairs]
        if "baseline" in self.groups:
            measure(PHOTOS, dict(zip(positions, targets, strict=True)), dict(zip(positions, photos, strict=True)))
        second = batch.towards(relative_cameras(beside, self.size)[1], photos)
        for row, members, views, _ in self._rows(beside, references, maps, second, AGREEING):
            first = firsts.get(row.name, {})
            compared = [pair.position in shared and pair.position in first for pair in members]
            kept = [pair for pair, good in zip(members, compared, strict=True) if good]
            kept, views = _finite(measured, row, kept, views[torch.tensor(compared)])
            if kept:
                measure(row, first, {pair.position: view for pair, view in zip(kept, views, strict=True)})

    def _photos(self, pairs: Sequence[PairOfFrames], which: str) -> Tensor:
        """(B, 3, S, S) in [-1, 1]."""
        frames = [getattr(pair, which) for pair in pairs]
        return torch.stack([to_tensor(resize_and_crop(frame.load(), self.size)) for frame in frames])

    def _best_blur(self, batch_size: int) -> float:
        best = BestBlur()
        for start in range(0, len(self.pairs), batch_size):
            chosen = self.pairs[start : start + batch_size]
            best.add(self._photos(chosen, "reference"), self._photos(chosen, "target"))
        return best.sigma

    def _rows(
        self,
        pairs: list[PairOfFrames],
        references: Tensor,
        maps: list[PairMaps],
        batch: Batch,
        only: Set[str] | None = None,
    ) -> Iterator[tuple[Row, list[PairOfFrames], Tensor, float]]:
        """Each row's views of those pairs that it has any for, and the seconds that they took; `only` these rows."""
        if "baseline" in self.groups:
            yield from baseline_views(pairs, references, maps, self.sigma)
        for maker in self.makers:
            if only is None or maker.row.name in only:
                yield maker.row, pairs, *batch.run(maker)
        if only is not None:
            return
        for row, predictions in zip(self.prediction_rows, self.predictions, strict=True):
            members = [pair for pair in pairs if predictions.has(pair.position)]
            if members:
                yield row, members, predictions.load([pair.position for pair in members], self.size), 0.0


def _finite(
    measured: Measured, row: Row, members: list[PairOfFrames], views: Tensor
) -> tuple[list[PairOfFrames], Tensor]:
    """Without the views that hold NaN or infinity, which are counted."""
    finite = views.isfinite().flatten(1).all(1)
    lost = int((~finite).sum())
    if lost:
        measured.not_finite[row.name] += lost
    return [pair for pair, good in zip(members, finite.tolist(), strict=True) if good], views[finite]


def _keep(folder: Path, pairs: Sequence[PairOfFrames], pictures: Tensor) -> None:
    """As small as the report shows them; it shows some, once it is known which. On the disk before their batch is."""
    folder.mkdir(exist_ok=True)
    for pair, picture in zip(pairs, pictures, strict=True):
        image = to_image(picture)
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        file = folder / f"{pair.position:05d}.png"
        image.save(file)
        bring_to_disk(file)
