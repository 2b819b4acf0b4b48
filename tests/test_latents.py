"""Reading a store of latents."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from sidestep.cameras import Camera, elevations
from sidestep.captures import Scene
from sidestep.errors import SidestepError
from sidestep.latents import LatentStore
from sidestep.prior import LatentPrior

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(Path(__file__).parent)
    from miniatures import SETTINGS, contents, encode, tiny_prior, write_scenes


@pytest.fixture(scope="module")
def prior() -> LatentPrior:
    return tiny_prior()


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> list[Scene]:
    return write_scenes(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def whole(prior, scenes, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("stores") / "whole"
    encode(prior, scenes, out)
    return out


@pytest.fixture
def store_copy(whole, tmp_path) -> Path:
    folder = tmp_path / "store"
    folder.mkdir()
    for name, data in contents(whole).items():
        (folder / name).write_bytes(data)
    return folder


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
        others = {name: file.get_tensor(name) for name in file.keys() if name != "mean"}  # noqa: SIM118
    rows = 2**29 // (4 * 16 * 16)
    sizes = {"mean": ("F16", [rows, 4, 16, 16], 2**30)}
    for name, tensor in others.items():
        kind = "F16" if tensor.dtype == torch.float16 else "F32"
        sizes[name] = (kind, list(tensor.shape), tensor.numel() * tensor.element_size())
    header, offset = {"__metadata__": metadata}, 0
    for name, (kind, shape, size) in sizes.items():
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with shard.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    store = LatentStore(store_copy)
    assert float(store.mean(store.scenes[0], 1).abs().max()) == 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # in KiB
