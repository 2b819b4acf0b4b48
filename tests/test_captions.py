"""Captions by a miniature BLIP, and what becomes of them: from `sidestep view --caption` to the picture."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from string import ascii_lowercase
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import sidestep.captions
import sidestep.devices
from sidestep.captions import BLIP, BLIP_REVISION, caption
from sidestep.errors import SidestepError
from sidestep.pipeline import NovelViewPipeline
from sidestep.prior import LatentPrior

transformers = pytest.importorskip("transformers")

# Captions of what no sentence says: letters, which are words of both models' vocabularies.
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = list(ascii_lowercase)


@pytest.fixture(autouse=True)
def _no_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sidestep.devices, "network_dtype", lambda device: torch.float32)


def save_blip(folder: Path) -> Path:
    """A captioning model of random weights, large enough that a caption depends on the photo."""
    vocabulary = folder.with_name("vocab.txt")
    vocabulary.write_text("\n".join([*SPECIAL, *LETTERS]) + "\n")
    tokenizer = transformers.BertTokenizer(str(vocabulary))
    words = len(SPECIAL) + len(LETTERS)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    # As in the real model, the token that starts a caption comes after the tokenizer's last.
    ends = {"vocab_size": words + 2, "bos_token_id": words, "eos_token_id": 2, "sep_token_id": 3, "pad_token_id": 0}
    torch.manual_seed(0)
    blip = transformers.BlipForConditionalGeneration(
        transformers.BlipConfig(
            text_config={**size, **ends, "max_position_embeddings": 32, "initializer_range": 1.0},
            vision_config={**size, "image_size": 32, "patch_size": 8, "initializer_range": 0.5},
        )
    )
    blip.save_pretrained(folder)
    pixels = transformers.BlipImageProcessor(size={"height": 32, "width": 32})
    transformers.BlipProcessor(pixels, tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_blip(tmp_path_factory.mktemp("captioner") / "blip")


@pytest.fixture
def own_blip(tmp_path: Path) -> Path:
    return save_blip(tmp_path / "blip")


def pattern(seed: int, width: int = 40) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((40, 40)).crop(((40 - width) // 2, 0, (40 + width) // 2, 40))


def test_a_caption_is_words_about_the_photo(blip: Path, tmp_path: Path) -> None:
    captions = [caption(pattern(seed), blip, "cpu") for seed in range(4)]
    assert len(set(captions)) == 4
    for told in captions:
        assert told
        assert set(told.split()) <= set(LETTERS)
        assert len(told.split()) <= 20
    pattern(1).save(tmp_path / "photo.png")
    assert caption(tmp_path / "photo.png", str(blip)) == captions[1]


def test_only_the_square_that_the_pipeline_sees_is_described(blip: Path) -> None:
    square = pattern(0)
    for size in ((60, 40), (40, 60)):
        wide = Image.new("RGB", size, (255, 0, 0))
        wide.paste(square, ((size[0] - 40) // 2, (size[1] - 40) // 2))
        assert caption(wide, blip) == caption(square, blip)
    assert caption(square.convert("L").convert("RGBA"), blip) == caption(square.convert("L"), blip)


class Bomb:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("exploded"),)


def test_weights_in_a_pickle_are_refused_unread(
    own_blip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (own_blip / "model.safetensors").unlink()
    (own_blip / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Bomb()}))
    with pytest.raises(SidestepError, match=r"blip: BLIP cannot be loaded .*model\.safetensors.*hf download"):
        caption(pattern(0), own_blip)
    assert not Path("exploded").exists()


def drop_a_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["text_decoder.bert.encoder.layer.0.crossattention.self.query.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def answer_questions(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["BlipForQuestionAnswering"]}))


def cut_short(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (drop_a_weight, "1 of BLIP's weights are missing"),
        (answer_questions, "BlipForQuestionAnswering"),
        (cut_short, "BLIP cannot be loaded"),
        (lambda folder: (folder / "config.json").unlink(), "BLIP cannot be loaded"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "knows 5 of BLIP's 33 tokens"),
    ],
    ids=["missing", "questions", "cut", "config", "tokenizer"],
)
def test_a_folder_that_is_no_whole_captioner_is_refused(own_blip: Path, damage: Any, fault: str) -> None:
    damage(own_blip)
    with pytest.raises(SidestepError) as error:
        caption(pattern(0), own_blip)
    told = str(error.value)
    assert fault in told
    assert str(own_blip) in told
    assert f"hf download {BLIP} --revision {BLIP_REVISION}" in told
    assert "\n" not in told


def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", lambda *_, **__: pytest.fail("asked the hub"))
    for name in ("blip", "./models/blip", "/models/blip", "models/my/blip"):
        with pytest.raises(SidestepError, match=f"{name}: no such folder; .*hf download"):
            caption(pattern(0), name)


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a download of the default model lies, for a machine without network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / f"models--{BLIP.replace('/', '--')}"


def write_as_in_2023(folder: Path) -> None:
    """The files that the hub's model has: other names, a bare size, and settings of generation among the network's."""
    pixels = json.loads((folder / "processor_config.json").read_text())["image_processor"]
    pixels = {
        key: pixels[key] for key in ("do_normalize", "do_resize", "image_mean", "image_std", "image_processor_type")
    }
    pixels.update({"processor_class": "BlipProcessor", "size": 32})
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels))
    (folder / "vocab.txt").write_text("\n".join([*SPECIAL, *LETTERS]) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps({"sep_token": "[SEP]", "unk_token": "[UNK]"}))
    for name in ("processor_config.json", "generation_config.json", "tokenizer.json"):
        (folder / name).unlink()
    config = json.loads((folder / "config.json").read_text())
    old = {"_name_or_path": "", "add_cross_attention": False, "do_sample": False, "early_stopping": False}
    config["text_config"].update({**old, "max_length": 20, "num_beams": 1, "id2label": {"0": "LABEL_0"}, "top_k": 50})
    (folder / "config.json").write_text(json.dumps({**config, "_commit_hash": "3007fbe", "torch_dtype": "float32"}))


def test_the_default_model_is_the_hubs_commit_that_has_safetensors(own_blip: Path, hub_cache: Path) -> None:
    told = caption(pattern(0), own_blip)
    write_as_in_2023(own_blip)
    (hub_cache / "snapshots").mkdir(parents=True)
    (hub_cache / "refs").mkdir()
    (hub_cache / "refs" / "main").write_text("0" * 40)
    (hub_cache / "snapshots" / BLIP_REVISION).symlink_to(own_blip)
    assert caption(pattern(0)) == told


def test_a_hub_that_cannot_be_reached_is_told_with_what_to_do(hub_cache: Path) -> None:
    with pytest.raises(SidestepError, match=rf"{BLIP}: BLIP cannot be loaded \(.*; `hf download {BLIP} .*folder"):
        caption(pattern(0))


@pytest.fixture(scope="module")
def model(
    miniatures: ModuleType, make_text_parts: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A pipeline that takes prompts of 24 letters at most."""
    folder = tmp_path_factory.mktemp("prompts") / "model"
    miniatures.reading(miniatures.tiny_pipeline(), *make_text_parts(length=26)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def wordless(miniatures: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline whose prior has no text encoder, as the bundled one."""
    folder = tmp_path_factory.mktemp("wordless")
    miniatures.tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pattern(1).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def view(sidestep: Callable[..., int], photo: Path) -> Any:
    """Runs `sidestep view photo ...`: the picture, or the exit code where there is none."""

    def run(model: Path, *options: Any) -> Any:
        out = photo.with_name("view.png")
        own = ("--out", out, "--yaw", 20, "--steps", 3, "--device", "cpu", "--model", model)
        code = sidestep("view", photo, *own, *options)
        return code or np.asarray(Image.open(out), dtype=int)

    return run


def same(one: np.ndarray, other: np.ndarray) -> bool:
    return int(np.abs(one - other).max()) <= 1  # a value on the edge between two levels


def test_the_caption_guides_the_view_and_is_reported(
    view: Any, model: Path, blip: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strong = ("--guidance", 30)
    told = caption(photo, blip)
    captioned = view(model, "--caption", blip, *strong, "--json")
    assert json.loads(capsys.readouterr().out)["caption"] == told
    assert same(captioned, view(model, "--prompt", told, *strong))
    plain = view(model, *strong)
    assert "caption:" not in capsys.readouterr().out
    assert not same(captioned, plain)

    edited = view(model, "--caption", blip, "--prompt", "k {caption} k", *strong)
    assert f"caption: {told}\n" in capsys.readouterr().out
    assert same(edited, view(model, "--prompt", f"k {told} k", *strong))
    assert not same(edited, captioned)

    for others in (("--negative-prompt", "j v j", *strong), ("--guidance", 1)):
        assert not same(captioned, view(model, "--caption", blip, *others))


def test_auto_is_the_base_model(view: Any, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(sidestep.captions, "caption", lambda photo, model, device: asked.append(model) or "q q")
    assert same(view(model, "--caption", "auto"), view(model, "--prompt", "q q"))
    assert asked == [BLIP]


def test_what_a_long_prompt_loses_is_told(
    view: Any, model: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    view(model, "--prompt", " ".join("q" * 24 + "xyz"))
    told = capsys.readouterr().err + caplog.text  # pytest may stand between the log and the terminal
    assert "27 tokens, 24 are read; not read: 'x y z'" in told


@pytest.mark.parametrize("words", ["--caption", "--prompt", "--negative-prompt"])
def test_a_prior_without_text_is_told_before_any_work(
    view: Any, wordless: Path, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sidestep.captions, "caption", lambda *_: pytest.fail("described the photo"))
    monkeypatch.setattr(LatentPrior, "encode", lambda *_: pytest.fail("encoded the photo"))
    assert view(wordless, words, "auto") == 1
    told = capsys.readouterr().err
    assert told.startswith("error: this prior has no text encoder")
    assert "Stable Diffusion 1.4, 1.5, 2.1" in told
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (("--caption", "auto", "--prompt", "a red chair"), "write {caption} in it"),
        (("--prompt", "{caption}, in red"), "add --caption auto"),
    ],
)
def test_a_caption_and_a_prompt_that_do_not_meet_are_refused(
    view: Any, options: tuple[str, ...], fault: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(NovelViewPipeline, "from_pretrained", lambda *_, **__: pytest.fail("loaded a model"))
    assert view(Path("any"), *options) == 1
    assert fault in capsys.readouterr().err
