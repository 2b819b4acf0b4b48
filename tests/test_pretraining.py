"""Pretraining of a miniature prior on a few synthetic pictures."""

import gzip
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import load_file

import sidestep.devices
from sidestep.cameras import Camera
from sidestep.captures import read_captures, write_capture
from sidestep.captures.packing import pack_captures
from sidestep.captures.splits import model_split
from sidestep.errors import SidestepError
from sidestep.images import load_image, resize_and_crop, to_tensor
from sidestep.inversion import inversion_grid, invert, sample
from sidestep.pretraining import PretrainConfig, pretrain
from sidestep.pretraining.autoencoder import AutoencoderTask, Sample, build_autoencoder
from sidestep.pretraining.config import AutoencoderConfig, UNetConfig
from sidestep.pretraining.pictures import pictures_by_split
from sidestep.pretraining.unet import NoisySample, UNetTask, build_unet
from sidestep.prior import LatentPrior
from sidestep.trajectories import orbit

NAMES = [f"m{i}" for i in range(40)]
OF_SPLIT = {split: [name for name in NAMES if model_split(name) == split] for split in ("train", "val", "test")}


@pytest.fixture(autouse=True, scope="module")
def _single_precision() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sidestep.devices, "network_dtype", lambda device: torch.float32)
        yield


def picture(seed: int, size: tuple[int, int] = (32, 32)) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def write_pictures(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for seed, name in enumerate(NAMES):
        picture(seed).save(folder / f"{name}.png")
    return folder


def settings(data: Path, out: Path, **options: Any) -> PretrainConfig:
    common: dict[str, Any] = {"batch_size": 4, "precision": "fp32", "save_every": 2, "sample_every": 3}
    return PretrainConfig(
        data,
        out,
        image_size=32,
        autoencoder=AutoencoderConfig(steps=4, crop=16, channels=(8, 8, 8, 16), **common),
        unet=UNetConfig(steps=5, channels=(32, 32), attention=(False, True), layers_per_block=1, **common),
        **options,
    )


def train(config: PretrainConfig, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    return pretrain(config)


def load(prior: Path, dtype: torch.dtype = torch.float32) -> LatentPrior:
    return LatentPrior.from_pretrained(prior, "cpu", dtype)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> PretrainConfig:
    root = tmp_path_factory.mktemp("pretraining")
    config = settings(write_pictures(root / "pictures"), root / "run")
    train(config)
    return config


@pytest.fixture
def copied(finished: PretrainConfig, tmp_path: Path) -> PretrainConfig:
    """The finished run, to be changed."""
    shutil.copytree(finished.out, tmp_path / "run")
    return replace(finished, out=tmp_path / "run")


def names(pictures: list[Any]) -> list[str]:
    return [item.stem if isinstance(item, Path) else item.path.parent.parent.name for item in pictures]


def test_loose_pictures_are_split_by_their_name(finished: PretrainConfig, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    shutil.copytree(finished.data, folder / "deeper")
    (folder / "notes.txt").write_text("no picture")
    (folder / "deeper" / f"{OF_SPLIT['test'][0]}.png").rename(folder / f"{OF_SPLIT['test'][0]}.PNG")
    splits = pictures_by_split(folder)
    assert {split: sorted(names(pictures)) for split, pictures in splits.items()} == {
        split: sorted(of_split) for split, of_split in OF_SPLIT.items()
    }


def write_scene(folder: Path, seed: int) -> None:
    cameras = orbit(Camera.from_fov(50, 32, 32), 2)
    write_capture(folder, [picture(seed), picture(seed + 1)], cameras)


def test_captures_are_split_by_the_model_they_show(tmp_path: Path) -> None:
    chosen = {split: of_split[0] for split, of_split in OF_SPLIT.items()}
    for model in chosen.values():
        for variant in ("", "s1", "s2"):
            write_scene(tmp_path / f"{model}{variant}", 0)
    splits = pictures_by_split(tmp_path)
    for split, model in chosen.items():
        assert sorted(names(splits[split])) == sorted([model, f"{model}s1", f"{model}s2"] * 2)


def test_a_pack_gives_the_pictures_of_its_folder(tmp_path: Path) -> None:
    for of_split in OF_SPLIT.values():
        write_scene(tmp_path / "set" / of_split[0], int(of_split[0][1:]))
    pack_captures(read_captures(tmp_path / "set"), tmp_path / "pack", frames_per_shard=2)
    folder, pack = (
        {split: [picture.path.read_bytes() for picture in some] for split, some in pictures_by_split(data).items()}  # type: ignore[union-attr]
        for data in (tmp_path / "set", tmp_path / "pack")
    )
    assert pack == folder
    (tmp_path / "pack" / "shard-00001.safetensors").unlink()
    with pytest.raises(SidestepError, match="incomplete, shard 2 of 3"):  # and not searched for loose pictures
        pictures_by_split(tmp_path / "pack")
    with pytest.raises(SidestepError, match=r"memory://nothing: no pack"):
        pictures_by_split(Path("memory://nothing"))


def test_held_out_pictures_train_nothing(finished: PretrainConfig) -> None:
    latents = load_file(finished.out / "unet" / "latents.safetensors")
    assert len(latents["train"]) == len(OF_SPLIT["train"])
    assert len(latents["val"]) == len(OF_SPLIT["val"][::4])
    task = AutoencoderTask(build_autoencoder(finished.autoencoder), pictures_by_split(finished.data), finished)
    drawn = {names([task.pictures[sample.picture]])[0] for step in range(100) for sample in task.draw(step)}
    assert drawn == set(OF_SPLIT["train"])
    assert set(names(task.held_out[""])) <= set(OF_SPLIT["val"])


def test_captures_that_cannot_be_read_are_not_taken_for_loose_pictures(tmp_path: Path) -> None:
    for model in NAMES[:3]:
        write_scene(tmp_path / model, 0)
        for path in [*tmp_path.rglob("cameras.txt"), *tmp_path.rglob("transforms.json")]:
            path.write_text("1 PINHOLE broken")
    with pytest.warns(UserWarning, match="left out"), pytest.raises(SidestepError, match="none of its 3 scenes"):
        pictures_by_split(tmp_path)


def unreadable_co3d(root: Path) -> None:
    for sequence in NAMES[:3]:
        save_pictures(root / "chair" / sequence / "images")
    (root / "chair" / "frame_annotations.jgz").write_bytes(gzip.compress(b"[{}")[:-9])


def realestate10k_one_level_too_high(root: Path) -> None:
    pose = "1 0 0 0 0 1 0 0 0 0 1 0"
    for clip in NAMES[:3]:
        save_pictures(root / "data" / "dataset" / "train" / clip)
        cameras = root / "data" / "RealEstate10K" / "train" / f"{clip}.txt"
        cameras.parent.mkdir(parents=True, exist_ok=True)
        cameras.write_text(f"https://example.org\n0 0.5 0.9 0.5 0.5 0 0 {pose}\n")


def blender_with_bad_poses(root: Path) -> None:
    for name in NAMES[:3]:
        save_pictures(root / name / "train")
        frame = {"file_path": "./train/0", "transform_matrix": (2 * np.eye(4)).tolist()}
        (root / name / "transforms_train.json").write_text(json.dumps({"camera_angle_x": 0.7, "frames": [frame]}))


def dtu_with_bad_cameras(root: Path) -> None:
    for name in NAMES[:3]:
        save_pictures(root / name / "image")
        (root / name / "cameras.npz").write_bytes(b"PK")


def megascenes_without_models(root: Path) -> None:
    for number in ("001", "002"):
        save_pictures(root / "images" / number / "234")
        (root / "reconstruct" / number / "234" / "sparses").mkdir(parents=True)


def deeper_than_scenes_are_looked_for(root: Path) -> None:
    for name in NAMES[:3]:
        save_pictures(root / "a" / "b" / "c" / "d" / name / "images")


def save_pictures(folder: Path) -> None:
    folder.mkdir(parents=True)
    for index in range(20):
        Image.new("RGB", (8, 8)).save(folder / f"{index}.png")


@pytest.mark.filterwarnings("ignore:scene left out")
@pytest.mark.parametrize(
    "make",
    [
        unreadable_co3d,
        realestate10k_one_level_too_high,
        blender_with_bad_poses,
        dtu_with_bad_cameras,
        megascenes_without_models,
        deeper_than_scenes_are_looked_for,
    ],
)
def test_what_claims_to_be_captures_is_never_taken_for_loose_pictures(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path)
    with pytest.raises(SidestepError, match="looks like captures"):
        pictures_by_split(tmp_path)


@pytest.mark.parametrize(
    ("kept", "fault"),
    [([], "train"), (OF_SPLIT["train"], "val"), (OF_SPLIT["val"], "train")],
    ids=["no", "val", "train"],
)
def test_a_split_without_pictures_is_refused(
    finished: PretrainConfig, tmp_path: Path, kept: list[str], fault: str
) -> None:
    (tmp_path / "few").mkdir()
    for name in kept:
        shutil.copy(finished.data / f"{name}.png", tmp_path / "few")
    with pytest.raises(SidestepError, match=f"few: no pictures in the {fault} split"):
        pretrain(settings(tmp_path / "few", tmp_path / "run"))
    with pytest.raises(SidestepError, match="absent: no such folder"):
        pretrain(settings(tmp_path / "absent", tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_samples_of_the_autoencoder_are_crops_some_of_them_mirrored(finished: PretrainConfig) -> None:
    pictures = pictures_by_split(finished.data)
    task = AutoencoderTask(build_autoencoder(finished.autoencoder), pictures, finished)
    place = Sample(picture=2, size=32, down=3 / 16, across=5 / 16, mirrored=False, flipped=False, seed=0)
    batch = task.collate([place, place._replace(mirrored=True)])["images"]
    wanted = to_tensor(resize_and_crop(load_image(pictures["train"][2]), 32))[:, 3:19, 5:21]
    assert torch.equal(batch[0], wanted)
    assert torch.equal(batch[1], wanted.flip(-1))
    samples = [item for step in range(200) for item in task.draw(step)]
    assert {sample.size for sample in samples} == {32}
    for where in ("down", "across"):
        quarters = np.histogram([getattr(sample, where) for sample in samples], bins=4, range=(0, 1))[0]
        assert quarters.min() > len(samples) / 6
    assert np.mean([sample.mirrored for sample in samples]) == pytest.approx(0.5, abs=0.06)
    assert task.draw(7) == task.draw(7) != task.draw(8)


def photographed(config: PretrainConfig, folder: Path) -> PretrainConfig:
    """With photographs beside the pictures: twice as large, wider than high, and all green."""
    folder.mkdir(parents=True)
    for name in NAMES[:12]:
        Image.new("RGB", (96, 64), "green").save(folder / f"{name}.png")
    return replace(config, photographs=folder)


def test_photographs_are_cropped_at_any_size_and_place(finished: PretrainConfig, tmp_path: Path) -> None:
    config = photographed(finished, tmp_path / "photographs")
    captured, photographs = pictures_by_split(config.data), pictures_by_split(tmp_path / "photographs")
    # Red grows to the right, green to the bottom: a crop's colours say where it lies.
    x, y = np.meshgrid(np.arange(96) * 2, np.arange(64) * 2)
    Image.fromarray(np.stack([x, y, 0 * x], axis=-1).astype(np.uint8)).save(photographs["train"][1])
    task = AutoencoderTask(build_autoencoder(config.autoencoder), captured, config, photographs)
    first = len(captured["train"])
    batch = task.collate([Sample(first + 1, 64, 1, 1, False, False, 0), Sample(first + 1, 32, 0, 0, True, False, 0)])[
        "images"
    ]
    small, large = ((batch + 1) * 127.5).unbind()
    assert small.shape == large.shape == (3, 16, 16)
    assert small[:2, 8, 8].tolist() == pytest.approx([2 * (80 + 8), 2 * (48 + 8)], abs=1.5)  # 16 of 64 rows
    assert large[:2, 8, 7].tolist() == pytest.approx([2 * 16.5, 2 * 16.5], abs=1.5)  # 16 of 32 rows, mirrored

    samples = [item for step in range(200) for item in task.draw(step)]
    photos = [sample for sample in samples if sample.picture >= first]
    assert len(photos) / len(samples) == pytest.approx(0.25, abs=0.05)
    assert {sample.picture for sample in photos} == set(range(first, first + len(photographs["train"])))
    assert {sample.size for sample in photos} == set(range(32, 65))
    assert {sample.size for sample in samples if sample.picture < first} == {32}
    with pytest.raises(SidestepError, match="photograph_share=25"):
        pretrain(replace(config, photograph_share=25))


def test_both_networks_learn_from_photographs_too(
    finished: PretrainConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = replace(photographed(finished, tmp_path / "photographs"), out=tmp_path / "run")
    train(config)
    for part, figures in {
        "autoencoder": ("psnr", "psnr_mirrored"),
        "unet": ("loss", "round_trip_psnr"),
    }.items():
        lines = (config.out / part / "metrics.jsonl").read_text().splitlines()
        told = {key: value for line in lines for key, value in json.loads(line).items()}
        for figure in figures:
            assert told[f"validation/{figure}"] != told[f"validation/{figure}_photographs"]
    latents = load_file(config.out / "unet" / "latents.safetensors")
    assert len(latents["train"]) == len(OF_SPLIT["train"])
    # 32 crops of each; and the captures alone have set the scale.
    assert len(latents["train_photographs"]) == 32 * sum(model_split(name) == "train" for name in NAMES[:12])
    assert len(latents["val_photographs"]) == 32 * sum(model_split(name) == "val" for name in NAMES[:12])
    assert float(latents["train"].float().std()) == pytest.approx(1, abs=0.01)
    green = load(config.out / "prior").encode(to_tensor(Image.new("RGB", (32, 32), "green"))[None])
    torch.testing.assert_close(latents["train_photographs"][-1:].float(), green, rtol=0.02, atol=0.02)

    assert not encoded_again(caplog, config)
    (tmp_path / "photographs" / f"{OF_SPLIT['train'][0]}.png").rename(tmp_path / "photographs" / "renamed.png")
    assert encoded_again(caplog, config)
    assert encoded_again(caplog, replace(config, photographs=None))


class Perfect(torch.nn.Module):
    """An autoencoder without fault, whose latents mirror as they should if `mirrors`."""

    def __init__(self, mirrors: bool) -> None:
        super().__init__()
        self.mirrors = mirrors

    def forward(self, images: Any, noise: Any = None, mirrored: Any = None) -> Any:
        latents = torch.randn(64, 4, 8, 8)  # of mean 0 and deviation 1, as they should be
        if mirrored is None or not self.mirrors:
            return images, latents
        return torch.where(mirrored.view(-1, 1, 1, 1), images.flip(-1), images), latents


def test_a_mirrored_latent_must_decode_to_the_mirrored_picture(finished: PretrainConfig) -> None:
    task = AutoencoderTask(build_autoencoder(finished.autoencoder), pictures_by_split(finished.data), finished)
    batch = task.collate([item for step in range(4) for item in task.draw(step)])
    torch.manual_seed(0)
    assert float(task.loss(Perfect(mirrors=True), batch)[0]) < 0.01
    assert float(task.loss(Perfect(mirrors=False), batch)[0]) > 0.05
    # And the network itself decodes the flipped latents of the rows that are marked, and no others.
    images = batch["images"][:2]
    training = task.model.eval()
    with torch.no_grad():
        result, latents = training(images, mirrored=torch.tensor([False, True]))
        flipped = training.vae.decode(latents.flip(-1)).sample
        torch.testing.assert_close(result[0], training.vae.decode(latents).sample[0])
        torch.testing.assert_close(result[1], flipped[1])
    assert not torch.allclose(result[1], training.vae.decode(latents).sample[1], atol=1e-3)


def unet_task(config: PretrainConfig, latents: torch.Tensor, **options: Any) -> Any:
    config = replace(config, unet=replace(config.unet, **options))
    vae = build_autoencoder(config.autoencoder)
    pictures = pictures_by_split(config.data)
    return UNetTask(build_unet(config.unet, 4, 4), vae, {"train": latents, "val": latents}, config, pictures, None)


def test_samples_of_the_unet_cover_every_timestep(finished: PretrainConfig) -> None:
    latents = torch.randn(10, 4, 4, 4).half()
    task = unet_task(finished, latents, batch_size=50)
    samples = [item for step in range(100) for item in task.draw(step)]
    timesteps = np.array([sample.timestep for sample in samples])
    assert np.mean(timesteps < 600) == pytest.approx(0.75, abs=0.03)
    assert timesteps.min() < 10
    assert timesteps.max() > 990
    assert {sample.latent for sample in samples} == set(range(10))
    assert np.mean([sample.mirrored for sample in samples]) == pytest.approx(0.5, abs=0.03)
    batch = task.collate([NoisySample(3, 100, False, 0), NoisySample(3, 999, True, 0)])
    assert batch["timesteps"].tolist() == [100, 999]
    assert torch.equal(batch["latents"], torch.stack([latents[3], latents[3].flip(-1)]).float())


def test_samples_of_the_unet_mix_captures_and_photographs(finished: PretrainConfig) -> None:
    config = replace(finished, unet=replace(finished.unet, batch_size=50))
    latents = {"train": torch.zeros(10, 4, 4, 4), "train_photographs": torch.ones(30, 4, 4, 4)}
    captured = pictures_by_split(config.data)
    photographs = {"train": [config.data / "photograph.png"]}
    networks = build_unet(config.unet, 4, 4), build_autoencoder(config.autoencoder)
    task = UNetTask(*networks, latents, config, captured, photographs)
    for index, shown in ((3, captured["train"][3]), (12, photographs["train"][0])):
        assert task.name(NoisySample(index, 77, False, 0)) == f"{shown} (timestep 77)"
    drawn = [sample.latent for step in range(100) for sample in task.draw(step)]
    assert set(drawn) == set(range(40))
    batches = torch.cat([task.collate(task.draw(step))["latents"] for step in range(100)])
    assert float(batches.mean()) == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_unet_learns_what_its_schedule_says(finished: PretrainConfig, prediction_type: str) -> None:
    task = unet_task(finished, torch.zeros(4, 4, 4, 4), prediction_type=prediction_type)
    alphas = task.prior().alphas_cumprod.float()

    class Answer:
        """Right for latents of zero, where all that there is is noise."""

        def __call__(self, noisy: torch.Tensor, timesteps: torch.Tensor) -> Any:
            a = alphas[timesteps].view(-1, 1, 1, 1)
            eps = noisy / (1 - a).sqrt()
            self.sample = eps if prediction_type == "epsilon" else a.sqrt() * eps
            return self

    assert task.prior().prediction_type == prediction_type
    assert (
        float(task.loss(Answer(), task.collate([NoisySample(0, 50, False, 0), NoisySample(1, 900, True, 0)]))[0]) < 1e-8
    )


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_min_snr_weighs_the_error_of_the_clean_latent(finished: PretrainConfig, prediction_type: str) -> None:
    """At a signal-to-noise ratio of up to gamma the loss is the ratio, else gamma, times the clean latent's error."""
    latents = torch.randn(1, 4, 4, 4).half()
    task = unet_task(finished, latents, prediction_type=prediction_type, snr_gamma=5.0)
    alphas = task.prior().alphas_cumprod.float()
    for timestep in (50, 150, 400, 900):
        a = alphas[timestep]

        class Wrong:
            """Answers all with 0."""

            def __call__(self, noisy: torch.Tensor, timesteps: torch.Tensor, a: torch.Tensor = a) -> Any:
                clean = latents.float()
                predicted = noisy / a.sqrt() if prediction_type == "epsilon" else a.sqrt() * noisy
                self.error = (predicted - clean).square().mean()
                self.sample = torch.zeros_like(noisy)
                return self

        model = Wrong()
        loss = float(task.loss(model, task.collate([NoisySample(0, timestep, False, 0)]))[0])
        assert loss == pytest.approx(float(model.error * min(float(a / (1 - a)), 5.0)), rel=1e-3)
    assert alphas[50] / (1 - alphas[50]) > 5 > alphas[400] / (1 - alphas[400])


def test_a_validation_leaves_the_unet_trainable(finished: PretrainConfig) -> None:
    task = unet_task(finished, torch.randn(8, 4, 4, 4))
    figures, sheet = task.validate(task.model.eval())
    assert all(parameter.requires_grad for parameter in task.model.parameters())
    assert sheet.size == (4 * 32, 4 * 32)  # four pictures, their means, their round trips, four drawn from noise
    # Fixed noise and timesteps: the same network has the same figures.
    again = task.validate(task.model)[0]
    assert figures == again
    prior = task.prior()
    grid = inversion_grid(prior.default_t_star(), 15)
    clean = task.latents["val"][::2].float()
    decoded = [prior.decode(item) for item in (clean, sample(prior, invert(prior, clean, grid).latents, grid))]
    error = (decoded[0] - decoded[1]).square().mean(dim=(1, 2, 3))
    assert figures["round_trip_psnr"] == pytest.approx(float((10 * torch.log10(4 / error)).mean()), rel=1e-4)


def test_the_finished_prior_is_what_was_trained(
    finished: PretrainConfig, copied: PretrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    prior = load(finished.out / "prior")
    assert (prior.image_size, prior.latent_size, prior.latent_channels) == (32, 4, 4)
    assert prior.default_t_star() == 600

    told: list[str] = []
    save = LatentPrior.save_pretrained

    def saving(self: LatentPrior, path: Path) -> None:
        told.append(self.fingerprint())
        save(self, path)

    monkeypatch.setattr(LatentPrior, "save_pretrained", saving)
    pretrain(copied)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert load(copied.out / "prior", dtype).fingerprint() == told[0] == prior.fingerprint()


def test_its_latents_have_deviation_1(finished: PretrainConfig) -> None:
    stored = load_file(finished.out / "unet" / "latents.safetensors")
    assert float(stored["train"].float().std()) == pytest.approx(1, abs=0.01)
    prior = load(finished.out / "prior")
    pictures = pictures_by_split(finished.data)["train"]
    encoded = prior.encode(torch.stack([to_tensor(load_image(path)) for path in pictures]))
    torch.testing.assert_close(encoded, stored["train"].float(), rtol=0.02, atol=0.02)


def test_a_killed_run_resumes_to_the_same_prior(
    finished: PretrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Exception):
        pass

    def die_at(call: int, task: Any) -> None:
        calls = 0
        loss = task.loss

        def dying(self: Any, *arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == call:
                raise Killed
            return loss(self, *arguments)

        patch.setattr(task, "loss", dying)

    config = replace(finished, out=tmp_path / "run")
    for seed, task in enumerate((AutoencoderTask, UNetTask)):
        with monkeypatch.context() as patch:
            die_at(4, task)
            with pytest.raises(Killed):
                train(config, seed)
        assert not (config.out / "prior").exists()
    train(config, 2)
    autoencoder = "prior/vae/diffusion_pytorch_model.safetensors"
    assert (config.out / autoencoder).read_bytes() == (finished.out / autoencoder).read_bytes()


def test_a_killed_unet_resumes_to_the_same_weights(
    finished: PretrainConfig, copied: PretrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The U-Net starts from random weights, so both runs share what was saved before the kill."""
    unet = "prior/unet/diffusion_pytorch_model.safetensors"
    whole = replace(copied, unet=replace(copied.unet, steps=9))
    stopped = replace(whole, out=copied.out.with_name("stopped"))
    shutil.copytree(copied.out, stopped.out)
    pretrain(whole)

    loss = UNetTask.loss
    calls: list[int] = []

    def dying(self: Any, *arguments: Any) -> Any:
        calls.append(len(calls))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return loss(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(UNetTask, "loss", dying)
        with pytest.raises(KeyboardInterrupt):
            pretrain(stopped)
    pretrain(stopped)
    assert (stopped.out / unet).read_bytes() == (whole.out / unet).read_bytes()
    assert (whole.out / unet).read_bytes() != (finished.out / unet).read_bytes()


def encoded_again(caplog: pytest.LogCaptureFixture, config: PretrainConfig) -> bool:
    caplog.clear()
    caplog.set_level(logging.INFO)
    pretrain(config)
    return "encoding" in caplog.text


def test_latents_are_kept_until_what_they_are_made_of_changes(
    copied: PretrainConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = copied.out / "unet" / "latents.safetensors"
    kept, steps = path.read_bytes(), len((copied.out / "unet" / "metrics.jsonl").read_text().splitlines())
    before = load(copied.out / "prior").vae.config.scaling_factor
    assert not encoded_again(caplog, copied)
    assert path.read_bytes() == kept
    assert len((copied.out / "unet" / "metrics.jsonl").read_text().splitlines()) == steps  # nothing was trained again
    assert load(copied.out / "prior").vae.config.scaling_factor == before

    longer = replace(copied, autoencoder=replace(copied.autoencoder, steps=8))
    assert encoded_again(caplog, longer)
    assert path.read_bytes() != kept
    assert not encoded_again(caplog, longer)

    more = replace(longer, data=tmp_path / "more")
    shutil.copytree(longer.data, more.data)
    extra = next(f"n{i}" for i in range(40) if model_split(f"n{i}") == "train")
    picture(99).save(more.data / f"{extra}.png")
    assert encoded_again(caplog, more)
    assert len(load_file(path)["train"]) == len(OF_SPLIT["train"]) + 1


@pytest.mark.parametrize("length", [-9, 0])
def test_damaged_latents_are_made_anew(copied: PretrainConfig, caplog: pytest.LogCaptureFixture, length: int) -> None:
    path = copied.out / "unet" / "latents.safetensors"
    data = path.read_bytes()
    before = {name: tensor.clone() for name, tensor in load_file(path).items()}  # not what is mapped
    path.write_bytes(data[:length] if length else data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    assert encoded_again(caplog, copied)
    assert f"{path}: damaged" in caplog.text
    assert all(torch.equal(tensor, before[name]) for name, tensor in load_file(path).items())


def test_init_starts_from_a_finished_prior(finished: PretrainConfig, tmp_path: Path) -> None:
    config = settings(finished.data, tmp_path / "run", init=str(finished.out / "prior"))
    config.autoencoder.steps = config.unet.steps = 0
    train(config, seed=7)
    for part in ("vae", "unet"):
        weights = f"{part}/diffusion_pytorch_model.safetensors"
        assert (config.out / "prior" / weights).read_bytes() == (finished.out / "prior" / weights).read_bytes()
    config = settings(finished.data, tmp_path / "more", init=str(finished.out / "prior"))
    train(config)
    assert load(config.out / "prior").fingerprint() != load(finished.out / "prior").fingerprint()


def test_a_new_decoder_leaves_the_latents_as_they_were(finished: PretrainConfig, tmp_path: Path) -> None:
    config = settings(finished.data, tmp_path / "run", init=str(finished.out / "prior"))
    config.autoencoder.train = "decoder"
    config.unet.steps = 0
    before, after = load(finished.out / "prior"), load(train(config))
    pictures = torch.stack([to_tensor(picture(seed)) for seed in range(3)])
    latents = before.encode(pictures)
    torch.testing.assert_close(after.encode(pictures), latents, rtol=0, atol=0)
    assert not torch.allclose(after.decode(latents), before.decode(latents), atol=1e-3)
    assert after.fingerprint() == before.fingerprint()  # so a TUNet and a store of latents stay valid
    assert after.vae.config.scaling_factor == before.vae.config.scaling_factor
    torch.testing.assert_close(after.unet.state_dict(), before.unet.state_dict(), rtol=0, atol=0)
    assert not (config.out / "unet").exists()
    # The checkpoint holds what is trained.
    assert not any("encoder" in name for name in load_file(config.out / "autoencoder" / "checkpoint.safetensors"))
    with pytest.raises(SidestepError, match=r"autoencoder\.train=decoder: needs init"):
        pretrain(replace(config, init=None))


def test_a_unet_that_goes_on_keeps_the_scale_of_an_encoder_that_does_not(
    finished: PretrainConfig, tmp_path: Path
) -> None:
    other = write_pictures(tmp_path / "pictures")
    for path in other.iterdir():
        Image.open(path).point(lambda value: value // 2).save(path)  # darker: on their own they had another scale
    config = settings(other, tmp_path / "run", init=str(finished.out / "prior"))
    config.autoencoder.steps = 0
    train(config)
    scale = load(finished.out / "prior").vae.config.scaling_factor
    assert load(config.out / "prior").vae.config.scaling_factor == scale
    stored = load_file(config.out / "unet" / "latents.safetensors")["train"].float()
    assert float(stored.std()) != pytest.approx(1, abs=0.02)
    darker = to_tensor(load_image(pictures_by_split(other)["train"][0]))
    encoded = load(finished.out / "prior").encode(darker[None])
    torch.testing.assert_close(encoded[0], stored[0], rtol=0.02, atol=0.02)


def test_a_perceptual_term_compares_what_is_mirrored_with_the_mirrored_picture(finished: PretrainConfig) -> None:
    options = replace(finished.autoencoder, perceptual_weight=0.5)
    config = replace(finished, autoencoder=options)
    pictures = pictures_by_split(config.data)
    task = AutoencoderTask(build_autoencoder(options), pictures, config)
    batch = task.collate([item for step in range(2) for item in task.draw(step)])
    assert task.loss(Perfect(mirrors=True), batch)[1]["perceptual"] < 1e-6
    assert task.loss(Perfect(mirrors=False), batch)[1]["perceptual"] > 0.05

    class Shifted(Perfect):
        def forward(self, images: Any, *arguments: Any, **options: Any) -> Any:
            result, latents = super().forward(images, *arguments, **options)
            result = result.roll(2, dims=-1).detach().requires_grad_()
            self.result = result
            return result, latents

    model = Shifted(mirrors=True)
    gradients = {}
    for weight in (0.0, 0.5, 1.0):
        options.perceptual_weight = weight
        torch.manual_seed(0)
        task.loss(model, batch)[0].backward()
        gradients[weight] = model.result.grad
    perceptual = gradients[0.5] - gradients[0.0]
    assert float(perceptual.norm()) > 0
    torch.testing.assert_close(gradients[1.0] - gradients[0.0], 2 * perceptual, rtol=1e-3, atol=1e-6)


def test_validation_tells_sharpness_where_a_perceptual_term_is_on(finished: PretrainConfig, tmp_path: Path) -> None:
    config = photographed(finished, tmp_path / "photographs")
    config = replace(config, autoencoder=replace(config.autoencoder, perceptual_weight=0.5))
    captured, photographs = pictures_by_split(config.data), pictures_by_split(tmp_path / "photographs")
    for path in photographs["val"]:
        picture(3, (96, 64)).save(path)
    task = AutoencoderTask(build_autoencoder(config.autoencoder), captured, config, photographs)

    class Altered(Perfect):
        def __init__(self, alter: Any) -> None:
            super().__init__(mirrors=True)
            self.alter = alter
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, images: Any, noise: Any = None, mirrored: Any = None) -> Any:
            result, latents = super().forward(self.alter(images), noise, mirrored)
            return result, latents

    def told(alter: Any) -> dict[str, float]:
        return task.validate(Altered(alter))[0]

    equal = told(lambda images: images)
    blurred = told(lambda images: torch.nn.functional.avg_pool2d(images, 5, 1, 2, count_include_pad=False))
    grainy = told(lambda images: images + 0.3 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0)))
    for kind in ("", "_photographs"):
        assert equal[f"sharpness{kind}"] == pytest.approx(1)
        assert blurred[f"sharpness{kind}"] < 0.9
        assert grainy[f"sharpness{kind}"] > 1.1
        assert equal[f"perceptual{kind}"] < 1e-6 < min(blurred[f"perceptual{kind}"], grainy[f"perceptual{kind}"])


def test_an_init_that_does_not_fit_is_refused(finished: PretrainConfig, tmp_path: Path) -> None:
    init = str(finished.out / "prior")
    config = settings(finished.data, tmp_path / "run", init=init)
    with pytest.raises(SidestepError, match="has image_size 32, not 64; set image_size=32"):
        pretrain(replace(config, image_size=64))
    with pytest.raises(SidestepError, match=r"has unet\.prediction_type epsilon, not v_prediction"):
        pretrain(replace(config, unet=replace(config.unet, prediction_type="v_prediction")))
    with pytest.raises(SidestepError, match="absent"):
        pretrain(replace(config, init=str(tmp_path / "absent")))
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    vae = AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, **blocks)
    LatentPrior(vae, build_unet(config.unet, 16, 4), load(Path(init)).scheduler).save_pretrained(tmp_path / "kl")
    with pytest.raises(SidestepError, match="AutoencoderKL and UNet2DModel"):
        pretrain(replace(config, init=str(tmp_path / "kl")))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("part", "options", "fault"),
    [
        ("autoencoder", {"crop": 64}, "autoencoder.crop=64: must be a multiple of 8, at most image_size=32"),
        ("autoencoder", {"crop": 12}, "autoencoder.crop=12: must be a multiple of 8"),
        (
            "autoencoder",
            {"decoder_layers": (2,)},
            "decoder_layers has 1 entries; give one for each of the 4 channels",
        ),
        ("unet", {"attention": (True,)}, "unet.attention has 1 entries; give one for each of the 2 channels"),
        ("unet", {"t_low": 1000}, "unet.t_low=1000: must lie between 1 and 999"),
    ],
)
def test_settings_that_do_not_fit_each_other_are_refused(
    finished: PretrainConfig, tmp_path: Path, part: str, options: dict[str, Any], fault: str
) -> None:
    changed = {part: replace(getattr(finished, part), **options)}
    with pytest.raises(SidestepError, match=fault):
        pretrain(replace(finished, out=tmp_path / "run", **changed))


def test_a_run_keeps_a_record(finished: PretrainConfig) -> None:
    for part in ("autoencoder", "unet"):
        lines = (finished.out / part / "metrics.jsonl").read_text().splitlines()
        told = {key for line in lines for key in json.loads(line)}
        assert {"autoencoder": "validation/psnr_mirrored", "unet": "validation/round_trip_psnr"}[part] in told
        assert list((finished.out / part / "samples").glob("*.png"))
        assert (finished.out / part / "config.yaml").exists()
