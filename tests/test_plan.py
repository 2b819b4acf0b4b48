"""What a dry run tells: counts that the real run keeps, and nothing written."""

import json
import shutil
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import save_file

import published
import sidestep.plan
from miniatures import TINY_TUNET
from sidestep.captures import read_captures
from sidestep.captures.splits import model_split, write_split
from sidestep.cli import main
from sidestep.encoding import encode_captures
from sidestep.errors import SidestepError
from sidestep.inversion import InversionSettings
from sidestep.plan import plan_encoding, plan_pretraining, plan_training, prior_bytes, read_noting
from sidestep.pretraining import PretrainConfig
from sidestep.pretraining.config import AutoencoderConfig, UNetConfig
from sidestep.prior import LatentPrior, copy_prior
from sidestep.training import TrainConfig, train

pytestmark = pytest.mark.usefixtures("own_process")
CAPTURES = Path(__file__).parent / "data" / "furniture"  # three scenes of 25 frames
FRAMES = 75
SETTINGS = InversionSettings(t_star=600, steps=2)
SIZES = {"scenes_per_shard": 2, "batch_size": 8}


@pytest.fixture(scope="module")
def prior(make_tiny_pipeline: Callable[..., Any]) -> LatentPrior:
    pipeline = make_tiny_pipeline()
    return LatentPrior(pipeline.vae, pipeline.unet, pipeline.scheduler)


@pytest.fixture(scope="module")
def stored(prior: LatentPrior, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """The settings of a run on a store that is there."""
    root = tmp_path_factory.mktemp("plan")
    prior.save_pretrained(root / "prior")
    scenes = read_captures(CAPTURES)
    encode_captures(prior, scenes, root / "latents", SETTINGS, prior_name=str(root / "prior"), **SIZES)
    write_split(root / "split.json", {"train": scenes[:2], "val": scenes[2:], "test": []})
    return TrainConfig(
        latents=root / "latents",
        out=root / "run",
        epochs=2,
        batch_size=4,
        size="small",
        tunet=dict(TINY_TUNET),
        split=str(root / "split.json"),
        precision="fp32",
    )


def below(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def test_what_an_encoding_will_do_and_how_much_of_it_is_done(prior: LatentPrior, tmp_path: Path) -> None:
    scenes, out = read_captures(CAPTURES), tmp_path / "latents"
    plan = plan_encoding(prior, scenes, out, SETTINGS, prior_name="tiny", **SIZES)
    assert not out.exists()
    told = plan.to_dict()
    assert (told["scenes"], told["frames"], told["frames_done"], told["shards"]) == (3, FRAMES, 0, 2)
    assert told["forwards"] == 2 * FRAMES
    assert told["hours"] == pytest.approx(FRAMES / told["frames_a_second"] / 3600)
    assert told["fits"] is True
    assert "forwards: 150" in plan.lines()

    encode_captures(prior, scenes, out, SETTINGS, prior_name="tiny", **SIZES)
    shards = sorted(out.glob("*.safetensors"))
    assert sum(path.stat().st_size for path in shards) == pytest.approx(told["bytes"], rel=0.1)  # names besides
    for lose in (lambda: shards[1].write_bytes(shards[1].read_bytes()[:-9]), shards[1].unlink):
        lose()
        later = plan_encoding(prior, scenes, out, SETTINGS, prior_name="tiny", **SIZES).to_dict()
        assert (later["frames_done"], later["forwards"], later["bytes"]) == (50, 50, told["bytes"] // 3)
    with pytest.raises(SidestepError, match="holds latents of another steps"):
        plan_encoding(prior, scenes, out, replace(SETTINGS, steps=3), prior_name="tiny", **SIZES)


def test_a_part_is_planned_alone_and_one_that_does_not_exist_is_refused(prior: LatentPrior, tmp_path: Path) -> None:
    scenes = read_captures(CAPTURES)

    def plan(*part: int) -> dict[str, Any]:
        sizes = {"scenes_per_shard": 1, "batch_size": 1}
        return plan_encoding(prior, scenes, tmp_path, SETTINGS, prior_name="tiny", part=part, **sizes).to_dict()

    assert [plan(1, 2)["shards"], plan(2, 2)["shards"]] == [2, 1]
    for part in ((0, 3), (4, 3), (1, 0)):
        with pytest.raises(SidestepError, match=f"part {part[0]}/{part[1]}: give parts as"):
            plan(*part)


def test_a_disk_that_is_too_small_is_told(prior: LatentPrior, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_encoding(prior, read_captures(CAPTURES), tmp_path, SETTINGS, prior_name="tiny", **SIZES)
    assert plan.warning is None
    monkeypatch.setattr(sidestep.plan.shutil, "disk_usage", lambda path: SimpleNamespace(free=plan.needed - 1))
    assert plan.warning is not None
    assert "are needed, but its disk has only" in plan.warning
    assert plan.to_dict()["fits"] is False


def test_scenes_that_are_left_out_are_told_with_the_reason(tmp_path: Path) -> None:
    data = tmp_path / "captures"
    shutil.copytree(CAPTURES, data)
    (data / "sofa" / "scopia076" / "sparse" / "0" / "images.txt").write_text("1 2 3\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scenes, left_out = read_noting(data)
    assert [scene.name for scene in scenes] == ["scopia024", "scopia091"]
    assert len(left_out) == 1
    assert "scopia076" in left_out[0]
    assert "images.txt" in left_out[0]


def test_what_a_training_will_do_and_how_much_of_it_is_done(stored: TrainConfig) -> None:
    before = below(stored.out.parent)
    told = plan_training(stored).to_dict()
    assert below(stored.out.parent) == before
    assert (told["scenes_train"], told["scenes_val"], told["pairs_an_epoch"]) == (2, 1, 20)
    assert (told["steps"], told["steps_done"], told["samples"]) == (10, 0, 40)
    assert told["hours"] == pytest.approx(10 / told["steps_a_second"] / 3600)
    train(stored)
    written = sum(path.stat().st_size for path in below(stored.out) if path.is_file())
    assert written <= told["bytes"] <= 2 * written  # a second checkpoint while the first is replaced
    done = plan_training(replace(stored, epochs=4)).to_dict()
    assert (done["steps"], done["steps_done"], done["samples"]) == (20, 10, 40)
    assert plan_training(stored).to_dict()["hours"] == 0
    with pytest.raises(SidestepError, match="damaged, or made for another network"):
        plan_training(replace(stored, tunet={**TINY_TUNET, "block_out_channels": (16, 48)}))


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_a_prior_in_half_precision_is_counted_as_it_is_written_beside_a_model(kind: str, tmp_path: Path) -> None:
    source, out = published.write_folder(tmp_path / "prior", kind, fp16=True), tmp_path / "model"
    for path in source.rglob("*.fp16.safetensors"):
        path.replace(path.with_name(path.name.replace(".fp16", "")))
    copy_prior(source, out)
    written = sum(path.stat().st_size for path in below(out) if path.is_file())
    assert written <= prior_bytes(source) <= written + 2**20


def test_a_prior_of_a_single_file_is_counted_in_float32_without_its_text_encoder(tmp_path: Path) -> None:
    file = tmp_path / "sd15.safetensors"
    save_file({key: weight.half() for key, weight in published.compvis_weights("sd15").items()}, file)
    networks = published.networks("sd15")
    written = 4 * sum(weight.numel() for name in ("unet", "vae") for weight in networks[name].parameters())
    assert written < prior_bytes(file) <= written + 2**20
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(SidestepError, match="fetch it again"):
        prior_bytes(file)


def test_what_a_pretraining_will_do(tmp_path: Path) -> None:
    names = [f"picture{index}" for index in range(40)]
    (tmp_path / "pictures").mkdir()
    for name in names:
        Image.new("RGB", (40, 32), "green").save(tmp_path / "pictures" / f"{name}.png")
    config = PretrainConfig(
        data=tmp_path / "pictures",
        out=tmp_path / "run",
        image_size=32,
        autoencoder=AutoencoderConfig(
            steps=7, batch_size=2, crop=16, channels=(8, 8, 8), encoder_layers=(0, 1, 1), decoder_layers=(0, 1, 1)
        ),
        unet=UNetConfig(steps=9, batch_size=3, channels=(32, 32), attention=(False, False)),
    )
    told = plan_pretraining(config).to_dict()
    assert not config.out.exists()
    assert told["pictures_train"] == sum(model_split(name) == "train" for name in names)
    assert (told["autoencoder_steps"], told["autoencoder_samples"]) == (7, 14)
    assert (told["unet_steps"], told["unet_samples"]) == (9, 27)
    assert told["hours"] == pytest.approx(told["autoencoder_hours"] + told["unet_hours"])


def test_the_command_tells_the_plan_and_makes_nothing(
    stored: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prior, out = stored.latents.parent / "prior", tmp_path / "latents"
    command = ["encode", CAPTURES, "--prior", prior, "--out", out, "--steps", "2", "--device", "cpu", "--dry-run"]
    monkeypatch.setattr(sys, "argv", ["sidestep", *map(str, command), "--json"])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    told = json.loads(capsys.readouterr().out)
    assert (told["frames"], told["t_star"], told["scenes_left_out"]) == (FRAMES, 600, 0)
    assert not out.exists()
