"""The pipeline on a random miniature prior and TUNet: what reaches the pictures, worlds, saving, refusals."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from PIL import Image

import sidestep.devices
import sidestep.pipeline
from miniatures import SD, kl, unet
from sidestep.cameras import Camera
from sidestep.errors import SidestepError
from sidestep.fusion import FusionSettings, choose, variance_fusion
from sidestep.images import resize_and_crop, to_image, to_tensor
from sidestep.inversion import inversion_grid, invert, sample
from sidestep.pipeline import NovelViewPipeline, Views
from sidestep.prior import PARTS, LatentPrior
from sidestep.trajectories import orbit, step_aside
from sidestep.tunet import TUNet

SIZE = 16
INVERSION_STEPS, LATE_STEPS = 4, 2  # 0, 150, ..., 600 and on to 750, 900


@pytest.fixture(autouse=True)
def _single_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half precision differs between processors, and would hide small differences."""
    monkeypatch.setattr(sidestep.devices, "network_dtype", lambda device: torch.float32)


def make_vae() -> AutoencoderKL:
    vae = kl(scaling_factor=0.7)
    vae.decoder.conv_out.weight.data.mul_(3)  # else its pictures are nearly grey
    return vae


def make_tunet(**options: Any) -> TUNet:
    tiny = {
        "sample_size": 8,
        "block_out_channels": (16, 32),
        "attention_levels": 1,
        "head_dim": 8,
        "cross_attention_dim": 24,
        "time_embed_dim": 24,
        "norm_groups": 4,
        "categories": ("chair", "table"),
        "inversion_steps": INVERSION_STEPS,
    }
    return TUNet(**{**tiny, **options}).eval()


@pytest.fixture(scope="module")
def pipe() -> NovelViewPipeline:
    torch.manual_seed(0)
    return NovelViewPipeline(make_tunet(), make_vae(), unet(), DDIMScheduler(**SD))


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((24, SIZE), Image.Resampling.BICUBIC)


CAMERA = Camera.from_fov(45, 24, SIZE)
TARGETS = orbit(CAMERA, 4)


def pixels(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image, dtype=np.int16) for image in images])


def assert_same(one: list[Image.Image], other: list[Image.Image]) -> None:
    assert np.abs(pixels(one) - pixels(other)).max() <= 1  # a value on the edge between two levels


def assert_differ(one: list[Image.Image], other: list[Image.Image]) -> None:
    assert (np.abs(pixels(one) - pixels(other)).max(axis=(1, 2, 3)) > 1).all()


def run(pipe: NovelViewPipeline, photo: Any, targets: Any = TARGETS[:1], **options: Any) -> Views:
    return pipe(photo, targets, **{"fusion": "variance", "steps": 3, **options})


def test_every_target_gets_a_view_of_its_own(pipe: NovelViewPipeline, photo: Image.Image) -> None:
    views = run(pipe, photo, TARGETS)
    assert [image.size for image in views.images + views.coarse] == [(SIZE, SIZE)] * 8
    assert len(views.cameras) == len(views.fusion) == 4
    for pictures in (views.images, views.coarse):
        for i in range(4):
            for j in range(i):
                assert_differ(pictures[i : i + 1], pictures[j : j + 1])


@pytest.mark.parametrize(
    "options",
    [{"fusion": "auto"}, {"fusion": "addition"}, {"settings": FusionSettings(noise="late")}],
    ids=["auto", "addition", "late"],
)
def test_targets_together_are_the_same_as_one_by_one(
    pipe: NovelViewPipeline, photo: Image.Image, options: dict[str, Any]
) -> None:
    together = run(pipe, photo, TARGETS, **options)
    in_chunks = run(pipe, photo, TARGETS, batch_size=3, **options)
    alone = [run(pipe, photo, [target], **options) for target in TARGETS]
    assert_same(together.images, in_chunks.images)
    assert_same(together.images, [view.images[0] for view in alone])
    assert together.fusion == in_chunks.fusion == [view.fusion[0] for view in alone]


def test_drawn_noise_depends_on_the_seed_and_not_on_the_batch_size(pipe: NovelViewPipeline, photo: Image.Image) -> None:
    settings = FusionSettings(noise="gaussian")
    views = run(pipe, photo, TARGETS, settings=settings)
    assert_same(views.images, run(pipe, photo, TARGETS, settings=settings, batch_size=3).images)
    assert_differ(views.images, run(pipe, photo, TARGETS, settings=settings, seed=1).images)


@pytest.mark.parametrize(
    "options",
    [
        {"targets": [step_aside(CAMERA, 5)]},
        {"targets": [step_aside(Camera.from_fov(60, 24, SIZE), -30)]},
        {"category": "chair"},
        {"source": Camera.from_fov(60, 24, SIZE), "scale": 1.0},
        {"scale": 2.0},
        {"steps": 4},
        {"fusion": "addition"},
        {"settings": FusionSettings(c="paper")},
        {"settings": FusionSettings(noise="gaussian")},
        {"settings": FusionSettings(noise="late")},
        {"settings": FusionSettings(sample_from=500)},
    ],
    ids=str,
)
def test_what_changes_a_view(pipe: NovelViewPipeline, photo: Image.Image, options: dict[str, Any]) -> None:
    assert_differ(run(pipe, photo).images, run(pipe, photo, **options).images)


def test_the_photo_and_the_readings_of_addition_change_a_view(pipe: NovelViewPipeline, photo: Image.Image) -> None:
    base = run(pipe, photo, fusion="addition")
    assert_differ(base.images, run(pipe, photo.rotate(180), fusion="addition").images)
    ghost = FusionSettings(latent="t_star")
    assert_differ(base.images, run(pipe, photo, fusion="addition", settings=ghost).images)


@pytest.mark.parametrize(
    ("fusion", "settings", "alone"),
    [
        ("auto", FusionSettings(), INVERSION_STEPS + LATE_STEPS),
        ("addition", FusionSettings(), INVERSION_STEPS + LATE_STEPS),
        ("addition", FusionSettings(latent="t_star"), INVERSION_STEPS),
        ("variance", FusionSettings(), INVERSION_STEPS),
        ("variance", FusionSettings(noise="late"), INVERSION_STEPS + LATE_STEPS),
    ],
)
def test_the_photo_is_encoded_and_inverted_once(
    pipe: NovelViewPipeline, photo: Image.Image, fusion: str, settings: FusionSettings, alone: int
) -> None:
    batches: list[int] = []
    encoded: list[int] = []
    hooks = [
        pipe.unet.register_forward_hook(lambda module, inputs, output: batches.append(len(inputs[0]))),
        pipe.vae.encoder.register_forward_hook(lambda module, inputs, output: encoded.append(len(inputs[0]))),
    ]
    try:
        run(pipe, photo, TARGETS + TARGETS, fusion=fusion, settings=settings, batch_size=4)
    finally:
        for hook in hooks:
            hook.remove()
    assert encoded == [1]
    assert batches[:alone] == [1] * alone
    assert set(batches[alone:]) == {4}


def test_a_view_is_encode_invert_translate_fuse_sample_decode(pipe: NovelViewPipeline, photo: Image.Image) -> None:
    """With a TUNet that gives its input back, all the rest can be done by hand."""
    hook = pipe.tunet.register_forward_hook(lambda module, inputs, output: inputs[0])
    try:
        views = run(pipe, photo, steps=INVERSION_STEPS)
    finally:
        hook.remove()
    prior, grid = pipe.prior, inversion_grid(600, INVERSION_STEPS)
    inverted = invert(prior, prior.encode(to_tensor(resize_and_crop(photo, SIZE))[None]), grid)
    start = variance_fusion(prior, inverted.mean, inverted.noise, 600)
    assert_same(views.images, [to_image(prior.decode(sample(prior, start, grid))[0])])
    a_star = float(prior.alphas_cumprod[600])
    assert_same(views.coarse, [to_image(prior.decode(inverted.mean / math.sqrt(a_star))[0])])


@pytest.mark.parametrize("size", [(40, 20), (20, 40), (16, 16), (61, 33)])
def test_photos_and_targets_of_any_size(pipe: NovelViewPipeline, photo: Image.Image, size: tuple[int, int]) -> None:
    source = step_aside(Camera.from_fov(45, *size), 30, 10)
    wanted = [step_aside(Camera.from_fov(50, width, height), 20) for width, height in [(30, 90), (90, 30), (8, 8)]]
    resized = photo.resize(size)
    views = run(pipe, resized, wanted, source=source)
    assert views.source.size == (SIZE, SIZE)
    assert np.array_equal(np.asarray(views.source), np.asarray(resize_and_crop(resized, SIZE)))
    for camera, given in zip([*views.cameras, views.source_camera], [*wanted, source], strict=True):
        expected = given.resize_and_crop(SIZE)
        assert (camera.width, camera.height) == (SIZE, SIZE)
        assert torch.equal(camera.intrinsics, expected.intrinsics)
        assert torch.equal(camera.world_to_camera, given.world_to_camera)  # still the targets' own world


def similarity(camera: Camera, scale: float, rotation: torch.Tensor, shift: torch.Tensor) -> Camera:
    """The camera in the world whose points are scale * rotation @ point + shift."""
    pose = camera.world_to_camera.double().clone()
    pose[:3, :3] = camera.rotation.double() @ rotation.mT
    pose[:3, 3] = scale * camera.translation.double() - pose[:3, :3] @ shift
    return Camera(camera.intrinsics, pose, camera.width, camera.height)


def test_the_world_the_cameras_are_given_in_does_not_matter(pipe: NovelViewPipeline, photo: Image.Image) -> None:
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))[0]
    rotation = rotation * torch.linalg.det(rotation)
    world = (37.0, rotation, torch.tensor([4e5, -5e6, 100.0], dtype=torch.float64))
    here = run(pipe, photo, TARGETS)
    elsewhere = [similarity(camera, *world) for camera in [CAMERA, *TARGETS]]
    there = run(pipe, photo, elsewhere[1:], source=elsewhere[0])
    assert_same(here.images, there.images)
    assert_same(here.coarse, there.coarse)
    torch.testing.assert_close(there.cameras[0].centre, elsewhere[1].centre, rtol=0, atol=1e-3)
    given = run(pipe, photo, elsewhere[1:], source=elsewhere[0], scale=1 / 37)
    assert_same(here.images, given.images)


def test_scale_and_source_left_out(pipe: NovelViewPipeline, photo: Image.Image) -> None:
    # Without a source: at the origin with the subject at distance 1, whatever the targets look at.
    far = orbit(CAMERA, 3, distance=4.0)
    views = run(pipe, photo, far)
    assert_same(views.images, run(pipe, photo, far, source=CAMERA, scale=1.0).images)
    torch.testing.assert_close(views.source_camera.world_to_camera, torch.eye(4))
    assert float(views.source_camera.fov) == pytest.approx(45, abs=0.01)
    # With one: the cameras' axes meet 4 ahead of it, which becomes 1.
    found = run(pipe, photo, far, source=CAMERA)
    assert_same(found.images, run(pipe, photo, far, source=CAMERA, scale=0.25).images)
    assert_same(found.images, run(pipe, photo, orbit(CAMERA, 3)).images)
    assert_differ(found.images[:1], views.images[:1])
    # Parallel axes say nothing of a scale.
    aside = [Camera(CAMERA.intrinsics, shifted(0.2), 24, SIZE)]
    assert_same(run(pipe, photo, aside, source=CAMERA).images, run(pipe, photo, aside, source=CAMERA, scale=1.0).images)


def shifted(x: float) -> torch.Tensor:
    pose = torch.eye(4)
    pose[0, 3] = -x
    return pose


def test_auto_takes_one_of_both_for_each_view(
    pipe: NovelViewPipeline, photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    single = {fusion: run(pipe, photo, TARGETS, fusion=fusion) for fusion in ("variance", "addition")}
    assert single["addition"].fusion == ["addition"] * 4
    views = run(pipe, photo, TARGETS, fusion="auto")
    for i, name in enumerate(views.fusion):
        assert_same(views.images[i : i + 1], single[name].images[i : i + 1])

    def tensors(images: list[Image.Image]) -> torch.Tensor:
        return torch.stack([to_tensor(image) for image in images])

    candidates = {name: tensors(result.images) for name, result in single.items()}
    assert views.fusion == choose(candidates, tensors(views.coarse), tensors([views.source]))

    seen: list[tuple[set[str], torch.Tensor, torch.Tensor]] = []

    def alternate(candidates: dict[str, torch.Tensor], coarse: torch.Tensor, reference: torch.Tensor) -> list[str]:
        seen.append((set(candidates), coarse, reference))
        return ["variance", "addition", "addition", "variance"]

    monkeypatch.setattr(sidestep.pipeline, "choose", alternate)
    mixed = run(pipe, photo, TARGETS, fusion="auto")
    assert mixed.fusion == ["variance", "addition", "addition", "variance"]
    for i, name in enumerate(mixed.fusion):
        assert_same(mixed.images[i : i + 1], single[name].images[i : i + 1])
    ((names, coarse, reference),) = seen
    assert names == {"variance", "addition"}
    torch.testing.assert_close(coarse, tensors(views.coarse), rtol=0, atol=0.01)
    torch.testing.assert_close(reference, to_tensor(resize_and_crop(photo, SIZE))[None])


def test_progress_comes_to_the_end_of_every_stage(pipe: NovelViewPipeline, photo: Image.Image) -> None:
    calls: list[tuple[str, int, int]] = []
    run(pipe, photo, TARGETS, fusion="auto", batch_size=3, progress=lambda *call: calls.append(call))
    stages: dict[str, list[tuple[int, int]]] = {}
    for stage, done, total in calls:
        stages.setdefault(stage, []).append((done, total))
    assert list(stages)[:2] == ["invert", "invert to the end"]
    totals = [INVERSION_STEPS, LATE_STEPS, 3, 3, 3, 3]  # and two chunks, each sampled for both ways of fusion
    assert list(stages.values()) == [[(i + 1, total) for i in range(total)] for total in totals]


def test_a_saved_pipeline_makes_the_same_pictures(pipe: NovelViewPipeline, photo: Image.Image, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "mine"
    pipe.save_pretrained(folder)
    names = ["model_index.json", "pipeline.py", "scheduler", "tunet", "unet", "vae"]
    assert sorted(path.name for path in folder.iterdir()) == names
    loaded = NovelViewPipeline.from_pretrained(folder, device="cpu", dtype=torch.float32)
    wanted, made = (run(p, photo, TARGETS, fusion="auto", category="table") for p in (pipe, loaded))
    assert_same(wanted.images, made.images)
    assert_same(wanted.coarse, made.coarse)


def test_saving_leaves_other_files_of_the_folder_alone(pipe: NovelViewPipeline, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    pipe.save_pretrained(tmp_path)
    pipe.save_pretrained(str(tmp_path))
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    names = ["model_index.json", "pipeline.py", "scheduler", "thesis.tex", "tunet", "unet", "vae"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_what_a_killed_save_left_is_gone_after_the_next(
    pipe: NovelViewPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, aside = tmp_path / "model", tmp_path / "aside"
    left: list[str] = []

    def kill(whole: str) -> None:
        left.append(Path(whole).name)
        Path(whole).rename(aside)  # where what is done at the end of a process that is not killed does not find it
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("sidestep.pipeline.write_index", kill)
        with pytest.raises(KeyboardInterrupt):
            pipe.save_pretrained(folder)
    aside.rename(folder / left[0])
    (folder / ".unet.0123abcd.part").mkdir()
    pipe.save_pretrained(folder)
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []
    assert NovelViewPipeline.from_pretrained(folder, device="cpu")


def test_tunet_alone_with_its_prior_elsewhere(pipe: NovelViewPipeline, photo: Image.Image, tmp_path: Path) -> None:
    tunet = make_tunet(prior_fingerprint=pipe.prior.fingerprint())
    tunet.save_pretrained(tmp_path / "alone" / "tunet")
    pipe.prior.save_pretrained(tmp_path / "prior")
    loaded = NovelViewPipeline.from_pretrained(
        tmp_path / "alone", prior=str(tmp_path / "prior"), device="cpu", dtype=torch.float32
    )
    wanted = NovelViewPipeline(tunet, pipe.vae, pipe.unet, pipe.scheduler)
    assert_same(run(wanted, photo).images, run(loaded, photo).images)

    torch.manual_seed(5)
    LatentPrior(make_vae(), unet(), SD).save_pretrained(tmp_path / "other")
    with pytest.raises(SidestepError, match=r"another prior than .*other"):
        NovelViewPipeline.from_pretrained(tmp_path / "alone", prior=str(tmp_path / "other"), device="cpu")
    with pytest.raises(SidestepError, match="alone"):
        NovelViewPipeline.from_pretrained(tmp_path / "alone", device="cpu")
    with pytest.raises(SidestepError, match="prior/tunet"):
        NovelViewPipeline.from_pretrained(tmp_path / "prior", device="cpu")


def test_parts_of_different_sizes_are_refused(pipe: NovelViewPipeline) -> None:
    with pytest.raises(SidestepError, match=r"4x16x16.*4x8x8"):
        NovelViewPipeline(make_tunet(sample_size=16), pipe.vae, pipe.unet, pipe.scheduler)


def test_weights_stored_in_half_precision(photo: Image.Image, tmp_path: Path) -> None:
    torch.manual_seed(0)
    prior = LatentPrior(make_vae(), unet(), SD).half()
    tunet = make_tunet(prior_fingerprint=prior.fingerprint())
    pipe = NovelViewPipeline(tunet.half(), prior.vae, prior.unet, prior.scheduler)
    pipe.save_pretrained(tmp_path)
    loaded = NovelViewPipeline.from_pretrained(tmp_path, device="cpu", dtype=torch.float32)
    assert loaded.tunet.dtype == loaded.unet.dtype == torch.float32
    pipe.to(torch.float32)
    assert_same(run(pipe, photo, TARGETS).images, run(loaded, photo, TARGETS).images)


def test_a_pipeline_loaded_and_saved_in_half_precision_loads_again(
    pipe: NovelViewPipeline, photo: Image.Image, tmp_path: Path
) -> None:
    tunet = make_tunet(prior_fingerprint=pipe.prior.fingerprint())
    NovelViewPipeline(tunet, pipe.vae, pipe.unet, pipe.scheduler).save_pretrained(tmp_path / "single")
    half = NovelViewPipeline.from_pretrained(tmp_path / "single", device="cpu", dtype=torch.float16)
    half.save_pretrained(tmp_path / "half")
    again = NovelViewPipeline.from_pretrained(tmp_path / "half", device="cpu", dtype=torch.float32)
    assert run(again, photo).images[0].size == (SIZE, SIZE)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_to_moves_every_network_and_the_pipeline_still_works(photo: Image.Image, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    pipe = NovelViewPipeline(make_tunet(), make_vae(), unet(), DDIMScheduler(**SD))
    before = run(pipe, photo, TARGETS, fusion="auto")
    assert pipe.to(dtype) is pipe
    assert {p.dtype for network in (pipe.unet, pipe.vae) for p in network.parameters()} == {dtype}
    # In half precision rays and cameras would lose what tells one target from the next.
    assert {p.dtype for p in pipe.tunet.parameters()} == {dtype if dtype == torch.float64 else torch.float32}
    after = run(pipe, photo, TARGETS, fusion="auto")
    # A random network multiplies what half precision loses, so that case shows no more than that it runs.
    assert np.abs(pixels(before.coarse) - pixels(after.coarse)).mean() <= (0.1 if dtype == torch.float64 else 8)
    if dtype == torch.float64:
        assert_same(before.images, after.images)


def test_to_another_device_moves_every_network(photo: Image.Image) -> None:
    pipe = NovelViewPipeline(make_tunet(), make_vae(), unet(), DDIMScheduler(**SD))
    assert pipe.device.type == "cpu"
    pipe.to("meta")
    networks = (pipe.tunet, pipe.unet, pipe.vae, pipe.prior)
    assert {p.device.type for network in networks for p in network.parameters()} == {"meta"}
    assert pipe.device.type == "meta"
    assert set(pipe.components) == {"tunet", *PARTS}


def test_cameras_in_double_precision_are_as_good(pipe: NovelViewPipeline, photo: Image.Image) -> None:
    double = [camera.to(dtype=torch.float64) for camera in TARGETS]
    assert_same(run(pipe, photo, TARGETS).images, run(pipe, photo, double, source=CAMERA).images)


def test_a_photo_may_be_a_file(pipe: NovelViewPipeline, photo: Image.Image, tmp_path: Path) -> None:
    photo.save(tmp_path / "photo.png")
    assert_same(run(pipe, photo).images, run(pipe, tmp_path / "photo.png").images)
    with pytest.raises(SidestepError, match=r"absent\.png"):
        run(pipe, tmp_path / "absent.png")


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"targets": []}, "one or more cameras"),
        ({"targets": CAMERA}, "list"),
        ({"category": "spoon"}, "spoon.*chair, table"),
        ({"fusion": "magic"}, "magic.*variance"),
        ({"prompt": "a red chair"}, "text encoder"),
        ({"negative_prompt": "blurry"}, "text encoder"),
        ({"guidance": -1.0}, "guidance is -1"),
        ({"guidance": math.nan}, "guidance is nan"),
        ({"source": Camera.from_fov(45, SIZE, 24)}, "24x16.*16x24"),
        ({"steps": 0}, "0 steps"),
        ({"steps": 2000}, "2000 steps"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"scale": -1.0}, "scaled by -1"),
        ({"settings": FusionSettings(sample_from=1500)}, "1500"),
    ],
    ids=str,
)
def test_what_is_refused(pipe: NovelViewPipeline, photo: Image.Image, options: dict[str, Any], fault: str) -> None:
    with pytest.raises(SidestepError, match=fault):
        run(pipe, photo, **options)


@pytest.fixture(scope="module")
def text_pipe(make_text_parts: Callable[..., Any]) -> NovelViewPipeline:
    torch.manual_seed(0)
    conditioned = UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 32), norm_num_groups=8, layers_per_block=1, cross_attention_dim=16,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=8,
    )  # fmt: skip
    return NovelViewPipeline(make_tunet(), make_vae(), conditioned, DDIMScheduler(**SD), *make_text_parts())


def test_a_prompt_acts_in_sampling_only(text_pipe: NovelViewPipeline, photo: Image.Image) -> None:
    batches: list[int] = []
    hook = text_pipe.unet.register_forward_hook(lambda module, inputs, output: batches.append(len(inputs[0])))
    try:
        plain = run(text_pipe, photo, TARGETS)
        assert batches == [1] * INVERSION_STEPS + [4] * 4  # one pass at a time where there is no prompt
        batches.clear()
        prompted = run(text_pipe, photo, TARGETS, prompt="zyx", guidance=30.0)
        assert batches == [1] * INVERSION_STEPS + [4] + [8] * 3
    finally:
        hook.remove()
    assert_same(plain.coarse, prompted.coarse)
    assert_differ(plain.images, prompted.images)
    assert_differ(prompted.images, run(text_pipe, photo, TARGETS, prompt="zyx", guidance=1.0).images)
    led_away = run(text_pipe, photo, TARGETS, prompt="zyx", negative_prompt="ab ab", guidance=30.0)
    assert_differ(prompted.images, led_away.images)
    assert_differ(plain.images, run(text_pipe, photo, TARGETS, negative_prompt="ab ab", guidance=30.0).images)


def test_guidance_is_off_at_one_and_less(text_pipe: NovelViewPipeline, photo: Image.Image) -> None:
    alone = run(text_pipe, photo, prompt="zyx", guidance=1.0)
    assert_differ(alone.images, run(text_pipe, photo).images)
    with pytest.warns(UserWarning, match="negative prompt does nothing at a guidance of 0,"):
        off = run(text_pipe, photo, prompt="zyx", negative_prompt="ab ab", guidance=0.0)
    assert_same(alone.images, off.images)


def test_a_pipeline_with_text_is_saved_whole(text_pipe: NovelViewPipeline, photo: Image.Image, tmp_path: Path) -> None:
    text_pipe.save_pretrained(tmp_path)
    loaded = NovelViewPipeline.from_pretrained(tmp_path, device="cpu", dtype=torch.float32)
    wanted, made = (run(p, photo, prompt="ab cd", guidance=30.0) for p in (text_pipe, loaded))
    assert_same(wanted.images, made.images)


def test_half_precision_where_networks_compute_in_bfloat16(
    pipe: NovelViewPipeline, photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = NovelViewPipeline(make_tunet(), make_vae(), unet(), DDIMScheduler(**SD)).to(torch.float16)
    monkeypatch.setattr(sidestep.devices, "network_dtype", lambda device: torch.bfloat16)
    reference = other.to(torch.float32).invert(photo)
    assert other.to(torch.float16).coarse(reference, TARGETS)[0].size == (SIZE, SIZE)


def test_a_photo_is_turned_as_its_exif_says(pipe: NovelViewPipeline, photo: Image.Image, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    path = tmp_path / "turned.png"
    photo.resize((24, 16)).save(path, exif=exif)
    assert_same([pipe.invert(path).image], [pipe.invert(Image.open(path)).image])


def test_a_seed_of_more_than_64_bits_is_refused(pipe: NovelViewPipeline, photo: Image.Image) -> None:
    with pytest.raises(SidestepError, match="64 bits"):
        pipe(photo, TARGETS, seed=2**64)


def test_a_variant_joins_the_weights_that_are_there(pipe: NovelViewPipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path)
    pipe.save_pretrained(tmp_path, variant="fp16")
    weights = {path.name for path in (tmp_path / "unet").glob("*.safetensors")}
    assert weights == {"diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"}
