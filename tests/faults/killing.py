"""Kills Sidestep's long commands at random moments, again and again, and looks at what is left each time.

    python tests/faults/killing.py FOLDER --kills 200

One process imports everything, makes small inputs in FOLDER and forks a process for each run of a command, which is
killed (SIGKILL) after a random time or before a random operation on a file, or (SIGXFSZ) in the midst of writing one.
After each kill every file that has its name is compared with a run's that nobody killed; then the same command goes on
in the same folder. Once it ends, all must be as if it had never been killed, and nothing may be left over. Moments are
drawn from a seed; how far a run gets by then depends on the machine. Prints a JSON object, a value a command.
"""

import argparse
import json
import os
import random
import resource
import select
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError

os.environ["OMP_NUM_THREADS"] = "1"  # a process with more threads cannot be forked

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image
from safetensors import safe_open
from torch.utils import tensorboard  # noqa: F401 (the runs need it)

import sidestep.devices
import sidestep.evaluation.published
from sidestep.captures import read_captures
from sidestep.captures.packing import pack_captures
from sidestep.captures.pairs import Pair, write_pairs
from sidestep.captures.photos import import_photos
from sidestep.captures.splits import write_split
from sidestep.checksums import DIGEST, are_intact
from sidestep.encoding import encode_captures
from sidestep.evaluation.evaluate import evaluate
from sidestep.pipeline import NovelViewPipeline
from sidestep.pretraining import PretrainConfig, pretrain
from sidestep.pretraining.config import AutoencoderConfig, UNetConfig
from sidestep.prior import LatentPrior
from sidestep.training import TrainConfig, train
from sidestep.tunet import TUNet

TESTS = Path(__file__).parents[1]
with pytest.MonkeyPatch.context() as patch:
    for beside in (TESTS, TESTS / "captures"):
        patch.syspath_prepend(beside)
    import corner

    from miniatures import SD, SETTINGS, TINY_TUNET, kl, tiny_prior, unet, write_scenes

FURNITURE = TESTS / "data" / "furniture"
PATIENCE = 600.0  # seconds that a run may take before it is taken for one that hangs
# Of 200 kills, how many each command gets; a scene's import runs COLMAP, and takes a hundred times as long as a pack.
SHARES = {"encode": 50, "train": 50, "pretrain": 40, "pack": 40, "evaluate": 12, "import": 8}
KINDS = {"moment": 0.45, "operation": 0.45, "write": 0.1}


@dataclass(frozen=True)
class Command:
    """A command to kill.

    Attributes:
        run: does its work in the folder that it is given.
        kinds: of kills.
    """

    name: str
    run: Callable[[Path], object]
    kinds: tuple[str, ...] = tuple(KINDS)


def commands(folder: Path, names: Sequence[str]) -> Iterator[Command]:
    """Those of these names, with small inputs written to `folder`."""
    if "encode" in names or "train" in names:
        (folder / "photos").mkdir()
        prior, scenes = tiny_prior(), write_scenes(folder / "photos")
        prior.save_pretrained(folder / "prior")
        options: dict[str, Any] = {"prior_name": str(folder / "prior"), "scenes_per_shard": 1, "batch_size": 2}

        def encode(out: Path) -> None:
            encode_captures(prior, scenes, out, SETTINGS, **options)

        if "encode" in names:
            yield Command("encode", encode)
        if "train" in names:
            done = _fork(lambda: encode(folder / "latents"))
            assert done.code == 0, done
            by_split = {"train": scenes[:3], "val": scenes[3:], "test": []}
            write_split(folder / "split.json", by_split)
            loop: dict[str, Any] = {"batch_size": 4, "precision": "fp32", "save_every": 3, "sample_every": 4}
            loop |= {"size": "small", "tunet": dict(TINY_TUNET), "pairs": "any", "split": str(folder / "split.json")}
            yield Command(
                "train", lambda out: train(TrainConfig(latents=folder / "latents", out=out, steps=10, **loop))
            )
    if "pretrain" in names:
        (folder / "pictures").mkdir()
        for number in range(40):
            pixels = np.random.default_rng(number).integers(0, 256, (5, 5, 3), dtype=np.uint8)
            image = Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC)
            image.save(folder / "pictures" / f"m{number}.png")
        common: dict[str, Any] = {"batch_size": 4, "precision": "fp32", "save_every": 2, "sample_every": 3}
        autoencoder = AutoencoderConfig(steps=4, crop=16, channels=(8, 8, 8, 16), **common)
        unet = UNetConfig(steps=5, channels=(32, 32), attention=(False, True), layers_per_block=1, **common)
        networks: dict[str, Any] = {"image_size": 32, "autoencoder": autoencoder, "unet": unet}
        yield Command("pretrain", lambda out: pretrain(PretrainConfig(folder / "pictures", out, **networks)))
    if "pack" in names:
        furniture = read_captures(FURNITURE)
        yield Command("pack", lambda out: pack_captures(furniture, out, frames_per_shard=25))
    if "evaluate" in names:
        model, pairs = folder / "model", folder / "pairs.json"
        _write_model(model)
        chair, table = "chair/scopia024", "table/scopia091"
        frames = (chair, "003.jpg", "005.jpg"), (table, "010.jpg", "001.jpg"), (chair, "020.jpg", "002.jpg")
        write_pairs(pairs, [Pair(*each) for each in frames])
        yield Command(
            "evaluate", lambda out: evaluate(model, FURNITURE, out, pairs=pairs, steps=2, batch_size=2, device="cpu")
        )
    if "import" in names:
        (folder / "walk").mkdir()
        for number, camera in enumerate(corner.cameras(8, 240, 180)):
            corner.photograph(camera, 0).save(folder / "walk" / f"IMG_{number}.jpg", quality=95)
        yield Command("import", lambda out: import_photos(folder / "walk", out), ("moment", "operation"))


def _write_model(folder: Path) -> None:
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    vae, network = kl(block_out_channels=(8, 8, 8), **blocks), unet()
    scheduler = DDIMScheduler(**SD)
    told = {"inversion_steps": 4, "prior_fingerprint": LatentPrior(vae, network, scheduler).fingerprint()}
    NovelViewPipeline(TUNet(sample_size=8, **TINY_TUNET, **told), vae, network, scheduler).save_pretrained(folder)


@dataclass(frozen=True)
class End:
    """How a forked process ended.

    Attributes:
        code: its exit code, or minus the signal that ended it.
        seconds: that it took.
        operations: on files of the folder, if they were counted and it ended by itself.
        told: what it wrote to stderr.
    """

    code: int
    seconds: float
    operations: int
    told: str


def _fork(
    work: Callable[[], object],
    *,
    after: float | None = None,
    before_operation: int | None = None,
    file_size: int | None = None,
    watched: Path | None = None,
) -> End:
    """Does the work in another process.

    Args:
        after: seconds after which it is killed.
        before_operation: which operation on a file below `watched` it is killed before, from 1 on.
        file_size: bytes that no file may exceed; writing one that would ends the process.
    """
    started = time.monotonic()
    told, tell = os.pipe()
    counted, count = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(tell, 2)
        code = 1
        try:
            torch.set_num_threads(1)  # torch renews a forked pool at its first use, for which two threads may not race
            seen = _count_operations(watched, before_operation) if watched else [0]
            if file_size is not None:
                signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
            work()
            os.write(count, str(seen[0]).encode())
            code = 0
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(code)
    os.close(tell)
    os.close(count)
    handle = os.pidfd_open(child)
    text = b""
    while True:
        passed = time.monotonic() - started
        limit = PATIENCE if after is None else after
        ready, _, _ = select.select([told, handle], [], [], max(0.0, limit - passed))
        if told in ready and (data := os.read(told, 65536)):
            text += data
        elif handle in ready:
            break
        elif not ready:
            os.kill(child, signal.SIGKILL)
            if after is None:
                raise TimeoutError(text.decode())
            break
    _, status = os.waitpid(child, 0)
    operations = int(os.read(counted, 100) or 0)
    for descriptor in (handle, told, counted):
        os.close(descriptor)
    return End(os.waitstatus_to_exitcode(status), time.monotonic() - started, operations, text.decode(errors="replace"))


def _count_operations(folder: Path, last: int | None) -> list[int]:
    """Counts in a list's one item what this process does to files below a folder; kills it before the `last`."""
    seen = [0]
    place = str(folder)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if not (event == "open" or event.startswith(("os.", "shutil."))):
            return
        named = any(place in str(argument) for argument in arguments if isinstance(argument, str | os.PathLike))
        # What lies in a folder that is deleted is named by that folder's descriptor, which is -1 where there is none.
        if named or (event in ("os.remove", "os.rmdir") and arguments[-1] != -1):
            seen[0] += 1
            if seen[0] == last:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return seen


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder.parent).parts)


def contents(folder: Path) -> dict[str, Any]:
    """What two runs have in common, by the names of their files."""
    found = {path.relative_to(folder).as_posix(): comparable(path) for path in named(folder)}
    return {name: value for name, value in found.items() if value is not None}


def named(folder: Path) -> list[Path]:
    """The files that have their own names."""
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and not _is_hidden(path, folder)]


def comparable(path: Path) -> Any:
    """A file's bytes, but for what tells of the time that a run took; None for a file of nothing else."""
    if path.parent.name == "tensorboard" or path.name == "git-revision.txt":  # the code may change, too
        return None
    if path.name == "metrics.jsonl":
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]
    if path.name == "results.json":
        results = json.loads(path.read_text())
        return {key: value for key, value in results.items() if key not in ("seconds", "memory")}
    if path.name == "latents.safetensors":  # its metadata is in no fixed order
        return sorted((name, tensor.tolist()) for name, tensor in tensors(path).items())
    if path.name == "report.html":
        return path.read_text().rstrip().endswith("</html>")
    return path.read_bytes()


def tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file, if they are what was written."""
    with safe_open(path, framework="pt") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        assert DIGEST in found, path
        assert are_intact(found, file.metadata()), path
    return found


def check(folder: Path, whole: dict[str, Any]) -> bool:
    """Looks at what a killed run left: each file that has its name is the final one, or whole on its own.

    Returns:
        Whether there are files under temporary names.
    """
    for path in named(folder):
        name = path.relative_to(folder).as_posix()
        if path.name == "checkpoint.safetensors":
            tensors(path)
        elif path.name == "metrics.jsonl":
            for line in path.read_text().splitlines()[:-1]:
                json.loads(line)
        else:
            assert comparable(path) == whole.get(name), f"{path} is not what it ends as"
    return any(_is_hidden(path, folder) for path in folder.parent.rglob("*"))


def kill(command: Command, folder: Path, kills: int, rng: random.Random) -> dict[str, Any]:
    """Runs a command until it was killed so many times by SIGKILL; what happened."""
    started = time.monotonic()
    out = folder / "out" / command.name
    out.parent.mkdir(parents=True)
    end = _fork(lambda: command.run(out), watched=out.parent)
    assert end.code == 0, end.told
    whole = contents(out)
    sizes = sorted(path.stat().st_size for path in named(out))
    shutil.rmtree(out.parent)
    counts: Counter[str] = Counter()
    while counts["moment"] + counts["operation"] < kills or out.parent.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        kind = rng.choices(command.kinds, [KINDS[kind] for kind in command.kinds])[0]
        how: dict[str, Any] = {}
        if counts["moment"] + counts["operation"] >= kills:
            kind = "to the end"
        elif kind == "moment":
            how = {"after": rng.uniform(0, end.seconds)}
        elif kind == "operation":
            how = {"before_operation": rng.randint(1, end.operations), "watched": out.parent}
        else:
            how = {"file_size": rng.randint(1, rng.choice(sizes))}
        last = _fork(lambda: command.run(out), **how)
        if last.code == 0:
            counts["ends"] += 1
            found = contents(out)
            different = [name for name in found.keys() | whole.keys() if found.get(name) != whole.get(name)]
            assert not different, f"{command.name}: another end: {different}"
            left = [str(path) for path in out.parent.rglob("*") if _is_hidden(path, out)]
            assert not left, f"{command.name}: left over: {left}"
            shutil.rmtree(out.parent)
            continue
        assert last.code == (-signal.SIGXFSZ if kind == "write" else -signal.SIGKILL), last.told
        counts[kind] += 1
        counts["with leftovers"] += check(out, whole)
        print(f"{command.name}: {dict(counts)}", file=sys.stderr, flush=True)
    return {**counts, "operations": end.operations, "seconds": round(time.monotonic() - started, 1)}


def _refuse(*_: Any, **__: Any) -> None:
    raise URLError("no network in tests")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=sum(SHARES.values()), help="over all commands")
    parser.add_argument("--only", default=",".join(SHARES), help="these commands, by commas")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    sidestep.devices.network_dtype = lambda device: torch.float32
    sidestep.evaluation.published.urlopen = _refuse
    os.environ["TORCH_HOME"] = str(options.folder / "torch")
    names = options.only.split(",")
    share = options.kills / sum(SHARES[name] for name in names)
    found = {}
    for command in commands(options.folder, names):
        kills = max(1, round(SHARES[command.name] * share))
        found[command.name] = kill(command, options.folder / command.name, kills, random.Random(options.seed))
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
