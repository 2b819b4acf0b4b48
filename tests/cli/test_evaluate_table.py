"""The table that `sidestep evaluate` leaves on stdout."""

import sys
from pathlib import Path

import pytest

from sidestep.cli import main
from sidestep.evaluation.results import Estimate, EvaluatedPair, Figure, Results, Row

pytestmark = pytest.mark.usefixtures("own_process")


def test_a_pipe_gets_whole_rows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = [Figure(f"figure{i}", f"Quite a long title {i}", "higher", 2) for i in range(8)]
    found = {"auto": {"all": {figure.name: Estimate(10.5 + i, 10, 20) for i, figure in enumerate(figures)}}}
    title = "a row whose title is long, because it says all that was chosen for it and left open by the paper"
    results = Results({}, [], [Row("auto", title, "model")], figures, {}, estimates=found)
    monkeypatch.setattr("sidestep.evaluation.evaluate.evaluate", lambda *_, **__: results)
    monkeypatch.setattr(sys, "argv", ["sidestep", "evaluate", "--data", "d", "--out", str(tmp_path)])
    with pytest.raises(SystemExit):
        main()
    lines = capsys.readouterr().out.splitlines()
    (heading,) = [line for line in lines if figures[0].title in line]
    (row,) = [line for line in lines if title in line]
    assert all(figure.title in heading for figure in figures)
    assert all(f"{10.5 + i:.2f}" in row for i in range(8))
    assert len(heading) < 400  # and is no wider than that


def test_a_row_of_fewer_pairs_is_marked_and_says_of_how_many(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
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
    monkeypatch.setattr(sys, "argv", ["sidestep", "evaluate", "--data", "d", "--out", str(tmp_path)])
    with pytest.raises(SystemExit):
        main()
    out, notes = capsys.readouterr()
    assert "theirs ‡" in out
    assert "copied ‡" not in out
    assert "‡ theirs: 1 of 2 pairs in PSNR (dB); 2 of 3 pairs in SSIM, so not compared there" in notes
