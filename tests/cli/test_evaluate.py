"""`sidestep evaluate`: what it passes on, and the table that it leaves on stdout."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sidestep.evaluation.results import Estimate, EvaluatedPair, Figure, Results, Row

Command = Callable[..., int]  # runs the command line, by its arguments; the exit code


def test_an_evaluation_gets_what_was_asked_for_and_is_told(
    sidestep: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    called: dict[str, Any] = {}
    psnr = Figure("psnr", "PSNR (dB)", "higher", 2)
    found = {"auto": {"all": {"psnr": Estimate(19.127, 18.0, 20.0)}}}

    def fake(model: str, data: str, out: Path, **options: Any) -> Results:
        called.update(model=model, data=data, out=out, **options)
        return Results({}, [], [Row("auto", "auto", "model")], [psnr], {"FID": "no weights"}, estimates=found)

    monkeypatch.setattr("sidestep.evaluation.evaluate.evaluate", fake)
    own = ["--rows", "model", "--rows", "limit", "--predictions", "seva=a=b", "--split", "val", "--steps", 9]
    assert sidestep("evaluate", "--data", "d", "--out", tmp_path / "r", *own) == 0
    assert called["groups"] == ["model", "limit"]
    assert called["predictions"] == {"seva": Path("a=b")}
    assert (called["model"], called["data"], called["split"], called["steps"]) == ("bundled", "d", "val", 9)
    assert called["command"].startswith("sidestep evaluate --data d --out")
    told = capsys.readouterr()
    assert "19.13" in told.out
    assert str(tmp_path / "r" / "report.html") in told.out.replace("\n", "")
    assert "FID: missing; no weights" in told.err

    assert sidestep("evaluate", "--data", "d", "--out", tmp_path / "r", "--json") == 0
    assert json.loads(capsys.readouterr().out)["estimates"]["auto"]["all"]["psnr"]["value"] == 19.127
    assert sidestep("evaluate", "--data", "d", "--out", "r", "--predictions", "seva") == 1
    assert "--predictions seva: expected NAME=DIR" in capsys.readouterr().err
    twice = ["--predictions", "seva=a", "--predictions", "seva=b"]
    assert sidestep("evaluate", "--data", "d", "--out", "r", *twice) == 1
    assert "seva is given twice" in capsys.readouterr().err


def test_a_pipe_gets_whole_rows(
    sidestep: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = [Figure(f"figure{i}", f"Quite a long title {i}", "higher", 2) for i in range(8)]
    found = {"auto": {"all": {figure.name: Estimate(10.5 + i, 10, 20) for i, figure in enumerate(figures)}}}
    title = "a row whose title is long, because it says all that was chosen for it and left open by the paper"
    results = Results({}, [], [Row("auto", title, "model")], figures, {}, estimates=found)
    monkeypatch.setattr("sidestep.evaluation.evaluate.evaluate", lambda *_, **__: results)
    assert sidestep("evaluate", "--data", "d", "--out", tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    (heading,) = [line for line in lines if figures[0].title in line]
    (row,) = [line for line in lines if title in line]
    assert all(figure.title in heading for figure in figures)
    assert all(f"{10.5 + i:.2f}" in row for i in range(8))
    assert len(heading) < 400  # and is no wider than that


def test_a_row_of_fewer_pairs_is_marked_and_says_of_how_many(
    sidestep: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = [Figure("psnr", "PSNR (dB)", "higher", 2), Figure("ssim", "SSIM", "higher", 3)]
    pair = EvaluatedPair("a", "0.jpg", "1.jpg", 1, 2.0, ("all", "near"))
    rows = [Row("theirs", "theirs", "predictions"), Row("copy", "copied", "baseline")]
    values = {
        "theirs": {"psnr": [1.0, None, None], "ssim": [1.0, 1.0, None]},
        "copy": {"psnr": [1.0, 1.0, None], "ssim": [1.0] * 3},
    }
    found = {row.name: {"all": {figure.name: Estimate(1.0, 1.0, 1.0) for figure in figures}} for row in rows}
    results = Results({}, [pair] * 3, rows, figures, values=values, estimates=found)
    monkeypatch.setattr("sidestep.evaluation.evaluate.evaluate", lambda *_, **__: results)
    assert sidestep("evaluate", "--data", "d", "--out", tmp_path) == 0
    out, notes = capsys.readouterr()
    assert "theirs ‡" in out
    assert "copied ‡" not in out
    assert "‡ theirs: 1 of 2 pairs in PSNR (dB); 2 of 3 pairs in SSIM, so not compared there" in notes
