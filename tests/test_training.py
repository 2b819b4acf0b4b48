"""TUNet's training on a store of synthetic scenes, inverted by a random miniature prior."""

import itertools
import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

import sidestep.devices
import sidestep.training
from miniatures import SD, TINY_TUNET, kl, unet
from sidestep.cameras import Camera
from sidestep.captures import Frame, Scene
from sidestep.captures.splits import write_split
from sidestep.encoding import encode_captures
from sidestep.errors import SidestepError
from sidestep.inversion import InversionSettings
from sidestep.latents import LatentStore
from sidestep.pipeline import NovelViewPipeline
from sidestep.prior import LatentPrior
from sidestep.training import TrainConfig, build_tunet, train
from sidestep.trajectories import orbit, step_aside
from sidestep.tunet import TUNet

SETTINGS = InversionSettings(t_star=600, steps=2)
# name: (category, frames). The last two are held out; no scene that trains is a lamp.
SCENES = {"a": ("chair", 26), "b": ("table", 25), "c": (None, 12), "d": ("chair", 26), "e": ("lamp", 26)}
CAMERA = Camera.from_fov(50, 16, 16)
SPLIT = {"train": "abc", "val": "de", "test": ""}
PAIRS = 10 + 10 + 1  # of a, b and c in one epoch, as the paper pairs frames


@pytest.fixture(autouse=True)
def _single_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sidestep.devices, "network_dtype", lambda device: torch.float32)


def make_prior() -> LatentPrior:
    torch.manual_seed(0)
    return LatentPrior(kl(scaling_factor=0.7), unet(), SD)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with prior/, latents/ and split.json."""
    root = tmp_path_factory.mktemp("training")
    prior = make_prior()
    prior.save_pretrained(root / "prior")
    scenes = []
    for number, (name, (category, count)) in enumerate(SCENES.items()):
        rng = np.random.default_rng(number)
        cameras = orbit(step_aside(CAMERA, 10.0 * number), count, yaw=(-40, 25), elevation=15)
        frames = []
        for index, camera in enumerate(cameras):
            path = root / f"{name}-{index:02d}.png"
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
            frames.append(Frame(path.name, path, camera.scaled(2.0)))
        scenes.append(Scene(name, category, tuple(frames)))
    encode_captures(prior, scenes, root / "latents", SETTINGS, prior_name=str(root / "prior"))
    by_name = {scene.name: scene for scene in scenes}
    write_split(root / "split.json", {split: [by_name[name] for name in names] for split, names in SPLIT.items()})
    return root


@pytest.fixture
def config(root: Path, tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        latents=root / "latents",
        out=tmp_path / "run",
        steps=5,
        batch_size=4,
        learning_rate=1e-3,
        size="small",
        tunet=dict(TINY_TUNET),
        split=str(root / "split.json"),
        precision="fp32",
        save_every=2,
    )


def task_of(config: TrainConfig) -> Any:
    return sidestep.training._TUNetTask(LatentStore(config.latents), config)


def drawn(task: Any) -> Iterator[Any]:
    """All samples in the order of the steps: (scene, reference, target, mirrored, hidden)."""
    return itertools.chain.from_iterable(task.draw(step) for step in itertools.count())


def test_an_epoch_has_each_scenes_pairs_once(config: TrainConfig) -> None:
    task = task_of(config)
    epochs = [[sample[:3] for sample in itertools.islice(samples, PAIRS)] for samples in [drawn(task)] for _ in "12"]
    for triples in epochs:
        for scene, stored in enumerate(task.scenes):
            pairs = [(reference, target) for i, reference, target in triples if i == scene]
            if stored.id == "c":
                assert pairs == [(0, 11)]
                continue
            assert sorted(reference for reference, _ in pairs) == list(range(10))
            targets = [target for _, target in pairs]
            assert len(set(targets)) == 10
            assert set(targets) <= set(range(14, 25))
    assert {scene.id for scene in task.scenes} == {"chair/a", "table/b", "c"}
    assert epochs[0] != epochs[1]
    assert epochs[0] != sorted(epochs[0])


def test_a_steps_samples_depend_on_the_seed_and_the_step_alone(config: TrainConfig) -> None:
    config.mirror = True
    in_order, anywhere = task_of(config), task_of(config)
    expected = [in_order.draw(step) for step in range(30)]
    for step in (29, 3, 17, 0):
        assert anywhere.draw(step) == expected[step]
    assert task_of(replace(config, seed=1)).draw(0) != expected[0]


def test_a_sample_is_named_by_its_scene_and_frames(config: TrainConfig) -> None:
    assert task_of(config).name((1, 3, 11, False, True)) == "table/b (b-03.png to b-11.png)"


def test_a_network_that_half_precision_cannot_hold_is_not_written(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def grow(task: Any, *_: Any) -> None:
        next(task.model.parameters()).data.fill_(1e5)

    monkeypatch.setattr(sidestep.training, "fit", grow)
    with pytest.raises(SidestepError, match=f"^{config.out}: the weight .* is not finite in half precision"):
        train(config)
    assert not (config.out / "model").exists()


def test_any_two_frames_may_be_a_pair(config: TrainConfig) -> None:
    config.pairs = "any"
    task = task_of(config)
    samples = [sample[:3] for sample in itertools.islice(drawn(task), 30 * 40)]
    assert {scene for scene, *_ in samples[:30]} == {0, 1, 2}
    turns = {target - reference for _, reference, target in samples}
    assert {-1, 1, -20, 20} <= turns
    assert 0 not in turns


def test_the_earlier_frame_may_always_be_the_reference(config: TrainConfig) -> None:
    config.pairs, config.max_gap = "forward", 4
    turns = {target - reference for _, reference, target, *_ in itertools.islice(drawn(task_of(config)), 300)}
    assert turns == {1, 2, 3, 4}


@pytest.mark.parametrize("scene", [0, 2])
def test_a_sample_is_the_stored_means_with_their_cameras(config: TrainConfig, scene: int) -> None:
    task = task_of(config)
    stored = task.scenes[scene]
    batch = task.collate([(scene, 3, 11, False, False)])
    assert torch.equal(batch["mean"][0], task.store.mean(stored, 3))
    assert torch.equal(batch["target"][0], task.store.mean(stored, 11))
    reference, target = task._cameras(batch)
    torch.testing.assert_close(reference.world_to_camera[0], torch.eye(4), rtol=0, atol=1e-6)
    # The subject of every scene stands where its orbit's axes meet, which is 1 ahead of the reference.
    subject = torch.tensor([[0.0, 0.0, 1.0]])
    pixel, depth = target[0].project(subject)
    torch.testing.assert_close(depth, torch.ones(1), rtol=0, atol=1e-3)
    torch.testing.assert_close(pixel, torch.full((1, 2), 8.0), rtol=0, atol=1e-2)
    turned = 65 / (len(stored.frames) - 1) * 8  # degrees of yaw between frames 3 and 11
    distance = 2 * np.sin(np.radians(turned) / 2) * np.cos(np.radians(15))
    assert float(target.centre[0].norm()) == pytest.approx(distance, abs=1e-3)
    assert float(target.centre[0, 0]) > 0  # the orbit turns to the right


def test_a_mirrored_sample_is_flipped_with_its_cameras(config: TrainConfig) -> None:
    task = task_of(config)
    plain = task.collate([(0, 3, 20, False, False)])
    flipped = task.collate([(0, 3, 20, True, False)])
    assert torch.equal(flipped["mean"], plain["mean"].flip(-1))
    assert torch.equal(flipped["target"], plain["target"].flip(-1))
    points = torch.tensor([[0.3, -0.2, 1.1], [-0.1, 0.25, 0.8], [0.0, 0.1, 1.0]])
    for camera, mirrored in zip(task._cameras(plain), task._cameras(flipped), strict=True):
        pixels, depths = camera[0].project(points)
        mirrored_pixels, mirrored_depths = mirrored[0].project(points * torch.tensor([-1.0, 1.0, 1.0]))
        torch.testing.assert_close(mirrored_depths, depths)
        torch.testing.assert_close(mirrored_pixels[:, 0], 16 - pixels[:, 0])
        torch.testing.assert_close(mirrored_pixels[:, 1], pixels[:, 1])


@pytest.mark.parametrize(("mirror", "share"), [(False, 0.0), (True, 0.5)])
def test_half_of_the_samples_are_mirrored_if_wanted(config: TrainConfig, mirror: bool, share: float) -> None:
    config.mirror = mirror
    samples = list(itertools.islice(drawn(task_of(config)), 2000))
    assert np.mean([sample[3] for sample in samples]) == pytest.approx(share, abs=0.05 if mirror else 0)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_categories_are_hidden_as_often_as_told(config: TrainConfig, share: float) -> None:
    config.category_dropout = share
    task = task_of(config)
    assert list(task.model.config.categories) == ["chair", "table"]
    samples = list(itertools.islice(drawn(task), 2000))
    assert np.mean([sample[4] for sample in samples]) == pytest.approx(share, abs=0.04 if 0 < share < 1 else 0)
    rows = [(scene, 0, 11, False, hidden) for scene in (0, 1, 2) for hidden in (False, True)]
    assert task.collate(rows)["category"].tolist() == [0, -1, 1, -1, -1, -1]


def test_a_category_that_tunet_does_not_know_is_hidden(config: TrainConfig) -> None:
    task = task_of(config)
    lamp = next(scene for scene in task.held_out if scene.category == "lamp")
    assert task._batch([(lamp, 0, 20, False, False)])["category"].tolist() == [-1]


@pytest.mark.parametrize(
    "options",
    [{}, {"conditioning": "concat"}, {"cross_attention": False}, {"finest_attention": True}, {"attention_levels": 0}],
)
def test_every_weight_takes_part_in_a_step(config: TrainConfig, options: dict[str, Any]) -> None:
    """Or several processes would wait for the gradients of those that do not."""
    task = task_of(replace(config, tunet={**TINY_TUNET, **options}, category_dropout=1.0))
    task.loss(task.model, task.collate(task.draw(0)))[0].backward()
    assert [name for name, weight in task.model.named_parameters() if weight.grad is None] == []


def test_the_seed_decides_the_first_weights(config: TrainConfig) -> None:
    first, again, other = (
        sidestep.training.prepare(replace(config, seed=seed))[0].model.conv_in.weight for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(("steps", "epochs"), [(0, 0), (5, 5)])
def test_a_run_has_one_length(config: TrainConfig, steps: int, epochs: int) -> None:
    with pytest.raises(SidestepError, match="either steps=N or epochs=N"):
        train(replace(config, steps=steps, epochs=epochs))


@pytest.mark.parametrize("empty", ["train", "val"])
def test_a_split_without_scenes_is_refused(config: TrainConfig, root: Path, tmp_path: Path, empty: str) -> None:
    split = json.loads((root / "split.json").read_text())
    split[empty] = []
    (tmp_path / "lacking.json").write_text(json.dumps(split))
    with pytest.raises(SidestepError, match=rf"latents: no scene of split .*lacking\.json' is in {empty}"):
        train(replace(config, split=str(tmp_path / "lacking.json")))
    assert not config.out.exists()


def test_scenes_too_short_for_a_pair_are_named(
    config: TrainConfig, root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prior = make_prior()
    rng = np.random.default_rng(0)
    path = tmp_path / "short.png"
    Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    scenes = [
        Scene(name, None, tuple(Frame(f"{i}", path, camera) for i, camera in enumerate(orbit(CAMERA, count))))
        for name, count in [("long", 12), ("held", 12), ("short", 9)]
    ]
    encode_captures(prior, scenes, tmp_path / "latents", SETTINGS, prior_name="none")
    write_split(tmp_path / "split.json", {"train": [scenes[0], scenes[2]], "val": [scenes[1]], "test": []})
    task = task_of(replace(config, latents=tmp_path / "latents", split=str(tmp_path / "split.json")))
    assert [scene.id for scene in task.scenes] == ["long"]
    assert "1 scenes have too few frames" in caplog.text


class Echo(torch.nn.Module):
    """Stands in for TUNet: the reference's mean, shifted by what it is told of the cameras."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, mean: torch.Tensor, reference: Camera, target: Camera, category: torch.Tensor) -> torch.Tensor:
        return mean + target.centre[:, 0, None, None, None] + category[:, None, None, None]


def test_the_figures_of_a_validation_are_what_they_say(config: TrainConfig) -> None:
    task = task_of(config)
    store = task.store
    figures, picture = task.validate(Echo())
    rng = np.random.default_rng(0)
    means, targets, shifts, categories = [], [], [], []
    for scene in sorted(task.held_out, key=lambda scene: scene.id):
        for reference, target in list(enumerate((rng.permutation(11)[:10] + 14).tolist()))[:4]:
            means.append(store.mean(scene, reference))
            targets.append(store.mean(scene, target))
            cameras = store.cameras(scene)
            # Orbits of radius 2 in the store's world, of radius 1 in TUNet's.
            pose = cameras[target].relative_to(cameras[reference])
            shifts.append(float(pose.centre[0]) / 2)
            categories.append({"chair": 0.0, "lamp": -1.0}[scene.category])
    mean, wanted = torch.stack(means), torch.stack(targets)
    base = mean + torch.tensor(categories)[:, None, None, None]
    right = base + torch.tensor(shifts)[:, None, None, None]
    wrong = base + torch.tensor(shifts[-1:] + shifts[:-1])[:, None, None, None]
    assert figures["mse"] == pytest.approx(float(F.mse_loss(right, wanted)), rel=1e-3)
    assert figures["mse_copy"] == pytest.approx(float(F.mse_loss(mean, wanted)), rel=1e-5)
    assert figures["mse_wrong_camera"] == pytest.approx(float(F.mse_loss(wrong, wanted)), rel=1e-3)
    assert len({round(value, 6) for value in figures.values()}) == 3
    assert picture is not None
    assert picture.size == (16 * 8, 16 * 3)  # reference, prediction and truth of 8 pairs


def weights(model: Path) -> dict[str, torch.Tensor]:
    return load_file(model / "tunet" / "diffusion_pytorch_model.safetensors")


def metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_killed_run_resumes_to_the_same_weights(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.mirror = True
    torch.manual_seed(3)
    whole = train(replace(config, out=tmp_path / "whole"))

    class Killed(Exception):
        pass

    calls = 0
    loss = sidestep.training._TUNetTask.loss

    def dying(self: Any, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise Killed
        return loss(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(sidestep.training._TUNetTask, "loss", dying)
        torch.manual_seed(3)
        with pytest.raises(Killed):
            train(config)
    assert not (config.out / "model").exists()
    torch.manual_seed(4)  # what the resumed run starts from must not matter
    resumed = train(config)
    for name, tensor in weights(whole).items():
        assert torch.equal(weights(resumed)[name], tensor), name

    before = (config.out / "metrics.jsonl").read_bytes()
    assert train(config) == resumed  # once more: nothing is left to do
    assert (config.out / "metrics.jsonl").read_bytes() == before


def test_epochs_are_counted_in_pairs(config: TrainConfig) -> None:
    config.steps, config.epochs = 0, 2
    train(config)
    last = metrics(config.out)[-1]["step"]
    assert last == -(-2 * PAIRS // config.batch_size)
    assert (config.steps, config.epochs) == (0, 2)
    train(config)  # and again, as one does to resume
    assert metrics(config.out)[-1]["step"] == last


def test_training_lowers_the_held_out_error(config: TrainConfig) -> None:
    task = task_of(config)
    before = task.validate(task.model)[0]["mse"]
    config.steps, config.learning_rate = 30, 3e-3
    train(config)
    assert metrics(config.out)[-1]["validation/mse"] < 0.5 * before


def test_the_finished_folder_is_a_pipelines(config: TrainConfig, root: Path) -> None:
    model = train(config)
    store = LatentStore(config.latents)
    pipe = NovelViewPipeline.from_pretrained(model, device="cpu", dtype=torch.float32)
    assert pipe.prior.fingerprint() == make_prior().fingerprint() == pipe.tunet.config.prior_fingerprint
    told = pipe.tunet.config
    assert (told.t_star, told.inversion_steps, told.alpha_star) == (600, 2, store.alpha_star)
    assert list(told.categories) == ["chair", "table"]
    assert told.elevation == pytest.approx(15, abs=0.5)
    views = pipe(Image.open(root / "a-00.png"), orbit(CAMERA, 2), category="chair", steps=2)
    assert [image.size for image in views.images] == [(16, 16)] * 2
    assert json.loads((model / "model_index.json").read_text())["vae"] == ["diffusers", "AutoencoderKL"]
    assert {path.parent.name for path in model.glob("*/SHA256SUMS")} == {"tunet", "unet", "vae"}
    assert all(tensor.dtype == torch.float16 for tensor in weights(model).values())


def test_without_its_prior_a_run_goes_on_and_leaves_tunet_alone(
    config: TrainConfig, root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    latents = tmp_path / "latents"
    latents.mkdir()
    for path in (root / "latents").iterdir():
        (latents / path.name).write_bytes(path.read_bytes())
    plan = json.loads((latents / "store.json").read_text())
    (latents / "store.json").write_text(json.dumps({**plan, "prior": "moved-away"}))
    caplog.set_level(logging.INFO)
    model = train(replace(config, latents=latents))
    assert [path.name for path in model.iterdir()] == ["tunet"]
    assert not (config.out / "samples").exists()
    assert "no sample pictures" in caplog.text
    assert "name its prior, moved-away" in caplog.text
    assert NovelViewPipeline.from_pretrained(model, prior=str(root / "prior"), device="cpu").tunet


def test_init_starts_from_the_given_weights(config: TrainConfig, tmp_path: Path) -> None:
    torch.manual_seed(9)
    first = TUNet(
        **{**TINY_TUNET, "in_channels": 4, "sample_size": 8, "categories": ("lamp", "stool")},
        t_star=500, prior_fingerprint="another prior's", inversion_steps=7,
    )  # fmt: skip
    first.save_pretrained(tmp_path / "first" / "tunet")
    store = LatentStore(config.latents)
    config = replace(config, init=str(tmp_path / "first"), tunet={}, learning_rate=1e-12)
    tunet = build_tunet(store, config, ("chair",), 20.0)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tunet.state_dict()[name], tensor)
    # What it knows is the old one's, what it is for is the store's.
    assert list(tunet.config.categories) == ["lamp", "stool"]
    assert (tunet.config.t_star, tunet.config.inversion_steps, tunet.config.elevation) == (600, 2, 20.0)
    assert tunet.config.prior_fingerprint == store.prior_fingerprint
    trained = weights(train(config))
    for name, tensor in first.state_dict().items():
        torch.testing.assert_close(trained[name].float(), tensor, rtol=1e-3, atol=1e-5)


def test_what_does_not_fit_is_refused(config: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(SidestepError, match="absent/tunet cannot be loaded"):
        train(replace(config, init=str(tmp_path / "absent")))
    tiny = {**TINY_TUNET, "in_channels": 4, "sample_size": 8}
    TUNet(**tiny).save_pretrained(tmp_path / "other" / "tunet")
    with pytest.raises(SidestepError, match=r"init=.*other: its weights do not fit"):
        train(replace(config, init=str(tmp_path / "other"), tunet={"time_embed_dim": 32}))
    with pytest.raises(SidestepError, match=r"tunet: .*colour"):
        train(replace(config, tunet={**TINY_TUNET, "colour": 1}))
    with pytest.raises(SidestepError, match="cannot be built: conditioning"):
        train(replace(config, tunet={**TINY_TUNET, "conditioning": "none"}))
    with pytest.raises(SidestepError, match="no store of latents"):
        train(replace(config, latents=tmp_path))
