"""Reading a store of latents."""

import json
import random
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from miniatures import SETTINGS, SHARDS
from sidestep import latents
from sidestep.cameras import Camera, elevations
from sidestep.checksums import DIGEST, ROWS, with_checksums
from sidestep.errors import SidestepError
from sidestep.latents import TENSORS, LatentStore, find_damage


def test_the_store_says_what_it_was_made_of(whole, prior, scenes):
    store = LatentStore(whole)
    assert store.settings == SETTINGS
    assert store.prior == "tiny"
    assert store.prior_fingerprint == prior.fingerprint()
    assert store.alpha_star == float(prior.alphas_cumprod[600])
    assert store.image_size == 32
    assert [scene.id for scene in store.scenes] == ["bed/bed", "chair/chair3", "lamp", "sofa/room7", "sofa/room7s2"]
    for stored in store.scenes:
        scene = next(scene for scene in scenes if scene.id == stored.id)
        assert (stored.category, stored.model) == (scene.category, scene.model)
        assert stored.frames == tuple(frame.name for frame in scene.frames)
        cameras = Camera.stack([frame.camera for frame in scene.frames])
        assert stored.elevation == pytest.approx(float(elevations(cameras).median()))


def test_a_frame_that_the_scene_does_not_have_is_not_taken_from_its_neighbour(whole):
    store = LatentStore(whole)
    first, second = store.scenes[:2]
    with pytest.raises(IndexError):
        store.mean(second, -1)
    with pytest.raises(IndexError):
        store.mean(first, len(first.frames))
    with pytest.raises(IndexError):
        store.latents(first, [0, len(first.frames)])


def test_what_is_no_store_is_refused_by_name(tmp_path, store_copy):
    with pytest.raises(SidestepError, match=f"{tmp_path}: no store"):
        LatentStore(tmp_path)
    plan = store_copy / "store.json"
    text = plan.read_text()
    for broken in ("", "{", "[]", "{}"):
        plan.write_text(broken)
        with pytest.raises(SidestepError, match=f"{plan}: damaged"):
            LatentStore(store_copy)
    plan.write_text(json.dumps({**json.loads(text), "format": 99}))
    with pytest.raises(SidestepError, match=f"{plan}: format 99"):
        LatentStore(store_copy)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss has another unit elsewhere")
def test_reading_a_row_does_not_read_the_shard(store_copy):
    """One shard is given a mean of 1 GiB, a file with a hole: reading a row of it must not take that memory."""
    import resource

    shard = store_copy / "shard-00000.safetensors"
    with safe_open(shard, framework="pt") as file:
        metadata = file.metadata()
        others = {name: file.get_tensor(name) for name in TENSORS if name != "mean"}
    rows = 2**29 // (4 * 16 * 16)
    zeros = torch.zeros(1, 4, 16, 16, dtype=torch.float16)
    row = with_checksums({"mean": zeros}, {}, ["mean"])[ROWS + "mean"]
    tensors = {**others, "mean": zeros.expand(rows, 4, 16, 16), ROWS + "mean": row.expand(rows).contiguous()}
    # What the mean is does not matter to the digest, whose rows have checksums of their own.
    tensors[DIGEST] = with_checksums(tensors, metadata)[DIGEST]
    kinds = {torch.float16: "F16", torch.float32: "F32", torch.int64: "I64", torch.uint8: "U8"}
    header, data = {"__metadata__": metadata}, []
    offset = 0
    for name in sorted(tensors, key=lambda name: name == "mean"):  # the hole is the end
        tensor = tensors[name]
        size = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": kinds[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, offset + size]
        }  # fmt: skip
        offset += size
        if name != "mean":
            data.append(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with shard.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text + b"".join(data))
        file.truncate(8 + len(text) + offset)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    store = LatentStore(store_copy)
    assert float(store.mean(store.scenes[0], 1).abs().max()) == 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # in KiB


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def read_all(folder: Path) -> list[torch.Tensor]:
    store = LatentStore(folder)
    return [store.rows(name, scene, range(len(scene.frames))) for scene in store.scenes for name in TENSORS]


def test_no_flipped_bit_of_a_shard_is_read_as_good(store_copy, whole):
    shard = store_copy / "shard-00001.safetensors"
    data, good = shard.read_bytes(), read_all(whole)
    header = 8 + int.from_bytes(data[:8], "little")
    rng = random.Random(0)
    for start, end in 60 * [(0, header), (header, len(data))]:
        shard.write_bytes(data)
        flip(shard, rng.randrange(8 * start, 8 * end))
        with suppress(SidestepError):
            found = read_all(store_copy)
            # White space between the header and the numbers.
            assert start == 0
            assert all(map(torch.equal, found, good))


def test_a_flipped_bit_of_a_latent_is_named_by_its_frame_and_by_a_look_at_the_whole(store_copy, whole):
    store = LatentStore(store_copy)
    scene = store.scenes[2]
    shard = store_copy / "shard-00001.safetensors"
    with safe_open(shard, framework="pt") as file:
        row = file.get_tensor("noise")[1].numpy().tobytes()
    flip(shard, 8 * (shard.read_bytes().index(row) + 77))
    store = LatentStore(store_copy)  # whose rows are looked at when they are read
    assert torch.equal(store.mean(scene, 1), LatentStore(whole).mean(scene, 1))
    store.latents(scene, [0, 2])
    frame = f"the noise of {scene.frames[1]} of scene {scene.id}"
    with pytest.raises(
        SidestepError, match=rf"^{shard}: damaged \({frame}\); delete it and run `sidestep encode` again"
    ):
        store.latents(scene, [0, 1])
    (store_copy / "shard-00002.safetensors").unlink()
    told = []
    size, without, faults = find_damage(store_copy, lambda *counts: told.append(counts))
    assert told == [(done, SHARDS) for done in (1, 2, 3)]
    assert without == 0
    assert size == sum(path.stat().st_size for path in store_copy.glob("shard-*"))
    assert [fault.split(";")[0] for fault in faults] == [
        f"{shard}: damaged (the noise in row 1)", f"{store_copy}: incomplete, shard 3 of 3 is missing",
    ]  # fmt: skip
    assert find_damage(whole) == (sum(path.stat().st_size for path in whole.glob("shard-*")), 0, [])


def test_a_store_of_millions_of_frames_is_opened(store_copy):
    with (store_copy / "store.json").open("a") as file:
        file.write(" " * 2**26)
    assert len(LatentStore(store_copy).scenes) > 0


def test_a_store_that_somebody_else_may_not_read_is_not_to_be_deleted(store_copy, monkeypatch):
    def refuse(path, most):
        raise SidestepError(f"{path}: cannot be read (Permission denied)")

    monkeypatch.setattr(latents, "read_bytes", refuse)  # root may read everything
    with pytest.raises(SidestepError, match=r"store\.json: cannot be read \(Permission denied\)$"):
        LatentStore(store_copy)


def test_a_shard_of_an_earlier_version_is_read(store_copy, whole):
    for shard in store_copy.glob("shard-*"):
        with safe_open(shard, framework="pt") as file:
            tensors = {name: file.get_tensor(name).clone() for name in TENSORS}
            metadata = file.metadata()
        save_file(tensors, shard, metadata=metadata)
    assert all(map(torch.equal, read_all(store_copy), read_all(whole)))
