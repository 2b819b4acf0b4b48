"""An evaluation's tables: what stands in each cell, and the tables as CSV and LaTeX."""

import csv
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sidestep.evaluation.comparison import (
    Verdict,
    best_rows,
    compare,
    estimate_of,
    find_row,
    main_rows,
    measured_pairs,
    pairs_behind,
    pairs_without_picture,
)
from sidestep.evaluation.results import PARTS, SUBSETS, Estimate, Figure, Results, Row
from sidestep.files import atomic_path

GROUP_TITLES = {
    "baseline": "Baselines, without a model",
    "model": "The model",
    "predictions": "Other programs",
    "option": "Options",
    "limit": "Parts, given the true target",
}


@dataclass(frozen=True)
class Cell:
    """One row's figure.

    Attributes:
        best: no fair row of the table is better, and there is another to compare with.
        fewer_pairs: how many pairs it is of, where another row's is of more; None where none is.
    """

    estimate: Estimate | None
    best: bool
    fewer_pairs: int | None


@dataclass(frozen=True)
class TableRow:
    """`lacking` counts the subset's pairs that the row has no picture for; `not_finite` those of its views, of all
    pairs, that were left out because they hold NaN or infinity.
    """

    row: Row
    cells: list[Cell]
    lacking: int
    not_finite: int


@dataclass(frozen=True)
class Table:
    """Rows by group, one column a figure, over one subset of the pairs.

    Attributes:
        part: the part of the targets that the figures are of; empty for all of them.
        pairs, scenes: how many the subset has.
        measured: of how many of the pairs each figure speaks.
    """

    subset: str
    part: str
    pairs: int
    scenes: int
    figures: list[Figure]
    measured: list[int]
    groups: list[tuple[str, list[TableRow]]]

    @property
    def rows(self) -> list[TableRow]:
        return [row for _, rows in self.groups for row in rows]

    @property
    def title(self) -> str:
        """What the table is over, in words."""
        return _title(self.subset, self.part)

    @property
    def has_best(self) -> bool:
        return any(cell.best for row in self.rows for cell in row.cells)

    @property
    def has_fewer_pairs(self) -> bool:
        """Whether a row, or a figure of one, is of fewer pairs than another's."""
        return any(row.lacking or any(cell.fewer_pairs for cell in row.cells) for row in self.rows)


@dataclass(frozen=True)
class DifferenceCell:
    """A paired difference; `reach` is the largest end of an interval in its column, which a drawing is scaled by."""

    estimate: Estimate
    verdict: Verdict
    reach: float


@dataclass(frozen=True)
class DifferenceTable:
    """Paired differences over one subset: (row, against, one cell or None a figure)."""

    subset: str
    part: str
    figures: list[Figure]
    rows: list[tuple[Row, Row, list[DifferenceCell | None]]]

    @property
    def title(self) -> str:
        """What the table is over, in words."""
        return _title(self.subset, self.part)


def build_table(results: Results, rows: Sequence[Row], subset: str, part: str = "") -> Table | None:
    """The table of these rows over one subset, without rows and figures that nothing is known of; None if empty."""
    figures = [f for f in results.figures if f.part == part]
    rows = [row for row in rows if any(estimate_of(results, row.name, f, subset) for f in figures)]
    figures = [f for f in figures if any(estimate_of(results, row.name, f, subset) for row in rows)]
    if not rows:
        return None
    contest = sum(row.competes for row in rows) > 1
    best = {
        figure.name: {row.name for row in best_rows(results, rows, figure, subset) if contest} for figure in figures
    }
    groups: dict[str, list[TableRow]] = {}
    for row in rows:
        cells = [_cell(results, row, f, subset, best[f.name]) for f in figures]
        lacking = pairs_without_picture(results, row.name, subset)
        table_row = TableRow(row, cells, lacking, results.not_finite.get(row.name, 0))
        groups.setdefault(GROUP_TITLES[row.group], []).append(table_row)
    pairs = [pair for pair in results.pairs if subset in pair.subsets]
    measured = [measured_pairs(results, figure, subset) for figure in figures]
    scenes = len({pair.scene for pair in pairs})
    return Table(subset, part, len(pairs), scenes, figures, measured, list(groups.items()))


def _cell(results: Results, row: Row, figure: Figure, subset: str, best: set[str]) -> Cell:
    pairs = len(pairs_behind(results, row.name, figure, subset))
    estimate = estimate_of(results, row.name, figure, subset)
    fewer = estimate is not None and pairs < measured_pairs(results, figure, subset)
    return Cell(estimate, row.name in best, pairs if fewer else None)


def build_tables(results: Results, rows: Sequence[Row]) -> list[Table]:
    """For each subset that has pairs one table of whole pictures, and one of each part of them that was measured."""
    tables = [build_table(results, rows, subset, part) for subset in SUBSETS for part in ("", *PARTS)]
    return [table for table in tables if table]


def build_difference_tables(results: Results) -> list[DifferenceTable]:
    """One table of paired differences for each subset, and part of the pictures, that has some."""
    tables = []
    parts = {figure.name: figure.part for figure in results.figures}
    for subset, part in itertools.product(SUBSETS, ("", *PARTS)):
        entries = [
            d
            for d in results.differences
            if d.subset == subset and parts[d.figure] == part and not math.isnan(d.estimate.value)
        ]
        figures = [f for f in results.figures if any(entry.figure == f.name for entry in entries)]
        reach = {
            f.name: max(max(abs(d.estimate.low), abs(d.estimate.high)) for d in entries if d.figure == f.name)
            for f in figures
        }
        rows = []
        for row, against in dict.fromkeys((entry.row, entry.against) for entry in entries):
            cells: list[DifferenceCell | None] = []
            for figure in figures:
                estimate, verdict = compare(results, row, against, figure, subset)
                cells.append(DifferenceCell(estimate, verdict, reach[figure.name]) if estimate else None)
            rows.append((find_row(results, row), find_row(results, against), cells))
        if rows:
            tables.append(DifferenceTable(subset, part, figures, rows))
    return tables


def _title(subset: str, part: str) -> str:
    words = SUBSETS[subset] + (f", {PARTS[part]}" if part else "")
    return words[0].upper() + words[1:]


def format_number(value: float, digits: int) -> str:
    """A value with its decimals, a true minus sign, and no minus before zero."""
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")


def format_interval(estimate: Estimate, digits: int) -> str:
    """ "low to high", or nothing where there is no interval."""
    if not (math.isfinite(estimate.low) and math.isfinite(estimate.high)) or estimate.low == estimate.high:
        return ""
    return f"{format_number(estimate.low, digits)} to {format_number(estimate.high, digits)}"


def write_table_csv(results: Results, path: Path) -> None:
    """Every estimate on a line of its own, unrounded, with the number of pairs that the row has the figure for."""
    figure_of = {figure.name: figure for figure in results.figures}
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["row", "title", "group", "subset", "figure", "value", "low", "high", "pairs"])
        for row in results.rows:
            for subset, estimates in results.estimates.get(row.name, {}).items():
                for figure, e in estimates.items():
                    pairs = len(pairs_behind(results, row.name, figure_of[figure], subset))
                    writer.writerow([row.name, row.title, row.group, subset, figure, e.value, e.low, e.high, pairs])


def write_pairs_csv(results: Results, path: Path) -> None:
    """A line for each row and pair, with the figures that a pair has; empty where the row has no picture."""
    figures = [figure.name for figure in results.figures if figure.per_pair]
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        parts = [part for part in PARTS if any(part in pair.shares for pair in results.pairs)]
        shares = [f"{part}_share" for part in parts]
        writer.writerow(["index", "scene", "reference", "target", "gap", "turn", "subsets", *shares, "row", *figures])
        for index, pair in enumerate(results.pairs):
            names = [pair.scene, pair.reference, pair.target, pair.gap, pair.turn, " ".join(pair.subsets)]
            names += [pair.shares.get(part) for part in parts]
            for row, values in results.values.items():
                writer.writerow([index, *names, row, *(values[f][index] if f in values else None for f in figures)])


def write_latex(results: Results, path: Path) -> None:
    r"""The main tables, those of `build_tables`, for \usepackage{booktabs}."""
    tables = build_tables(results, main_rows(results))
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(map(_latex_table, tables)), encoding="utf-8")


_LATEX_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    **{character: "\\" + character for character in "{}$&#%_"},
}
_LATEX_MARKS = {"†": r"$^\dagger$", "§": r"$^\S$", "": ""}
_LATEX_ARROWS = {"higher": r"$\uparrow$", "lower": r"$\downarrow$", "one": r"$\to 1$"}


def escape_latex(text: str) -> str:
    """User's text as LaTeX that prints it."""
    return "".join(_LATEX_SPECIAL.get(character, character) for character in " ".join(text.split()))


def _latex_table(table: Table) -> str:
    caption = escape_latex(f"{table.title}: {table.pairs} pairs of {table.scenes} scenes.")
    caption += " 95\\% bootstrap intervals over scenes" + ("; best in bold." if table.has_best else ".")
    if any(row.row.uses_target for row in table.rows):
        caption += r" $^\dagger$sees the true target."
    if any(row.row.true_geometry for row in table.rows):
        caption += r" $^\S$is given the true distances."
    if table.has_fewer_pairs:
        caption += r" $^\ddagger$not on every pair, so not compared."
    heads = [
        f"{escape_latex(figure.title)} {_LATEX_ARROWS[figure.better]}"
        + (f" ({measured} pairs)" if measured < table.pairs else "")
        for figure, measured in zip(table.figures, table.measured, strict=True)
    ]
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{caption}}}",
        rf"\label{{tab:{'-'.join(filter(None, (table.subset, table.part)))}}}",
        rf"\begin{{tabular}}{{l{'c' * len(heads)}}}",
        r"\toprule",
        " & ".join(["", *heads]).strip() + r" \\",
    ]
    for _, rows in table.groups:
        lines.append(r"\midrule")
        for row in rows:
            marks = _LATEX_MARKS[row.row.mark]
            marks += r"$^\ddagger$" if row.lacking else ""
            cells = [_latex_cell(cell, f.digits) for cell, f in zip(row.cells, table.figures, strict=True)]
            lines.append(" & ".join([escape_latex(row.row.title) + marks, *cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def _latex_cell(cell: Cell, digits: int) -> str:
    if cell.estimate is None:
        return "--"
    value = _latex_number(cell.estimate.value, digits)
    text = rf"\mathbf{{{value}}}" if cell.best else value
    if format_interval(cell.estimate, digits):
        low, high = (_latex_number(end, digits) for end in (cell.estimate.low, cell.estimate.high))
        text += f"_{{{low}}}^{{{high}}}"
    return f"${text}$" + (rf" ({cell.fewer_pairs} pairs)$^\ddagger$" if cell.fewer_pairs else "")


def _latex_number(value: float, digits: int) -> str:
    return format_number(value, digits).replace("−", "-").replace("∞", r"\infty")
