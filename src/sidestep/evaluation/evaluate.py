"""The evaluation itself, from captures to report: what is measured, and the estimates that come of it."""

import datetime
import platform
import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from sidestep.captures import read_captures
from sidestep.captures.pairs import write_pairs
from sidestep.captures.splits import Split
from sidestep.errors import SidestepError
from sidestep.evaluation.baseline_rows import BASELINES, PHOTOS
from sidestep.evaluation.comparison import choose_main_row
from sidestep.evaluation.gallery import PARTS_COLUMN, first_sheet
from sidestep.evaluation.kept import FOLDER, Kept, Measured
from sidestep.evaluation.measuring import Measuring
from sidestep.evaluation.metrics import Metrics
from sidestep.evaluation.predictions import Predictions
from sidestep.evaluation.protocol import (
    DISTANCES,
    PROTOCOLS,
    PairOfFrames,
    ProtocolName,
    held_out_pairs,
    listed_pairs,
    pairs_of_frames,
)
from sidestep.evaluation.report import write_report
from sidestep.evaluation.results import PARTS, SUBSETS, Difference, Estimate, Group, Results
from sidestep.evaluation.rows import Model, by_group
from sidestep.evaluation.statistics import bootstrap, paired_difference
from sidestep.files import alone, atomic_path, make_folder, sweep, writing
from sidestep.pipeline import NovelViewPipeline

GROUPS: tuple[Group, ...] = ("baseline", "model", "option", "limit")

WRITTEN = {"report.html", "results.json", "tables.csv", "pairs.csv", "tables.tex", "pairs.json", "first.jpg"}

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
    measuring = Measuring(every, shown, metrics, groups, others)
    measuring.read_all()
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
            kept = Kept(out, measuring.made_of(batch_size, seed))
            results = _results(about, measuring, measuring.run(kept, batch_size, seed, progress), seed)
            results.published = list(rules.published)
            write_pairs(out / "pairs.json", listed)
            write_report(results, out, kept.pictures)
            with atomic_path(out / "first.jpg") as temporary:
                first_sheet(results, kept.pictures).save(temporary, quality=85)
            kept.clear()
    return results


def _results(about: dict[str, str], measuring: Measuring, measured: Measured, seed: int) -> Results:
    """What was measured, with the estimates that come of it."""
    positions = range(len(measuring.pairs))
    values = {
        row: {figure: [found.get(position) for position in positions] for figure, found in figures.items()}
        for row, figures in measured.values.items()
    }
    further = {
        "blurred": f" Its deviation: {measuring.sigma * measuring.size:.1f} px.",
        "oracle": f" Here: {measuring.metrics.judge}.",
    }
    rows = [replace(row, note=row.note + further.get(row.name, "")) for row in measuring.rows if row.name in values]
    if all(row.uses_target for row in rows):
        raise SidestepError("no row has a view without NaN or infinity; the model is damaged")
    results = Results(
        about,
        [replace(pair.info, shares=measured.shares[pair.position]) for pair in measuring.pairs],
        rows,
        measuring.figures,
        _missing(measuring, measured),
        values,
        seconds={name: took / _count(values[name]) for name, took in measured.seconds.items() if name in values},
        memory=_peak_memory(measuring.model.prior.unet.device),
        not_finite=dict(measured.not_finite),
    )
    for row in rows:
        for subset in SUBSETS:
            if chosen := _pairs_of(results, subset):
                found = _estimates(results, row.name, chosen, measuring.metrics, seed)
                results.estimates.setdefault(row.name, {})[subset] = found
    results.differences = _differences(results, seed)
    return results


def _missing(measuring: Measuring, measured: Measured) -> dict[str, str]:
    """What is not in the tables, and why."""
    missing = dict(measuring.metrics.missing)
    for name, reason in {
        "object": "no target has a mask; put masks beside the photos, in masks/",
        "unseen": "no pair has a depth map of both its photos; put depth maps beside the photos, in depths/",
    }.items():
        if not any(name in shares for shares in measured.shares.values()):
            missing[f"Figures {PARTS[name]}"] = reason
    for row in measuring.rows:
        if row.name in measured.not_finite and row.name not in measured.values:
            missing[row.title] = f"all of its {measured.not_finite[row.name]} views hold NaN or infinity"
    return missing


def _pairs_of(results: Results, subset: str) -> list[int]:
    return [index for index, pair in enumerate(results.pairs) if subset in pair.subsets]


def _count(columns: Mapping[str, list[float | None]]) -> int:
    """Of how many pairs a row has views, by its columns."""
    return sum(value is not None for value in next(iter(columns.values())))


def _estimates(results: Results, row: str, chosen: list[int], metrics: Metrics, seed: int) -> dict[str, Estimate]:
    """A row's figures over the chosen pairs."""
    columns, scenes = results.values[row], [results.pairs[index].scene for index in chosen]
    found: dict[str, Estimate] = {}
    for figure in results.figures:
        if column := columns.get(figure.name):
            values = [column[index] for index in chosen]
            estimate = bootstrap(values, scenes, seed, geometric=figure.better == "one")
            if estimate is not None:
                found[figure.name] = estimate
    # A whole set's figure depends on how many pairs there are: a row with some missing cannot be compared.
    if _count(columns) == len(results.pairs):
        found |= metrics.whole(row, chosen, scenes, seed)
    return found


def _differences(results: Results, seed: int) -> list[Difference]:
    """The main row against every other, and those of `COMPARED`."""
    main, names = choose_main_row(results), {row.name for row in results.rows}
    compared = [(main, row.name) for row in results.rows if row.name != main and row.group != "limit"]
    compared = [pair for pair in COMPARED if names.issuperset(pair) and pair not in compared] + compared
    found = []
    for subset in ("all", *DISTANCES):
        chosen = _pairs_of(results, subset)
        scenes = [results.pairs[index].scene for index in chosen]
        for figure in results.figures:
            for row, against in compared:
                ours, theirs = (results.values[name].get(figure.name) for name in (row, against))
                if not ours or not theirs:
                    continue
                left, right = ([column[index] for index in chosen] for column in (ours, theirs))
                estimate = paired_difference(left, right, scenes, seed, geometric=figure.better == "one")
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
