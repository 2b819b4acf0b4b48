"""Every reader of bytes that a user may bring, as a function of bytes; docs/bad-input.md lists them.

A target gets bytes and a folder of its own, which keeps what `prepare` put into it. It writes the bytes as the file
to read, calls the functions that users call, and looks at all that comes out. Where a checksum would stop nearly every
changed byte (gzip's, a PNG's, safetensors' header), the bytes are also what is inside it.
"""

import gzip
import io
import json
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DModel
from PIL import Image
from safetensors.torch import load, save

from sidestep import NovelViewPipeline, TUNet, captures, images, keyframes
from sidestep.app.poses import Pose
from sidestep.cameras import Camera
from sidestep.captures import co3d, maps, packing, photos, ply, realestate10k, sharpness, transforms
from sidestep.captures.inspection import inspect_captures
from sidestep.captures.pairs import Pair, read_pairs, write_pairs
from sidestep.captures.splits import read_split
from sidestep.checksums import with_checksums, without_checksums
from sidestep.config import load_config
from sidestep.errors import SidestepError
from sidestep.evaluation.results import Estimate, EvaluatedPair, Figure, Results, Row
from sidestep.latents import LATENTS, LatentStore, plan_digest
from sidestep.pretraining.config import PretrainConfig
from sidestep.prior_file import load_file
from sidestep.training import TrainConfig

SIZE = (12, 9)
POSE = np.eye(4)
LENS = "60 61 6 4.5"


@dataclass(frozen=True)
class Target:
    """One or several readers of a kind of file.

    Attributes:
        seeds: valid files, which `read` reads to the end.
        read: from the bytes and the target's folder.
        prepare: what the folder holds beside.
        words: bytes that mean something in the format.
        whole: whether the seeds are read to the end.
        slow: reads fewer than a hundred files a second.
    """

    seeds: Callable[[], list[bytes]]
    read: Callable[[bytes, Path], Any]
    prepare: Callable[[Path], Any] = lambda folder: None
    words: tuple[bytes, ...] = ()
    whole: bool = True
    slow: bool = False


JSON_WORDS = (b"NaN", b"Infinity", b"-1", b"1e400", b"null", b"true", b"[]", b"{}", b'""', b"1" * 400, b"[" * 2000)
JSON_WORDS += (b'"../../../etc/passwd"', b'"/etc/passwd"', b'"\\ud800"', b'"\\u0000"', b"\xef\xbb\xbf", b"\xff\xfe")
NUMBERS = tuple(struct.pack("<Q", value) for value in (0, 1, 10**12, 2**31, 2**32 - 1, 2**63, 2**64 - 1))
NUMBERS += tuple(struct.pack("<d", value) for value in (float("nan"), float("inf"), 1e300, -1.0, 0.0))


def picture(format: str, mode: str = "RGB", **options: Any) -> bytes:
    """A file of a small picture."""
    pixels = np.random.default_rng(1).integers(0, 255, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, format, **options)
    return file.getvalue()


def pictures() -> list[bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif.get_ifd(0x8769)[0xA405] = 28
    sixteen, floats = io.BytesIO(), io.BytesIO()
    Image.fromarray(np.arange(108, dtype=np.uint16).reshape(9, 12) * 500).save(sixteen, "PNG")
    Image.fromarray(np.ones((9, 12), np.float32)).save(floats, "TIFF", compression="tiff_deflate")
    several = {"save_all": True, "append_images": [Image.new("RGB", SIZE)]}
    return [
        picture("JPEG", exif=exif), picture("JPEG", progressive=True), picture("JPEG", "CMYK"), picture("JPEG", "L"),
        picture("PNG", exif=exif), picture("PNG", "RGBA"), picture("PNG", "P", transparency=3), picture("PNG", "1"),
        picture("WEBP", exif=exif), picture("WEBP", "RGBA", lossless=True), picture("WEBP", **several),
        picture("TIFF", compression="tiff_lzw"), picture("TIFF", "CMYK"), picture("BMP"),
        picture("GIF", "P", transparency=0), picture("GIF", **several), picture("PPM"), picture("MPO", **several),
        sixteen.getvalue(), floats.getvalue(),
    ]  # fmt: skip


def with_checksums_of_png(data: bytes) -> bytes:
    """A damaged PNG whose chunks have the checksums of what is in them, as far as its chunks can be followed."""
    if not data.startswith(b"\x89PNG"):
        return data
    parts, at = [data[:8]], 8
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        body = data[at + 4 : at + 8 + size]
        parts += [data[at : at + 4], body, zlib.crc32(body).to_bytes(4, "big")]
        at += 12 + size
    return b"".join(parts)


def read_image(data: bytes, folder: Path) -> None:
    path = folder / "photo.jpg"
    path.write_bytes(with_checksums_of_png(data))
    images.stored_size(path)
    images.is_transparent(path)
    images.exif_fov(path)
    images.exif_lens(path)
    images.load_image(path)


def read_map(data: bytes, folder: Path) -> None:
    path = folder / "photo.png"
    path.write_bytes(with_checksums_of_png(data))
    mask, plain = folder / "mask.png", folder / "plain.png"
    attempts = (
        lambda: maps.read_mask(path),
        lambda: maps.read_depth(path),
        lambda: maps.Alpha(path).read_bytes(),
        lambda: co3d.HalfDepth(path, 2.0, mask).read_bytes(),
        lambda: co3d.HalfDepth(plain, 2.0, path).read_bytes(),
    )
    read_each(attempts)


def read_each(attempts: tuple[Callable[[], Any], ...]) -> None:
    """Calls all, and raises the last refusal if none read anything."""
    refusals = []
    for attempt in attempts:
        try:
            attempt()
        except SidestepError as error:
            refusals.append(error)
    if len(refusals) == len(attempts):
        raise refusals[-1]


def write_maps(folder: Path) -> None:
    (folder / "mask.png").write_bytes(picture("PNG", "L"))
    (folder / "plain.png").write_bytes(pictures()[-2])


def write_photos(folder: Path, names: tuple[str, ...] = ("images/a.jpg", "images/b.jpg")) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture("JPEG"))


# COLMAP: the first byte tells which of its files it is.

CAMERAS_BIN = struct.pack("<QIiQQ4d", 1, 1, 1, *SIZE, 60.0, 61.0, 6.0, 4.5)
RADIAL_BIN = struct.pack("<QIiQQ8d", 1, 1, 4, *SIZE, 60.0, 61.0, 6.0, 4.5, 0.01, 0.0, 0.001, 0.0)
IMAGE_BIN = "<I7dI6sxQ2dQ"
IMAGES_BIN = struct.pack("<Q", 2) + b"".join(
    struct.pack(IMAGE_BIN, index, 1.0, 0, 0, 0, 0.1 * index, 0, 0, 1, name, 1, 3.0, 4.0, 1)
    for index, name in enumerate((b"a.jpg", b"b.jpg"))
).replace(b".jpg\0\0", b".jpg\0")
POINTS_BIN = struct.pack("<QQ3d3BdQ2I", 1, 7, 0.1, 0.2, 3.0, 9, 9, 9, 0.5, 1, 1, 0)
COLMAP_BINARY = (("cameras", CAMERAS_BIN), ("images", IMAGES_BIN), ("points3D", POINTS_BIN))
COLMAP_TEXT = (
    ("cameras", b"# a comment\n1 PINHOLE 12 9 60 61 6 4.5\n"),
    ("images", b"1 1 0 0 0 0 0 0 1 a.jpg\n3 4 1\n2 1 0 0 0 0.1 0 0 1 b.jpg\n\n"),
    ("points3D", b"7 0.1 0.2 3 9 9 9 0.5 1 0\n"),
)


def write_colmap(kind: tuple[tuple[str, bytes], ...], suffix: str) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        write_photos(folder)
        (folder / "sparse" / "0").mkdir(parents=True)
        for name, data in kind:
            (folder / "sparse" / "0" / f"{name}{suffix}").write_bytes(data)

    return prepare


def read_colmap(kind: tuple[tuple[str, bytes], ...], suffix: str) -> Callable[[bytes, Path], None]:
    def read(data: bytes, folder: Path) -> None:
        name, _ = kind[data[0] % 3 if data else 0]
        with replaced(folder / "sparse" / "0" / f"{name}{suffix}", data[1:]):
            look(captures.read_captures(folder)[0])

    return read


@contextmanager
def replaced(path: Path, data: bytes) -> Iterator[None]:
    """A file that holds the bytes, and afterwards what it held before."""
    whole = path.read_bytes()
    path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(whole)


def look(scene: captures.Scene) -> None:
    """Loads what one of a scene's frames points to."""
    for frame in scene.frames[:1]:
        frame.load()
        frame.load_mask()
        frame.load_depth()
        repr(frame.camera)


def of_three(kind: tuple[tuple[str, bytes], ...], *more: bytes) -> Callable[[], list[bytes]]:
    return lambda: [*(bytes((place,)) + data for place, (_, data) in enumerate(kind)), *more]


def inspect(data: bytes, folder: Path) -> None:
    """What is read without complaint may still hold numbers that no inspection can make sense of."""
    (folder / "transforms.json").write_bytes(data)
    inspect_captures(folder, photos=False).to_dict()


TRANSFORMS = {
    "fl_x": 60.0, "w": 12, "h": 9, "k1": 0.01, "camera_model": "OPENCV",
    "frames": [
        {"file_path": f"images/{name}.jpg", "transform_matrix": np.round(pose, 3).tolist(), "mask_path": "mask.png"}
        for name, pose in (("a", POSE), ("b", POSE + np.eye(4, k=3)))
    ],
}  # fmt: skip


def read_transforms(data: bytes, folder: Path) -> None:
    path = folder / "transforms.json"
    path.write_bytes(data)
    read_each(
        (
            lambda: look(captures.read_captures(path)[0]),
            lambda: transforms.read_blender(folder / "blender"),
            lambda: transforms.read_named_cameras(path),
            lambda: transforms.frame_of_photo(path, folder / "images" / "a.jpg"),
        )
    )


def write_transforms(folder: Path) -> None:
    write_photos(folder)
    write_maps(folder)
    (folder / "blender").mkdir()
    (folder / "blender" / "images").symlink_to(folder / "images")
    (folder / "blender" / "transforms_val.json").symlink_to(folder / "transforms.json")


SHOT = {
    "sequence_name": "seq", "frame_number": 1,
    "image": {"path": "car/seq/images/a.jpg", "size": [9, 12]},
    "mask": {"path": "car/seq/mask.png"},
    "depth": {"path": "car/seq/plain.png", "scale_adjustment": 1.5, "mask_path": "car/seq/mask.png"},
    "viewpoint": {
        "R": np.eye(3).tolist(), "T": [0, 0, 1.0], "focal_length": [3.0, 3.0], "principal_point": [0.0, 0.0],
        "intrinsics_format": "ndc_isotropic",
    },
}  # fmt: skip


def read_co3d(data: bytes, folder: Path) -> None:
    path = folder / "car" / co3d.ANNOTATIONS
    path.write_bytes(data if data.startswith(b"\x1f\x8b") else gzip.compress(data, 1))
    co3d._sequences.cache_clear()  # which knows files by their times, and these come faster
    look(captures.read_captures(folder / "car" / "seq")[0])


def write_co3d(folder: Path) -> None:
    write_photos(folder / "car" / "seq", ("images/a.jpg",))
    write_maps(folder / "car" / "seq")


PLY = b"ply\nformat %s 1.0\nelement vertex 2\nproperty float x\nproperty float y\nproperty float z\nend_header\n%s"


def read_clip(path: Path) -> None:
    realestate10k.is_clip(path)
    look(captures.read_captures(path)[0])


CLIP = "https://host.example/v\n" + "".join(
    f"{time} 1.2 1.6 0.5 0.5 0 0 1 0 0 0 0 1 0 0 0 0 1 0\n" for time in (40, 80)
)


def npz(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return file.getvalue()


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


WORLD = np.array(((60.0, 0, 6, 0), (0, 61, 4.5, 0), (0, 0, 1, 0), (0, 0, 0, 1)))


def read_dtu(data: bytes, folder: Path) -> None:
    whole = data.startswith(b"PK") or b"PK\x01\x02" in data
    (folder / "cameras.npz").write_bytes(data if whole else npz(world_mat_0=data))
    look(captures.read_captures(folder)[0])


def read_settings(data: bytes, folder: Path) -> None:
    path = folder / "a.yaml"
    path.write_bytes(data)
    lines = [line.decode(errors="replace") for line in data.split(b"\n")[:5]]
    read_each(
        (
            lambda: load_config(TrainConfig, path),
            lambda: load_config(PretrainConfig, path),
            lambda: load_config(TrainConfig, folder / "empty.yaml", lines),
        )
    )


def read_key_frames(path: Path) -> None:
    keyframes.along(keyframes.read_key_frames(path), Camera.from_fov(45, 12, 9), 5, elevation=10)


KEYS = (
    b"keyframes:\n  - {time: 0}\n  - {yaw: 25, pitch: 5, fov: 30, time: 1e+0}\n  - {distance: 0.5, roll: 3, time: 3}\n"
)
POSES = json.dumps({"keyframes": [{"world_to_camera": POSE.tolist()}, {"world_to_camera": POSE.tolist(), "fov": 30}]})


def write_of(name: str, read: Callable[[Path], Any]) -> Callable[[bytes, Path], None]:
    def write_and_read(data: bytes, folder: Path) -> None:
        (folder / name).write_bytes(data)
        read(folder / name)

    return write_and_read


def results() -> list[bytes]:
    found = Results(
        {"model": "m"},
        [EvaluatedPair("s", "a.jpg", "b.jpg", 1, 3.0, ("all", "near"))],
        [Row("copy", "Copy", "baseline")],
        [Figure("psnr", "PSNR", "higher", 2)],
        values={"copy": {"psnr": [20.0]}},
        estimates={"copy": {"all": {"psnr": Estimate(20.0, 19.0, 21.0)}}},
    )
    return [made(lambda path: found.write(path))]


def made(write: Callable[[Path], Any]) -> bytes:
    """The bytes of a file that the package writes."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder, "file"))
        return Path(folder, "file").read_bytes()


# A pack: its plan, what an index says of its scenes, or a whole index.


def write_pack(folder: Path) -> None:
    scene = folder / "scene"
    write_colmap(COLMAP_TEXT, ".txt")(scene)
    packing.pack_captures(captures.read_captures(scene), folder / "pack")


def read_pack(data: bytes, folder: Path) -> None:
    pack = folder / "pack"
    name = "pack.json" if b'"shards"' in data else "shard-00000.safetensors"
    if name != "pack.json" and data.startswith(b"{"):
        tensors = load((pack / name).read_bytes())
        rows = {key: tensors[key] for key in sorted(without_checksums(tensors))}
        about = {"about": data.decode(errors="replace")}
        data = save(with_checksums(rows, about), about)
    with replaced(pack / name, data):
        for scene in captures.read_captures(pack):
            for frame in scene.frames[:3]:
                frame.load()


def packs() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        write_pack(Path(folder))
        pack = Path(folder, "pack")
        index = (pack / "shard-00000.safetensors").read_bytes()
        header = json.loads(index[8 : 8 + int.from_bytes(index[:8], "little")])
        return [(pack / "pack.json").read_bytes(), index, header["__metadata__"]["about"].encode()]


# A store of latents: its plan, with a shard that fits it; or what a shard says of its scenes.

PLAN = {
    "format": 1, "prior": "bundled", "prior_fingerprint": "f", "alpha_star": 0.5, "image_size": 32,
    "inversion": {"t_star": 600, "steps": 3}, "shards": [{"s": ["a.jpg", "b.jpg"]}],
}  # fmt: skip
SCENES = [{"id": "s", "name": "s", "category": None, "model": "s", "frames": ["a.jpg", "b.jpg"], "elevation": 1.0}]


def read_store(data: bytes, folder: Path) -> None:
    plan, scenes = json.dumps(PLAN).encode(), json.dumps(SCENES).encode()
    if data.startswith(b"["):
        scenes = data
    else:
        plan = data
    (folder / "store.json").write_bytes(plan)
    try:
        digest = plan_digest(json.loads(plan))
    except Exception:
        digest = "none"
    tensors = {name: torch.zeros((2, 4, 8, 8), dtype=torch.float16) for name in LATENTS}
    tensors |= {"intrinsics": torch.eye(3).repeat(2, 1, 1), "world_to_camera": torch.eye(4).repeat(2, 1, 1)}
    tensors |= {"distance_scale": torch.ones(2)}
    metadata = {"about": f'{{"plan": "{digest}", "scenes": {scenes.decode(errors="replace")}}}'}
    shard = folder / "shard-00000.safetensors"
    shard.write_bytes(save(with_checksums(tensors, metadata, by_row=LATENTS), metadata))
    store = LatentStore(folder)
    for scene in store.scenes[:3]:
        store.cameras(scene)
        store.distance_scales(scene)
        if scene.frames:
            store.latents(scene, 0)


# Weights and models.


def weights() -> list[bytes]:
    """Of no network that is known: those have a billion numbers."""
    named = ("model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", "first_stage_model.a")
    return [save({name: torch.zeros(2, 5) for name in named}, {"modelspec.prediction_type": "epsilon"})]


MODEL_FILES = (
    "unet/config.json",
    "vae/config.json",
    "scheduler/scheduler_config.json",
    "model_index.json",
    "tunet/config.json",
)


def write_model(folder: Path) -> None:
    torch.manual_seed(0)
    sides = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4, **sides)
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (8,)}
    unet = UNet2DModel(sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, norm_num_groups=4, **blocks)
    small = {"sample_size": 8, "block_out_channels": (16, 32), "attention_levels": 1, "head_dim": 8}
    small |= {"cross_attention_dim": 24, "time_embed_dim": 24, "norm_groups": 4, "inversion_steps": 4}
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    NovelViewPipeline(TUNet(**small), vae, unet, scheduler).save_pretrained(folder / "model")


def read_model(data: bytes, folder: Path) -> None:
    """The first byte tells which of the configs it is."""
    with replaced(folder / "model" / MODEL_FILES[data[0] % len(MODEL_FILES) if data else 0], data[1:]):
        NovelViewPipeline.from_pretrained(folder / "model", device="cpu")


def models() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder))
        model = Path(folder, "model")
        return [bytes((place,)) + (model / name).read_bytes() for place, name in enumerate(MODEL_FILES)]


def videos() -> list[bytes]:
    import av

    made = []
    for suffix in ("mp4", "avi", "mkv"):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, f"a.{suffix}")
            with av.open(str(path), "w") as container:
                stream = container.add_stream("mpeg4", rate=10)
                stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
                for level in range(4):
                    frame = av.VideoFrame.from_ndarray(np.full((24, 32, 3), 60 * level, np.uint8), format="rgb24")
                    container.mux(stream.encode(frame))
                container.mux(stream.encode())
            made.append(path.read_bytes())
    return made


def read_import(data: bytes, folder: Path) -> None:
    (folder / "scene" / "import.json").write_bytes(data)
    photos._earlier(folder / "scene", {"source": "x", "frames": None, "max_size": 1600})


IMPORT = {
    "settings": {"source": "x", "frames": None, "max_size": 1600}, "models": [3], "points": 5, "mean_track_length": 2.5,
    "mean_reprojection_error": 0.5, "photos": [{"name": "000.jpg", "original": "a.jpg", "reason": None}],
    "lenses": [{"lens": "x", "photos": 3, "fov": 40.0, "exif_fov": None}],
}  # fmt: skip

TARGETS: dict[str, Target] = {
    "image": Target(
        lambda: pictures()[:-1],  # the last is of floats, which no photo is
        read_image,
        words=(b"\xff\xda", b"\xff\xc2", b"IDAT", b"iCCP", b"zTXt", b"\xff\xff\xff\x7f"),
    ),
    "map": Target(pictures, read_map, write_maps, (b"tRNS", b"PLTE", b"IHDR")),
    "colmap-binary": Target(
        of_three(COLMAP_BINARY, b"\0" + RADIAL_BIN),
        read_colmap(COLMAP_BINARY, ".bin"),
        write_colmap(COLMAP_BINARY, ".bin"),
        NUMBERS,
    ),
    "colmap-text": Target(
        of_three(COLMAP_TEXT, b"\x001 RADIAL 12 9 60 6 4.5 0.01 0.001\n"),
        read_colmap(COLMAP_TEXT, ".txt"),
        write_colmap(COLMAP_TEXT, ".txt"),
        (b"nan", b"inf", b"1e400", b"OPENCV", b"../../b.jpg", b"\0", b"9" * 5000, b"\xff\xfe"),
    ),
    "transforms": Target(
        lambda: [json.dumps(TRANSFORMS).encode()], read_transforms, write_transforms, (*JSON_WORDS, b'"k1": 1e9,')
    ),
    "inspect": Target(lambda: [json.dumps(TRANSFORMS).encode()], inspect, write_transforms, JSON_WORDS),
    "co3d": Target(
        lambda: [json.dumps([SHOT]).encode(), gzip.compress(json.dumps([SHOT]).encode())],
        read_co3d,
        write_co3d,
        JSON_WORDS,
    ),
    "ply": Target(
        lambda: [PLY % (b"ascii", b"0 0 1\n1 0 2\n"), PLY % (b"binary_little_endian", bytes(24))],
        write_of("a.ply", lambda path: ply.read_ply(path, 100)),
        words=(b"property list uchar int x\n", b"99999999999", b"binary_big_endian", b"property double x\n"),
    ),
    "realestate10k": Target(
        lambda: [CLIP.encode()],
        write_of("clip.txt", read_clip),
        lambda folder: write_photos(folder, ("clip/40.jpg", "clip/80.jpg")),
        (b"nan", b"inf", b"1e400", b"-1", b"9" * 5000, b"\0"),
    ),
    "dtu": Target(
        lambda: [npz(world_mat_0=npy(WORLD), scale_mat_0=npy(np.eye(4))), npy(WORLD), npy(WORLD.astype(">f4").T)],
        read_dtu,
        lambda folder: write_photos(folder, ("image/000.jpg",)),
        (*NUMBERS, b"'|O'", b"<f8", b"(4, 4)", b"(10000000, 4)", b"'fortran_order': True"),
    ),
    "settings": Target(
        lambda: [
            b"latents: data\nsteps: 100\ntunet: {conditioning: concat}\nlearning_rate: 1e-4\n",
            b"data: x\nout: y\nunet:\n  steps: 5\n",
        ],
        read_settings,
        lambda folder: (folder / "empty.yaml").touch(),
        (
            b"!!python/object/apply:os.system [id]",
            b"&a [*a]",
            b"*a",
            b"<<: ",
            b"2001-13-45",
            b"0x" + b"f" * 5000,
            b"1:1:1",
        ),
    ),
    "key-frames": Target(
        lambda: [KEYS, POSES.encode()],
        write_of("keys.yaml", read_key_frames),
        words=(b".nan", b".inf", b"-1", b"180", b"1e308", b"&a", b"*a"),
    ),
    "split": Target(
        lambda: [json.dumps({"train": ["a/b"], "val": [], "test": ["c/d"]}).encode()],
        write_of("split.json", read_split),
        words=JSON_WORDS,
    ),
    "pairs": Target(
        lambda: [made(lambda path: write_pairs(path, [Pair("s", "a", "b")]))],
        write_of("pairs.json", read_pairs),
        words=JSON_WORDS,
    ),
    "results": Target(results, write_of("results.json", Results.read), words=JSON_WORDS),
    "pose": Target(
        lambda: [b'{"yaw": 20, "pitch": 0.5, "distance": 1}'],
        lambda data, folder: Pose.read(parsed(data)),
        words=JSON_WORDS,
    ),
    "import": Target(
        lambda: [json.dumps(IMPORT).encode()], read_import, lambda folder: (folder / "scene").mkdir(), JSON_WORDS
    ),
    "pack": Target(packs, read_pack, write_pack, (*JSON_WORDS, *NUMBERS)),
    "store": Target(
        lambda: [json.dumps(PLAN).encode(), json.dumps(SCENES).encode()], read_store, words=(*JSON_WORDS, *NUMBERS)
    ),
    "weights": Target(
        weights,
        write_of("a.safetensors", lambda path: load_file(str(path), None, None, {})),
        words=(*JSON_WORDS, *NUMBERS, b"F64", b"I8"),
        whole=False,
    ),
    "model": Target(models, read_model, write_model, JSON_WORDS, slow=True),
    "video": Target(
        videos,
        write_of("a.mp4", lambda path: list(sharpness.sharp_frames(path, 3))),
        words=(*NUMBERS, b"#EXTM3U\n", b"moov", b"mdat"),
        slow=True,
    ),
}


def parsed(data: bytes) -> Any:
    """What the page's server makes of what a browser sent."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None
