"""`sidestep view` around a stand-in for the pipeline: what it passes on, which cameras, what it writes and refuses."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from sidestep.cameras import Camera
from sidestep.captures.transforms import write_transforms
from sidestep.cli.view import Trajectory, _targets
from sidestep.pipeline import NovelViewPipeline, Views
from sidestep.trajectories import dolly_zoom, orbit, step_aside

Command = Callable[..., int]  # runs the command line, by its arguments; the exit code
SOURCE = Camera.from_fov(45, 16, 16)


class FakePipeline:
    """Remembers what it is called with and answers with pictures, each of a grey of its own."""

    def __init__(self) -> None:
        self.loaded: dict[str, Any] = {}
        self.called: dict[str, Any] = {}
        self.tunet = SimpleNamespace(config=SimpleNamespace(elevation=25.0))

    def __call__(self, photo: Any, targets: Any, *arguments: Any, **options: Any) -> Views:
        names = ("source", "category", "fusion", "prompt", "steps", "seed")
        self.called = {"photo": photo, "targets": targets, **dict(zip(names, arguments, strict=True)), **options}
        options["progress"]("invert", 1, 2)
        cameras = [camera.resize_and_crop(16) for camera in targets]
        greys = [Image.new("RGB", (16, 16), (20 * i, 20 * i, 20 * i)) for i in range(len(targets))]
        source = self.called["source"].resize_and_crop(16)
        return Views(greys, cameras, list(greys), ["variance"] * len(targets), greys[0], source)


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


@pytest.fixture
def view(sidestep: Command, photo: Path) -> Command:
    """The command with the photo, to out.png if nothing else is said."""
    return lambda *options: sidestep("view", photo, "--out", photo.with_name("out.png"), *options)


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


def test_a_view_to_the_side(view: Command, pipe: FakePipeline, photo: Path) -> None:
    assert view("--yaw", "20", "--fov", "60") == 0
    called = pipe.called
    assert called["photo"].size == (24, 16)
    assert float(called["source"].fov) == pytest.approx(60, abs=1e-3)
    assert called["scale"] == 1.0
    (target,) = called["targets"]
    wanted = step_aside(called["source"], 20, elevation=25.0)  # the model's own elevation
    torch.testing.assert_close(target.world_to_camera, wanted.world_to_camera)
    assert Image.open(photo.with_name("out.png")).size == (16, 16)
    assert sorted(path.name for path in photo.parent.iterdir()) == ["out.png", "photo.png"]

    view("--yaw", "20", "--elevation", "0")
    assert float(pipe.called["source"].fov) == pytest.approx(45, abs=1e-3)
    assert aim(pipe.called["targets"][0])[1] == pytest.approx(0, abs=1e-6)


def test_the_field_of_view_is_read_from_the_photo(sidestep: Command, pipe: FakePipeline, tmp_path: Path) -> None:
    phone = ("view", tmp_path / "phone.jpg", "--out", tmp_path / "out.png")
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = 26  # FocalLengthIn35mmFilm
    Image.new("RGB", (36, 24)).save(phone[1], exif=exif)
    assert sidestep(*phone) == 0
    assert float(pipe.called["source"].fov) == pytest.approx(49.55, abs=0.05)  # 2 atan(12 / 26)
    assert sidestep(*phone, "--fov", "70") == 0
    assert float(pipe.called["source"].fov) == pytest.approx(70, abs=1e-3)


def test_options_reach_the_pipeline(
    view: Command, pipe: FakePipeline, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = (
        "--category chair --fusion addition --prompt red --negative-prompt blue --guidance 2 --steps 7 --seed 3 "
        "--model here --prior there --device cpu --noise late --latent t_star --noise-scale paper --sample-from 581"
    )
    assert view(*options.split(), "--json", "--coarse") == 0
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


def test_cameras_that_name_the_photo_have_its_own(view: Command, pipe: FakePipeline, photo: Path) -> None:
    cameras = orbit(step_aside(Camera.from_fov(33, 24, 16), 50, 10), 3)
    file = write_file(photo.parent, cameras, ["left.png", "photo.png", "right.png"])
    assert view("--cameras", file) == 0
    torch.testing.assert_close(pipe.called["source"].world_to_camera, cameras[1].world_to_camera)
    assert float(pipe.called["source"].fov) == pytest.approx(33, abs=1e-3)
    assert pipe.called["scale"] is None  # of the file's world, found from where the axes meet
    for target, wanted in zip(pipe.called["targets"], [cameras[0], cameras[2]], strict=True):
        torch.testing.assert_close(target.world_to_camera, wanted.world_to_camera)


def test_cameras_that_do_not_name_the_photo_are_about_the_origin(
    view: Command, pipe: FakePipeline, photo: Path
) -> None:
    cameras = orbit(Camera.from_fov(33, 40, 40), 2)
    file = write_file(photo.parent, cameras, ["left.png", "right.png"])
    assert view("--cameras", file, "--fov", "60") == 0
    torch.testing.assert_close(pipe.called["source"].world_to_camera, torch.eye(4))
    assert (pipe.called["source"].width, pipe.called["source"].height) == (24, 16)
    assert pipe.called["scale"] == 1.0
    assert len(pipe.called["targets"]) == 2


def test_a_coarse_picture_that_cannot_be_written_is_refused_before_the_work(
    view: Command, pipe: FakePipeline, photo: Path
) -> None:
    photo.with_name("out-coarse.png").mkdir()
    assert view("--yaw", "3", "--coarse") == 1
    assert pipe.called == {}
    assert not photo.with_name("out.png").exists()


def test_a_file_name_with_brackets_is_told_as_it_is(
    sidestep: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("[draft] chair.jpg", "[/bold].jpg"):
        assert sidestep("view", name, "--out", "b.png") == 1
        assert f"error: {name}: no such file" in capsys.readouterr().err


def test_two_photos_of_one_name_in_a_cameras_file_are_refused(view: Command, pipe: FakePipeline, photo: Path) -> None:
    cameras = orbit(Camera.from_fov(33, 24, 16), 3)
    file = write_file(photo.parent, cameras, ["a.png", "b.png", "c.png"])
    data = json.loads(file.read_text())
    for frame, name in zip(data["frames"], ("left/photo.png", "right/photo.png", "c.png"), strict=True):
        frame["file_path"] = name
    file.write_text(json.dumps(data))
    assert view("--cameras", file) == 1
    assert not pipe.called


def same(cameras: list[Camera], others: list[Camera]) -> bool:
    return all(
        torch.allclose(a.world_to_camera, b.world_to_camera, atol=1e-6) and torch.allclose(a.intrinsics, b.intrinsics)
        for a, b in zip(cameras, others, strict=True)
    )


def test_names_and_easing_choose_the_path() -> None:
    assert same(_targets(SOURCE, "dolly-zoom", None, None, 5, 0.0), dolly_zoom(SOURCE, 5))
    eased = _targets(SOURCE, "orbit", 40, 5, 5, 10.0, "smooth")
    assert same(eased, orbit(SOURCE, 5, yaw=(-40, 40), pitch=(5, 5), elevation=10, easing="smooth"))


def test_a_path_through_a_file_of_key_frames(view: Command, pipe: FakePipeline, photo: Path) -> None:
    keys = photo.with_name("keys.yaml")
    keys.write_text("keyframes: [{}, {yaw: 30}, {yaw: 30, pitch: 10}]")
    out = photo.with_name("out.gif")
    options = ("--trajectory", keys, "--frames", 5, "--batch-size", 2, "--consistency", 0.5)
    assert view("--out", out, *options) == 0
    targets = pipe.called["targets"]
    source = Camera.from_fov(45, 24, 16)
    ends = [source, step_aside(source, 30, elevation=25.0), step_aside(source, 30, 10, elevation=25.0)]
    assert same(targets[::2], ends)  # with the model's own elevation
    assert (pipe.called["batch_size"], pipe.called["consistency"]) == (2, 0.5)
    assert Image.open(out).n_frames == 5


def test_a_path_has_24_views_unless_told(view: Command, pipe: FakePipeline, photo: Path) -> None:
    out = photo.with_name("new") / "out.gif"
    assert view("--out", out, "--trajectory", "spiral") == 0
    assert same(pipe.called["targets"], _targets(Camera.from_fov(45, 24, 16), "spiral", None, None, 24, 25.0))
    assert pipe.called["consistency"] == 0
    assert Image.open(out).info["duration"] == 80  # 12 a second, in hundredths


def test_a_loop_plays_there_and_back(view: Command, pipe: FakePipeline, photo: Path) -> None:
    out = photo.with_name("out.gif")
    assert view("--out", out, "--trajectory", "orbit", "--frames", 4, "--loop") == 0
    assert len(pipe.called["targets"]) == 4
    assert Image.open(out).n_frames == 6


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (("--cameras", "{folder}/transforms.json", "--yaw", "3"), "leave --yaw out"),
        (("--cameras", "{folder}/own.json"), "no camera beside the photo's own"),
        (("--cameras", "{folder}/absent.json"), "absent.json"),
        (("--yaw", "20", "--fov", "190"), "190"),
        (("--yaw", "20", "--pitch", "80"), "over the pole"),
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
    view: Command,
    pipe: FakePipeline,
    photo: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    fault: str,
) -> None:
    cameras = orbit(Camera.from_fov(45, 24, 16), 2)
    write_file(photo.parent, cameras[:1], ["photo.png"]).rename(photo.with_name("own.json"))
    write_file(photo.parent, cameras, ["photo.png", "right.png"])
    photo.with_name("bad.yaml").write_text("keyframes: [{}, {distance: -1}]")
    photo.with_name("steep.yaml").write_text("keyframes: [{}, {pitch: 80}]")
    assert view(*(option.format(folder=photo.parent) for option in options)) == 1
    told = capsys.readouterr()
    (line,) = told.err.splitlines()
    assert line.startswith("error: ")
    assert fault in line
    assert told.out == ""
    assert not pipe.called
    assert not photo.with_name("out.png").exists()
