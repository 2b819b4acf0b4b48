"""Commands that are killed at random moments end as if they had not been (`killing.py`)."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

COUNTED = ("moment", "operation")  # of kills, those by SIGKILL
pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="Linux's way to wait for a process")


def killed(folder: Path, *options: str) -> dict[str, dict[str, Any]]:
    command = [sys.executable, str(Path(__file__).with_name("killing.py")), str(folder), *options]
    script = subprocess.run(command, capture_output=True, text=True, check=False)
    assert script.returncode == 0, script.stderr
    return json.loads(script.stdout)


@pytest.mark.slow
def test_a_few_kills_change_nothing(tmp_path: Path) -> None:
    counts = killed(tmp_path, "--kills", "6", "--only", "encode,pack,train")
    assert counts.keys() == {"encode", "pack", "train"}
    for command in counts.values():
        assert sum(command.get(kind, 0) for kind in COUNTED) >= 2
        assert command["ends"] >= 1


@pytest.mark.faults
def test_two_hundred_kills_in_a_row_change_nothing(tmp_path: Path) -> None:
    pytest.importorskip("pycolmap")
    counts = killed(tmp_path, "--kills", "200")
    assert sum(command.get(kind, 0) for command in counts.values() for kind in COUNTED) >= 200
    for command in counts.values():
        assert command["ends"] >= 1
    print(json.dumps(counts, indent=2))
