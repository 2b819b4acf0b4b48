"""Who is better, by how much and how surely: the readings of an evaluation that tables, charts and summary share."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sidestep.errors import SidestepError
from sidestep.evaluation.results import Estimate, Figure, Group, Results, Row

Verdict = Literal["better", "worse", "unclear"]

MAIN_GROUPS: tuple[Group, ...] = ("baseline", "model", "predictions")


def find_row(results: Results, name: str) -> Row:
    """The row of that name.

    Raises:
        SidestepError: if there is none.
    """
    for row in results.rows:
        if row.name == name:
            return row
    raise SidestepError(f"{name}: no such row; there are {', '.join(row.name for row in results.rows)}")


def choose_main_row(results: Results) -> str:
    """The row that a report is about: A, which is what the pipeline does by default; where there is none, the first of
    the model's rows, of another program's, or of all, that does not see the target.

    Raises:
        SidestepError: if the results have no row that could be one.
    """
    fair = [row for row in results.rows if not row.uses_target]
    ordered = [
        *(row for row in fair if row.name == "variance"),
        *(row for row in fair if row.group == "model"),
        *(row for row in fair if row.group == "predictions"),
        *fair,
    ]
    if not ordered:
        raise SidestepError("every row sees the true target; evaluate one that does not")
    return ordered[0].name


def choose_main_figure(results: Results) -> Figure | None:
    """The figure that scenes are sorted by: the perceptual distance, else LPIPS, else PSNR, else the first a pair."""
    figures = [figure for figure in results.figures if figure.per_pair]
    for start in ("perceptual", "lpips", "psnr"):
        for figure in figures:
            if figure.name.startswith(start):
                return figure
    return figures[0] if figures else None


def main_rows(results: Results) -> list[Row]:
    """Baselines, the model's outputs and other programs' pictures, in this order."""
    return [row for group in MAIN_GROUPS for row in results.rows if row.group == group]


def estimate_of(results: Results, row: str, figure: Figure, subset: str = "all") -> Estimate | None:
    """The estimate, or None where there is none or it is no number."""
    estimate = results.estimates.get(row, {}).get(subset, {}).get(figure.name)
    return None if estimate is None or math.isnan(estimate.value) else estimate


def pairs_without_picture(results: Results, row: str, subset: str = "all") -> int:
    """How many pairs of the subset the row has no value for at all, though others have one of the same figures; 0 for
    a row without values a pair.
    """
    columns = results.values.get(row, {})
    if not columns:
        return 0
    return sum(
        subset in pair.subsets
        and all(column[index] is None for column in columns.values())
        and any(_is_measured(results, figure, index) for figure in columns)
        for index, pair in enumerate(results.pairs)
    )


def pairs_behind(results: Results, row: str, figure: Figure, subset: str = "all") -> set[int]:
    """Which pairs of the subset a row's figure speaks of: those with a value, or all for one of whole sets, which a row
    that lacks pairs has none of.
    """
    column = results.values.get(row, {}).get(figure.name)
    return {
        index
        for index, pair in enumerate(results.pairs)
        if subset in pair.subsets and (not figure.per_pair or (column is not None and column[index] is not None))
    }


def scenes_behind(results: Results, pairs: set[int]) -> int:
    """Of how many scenes these pairs are."""
    return len({results.pairs[index].scene for index in pairs})


def measured_pairs(results: Results, figure: Figure, subset: str = "all") -> int:
    """How many pairs of the subset a figure speaks of: those that any row has a value for, or all for one of whole
    sets.
    """
    return sum(
        subset in pair.subsets and (not figure.per_pair or _is_measured(results, figure.name, index))
        for index, pair in enumerate(results.pairs)
    )


def _is_measured(results: Results, figure: str, index: int) -> bool:
    return any(figure in columns and columns[figure][index] is not None for columns in results.values.values())


def best_rows(results: Results, rows: Sequence[Row], figure: Figure, subset: str = "all") -> list[Row]:
    """The best of `rows`, several if they tie in the decimals shown; none in a figure that says nothing by itself.

    Rows that are given more than a method are none, and rows without a value for a pair that another of these methods
    has one for are measured on other pairs: neither competes.
    """
    if figure.diagnostic:
        return []
    found = {row.name: estimate_of(results, row.name, figure, subset) for row in rows if row.competes}
    behind = {name: pairs_behind(results, name, figure, subset) for name, estimate in found.items() if estimate}
    every = set[int]().union(*behind.values())
    ranks = {
        name: badness(figure, round(estimate.value, figure.digits))
        for name, estimate in found.items()
        if estimate and behind[name] == every
    }
    if not ranks:
        return []
    least = min(ranks.values())
    return [row for row in rows if row.name in ranks and ranks[row.name] <= least + 1e-9]


def badness(figure: Figure, value: float) -> float:
    """The value turned so that less is better."""
    return {"higher": -value, "lower": value, "one": abs(value - 1)}[figure.better]


def find_difference(results: Results, row: str, against: str, figure: Figure, subset: str) -> Estimate | None:
    """The paired difference `row` minus `against`, whichever way round it was taken."""
    for entry in results.differences:
        if (entry.figure, entry.subset) != (figure.name, subset) or math.isnan(entry.estimate.value):
            continue
        if (entry.row, entry.against) == (row, against):
            return entry.estimate
        if (entry.row, entry.against) == (against, row):
            return Estimate(-entry.estimate.value, -entry.estimate.high, -entry.estimate.low)
    return None


def compare(
    results: Results, row: str, against: str, figure: Figure, subset: str = "all"
) -> tuple[Estimate | None, Verdict]:
    """The paired difference, and what it says: "unclear" unless its interval leaves out 0.

    Where there is no paired difference, or it cannot say which of two values about 1 is nearer, the verdict is by
    the rows' own intervals, which must not touch. Without intervals (the pairs of both are of one scene; FID) nothing
    is clear.
    """
    difference = find_difference(results, row, against, figure, subset)
    ours = estimate_of(results, row, figure, subset)
    theirs = estimate_of(results, against, figure, subset)
    common = pairs_behind(results, row, figure, subset) & pairs_behind(results, against, figure, subset)
    if scenes_behind(results, common) < 2 or not _has_intervals(figure, ours, theirs):
        return difference, "unclear"
    sign = {"higher": 1, "lower": -1, "one": 0}[figure.better]
    if figure.better == "one" and ours and theirs and (ours.value - 1) * (theirs.value - 1) > 0:
        sign = 1 if ours.value < 1 else -1
    if difference and sign:
        gains = (sign * difference.low, sign * difference.high)
        return difference, "better" if min(gains) > 0 else "worse" if max(gains) < 0 else "unclear"
    if ours is None or theirs is None:
        return difference, "unclear"
    (our_least, our_most), (their_least, their_most) = _badness_range(figure, ours), _badness_range(figure, theirs)
    return difference, "better" if our_most < their_least else "worse" if our_least > their_most else "unclear"


def _has_intervals(figure: Figure, ours: Estimate | None, theirs: Estimate | None) -> bool:
    """Whether intervals that are a single value are so because scenes agree, and not because nothing tells them."""
    return figure.per_pair or all(estimate is None or estimate.low < estimate.high for estimate in (ours, theirs))


def _badness_range(figure: Figure, estimate: Estimate) -> tuple[float, float]:
    ends = [badness(figure, estimate.low), badness(figure, estimate.high)]
    if figure.better == "one" and estimate.low <= 1 <= estimate.high:
        ends.append(0.0)
    return min(ends), max(ends)


@dataclass(frozen=True)
class FigureSummary:
    """One figure over all pairs: the main row against the best baseline.

    Attributes:
        best: the best rows of the main table.
        baseline: the best baseline.
        difference: main row minus baseline, paired.
    """

    figure: Figure
    best: list[Row]
    best_value: float
    main: Estimate
    baseline: Row | None
    baseline_value: float | None
    difference: Estimate | None
    verdict: Verdict


def summarise(results: Results, main_row: str) -> list[FigureSummary]:
    """The main row against the best baseline of each figure; those that the main row lacks, and those that say nothing
    by themselves, are left out.
    """
    rows = main_rows(results)
    baselines = [row for row in rows if row.group == "baseline" and row.name != main_row]
    summaries = []
    for figure in results.figures:
        main = estimate_of(results, main_row, figure)
        best = best_rows(results, rows, figure)
        best_estimate = estimate_of(results, best[0].name, figure) if best else None
        if main is None or best_estimate is None:
            continue
        baseline = next(iter(best_rows(results, baselines, figure)), None)
        baseline_estimate = estimate_of(results, baseline.name, figure) if baseline else None
        difference: Estimate | None = None
        verdict: Verdict = "unclear"
        if baseline:
            difference, verdict = compare(results, main_row, baseline.name, figure)
        summaries.append(
            FigureSummary(
                figure,
                best,
                best_estimate.value,
                main,
                baseline,
                baseline_estimate.value if baseline_estimate else None,
                difference,
                verdict,
            )
        )
    return summaries
