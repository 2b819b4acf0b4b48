"""The training loop on a linear model: exact resume, damaged checkpoints, divergence, averaged weights.

Run as a script, this file trains in the folder given to it, in a process that is killed in a step, and again in one
that is killed while it saves.
"""

import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import sidestep.loop
from sidestep.config import load_config, settings
from sidestep.errors import SidestepError
from sidestep.loop import LoopConfig, fit, one_cycle

STEPS = 23
HALF = 1000  # bytes of a checkpoint


class Stop(Exception):
    pass


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def config(**options) -> LoopConfig:
    return LoopConfig(
        **{"steps": STEPS, "batch_size": 4, "learning_rate": 0.05, "save_every": 5, "sample_every": 10, **options},
        precision="fp32",
    )


class LineTask:
    """Fits a linear model to noisy data, a different batch and different noise at every step."""

    def __init__(self, width: int = 3, before_loss=lambda step: None) -> None:
        torch.manual_seed(1)
        self.model = torch.nn.Sequential(torch.nn.Linear(width, 4), torch.nn.Linear(4, 1))
        self.width = width
        self.before_loss = before_loss
        self.seen: list[list[int]] = []
        self.validated: list[dict[str, torch.Tensor]] = []

    def draw(self, step):
        return np.random.default_rng((7, step)).integers(1000, size=4).tolist()

    def collate(self, samples):
        generator = torch.Generator().manual_seed(sum(samples))
        return {"x": torch.randn(4, self.width, generator=generator), "samples": torch.tensor(samples)}

    def name(self, sample):
        return f"sample {sample}"

    def loss(self, model, batch):
        self.before_loss(len(self.seen))
        self.seen.append(batch["samples"].tolist())
        noise = 0.1 * torch.randn(len(batch["x"]), 1)
        target = batch["x"].sum(1, keepdim=True) + noise
        return torch.nn.functional.mse_loss(model(batch["x"]), target), {"noise": float(noise.mean())}

    def validate(self, model):
        assert not model.training
        self.validated.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        torch.rand(5)  # what validation draws must not move training's noise
        return {"weight": float(model[0].weight.detach().norm())}, None


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "whole"
    task = LineTask()
    fit(task, config(), run)
    return run, task


def assert_same_end(run, uninterrupted) -> None:
    whole, _ = uninterrupted
    # Byte for byte: weights, averaged weights, the optimiser's moments and the step.
    assert (run / "checkpoint.safetensors").read_bytes() == (whole / "checkpoint.safetensors").read_bytes()


def stop_at(step):
    def before_loss(current):
        if current == step:
            raise Stop

    return before_loss


def interrupted(run, step=12) -> LineTask:
    task = LineTask(before_loss=stop_at(step))
    with pytest.raises(Stop):
        fit(task, config(), run)
    return task


def test_a_stopped_run_ends_bitwise_as_one_that_was_not(tmp_path, uninterrupted):
    run = tmp_path / "run"
    first = interrupted(run, step=12)
    second = LineTask()
    model = fit(second, config(), run)
    assert_same_end(run, uninterrupted)
    whole = uninterrupted[1]
    assert first.seen == whole.seen[:12]
    assert second.seen == whole.seen[10:]  # from the last checkpoint on
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)


class ConvolutionTask(LineTask):
    """Weights with channels last, as the autoencoder has them."""

    def __init__(self, before_loss=lambda step: None) -> None:
        super().__init__(before_loss=before_loss)
        torch.manual_seed(1)
        layers = torch.nn.Conv2d(3, 5, 3), torch.nn.ReLU(), torch.nn.Conv2d(5, 2, 3)
        self.model = torch.nn.Sequential(*layers).to(memory_format=torch.channels_last)

    def loss(self, model, batch):
        self.before_loss(len(self.seen))
        self.seen.append(batch["samples"].tolist())
        x = torch.randn(4, 3, 8, 8)
        return (model(x).square() - x.mean()).square().mean(), {}


def test_a_stopped_run_with_channels_last_ends_bitwise_as_one_that_was_not(tmp_path):
    fit(ConvolutionTask(), config(), tmp_path / "whole")
    with pytest.raises(Stop):
        fit(ConvolutionTask(before_loss=stop_at(12)), config(), tmp_path / "run")
    fit(ConvolutionTask(), config(), tmp_path / "run")
    whole, run = (tmp_path / name / "checkpoint.safetensors" for name in ("whole", "run"))
    assert whole.read_bytes() == run.read_bytes()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_run_killed_in_a_step_and_then_while_saving_ends_bitwise_as_one_that_was_not(tmp_path, uninterrupted):
    run = tmp_path / "run"
    script = subprocess.run([sys.executable, __file__, str(run)], capture_output=True, text=True)
    # The signal that ended each process, the step that it left behind, and the number of begun checkpoints.
    assert json.loads(script.stdout) == [[signal.SIGKILL, "5", 0], [signal.SIGXFSZ, "10", 1]], script.stderr
    task = LineTask()
    fit(task, config(), run)
    assert not list(run.glob(".*"))
    assert_same_end(run, uninterrupted)
    assert task.seen == uninterrupted[1].seen[10:]


@torch.no_grad()
def test_training_learns_and_the_batches_differ(uninterrupted):
    run, task = uninterrupted
    assert len(task.seen) == STEPS
    assert len({tuple(batch) for batch in task.seen}) == STEPS
    x = torch.randn(256, 3, generator=torch.Generator().manual_seed(0))
    fresh = LineTask().model
    with safe_open(run / "checkpoint.safetensors", framework="pt") as file:
        trained = {name: file.get_tensor(f"model/{name}") for name, _ in fresh.named_parameters()}
    before = float((fresh(x) - x.sum(1, keepdim=True)).square().mean())
    fresh.load_state_dict(trained)
    assert float((fresh(x) - x.sum(1, keepdim=True)).square().mean()) < before / 4


def test_another_seed_draws_other_noise(tmp_path, uninterrupted):
    fit(LineTask(), config(seed=1), tmp_path / "run")
    other = load_file(tmp_path / "run" / "checkpoint.safetensors")
    whole = load_file(uninterrupted[0] / "checkpoint.safetensors")
    assert not torch.equal(other["model/0.weight"], whole["model/0.weight"])


def test_a_finished_run_is_not_trained_again(tmp_path, uninterrupted):
    run, whole = uninterrupted
    before = (run / "checkpoint.safetensors").read_bytes(), (run / "metrics.jsonl").read_bytes()
    task = LineTask()
    model = fit(task, config(), run)
    assert task.seen == []
    assert ((run / "checkpoint.safetensors").read_bytes(), (run / "metrics.jsonl").read_bytes()) == before
    assert not model.training
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)


def test_a_finished_run_can_be_made_longer(tmp_path):
    fit(LineTask(), config(steps=5), tmp_path / "run")
    task = LineTask()
    fit(task, config(steps=8), tmp_path / "run")
    assert len(task.seen) == 3


def test_validation_and_the_result_have_the_averaged_weights(uninterrupted):
    run, task = uninterrupted
    assert len(task.validated) == 3  # after steps 10, 20 and the last
    saved = load_file(run / "checkpoint.safetensors")
    for name, seen in task.validated[-1].items():
        assert torch.equal(seen, saved[f"ema/{name}"])
        assert torch.equal(seen, task.model.state_dict()[name])
        assert not torch.equal(seen, saved[f"model/{name}"])


def test_the_averaged_weights_are_the_average_of_those_of_each_step(tmp_path):
    weights = []
    task = LineTask()
    task.before_loss = lambda step: weights.append(task.model[0].weight.detach().clone())
    fit(task, config(ema_decay=0.6, steps=6), tmp_path / "run")
    weights.append(load_file(tmp_path / "run" / "checkpoint.safetensors")["model/0.weight"])
    average = weights[0]
    for step, weight in enumerate(weights[1:]):
        decay = min(0.6, (1 + step) / (10 + step)) if step else 0.0
        average = decay * average + (1 - decay) * weight
    torch.testing.assert_close(task.model[0].weight.detach(), average)


@pytest.fixture
def scaled(monkeypatch):
    """fp16's loss scaler on the CPU, where accelerate has none; its scale doubles every third step."""

    class Scaled(sidestep.loop.Accelerator):
        def __init__(self, **options):
            super().__init__(**options)
            self.scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=3)

        @property
        def mixed_precision(self):
            return "fp16"

    monkeypatch.setattr(sidestep.loop, "Accelerator", Scaled)


class Overflowing(LineTask):
    """Its gradient is infinite in some steps, which are skipped."""

    def __init__(self, *steps: int, before_loss=lambda step: None) -> None:
        super().__init__(before_loss=before_loss)
        self.steps = steps

    def loss(self, model, batch):
        step = len(self.seen)
        loss, figures = super().loss(model, batch)
        return (loss + (0 * loss).sqrt() if step in self.steps else loss), figures


def test_the_loss_scale_is_kept_and_skipped_steps_are_not_counted(tmp_path, scaled):
    fit(Overflowing(0, 4, 13), config(), tmp_path / "whole")
    with pytest.raises(Stop):
        fit(Overflowing(0, 4, before_loss=stop_at(12)), config(), tmp_path / "run")
    with safe_open(tmp_path / "run" / "checkpoint.safetensors", framework="pt") as file:
        assert file.metadata()["step"] == "10"
        # 256, halved twice; doubled after steps 3 and 7; two more since; 8 of 10 steps done.
        assert file.get_tensor("scaler").tolist() == [256.0, 2, 8]
    fit(Overflowing(3), config(), tmp_path / "run")  # step 13, counted from 10
    whole, run = (tmp_path / name / "checkpoint.safetensors" for name in ("whole", "run"))
    assert whole.read_bytes() == run.read_bytes()


def test_a_first_step_that_is_skipped_can_be_saved(tmp_path, scaled):
    fit(Overflowing(0), config(steps=1, save_every=1), tmp_path / "run")
    fit(LineTask(), config(steps=3), tmp_path / "run")
    saved = load_file(tmp_path / "run" / "checkpoint.safetensors")
    assert saved["scaler"].tolist()[2] == 2


def test_a_checkpoint_without_a_loss_scale_goes_on_with_one_and_back(tmp_path, uninterrupted, request):
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes((uninterrupted[0] / path.name).read_bytes())
    request.getfixturevalue("scaled")
    fit(LineTask(), config(steps=STEPS + 3), tmp_path)
    assert load_file(path)["scaler"].tolist() == [512.0, 0, STEPS + 3]
    request.getfixturevalue("monkeypatch").undo()
    fit(LineTask(), config(steps=STEPS + 4), tmp_path)
    assert "scaler" not in load_file(path)


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", r"^run: .* gradients over 4 steps, .*; launch with"),
        ("ACCELERATE_USE_DEEPSPEED", "true", r"set to DeepSpeed \(ACCELERATE_USE_DEEPSPEED\), .*; launch with"),
        ("ACCELERATE_USE_FSDP", "True", r"set to FSDP \(ACCELERATE_USE_FSDP\), .*; launch with"),
        ("ACCELERATE_USE_MEGATRON_LM", "true", r"set to Megatron-LM .*; launch with"),
    ],
)
def test_what_accelerate_is_set_to_and_the_loop_does_not_do_is_refused(tmp_path, monkeypatch, variable, value, told):
    monkeypatch.setenv(variable, value)
    with pytest.raises(SidestepError, match=told):
        fit(LineTask(), config(steps=1), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv(variable, "1" if value == "4" else "false")  # as the launcher says no
    fit(LineTask(), config(steps=1), tmp_path / "run")


def test_a_network_that_accelerate_compiles_has_the_checkpoint_of_one_that_is_not(tmp_path, monkeypatch):
    fit(LineTask(), config(steps=2), tmp_path / "plain")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "eager")
    fit(LineTask(), config(steps=1), tmp_path / "compiled")
    fit(LineTask(), config(steps=2), tmp_path / "compiled")
    plain, compiled = (load_file(tmp_path / run / "checkpoint.safetensors") for run in ("plain", "compiled"))
    assert plain.keys() == compiled.keys()


@pytest.mark.parametrize("override", ["steps=-1", "batch_size=0", "save_every=0", "sample_every=0", "learning_rate=-1"])
def test_numbers_that_no_run_can_have_are_refused(tmp_path, override):
    (tmp_path / "loop.yaml").write_text("steps: 3")
    with pytest.raises(SidestepError, match=rf"setting '{override.split('=')[0]}': Input should be greater than"):
        load_config(LoopConfig, tmp_path / "loop.yaml", [override])


def damaged(path, how: str) -> None:
    data = path.read_bytes()
    if how == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "no safetensors":
        path.write_bytes(b"hello" * 100)
    elif how == "a bit":
        path.write_bytes(data[:-200] + bytes([data[-200] ^ 1]) + data[-199:])
    elif how == "a bit of the step":
        path.write_bytes(data.replace(b'"step":"23"', b'"step":"22"'))
        assert path.read_bytes() != data
    else:
        tensors = load_file(path)
        del tensors["sha256"]  # else all of these were found by it
        name = "exp_avg/1.bias"
        if how == "a tensor less":
            del tensors[name]
        elif how == "a tensor more":
            tensors["model/2.weight"] = torch.zeros(2)
        elif how == "another shape":  # one that would broadcast
            tensors["model/0.weight"] = torch.zeros(1)
        save_file(tensors, path, metadata=None if how == "no step" else {"step": "20"})


@pytest.mark.parametrize(
    "how",
    [
        "truncated",
        "empty",
        "no safetensors",
        "a tensor less",
        "a tensor more",
        "another shape",
        "no step",
        "a bit",
        "a bit of the step",
    ],
)
def test_a_damaged_checkpoint_is_refused_by_name_and_kept(tmp_path, uninterrupted, how):
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes((uninterrupted[0] / path.name).read_bytes())
    damaged(path, how)
    before = path.read_bytes()
    task = LineTask()
    with pytest.raises(SidestepError, match=f"{path}: .*delete it") as error:
        fit(task, config(), tmp_path)
    assert "\n" not in str(error.value)
    assert task.seen == []
    assert path.read_bytes() == before


def test_a_checkpoint_of_an_earlier_version_is_taken_up(tmp_path, uninterrupted):
    run = tmp_path / "run"
    interrupted(run)
    path = run / "checkpoint.safetensors"
    tensors = load_file(path)
    del tensors["sha256"]
    save_file(tensors, path, metadata={"step": "10"})
    fit(LineTask(), config(), run)
    assert_same_end(run, uninterrupted)


def test_a_checkpoint_of_another_network_is_refused_by_name(tmp_path, uninterrupted):
    (tmp_path / "checkpoint.safetensors").write_bytes((uninterrupted[0] / "checkpoint.safetensors").read_bytes())
    with pytest.raises(SidestepError, match=r"checkpoint\.safetensors: .*another network"):
        fit(LineTask(width=5), config(), tmp_path)


class Diverging(LineTask):
    """The loss, or its gradient alone, is no number at step 12."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def loss(self, model, batch):
        loss, figures = super().loss(model, batch)
        if len(self.seen) == 13:
            if self.what == "gradient":  # the root's slope at 0 is infinite, and 0 times that is NaN
                return loss + (0 * loss).sqrt(), figures
            return loss * float(self.what), figures
        return loss, figures


@pytest.mark.parametrize("what", ["nan", "inf", "gradient"])
def test_divergence_stops_the_run_with_its_samples_and_keeps_the_good_checkpoint(tmp_path, what):
    task = Diverging(what)
    names = ", ".join(f"sample {sample}" for sample in task.draw(12))
    with pytest.raises(SidestepError, match=rf"^run: .*step 12 \(seed 0\), with {names}: lower learning_rate"):
        fit(task, config(save_every=1), tmp_path / "run")
    with safe_open(tmp_path / "run" / "checkpoint.safetensors", framework="pt") as file:
        assert file.metadata()["step"] == "12"
        assert all(bool(file.get_tensor(name).isfinite().all()) for name in file.keys())  # noqa: SIM118
    assert bool(task.model[0].weight.isfinite().all())


class Faulty(LineTask):
    """One of the samples of step 12 brings a number that is not finite, or has no finite loss."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what
        self.faulty = self.draw(12)[2]

    def collate(self, samples):
        batch = super().collate(samples)
        if self.what == "input":
            batch["x"][batch["samples"] == self.faulty, 1] = float("inf")
        return batch

    def loss(self, model, batch):
        loss, figures = super().loss(model, batch)
        return (float("nan") * loss if self.what == "loss" and self.faulty in batch["samples"] else loss), figures


@pytest.mark.parametrize(
    ("what", "told"), [("input", "with numbers that are not finite in"), ("loss", "with no finite loss of")]
)
def test_the_sample_at_fault_is_named_alone(tmp_path, what, told):
    task = Faulty(what)
    with pytest.raises(SidestepError, match=rf"step 12 .*, {told} sample {task.faulty}: look at what .*made of"):
        fit(task, config(), tmp_path / "run")


def test_fp16_that_overflows_at_every_scale_stops_the_run(tmp_path, scaled):
    task = Overflowing(*range(STEPS))
    with pytest.raises(SidestepError, match=r"^run: .*gradient's norm nan at step 9 .*precision=fp32"):
        fit(task, config(), tmp_path / "run")  # 256 halved nine times is below 1


def test_deterministic_algorithms_are_taken_where_that_is_asked_for_and_give_the_same_bits(tmp_path):
    asked = []

    def train(run, **options):
        task = LineTask(before_loss=lambda step: asked.append(torch.are_deterministic_algorithms_enabled()))
        fit(task, config(**options), tmp_path / run)
        return (tmp_path / run / "checkpoint.safetensors").read_bytes()

    assert train("first", deterministic=True) == train("second", deterministic=True)
    assert set(asked) == {True}
    assert not torch.are_deterministic_algorithms_enabled()
    train("third")
    assert asked[-1] is False


def test_an_operation_without_a_deterministic_algorithm_is_told_in_one_line(tmp_path):
    def put(step):
        torch.zeros(3).put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))

    fit(LineTask(before_loss=put), config(steps=1), tmp_path / "run")
    with pytest.raises(SidestepError, match=r"^deterministic=true: put_.*; leave it off"):
        fit(LineTask(before_loss=put), config(steps=1, deterministic=True), tmp_path / "other")


def test_long_gradients_are_clipped(tmp_path):
    class Steep(LineTask):
        def loss(self, model, batch):
            loss, figures = super().loss(model, batch)
            return 1e6 * loss, figures

    lengths = []
    task = Steep()
    step = torch.optim.AdamW.step

    def record(self, *args, **kwargs):
        gradients = [parameter.grad for group in self.param_groups for parameter in group["params"]]
        lengths.append(float(torch.cat([gradient.flatten() for gradient in gradients]).norm()))
        return step(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", record)
        fit(task, config(steps=3, clip_norm=0.5), tmp_path / "run")
    assert lengths == pytest.approx([0.5] * 3, rel=1e-3)


def lines(run):
    """Those of metrics.jsonl, without the time that they took."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in found]


def test_what_a_killed_run_logged_and_lost_stands_once_in_the_end(tmp_path, uninterrupted):
    run = tmp_path / "run"
    with pytest.raises(Stop):
        fit(LineTask(before_loss=stop_at(22)), config(save_every=15), run)
    assert [line["step"] for line in lines(run)] == [10, 20, 20]
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 21, "lo')  # where it was killed
    fit(LineTask(), config(save_every=15), run)
    assert lines(run) == lines(uninterrupted[0])


@pytest.mark.parametrize("step", [10, STEPS])
def test_a_validation_that_a_killed_run_did_not_come_to_is_made_up_for(tmp_path, uninterrupted, step):
    run = tmp_path / "run"
    task = LineTask()
    validate, task.validate = task.validate, lambda model: None if len(task.seen) == step else validate(model)
    with pytest.raises(TypeError):
        fit(task, config(), run)
    task = LineTask()
    fit(task, config(), run)
    assert lines(run) == lines(uninterrupted[0])
    assert len(task.validated) == (3 if step == 10 else 1)
    assert_same_end(run, uninterrupted)


def test_two_runs_in_one_folder_do_not_meet(tmp_path, uninterrupted):
    run = tmp_path / "run"

    class BeginsAnother(LineTask):
        def validate(self, model):
            with pytest.raises(SidestepError, match=f"^{run}: another process trains in it; wait"):
                fit(LineTask(), config(), run)
            return super().validate(model)

    fit(BeginsAnother(), config(), run)
    assert_same_end(run, uninterrupted)
    assert not list(run.glob(".*"))


@settings
class Experiment:
    name: str
    loop: LoopConfig


def test_the_run_folder_tells_what_was_done(tmp_path):
    run = tmp_path / "run"
    fit(LineTask(), config(), run, Experiment("line", config()))
    assert "name: line" in (run / "config.yaml").read_text()
    assert (run / "git-revision.txt").read_text().strip()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line for line in lines if "loss" in line]
    assert [line["step"] for line in losses] == [20, STEPS]
    assert all({"gradient_norm", "noise", "seconds"} <= set(line) for line in losses)
    assert [line["step"] for line in lines if "validation/weight" in line] == [10, 20, STEPS]


@pytest.mark.parametrize("warmup", [0.0, 0.0004, 0.05, 0.3])
def test_one_cycle_climbs_to_its_peak_and_falls_to_almost_nothing(warmup):
    progress = np.linspace(0, 1, 10001)
    rates = np.array([one_cycle(float(p), warmup) for p in progress])
    assert rates.max() == pytest.approx(1, abs=1e-6)
    assert rates.min() > 0
    assert progress[rates.argmax()] == pytest.approx(warmup, abs=2e-4)
    assert rates[-1] == pytest.approx(0.001)
    peak = int(rates.argmax())
    assert (np.diff(rates[: peak + 1]) >= 0).all()
    assert (np.diff(rates[peak:]) <= 0).all()
    middle = (warmup + 1) / 2
    assert one_cycle(middle, warmup) == pytest.approx(0.5, abs=1e-3)
    if warmup:
        assert one_cycle(warmup / 2, warmup) == pytest.approx(0.5)


def test_the_optimiser_follows_the_cycle_over_the_whole_run(tmp_path):
    rates = []
    step = torch.optim.AdamW.step

    def record(self, *args, **kwargs):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", record)
        task = LineTask(before_loss=stop_at(7))
        with pytest.raises(Stop):
            fit(task, config(warmup=0.2), tmp_path / "run")
        fit(LineTask(), config(warmup=0.2), tmp_path / "run")
    expected = [0.05 * one_cycle(step / STEPS, 0.2) for step in itertools.chain(range(7), range(5, STEPS))]
    assert rates == pytest.approx(expected)


def _kill_in_a_step() -> LineTask:
    return LineTask(before_loss=lambda step: kill() if step == 8 else None)


def _kill_in_a_save() -> LineTask:
    import resource

    save = sidestep.loop.save_tensors

    def half(path, tensors, metadata):
        if metadata["step"] == "15":
            # The kernel kills the process where it writes past the limit.
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (HALF, HALF))
        save(path, tensors, metadata)

    sidestep.loop.save_tensors = half
    return LineTask()


def _train_and_be_killed(run: Path) -> None:
    ends = []
    for prepare in (_kill_in_a_step, _kill_in_a_save):
        child = os.fork()
        if child == 0:
            fit(prepare(), config(), run)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        left = len(list(run.glob(".checkpoint*/*")))
        with safe_open(run / "checkpoint.safetensors", framework="pt") as file:
            ends.append([os.WTERMSIG(status), file.metadata()["step"], left])
    print(json.dumps(ends))


if __name__ == "__main__":
    _train_and_be_killed(Path(sys.argv[1]))
