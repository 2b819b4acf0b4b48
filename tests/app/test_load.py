"""Several users at once on a real server, a few seconds of what benchmarks/app_load.py does for ten minutes."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sidestep.errors import SidestepError

pytestmark = pytest.mark.slow

pytest.importorskip("gradio", reason="the page's extra is not installed")


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    before = set(sys.modules)
    yield importlib.import_module("app_load")
    for name in {"app_load", "table"} - before:
        sys.modules.pop(name, None)


def test_everybody_gets_an_answer_and_nobody_anothers(load: Any, tmp_path: Path) -> None:
    out = tmp_path / "table.md"
    load.main(["--clients", "5", "--seconds", "3", "--out", str(out)])  # fails if an answer is lost or mixed up
    rows = dict(line.strip("| ").partition(" | ")[::2] for line in out.read_text().splitlines())
    assert int(rows["answered"]) >= 5
    assert (
        rows["lost"] == rows["mixed up"] == rows["tracebacks of the server"] == rows["files left after its end"] == "0"
    )


def test_a_mix_up_and_views_that_cannot_tell_one_are_seen(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told = load.Told()
    load._compare(told, "final", Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "red"))
    assert told.count["mixed up"] == 0
    load._compare(told, "final", Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue"))
    assert told.count["mixed up"] == 1
    monkeypatch.setattr(load, "ALIKE", 255)
    with pytest.raises(SidestepError, match="look alike"):
        load.main(["--clients", "2"])
