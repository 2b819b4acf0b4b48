"""`sidestep evaluate`: a model's figures on held-out scenes."""

import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape

from sidestep.cli.terminal import Device, console, manners, progress_bar, report
from sidestep.errors import SidestepError

if TYPE_CHECKING:
    from sidestep.evaluation.results import Figure, Results, Row

UNBOUNDED = 10_000  # columns; a table takes what it needs of them


def evaluate(
    data: Annotated[str, typer.Option(help="Captures, or a pack's URL, of which the held-out scenes are evaluated.")],
    out: Annotated[Path, typer.Option(help="Folder of the report.")],
    model: Annotated[str, typer.Option(help="Model folder or hub id.")] = "bundled",
    prior: Annotated[
        str | None, typer.Option(help="Prior's folder, hub id or .safetensors file, for a model of TUNet alone.")
    ] = None,
    protocol: Annotated[
        Literal["distance", "paper-3class", "paper-167class"],
        typer.Option(help="Which scenes, pairs and sizes: by view distance, or one of the paper's."),
    ] = "distance",
    split: Annotated[Literal["test", "val"], typer.Option(help="Whose scenes.")] = "test",
    pairs: Annotated[Path | None, typer.Option(help="A list of pairs instead of the protocol's (pairs.json).")] = None,
    rows: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GROUP",
            help="baseline, model, option (the readings that the paper leaves open) or limit (what each part loses); "
            "repeat it for several (default: baseline and model).",
        ),
    ] = None,
    predictions: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=DIR",
            help="Another program's pictures as a row: 00000.png, 00001.png, ... in the list's order.",
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Sampling steps.")] = 30,
    seed: Annotated[int, typer.Option(help="Of the list, of drawn noise and of the intervals.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Pairs at once.")] = 8,
    weights: Annotated[
        Path | None, typer.Option(help="Folder with the published weights of LPIPS and FID (default: torch's cache).")
    ] = None,
    device: Device = None,
) -> None:
    """Evaluate a model on held-out scenes: figures with intervals, baselines, and a report with pictures."""
    from sidestep.evaluation.evaluate import evaluate as run

    folders = _folders(predictions or [])
    with progress_bar("pairs") as progress:
        results = run(
            model,
            data,
            out,
            prior=prior,
            protocol=protocol,
            split=split,
            pairs=pairs,
            groups=rows or ("baseline", "model"),
            predictions=folders,
            steps=steps,
            seed=seed,
            batch_size=batch_size,
            weights=weights,
            device=device,
            command=shlex.join(["sidestep", *sys.argv[1:]]),
            progress=progress,
        )
    told = {"report": str(out / "report.html")}
    if manners.json:
        report({**told, **_for_programs(results)})
    else:
        _print(results)
        report(told)


def _folders(predictions: list[str]) -> dict[str, Path]:
    """Reads "NAME=DIR" of each row of another program's pictures."""
    folders: dict[str, Path] = {}
    for entry in predictions:
        name, separator, folder = entry.partition("=")
        if not separator or not name or not folder:
            raise SidestepError(
                f"--predictions {entry}: expected NAME=DIR, a row's name and the folder of its pictures"
            )
        if name in folders:
            raise SidestepError(f"--predictions {entry}: {name} is given twice; give each row a name of its own")
        folders[name] = Path(folder)
    return folders


def _for_programs(results: "Results") -> dict[str, Any]:
    """Each estimate, by row, subset and figure, with how many pairs are behind it; and what is missing."""
    from sidestep.evaluation.comparison import pairs_behind

    estimates = {
        row: {
            subset: {
                figure.name: asdict(found[figure.name]) | {"pairs": len(pairs_behind(results, row, figure, subset))}
                for figure in results.figures
                if figure.name in found
            }
            for subset, found in subsets.items()
        }
        for row, subsets in results.estimates.items()
    }
    return {"missing": results.missing, "not_finite": results.not_finite, "estimates": estimates}


def _print(results: "Results") -> None:
    """The table of all pairs to stdout, and notes on it to stderr."""
    from rich.table import Table

    figures = [figure for figure in results.figures if not figure.part]  # those of parts are in the report
    table = Table("", *(figure.title for figure in figures))
    notes = []
    if any(row.uses_target for row in results.rows):
        notes.append("† sees the true target: no method")
    if any(row.true_geometry for row in results.rows):
        notes.append("§ is given the scene's true distances: no method")
    for row in results.rows:
        found = results.estimates[row.name]["all"]
        cells = [f"{found[f.name].value:.{f.digits}f}" if f.name in found else "" for f in figures]
        marks = f" {row.mark}" if row.mark else ""
        fewer = _fewer_pairs(results, row, figures)
        if fewer:
            notes.append(f"‡ {row.title}: {fewer}, so not compared there")
            marks += " ‡"
        table.add_row(escape(row.title) + marks, *cells)
    notes += [
        f"{name}: {count} views hold NaN or infinity and are left out" for name, count in results.not_finite.items()
    ]
    notes += [f"{title}: missing; {reason}" for title, reason in results.missing.items()]
    results_console = Console()
    if not results_console.is_terminal:
        results_console.width = UNBOUNDED  # else rich cuts the table at 80 columns
    results_console.print(table)
    for note in notes:
        console.print(escape(note), highlight=False)


def _fewer_pairs(results: "Results", row: "Row", figures: "list[Figure]") -> str:
    """Which of its figures a row has for fewer pairs than others have, in words; empty if none."""
    from sidestep.evaluation.comparison import measured_pairs, pairs_behind

    titles: dict[str, list[str]] = {}
    for figure in figures:
        pairs, measured = len(pairs_behind(results, row.name, figure)), measured_pairs(results, figure)
        if figure.name in results.estimates[row.name]["all"] and pairs < measured:
            titles.setdefault(f"{pairs} of {measured} pairs", []).append(figure.title)
    return "; ".join(f"{count} in {', '.join(of)}" for count, of in titles.items())
