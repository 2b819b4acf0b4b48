"""Files that were made to do harm: each kind is refused in a line, soon, before much memory is taken."""

import gzip
import io
import json
import os
import pickle
import struct
import threading
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sidestep.captures import read_captures
from sidestep.captures.colmap import read_colmap
from sidestep.captures.inspection import inspect_captures
from sidestep.captures.maps import read_depth, read_mask
from sidestep.captures.packing import pack_captures
from sidestep.captures.pairs import read_pairs
from sidestep.captures.ply import read_ply
from sidestep.captures.realestate10k import is_clip, read_realestate10k
from sidestep.captures.sharpness import sharp_frames
from sidestep.captures.splits import read_split
from sidestep.captures.transforms import read_named_cameras, read_transforms
from sidestep.config import load_config
from sidestep.errors import SidestepError
from sidestep.evaluation.results import Results
from sidestep.images import exif_fov, load_image, stored_size
from sidestep.inputs import read_json
from sidestep.keyframes import KeyFrames, read_key_frames
from sidestep.verification import verify

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(Path(__file__).parent)
    from targets import (
        COLMAP_TEXT,
        SHOT,
        TRANSFORMS,
        WORLD,
        npy,
        npz,
        picture,
        write_co3d,
        write_colmap,
        write_model,
        write_photos,
    )

SPLIT = json.dumps({"train": [], "val": [], "test": []})
READERS: dict[str, Callable[[Path], Any]] = {
    "photo.jpg": load_image,
    "size.png": stored_size,
    "exif.jpg": exif_fov,
    "mask.png": read_mask,
    "depth.png": read_depth,
    "transforms.json": read_transforms,
    "cameras.json": read_named_cameras,
    "split.json": read_split,
    "pairs.json": read_pairs,
    "results.json": Results.read,
    "keys.yaml": read_key_frames,
    "points.ply": lambda path: read_ply(path, 100),
    "video.mp4": lambda path: list(sharp_frames(path, 3)),
}
JSON = ("transforms.json", "cameras.json", "split.json", "pairs.json", "results.json")


def promptly(call: Callable[[], Any]) -> Any:
    """What a call returns or raises, if it ends; a test must not wait for a pipe for ever."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append((call(), None))
        except BaseException as error:
            found.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(60)
    assert found, "it waits"
    result, error = found[0]
    if error is not None:
        raise error
    return result


class Harm:
    """What unpickling it does can be seen afterwards."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("name", READERS)
def test_what_is_no_file_is_refused_at_once(tmp_path, name):
    """A pipe would be waited for, and a device read without end."""
    os.mkfifo(tmp_path / name)
    with pytest.raises(SidestepError, match=f"^{tmp_path / name}: .*a pipe or a device"):
        promptly(lambda: READERS[name](tmp_path / name))
    for path in (Path("/dev/zero"), tmp_path / "a\0b", tmp_path / ("x" * 300), tmp_path / "none", tmp_path):
        with pytest.raises(SidestepError):
            promptly(lambda path=path: READERS[name](path))


@pytest.mark.parametrize("name", READERS)
def test_a_file_that_claims_a_terabyte(tmp_path, name):
    with (tmp_path / name).open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(SidestepError):
        promptly(lambda: READERS[name](tmp_path / name))


def test_pipes_in_a_scene(tmp_path):
    write_scene(tmp_path / "set" / "scene")
    os.mkfifo(tmp_path / "set" / "scene" / "images" / "c.jpg")
    os.mkfifo(tmp_path / "set" / "scene" / "scene.txt")
    os.mkfifo(tmp_path / "set" / "pack.json")
    assert promptly(lambda: read_captures(tmp_path / "set"))[0].frames[0].name == "a.jpg"
    assert not promptly(lambda: is_clip(tmp_path / "set" / "scene" / "scene.txt"))
    with pytest.raises(SidestepError):
        promptly(lambda: read_realestate10k(tmp_path / "set" / "scene" / "scene.txt"))


def test_a_pipe_as_a_shard_of_a_pack(tmp_path):
    pack_captures(read_captures(write_scene(tmp_path / "scene")), tmp_path / "pack")
    (tmp_path / "pack" / "shard-00000.tar").unlink()
    os.mkfifo(tmp_path / "pack" / "shard-00000.tar")
    with pytest.raises(SidestepError, match=r"shard-00000\.tar: c"):
        promptly(lambda: read_captures(tmp_path / "pack"))
    plan = tmp_path / "pack" / "shard-00000.safetensors"
    plan.write_bytes(plan.read_bytes()[:-1] + b"?")
    told = promptly(lambda: verify(tmp_path / "pack")).faults
    assert len(told) == 2  # one does not hide the other
    assert any("shard-00000.tar: cannot" in fault for fault in told)


def test_a_pipe_as_a_photo_of_a_clip(tmp_path):
    (tmp_path / "clip.txt").write_text("https://host.example/v\n40 1.2 1.6 0.5 0.5 0 0 1 0 0 0 0 1 0 0 0 0 1 0\n")
    (tmp_path / "clip").mkdir()
    os.mkfifo(tmp_path / "clip" / "40.png")
    with pytest.raises(SidestepError, match=r"40\.png: .*a pipe"):
        promptly(lambda: read_captures(tmp_path / "clip.txt"))


# Bombs.


def test_a_picture_of_ten_thousand_megapixels(tmp_path):
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(10**6))
    png = b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")))
    (tmp_path / "a.png").write_bytes(png)
    (tmp_path / "a.ppm").write_bytes(b"P6 100000 100000 255\n" + bytes(100))
    (tmp_path / "a.bmp").write_bytes(picture("BMP")[:18] + struct.pack("<ii", 10**5, 10**5) + picture("BMP")[26:])
    for path in (tmp_path / "a.png", tmp_path / "a.ppm", tmp_path / "a.bmp"):
        for read in (load_image, stored_size, exif_fov, read_mask):
            with pytest.raises(SidestepError, match="larger than 100 megapixels"):
                read(path)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def test_a_text_in_a_picture_that_unpacks_to_much(tmp_path):
    packed = zlib.compressobj()
    body = b"Comment\0\0" + b"".join(packed.compress(bytes(2**20)) for _ in range(70)) + packed.flush()
    png = picture("PNG")
    (tmp_path / "a.png").write_bytes(png[:33] + chunk(b"zTXt", body) + png[33:])
    with pytest.raises(SidestepError, match=r"a\.png: cannot be read as an image"):
        load_image(tmp_path / "a.png")


def test_a_jpeg_of_thousands_of_scans(tmp_path):
    file = io.BytesIO()
    Image.new("L", (4000, 4000)).save(file, "JPEG", progressive=True)
    whole = file.getvalue()
    last = whole[whole.rfind(b"\xff\xda") : -2]
    (tmp_path / "a.jpg").write_bytes(whole[:-2] + last * 2000 + whole[-2:])
    with pytest.raises(SidestepError, match=r"a JPEG of 20.. scans"):
        load_image(tmp_path / "a.jpg")
    # Segments without end are no way to hide them.
    (tmp_path / "a.jpg").write_bytes(whole[:-2] + b"\xff\xfe\0\2" * 200_000 + last * 2000 + whole[-2:])
    with pytest.raises(SidestepError, match=r"a JPEG of 100000 scans"):
        load_image(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes(whole)
    assert load_image(tmp_path / "a.jpg").size == (4000, 4000)


def test_matrices_that_unpack_to_much(tmp_path):
    write_photos(tmp_path, ("image/000.jpg",))
    (tmp_path / "cameras.npz").write_bytes(npz(world_mat_0=npy(WORLD) + bytes(10**7)))
    with pytest.raises(SidestepError, match=r"world_mat_0 takes 10.* bytes"):
        read_captures(tmp_path)
    lying = npz(world_mat_0=npy(WORLD) + bytes(10**7))
    claimed = struct.pack("<I", len(npy(WORLD)) + 10**7)
    (tmp_path / "cameras.npz").write_bytes(lying.replace(claimed, struct.pack("<I", len(npy(WORLD)))))
    with pytest.raises(SidestepError, match="cannot be read as an archive"):
        read_captures(tmp_path)


def test_annotations_that_unpack_to_much(tmp_path):
    write_co3d(tmp_path)
    path = tmp_path / "car" / "frame_annotations.jgz"
    path.write_bytes(gzip.compress(b"[" + b" " * 10**7 + json.dumps(SHOT).encode() + b"]"))
    with pytest.raises(SidestepError, match="unpacks to more than"):
        read_captures(tmp_path / "car" / "seq")


@pytest.mark.parametrize("name", ["cameras.bin", "images.bin", "points3D.bin"])
def test_a_model_of_a_trillion_points(tmp_path, name):
    write_scene(tmp_path)
    (tmp_path / "sparse" / "0" / name).write_bytes(struct.pack("<Q", 10**12) + bytes(1000))
    with pytest.raises(SidestepError, match=f"{name}: cut short or damaged"):
        read_captures(tmp_path)


def test_settings_that_stand_for_a_billion(tmp_path):
    """The billion laughs: nine lines, each of nine times the one before."""
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]" for old, new in zip("abcdefgh", "bcdefghi", strict=True)]
    (tmp_path / "a.yaml").write_text("\n".join(lines))
    with pytest.raises(SidestepError, match=r"write out what \*a stands for \(line 2\)"):
        load_config(KeyFrames, tmp_path / "a.yaml")


# Code.


def test_an_array_of_python_objects_is_not_unpickled(tmp_path):
    write_photos(tmp_path, ("image/000.jpg",))
    np.savez(tmp_path / "cameras.npz", world_mat_0=np.array([Harm(tmp_path / "trace")] * 2, dtype=object))
    with pytest.raises(SidestepError, match="no 4x4 array of numbers"):
        read_captures(tmp_path)
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".bin", ".pkl", ".safetensors"])
def test_a_pickle_as_a_prior_is_not_loaded(tmp_path, suffix):
    from sidestep.prior import LatentPrior

    path = tmp_path / f"prior{suffix}"
    torch.save({"state_dict": Harm(tmp_path / "trace")}, path)
    with pytest.raises(SidestepError, match="a pickle, which can run code" if suffix != ".safetensors" else "damaged"):
        LatentPrior.from_pretrained(path)
    assert not (tmp_path / "trace").exists()


def test_a_pickle_in_a_models_folder_is_not_loaded(tmp_path):
    from sidestep import NovelViewPipeline

    write_model(tmp_path)
    for part in ("unet", "vae", "tunet"):
        folder = tmp_path / "model" / part
        for weights in folder.glob("*.safetensors"):
            weights.rename(tmp_path / f"{part}.kept")
        for name in ("diffusion_pytorch_model", "pytorch_model"):
            with (folder / f"{name}.bin").open("wb") as pickled:
                pickle.dump({"weight": Harm(tmp_path / "trace")}, pickled)
        with pytest.raises(SidestepError, match=part):
            NovelViewPipeline.from_pretrained(tmp_path / "model")
        (tmp_path / f"{part}.kept").rename(folder / "diffusion_pytorch_model.safetensors")
        assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:pathlib.Path.touch [{trace}]",
        "!!python/object/new:pathlib.PosixPath [{trace}]",
        "!!python/name:os.system",
        "!!python/module:os",
        "!<tag:yaml.org,2002:python/object/apply:os.mkdir> [{trace}]",
    ],
)
def test_settings_that_ask_for_code(tmp_path, value):
    (tmp_path / "a.yaml").write_text(f"keyframes: {value.format(trace=tmp_path / 'trace')}")
    with pytest.raises(SidestepError, match="could not determine a constructor"):
        load_config(KeyFrames, tmp_path / "a.yaml")
    (tmp_path / "empty.yaml").touch()
    with pytest.raises(SidestepError, match="not readable as YAML"):
        load_config(KeyFrames, tmp_path / "empty.yaml", [f"keyframes={value.format(trace=tmp_path / 'trace')}"])
    assert not (tmp_path / "trace").exists()


# Ways out of a folder.


def write_scene(folder: Path) -> Path:
    write_colmap(COLMAP_TEXT, ".txt")(folder)
    return folder


def test_an_archive_of_matrices_is_not_unpacked(tmp_path):
    """A member may be called by a path that leads elsewhere."""
    scene = tmp_path / "a" / "scene"
    write_photos(scene, ("image/000.jpg",))
    with zipfile.ZipFile(scene / "cameras.npz", "w") as archive:
        for name in ("../../world_mat_0.npy", f"{tmp_path}/world_mat_0.npy", "..\\world_mat_0.npy"):
            archive.writestr(name, npy(WORLD))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SidestepError, match="no world_mat_0"):
        read_captures(scene)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "listed", ["../../secret.jpg", "images/../../../secret.jpg", "{root}/secret.jpg", "/etc/passwd"]
)
def test_a_photo_from_elsewhere_in_a_list_of_cameras(tmp_path, listed):
    scene = tmp_path / "set" / "scene"
    write_photos(scene)
    (tmp_path / "secret.jpg").write_bytes(picture("JPEG"))
    frames = [dict(TRANSFORMS["frames"][0], file_path=listed.format(root=tmp_path))]
    (scene / "transforms.json").write_text(json.dumps({**TRANSFORMS, "frames": frames}))
    with pytest.raises(SidestepError, match="far from the scene's folder"):
        read_captures(scene)


@pytest.mark.parametrize("listed", ["../../secret.jpg", "x/../../../secret.jpg", "{root}/secret.jpg"])
def test_a_photo_from_elsewhere_in_a_model(tmp_path, listed):
    scene = write_scene(tmp_path / "scene")
    (tmp_path / "secret.jpg").write_bytes(picture("JPEG"))
    path = scene / "sparse" / "0" / "images.txt"
    path.write_text(path.read_text().replace("b.jpg", listed.format(root=tmp_path)))
    for read in (read_captures, read_colmap):
        with pytest.raises(SidestepError, match=r"images\.txt: lists the photo .*secret\.jpg, outside of images/"):
            read(scene)


@pytest.mark.parametrize("linked", ["images/b.jpg", "images", "masks/b.png"])
def test_a_link_out_of_a_scene(tmp_path, monkeypatch, linked):
    """What is made of a scene, a pack say, is handed on, and with it what its links lead to."""
    scene = write_scene(tmp_path / "sets" / "scene")
    write_photos(tmp_path / "private", ("a.jpg", "b.jpg", "b.png"))
    link = scene / linked
    if linked == "images":
        for photo in link.iterdir():
            photo.unlink()
        link.rmdir()
    link.parent.mkdir(exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(tmp_path / "private" / ("" if linked == "images" else link.name))
    with pytest.raises(
        SidestepError, match=r"a link out of .*scene, to .*private.*; copy it there, or, if.*SIDESTEP_LINKS_TO"
    ):
        read_captures(scene)
    assert "a link out of" in inspect_captures(scene, photos=False).findings[0].message
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(SidestepError, match="none of its 1 scenes"):
            read_captures(tmp_path / "sets")
    assert len(read_captures(tmp_path)) == 1  # of a folder that holds both it is no way out
    with pytest.raises(SidestepError) as refused:
        read_captures(scene)
    monkeypatch.setenv(str(refused.value).rpartition("environment's ")[2], str(tmp_path / "private"))
    assert read_captures(scene)[0].missing == ()


def test_a_set_may_hold_links_to_scenes(tmp_path):
    write_scene(tmp_path / "disk" / "scene")
    write_scene(tmp_path / "set" / "other")
    (tmp_path / "set" / "scene").symlink_to(tmp_path / "disk" / "scene")
    assert [scene.id for scene in read_captures(tmp_path / "set")] == ["other", "scene"]


@pytest.mark.parametrize("name", ["shard-00000.tar", "shard-00000.safetensors"])
def test_a_link_out_of_a_pack(tmp_path, name):
    pack_captures(read_captures(write_scene(tmp_path / "scene")), tmp_path / "pack")
    (tmp_path / "pack" / name).rename(tmp_path / name)
    (tmp_path / "pack" / name).symlink_to(tmp_path / name)
    with pytest.raises(SidestepError, match=f"{name}: a link out of the pack"):
        read_captures(tmp_path / "pack")


def test_a_link_out_of_a_models_folder(tmp_path):
    from sidestep.prior import LatentPrior

    write_model(tmp_path)
    weights = tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(tmp_path / "elsewhere.safetensors")
    weights.symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(SidestepError, match=r"diffusion_pytorch_model\.safetensors: a link out of the model's folder"):
        LatentPrior.from_pretrained(tmp_path / "model")


# Text.


@pytest.mark.parametrize("name", JSON)
@pytest.mark.parametrize("text", ["[" * 100_000, '{"frames":' * 100_000, "9" * 10_000, "[1e400, NaN, -Infinity]", "{}"])
def test_json_that_is_another_thing(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(SidestepError, match=f"^{tmp_path / name}: "):
        READERS[name](tmp_path / name)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e400", "9" * 400, "-1", "true", '"1"', "[1]", "null"])
@pytest.mark.parametrize("place", ["fl_x", "w", "k1", "matrix"])
def test_numbers_that_are_none_of_a_camera(tmp_path, number, place):
    write_photos(tmp_path)
    data = json.loads(json.dumps(TRANSFORMS))
    if place == "matrix":
        data["frames"][0]["transform_matrix"][0][3] = "HERE"
    else:
        data[place] = "HERE"
    (tmp_path / "transforms.json").write_text(json.dumps(data).replace('"HERE"', number))
    for read in (read_captures, read_named_cameras):
        try:
            found = read(tmp_path)
        except SidestepError:
            continue
        cameras = [camera for _, camera in found] if read is read_named_cameras else [f.camera for f in found[0].frames]
        assert all(bool(camera.intrinsics.isfinite().all()) for camera in cameras)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32"])
def test_text_in_another_encoding(tmp_path, encoding):
    scene = write_scene(tmp_path / "scene")
    path = scene / "sparse" / "0" / "images.txt"
    path.write_bytes(path.read_text().encode(encoding))
    with pytest.raises(SidestepError, match=r"images\.txt"):
        read_captures(scene)
    for name, text in (("split.json", SPLIT), ("keys.yaml", "keyframes: [{}, {yaw: 5}]")):
        (tmp_path / name).write_bytes(text.encode(encoding))
        with pytest.raises(SidestepError, match=name):
            READERS[name](tmp_path / name)


def test_text_with_a_byte_order_mark(tmp_path):
    scene = write_scene(tmp_path / "scene")
    for path in (scene / "sparse" / "0").iterdir():
        path.write_text(path.read_text(), encoding="utf-8-sig")
    assert len(read_captures(scene)[0].frames) == 2
    (tmp_path / "split.json").write_text(SPLIT, encoding="utf-8-sig")
    (tmp_path / "keys.yaml").write_text("keyframes: [{}, {yaw: 5}]", encoding="utf-8-sig")
    assert read_split(tmp_path / "split.json")["train"] == []
    assert read_key_frames(tmp_path / "keys.yaml")[1].yaw == 5


def test_a_name_that_would_write_to_the_terminal(tmp_path):
    scene = write_scene(tmp_path / "scene")
    path = scene / "sparse" / "0" / "images.txt"
    path.write_text(path.read_text().replace("a.jpg", "\x1b]0;owned\x07\x1b[2Ja.jpg").replace("b.jpg", "c.jpg"))
    with pytest.raises(SidestepError) as told:
        read_captures(scene)
    assert str(told.value).isprintable()
    write_photos(tmp_path)
    data = {**TRANSFORMS, "frames": [{"file_path": "\ud800\n\x1b[31m/../../../../x", "transform_matrix": []}]}
    (tmp_path / "transforms.json").write_text(json.dumps(data))
    with pytest.raises(SidestepError, match="far from") as told:
        read_transforms(tmp_path)
    assert str(told.value).isprintable()


def test_a_list_of_further_files_is_no_video(tmp_path):
    """FFmpeg would open what a playlist or a script of its own names."""
    (tmp_path / "secret.ts").write_bytes(bytes(188))
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{tmp_path / 'secret.ts'}\n#EXT-X-ENDLIST\n"
    for name, text in (("a.mp4", playlist), ("b.mp4", f"ffconcat version 1.0\nfile '{tmp_path / 'secret.ts'}'\n")):
        (tmp_path / name).write_text(text)
        with pytest.raises(SidestepError, match=f"{name}: cannot be read as a video"):
            list(sharp_frames(tmp_path / name, 3))


# A folder for a file, and a file for a folder.


def test_a_folder_in_place_of_a_file(tmp_path):
    scene = write_scene(tmp_path / "scene")
    (scene / "images" / "a.jpg").unlink()
    (scene / "images" / "a.jpg").mkdir()
    with pytest.warns(UserWarning, match=r"1 listed photos are missing: a\.jpg"):
        assert len(read_captures(scene)[0].frames) == 1
    points = scene / "sparse" / "0" / "points3D.txt"
    points.unlink()
    points.mkdir()
    with pytest.warns(UserWarning, match="missing"):
        assert read_captures(scene)[0].points is None


@pytest.mark.parametrize("place", ["images", "sparse", "sparse/0"])
def test_a_file_in_place_of_a_folder(tmp_path, place):
    scene = write_scene(tmp_path / "scene")
    folder = scene / place
    folder.rename(tmp_path / "moved")
    folder.write_bytes(b"a file")
    with pytest.raises(SidestepError):
        read_captures(scene)


def test_json_of_a_store_or_a_run_in_a_folder(tmp_path):
    (tmp_path / "store.json").mkdir()
    from sidestep.latents import LatentStore

    with pytest.raises(SidestepError):
        LatentStore(tmp_path)
    with pytest.raises(SidestepError, match="cannot be read"):
        read_json(tmp_path / "store.json")
