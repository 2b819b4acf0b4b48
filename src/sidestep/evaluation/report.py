"""The report of an evaluation: one self-contained HTML page, with JSON, CSV and LaTeX beside it."""

from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from sidestep.evaluation import charts
from sidestep.evaluation.agreement import AGREEMENT
from sidestep.evaluation.comparison import (
    FigureSummary,
    choose_main_figure,
    choose_main_row,
    estimate_of,
    find_row,
    main_rows,
    pairs_behind,
    scenes_behind,
    summarise,
)
from sidestep.evaluation.gallery import ShownPair, load_gallery, shown_pairs
from sidestep.evaluation.results import Results, Row
from sidestep.evaluation.tables import (
    build_difference_tables,
    build_table,
    build_tables,
    format_interval,
    format_number,
    write_latex,
    write_pairs_csv,
    write_table_csv,
)
from sidestep.files import atomic_path

FEW_SCENES = 20  # below this a percentile bootstrap over scenes is visibly too narrow


def write_report(results: Results, out: Path, pictures: Path | None = None, main_row: str | None = None) -> None:
    """Writes results.json, tables.csv, pairs.csv, tables.tex and report.html into the folder `out`.

    The page needs no other file, no script and no network.

    Args:
        pictures: a folder with <column>/<index of the pair as 00000>.png, columns being "reference", "target" and
            rows' names; what is missing is left out. `gallery.shown_pairs` says which pairs are shown.
        main_row: the row that the summary, the charts and the choice of scenes are about; by default A, or what
            `comparison.choose_main_row` takes in its place.

    Raises:
        SidestepError: if there is no such row, every row sees the target, or a picture is damaged.
    """
    main = find_row(results, main_row or choose_main_row(results))
    results.write(out / "results.json")  # first: it is what took the time
    page = render_page(results, main, pictures)
    write_table_csv(results, out / "tables.csv")
    write_pairs_csv(results, out / "pairs.csv")
    write_latex(results, out / "tables.tex")
    with atomic_path(out / "report.html") as temporary:
        temporary.write_text(page, encoding="utf-8")


def render_page(results: Results, main: Row, pictures: Path | None) -> str:
    """The page as HTML; the arguments are those of `write_report`."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "page"),
        autoescape=True,  # names and notes are users' text
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": format_number, "interval": format_interval, "bytes": _format_bytes}
    summaries = summarise(results, main.name)
    scenes = len({pair.scene for pair in results.pairs})
    comparison = [main] if not main.uses_target else []
    shown = shown_pairs(results, main.name)
    galleries: dict[str, list[ShownPair]] = {}
    if pictures is not None:
        galleries = {
            name: load_gallery(results, getattr(shown, name), pictures, main.name)
            for name in ("first", "best", "worst")
        }
    tables = build_tables(results, main_rows(results))
    drawn = [charts.distance_chart(results, figure, main.name) for figure in results.figures]
    return environment.get_template("report.html").render(
        results=results,
        title=_title(results.about),
        scenes=scenes,
        agreement=any(figure.name == AGREEMENT.name for table in tables for figure in table.figures),
        about_one=any(figure.better == "one" for figure in results.figures),
        fewest_scenes=_fewest_scenes(results, scenes),
        few_scenes=FEW_SCENES,
        about=_about(results.about),
        main=main,
        main_figure=choose_main_figure(results),
        summaries=summaries,
        verdicts=_by_verdict(summaries),
        baseline_wins=[s for s in summaries if any(row.group == "baseline" for row in s.best)],
        tables=tables,
        difference_tables=build_difference_tables(results),
        limits=build_table(results, _with_group(results, "limit", comparison), "all"),
        options=build_table(results, _with_group(results, "option", comparison), "all"),
        charts=[chart for chart in drawn if chart],
        layout={"width": charts.WIDTH, "left": charts.LEFT, "right": charts.RIGHT, "label": charts.LABEL_X},
        galleries=galleries,
    )


def _fewest_scenes(results: Results, scenes: int) -> int:
    """The least number of scenes, of these, that a value of the main table is of."""
    behind = [
        pairs_behind(results, row.name, figure)
        for row in main_rows(results)
        for figure in results.figures
        if estimate_of(results, row.name, figure)
    ]
    return min((scenes_behind(results, pairs) for pairs in behind if pairs), default=scenes)


def _with_group(results: Results, group: str, comparison: list[Row]) -> list[Row]:
    rows = [row for row in results.rows if row.group == group]
    return rows + comparison if rows else []


def _title(about: Mapping[str, str]) -> str:
    named = {key.lower(): value for key, value in about.items()}
    subject = [named[key] for key in ("model", "data") if key in named]
    return f"Evaluation of {' on '.join(subject)}" if subject else "Evaluation"


def _about(about: Mapping[str, str]) -> list[tuple[str, str, bool]]:
    """(what, value, whether it is something to type or compare letter by letter)."""
    return [(key, value, _is_literal(key)) for key, value in about.items()]


def _is_literal(key: str) -> bool:
    return any(word in key.lower() for word in ("command", "fingerprint", "hash", "sha"))


def _by_verdict(summaries: list[FigureSummary]) -> dict[str, list[FigureSummary]]:
    compared = [summary for summary in summaries if summary.baseline]
    if not compared:
        return {}
    return {verdict: [s for s in compared if s.verdict == verdict] for verdict in ("better", "worse", "unclear")}


def _format_bytes(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
