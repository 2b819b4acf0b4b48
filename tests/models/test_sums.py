"""Weights beside their SHA-256: written by whatever writes a model, and compared by whatever reads one."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sidestep import NovelViewPipeline
from sidestep.errors import SidestepError
from sidestep.models import BUNDLED, model_folder
from sidestep.models.sums import SUMS, check_sums, read_sums, write_sums
from sidestep.prior import LatentPrior, copy_prior
from sidestep.verification import verify

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def model(make_tiny_pipeline: Callable[..., NovelViewPipeline], tmp_path: Path) -> Path:
    make_tiny_pipeline().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def flip_a_bit(path: Path) -> None:
    """Of the last number but some, so that the file stays one that safetensors reads."""
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)


def load(model: Path) -> NovelViewPipeline:
    return NovelViewPipeline.from_pretrained(model, device="cpu", dtype=torch.float32)


@pytest.mark.parametrize("part", ["tunet", "unet", "vae"])
def test_a_flipped_bit_is_found_before_a_view_is_made(model: Path, part: str) -> None:
    load(model)
    flip_a_bit(model / part / WEIGHTS)
    with pytest.raises(SidestepError, match=rf"{part}/{WEIGHTS}: does not match its checksum .* fetch or copy"):
        load(model)
    (model / part / SUMS).unlink()  # as the message says
    load(model)


def test_the_sums_are_those_of_the_usual_program(model: Path) -> None:
    program = shutil.which("sha256sum")
    if program is None:
        pytest.skip("no sha256sum here")
    for part in ("tunet", "unet", "vae"):
        subprocess.run([program, "--check", "--strict", SUMS], cwd=model / part, check=True, capture_output=True)
        written = subprocess.run([program, "--binary", WEIGHTS], cwd=model / part, capture_output=True, text=True)
        ours = read_sums(model / part / SUMS)
        (model / part / SUMS).write_text(written.stdout)
        assert read_sums(model / part / SUMS) == ours


@pytest.mark.parametrize("files", ["*", "./*", "./*.safetensors"])
def test_sums_of_more_than_the_weights_are_read(model: Path, files: str) -> None:
    program = shutil.which("sha256sum")
    if program is None:
        pytest.skip("no sha256sum here")
    ours = read_sums(model / "unet" / SUMS)
    (model / "unet" / SUMS).unlink()
    subprocess.run(f"{program} {files} > {SUMS}", shell=True, cwd=model / "unet", check=True)
    assert read_sums(model / "unet" / SUMS) == ours
    flip_a_bit(model / "unet" / WEIGHTS)
    with pytest.raises(SidestepError, match="does not match its checksum"):
        check_sums(model / "unet")


def test_copies_of_a_prior_have_sums_whether_or_not_it_had(model: Path, tmp_path: Path) -> None:
    (model / "vae" / SUMS).unlink()
    copy_prior(model, tmp_path / "copy")
    LatentPrior.from_pretrained(model, "cpu").save_pretrained(tmp_path / "saved")
    for folder in (tmp_path / "copy", tmp_path / "saved"):
        flip_a_bit(folder / "vae" / WEIGHTS)
        with pytest.raises(SidestepError, match="does not match its checksum"):
            LatentPrior.from_pretrained(folder, "cpu")
    flip_a_bit(model / "unet" / WEIGHTS)
    with pytest.raises(SidestepError, match=r"unet/.*does not match its checksum"):
        copy_prior(model, tmp_path / "another")
    assert not (tmp_path / "another" / "unet").exists()


def test_a_variant_joins_weights_only_if_these_are_whole(
    make_tiny_pipeline: Callable[..., NovelViewPipeline], model: Path
) -> None:
    make_tiny_pipeline().save_pretrained(model, variant="fp16")
    assert read_sums(model / "unet" / SUMS).keys() == {WEIGHTS, "diffusion_pytorch_model.fp16.safetensors"}
    flip_a_bit(model / "unet" / WEIGHTS)
    with pytest.raises(SidestepError, match="does not match its checksum"):
        make_tiny_pipeline().save_pretrained(model, variant="fp16")


def test_what_is_not_listed_or_not_there_is_not_compared(tmp_path: Path) -> None:
    check_sums(tmp_path)
    check_sums(tmp_path / "nothing")
    write_sums(tmp_path)
    assert not (tmp_path / SUMS).exists()
    for name in ("a", "b"):
        save_file({"x": torch.zeros(100)}, tmp_path / f"{name}.safetensors")
    write_sums(tmp_path)
    (tmp_path / "a.safetensors").unlink()
    save_file({"x": torch.ones(100)}, tmp_path / "c.safetensors")
    check_sums(tmp_path)


@pytest.mark.parametrize("line", [f"{'0' * 63}  a.safetensors", f"{'0' * 64}  ../a.safetensors", "nonsense", "\0"])
def test_damaged_sums_are_refused_and_lead_nowhere_else(tmp_path: Path, line: str) -> None:
    (tmp_path / SUMS).write_text(f"{line}\n")
    with pytest.raises(SidestepError, match=f"{SUMS}: not what sha256sum writes"):
        check_sums(tmp_path)


def test_verifying_a_model_names_its_damaged_weights(model: Path) -> None:
    assert (verify(model).files, verify(model).faults) == (3, [])
    flip_a_bit(model / "vae" / WEIGHTS)
    (fault,) = verify(model).faults
    assert fault.startswith(f"{model}/vae/{WEIGHTS}: does not match its checksum")


def test_the_bundled_weights_all_have_sums() -> None:
    weights = list(Path(model_folder(BUNDLED)).rglob("*.safetensors"))
    assert len(weights) == 3
    for path in weights:
        assert path.name in read_sums(path.with_name(SUMS))
        check_sums(path.parent)
