"""The evaluation itself: pairs stream through the rows, a batch at a time, and leave figures behind."""

import datetime
import platform
import resource
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from sidestep.captures import read_captures
from sidestep.captures.pairs import write_pairs
from sidestep.captures.splits import Split
from sidestep.errors import SidestepError
from sidestep.evaluation.agreement import AGREEMENT, Pixels, agreement, shared_places
from sidestep.evaluation.baseline_rows import BASELINES, BLUR, PHOTOS, baseline_views
from sidestep.evaluation.baselines import BestBlur
from sidestep.evaluation.comparison import choose_main_row
from sidestep.evaluation.gallery import COLUMNS, PARTS_COLUMN, SIDE, first_sheet, mark_parts
from sidestep.evaluation.kept import FOLDER, Kept, Measured, digest_of
from sidestep.evaluation.maps import PairMaps, measured_parts
from sidestep.evaluation.metrics import GRADIENT, HIGHEST_PSNR, Metrics, Targets
from sidestep.evaluation.predictions import Predictions
from sidestep.evaluation.protocol import (
    DISTANCES,
    PROTOCOLS,
    PairOfFrames,
    ProtocolName,
    frame_beside,
    held_out_pairs,
    listed_pairs,
    pairs_of_frames,
    wrong_partners,
)
from sidestep.evaluation.report import write_report
from sidestep.evaluation.results import PARTS, SUBSETS, Difference, Estimate, Group, Results, Row
from sidestep.evaluation.rows import Batch, Model, by_group, relative_cameras
from sidestep.evaluation.statistics import bootstrap, paired_difference
from sidestep.files import alone, atomic_path, bring_to_disk, make_folder, sweep, writing
from sidestep.images import resize_and_crop, to_image, to_tensor
from sidestep.pipeline import NovelViewPipeline

GROUPS: tuple[Group, ...] = ("baseline", "model", "option", "limit")

WRITTEN = {"report.html", "results.json", "tables.csv", "pairs.csv", "tables.tex", "pairs.json", "first.jpg"}

# Rows that make a second view of each pair, of the next camera, to be compared with the first.
AGREEING = {row.name for row in BASELINES} | {"coarse", "variance", "addition", "auto"}
LEAST_SHARED = 20  # places that two views must share for their agreement to count

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

    Interrupted or killed, the same call goes on after the last whole batch, of which the folder keeps what it has
    measured until the report is there; with another model, other pairs or settings it begins anew.

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
        SidestepError: if the data, the model, the list or the predictions do not fit, a photo or map of the pairs is
            damaged, every row sees the true target, or `out` cannot be written to.
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
        taken = {maker.row.name for maker in by_group(shown, GROUPS)} | {row.name for row in (*BASELINES, PHOTOS)}
        if name in taken | {"reference", "target", PARTS_COLUMN}:
            raise SidestepError(f"predictions {name!r} is the name of another row; give it one of its own")
    others = [Predictions(name, folder, len(every)) for name, folder in (predictions or {}).items()]
    metrics = Metrics(pipe.device, rules.sizes, weights, _parts(every))
    run = _Run(every, shown, metrics, groups, others)
    run.read_all()
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
    out = Path(out)
    make_folder(out)
    with alone(out / ".lock", f"{out}: another evaluation writes into it; wait for it, or name another folder"):
        sweep(out, {*WRITTEN, FOLDER})
        with writing(out):
            kept = Kept(out, run.made_of(batch_size, seed))
            results = run(about, kept, batch_size, seed, progress)
            results.published = list(rules.published)
            write_pairs(out / "pairs.json", listed)
            write_report(results, out, kept.pictures)
            with atomic_path(out / "first.jpg") as temporary:
                first_sheet(results, kept.pictures).save(temporary, quality=85)
            kept.clear()
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
            *((*BASELINES, PHOTOS) if "baseline" in groups else ()),
            *(maker.row for maker in self.makers),
            *self.prediction_rows,
        ]
        if all(row.uses_target for row in self.declared):
            raise SidestepError("no row, or only such that see the true target; add the rows baseline or model")
        self.size = model.prior.image_size
        self.measured = Measured()
        self.values: dict[str, dict[str, list[float | None]]] = {}
        self.sigma = 0.0
        self.figures = list(metrics.figures)
        self.figures.insert(self.figures.index(GRADIENT) + 1, AGREEMENT)

    def read_all(self) -> None:
        """Reads every photo and map that the evaluation will, so that a damaged one is found before the work.

        Raises:
            SidestepError: if one cannot be read or does not fit.
        """
        frames = [frame for pair in self.pairs for frame in (pair.reference, pair.target)]
        if any(row.name in AGREEING for row in self.declared):
            frames += [frame for pair in self.pairs if (frame := frame_beside(pair))]
        for frame in {str(frame.path): frame for frame in frames}.values():
            frame.load()
            frame.load_mask()
            frame.load_depth()

    def made_of(self, batch_size: int, seed: int) -> str:
        """A digest of all that the results depend on."""
        prior, tunet = self.model.prior, self.model.tunet
        settings = {
            "rows": [asdict(row) for row in self.declared],
            "figures": [figure.name for figure in self.figures],
            "predictions": [each.checksum() for each in self.predictions],
            "numbers": [self.model.steps, self.model.seed, batch_size, seed, self.size],
            "computed by": [version("sidestep"), torch.__version__, str(prior.unet.device), str(prior.unet.dtype)],
        }
        return digest_of([prior, tunet], self.pairs, settings)

    def __call__(
        self,
        about: dict[str, str],
        kept: Kept,
        batch_size: int,
        seed: int,
        progress: Callable[[int, int], None] | None,
    ) -> Results:
        self.sigma = self._best_blur(batch_size) if "baseline" in self.groups else 0.0
        partners = wrong_partners(self.pairs, seed)
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
            self.measured.add(measured)
            done += len(chosen)
            if progress is not None:
                progress(done, len(self.pairs))
        for row, figures in self.measured.values.items():
            self.values[row] = {
                figure: [values.get(position) for position in range(len(self.pairs))]
                for figure, values in figures.items()
            }
        return self._results(about, seed)

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
        batch = self._batch(chosen, partners, (references, targets), truth)
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

    def _batch(
        self, pairs: Sequence[PairOfFrames], partners: Sequence[int], photos: tuple[Tensor, Tensor], truth: Targets
    ) -> Batch:
        others = [self.pairs[partners[pair.position]] for pair in pairs]
        return Batch.of_pairs(self.model, pairs, others, photos, lambda views: self.metrics.distance(views, truth))

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

    def _results(self, about: dict[str, str], seed: int) -> Results:
        blur = replace(BLUR, note=f"{BLUR.note} Its deviation: {self.sigma * self.size:.1f} px.")
        rows = [blur if row == BLUR else row for row in self.declared if row.name in self.values]
        if all(row.uses_target for row in rows):
            raise SidestepError("no row has a view without NaN or infinity; the model is damaged")
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
            [replace(pair.info, shares=self.measured.shares[pair.position]) for pair in self.pairs],
            rows,
            self.figures,
            self._missing(),
            self.values,
            estimates,
            seconds={
                name: seconds / self._count(name)
                for name, seconds in self.measured.seconds.items()
                if name in self.values
            },
            memory=_peak_memory(self.model.prior.unet.device),
            not_finite=dict(self.measured.not_finite),
        )
        results.differences = self._differences(rows, choose_main_row(results), scenes, seed)
        return results

    def _missing(self) -> dict[str, str]:
        """What is not in the tables, and why."""
        missing = dict(self.metrics.missing)
        for name, reason in {
            "object": "no target has a mask; put masks beside the photos, in masks/",
            "unseen": "no pair has a depth map of both its photos; put depth maps beside the photos, in depths/",
        }.items():
            if not any(name in shares for shares in self.measured.shares.values()):
                missing[f"Figures {PARTS[name]}"] = reason
        for row in self.declared:
            if row.name in self.measured.not_finite and row.name not in self.values:
                missing[row.title] = f"all of its {self.measured.not_finite[row.name]} views hold NaN or infinity"
        return missing

    def _count(self, row: str) -> int:
        """Of how many pairs a row has views."""
        return sum(value is not None for value in next(iter(self.values[row].values())))

    def _estimates(self, row: Row, chosen: list[int], scenes: list[str], seed: int) -> dict[str, Estimate]:
        """A row's figures over the pairs at these positions."""
        there = [scenes[position] for position in chosen]
        found: dict[str, Estimate] = {}
        for figure in self.figures:
            if figure.per_pair:
                column = self.values[row.name].get(figure.name)
                if column is None:
                    continue
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
            for figure in self.figures:
                if not figure.per_pair:
                    continue
                for row, against in compared:
                    columns = [self.values[name].get(figure.name) for name in (row, against)]
                    ours, theirs = ([column[i] if column else None for i in chosen] for column in columns)
                    geometric = figure.better == "one"
                    there = [scenes[i] for i in chosen]
                    estimate = paired_difference(ours, theirs, there, seed, geometric=geometric)
                    if estimate is not None:
                        found.append(Difference(row, against, figure.name, subset, estimate))
        return found


def _parts(pairs: Sequence[PairOfFrames]) -> list[str]:
    """The parts of the targets that some pair has maps for."""
    known = {
        "object": any(pair.target.mask is not None for pair in pairs),
        "unseen": any(pair.reference.depth is not None and pair.target.depth is not None for pair in pairs),
    }
    return [part for part in PARTS if known[part]]


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
