"""Files that are either whole or not there."""

import errno
import json
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from sidestep.errors import SidestepError

if TYPE_CHECKING:
    from torch import Tensor

# Of a disk or a quota that is full, and of a file larger than the system lets it be: what only writing can meet.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary sibling of `path` to write to, renamed to `path` once the block has ended well.

    The temporary name keeps the suffix, because image and video writers choose their format by it. On an error it
    is removed and what stood at `path` before stays. A folder that is already there is replaced.

    Raises:
        SidestepError: if the disk is full, or safetensors cannot write a file of the block's.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        with writing(path):
            yield temporary
        if temporary.is_dir():
            _set_usual_modes(temporary)
        if path.is_dir() and temporary.is_dir():
            # Moved away before it is deleted: a kill in between must not leave half a folder under its name.
            old = _temporary(path)
            os.replace(path, old)
            os.replace(temporary, path)
            shutil.rmtree(old)
        else:
            os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)


def save_tensors(path: str | Path, tensors: Mapping[str, "Tensor"], metadata: Mapping[str, str]) -> None:
    """Writes a file of safetensors, whole or not at all, and brings it to the disk.

    Raises:
        SidestepError: if it cannot be written.
    """
    from safetensors.torch import save_file  # brings torch, which most users of this module do without

    path = Path(path)
    # safetensors writes to a name that it makes up, beside the one it is given, and keeps from all other users what it
    # has written. In a folder of its own, a file that a killed writer leaves is known for what it is.
    private = _temporary(path)
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            private.mkdir()
            save_file(dict(tensors), private / path.name, metadata=dict(metadata))
            _set_usual_modes(private)
            # A machine that is lost must not leave a name whose bytes never came to the disk.
            with open(private / path.name, "rb") as file:
                os.fsync(file.fileno())
            os.replace(private / path.name, path)
    except OSError as error:
        raise _cannot_be_written(path, error.errno, error.strerror or str(error)) from None
    finally:
        shutil.rmtree(private, ignore_errors=True)


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Tells in one line that the disk is full, and what keeps safetensors, which has an error of its own, from writing.

    Args:
        path: of the file or folder that the block writes.
    """
    try:
        yield
    except SafetensorError as error:
        found = re.search(r"\(os error (\d+)\)", str(error))
        if found is None:
            raise
        raise _cannot_be_written(path, int(found[1]), os.strerror(int(found[1]))) from None
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise _cannot_be_written(path, error.errno, os.strerror(error.errno)) from None


def _cannot_be_written(path: str | Path, number: int | None, reason: str) -> SidestepError:
    advice = "free some space and run the same command again" if number in FULL else "see to that and run it again"
    return SidestepError(f"{path}: cannot be written ({reason}); {advice}")


def _temporary(path: Path) -> Path:
    """A new name beside `path`, by which `sweep` knows whose it is."""
    return path.with_name(f".{path.stem}.{secrets.token_hex(4)}.part{path.suffix}")


def _set_usual_modes(folder: Path) -> None:
    """Lets whoever may read new files here read a folder's safetensors, which the library makes for their owner."""
    files = list(folder.rglob("*.safetensors"))
    if not files:
        return
    probe = _temporary(folder)
    probe.touch()
    usual = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for file in files:
        mode = stat.S_IMODE(file.stat().st_mode)
        if mode | usual != mode:
            file.chmod(mode | usual)


def sweep(folder: Path, names: Container[str]) -> None:
    """Deletes what killed writers of some of a folder's files, or of folders in it, left under temporary names.

    Args:
        names: of those that are whole already, so that a writer who is still at one of them does no harm by failing,
            or that nobody else writes.
    """
    for leftover in folder.glob(".*.part*"):
        stem, suffix = leftover.name[1:].rsplit(".part", 1)
        if stem.rpartition(".")[0] + suffix not in names:
            continue
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)  # its writer may be at it still
        else:
            leftover.unlink(missing_ok=True)


def make_folder(path: str | Path) -> None:
    """Makes the folder where it is not there, and tries it, before hours of work end in a file that cannot be written.

    Raises:
        SidestepError: if it is a file, or nothing can be written into it.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise SidestepError(f"{path}: cannot be a folder to write into ({error.strerror}); name another") from None


def write_json(path: str | Path, data: Any) -> None:
    """Writes `data` as indented JSON, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
