"""The command line around a stand-in for the pipeline: what it starts, passes on, writes and refuses."""

import json
import subprocess
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
from sidestep.cli.view import Trajectory, _targets
from sidestep.evaluation.results import Estimate, Figure, Results, Row
from sidestep.pipeline import NovelViewPipeline, Views
from sidestep.trajectories import orbit, step_aside

pytestmark = pytest.mark.usefixtures("own_process")
COMMANDS = ("view", "app", "prior", "encode", "train", "pretrain", "evaluate", "pack", "verify", "capture")
ASK = """
import sys
from sidestep.cli import main
try:
    main()
except SystemExit as end:
    heavy = {"torch", "diffusers", "transformers", "accelerate", "numpy", "PIL"} & set(sys.modules)
    print(end.code or 0, sorted(heavy), file=sys.stderr)
"""


@pytest.mark.parametrize(
    "arguments", [("--help",), ("--version",), *((command, "--help") for command in COMMANDS)], ids=" ".join
)
def test_help_and_version_answer_without_loading_anything_large(arguments: tuple[str, ...]) -> None:
    result = subprocess.run([sys.executable, "-c", ASK, *arguments], capture_output=True, text=True, check=True)
    assert result.stderr.strip() == "0 []"
    if "--help" in arguments:
        assert "Usage" in result.stdout
    else:
        assert result.stdout.strip()[0].isdigit()


def test_the_help_lists_every_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert sidestep(monkeypatch, "--help") == 0
    told = capsys.readouterr().out
    assert all(command in told for command in COMMANDS)


def sidestep(monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> int:
    """Runs the command in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["sidestep", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


@pytest.mark.parametrize(
    "arguments",
    [
        ("view", "a.jpg", "--out", "b.png", "--yawn", "3"),
        ("look",),
        ("view",),
        ("view", "a.jpg", "--out", "b.png", "--frames", "1"),
    ],
)
def test_a_wrong_command_line_exits_with_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    assert sidestep(monkeypatch, *arguments) == 2
    assert "Usage" in capsys.readouterr().err


class FakePipeline:
    """Remembers what it is called with and answers with grey pictures."""

    def __init__(self) -> None:
        self.loaded: dict[str, Any] = {}
        self.called: dict[str, Any] = {}
        self.tunet = SimpleNamespace(config=SimpleNamespace(elevation=25.0))

    def __call__(self, photo: Any, targets: Any, *arguments: Any, **options: Any) -> Views:
        names = ("source", "category", "fusion", "prompt", "steps", "seed")
        self.called = {"photo": photo, "targets": targets, **dict(zip(names, arguments, strict=True)), **options}
        options["progress"]("invert", 1, 2)
        cameras = [camera.resize_and_crop(16) for camera in targets]
        grey = [Image.new("RGB", (16, 16), (90, 90, 90)) for _ in targets]
        source = self.called["source"].resize_and_crop(16)
        return Views(grey, cameras, list(grey), ["variance"] * len(targets), grey[0], source)


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> FakePipeline:
    fake = FakePipeline()

    def from_pretrained(model: str, **options: Any) -> FakePipeline:
        fake.loaded = {"model": model, **options}
        return fake

    monkeypatch.setattr(NovelViewPipeline, "from_pretrained", from_pretrained)
    return fake


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.new("RGB", (24, 16), (200, 50, 50)).save(path)
    return path


def view(monkeypatch: pytest.MonkeyPatch, photo: Path, *options: Any) -> int:
    return sidestep(monkeypatch, "view", photo, "--out", photo.with_name("out.png"), *options)


def aim(camera: Camera) -> list[float]:
    return camera.centre.tolist()


@pytest.mark.parametrize(
    ("yaw", "pitch", "axis", "sign"), [(20, None, 0, 1), (-20, None, 0, -1), (None, 20, 1, -1), (None, -20, 1, 1)]
)
def test_yaw_is_to_the_right_and_pitch_is_up(yaw: float | None, pitch: float | None, axis: int, sign: int) -> None:
    (target,) = _targets(Camera.from_fov(45, 16, 16), None, yaw, pitch, 24, 0.0)
    assert aim(target)[axis] * sign > 0.3  # y points down
    assert aim(target)[1 - axis] == pytest.approx(0, abs=1e-6)
    pixel, depth = target.project(torch.tensor([[0.0, 0.0, 1.0]]))
    torch.testing.assert_close(pixel, torch.tensor([[8.0, 8.0]]))
    torch.testing.assert_close(depth, torch.ones(1))


def test_trajectories_of_the_options() -> None:
    source = Camera.from_fov(45, 16, 16)

    def path(trajectory: Trajectory, yaw: float | None = None, pitch: float | None = None) -> torch.Tensor:
        return Camera.stack(_targets(source, trajectory, yaw, pitch, 9, 0.0)).centre

    around = path("orbit")
    assert len(around) == 9
    torch.testing.assert_close(around[0, 0], -around[-1, 0])
    assert float(around[-1, 0]) == pytest.approx(0.5, abs=1e-4)  # 30 degrees to the right
    assert float(path("orbit", yaw=90)[-1, 0]) == pytest.approx(1, abs=1e-4)
    assert bool((path("orbit", pitch=10)[:, 1] < 0).all())
    nearer = path("dolly")
    assert bool((nearer[:, 2].diff() > 0).all())
    spiral = path("spiral")
    torch.testing.assert_close(spiral[0], spiral[-1], rtol=0, atol=1e-6)
    assert float(path("spiral", yaw=40)[:, 0].max()) > 1.5 * float(spiral[:, 0].max())
    # A camera that looks down turns about the vertical of the room, not about its own.
    down = Camera.stack(_targets(source, "orbit", 60, None, 9, 40.0)).centre
    assert float(down[0, 1]) != pytest.approx(0, abs=0.05)


def test_a_view_to_the_side(monkeypatch: pytest.MonkeyPatch, pipe: FakePipeline, photo: Path) -> None:
    assert view(monkeypatch, photo, "--yaw", "20", "--fov", "60") == 0
    called = pipe.called
    assert called["photo"].size == (24, 16)
    assert float(called["source"].fov) == pytest.approx(60, abs=1e-3)
    assert called["scale"] == 1.0
    (target,) = called["targets"]
    wanted = step_aside(called["source"], 20, elevation=25.0)  # the model's own elevation
    torch.testing.assert_close(target.world_to_camera, wanted.world_to_camera)
    assert Image.open(photo.with_name("out.png")).size == (16, 16)
    assert sorted(path.name for path in photo.parent.iterdir()) == ["out.png", "photo.png"]

    view(monkeypatch, photo, "--yaw", "20", "--elevation", "0")
    assert float(pipe.called["source"].fov) == pytest.approx(45, abs=1e-3)
    assert aim(pipe.called["targets"][0])[1] == pytest.approx(0, abs=1e-6)


def test_the_field_of_view_is_read_from_the_photo(
    monkeypatch: pytest.MonkeyPatch, pipe: FakePipeline, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = 26  # FocalLengthIn35mmFilm
    Image.new("RGB", (36, 24)).save(tmp_path / "phone.jpg", exif=exif)
    view(monkeypatch, tmp_path / "phone.jpg")
    assert float(pipe.called["source"].fov) == pytest.approx(49.55, abs=0.05)  # 2 atan(12 / 26)
    view(monkeypatch, tmp_path / "phone.jpg", "--fov", "70")
    assert float(pipe.called["source"].fov) == pytest.approx(70, abs=1e-3)


def test_options_reach_the_pipeline(
    monkeypatch: pytest.MonkeyPatch, pipe: FakePipeline, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = (
        "--category chair --fusion addition --prompt red --negative-prompt blue --guidance 2 --steps 7 --seed 3 "
        "--model here --prior there --device cpu --noise late --latent t_star --noise-scale paper --sample-from 581"
    )
    assert view(monkeypatch, photo, *options.split(), "--json", "--coarse") == 0
    assert pipe.loaded == {"model": "here", "prior": "there", "device": "cpu"}
    told = {name: pipe.called[name] for name in ("category", "fusion", "prompt", "negative_prompt")}
    assert told == {"category": "chair", "fusion": "addition", "prompt": "red", "negative_prompt": "blue"}
    assert (pipe.called["guidance"], pipe.called["steps"], pipe.called["seed"]) == (2.0, 7, 3)
    readings = pipe.called["settings"]
    assert (readings.c, readings.noise, readings.latent, readings.sample_from) == ("paper", "late", "t_star", 581)
    report = json.loads(capsys.readouterr().out)
    out = photo.with_name("out.png")
    assert report == {"written": [str(out), str(out.with_name("out-coarse.png"))], "fusion": ["variance"]}
    assert out.with_name("out-coarse.png").exists()


def write_file(folder: Path, cameras: list[Camera], names: list[str]) -> Path:
    write_transforms(folder, cameras, names)
    return folder / "transforms.json"


def test_cameras_that_name_the_photo_have_its_own(
    monkeypatch: pytest.MonkeyPatch, pipe: FakePipeline, photo: Path
) -> None:
    cameras = orbit(step_aside(Camera.from_fov(33, 24, 16), 50, 10), 3)
    file = write_file(photo.parent, cameras, ["left.png", "photo.png", "right.png"])
    assert view(monkeypatch, photo, "--cameras", file) == 0
    torch.testing.assert_close(pipe.called["source"].world_to_camera, cameras[1].world_to_camera)
    assert float(pipe.called["source"].fov) == pytest.approx(33, abs=1e-3)
    assert pipe.called["scale"] is None  # of the file's world, found from where the axes meet
    for target, wanted in zip(pipe.called["targets"], [cameras[0], cameras[2]], strict=True):
        torch.testing.assert_close(target.world_to_camera, wanted.world_to_camera)


def test_cameras_that_do_not_name_the_photo_are_about_the_origin(
    monkeypatch: pytest.MonkeyPatch, pipe: FakePipeline, photo: Path
) -> None:
    cameras = orbit(Camera.from_fov(33, 40, 40), 2)
    file = write_file(photo.parent, cameras, ["left.png", "right.png"])
    assert view(monkeypatch, photo, "--cameras", file, "--fov", "60") == 0
    torch.testing.assert_close(pipe.called["source"].world_to_camera, torch.eye(4))
    assert (pipe.called["source"].width, pipe.called["source"].height) == (24, 16)
    assert pipe.called["scale"] == 1.0
    assert len(pipe.called["targets"]) == 2


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (("--cameras", "{folder}/transforms.json", "--yaw", "3"), "leave --yaw out"),
        (("--cameras", "{folder}/transforms.json"), "no camera beside the photo's own"),
        (("--cameras", "{folder}/absent.json"), "absent.json"),
        (("--yaw", "20", "--fov", "190"), "190"),
        (("--yaw", "20", "--pitch", "80"), "over the pole"),
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
    write_file(photo.parent, [Camera.from_fov(45, 24, 16)], ["photo.png"])
    assert view(monkeypatch, photo, *(option.format(folder=photo.parent) for option in options)) == 1
    output = capsys.readouterr()
    assert output.out == ""
    (line,) = output.err.splitlines()
    assert line.startswith("error: ")
    assert fault in line
    assert not photo.with_name("out.png").exists()


def test_a_coarse_picture_that_cannot_be_written_is_refused_before_the_work(
    monkeypatch: pytest.MonkeyPatch, pipe: FakePipeline, photo: Path
) -> None:
    photo.with_name("out-coarse.png").mkdir()
    assert view(monkeypatch, photo, "--yaw", "3", "--coarse") == 1
    assert pipe.called == {}
    assert not photo.with_name("out.png").exists()


def test_a_file_name_with_brackets_is_told_as_it_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("[draft] chair.jpg", "[/bold].jpg"):
        assert sidestep(monkeypatch, "view", name, "--out", "b.png") == 1
        assert f"error: {name}: no such file" in capsys.readouterr().err


def test_two_photos_of_one_name_in_a_cameras_file_are_refused(
    monkeypatch: pytest.MonkeyPatch, pipe: FakePipeline, photo: Path
) -> None:
    cameras = orbit(Camera.from_fov(33, 24, 16), 3)
    file = write_file(photo.parent, cameras, ["a.png", "b.png", "c.png"])
    data = json.loads(file.read_text())
    for frame, name in zip(data["frames"], ("left/photo.png", "right/photo.png", "c.png"), strict=True):
        frame["file_path"] = name
    file.write_text(json.dumps(data))
    assert view(monkeypatch, photo, "--cameras", file) == 1
    assert not pipe.called


def test_an_inspection_is_told_and_fails_on_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    furniture = Path(__file__).parent / "data" / "furniture"
    page = tmp_path / "page.html"
    assert sidestep(monkeypatch, "capture", "inspect", furniture, "--out", page, "--no-photos") == 0
    told = capsys.readouterr().out
    assert "3 scenes, 0 unreadable" in told
    assert str(page) in told
    assert page.read_text().startswith("<!doctype html>")

    (tmp_path / "set" / "unposed" / "images").mkdir(parents=True)
    assert sidestep(monkeypatch, "capture", "inspect", tmp_path / "set", "--json") == 1
    (finding,) = json.loads(capsys.readouterr().out)["findings"]
    assert (finding["severity"], finding["scene"]) == ("error", "unposed")

    assert sidestep(monkeypatch, "capture", "inspect", tmp_path / "absent") == 1
    assert "error:" in capsys.readouterr().err
    for out, fault in ((tmp_path, "is a folder; name a file in it"), (page / "page.html", "cannot be a folder")):
        assert sidestep(monkeypatch, "capture", "inspect", furniture, "--out", out) == 1
        told = capsys.readouterr()
        assert fault in told.err
        assert not told.out


def test_an_evaluation_gets_what_was_asked_for_and_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    called: dict[str, Any] = {}
    psnr = Figure("psnr", "PSNR (dB)", "higher", 2)
    found = {"auto": {"all": {"psnr": Estimate(19.127, 18.0, 20.0)}}}

    def fake(model: str, data: str, out: Path, **options: Any) -> Results:
        called.update(model=model, data=data, out=out, **options)
        return Results({}, [], [Row("auto", "auto", "model")], [psnr], {"FID": "no weights"}, estimates=found)

    monkeypatch.setattr("sidestep.evaluation.evaluate.evaluate", fake)
    own = ["--rows", "model", "--rows", "limit", "--predictions", "seva=a=b", "--split", "val", "--steps", 9]
    assert sidestep(monkeypatch, "evaluate", "--data", "d", "--out", tmp_path / "r", *own) == 0
    assert called["groups"] == ["model", "limit"]
    assert called["predictions"] == {"seva": Path("a=b")}
    assert (called["model"], called["data"], called["split"], called["steps"]) == ("bundled", "d", "val", 9)
    assert called["command"].startswith("sidestep evaluate --data d --out")
    told = capsys.readouterr()
    assert "19.13" in told.out
    assert str(tmp_path / "r" / "report.html") in told.out.replace("\n", "")
    assert "FID: missing; no weights" in told.err

    assert sidestep(monkeypatch, "evaluate", "--data", "d", "--out", tmp_path / "r", "--json") == 0
    assert json.loads(capsys.readouterr().out)["estimates"]["auto"]["all"]["psnr"]["value"] == 19.127
    assert sidestep(monkeypatch, "evaluate", "--data", "d", "--out", "r", "--predictions", "seva") == 1
    assert "--predictions seva: expected NAME=DIR" in capsys.readouterr().err
    twice = ["--predictions", "seva=a", "--predictions", "seva=b"]
    assert sidestep(monkeypatch, "evaluate", "--data", "d", "--out", "r", *twice) == 1
    assert "seva is given twice" in capsys.readouterr().err
