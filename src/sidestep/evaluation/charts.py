"""Figures over view distance as line charts: where everything stands, in the units of an SVG."""

import math
from dataclasses import dataclass

from sidestep.evaluation.comparison import estimate_of, main_rows
from sidestep.evaluation.protocol import DISTANCES
from sidestep.evaluation.results import SUBSETS, Estimate, Figure, Results, Row
from sidestep.evaluation.tables import format_number

# A chart's units are near CSS pixels at the width of a phone, so that its text of 12 stays legible there.
WIDTH, LEFT, RIGHT, TOP = 440, 46, 250, 12
LABEL_X, LABEL_GAP, LABEL_CHARACTERS = 266, 15, 24
LEAST_PLOT_HEIGHT = 190
COLOURS, DASHES = 8, 5  # as many as style.css has classes for


@dataclass(frozen=True)
class Line:
    """One row's line.

    Attributes:
        style: CSS class: "main", "colour-0" and on, or "grey-0" and on for baselines.
        points: (x, y, the value in words).
        label: the title cut to fit, at `label_y` right of the plot.
    """

    row: Row
    style: str
    points: list[tuple[float, float, str]]
    label: str
    label_y: float

    @property
    def path(self) -> str:
        return " ".join(f"{x:g},{y:g}" for x, y, _ in self.points)


@dataclass(frozen=True)
class Chart:
    """One figure over view distance.

    Attributes:
        columns: (x, name, frames apart).
        ticks: (y, value as text).
        ideal: the height of 1 in a figure that is best there, if the chart reaches it.
        band: the corners of the main row's interval, as SVG points; empty if it has none.
        words: what the main row's line says, for who does not see it.
    """

    figure: Figure
    height: float
    bottom: float
    columns: list[tuple[float, str, str]]
    ticks: list[tuple[float, str]]
    lines: list[Line]
    ideal: float | None
    band: str
    words: str


def distance_chart(results: Results, figure: Figure, main_row: str) -> Chart | None:
    """The chart of one figure, or None where fewer than two distances have values.

    Lines are of the main rows; the last in `lines`, so drawn on top, is `main_row`.
    """
    rows = sorted(main_rows(results), key=lambda row: row.name == main_row)  # sorted keeps the order otherwise
    found = {
        row.name: {subset: e for subset in DISTANCES if (e := _finite(estimate_of(results, row.name, figure, subset)))}
        for row in rows
    }
    rows = [row for row in rows if len(found[row.name]) >= 2]
    subsets = [subset for subset in DISTANCES if any(subset in found[row.name] for row in rows)]
    if not rows:
        return None

    main = found.get(main_row, {})
    shown = [e.value for row in rows for e in found[row.name].values()]
    shown += [end for e in main.values() for end in (e.low, e.high) if math.isfinite(end)]
    values, decimals = _nice_ticks(min(shown), max(shown))
    bottom = TOP + max(LEAST_PLOT_HEIGHT, LABEL_GAP * len(rows))
    x = {subset: LEFT + 16 + i * (RIGHT - LEFT - 32) / (len(subsets) - 1) for i, subset in enumerate(subsets)}

    def y(value: float) -> float:
        return round(bottom - (value - values[0]) / (values[-1] - values[0]) * (bottom - TOP), 1)

    points = {
        row.name: [
            (round(x[subset], 1), y(e.value), f"{row.title}, {subset}: {format_number(e.value, figure.digits)}")
            for subset, e in found[row.name].items()
        ]
        for row in rows
    }
    label_ys = _spread([points[row.name][-1][1] for row in rows], TOP, bottom)
    styles = _styles(rows, main_row)
    band_ends = [(x[subset], e) for subset, e in main.items() if math.isfinite(e.low) and math.isfinite(e.high)]
    band = [(at, y(e.high)) for at, e in band_ends] + [(at, y(e.low)) for at, e in reversed(band_ends)]
    return Chart(
        figure=figure,
        height=bottom + 42,
        bottom=bottom,
        columns=[
            (x[subset], subset, SUBSETS[subset].replace(" apart", "").replace(" and more", "+")) for subset in subsets
        ],
        ticks=[(y(value), format_number(value, decimals)) for value in values],
        lines=[
            Line(row, styles[row.name], points[row.name], _shorten(row), label_y)
            for row, label_y in zip(rows, label_ys, strict=True)
        ],
        ideal=y(1.0) if figure.better == "one" and values[0] <= 1 <= values[-1] else None,
        band=" ".join(f"{at:g},{height:g}" for at, height in band),
        words="; ".join(words for _, _, words in points.get(main_row, points[rows[-1].name])),
    )


def _finite(estimate: Estimate | None) -> Estimate | None:
    return estimate if estimate and math.isfinite(estimate.value) else None


def _styles(rows: list[Row], main_row: str) -> dict[str, str]:
    """A style a row, which depends on its place in the table only, so that it is the same in every chart."""
    styles: dict[str, str] = {}
    greys = colours = 0
    for row in rows:
        if row.name == main_row:
            styles[row.name] = "main"
        elif row.group == "baseline":
            styles[row.name] = f"grey-{greys % DASHES}"
            greys += 1
        else:
            styles[row.name] = f"colour-{colours % COLOURS}"
            colours += 1
    return styles


def _shorten(row: Row) -> str:
    room = LABEL_CHARACTERS - len(row.mark)
    return (row.title if len(row.title) <= room else row.title[: room - 1].rstrip() + "…") + row.mark


def _nice_ticks(low: float, high: float) -> tuple[list[float], int]:
    """Round values about a quarter of the range apart that enclose it, and the decimals they need."""
    span, largest = high - low, max(abs(low), abs(high))
    if span <= 1e-9 * max(largest, 1.0):  # equal but for rounding
        span = largest * 0.1 if largest > 1e-9 else 1.0
    magnitude = 10 ** math.floor(math.log10(span / 4))
    step: float = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= span / 4 * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    if last == first:
        last += 1
    decimals = next(d for d in range(16) if abs(round(step, d) - step) < step * 1e-6)
    return [i * step for i in range(first, last + 1)], decimals


def _spread(wanted: list[float], top: float, bottom: float) -> list[float]:
    """Heights near the wanted ones, at least LABEL_GAP apart, in [top, bottom] if there is room."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    heights = list(wanted)
    lowest = top - LABEL_GAP
    for i in order:
        lowest = heights[i] = max(wanted[i], lowest + LABEL_GAP)
    highest = bottom + LABEL_GAP
    for i in reversed(order):
        highest = heights[i] = min(heights[i], highest - LABEL_GAP)
    return heights
