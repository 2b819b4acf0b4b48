"""`sidestep capture import`: what it prints, and that Ctrl-C ends it with COLMAP."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sidestep.captures.photos import Import, Imported, LensFound
from sidestep.cli import main

pytestmark = pytest.mark.usefixtures("own_process")
FOUND = Import(
    Path("out"),
    (Imported("000.jpg", "a.jpg"), Imported(None, "b.jpg", "overlaps with no other photo")),
    (30, 12),
    5000,
    4.5,
    0.61,
    (LensFound("", 30, 45.0, 47.5),),
)


@pytest.mark.parametrize("as_json", [False, True])
def test_what_came_of_the_photos_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    asked = []
    monkeypatch.setattr("sidestep.captures.photos.import_photos", lambda *options: asked.append(options[:4]) or FOUND)
    command = ["sidestep", "capture", "import", "photos", "out", "--frames", "40", *(["--json"] if as_json else [])]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    assert asked == [(Path("photos"), Path("out"), 40, 1600)]
    printed = capsys.readouterr().out
    if as_json:
        assert json.loads(printed)["photos"][1]["reason"] == "overlaps with no other photo"
        return
    assert "no camera: b.jpg: overlaps with no other photo" in printed
    assert "models: 2 that do not connect; kept: the one of 30, not 12" in printed
    assert "field of view: 45.0° (47.5° by EXIF), 30 photos" in printed


def test_an_interrupt_ends_colmap_too(tmp_path: Path) -> None:
    pytest.importorskip("pycolmap", minversion="4")
    photos, work = tmp_path / "photos", tmp_path / ".out.import"
    photos.mkdir()
    random = np.random.default_rng(0)
    for number in range(12):
        noise = random.integers(0, 255, (240, 320, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((1280, 960)).save(photos / f"{number}.jpg")
    command = [sys.executable, "-m", "sidestep", "capture", "import", str(photos), str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (work / "database.db").exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130
    assert (out, err) == ("", "interrupted; run the same command again to go on\n")
    assert not (tmp_path / "out").exists()
    if os.path.isdir("/proc/self"):
        running = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline")]
        assert not [line for line in running if str(work).encode() in line]
