"""The script that fetches photographs, on packages that are made up."""

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sidestep.errors import SidestepError
from sidestep.images import load_image

SCRIPT = Path(__file__).parents[1] / "scripts" / "fetch_photographs.py"


@pytest.fixture
def fetch(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], int]:
    """`fetch` of the script, whose one package holds a wallpaper of two sizes, a photograph and a drawing."""
    names: dict[str, Any] = runpy.run_path(str(SCRIPT))
    function: Callable[[Path], int] = names["fetch"]

    def unpacked(package: str, folder: Path) -> Path:
        share = folder / package / "usr" / "share"
        for name, size in {
            "papers/Kite/contents/images/900x600": (900, 600),
            "papers/Kite/contents/images/1200x800": (1200, 800),
            "papers/Small": (300, 200),
            "papers/Drawing": (900, 600),
        }.items():
            (share / name).parent.mkdir(parents=True, exist_ok=True)
            Image.effect_noise(size, 50).convert("RGB").save(share / f"{name}.jpg")
        (share / "doc" / package).mkdir(parents=True)
        (share / "doc" / package / "copyright").write_text("CC0")
        return folder / package

    monkeypatch.setitem(function.__globals__, "PHOTOGRAPHS", {"wallpapers": ("papers", ("Kite", "Small", "Gone"))})
    monkeypatch.setitem(function.__globals__, "unpack", unpacked)
    return function


def test_the_named_photographs_are_kept_shrunk_with_their_licence(
    fetch: Callable[[Path], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fetch(tmp_path / "out") == 2
    folder = tmp_path / "out" / "wallpapers"
    assert sorted(path.name for path in folder.iterdir()) == ["Kite.jpg", "Small.jpg", "copyright"]
    assert load_image(folder / "Kite.jpg").size == (768, 512)
    assert load_image(folder / "Small.jpg").size == (300, 200)
    assert "wallpapers: this release has no photograph Gone" in capsys.readouterr().err


def test_a_folder_that_holds_something_and_a_release_without_any_are_refused(
    fetch: Callable[[Path], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept")
    with pytest.raises(SidestepError, match="out: exists already; name a new folder"):
        fetch(tmp_path / "out")
    monkeypatch.setitem(fetch.__globals__, "PHOTOGRAPHS", {"wallpapers": ("papers", ("Gone",))})
    with pytest.raises(SidestepError, match="hold none of the photographs"):
        fetch(tmp_path / "new")
    assert not (tmp_path / "new").exists()
