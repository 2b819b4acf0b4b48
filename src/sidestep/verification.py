"""Whether files still hold what was written: all of their bytes, which takes as long as reading them does.

Sidestep itself compares what it reads when it reads it, so nobody needs this to be safe. It answers for a whole set at
once: after a copy, or when training stops at numbers that are not finite.
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from sidestep.captures.packed import is_pack, open_plan
from sidestep.captures.packing import CHECKSUMS
from sidestep.captures.storage import REMOTE_BYTES, Storage
from sidestep.checksums import DIGEST, ROWS, are_intact, damaged_row
from sidestep.errors import SidestepError
from sidestep.latents import find_damage
from sidestep.models.sums import check_file

_LINE = re.compile(r"([0-9a-f]{64})  (shard-\d{5,}\.(?:tar|safetensors))")

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Verified:
    """What was found.

    Attributes:
        path: as it was given.
        kind: "store of latents", "pack", or "run" for files of tensors, a model's too.
        files: that were read.
        bytes: of these.
        without_checksums: how many of these have none (an earlier version's, another program's): they tell nothing.
        faults: what is damaged, or missing from a store or a pack, a line each, with what to do.
    """

    path: str
    kind: str
    files: int
    bytes: int
    without_checksums: int
    faults: list[str]


def verify(path: str | Path, progress: Progress | None = None) -> Verified:
    """Reads all of a store of latents, of a pack (a folder or a URL), or of a run with its models, and compares it.

    Args:
        path: of a folder, or of one file of tensors.
        progress: called with (files read, files in all).

    Raises:
        SidestepError: if there is nothing that has checksums.
    """
    folder = Path(path)
    if (folder / "store.json").exists():
        found = _store(folder, progress)
    elif is_pack(path):
        found = _pack(str(path), progress)
    elif not folder.exists():
        raise SidestepError(f"{path}: no such file or folder")
    else:
        found = _run(folder, progress)
    if found.files == found.without_checksums and not found.faults:
        raise SidestepError(
            f"{path}: holds nothing that has checksums; name a store, a pack, a run, a model or a checkpoint that this "
            "version wrote"
        )
    return found


def _store(folder: Path, progress: Progress | None) -> Verified:
    size, without, faults = find_damage(folder, progress)
    return Verified(str(folder), "store of latents", len(list(folder.glob("shard-*"))), size, without, faults)


def _pack(path: str, progress: Progress | None) -> Verified:
    storage = Storage.at(path)
    open_plan(storage)
    try:
        lines = storage.read(CHECKSUMS).decode("ascii", errors="replace").splitlines()
    except FileNotFoundError:
        raise SidestepError(f"{storage}: not whole (no {CHECKSUMS}); run the same `sidestep pack` again") from None
    size, faults = 0, []
    for done, line in enumerate(lines, start=1):
        listed = _LINE.fullmatch(line)
        if listed is None:
            raise SidestepError(f"{storage.locate(CHECKSUMS)}: damaged; copy it again, or delete it and pack again")
        sha256, name = listed.groups()
        found = hashlib.sha256()
        try:
            with storage.open(name) as file:
                while data := file.read(REMOTE_BYTES):
                    found.update(data)
                    size += len(data)
            if found.hexdigest() != sha256:
                faults.append(f"{storage.locate(name)}: damaged; copy it again, or delete it and pack again")
        except FileNotFoundError:
            faults.append(f"{storage.locate(name)}: no such file; copy the pack again, or pack again")
        except SidestepError as error:
            faults.append(str(error))
        except OSError as error:  # of a disk that gives some of a file and then no more
            faults.append(f"{storage.locate(name)}: cannot be read ({error.strerror or error})")
        if progress is not None:
            progress(done, len(lines))
    return Verified(path, "pack", len(lines), size, 0, faults)


def _run(path: Path, progress: Progress | None) -> Verified:
    files = (
        [path]
        if path.is_file()
        else [file for file in sorted(path.rglob("*.safetensors")) if _has_its_name(file, path)]
    )
    size, without, faults = 0, 0, []
    for done, file in enumerate(files, start=1):
        try:
            size += file.stat().st_size
            listed = check_file(file)
            with safe_open(file, framework="pt") as opened:
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no dictionary)
                intact = are_intact(tensors, opened.metadata() or {})
            for name in (name for name in tensors if name.startswith(ROWS)):
                own = name.removeprefix(ROWS)
                intact = intact and damaged_row(tensors, own, range(len(tensors[own]))) is None
            without += not listed and DIGEST not in tensors
            if not intact:
                faults.append(f"{file}: damaged; delete it and run the command that made it again")
        except SidestepError as error:
            faults.append(str(error))
        except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
            faults.append(f"{file}: damaged, or no .safetensors file ({error})")
        if progress is not None:
            progress(done, len(files))
    return Verified(str(path), "run", len(files), size, without, faults)


def _has_its_name(file: Path, folder: Path) -> bool:
    """Whether it is a file that has been written; what a writer is still at, or was when it was killed, is hidden."""
    return file.is_file() and not any(part.startswith(".") for part in file.relative_to(folder).parts)
