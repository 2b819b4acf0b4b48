"""pretrain, encode, train and view, one after another from the shell, on the committed captures."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from sidestep.captures import read_captures
from sidestep.captures.splits import write_split
from sidestep.cli import main

DATA = Path(__file__).parents[1] / "data" / "furniture"
CHAIR = Path(__file__).parents[2] / "examples" / "chair.jpg"

TINY_PRIOR = """
image_size: 64
autoencoder: {steps: 3, batch_size: 2, crop: 32, channels: [8, 8, 8, 16], precision: fp32}
unet: {steps: 3, batch_size: 2, channels: [32, 32], attention: [false, true], layers_per_block: 1, precision: fp32}
"""
TINY_TUNET = {
    "block_out_channels": [32, 32],
    "down_layers": 1,
    "up_layers": 2,
    "attention_levels": 1,
    "head_dim": 16,
    "cross_attention_dim": 32,
    "time_embed_dim": 32,
}


def sidestep(*arguments: object) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        [sys.executable, "-m", "sidestep", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    return result


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny prior, its latents and a tiny TUNet, all made by the commands."""
    root = tmp_path_factory.mktemp("workshop")
    pictures = root / "pictures"
    pictures.mkdir()
    for index, path in enumerate(sorted(DATA.glob("*/*/images/*.jpg"))[::4]):
        (pictures / f"{index:03d}.jpg").write_bytes(path.read_bytes())
    (root / "prior.yaml").write_text(TINY_PRIOR)
    sidestep("pretrain", root / "prior.yaml", f"data={pictures}", f"out={root / 'prior-run'}")

    sidestep("encode", DATA, "--prior", root / "prior-run/prior", "--out", root / "latents", "--steps", 3)

    scenes = read_captures(DATA)
    write_split(root / "split.json", {"train": scenes[:2], "val": scenes[2:], "test": []})
    config = {
        "latents": str(root / "latents"),
        "out": str(root / "run"),
        "steps": 4,
        "batch_size": 2,
        "size": "small",
        "tunet": TINY_TUNET,
        "pairs": "any",
        "mirror": True,
        "split": str(root / "split.json"),
        "precision": "fp32",
        "save_every": 2,
    }
    (root / "tunet.yaml").write_text(json.dumps(config))  # JSON is YAML
    sidestep("train", root / "tunet.yaml", "steps=4")
    return root


def test_training_leaves_a_model_and_a_record_of_the_run(workshop: Path) -> None:
    run = workshop / "run"
    assert (run / "model/tunet/config.json").exists()
    assert (run / "model/vae").is_dir()
    assert (run / "model/unet").is_dir()
    assert (run / "config.yaml").read_text()
    assert (run / "git-revision.txt").read_text().strip()
    assert any("validation/mse" in line for line in (run / "metrics.jsonl").read_text().splitlines())
    assert list((run / "samples").glob("*.png"))


def test_a_finished_run_is_not_trained_again(workshop: Path) -> None:
    before = (workshop / "run/metrics.jsonl").read_text()
    sidestep("train", workshop / "tunet.yaml")
    assert (workshop / "run/metrics.jsonl").read_text() == before


def test_view_writes_a_picture(workshop: Path) -> None:
    out = workshop / "view.png"
    result = sidestep(
        "view", CHAIR, "--yaw", 20, "--out", out, "--model", workshop / "run/model", "--steps", 2, "--json", "--coarse"
    )
    told = json.loads(result.stdout)
    assert told["written"] == [str(out), str(workshop / "view-coarse.png")]
    assert told["fusion"][0] in ("variance", "addition")
    for path in told["written"]:
        assert Image.open(path).size == (64, 64)


def test_view_writes_a_capture_that_its_readers_read(workshop: Path) -> None:
    out = workshop / "orbit"
    arguments = ("--trajectory", "orbit", "--frames", 2, "--fusion", "variance", "--steps", 2)
    sidestep("view", CHAIR, *arguments, "--out", out, "--model", workshop / "run/model")
    (scene,) = read_captures(out)
    assert [frame.load().size for frame in scene.frames] == [(64, 64)] * 3  # the photo among them
    # The same cameras once more, from the file that was just written.
    sidestep(
        "view", CHAIR, "--cameras", out / "transforms.json", "--out", workshop / "again.gif",
        "--fusion", "variance", "--steps", 2, "--model", workshop / "run/model",
    )  # fmt: skip
    assert Image.open(workshop / "again.gif").n_frames == 3


def test_evaluate_writes_a_report(workshop: Path) -> None:
    out = workshop / "report"
    arguments = ("--data", DATA / "sofa", "--out", out, "--model", workshop / "run/model", "--steps", 2)
    told = json.loads(sidestep("evaluate", *arguments, "--json").stdout)
    assert told["report"] == str(out / "report.html")
    assert "psnr" in told["estimates"]["coarse"]["far"]
    assert "<html" in (out / "report.html").read_text(encoding="utf-8")


@pytest.mark.usefixtures("own_process")
@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (("view", "{root}/tunet.yaml", "--out", "x.png"), "tunet.yaml"),
        (("view", "{root}/truncated.jpg", "--out", "x.png"), "truncated.jpg"),
        (("view", "{chair}", "--out", "x.bmp"), ".bmp"),
        (("view", "{chair}", "--out", "x.png", "--category", "spoon"), "spoon"),
        (("view", "{chair}", "--out", "x.png", "--cameras", "{root}/nan.json"), "nan.json"),
        (("view", "{chair}", "--out", "x.png", "--cameras", "{root}/reflection.json"), "reflection.json"),
        (("view", "{chair}", "--out", "x.png", "--prior", "{root}/other/prior"), "prior"),
        (("view", "{chair}", "--out", "x.png", "--fusion", "variance", "--prompt", "a red chair"), "text encoder"),
        (("encode", "{root}/nan.json", "--out", "x"), "nan.json"),
        (("train", "{root}/tunet.yaml", "learning_rat=1"), "learning_rat"),
        (("evaluate", "--data", "{data}", "--out", "x", "--split", "val"), "split val"),
        (("encode", "{data}", "--out", "{root}/latents", "--prior", "{root}/prior-run/prior", "--steps", 5), "latents"),
    ],
)
def test_bad_input_is_one_clear_line_and_leaves_nothing(
    workshop: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: tuple[object, ...],
    fault: str,
) -> None:
    """In this process: a dozen more, each with torch to import, would take a minute."""
    (workshop / "truncated.jpg").write_bytes(CHAIR.read_bytes()[:2000])
    frame = {"file_path": "a.png", "transform_matrix": [[float("nan")] * 4] * 4}
    sizes = {"w": 64, "h": 64, "fl_x": 60.0, "fl_y": 60.0, "cx": 32.0, "cy": 32.0}
    (workshop / "nan.json").write_text(json.dumps({**sizes, "frames": [frame]}))
    frame["transform_matrix"] = [[-1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    (workshop / "reflection.json").write_text(json.dumps({**sizes, "frames": [frame]}))
    monkeypatch.chdir(tmp_path)
    filled = [str(argument).format(root=workshop, chair=CHAIR, data=DATA) for argument in arguments]
    if filled[0] == "view":
        filled += ["--model", str(workshop / "run/model")]
    monkeypatch.setattr(sys, "argv", ["sidestep", *filled])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1
    told = capsys.readouterr().err
    message = [line for line in told.splitlines() if line.startswith("error:")]
    assert len(message) == 1
    assert fault in message[0]
    assert "Traceback" not in told
    assert not list(tmp_path.iterdir())
