"""`sidestep view` along paths: which cameras are asked for, in what batches, and how the animation plays."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from sidestep.cameras import Camera
from sidestep.captures.transforms import write_transforms
from sidestep.cli import main
from sidestep.cli.view import _targets
from sidestep.pipeline import NovelViewPipeline, Views
from sidestep.trajectories import dolly_zoom, orbit, step_aside

pytestmark = pytest.mark.usefixtures("own_process")
SOURCE = Camera.from_fov(45, 16, 16)


class FakePipeline:
    """Remembers what it is called with; each view has a grey of its own."""

    def __init__(self) -> None:
        self.called: dict[str, Any] = {}
        self.tunet = SimpleNamespace(config=SimpleNamespace(elevation=25.0))

    def __call__(self, photo: Any, targets: list[Camera], *arguments: Any, **options: Any) -> Views:
        self.called = {"targets": targets, **options}
        cameras = [camera.resize_and_crop(16) for camera in targets]
        greys = [Image.new("RGB", (16, 16), (20 * i, 20 * i, 20 * i)) for i in range(len(targets))]
        return Views(greys, cameras, greys, ["variance"] * len(targets), greys[0], cameras[0])


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> FakePipeline:
    fake = FakePipeline()
    monkeypatch.setattr(NovelViewPipeline, "from_pretrained", lambda *arguments, **options: fake)
    return fake


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.new("RGB", (24, 16), (200, 50, 50)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def view(monkeypatch: pytest.MonkeyPatch, photo: Path, *options: Any) -> int:
    monkeypatch.setattr(sys, "argv", ["sidestep", "view", str(photo), *map(str, options)])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def same(cameras: list[Camera], others: list[Camera]) -> bool:
    return all(
        torch.allclose(a.world_to_camera, b.world_to_camera, atol=1e-6) and torch.allclose(a.intrinsics, b.intrinsics)
        for a, b in zip(cameras, others, strict=True)
    )


def test_names_and_easing_choose_the_path() -> None:
    assert same(_targets(SOURCE, "dolly-zoom", None, None, 5, 0.0), dolly_zoom(SOURCE, 5))
    eased = _targets(SOURCE, "orbit", 40, 5, 5, 10.0, "smooth")
    assert same(eased, orbit(SOURCE, 5, yaw=(-40, 40), pitch=(5, 5), elevation=10, easing="smooth"))


def test_a_path_through_a_file_of_key_frames(monkeypatch: pytest.MonkeyPatch, pipe: FakePipeline, photo: Path) -> None:
    keys = photo.with_name("keys.yaml")
    keys.write_text("keyframes: [{}, {yaw: 30}, {yaw: 30, pitch: 10}]")
    out = photo.with_name("out.gif")
    assert (
        view(
            monkeypatch,
            photo,
            "--out",
            out,
            "--trajectory",
            keys,
            "--frames",
            5,
            "--batch-size",
            2,
            "--consistency",
            0.5,
        )
        == 0
    )
    targets = pipe.called["targets"]
    source = Camera.from_fov(45, 24, 16)
    ends = [source, step_aside(source, 30, elevation=25.0), step_aside(source, 30, 10, elevation=25.0)]
    assert same(targets[::2], ends)  # with the model's own elevation
    assert (pipe.called["batch_size"], pipe.called["consistency"]) == (2, 0.5)
    assert Image.open(out).n_frames == 5


def test_a_path_has_24_views_unless_told(monkeypatch: pytest.MonkeyPatch, pipe: FakePipeline, photo: Path) -> None:
    out = photo.with_name("new") / "out.gif"
    assert view(monkeypatch, photo, "--out", out, "--trajectory", "spiral") == 0
    assert same(pipe.called["targets"], _targets(Camera.from_fov(45, 24, 16), "spiral", None, None, 24, 25.0))
    assert pipe.called["consistency"] == 0
    assert Image.open(out).info["duration"] == 80  # 12 a second, in hundredths


def test_a_loop_plays_there_and_back(monkeypatch: pytest.MonkeyPatch, pipe: FakePipeline, photo: Path) -> None:
    out = photo.with_name("out.gif")
    assert view(monkeypatch, photo, "--out", out, "--trajectory", "orbit", "--frames", 4, "--loop") == 0
    assert len(pipe.called["targets"]) == 4
    assert Image.open(out).n_frames == 6


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (
            ("--trajectory", "orbti"),
            "trajectory orbti is unknown; use orbit, spiral, dolly, dolly-zoom, or name a file",
        ),
        (("--trajectory", "absent.yaml"), "absent.yaml"),
        (("--trajectory", "{folder}/bad.yaml"), "bad.yaml: keyframes.1: distance is -1.0"),
        (("--trajectory", "{folder}/steep.yaml"), "steep.yaml: keyframes.1: trajectory: elevation 25 with pitch 80"),
        (("--trajectory", "{folder}/steep.yaml", "--yaw", "3"), "leave --yaw and --pitch out"),
        (("--trajectory", "dolly", "--pitch", "3"), "leave --yaw and --pitch out"),
        (("--trajectory", "orbit", "--loop"), "out.png: is not played; leave --loop out, or name an animation"),
        (("--trajectory", "orbit", "--loop", "--fps", "24"), "leave --loop and --fps out"),
        (("--frames", "24"), "one view is no path; leave --frames out, or add --trajectory"),
        (
            ("--frames", "24", "--easing", "smooth", "--consistency", "0.5"),
            "leave --frames, --easing and --consistency out",
        ),
        (("--out", "{folder}/one.mp4"), "one.mp4: one view does not move; add --trajectory, or name a picture"),
        (("--cameras", "{folder}/transforms.json", "--frames", "24"), "says where to look from; leave --frames out"),
        (
            ("--cameras", "{folder}/transforms.json", "--easing", "linear", "--elevation", "20"),
            "leave --easing and --elevation out",
        ),
        (
            ("--cameras", "{folder}/transforms.json", "--fov", "60"),
            "transforms.json: has the photo's own camera; leave --fov out",
        ),
        (("--cameras", "{folder}/transforms.json", "--out", "{folder}/one.gif"), "one.gif: one view does not move"),
        (("--out", "."), ".: has no name of its own; name a file or a folder, such as views"),
        (("--out", ".."), "..: has no name of its own"),
        (("--out", "{folder}/photo.png/x.png"), "photo.png: cannot be a folder to write into (File exists)"),
        (("--out", "/proc/x.png"), "/proc: cannot be a folder to write into"),
    ],
)
def test_what_is_refused_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
    pipe: FakePipeline,
    photo: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    fault: str,
) -> None:
    write_transforms(photo.parent, orbit(Camera.from_fov(45, 24, 16), 2), ["photo.png", "right.png"])
    photo.with_name("bad.yaml").write_text("keyframes: [{}, {distance: -1}]")
    photo.with_name("steep.yaml").write_text("keyframes: [{}, {pitch: 80}]")
    named = [option.format(folder=photo.parent) for option in options]
    assert view(monkeypatch, photo, "--out", photo.with_name("out.png"), *named) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert fault in line
    assert not pipe.called
