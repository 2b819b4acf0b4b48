"""The evaluation itself: pairs stream through the rows, a batch at a time, and leave figures behind."""

import datetime
import platform
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from PIL import Image
from torch import Tensor

from sidestep.cameras import Camera
from sidestep.captures import Scene, read_captures
from sidestep.captures.pairs import write_pairs
from sidestep.captures.splits import Split
from sidestep.errors import SidestepError
from sidestep.evaluation.baselines import BestBlur, blurred, floor_homography, floor_plane, point_warp
from sidestep.evaluation.comparison import choose_main_row
from sidestep.evaluation.gallery import COLUMNS, SIDE, first_sheet
from sidestep.evaluation.metrics import Metrics, Targets
from sidestep.evaluation.predictions import Predictions
from sidestep.evaluation.protocol import (
    DISTANCES,
    PROTOCOLS,
    PairOfFrames,
    ProtocolName,
    held_out_pairs,
    listed_pairs,
    pairs_of_frames,
    wrong_partners,
)
from sidestep.evaluation.report import write_report
from sidestep.evaluation.results import SUBSETS, Difference, Estimate, Group, Results, Row
from sidestep.evaluation.rows import Batch, Model, by_group
from sidestep.evaluation.statistics import bootstrap, paired_difference
from sidestep.files import atomic_path, make_folder
from sidestep.images import resize_and_crop, to_image, to_tensor
from sidestep.pipeline import NovelViewPipeline

GROUPS: tuple[Group, ...] = ("baseline", "model", "option", "limit")

COPY = Row("copy", "reference copied", "baseline")
BLUR = Row(
    "blurred", "reference blurred", "baseline", note="By the one Gaussian that scores the best PSNR on this very list."
)
FLOOR = Row("floor", "floor homography", "baseline", note="All that the reference shows is taken to lie on the floor.")
POINTS = Row(
    "points",
    "warp by known points",
    "baseline",
    note="Distances come from the scene's points, which no method is given.",
)

BASELINES = (COPY, BLUR, FLOOR, POINTS)

# Differences that say what a part is worth, besides the main row's against every other.
COMPARED = (("coarse", "blurred"), ("coarse", "coarse-wrong-camera"), ("variance", "addition"))


def evaluate(
    model: str | Path,
    data: str | Path,
    out: str | Path,
    *,
    prior: str | None = None,
    protocol: ProtocolName = "distance",
    split: Split = "test",
    pairs: Path | None = None,
    groups: Sequence[str] = ("baseline", "model"),
    predictions: Mapping[str, Path] | None = None,
    steps: int = 30,
    seed: int = 0,
    batch_size: int = 8,
    weights: Path | None = None,
    device: str | None = None,
    command: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> Results:
    """Evaluates a model on held-out scenes and writes a report into the folder `out`.

    The folder gets report.html, results.json, tables.csv, pairs.csv, tables.tex, pairs.json (the list of pairs) and
    first.jpg (the list's first pairs, side by side).

    Args:
        model, prior: as for `NovelViewPipeline.from_pretrained`.
        data: captures, as for `read_captures`.
        protocol: which pairs and sizes, see PROTOCOLS.
        split: of the protocol's rule.
        pairs: a list of pairs (`write_pairs`) in place of the protocol's own.
        groups: of rows: "baseline", "model", "option", "limit".
        predictions: row -> folder of another program's pictures, see `Predictions`.
        steps: of sampling.
        seed: of the list, the noise and the bootstrap.
        batch_size: pairs at once.
        weights: folder of LPIPS's and FID's published weights, see `Metrics`.
        command: what the report says it was made by.
        progress: called with (pairs done, pairs in all).

    Raises:
        SidestepError: if the data, the model, the list or the predictions do not fit, every row sees the true target,
            or `out` cannot be written to.
    """
    if protocol not in PROTOCOLS:
        raise SidestepError(f"protocol {protocol!r}: no such protocol; there are {', '.join(PROTOCOLS)}")
    if batch_size < 1:
        raise SidestepError(f"batch_size is {batch_size}; it must be 1 or more")
    for group in groups:
        if group not in GROUPS:
            raise SidestepError(f"rows {group!r}: no such group; there are {', '.join(GROUPS)}")
    rules = PROTOCOLS[protocol]
    scenes = read_captures(data)
    listed = listed_pairs(pairs, scenes) if pairs else held_out_pairs(scenes, rules, split, seed)
    every = pairs_of_frames(listed, scenes)
    pipe = NovelViewPipeline.from_pretrained(model, prior=prior, device=device)
    shown = Model(pipe.prior, pipe.tunet, steps, seed)
    for name in predictions or {}:
        taken = {maker.row.name for maker in by_group(shown, GROUPS)} | {row.name for row in BASELINES}
        if name in taken | {"reference", "target"}:
            raise SidestepError(f"predictions {name!r} is the name of another row; give it one of its own")
    others = [Predictions(name, folder, len(every)) for name, folder in (predictions or {}).items()]
    metrics = Metrics(pipe.device, rules.sizes, weights)
    run = _Run(every, shown, metrics, groups, others)
    about = {
        "Model": str(model),
        "Data": Path(data).resolve().name,
        "Prior": f"{prior or model}, fingerprint {pipe.prior.fingerprint()[:12]}",
        "Pairs": f"{len(every)} of {len({pair.scene.id for pair in every})} scenes, "
        + (f"listed in {pairs.name}" if pairs else f"protocol {protocol}, split {split}, seed {seed}"),
        "Pictures": f"{pipe.prior.image_size} px",
        "Sampling": f"{steps} steps from t* = {pipe.tunet.config.t_star}",
        "Device": _device(pipe.device, batch_size),
        "Date": datetime.date.today().isoformat(),
        "Command": command,
    }
    make_folder(out)
    with TemporaryDirectory(prefix="sidestep-evaluation-") as pictures:
        results = run(about, Path(pictures), batch_size, seed, progress)
        results.published = list(rules.published)
        write_pairs(Path(out) / "pairs.json", listed)
        write_report(results, Path(out), Path(pictures))
        with atomic_path(Path(out) / "first.jpg") as temporary:
            first_sheet(results, Path(pictures)).save(temporary, quality=85)
    return results


class _Run:
    def __init__(
        self,
        pairs: list[PairOfFrames],
        model: Model,
        metrics: Metrics,
        groups: Sequence[str],
        predictions: list[Predictions],
    ) -> None:
        self.pairs, self.model, self.metrics = pairs, model, metrics
        self.groups, self.predictions = groups, predictions
        self.makers = by_group(model, groups)
        self.prediction_rows = [Row(each.name, each.name, "predictions") for each in predictions]
        self.declared = [
            *(BASELINES if "baseline" in groups else ()),
            *(maker.row for maker in self.makers),
            *self.prediction_rows,
        ]
        if all(row.uses_target for row in self.declared):
            raise SidestepError("no row, or only such that see the true target; add the rows baseline or model")
        self.size = model.prior.image_size
        self.seconds: dict[str, float] = defaultdict(float)
        self.values: dict[str, dict[str, list[float | None]]] = {}

    def __call__(
        self,
        about: dict[str, str],
        pictures: Path,
        batch_size: int,
        seed: int,
        progress: Callable[[int, int], None] | None,
    ) -> Results:
        sigma = self._best_blur(batch_size) if "baseline" in self.groups else 0.0
        partners = wrong_partners(self.pairs, seed)
        done = 0
        for start in range(0, len(self.pairs), batch_size):
            chosen = self.pairs[start : start + batch_size]
            references, targets = (self._photos(chosen, which) for which in ("reference", "target"))
            truth = self.metrics.target(targets, references, [pair.position for pair in chosen])
            batch = self._batch(chosen, partners, (references, targets), truth)
            _keep(pictures / "reference", chosen, references)
            _keep(pictures / "target", chosen, targets)
            for row, members, views in self._rows(chosen, references, batch, sigma):
                positions = [pair.position for pair in members]
                for figure, values in self.metrics.compare(row.name, views, truth, positions).items():
                    column = self.values.setdefault(row.name, {}).setdefault(figure, [None] * len(self.pairs))
                    for position, value in zip(positions, values, strict=True):
                        column[position] = value
                if row.name in COLUMNS or row.group == "predictions":
                    _keep(pictures / row.name, members, views)
            done += len(chosen)
            if progress is not None:
                progress(done, len(self.pairs))
        return self._results(about, sigma, seed)

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

    def _batch(
        self, pairs: Sequence[PairOfFrames], partners: Sequence[int], photos: tuple[Tensor, Tensor], truth: Targets
    ) -> Batch:
        others = [self.pairs[partners[pair.position]] for pair in pairs]
        return Batch.of_pairs(self.model, pairs, others, photos, lambda views: self.metrics.distance(views, truth))

    def _cameras(self, scene: Scene) -> Camera:
        """All of a scene's cameras, of pictures as the model sees them."""
        return Camera.stack([frame.camera.resize_and_crop(self.size) for frame in scene.frames])

    def _rows(
        self, pairs: list[PairOfFrames], references: Tensor, batch: Batch, sigma: float
    ) -> Iterator[tuple[Row, list[PairOfFrames], Tensor]]:
        """Each row's views of those pairs that it has any for."""
        if "baseline" in self.groups:
            yield COPY, pairs, references
            yield BLUR, pairs, blurred(references, sigma)
            for row in (FLOOR, POINTS):
                began = time.perf_counter()
                warped = [(pair, self._warped(row, pair, references[i])) for i, pair in enumerate(pairs)]
                made = [(pair, view) for pair, view in warped if view is not None]
                if made:
                    self.seconds[row.name] += time.perf_counter() - began
                    yield row, [pair for pair, _ in made], torch.stack([view for _, view in made])
        for maker in self.makers:
            views, seconds = batch.run(maker)
            self.seconds[maker.row.name] += seconds
            yield maker.row, pairs, views
        for row, predictions in zip(self.prediction_rows, self.predictions, strict=True):
            members = [pair for pair in pairs if predictions.has(pair.position)]
            if members:
                yield row, members, predictions.load([pair.position for pair in members], self.size)

    def _warped(self, row: Row, pair: PairOfFrames, photo: Tensor) -> Tensor | None:
        """A view by known geometry, (3, S, S); None for a scene that does not tell it."""
        scene = pair.scene
        plane = floor_plane(self._cameras(scene), scene.points)
        reference, target = (
            Camera.stack([frame.camera.resize_and_crop(self.size)]) for frame in (pair.reference, pair.target)
        )
        if row == POINTS:
            if scene.points is None or not len(scene.points):
                return None
            return point_warp(photo[None], reference, target, scene.points, plane)[0]
        return None if plane is None else floor_homography(photo[None], reference, target, plane)[0]

    def _results(self, about: dict[str, str], sigma: float, seed: int) -> Results:
        blur = replace(BLUR, note=f"{BLUR.note} Its deviation: {sigma * self.size:.1f} px.")
        rows = [blur if row == BLUR else row for row in self.declared if row.name in self.values]
        rows = [
            replace(row, note=f"{row.note} Here: {self.metrics.judge}.") if row.name == "oracle" else row
            for row in rows
        ]
        scenes = [pair.scene.id for pair in self.pairs]
        estimates: dict[str, dict[str, dict[str, Estimate]]] = {}
        for row in rows:
            for subset in SUBSETS:
                chosen = [pair.position for pair in self.pairs if subset in pair.info.subsets]
                if chosen:
                    estimates.setdefault(row.name, {})[subset] = self._estimates(row, chosen, scenes, seed)
        results = Results(
            about,
            [pair.info for pair in self.pairs],
            rows,
            self.metrics.figures,
            self.metrics.missing,
            self.values,
            estimates,
            seconds={name: seconds / self._count(name) for name, seconds in self.seconds.items()},
            memory=_peak_memory(self.model.prior.unet.device),
        )
        results.differences = self._differences(rows, choose_main_row(results), scenes, seed)
        return results

    def _count(self, row: str) -> int:
        """Of how many pairs a row has views."""
        return sum(value is not None for value in next(iter(self.values[row].values())))

    def _estimates(self, row: Row, chosen: list[int], scenes: list[str], seed: int) -> dict[str, Estimate]:
        """A row's figures over the pairs at these positions."""
        there = [scenes[position] for position in chosen]
        found: dict[str, Estimate] = {}
        for figure in self.metrics.figures:
            if figure.per_pair:
                column = self.values[row.name][figure.name]
                values = [column[position] for position in chosen]
                estimate = bootstrap(values, there, seed, geometric=figure.better == "one")
                if estimate is not None:
                    found[figure.name] = estimate
        # A whole set's figure depends on how many pairs there are: a row with some missing cannot be compared.
        if self._count(row.name) == len(self.pairs):
            found |= self.metrics.whole(row.name, chosen, there, seed)
        return found

    def _differences(self, rows: list[Row], main: str, scenes: list[str], seed: int) -> list[Difference]:
        names = {row.name for row in rows}
        compared = [(main, row.name) for row in rows if row.name != main and row.group != "limit"]
        compared = [pair for pair in COMPARED if names.issuperset(pair) and pair not in compared] + compared
        found = []
        for subset in ("all", *DISTANCES):
            chosen = [pair.position for pair in self.pairs if subset in pair.info.subsets]
            for figure in self.metrics.figures:
                if not figure.per_pair:
                    continue
                for row, against in compared:
                    ours, theirs = ([self.values[name][figure.name][i] for i in chosen] for name in (row, against))
                    geometric = figure.better == "one"
                    there = [scenes[i] for i in chosen]
                    estimate = paired_difference(ours, theirs, there, seed, geometric=geometric)
                    if estimate is not None:
                        found.append(Difference(row, against, figure.name, subset, estimate))
        return found


def _keep(folder: Path, pairs: Sequence[PairOfFrames], pictures: Tensor) -> None:
    """As small as the report shows them; it shows some, once it is known which."""
    folder.mkdir(exist_ok=True)
    for pair, picture in zip(pairs, pictures, strict=True):
        image = to_image(picture)
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        image.save(folder / f"{pair.position:05d}.png")


def _device(device: torch.device, batch_size: int) -> str:
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{device.type} ({platform.machine()}), {torch.get_num_threads()} threads"
    return f"{name}, torch {torch.__version__}, batches of {batch_size}"


def _peak_memory(device: torch.device) -> dict[str, int]:
    """Bytes: of the process, and of the GPU if there is one."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {"process": peak if sys.platform == "darwin" else peak * 1024}  # bytes there, kilobytes elsewhere
    if device.type == "cuda":
        found["GPU"] = torch.cuda.max_memory_allocated(device)
    return found
