"""What users of diffusers expect of a pipeline: loading, the hub, devices, replaced parts, callbacks, progress."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import accelerate
import accelerate.hooks
import huggingface_hub
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import dynamic_modules_utils
from huggingface_hub.utils import filter_repo_objects
from PIL import Image

import sidestep.devices
import sidestep.prior
from sidestep import Camera, FusionSettings, NovelViewPipeline, SidestepError, Views, orbit
from sidestep.models import BUNDLED, model_folder
from sidestep.models.index import INDEX, PIPELINE_FILE, TUNET_FILE, write_index

SIZE = 16
TARGETS = orbit(Camera.from_fov(45, SIZE, SIZE), 3)
PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8))


@pytest.fixture(autouse=True)
def _quiet_and_alone(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Single precision, and no code copied into the home of whoever runs the tests."""
    monkeypatch.setattr(sidestep.devices, "network_dtype", lambda device: torch.float32)
    monkeypatch.setattr(sidestep.prior, "network_dtype", lambda device: torch.float32)
    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path_factory.getbasetemp() / "modules"))


@pytest.fixture
def pipe(make_tiny_pipeline: Callable[..., NovelViewPipeline]) -> NovelViewPipeline:
    pipe = make_tiny_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(pipe: Any, **options: Any) -> Views:
    return pipe(PHOTO, TARGETS, **{"steps": 3, **options})


def difference(one: Views, other: Views) -> int:
    first, second = (np.stack([np.asarray(image, np.int16) for image in views.images]) for views in (one, other))
    return int(np.abs(first - second).max())


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# Loading


@pytest.mark.parametrize("named", [False, True], ids=["by its index", "by custom_pipeline"])
def test_diffusers_loads_what_was_saved(pipe: NovelViewPipeline, tmp_path: Path, named: bool) -> None:
    pipe.save_pretrained(tmp_path)
    options = {"custom_pipeline": str(tmp_path)} if named else {}
    loaded = DiffusionPipeline.from_pretrained(tmp_path, trust_remote_code=True, **options)
    assert type(loaded) is NovelViewPipeline
    assert difference(run(loaded, progress=lambda *step: None), run(pipe)) <= 1
    # And what it saves again is the same model, that names no path of this machine.
    loaded.save_pretrained(tmp_path / "again")
    again = NovelViewPipeline.from_pretrained(tmp_path / "again", device="cpu")
    assert difference(run(again, progress=lambda *step: None), run(pipe)) <= 1
    texts = [path.read_text() for path in (tmp_path / "again").rglob("*.json")]
    assert not any(str(tmp_path) in text for text in texts)


def test_diffusers_runs_no_code_of_a_folder_that_is_not_trusted(pipe: NovelViewPipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path)
    (tmp_path / PIPELINE_FILE).write_text("raise SystemExit('this ran')")
    with pytest.raises(ValueError, match="trust_remote_code"):
        DiffusionPipeline.from_pretrained(tmp_path)
    assert NovelViewPipeline.from_pretrained(tmp_path, device="cpu")  # never runs it


def test_diffusers_loads_a_folder_as_training_leaves_it(pipe: NovelViewPipeline, tmp_path: Path) -> None:
    pipe.prior.save_pretrained(tmp_path)
    pipe.tunet.save_pretrained(tmp_path / "tunet")
    write_index(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(tmp_path, trust_remote_code=True)
    assert difference(run(loaded, progress=lambda *step: None), run(pipe)) <= 1


def test_the_bundled_folder_is_what_saving_it_would_write(tmp_path: Path) -> None:
    bundled = Path(model_folder(BUNDLED))
    shutil.copytree(bundled, tmp_path / "copy", ignore=shutil.ignore_patterns("*.safetensors", "*.py", INDEX))
    write_index(tmp_path / "copy")
    for name in (PIPELINE_FILE, TUNET_FILE):
        assert (tmp_path / "copy" / name).read_text() == (bundled / name).read_text()
    written, kept = (json.loads((folder / INDEX).read_text()) for folder in (tmp_path / "copy", bundled))
    assert written | {"_diffusers_version": ""} == kept | {"_diffusers_version": ""}


def test_variants(pipe: NovelViewPipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path, variant="fp16")
    assert {Path(name).name for name in files(tmp_path) if name.endswith("safetensors")} == {
        "diffusion_pytorch_model.fp16.safetensors"
    }
    loaded = NovelViewPipeline.from_pretrained(tmp_path, variant="fp16", torch_dtype=torch.float64, device="cpu")
    assert (loaded.unet.dtype, loaded.vae.dtype, loaded.tunet.dtype) == (torch.float64, torch.float64, torch.float32)
    with pytest.raises(SidestepError, match="unet cannot be loaded"):
        NovelViewPipeline.from_pretrained(tmp_path, device="cpu")


def test_weights_are_never_pickled(pipe: NovelViewPipeline, tmp_path: Path) -> None:
    with pytest.raises(SidestepError, match="safetensors"):
        pipe.save_pretrained(tmp_path / "model", safe_serialization=False)
    pipe.save_pretrained(tmp_path / "model", safe_serialization=True)
    pipe.tunet.save_pretrained(tmp_path / "model" / "tunet", safe_serialization=False)
    (tmp_path / "model" / "tunet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(SidestepError, match="tunet cannot be loaded"):
        NovelViewPipeline.from_pretrained(tmp_path / "model", device="cpu")


# The hub


class Hub:
    """The part of huggingface_hub that pushing calls; what is uploaded lies in `root`, one folder a repository."""

    def __init__(self, root: Path) -> None:
        self.root, self.calls = root, list[dict[str, Any]]()

    def create_repo(self, repo_id: str, **options: Any) -> SimpleNamespace:
        full = repo_id if "/" in repo_id else f"me/{repo_id}"
        (self.root / full).mkdir(parents=True, exist_ok=True)
        self.calls.append(options)
        return SimpleNamespace(repo_id=full)

    def file_exists(self, repo_id: str, filename: str, **options: Any) -> bool:
        return (self.root / repo_id / filename).is_file()

    def upload_folder(self, repo_id: str, folder_path: Path, allow_patterns: list[str], **options: Any) -> str:
        for name in filter_repo_objects(files(Path(folder_path)), allow_patterns=allow_patterns):
            (self.root / repo_id / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(Path(folder_path) / name, self.root / repo_id / name)
        self.calls.append(options)
        return f"commit on {repo_id}"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub(tmp_path / "hub")
    for name in ("create_repo", "file_exists", "upload_folder"):
        monkeypatch.setattr(huggingface_hub, name, getattr(hub, name))
    return hub


WHOLE = [
    "README.md",
    "model_index.json",
    "pipeline.py",
    "scheduler/scheduler_config.json",
    "tunet/SHA256SUMS",
    "tunet/config.json",
    "tunet/diffusion_pytorch_model.safetensors",
    "tunet/tunet.py",
    "unet/SHA256SUMS",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/SHA256SUMS",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
]


def test_pushing_uploads_the_whole_model_with_a_card(pipe: NovelViewPipeline, hub: Hub) -> None:
    assert pipe.push_to_hub("me/chairs", private=True, token="secret", commit_message="Chairs") == "commit on me/chairs"
    assert files(hub.root / "me/chairs") == WHOLE
    index = json.loads((hub.root / "me/chairs" / INDEX).read_text())
    code = [f"{index['_class_name'][0]}.py", f"tunet/{index['tunet'][0]}.py"]  # where diffusers looks for it
    assert set(code) <= set(WHOLE)
    assert hub.calls == [
        {"private": True, "token": "secret", "exist_ok": True},
        {"token": "secret", "commit_message": "Chairs", "create_pr": False},
    ]
    card = huggingface_hub.ModelCard.load(hub.root / "me/chairs/README.md")
    assert card.data.library_name == "diffusers"
    assert 'from_pretrained("me/chairs"' in card.text
    loaded = NovelViewPipeline.from_pretrained(hub.root / "me/chairs", device="cpu")
    assert difference(run(loaded, progress=lambda *step: None), run(pipe)) <= 1


def test_saving_may_push_too_and_uploads_nothing_else(pipe: NovelViewPipeline, hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "tables"
    folder.mkdir()
    (folder / "secrets.txt").write_text("not for the hub")
    (folder / "README.md").write_text("# My tables\n")
    pipe.save_pretrained(folder, push_to_hub=True)
    assert files(hub.root / "me/tables") == WHOLE  # named after the folder
    assert (hub.root / "me/tables/README.md").read_text() == "# My tables\n"


def test_a_card_on_the_hub_stays(pipe: NovelViewPipeline, hub: Hub, tmp_path: Path) -> None:
    (hub.root / "me/chairs").mkdir(parents=True)
    (hub.root / "me/chairs/README.md").write_text("# Written with care\n")
    pipe.push_to_hub("me/chairs")
    assert (hub.root / "me/chairs/README.md").read_text() == "# Written with care\n"
    assert files(hub.root / "me/chairs") == WHOLE


def test_a_model_of_the_hub_loads_from_its_cache(pipe: NovelViewPipeline, tmp_path: Path) -> None:
    """Laid out as huggingface_hub keeps what it has downloaded, so that nothing is fetched."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--me--chairs"
    pipe.save_pretrained(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "second").write_text(commit)
    where: dict[str, Any] = {"cache_dir": tmp_path, "local_files_only": True}
    loaded = NovelViewPipeline.from_pretrained("me/chairs", revision="second", device="cpu", **where)
    assert difference(run(loaded, progress=lambda *step: None), run(pipe)) <= 1
    with pytest.raises(SidestepError, match="me/chairs"):
        NovelViewPipeline.from_pretrained("me/chairs", device="cpu", **where)  # the main revision is not there
    # A TUNet of one's own on a prior of the hub: the revision is the prior's.
    pipe.tunet.save_pretrained(tmp_path / "own" / "tunet")
    own = NovelViewPipeline.from_pretrained(
        tmp_path / "own", prior="me/chairs", revision="second", device="cpu", **where
    )
    assert difference(run(own, progress=lambda *step: None), run(pipe)) <= 1


# Parts and devices


@pytest.mark.parametrize("name", ["vae", "unet", "scheduler", "tunet"])
def test_a_replaced_part_is_used(
    pipe: NovelViewPipeline, make_tiny_pipeline: Callable[..., NovelViewPipeline], name: str
) -> None:
    before = run(pipe)
    part = getattr(make_tiny_pipeline(seed=7), name)
    if name == "scheduler":
        part = type(part)(beta_schedule="linear")
    setattr(pipe, name, part)
    assert difference(before, run(pipe)) > 1
    assert getattr(pipe, name) is part


@pytest.mark.parametrize("name", ["vae", "unet"])
def test_a_compiled_part_is_used(pipe: NovelViewPipeline, tmp_path: Path, name: str) -> None:
    """In the wrapper that torch.compile puts round it, here without the minutes of compiling."""
    before, fingerprint = run(pipe), pipe.prior.fingerprint()
    setattr(pipe, name, torch.compile(getattr(pipe, name)))
    assert type(getattr(pipe.prior, name)).__name__ == "OptimizedModule"
    with torch.compiler.set_stance("force_eager"):
        assert difference(before, run(pipe)) <= 1
    assert pipe.prior.fingerprint() == fingerprint
    pipe.save_pretrained(tmp_path)
    loaded = NovelViewPipeline.from_pretrained(tmp_path, device="cpu")
    assert difference(before, run(loaded, progress=lambda *step: None)) <= 1


def test_a_replaced_part_that_does_not_fit_is_refused(
    pipe: NovelViewPipeline, make_tiny_pipeline: Callable[..., NovelViewPipeline]
) -> None:
    kept = pipe.prior
    assert pipe.prior is kept  # and with it what it has computed
    pipe.tunet = type(pipe.tunet)(**{**pipe.tunet.config, "sample_size": 16})
    with pytest.raises(SidestepError, match="do not belong together"):
        run(pipe)


def test_offloading_by_model_brings_every_network_where_it_computes(
    pipe: NovelViewPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine without an accelerator: the hooks are there, every call runs into them, pictures stay the same."""
    before = run(pipe)
    brought: list[str] = []
    original = accelerate.hooks.CpuOffload.pre_forward

    def pre_forward(hook: Any, module: Any, *inputs: Any, **options: Any) -> Any:
        name = next(name for name, part in pipe.components.items() if part is module)
        if brought[-1:] != [name]:
            brought.append(name)
        return original(hook, module, *inputs, **options)

    monkeypatch.setattr(accelerate.hooks.CpuOffload, "pre_forward", pre_forward)
    pipe.enable_model_cpu_offload(device="cpu")
    after = run(pipe)
    # encode, invert, translate, decode the coarse views, fuse and sample, decode
    assert brought == ["vae", "unet", "tunet", "vae", "unet", "vae"]
    assert difference(before, after) == 0
    networks = {"tunet", "unet", "vae"}
    assert {name for name in networks if hasattr(getattr(pipe, name), "_hf_hook")} == networks


def test_offloading_layer_by_layer_keeps_no_weights_on_the_device(pipe: NovelViewPipeline) -> None:
    before = run(pipe, fusion="auto")
    # What pipe.enable_sequential_cpu_offload() does; it calls the device cpu:0 here, which accelerate cannot take.
    networks = (pipe.tunet, pipe.unet, pipe.vae)
    for network in networks:
        accelerate.cpu_offload(network, torch.device("cpu"), offload_buffers=len(network._parameters) > 0)
    weights = [weight for network in networks for weight in network.parameters()]
    assert all(weight.is_meta for weight in weights)  # they lie elsewhere, and come when a layer asks
    assert difference(before, run(pipe, fusion="auto")) == 0
    reference = pipe.invert(PHOTO)
    assert len(pipe.coarse(reference, TARGETS)) == 3


def test_a_sliced_autoencoder_makes_the_same_pictures(pipe: NovelViewPipeline) -> None:
    before = run(pipe)
    pipe.vae.enable_slicing()
    assert difference(before, run(pipe)) <= 1


@pytest.mark.gpu
@pytest.mark.parametrize("way", ["to", "model", "sequential", "group"])
def test_on_a_gpu(pipe: NovelViewPipeline, way: str) -> None:
    before = run(pipe)
    if way == "to":
        assert pipe.to("cuda") is pipe
        assert {p.device.type for p in pipe.prior.parameters()} == {"cuda"}
    elif way == "model":
        pipe.enable_model_cpu_offload()
    elif way == "sequential":
        pipe.enable_sequential_cpu_offload()
    else:
        pipe.enable_group_offload(torch.device("cuda"), offload_type="leaf_level")
    after = run(pipe)
    pictures = [np.stack([np.asarray(image, np.int16) for image in views.images]) for views in (before, after)]
    assert np.abs(pictures[0] - pictures[1]).mean() < 4  # a random network multiplies what other kernels round
    if way in ("model", "sequential"):
        weights = [weight for part in (pipe.tunet, pipe.unet, pipe.vae) for weight in part.parameters()]
        assert {weight.device.type for weight in weights} == {"cpu" if way == "model" else "meta"}


# Callbacks and progress


def test_a_callback_reads_and_replaces_the_latents(pipe: NovelViewPipeline) -> None:
    seen: list[tuple[int, int, torch.Size]] = []

    def read(pipeline: NovelViewPipeline, step: int, timestep: int, given: dict[str, torch.Tensor]) -> dict:
        assert pipeline is pipe
        seen.append((step, timestep, given["latents"].shape))
        return {}

    before = run(pipe)
    assert difference(run(pipe, callback_on_step_end=read, batch_size=2), before) <= 1
    steps = [(0, 600), (1, 400), (2, 200)]
    assert seen == [(*step, torch.Size([count, 4, 8, 8])) for count in (2, 1) for step in steps]

    def blank(pipeline: Any, step: int, timestep: int, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"latents": torch.zeros_like(given["latents"])}

    blanked = run(pipe, callback_on_step_end=blank)
    first, *others = (np.asarray(image) for image in blanked.images)
    assert all(np.array_equal(first, other) for other in others)
    assert difference(blanked, before) > 1

    given_nothing: list[dict] = []
    run(
        pipe,
        callback_on_step_end=lambda pipeline, step, timestep, given: given_nothing.append(given),
        callback_on_step_end_tensor_inputs=[],
    )
    assert given_nothing == [{}] * 3
    with pytest.raises(SidestepError, match="no prompt_embeds"):
        run(pipe, callback_on_step_end=read, callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"])


def test_a_callback_may_end_the_call(pipe: NovelViewPipeline) -> None:
    asked: list[int] = []
    pipe.unet.register_forward_hook(lambda module, inputs, output: asked.append(len(inputs[0])))

    def stop(pipeline: NovelViewPipeline, step: int, timestep: int, given: dict) -> dict:
        pipeline._interrupt = step == 1
        return given

    views = run(pipe, steps=50, batch_size=2, callback_on_step_end=stop)
    assert pipe.interrupt
    assert asked[-2:] == [2, 2]  # two steps of the first batch
    assert len(asked) == 4 + 1 + 2  # the inversion, the fusion of the first batch, and these
    assert len(views.images) == len(views.coarse) == len(views.cameras) == len(views.fusion) == 2
    assert len(run(pipe).images) == 3  # the next call is not interrupted


def test_a_generator_draws_the_noise(pipe: NovelViewPipeline) -> None:
    drawn = FusionSettings(noise="gaussian")
    by_seed = run(pipe, settings=drawn, seed=3)
    assert difference(by_seed, run(pipe, settings=drawn, generator=torch.Generator().manual_seed(3))) == 0
    assert difference(by_seed, run(pipe, settings=drawn, generator=torch.Generator().manual_seed(4))) > 1


def test_progress_is_shown_once(
    make_tiny_pipeline: Callable[..., NovelViewPipeline], capsys: pytest.CaptureFixture[str]
) -> None:
    pipe = make_tiny_pipeline()
    run(pipe, batch_size=2)
    shown = capsys.readouterr().err
    for stage in ("invert: 100%.* 4/4", "sample 1-2 of 3, variance: 100%.* 3/3", "sample 3-3 of 3, variance: 100%"):
        assert re.search(stage, shown), shown
    stages: list[str] = []
    run(pipe, progress=lambda stage, done, total: stages.append(stage))
    assert stages
    assert capsys.readouterr().err == ""  # the caller shows it
    pipe.set_progress_bar_config(disable=True)
    run(pipe)
    assert capsys.readouterr().err == ""
