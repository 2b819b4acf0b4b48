"""The making of a store of latents, with a miniature prior and scenes written for the test."""

import os
import pickle
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

import sidestep.encoding
from miniatures import SETTINGS, SHARDS, contents, encode, tiny_prior, write_scenes
from sidestep.cameras import distance_scale
from sidestep.captures import read_captures
from sidestep.captures.packing import pack_captures
from sidestep.encoding import encode_captures
from sidestep.errors import SidestepError
from sidestep.images import resize_and_crop, to_tensor
from sidestep.inversion import invert
from sidestep.latents import LatentStore
from sidestep.prior import LatentPrior

FIXTURES = Path(__file__).parent / "data" / "furniture"


def test_latents_are_those_of_a_direct_inversion_up_to_half_precision(whole, prior, scenes):
    store = LatentStore(whole)
    for stored in store.scenes:
        scene = next(scene for scene in scenes if scene.id == stored.id)
        pictures = torch.stack([to_tensor(resize_and_crop(frame.load(), 32)) for frame in scene.frames])
        direct = invert(prior, prior.encode(pictures), SETTINGS.grid, SETTINGS.timestep)
        order = [2, 0]
        read = store.latents(stored, order)
        assert read.mean.dtype == torch.float32
        torch.testing.assert_close(read.mean, direct.mean[order], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(read.noise, direct.noise[order], rtol=1e-3, atol=1e-3)
        assert torch.equal(store.mean(stored, 2), read.mean[0])
        assert torch.equal(store.latents(stored, 0).noise[0], read.noise[1])
        # The frames differ by far more than that, so a mixed-up row would be seen.
        assert (direct.mean[0] - direct.mean[2]).abs().mean() > 0.01


def test_cameras_follow_the_crop(whole, scenes):
    store = LatentStore(whole)
    points = torch.tensor([[0.1, -0.2, 1.2], [-0.3, 0.1, 0.9]])
    for stored in store.scenes:
        scene = next(scene for scene in scenes if scene.id == stored.id)
        cameras = store.cameras(stored)
        assert (cameras.width, cameras.height) == (32, 32)
        assert cameras.batch_shape == (len(scene.frames),)
        for index, frame in enumerate(scene.frames):
            before, depth = frame.camera.project(points)
            after, depth_after = cameras[index].project(points)
            # 60 × 48 becomes 40 × 32, of which the columns 4 to 36 stay.
            torch.testing.assert_close(after, before * (2 / 3) - torch.tensor([4.0, 0.0]), rtol=0, atol=1e-3)
            torch.testing.assert_close(depth_after, depth)


def test_distance_scales_put_the_subject_at_one(whole, scenes):
    store = LatentStore(whole)
    for stored in store.scenes:
        scene = next(scene for scene in scenes if scene.id == stored.id)
        scales = store.distance_scales(stored)
        cameras = store.cameras(stored)
        for index in range(len(scene.frames)):
            expected = distance_scale(cameras[index], cameras, scene.points)
            assert float(scales[index]) == pytest.approx(expected, rel=1e-6)
        if scene.points is None:  # the orbit's centre lies 1 + number units away
            number = scenes.index(scene)
            torch.testing.assert_close(scales, torch.full_like(scales, 1 / (1 + number)), rtol=1e-3, atol=0)


def test_encoding_again_encodes_nothing(store_copy, prior, scenes, monkeypatch):
    before = {path.name: path.stat().st_mtime_ns for path in store_copy.iterdir()}
    monkeypatch.setattr(LatentPrior, "encode", lambda *_: pytest.fail("encoded again"))
    encode(prior, scenes, store_copy)
    assert {path.name: path.stat().st_mtime_ns for path in store_copy.iterdir()} == before


def test_the_order_of_the_scenes_does_not_matter(prior, scenes, whole, tmp_path):
    encode(prior, scenes[::-1], tmp_path / "store")
    assert contents(tmp_path / "store") == contents(whole)


def test_progress_counts_the_frames(prior, scenes, tmp_path):
    told = []
    encode(prior, scenes, tmp_path / "store", progress=lambda done, total: told.append((done, total)))
    total = sum(len(scene.frames) for scene in scenes)
    assert len(told) == 1 + SHARDS
    assert told[0] == (0, total)
    assert told[-1] == (total, total)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


@pytest.mark.parametrize("length", [0, 5, 0.5, -1])
def test_a_truncated_shard_is_noticed_and_made_anew(store_copy, prior, scenes, whole, length, caplog):
    shard = store_copy / "shard-00001.safetensors"
    data = shard.read_bytes()
    shard.write_bytes(data[: int(length * len(data)) if isinstance(length, float) else length])
    with pytest.raises(SidestepError, match=f"{shard}: damaged .*encode"):
        LatentStore(store_copy)
    encode(prior, scenes, store_copy)
    assert contents(store_copy) == contents(whole)
    assert f"{shard}: damaged" in caplog.text
    assert caplog.text.count("making it anew") == 1
    assert "delete" not in caplog.text


def test_an_incomplete_store_is_refused(store_copy, prior, scenes, whole):
    (store_copy / "shard-00002.safetensors").unlink()
    with pytest.raises(SidestepError, match=f"{store_copy}: incomplete, shard 3 of 3 is missing.*encode"):
        LatentStore(store_copy)
    encode(prior, scenes, store_copy)
    assert contents(store_copy) == contents(whole)


def fewer_frames(scenes):
    return [replace(scenes[0], frames=scenes[0].frames[1:]), *scenes[1:]]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"settings": replace(SETTINGS, t_star=500)}, r"another t star \(600, not 500\)"),
        ({"settings": replace(SETTINGS, steps=5)}, r"another steps \(3, not 5\)"),
        ({"settings": replace(SETTINGS, timestep="current")}, r"another timestep \('next', not 'current'\)"),
        ({"settings": replace(SETTINGS, start=1)}, r"another start \(0, not 1\)"),
        ({"prior": tiny_prior(seed=1)}, "another prior"),
        ({"scenes": lambda scenes: scenes[1:]}, "another set of scenes"),
        ({"scenes": fewer_frames}, "another set of scenes"),
        ({"scenes": lambda scenes: [replace(scenes[0], category="bed"), *scenes[1:]]}, "another set of scenes"),
    ],
)
def test_a_store_of_something_else_is_refused_and_kept(store_copy, prior, scenes, whole, change, told):
    used = change.get("scenes", lambda scenes: scenes)(scenes)
    with pytest.raises(SidestepError, match=f"^{store_copy}: holds latents of {told}.*another folder"):
        encode(change.get("prior", prior), used, store_copy, change.get("settings", SETTINGS))
    assert contents(store_copy) == contents(whole)


def test_two_first_runs_with_different_settings_do_not_mix(prior, scenes, whole, tmp_path, monkeypatch):
    out, plans = tmp_path / "store", []
    read = sidestep.encoding.read_plan

    def read_plan(folder):
        plan = read(folder)
        plans.append(plan)
        if len(plans) == 2:  # this run has seen no store, and will write one
            encode(prior, scenes, out)
        return plan

    monkeypatch.setattr(sidestep.encoding, "read_plan", read_plan)
    with pytest.raises(SidestepError, match=rf"^{out}: holds latents of another t star \(600, not 500\)"):
        encode(prior, scenes, out, replace(SETTINGS, t_star=500))
    assert plans[:2] == [None, None]
    assert contents(out) == contents(whole)


def test_a_whole_shard_of_another_store_is_not_overwritten(store_copy, prior, scenes, tmp_path):
    other = tmp_path / "other"
    encode(prior, scenes, other, replace(SETTINGS, t_star=500))
    shard = store_copy / "shard-00001.safetensors"
    shard.write_bytes((other / shard.name).read_bytes())
    before = contents(store_copy)
    for work in (lambda: encode(prior, scenes, store_copy), lambda: LatentStore(store_copy)):
        with pytest.raises(SidestepError, match=f"^{shard}: of a store of other scenes, .*another folder"):
            work()
    assert contents(store_copy) == before


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_latents_that_half_precision_cannot_hold_are_not_stored(prior, scenes, tmp_path, monkeypatch, value):
    encoded = LatentPrior.encode

    def encode_some(self, images):
        latents = encoded(self, images)
        latents[-1, 0, 3, 4] = value
        return latents

    monkeypatch.setattr(LatentPrior, "encode", encode_some)
    scene = sorted(scenes, key=lambda scene: scene.id)[0]
    told = rf"^{scene.frames[1].path}: its latents hold numbers .*too large for half precision \(\d of \d+ frames"
    with pytest.raises(SidestepError, match=told):
        encode(prior, scenes, tmp_path / "store")
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["store.json"]


def test_a_prior_that_moved_is_the_same_prior(store_copy, prior, scenes):
    encode(prior, scenes, store_copy, prior_name="elsewhere")


def test_the_bundled_prior_is_not_taken_for_a_folder_of_its_name(prior, scenes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bundled").mkdir()
    assert encode(prior, scenes[2:3], tmp_path / "store", prior_name="bundled").prior == "bundled"


def test_two_scenes_of_one_name_are_refused(prior, scenes, tmp_path):
    with pytest.raises(SidestepError, match="lamp is there twice"):
        encode(prior, [*scenes, scenes[2]], tmp_path / "store")


def test_a_damaged_photo_is_named_and_encoding_goes_on_once_it_is_mended(prior, tmp_path, whole):
    (tmp_path / "photos").mkdir()
    scenes = write_scenes(tmp_path / "photos")
    photo = scenes[0].frames[0].path  # in the last shard
    data = photo.read_bytes()
    photo.write_bytes(data[:200])
    with pytest.raises(SidestepError, match=str(photo)):
        encode(prior, scenes, tmp_path / "store")
    assert (tmp_path / "store" / "shard-00001.safetensors").exists()
    photo.write_bytes(data)
    encode(prior, scenes, tmp_path / "store")
    assert contents(tmp_path / "store") == contents(whole)


def test_what_killed_writers_left_is_deleted(store_copy, prior, scenes, whole):
    (store_copy / "shard-00001.safetensors").unlink()
    for name in (".store.0a.part.json", ".shard-00000.0b.part.safetensors", ".shard-00001.0c.part.safetensors"):
        (store_copy / name).write_bytes(b"half")
    encode(prior, scenes, store_copy)
    assert {path.name: path.read_bytes() for path in store_copy.iterdir()} == contents(whole)


def test_a_shard_that_two_make_at_once_is_as_if_one_had(prior, scenes, whole, tmp_path, monkeypatch):
    out, others = tmp_path / "store", []
    save = safetensors.torch.save_file

    def save_file(tensors, path, **options):
        save(tensors, path, **options)
        if not others:
            others.append(path)
            encode(prior, scenes, out)  # all of it, while the first shard has not got its name yet

    monkeypatch.setattr("safetensors.torch.save_file", save_file)
    encode(prior, scenes, out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == contents(whole)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_shard_that_this_user_may_not_read_is_not_made_anew(prior, scenes, whole):
    with tempfile.TemporaryDirectory() as folder:  # pytest's own may be entered by their owner alone
        os.chmod(folder, 0o755)
        store = Path(folder)
        for name, data in contents(whole).items():
            (store / name).write_bytes(data)
        shard = store / "shard-00001.safetensors"
        shard.chmod(0)
        told = rf"{shard}: cannot be read \(Permission denied\); have its owner allow it"
        user = os.geteuid()
        try:
            if user == 0:  # who may read all files
                os.seteuid(65534)
            with pytest.raises(SidestepError, match=told):
                LatentStore(store)
            with pytest.raises(SidestepError, match=told):
                encode(prior, scenes, store)
        finally:
            os.seteuid(user)


def test_parts_that_are_put_together_are_the_store(prior, scenes, whole, tmp_path):
    joined = tmp_path / "joined"
    joined.mkdir()
    counted = []
    for number in (1, 2):
        out = tmp_path / f"part{number}"
        options = {"prior_name": "tiny", "scenes_per_shard": 2, "part": (number, 2)}
        frames = encode_captures(
            prior, scenes, out, SETTINGS, batch_size=2, progress=lambda *told: counted.append(told), **options
        )
        assert counted[-1] == (frames, frames)
        with pytest.raises(SidestepError, match="incomplete"):
            LatentStore(out)
        for path in out.iterdir():
            (joined / path.name).write_bytes(path.read_bytes())
    assert contents(joined) == contents(whole)
    LatentStore(joined)
    for part in ((0, 2), (3, 2)):
        with pytest.raises(SidestepError, match=rf"part {part[0]}/2: give parts as 1/2 to 2/2"):
            encode(prior, scenes, tmp_path / "none", part=part)


def test_scenes_reach_other_processes_from_a_folder_and_from_a_pack(prior, scenes, whole, tmp_path):
    pack_captures(scenes, tmp_path / "pack")
    for number, kind in enumerate((scenes, read_captures(tmp_path / "pack"))):
        out = tmp_path / f"store{number}"
        encode(prior, pickle.loads(pickle.dumps(kind)), out)
        assert contents(out) == contents(whole)


def test_captured_scenes_are_encoded(prior, tmp_path):
    scene = next(scene for scene in read_captures(FIXTURES) if scene.points is not None)
    scene = replace(scene, frames=scene.frames[::6])
    store = encode(prior, [scene], tmp_path / "store")
    (stored,) = store.scenes
    assert stored.id == scene.id
    cameras = store.cameras(stored)
    points = scene.points
    for index in range(len(stored.frames)):
        scaled = cameras[index].scaled(store.distance_scales(stored)[index])
        pixels, depth = scaled.project(points * store.distance_scales(stored)[index])
        seen = (depth > 0) & (pixels >= 0).all(-1) & (pixels <= 32).all(-1)
        assert float(depth[seen].median()) == pytest.approx(1, rel=1e-4)
    assert store.latents(stored, range(len(stored.frames))).mean.isfinite().all()
