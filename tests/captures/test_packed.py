"""Packs: what comes out of one is what went in, wherever it lies, and what is not one is refused.

Run as a script, this file packs in processes that are killed: `test_packed.py CAPTURES OUT`.
"""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath, PureWindowsPath
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from sidestep.cameras import Camera
from sidestep.captures import Frame, Scene, packed, packing, read_captures
from sidestep.captures.co3d import HalfDepth
from sidestep.captures.maps import Alpha, read_depth, write_depth, write_mask
from sidestep.captures.packed import Slice
from sidestep.captures.packing import pack_captures
from sidestep.captures.storage import Storage
from sidestep.captures.streaming import stream_frames, stream_scenes
from sidestep.checksums import DIGEST, with_checksums
from sidestep.errors import SidestepError

FRAMES_PER_SHARD = 5
SHARDS = 3


@pytest.fixture(scope="module")
def captures(tmp_path_factory: pytest.TempPathFactory, furniture: Path) -> Path:
    """Three scenes that have, among them, all that a scene can have."""
    root = tmp_path_factory.mktemp("captures")
    scene = root / "chair" / "bent.1"
    rng = np.random.default_rng(0)
    (scene / "images" / "sub").mkdir(parents=True)
    names = ["IMG.0001.jpg", "IMG.0002.jpg", "turned.jpg", "sub/3.png", "sub/3.JPG", "gone.jpg"]
    for name in names[:-1]:
        turned = Image.Exif()
        turned[0x0112] = 6
        size = (48, 64, 3) if name != "turned.jpg" else (64, 48, 3)
        picture = Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8))
        options = {"exif": turned} if name == "turned.jpg" else {}
        picture.save(scene / "images" / name, **options)
    frames = [{"file_path": f"images/{name}", "transform_matrix": _pose(i)} for i, name in enumerate(names)]
    write_mask(scene / "masks" / "a.png", torch.rand(48, 64) > 0.5)
    write_depth(scene / "depths" / "b.png", torch.rand(48, 64) * 5)
    frames[1] |= {"mask_path": "masks/a.png", "depth_file_path": "depths/b.png"}
    lens = {"w": 64, "h": 48, "fl_x": 61.7, "fl_y": 60.3, "cx": 31.3, "k1": -0.05, "p2": 0.001}
    (scene / "transforms.json").write_text(json.dumps(lens | {"frames": frames}), encoding="utf-8")
    frames = [{"file_path": f"images/{i}.png", "transform_matrix": _pose(i)} for i in range(4)]
    for name in ("plain", "Ünïcode scene"):
        (root / "sofa" / name / "images").mkdir(parents=True)
        for i in range(4):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(root / f"sofa/{name}/images/{i}.png")
        given = {"camera_angle_x": 0.7, "frames": frames}
        (root / "sofa" / name / "transforms.json").write_text(json.dumps(given), encoding="utf-8")
    sparse = Path("sofa/scopia076/sparse")
    shutil.copytree(furniture / sparse.parent / "images", root / "table" / "points" / "images")
    shutil.copytree(furniture / sparse, root / "table" / "points" / "sparse")
    for photo in sorted((root / "table" / "points" / "images").iterdir())[7:]:
        photo.unlink()
    return root


def _pose(index: int) -> list[list[float]]:
    angle = 0.1 * index
    c, s = float(np.cos(angle)), float(np.sin(angle))
    return [[c, 0.0, s, 3 * s], [0.0, 1.0, 0.0, 0.2], [-s, 0.0, c, 3 * c], [0.0, 0.0, 0.0, 1.0]]


@pytest.fixture(scope="module")
def scenes(captures: Path) -> list[Scene]:
    with pytest.warns(UserWarning, match="missing"):
        return read_captures(captures)


@pytest.fixture(scope="module")
def whole(scenes: list[Scene], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packs") / "whole"
    pack(scenes, out)
    return out


@pytest.fixture
def pack_copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "pack"))


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    """An S3 server on the loopback with a bucket "captures", found as a user's would be: by the environment."""
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "anyone")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "anything")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem.clear_instance_cache()
        system = s3fs.S3FileSystem()
        system.mkdir("captures", acl="public-read")
        yield system
        s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture(scope="module")
def s3_pack(scenes: list[Scene], s3: Any) -> str:
    url = "s3://captures/sets/pack"
    with pytest.raises(SidestepError, match=f"{url}: no pack"):
        read_captures(url)
    pack(scenes, url)
    return url


@pytest.fixture
def memory() -> Iterator[str]:
    from fsspec.implementations.memory import MemoryFileSystem

    yield "memory://captures/pack"
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


def pack(scenes: list[Scene], out: Path | str, **options: Any) -> None:
    pack_captures(scenes, out, **{"frames_per_shard": FRAMES_PER_SHARD, **options})


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a pack; a hidden leftover of a killed run is none of them."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if not path.name.startswith(".")}


def check_frames_equal(frames: tuple[Frame, ...], others: tuple[Frame, ...]) -> None:
    for frame, other in zip(frames, others, strict=True):
        assert frame.name == other.name
        for name in ("intrinsics", "world_to_camera"):
            assert torch.equal(getattr(frame.camera, name), getattr(other.camera, name))
        assert (frame.camera.width, frame.camera.height) == (other.camera.width, other.camera.height)
        assert frame.path.read_bytes() == other.path.read_bytes()
        assert np.array_equal(np.asarray(frame.load()), np.asarray(other.load()))
        for one, two in ((frame.load_mask(), other.load_mask()), (frame.load_depth(), other.load_depth())):
            assert (one is None) == (two is None)
            assert one is None or torch.equal(one, two)


def check_equal(scenes: list[Scene], others: list[Scene]) -> None:
    assert [scene.id for scene in scenes] == [scene.id for scene in others]
    for scene, other in zip(scenes, others, strict=True):
        assert (scene.name, scene.category, scene.missing) == (other.name, other.category, other.missing)
        assert (scene.points is None) == (other.points is None)
        assert scene.points is None or torch.equal(scene.points, other.points)
        check_frames_equal(scene.frames, other.frames)


def test_the_captures_have_all_that_a_scene_can_have(scenes: list[Scene]) -> None:
    frames = [frame for scene in scenes for frame in scene.frames]
    assert any(scene.missing for scene in scenes)
    assert {scene.points is None for scene in scenes} == {True, False}
    assert {frame.lens is None for frame in frames} == {True, False}
    assert {frame.mask is None for frame in frames} == {True, False}
    assert {frame.depth is None for frame in frames} == {True, False}
    assert "turned.jpg" in {frame.name for frame in frames}


def test_a_pack_holds_the_scenes_of_the_folder(whole: Path, scenes: list[Scene]) -> None:
    check_equal(read_captures(whole), scenes)
    assert len(list(whole.glob("*.tar"))) == SHARDS


def test_a_pack_in_memory_and_at_a_file_url(scenes: list[Scene], whole: Path, memory: str) -> None:
    pack(scenes, memory)
    check_equal(read_captures(memory), scenes)
    check_equal(read_captures(Path(memory)), scenes)  # as the command line's paths are
    check_equal(list(stream_scenes(memory)), scenes)
    check_equal(read_captures(f"file://{whole}"), scenes)


@pytest.mark.parametrize("url", ["s3://bucket/captures", "simplecache::s3://bucket/captures", "https://host:80/a"])
def test_a_url_survives_a_path_on_any_system(url: str) -> None:
    assert str(Storage.at(PurePosixPath(url))) == str(Storage.at(PureWindowsPath(url))) == url


def test_a_cache_keeps_files_of_a_pack_for_the_next_run(
    scenes: list[Scene], memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsspec.config import conf
    from fsspec.implementations.cached import SimpleCacheFileSystem
    from fsspec.implementations.memory import MemoryFileSystem

    # As FSSPEC_SIMPLECACHE does, which fsspec reads once.
    monkeypatch.setitem(conf, "simplecache", {"cache_storage": str(tmp_path / "kept")})
    pack(scenes, memory)
    check_equal(list(stream_scenes(f"simplecache::{memory}")), scenes)
    SimpleCacheFileSystem.clear_instance_cache()
    for path in MemoryFileSystem().glob("/captures/pack/*.tar"):
        MemoryFileSystem().rm(path)
    check_equal(list(stream_scenes(f"simplecache::{memory}")), scenes)


def test_a_pack_in_an_object_store(scenes: list[Scene], whole: Path, s3: Any, s3_pack: str) -> None:
    stored = {Path(path).name: s3.cat_file(path) for path in s3.ls("captures/sets/pack", detail=False)}
    assert stored == contents(whole)
    check_equal(list(stream_scenes(s3_pack)), scenes)
    check_equal(read_captures(Path(s3_pack))[:1], scenes[:1])


def test_an_object_store_is_asked_for_one_photo_not_for_a_shard(s3: Any, s3_pack: str, scenes: list[Scene]) -> None:
    photo = read_captures(s3_pack)[-1].frames[2].path
    assert isinstance(photo, Slice)
    shard = f"captures/sets/pack/{photo.shard}"
    data = s3.cat_file(shard)
    end = photo.start + photo.size
    s3.pipe_file(shard, b"x" * photo.start + data[photo.start : end] + b"x" * (len(data) - end))
    assert photo.read_bytes() == scenes[-1].frames[2].path.read_bytes()
    s3.pipe_file(shard, data)


def test_a_pack_on_a_web_server(scenes: list[Scene], s3: Any, s3_pack: str) -> None:
    for path in s3.ls("captures/sets/pack", detail=False):
        s3.chmod(path, "public-read")
    url = f"{os.environ['AWS_ENDPOINT_URL']}/captures/sets/pack"
    check_equal(list(stream_scenes(url)), scenes)
    check_equal(read_captures(url)[:1], scenes[:1])


def test_a_web_server_that_cannot_send_parts_is_named(whole: Path) -> None:
    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(whole))

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        read = read_captures(url)
        with pytest.raises(SidestepError, match=r"shard-00000\.tar: the server sends whole files only"):
            read[0].frames[0].load()
        with pytest.raises(SidestepError, match=r"shard-00000\.tar: cannot be read .*range requests"):
            list(stream_scenes(url))
    finally:
        server.shutdown()
        server.server_close()


def test_a_store_that_cannot_be_reached_is_one_line(s3: Any, tmp_path: Path) -> None:
    with pytest.raises(SidestepError, match="s3://absent/pack: no pack"):
        read_captures("s3://absent/pack")
    with pytest.raises(SidestepError, match=r"s3://absent/pack/pack\.json: cannot be written"):
        pack([_scene("a", tmp_path)], "s3://absent/pack")
    with pytest.raises(SidestepError, match=r"nosuch://a/pack\.json: cannot be read"):
        read_captures("nosuch://a")


def test_the_same_scenes_give_the_same_bytes(whole: Path, scenes: list[Scene], tmp_path: Path) -> None:
    pack(scenes, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(whole)
    before = {path.name: path.stat().st_mtime_ns for path in whole.glob("shard-*")}
    pack(scenes, whole)
    assert {path.name: path.stat().st_mtime_ns for path in whole.glob("shard-*")} == before


def test_a_pack_is_packed_into_another(whole: Path, scenes: list[Scene], tmp_path: Path) -> None:
    pack(read_captures(whole), tmp_path / "other", frames_per_shard=1000)
    check_equal(read_captures(tmp_path / "other"), scenes)
    pack(scenes, tmp_path / "direct", frames_per_shard=1000)
    shards = [(tmp_path / name / "shard-00000.tar").read_bytes() for name in ("other", "direct")]
    assert shards[0] == shards[1]


def test_checksums_are_those_of_the_files(whole: Path) -> None:
    import hashlib

    lines = (whole / "SHA256SUMS").read_text(encoding="ascii").splitlines()
    named = {name: digest for digest, name in (line.split("  ") for line in lines)}
    assert named == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in whole.glob("shard-*")}


def test_other_programs_read_the_shards_with_webdataset_alone(whole: Path, scenes: list[Scene]) -> None:
    import webdataset

    shards = webdataset.WebDataset(sorted(map(str, whole.glob("*.tar"))), shardshuffle=False)
    samples = list(shards.decode("pil", only=["jpg", "png", "mask.png", "json"]))
    frames = [(scene, frame) for scene in scenes for frame in scene.frames]
    assert len(samples) == len(frames)
    for sample, (scene, frame) in zip(samples, frames, strict=True):
        assert sample["json"]["scene"] == scene.id
        assert sample["json"]["name"] == frame.name
        assert sample["json"]["intrinsics"] == frame.camera.intrinsics.tolist()
        assert sample["json"]["world_to_camera"] == frame.camera.world_to_camera.tolist()
        assert sample["__key__"].startswith(f"{scene.id}/")
        assert ("mask.png" in sample, "depth.png" in sample) == (frame.mask is not None, frame.depth is not None)
        if frame.depth is not None:
            thousandths = np.asarray(Image.open(io.BytesIO(sample["depth.png"])))
            assert np.array_equal(thousandths * np.float32(1e-3), read_depth(frame.depth))
        picture = sample.get("jpg", sample.get("png"))
        with Image.open(frame.path) as photo:
            assert np.array_equal(np.asarray(picture), np.asarray(photo.convert("RGB")))


def test_a_shard_is_an_ordinary_tar_of_no_date_and_nobodys(whole: Path) -> None:
    with tarfile.open(whole / "shard-00000.tar") as tar:
        members = tar.getmembers()
    assert {(member.mtime, member.uid, member.gid, member.uname, member.gname) for member in members} == {
        (0, 0, 0, "", "")
    }
    names = [member.name for member in members]
    assert len(set(names)) == len(names)
    assert not any(name.startswith(("/", "..")) for name in names)


def test_a_photo_is_never_called_what_another_program_would_unpickle(tmp_path: Path) -> None:
    scene = _scene("a", tmp_path)
    path = tmp_path / "photo.pkl"
    path.write_bytes(scene.frames[0].path.read_bytes())
    pack([replace(scene, frames=(replace(scene.frames[0], path=path),))], tmp_path / "pack")
    with tarfile.open(tmp_path / "pack" / "shard-00000.tar") as tar:
        assert tar.getnames() == ["a/0.img", "a/0.json"]


def test_shards_are_streamed_in_another_order_by_another_seed(whole: Path, scenes: list[Scene]) -> None:
    in_order = [scene.id for scene in scenes]
    orders = {tuple(scene.id for scene in stream_scenes(whole, seed)) for seed in range(4)}
    assert len(orders) > 1
    assert all(sorted(order) == sorted(in_order) for order in orders)


def test_shards_are_streamed_in_another_order_each_time(whole: Path, scenes: list[Scene]) -> None:
    in_order = [scene.id for scene in scenes]
    one, other, plain = stream_scenes(whole, 0), stream_scenes(whole, 0), stream_scenes(whole)
    epochs = [[scene.id for scene in one] for _ in range(4)]
    assert len(set(map(tuple, epochs))) > 1
    assert all(sorted(epoch) == sorted(in_order) for epoch in epochs)
    assert [[scene.id for scene in other] for _ in range(4)] == epochs  # as in another process
    assert [[scene.id for scene in plain] for _ in range(2)] == [in_order] * 2


def test_streamed_frames_are_those_of_the_folder(whole: Path, scenes: list[Scene]) -> None:
    streamed = list(stream_frames(whole))
    assert [name for name, _ in streamed] == [scene.id for scene in scenes for _ in scene.frames]
    check_frames_equal(
        tuple(frame for _, frame in streamed), tuple(frame for scene in scenes for frame in scene.frames)
    )


def test_workers_and_nodes_share_the_shards(whole: Path, scenes: list[Scene], monkeypatch: pytest.MonkeyPatch) -> None:
    frames = [(scene.id, frame.name) for scene in scenes for frame in scene.frames]
    loader = torch.utils.data.DataLoader(
        stream_frames(whole, 0), batch_size=None, num_workers=2, persistent_workers=True, collate_fn=_same
    )
    epochs = [[(name, frame.name) for name, frame in loader] for _ in range(3)]
    assert all(sorted(epoch) == sorted(frames) for epoch in epochs)
    assert len(set(map(tuple, epochs))) > 1
    shares = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        shares.append([(name, frame.name) for name, frame in stream_frames(whole)])
    assert all(shares)
    assert sorted(shares[0] + shares[1]) == sorted(frames)


def _same(item: Any) -> Any:
    return item


@pytest.mark.slow
def test_encoding_a_pack_gives_the_store_of_the_folder(
    whole: Path, scenes: list[Scene], tmp_path: Path, make_tiny_pipeline: Callable[..., Any]
) -> None:
    from sidestep.encoding import encode_captures
    from sidestep.inversion import InversionSettings

    prior = make_tiny_pipeline().prior
    for name, data in (("folder", scenes), ("pack", read_captures(whole))):
        few = [replace(scene, frames=scene.frames[:2]) for scene in data]
        encode_captures(prior, few, tmp_path / name, InversionSettings(600, 2), prior_name="tiny")
    assert contents(tmp_path / "pack") == contents(tmp_path / "folder")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_run_killed_twice_ends_as_one_that_was_not(whole: Path, captures: Path, tmp_path: Path) -> None:
    out = tmp_path / "pack"
    script = subprocess.run([sys.executable, __file__, captures, out], capture_output=True, text=True, check=False)
    assert json.loads(script.stdout or "0") == [
        [signal.SIGKILL, ["pack.json"]],
        [signal.SIGKILL, ["pack.json", "shard-00000.safetensors", "shard-00000.tar"]],
    ], script.stderr
    with pytest.raises(SidestepError, match=r"incomplete, shard 2 of 3 is missing; run the same"):
        read_captures(out)
    kept = {path.name: path.stat().st_mtime_ns for path in out.glob("shard-*")}
    told: list[tuple[int, int]] = []
    with pytest.warns(UserWarning, match="missing"):
        pack(read_captures(captures), out, progress=lambda *counts: told.append(counts))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == contents(whole)
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept
    assert told == sorted(told)
    assert told[-1] == (20, 20)


def _pack_and_be_killed(captures: Path, out: Path) -> None:
    """Two processes that are killed outright: at the first frame, and at the eighth, which is in the second shard."""
    warnings.simplefilter("ignore")
    scenes = read_captures(captures)
    ends = []
    for frame in (1, 8):
        child = os.fork()
        if child == 0:
            pack(
                scenes, out, progress=lambda done, _, last=frame: done == last and os.kill(os.getpid(), signal.SIGKILL)
            )
            os._exit(0)
        _, status = os.waitpid(child, 0)
        ends.append([os.WTERMSIG(status), list(contents(out))])
    print(json.dumps(ends))


@pytest.mark.parametrize("remote", [False, True], ids=["folder", "upload"])
def test_an_interrupted_run_goes_on(
    whole: Path, scenes: list[Scene], tmp_path: Path, memory: str, remote: bool
) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 8:
            raise KeyboardInterrupt

    storage = Storage.at(memory if remote else tmp_path / "pack")
    with pytest.raises(KeyboardInterrupt):
        pack(scenes, storage.path, progress=interrupt)
    assert storage.names() == ["pack.json", "shard-00000.safetensors", "shard-00000.tar"]
    told: list[tuple[int, int]] = []
    pack(scenes, storage.path, progress=lambda *counts: told.append(counts))
    assert {name: storage.read(name) for name in storage.names()} == contents(whole)
    assert told[0] == (5, 20)  # what was there is not packed again
    assert told == sorted(told)


def test_what_a_killed_run_was_writing_is_deleted(pack_copy: Path, whole: Path, scenes: list[Scene]) -> None:
    left = pack_copy / ".shard-00001.0a1b2c3d.part.tar"
    left.write_bytes(b"half a shard")
    (pack_copy / ".notes").write_text("mine")
    with pytest.raises(SidestepError):
        pack(scenes[1:], pack_copy)
    assert left.exists()  # a pack of another set is not touched
    pack(scenes, pack_copy)
    assert {path.name for path in pack_copy.iterdir()} == {".notes", *contents(whole)}


def test_another_set_or_size_is_refused_and_kept(pack_copy: Path, whole: Path, scenes: list[Scene]) -> None:
    told = f"^{pack_copy}: holds a pack of other scenes, or of photos.*another folder"
    moved = replace(scenes[0].frames[0].camera, world_to_camera=torch.eye(4))
    others = [
        scenes[1:],
        [replace(scenes[0], frames=scenes[0].frames[1:]), *scenes[1:]],
        [replace(scenes[0], frames=(replace(scenes[0].frames[0], camera=moved), *scenes[0].frames[1:])), *scenes[1:]],
        [*scenes[:-1], replace(scenes[-1], points=None)],
    ]
    for other in others:
        with pytest.raises(SidestepError, match=told):
            pack(other, pack_copy)
    with pytest.raises(SidestepError, match=f"^{pack_copy}: holds a pack of 5 frames a shard, not 7;"):
        pack(scenes, pack_copy, frames_per_shard=7)
    assert contents(pack_copy) == contents(whole)


def test_shards_whose_numbers_have_six_digits_are_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (packed, packing):
        monkeypatch.setattr(module, "shard_name", lambda number: f"shard-{number + 100_000:05d}.tar")
        monkeypatch.setattr(module, "index_name", lambda number: f"shard-{number + 100_000:05d}.safetensors")
    scene = _scene("a", tmp_path)
    pack([scene], tmp_path / "pack")
    kept = contents(tmp_path / "pack")
    assert "shard-100000.tar" in kept
    pack([scene], tmp_path / "pack")
    assert contents(tmp_path / "pack") == kept


def test_a_photo_that_changed_is_not_mixed_with_what_was_packed(tmp_path: Path) -> None:
    scene = _scene("a", tmp_path)
    pack([scene], tmp_path / "pack")
    photo = Path(str(scene.frames[0].path))
    photo.write_bytes(photo.read_bytes() + b"more")
    with pytest.raises(SidestepError, match="photos or cameras that have changed"):
        pack([scene], tmp_path / "pack")


@pytest.mark.parametrize("kind", ["depth", "its mask", "scale", "alpha"])
def test_a_changed_map_that_is_made_when_it_is_read_is_noticed(tmp_path: Path, kind: str) -> None:
    scene = _scene("a", tmp_path)
    maps = [tmp_path / "depth.png", tmp_path / "trusted.png", tmp_path / "alpha.png"]
    for path in maps:
        path.write_bytes(Path(str(scene.frames[0].path)).read_bytes())
    Image.fromarray(np.full((8, 8), 15360, dtype=np.uint16)).save(maps[0])
    frame = replace(scene.frames[0], mask=Alpha(maps[2]), depth=HalfDepth(maps[0], 2.0, maps[1]))
    pack([replace(scene, frames=(frame,))], tmp_path / "pack")
    if kind == "scale":
        frame = replace(frame, depth=HalfDepth(maps[0], 3.0, maps[1]))
    else:
        changed = maps[["depth", "its mask", "alpha"].index(kind)]
        changed.write_bytes(changed.read_bytes() + b"more")
    with pytest.raises(SidestepError, match="photos or cameras that have changed"):
        pack([replace(scene, frames=(frame,))], tmp_path / "pack")


def test_co3ds_depth_is_packed_small_and_to_the_last_bit(tmp_path: Path) -> None:
    scene = _scene("a", tmp_path)
    halves = np.linspace(1, 3, 200 * 300, dtype=np.float16).reshape(200, 300)
    Image.fromarray(halves.view(np.uint16)).save(tmp_path / "depth.png")
    camera = Camera.from_fov(45, 300, 200)
    frame = replace(scene.frames[0], camera=camera, depth=HalfDepth(tmp_path / "depth.png", 1.5, None))
    pack([replace(scene, frames=(frame,))], tmp_path / "pack")
    (packed,) = read_captures(tmp_path / "pack")[0].frames
    assert packed.depth is not None
    assert packed.depth.name == "0.depth.tiff"
    assert len(packed.depth.read_bytes()) < halves.size * 4 / 3
    assert np.array_equal(packed.load_depth(), halves.astype(np.float32) * 1.5)


@pytest.mark.parametrize("kind", ["mask", "depth"])
def test_a_map_that_is_no_image_does_not_go_into_a_pack(tmp_path: Path, kind: str) -> None:
    key = tmp_path / "id.png"
    key.write_bytes(b"-----BEGIN PRIVATE KEY-----")
    scene = _scene("a", tmp_path)
    frames = (replace(scene.frames[0], **{kind: key}), replace(scene.frames[0], name="1.png"))
    with pytest.warns(UserWarning, match=rf"^scene a: 1 masks or depth maps left out; the first: {key}: no image"):
        pack([replace(scene, frames=frames)], tmp_path / "pack")
    assert not any(b"PRIVATE" in data for data in contents(tmp_path / "pack").values())
    (packed,) = read_captures(tmp_path / "pack")
    assert [(frame.mask, frame.depth) for frame in packed.frames] == [(None, None)] * 2
    check_frames_equal(packed.frames, tuple(replace(frame, mask=None, depth=None) for frame in frames))


def test_a_damaged_transparent_photo_is_packed_without_its_mask(tmp_path: Path) -> None:
    scene = _scene("a", tmp_path)
    photo = tmp_path / "clear.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 4), dtype=np.uint8)).save(photo)
    photo.write_bytes(photo.read_bytes()[:-40])
    frame = replace(scene.frames[0], path=photo, mask=Alpha(photo))
    with pytest.warns(UserWarning, match=rf"left out; the first: {photo}: the image is damaged"):
        pack([replace(scene, frames=(frame,))], tmp_path / "pack")
    (packed,) = read_captures(tmp_path / "pack")[0].frames
    assert packed.path.read_bytes() == photo.read_bytes()
    assert packed.mask is None


def test_a_folder_of_other_things_is_refused(tmp_path: Path, scenes: list[Scene]) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(SidestepError, match=f"^{tmp_path}: holds thesis.txt, and is no pack; name another"):
        pack(scenes, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(SidestepError, match=r"thesis.txt: cannot be a folder"):
        pack(scenes, tmp_path / "thesis.txt")


def test_scenes_that_fit_in_no_pack_are_left_out_and_named(tmp_path: Path) -> None:
    fit = _scene("fit", tmp_path)
    stray = replace(fit.frames[0], name="../elsewhere/0.png")
    with pytest.warns(UserWarning, match=r"scene left out: scene stray: photo '../elsewhere/0.png' is outside"):
        pack([replace(fit, name="stray", frames=(stray,)), fit], tmp_path / "pack")
    assert [scene.id for scene in read_captures(tmp_path / "pack")] == ["fit"]
    half = replace(fit, name="half \ud800")
    with pytest.warns(UserWarning, match=r"scene left out: scene 'half \\ud800': the name .* is not in UTF-8"):
        pack([half, fit], tmp_path / "pack")
    told = replace(fit, missing=("lost \ud800.png",))
    pack([told], tmp_path / "told")
    assert [scene.missing for scene in read_captures(tmp_path / "told")] == [("lost ?.png",)]
    with pytest.raises(SidestepError, match="scene fit is there twice"):
        pack([fit, fit], tmp_path / "other")
    with pytest.raises(SidestepError, match="none of 0 scenes"):
        pack([], tmp_path / "other")


@pytest.mark.parametrize("fault", ["missing", "empty"])
def test_a_photo_that_cannot_be_read_is_named(tmp_path: Path, fault: str) -> None:
    scene = _scene("a", tmp_path)
    photo = Path(str(scene.frames[0].path))
    if fault == "missing":
        photo.unlink()
    else:
        photo.write_bytes(b"")
    with pytest.raises(SidestepError, match=str(photo)):
        pack([scene], tmp_path / "pack")


def test_a_damaged_photo_is_packed_as_it_is_and_named_when_it_is_loaded(tmp_path: Path) -> None:
    scene = _scene("a", tmp_path)
    photo = Path(str(scene.frames[0].path))
    photo.write_bytes(photo.read_bytes()[:-30])
    pack([scene], tmp_path / "pack")
    with pytest.raises(SidestepError, match=r"pack/shard-00000\.tar/a/0\.png: the image is damaged"):
        read_captures(tmp_path / "pack")[0].frames[0].load()


@pytest.mark.parametrize("length", [0, 1, 512, 0.5, -1])
def test_a_truncated_shard_is_named_and_made_anew(
    pack_copy: Path, whole: Path, scenes: list[Scene], length: float
) -> None:
    shard = pack_copy / "shard-00001.tar"
    data = shard.read_bytes()
    shard.write_bytes(data[: int(length * len(data)) if isinstance(length, float) else length])
    for read in (read_captures, lambda path: list(stream_frames(path))):
        with pytest.raises(SidestepError, match=f"^{shard}: cut short or damaged; copy it again"):
            read(pack_copy)
    with pytest.warns(UserWarning, match="making it anew"):
        pack(scenes, pack_copy)
    assert contents(pack_copy) == contents(whole)


def test_a_truncated_shard_behind_a_url_is_named_when_it_is_read(whole: Path, scenes: list[Scene], memory: str) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    pack(scenes, memory)
    system = MemoryFileSystem()
    data = system.cat_file("/captures/pack/shard-00001.tar")
    for length in (len(data) // 2, 512 * 3, 0):
        system.pipe_file("/captures/pack/shard-00001.tar", data[:length])
        named = r"memory://captures/pack/shard-00001\.tar: cut short or damaged"
        with pytest.raises(SidestepError, match=named):
            [frame.path.read_bytes() for scene in read_captures(memory) for frame in scene.frames]
        with pytest.raises(SidestepError, match=named):
            list(stream_frames(memory))
    system.rm("/captures/pack/shard-00001.tar")
    with pytest.raises(SidestepError, match=r"shard-00001\.tar: no such file"):
        [frame.path.read_bytes() for scene in read_captures(memory) for frame in scene.frames]
    with pytest.raises(SidestepError, match=r"shard-00001\.tar: no such file"):
        list(stream_frames(memory))


@pytest.mark.parametrize("length", [0, 5, 0.5, -1])
def test_a_damaged_index_is_named(pack_copy: Path, length: float) -> None:
    index = pack_copy / "shard-00001.safetensors"
    data = index.read_bytes()
    index.write_bytes(data[: int(length * len(data)) if isinstance(length, float) else length])
    with pytest.raises(SidestepError, match=f"^{index}: damaged; copy it again"):
        read_captures(pack_copy)


def test_no_flipped_bit_of_a_photo_or_an_index_is_read_as_good(pack_copy: Path, scenes: list[Scene]) -> None:
    frame = next(frame for scene in scenes for frame in scene.frames)
    shard, index = pack_copy / "shard-00000.tar", pack_copy / "shard-00000.safetensors"
    data = shard.read_bytes()
    place = data.index(frame.path.read_bytes()) + frame.path.stat().st_size - 20  # type: ignore[union-attr]
    shard.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
    told = rf"^{shard}/.*/{Path(frame.name).stem}\.jpg: damaged; copy the shard again"
    with pytest.raises(SidestepError, match=told):
        read_captures(pack_copy)[0].frames[0].load()
    with pytest.raises(SidestepError, match=told):
        list(stream_frames(pack_copy))
    data = index.read_bytes()
    for place in np.random.default_rng(0).integers(8, len(data), 100).tolist():
        index.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        if data[place] == ord(" ") and data[place : place + 8].strip() == b"":
            continue  # what fills up the header
        with pytest.raises(SidestepError, match=str(pack_copy)):
            read_captures(pack_copy)


def test_a_pack_of_an_earlier_version_is_read(pack_copy: Path, scenes: list[Scene]) -> None:
    for path in pack_copy.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            kept = {name: file.get_tensor(name).clone() for name in file.keys() if name not in (DIGEST, "crc32")}  # noqa: SIM118
        save_file(kept, path, metadata=metadata)
    check_equal(read_captures(pack_copy), scenes)


def test_two_packs_into_one_folder_do_not_meet(whole: Path, scenes: list[Scene], tmp_path: Path) -> None:
    out = tmp_path / "pack"

    def begin_another(done: int, total: int) -> None:
        if done == 8:
            with pytest.raises(SidestepError, match=f"^{out}: another process packs into it; wait"):
                pack(scenes, out)

    pack(scenes, out, progress=begin_another)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == contents(whole)


def test_a_path_that_cannot_be_looked_at_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 300)
    with pytest.raises(SidestepError, match=rf"^{path}/pack\.json: cannot be read \("):
        read_captures(path)


def test_what_is_no_pack_is_refused_by_name(pack_copy: Path) -> None:
    plan = pack_copy / "pack.json"
    text = plan.read_text()
    for broken in ("", "{", "[]", "{}", '{"format": 1, "shards": 3}', '{"format": 1, "shards": [5]}', "[" * 100000):
        plan.write_text(broken)
        with pytest.raises(SidestepError, match=f"^{plan}: damaged, or not Sidestep's"):
            read_captures(pack_copy)
    plan.write_text(json.dumps({**json.loads(text), "format": 99}))
    with pytest.raises(SidestepError, match=f"^{plan}: format 99"):
        read_captures(pack_copy)
    told = json.loads(text)
    plan.write_text(json.dumps(told | {"shards": told["shards"][::-1]}))
    with pytest.raises(SidestepError, match=r"shard-00000\.safetensors: of another pack"):
        read_captures(pack_copy)


def test_another_programs_pack_json_makes_captures_no_pack(captures: Path, tmp_path: Path) -> None:
    shutil.copytree(captures / "sofa", tmp_path / "sofa")
    for text in ('{"name": "my asset pack"}', "no JSON"):
        (tmp_path / "pack.json").write_text(text)
        assert [scene.name for scene in read_captures(tmp_path)] == ["plain", "Ünïcode scene"]


def test_a_pack_without_a_shard_yet_is_incomplete(pack_copy: Path) -> None:
    for path in pack_copy.glob("shard-*"):
        path.unlink()
    with pytest.raises(SidestepError, match="incomplete, shard 1 of 3 is missing"):
        read_captures(pack_copy)


def change_index(pack: Path, change: Callable[[dict[str, torch.Tensor], dict[str, Any]], None]) -> Path:
    """Rewrites the first index as somebody might who means harm."""
    path = pack / "shard-00000.safetensors"
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["about"])
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    del tensors[DIGEST]
    change(tensors, about)
    metadata = {"about": json.dumps(about)}
    save_file(with_checksums(tensors, metadata), path, metadata=metadata)
    return path


def set_value(name: str, place: tuple[int, ...], value: float) -> Callable[..., None]:
    return lambda tensors, about: tensors[name].__setitem__(place, value)


def set_scene(**values: Any) -> Callable[..., None]:
    return lambda tensors, about: about["scenes"][0].update(values)


@pytest.mark.parametrize(
    "change",
    [
        set_value("photo", (0, 0), 2**40),
        set_value("photo", (0, 0), -512),
        set_value("photo", (0, 1), 2**40),
        set_value("photo", (0, 1), 2**63 - 1),
        set_value("photo", (0, 1), 0),
        set_value("photo", (0, 1), -1),
        set_value("mask", (0, 0), 5),
        lambda tensors, about: tensors.update(crc32=tensors["crc32"][:-1].contiguous()),
        set_value("depth", (1, 1), 2**62),
        set_value("size", (0, 0), -4),
        set_value("size", (0, 0), 2**62),
        set_value("size", (0, 1), 2**24),
        set_value("intrinsics", (0, 0, 0), float("nan")),
        set_value("world_to_camera", (0, 0, 0), 7.0),
        set_value("lens", (0, 3), float("inf")),
        lambda tensors, about: tensors.update(points=tensors["points"].double()),
        lambda tensors, about: tensors.update(size=tensors["size"][:-1].contiguous()),
        lambda tensors, about: tensors.pop("lens"),
        lambda tensors, about: about.pop("scenes"),
        lambda tensors, about: about.update(scenes=7),
        lambda tensors, about: about.update(size="large"),
        lambda tensors, about: about.update(size=10**30),
        lambda tensors, about: about.update(size=2**62),
        lambda tensors, about: about.update(size=True),
        lambda tensors, about: about.update(sha256="0\n0  elsewhere"),
        lambda tensors, about: about["scenes"][0]["frames"].pop(),
        lambda tensors, about: about["scenes"][0]["frames"].__setitem__(0, ["/etc/passwd", "jpg", None, None]),
        lambda tensors, about: about["scenes"][0]["frames"].__setitem__(0, ["../../x.jpg", "jpg", None, None]),
        lambda tensors, about: about["scenes"][0]["frames"].__setitem__(0, ["0.jpg"]),
        lambda tensors, about: about["scenes"][0]["frames"].__setitem__(0, [7, "jpg", None, None]),
        lambda tensors, about: about["scenes"][0]["frames"].__setitem__(0, []),
        set_scene(name=".."),
        set_scene(name="a/../../b"),
        set_scene(name="/etc"),
        set_scene(name=""),
        set_scene(category=".."),
        set_scene(category="..\\x"),
        set_scene(category=7),
        set_scene(name="half \ud800"),
        set_scene(missing=[7]),
        set_scene(missing=["half \ud800"]),
        set_scene(missing="none"),
        set_scene(points=True),
        set_scene(points=10**12),
        set_scene(points=-3),
        set_scene(points="many"),
    ],
)
def test_an_index_that_does_not_fit_is_refused_in_one_line(pack_copy: Path, change: Callable[..., None]) -> None:
    index = change_index(pack_copy, change)
    with pytest.raises(SidestepError, match=f"^{index}: "):
        read_captures(pack_copy)


def _scene(name: str, folder: Path) -> Scene:
    """A scene of one photo, which is written into the folder."""
    path = folder / "0.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    return Scene(name, None, (Frame(path.name, path, Camera.from_fov(45, 8, 8)),))


if __name__ == "__main__":
    _pack_and_be_killed(Path(sys.argv[1]), Path(sys.argv[2]))
