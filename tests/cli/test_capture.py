"""`sidestep capture`: what is printed of a set and of an import, and that Ctrl-C ends an import with COLMAP."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sidestep.captures.photos import Import, Imported, LensFound

Command = Callable[..., int]  # runs the command line, by its arguments; the exit code
FOUND = Import(
    Path("out"),
    (Imported("000.jpg", "a.jpg"), Imported(None, "b.jpg", "overlaps with no other photo")),
    (30, 12),
    5000,
    4.5,
    0.61,
    (LensFound("", 30, 45.0, 47.5),),
)


def test_an_inspection_is_told_and_fails_on_an_error(
    sidestep: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    furniture = Path(__file__).parents[1] / "data" / "furniture"
    page = tmp_path / "page.html"
    assert sidestep("capture", "inspect", furniture, "--out", page, "--no-photos") == 0
    told = capsys.readouterr().out
    assert "3 scenes, 0 unreadable" in told
    assert str(page) in told
    assert page.read_text().startswith("<!doctype html>")

    (tmp_path / "set" / "unposed" / "images").mkdir(parents=True)
    assert sidestep("capture", "inspect", tmp_path / "set", "--json") == 1
    (finding,) = json.loads(capsys.readouterr().out)["findings"]
    assert (finding["severity"], finding["scene"]) == ("error", "unposed")

    assert sidestep("capture", "inspect", tmp_path / "absent") == 1
    assert "error:" in capsys.readouterr().err
    for out, fault in ((tmp_path, "is a folder; name a file in it"), (page / "page.html", "cannot be a folder")):
        assert sidestep("capture", "inspect", furniture, "--out", out) == 1
        told = capsys.readouterr()
        assert fault in told.err
        assert not told.out


@pytest.mark.parametrize("as_json", [False, True])
def test_what_came_of_the_photos_is_printed(
    sidestep: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    asked = []
    monkeypatch.setattr("sidestep.captures.photos.import_photos", lambda *options: asked.append(options[:4]) or FOUND)
    command = ("capture", "import", "photos", "out", "--frames", "40", *(["--json"] if as_json else []))
    assert sidestep(*command) == 0
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
