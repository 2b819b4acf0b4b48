"""The benchmarks' tables, on a miniature prior and the committed captures."""

import importlib
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny, DDPMScheduler, UNet2DModel

from sidestep.captures import read_captures
from sidestep.captures.splits import write_split
from sidestep.encoding import encode_captures
from sidestep.errors import SidestepError
from sidestep.inversion import InversionSettings
from sidestep.models import model_folder
from sidestep.prior import LatentPrior

ROOT = Path(__file__).parents[1]
DATA = ROOT / "tests" / "data" / "furniture"


@pytest.fixture(scope="module")
def prior(tmp_path_factory):
    torch.manual_seed(0)
    stages = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    # An untrained autoencoder's latents are small; scaled up, a blur of them is more than the inversion's own error.
    blocks = {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1), "scaling_factor": 20.0}
    sizes = {"sample_size": 8, "in_channels": 4, "out_channels": 4, "layers_per_block": 1, "norm_num_groups": 8}
    unet = UNet2DModel(
        **sizes, block_out_channels=(32,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",)
    )
    schedule = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    path = tmp_path_factory.mktemp("prior")
    LatentPrior(AutoencoderTiny(**stages, **blocks, latent_channels=4), unet, schedule).save_pretrained(path)
    return path


@pytest.fixture
def table(prior, monkeypatch, capsys, tmp_path):
    """Runs a script with the prior and the data; its table's cells, without the header's two lines."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(ROOT / "benchmarks")

    def run(name, *arguments):
        out = tmp_path / "table.md"
        common = ["--prior", str(prior), "--data", str(DATA), "--device", "cpu", "--out", str(out)]
        importlib.import_module(name).main([*common, *arguments])
        printed = capsys.readouterr().out
        assert out.read_text(encoding="utf-8") == printed
        lines = [line for line in printed.splitlines() if line.startswith("|")]
        return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]

    yield run
    for name in {"round_trip", "fusion", "choice", "consistency", "solvers", "held_out", "table"} - before:
        sys.modules.pop(name, None)


def test_the_round_trip_gets_better_with_more_steps(table):
    alone, *rows = table("round_trip", "--t-star", "600", "--steps", "2", "20", "--scenes", "1")
    assert alone[0] == "autoencoder alone"
    assert [row[1:3] for row in rows] == [["2", "next"], ["2", "current"], ["20", "next"], ["20", "current"]]
    for few, many in zip(rows[:2], rows[2:], strict=True):
        assert float(many[3]) > float(few[3])
        assert float(many[5]) < float(few[5])


def test_fusion_has_a_row_for_each_mean_and_a_result_for_each_reading(table):
    true, blurred, copied, own = table("fusion", "--t-star", "100", "--steps", "4")
    assert [true[0], blurred[0]] == ["100 (0.89), true mean", "100 (0.89), blurred mean"]
    decibels = [[float(cell.split(",")[0]) for cell in row[1:]] for row in (true, blurred)]
    assert decibels[0][0] > decibels[1][0]
    assert all(len(set(row)) == 5 for row in decibels)
    assert float(copied[1].split(",")[0]) < decibels[0][0]
    assert "," not in own[1]


def test_a_split_without_scenes_is_refused_by_name(table):
    with pytest.raises(SidestepError, match="no scene of its is in split train"):
        table("fusion", "--split", "train")


def test_no_choice_beats_the_one_that_sees_the_target(table):
    rows = table("choice", "--prior", "bundled", "--split", "test", "--scenes", "1", "--steps", "2")
    distances = {row[0]: float(row[2]) for row in rows}
    shares = {row[0]: float(row[1]) for row in rows}
    assert (shares["always A"], shares["always B"]) == (1.0, 0.0)
    assert min(distances, key=lambda name: (distances[name], name[0] != "t")).startswith("the nearer")


def test_the_agreement_of_views_is_beside_that_of_the_true_photos(table, make_tiny_pipeline, tmp_path):
    model = tmp_path / "model"
    make_tiny_pipeline().save_pretrained(model)
    options = ["--prior", str(model), "--split", "test", "--scenes", "2", "--steps", "1", "--frames", "3"]
    rows = {row[0]: row[1:] for row in table("consistency", *options)}
    strengths = ("0", "0.25", "0.5", "0.75", "1")
    assert {f"{name}, {s}" for name in ("A", "B", "coarse views") for s in strengths} < set(rows)
    assert float(rows["the true photos"][2]) > 0  # the camera's own motion
    assert [float(cell) for cell in (rows["the true photos"][i] for i in (3, 5, 6))] == [0, 1, 1]
    assert rows["A, 0"][1] == ""
    change = float(rows["A, 0.5"][1].split()[0])
    assert change == pytest.approx(float(rows["A, 0.5"][0].split()[0]) - float(rows["A, 0"][0].split()[0]), abs=0.011)
    with pytest.raises(SidestepError, match="3 or more"):
        table("consistency", *options[:-1], "2")


@pytest.mark.slow
def test_variants_train_alike_and_are_compared_with_the_full_one(monkeypatch, capsys, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    scenes = [replace(scene, frames=scene.frames[:6]) for scene in read_captures(DATA)]
    write_split(tmp_path / "split.json", {"train": scenes[:2], "val": scenes[2:], "test": []})
    prior = LatentPrior.from_pretrained(model_folder("bundled"), "cpu")
    encode_captures(prior, scenes, tmp_path / "latents", InversionSettings(400, 2), prior_name="bundled")
    tiny = "{block_out_channels: [32, 64], attention_levels: 1, head_dim: 32, time_embed_dim: 32, down_layers: 1, "
    tiny += "up_layers: 2, finest_attention: false}"
    overrides = [
        f"tunet={tiny}",
        f"split={tmp_path / 'split.json'}",
        "batch_size=2",
        "learning_rate=0.01",
        "ema_decay=0",
        "warmup=0",
    ]
    options = ["--latents", tmp_path / "latents", "--data", DATA, "--runs", tmp_path / "runs", "--device", "cpu"]
    options += ["--steps", 2, "--sampling-steps", 1, "--pairs", 2, "--variants", "no-cross-attention", "unmirrored"]
    arguments = [*map(str, options), "--set", *overrides]

    def rows():
        importlib.import_module("ablations").main(arguments)
        return [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()[4:]]

    full, without, unmirrored = rows()
    assert float(full[1][:-1]) > float(without[1][:-1])
    assert full[1] == unmirrored[1]
    assert float(full[2].split()[0]) > 5
    for row in (without, unmirrored):
        assert [cell[0] in "+-" for cell in row[2:]] == [True] * 3
        assert row[2] != "+0.00 [+0.00, +0.00]"
    assert rows() == [full, without, unmirrored]  # from finished runs
    sys.modules.pop("ablations")


def test_only_a_reversible_solver_comes_back_exactly_and_forwards_are_counted(table):
    rows = {
        row[0]: row[1:] for row in table("solvers", "round-trip", "--t-star", "600", "--steps", "4", "--scenes", "1")
    }
    decibels = {name: float(cells[0].split()[0]) for name, cells in rows.items()}
    assert max(decibels, key=decibels.__getitem__) == "600, BDIA, both latents"
    assert decibels["600, refined twice, anderson"] > decibels["600, DDIM, equal steps"]
    forwards = {name: cells[0].split()[-1] for name, cells in rows.items()}
    assert forwards["600, DDIM, equal steps"] == forwards["600, DPM-Solver++(2M), sigma grid"] == "(8)"
    assert (forwards["600, refined once"], forwards["600, BDIA, both latents"]) == ("(12)", "(7)")
    assert rows["600, DDIM, equal steps"][1].endswith("(60)")


@pytest.mark.slow
def test_views_are_compared_with_the_default_and_with_the_trained_inversion(table, make_tiny_pipeline, tmp_path):
    small = make_tiny_pipeline()
    for network in (small.unet, small.tunet):  # for pictures of 32 px: smaller ones have no figures
        network.register_to_config(sample_size=16)
    small.save_pretrained(tmp_path / "model")
    options = ["--prior", str(tmp_path / "model"), "--split", "test", "--scenes", "2", "--steps", "2"]
    rows = {row[0]: row[1:] for row in table("solvers", "views", *options)}
    assert rows["A, DDIM, equal steps, 30"][5:] == ["", ""]
    assert [rows[f"{fusion}, DDIM, equal steps, 2"][0] for fusion in "AB"] == ["7", "8"]
    for name, cells in rows.items():
        if "inverted by" in name:
            expected = float(cells[1]) - float(rows[f"{name[0]}, DDIM, equal steps, 2"][1])
            assert float(cells[5].split()[0]) == pytest.approx(expected, abs=0.011)


@pytest.mark.slow
def test_packs_are_read_from_a_folder_and_a_server(monkeypatch, capsys):
    monkeypatch.setattr("os.environ", os.environ.copy())
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    importlib.import_module("packing").main(["--data", str(DATA), "--repeats", "1", "--remote-frames", "3"])
    caption, *lines = capsys.readouterr().out.splitlines()
    assert "75 frames" in caption
    assert len(lines[3:]) == 9
    assert all(float(cell.split()[0]) > 0 for line in lines[3:] for cell in line.strip("|").split("|")[1:])


@pytest.mark.slow
def test_a_store_is_opened_and_read_by_one_thread_and_by_several(monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    importlib.import_module("loader").main(["--scenes", "20", "--open-scenes", "9", "--batches", "2"])
    rows = [line.strip("|").split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [cell.strip() for cell in rows[2][:3]] == ["9", "225", "2"]
    assert [cell.strip() for cell in rows[3][:3]] == ["20", "500", "3"]
    assert all(float(cell.replace(",", "")) > 0 for row in rows[6:] for cell in row[1:3])
    assert len(rows[6:]) == 6
