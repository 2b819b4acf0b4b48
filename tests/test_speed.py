"""The benchmarks of speed, memory and growth: what they compare, count and fit; and what they rest on."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sidestep import Camera, NovelViewPipeline, step_aside, training
from sidestep.loop import Training

ROOT = Path(__file__).parents[1]
SIZE = 16


@pytest.fixture
def script(monkeypatch):
    """Imports one of the benchmarks."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    yield importlib.import_module
    for name in {"speed", "rivals", "measuring", "growth", "memory", "large", "view", "table", "loader"} - before:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def pipe(make_tiny_pipeline):
    pipe = make_tiny_pipeline(t_star=400)  # 4 steps of 100: diffusers' grid is Sidestep's
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make_photo():
    return Image.effect_noise((SIZE, SIZE), 80).convert("RGB")


def test_the_rivals_make_the_views_that_they_are_timed_at(script, pipe):
    rivals = script("rivals")
    photo, source = make_photo(), Camera.from_fov(45, SIZE, SIZE)
    targets = [step_aside(source, yaw) for yaw in (-10.0, 20.0)]
    ours = pipe(photo, targets, source, scale=1.0, steps=4).images
    assert np.abs(np.asarray(ours[0], float) - np.asarray(ours[1], float)).mean() > 1
    for rival in (rivals.published, rivals.plain_loop):
        views = rival(pipe, photo, source, targets, 4)
        for view, own in zip(views, ours, strict=True):
            assert np.abs(np.asarray(view, float) - np.asarray(own, float)).mean() < 0.5


def test_the_rivals_passes_are_counted_as_they_do_them(script, pipe, monkeypatch):
    rivals = script("rivals")
    seen = []
    hook = pipe.unet.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    source = Camera.from_fov(45, SIZE, SIZE)
    for rival, guided in ((rivals.published, True), (rivals.plain_loop, False)):
        for count in (1, 2):
            seen.clear()
            rival(pipe, make_photo(), source, [step_aside(source, 5.0)] * count, 4)
            assert sum(seen) / count == rivals.passes(pipe, 4, count, guided)
    seen.clear()
    pipe(make_photo(), [step_aside(source, 5.0)] * 2, source, scale=1.0, steps=4)
    assert sum(seen) / 2 == rivals.passes(pipe, 4, 2, guided=False)
    hook.remove()


def test_operations_are_those_of_the_products(script):
    flops = script("measuring").flops
    a, b = torch.randn(3, 5), torch.randn(5, 7)
    assert flops(lambda: a @ b) == 2 * 3 * 5 * 7
    convolution = torch.nn.Conv2d(2, 4, 3, padding=1)
    assert flops(lambda: convolution(torch.randn(1, 2, 8, 8))) == 2 * 64 * 4 * 2 * 9
    q = torch.randn(1, 2, 6, 4)
    assert flops(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q)) == 2 * (2 * 2 * 6 * 6 * 4)


def test_the_tables_of_speed_have_a_row_for_each_way(script, make_tiny_pipeline, monkeypatch, capsys, tmp_path):
    speed = script("speed")
    monkeypatch.setattr(NovelViewPipeline, "from_pretrained", lambda *_, **__: make_tiny_pipeline(t_star=400))

    def process(arguments, environment):
        speed.main(arguments[1:])
        return capsys.readouterr().out, 0.0, 0.0

    monkeypatch.setattr(speed, "process", process)
    monkeypatch.setattr(script("measuring"), "product_rate", lambda device, dtype: 1e12)
    sizes = ["--targets", "1", "2", "--batches", "1", "--steps", "2", "--repeats", "1"]
    out = tmp_path / "speed.md"
    speed.main([*sizes, "--device", "cpu", "--compile", "no", "--out", str(out)])
    assert capsys.readouterr().out == out.read_text(encoding="utf-8")
    rows = [line.split("|")[1:-1] for line in out.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    named = [(row[0].strip(), row[1].strip()) for row in rows if row[0].strip() not in ("way", "---")]
    assert named == [
        ("as published, eager", "1"),
        ("plain loop, eager", "2"),
        ("Sidestep, eager", "1"),
        ("Sidestep, eager", "2"),
        ("encoding, eager", "1"),
    ]
    passes = [row[5].strip() for row in rows if row[0].startswith((" as", " plain", " Sidestep"))]
    assert passes == ["13.0", "5.0", "7.0", "5.0"]


def test_the_training_that_is_timed_is_trains_own(script, make_tiny_pipeline, monkeypatch, capsys):
    speed = script("speed")
    monkeypatch.setattr(NovelViewPipeline, "from_pretrained", lambda *_, **__: make_tiny_pipeline())
    monkeypatch.setattr(script("measuring"), "product_rate", lambda device, dtype: 1e12)
    monkeypatch.setattr(speed, "TRAINING_BATCH", 2)
    tiny = {"block_out_channels": (8, 8, 8, 8), "head_dim": 8, "cross_attention_dim": 8, "norm_groups": 4}
    monkeypatch.setitem(training.SIZES, "paper", tiny)
    steps = []
    once = Training.step
    monkeypatch.setattr(
        Training, "step", lambda *arguments: (steps.append(len(arguments[2]["mean"])), once(*arguments))
    )
    speed.main(["--device", "cpu", "--parts", "training", "--repeats", "2", "--measure", "no"])
    told = json.loads(capsys.readouterr().out)
    assert told["failed"] == {}
    assert told["rows"]["training"][0][:2] == ["training", "2"]
    assert steps == [2] * 4  # counted, warmed up, and timed twice


def test_a_law_is_found_again_with_its_interval(script):
    growth = script("growth")
    assert growth.law("views", (1, 2, 4, 8), [3 + 2 * n for n in (1, 2, 4, 8)]) == "3.00 + 2.000 (± 0.000) n"
    assert growth.law("size", (64, 128, 256), [1e-4 * n**2 for n in (64, 128, 256)]) == "size ^ 2.00 (± 0.00)"
    assert "± 0.00" not in growth.law("size", (64, 128, 256), [1.0, 4.0, 15.0])
    assert growth.law("processes", (1, 2), [10.0, 8.0]) == "100% of 1 times as fast; 62% of 2 times as fast"


@pytest.mark.slow
def test_a_compiled_unet_makes_the_same_views(make_tiny_pipeline):
    photo, targets = make_photo(), [step_aside(Camera.from_fov(45, SIZE, SIZE), 10.0)] * 2
    views = []
    for compiled in (False, True):
        pipe = make_tiny_pipeline()
        pipe.set_progress_bar_config(disable=True)
        if compiled:
            pipe.unet.compile()
        views.append(np.asarray(pipe(photo, targets, steps=3).images[1], float))
    assert np.abs(views[0] - views[1]).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("axis", ["views", "size", "frames"])
def test_growth_measures_a_point(script, capsys, axis):
    growth = script("growth")
    data = ROOT / "tests" / "data" / "furniture"
    arguments = ["--data", str(data), "--device", "cpu", "--steps", "1", "--repeats", "1"]
    growth.main([*arguments, "--measure", axis, "64" if axis == "size" else "4"])
    point = json.loads(capsys.readouterr().out)
    assert point["seconds"] > 0
    assert point["memory"] > 0.1


@pytest.mark.gpu
def test_a_view_by_a_prior_of_stable_diffusions_size_fits_into_six_gigabytes(script):
    device = torch.device("cuda")
    torch.cuda.empty_cache()
    pipe = script("large").stable_diffusion_sized(device, torch.bfloat16)
    pipe.set_progress_bar_config(disable=True)
    pipe.tunet.register_to_config(inversion_steps=1)
    torch.cuda.empty_cache()  # the weights were made in float32
    torch.cuda.reset_peak_memory_stats()
    source = Camera.from_fov(45, 512, 512)
    views = pipe(make_photo().resize((512, 512)), [step_aside(source, 20.0)], source, scale=1.0, steps=1)
    assert views.images[0].size == (512, 512)
    assert torch.cuda.max_memory_reserved() < 6e9
