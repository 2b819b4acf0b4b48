"""Files that are either whole or not there."""

import errno
import json
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Collection, Container, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from sidestep.errors import SidestepError

if TYPE_CHECKING:
    from torch import Tensor

# Of a disk or a quota that is full, and of a file larger than the system lets it be.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def atomic_path(path: str | Path, *, replace: bool = True) -> Iterator[Path]:
    """A temporary sibling of `path` to write to, renamed to `path` once the block has ended well.

    The temporary name keeps the suffix, because image and video writers choose their format by it. On an error it
    is removed and what stood at `path` before stays. A folder that is already there is replaced.

    Args:
        replace: whether a file that is already there is replaced, too; else, of several writers one succeeds.

    Raises:
        SidestepError: if the disk is full or cannot be written to, or safetensors cannot write a file of the block's.
        FileExistsError: if the file is there and is not to be replaced.
    """
    path = Path(path)
    temporary = _temporary(path)
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            if temporary.is_dir():
                _set_usual_modes(temporary)
            bring_to_disk(temporary)
        if path.is_dir() and temporary.is_dir():
            # Moved away before it is deleted: a kill in between must not leave half a folder under its name.
            old = _temporary(path)
            os.replace(path, old)
            os.replace(temporary, path)
            shutil.rmtree(old)
        elif replace:
            os.replace(temporary, path)
        else:
            _name_anew(temporary, path)
    except PermissionError as error:
        # A relative path's parents hold ".", which is what no name at all would be; a descriptor is no name.
        if not isinstance(error.filename, str | os.PathLike) or Path(error.filename) not in (temporary, *path.parents):
            raise
        raise _cannot_be_written(path, error.errno, os.strerror(errno.EACCES)) from None
    finally:
        if os.path.isdir(temporary):
            shutil.rmtree(temporary)
        else:
            with suppress(OSError):  # it was not made, or its folder is only read
                temporary.unlink()


def delete_folder(path: Path) -> None:
    """Deletes a folder, after it was moved away: a kill in between must not leave half of one under its name.

    Raises:
        OSError: if it is not there, or cannot be moved or deleted.
    """
    old = _temporary(path)
    os.replace(path, old)
    shutil.rmtree(old)


def _name_anew(temporary: Path, path: Path) -> None:
    """Names a file `path` unless there is one of that name, which raises FileExistsError."""
    try:
        os.link(temporary, path)
    except (FileExistsError, FileNotFoundError):
        raise
    except OSError:  # of a file system without hard links, where the last of two writers at one moment wins
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        os.replace(temporary, path)


def bring_to_disk(path: Path) -> None:
    """A machine that is lost must not leave a name whose bytes never came to the disk."""
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            with open(file, "rb") as opened:
                os.fsync(opened.fileno())


def save_tensors(
    path: str | Path,
    tensors: Mapping[str, "Tensor"],
    metadata: Mapping[str, str],
    by_row: Collection[str] = (),
) -> None:
    """Writes a file of safetensors with its checksums (`checksums.py`), whole or not at all, and brings it to the disk.

    Args:
        by_row: the tensors whose rows have checksums of their own.

    Raises:
        SidestepError: if it cannot be written.
    """
    from safetensors.torch import save_file  # brings torch, which most users of this module do without

    from sidestep.checksums import with_checksums

    path = Path(path)
    # safetensors writes to a name that it makes up, beside the one it is given, and keeps from all other users what it
    # has written. In a folder of its own, a file that a killed writer leaves is known for what it is.
    private = _temporary(path)
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            private.mkdir()
            checked = with_checksums(tensors, metadata, by_row)
            save_file(checked, private / path.name, metadata=dict(metadata))
            _set_usual_modes(private)
            bring_to_disk(private / path.name)
            os.replace(private / path.name, path)
    except OSError as error:
        raise _cannot_be_written(path, error.errno, error.strerror or str(error)) from None
    finally:
        shutil.rmtree(private, ignore_errors=True)


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Tells in one line that the disk is full or only read, and the same of safetensors, which has an error of its own.

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
        if error.errno not in (*_FULL, errno.EROFS):
            raise
        raise _cannot_be_written(path, error.errno, os.strerror(error.errno)) from None


def _cannot_be_written(path: str | Path, number: int | None, reason: str) -> SidestepError:
    advice = "free some space and run the same command again" if number in _FULL else "see to that and run it again"
    return SidestepError(f"{path}: cannot be written ({reason}); {advice}")


def _temporary(path: Path) -> Path:
    """A new name beside `path`, by which `sweep` knows whose it is."""
    return path.with_name(f".{path.stem}.{secrets.token_hex(4)}.part{path.suffix}")


def _set_usual_modes(folder: Path) -> None:
    """Lets whoever may read new files here read a folder's safetensors, which the library makes for their owner."""
    files = list(folder.rglob("*.safetensors"))
    if not files:
        return
    probe = folder / f".{secrets.token_hex(4)}"  # in the folder, with which it is swept if this is killed here
    probe.touch()
    usual = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for file in files:
        mode = stat.S_IMODE(file.stat().st_mode)
        if mode | usual != mode:
            file.chmod(mode | usual)


def sweep(folder: Path, names: Container[str] | None = None) -> None:
    """Deletes what killed writers of some of a folder's files, or of folders in it, left under temporary names.

    Args:
        names: of those that are whole already, so that a writer who is still at one of them does no harm by failing,
            or that nobody else writes; None for all.
    """
    for leftover in folder.glob(".*.part*"):
        stem, suffix = leftover.name[1:].rsplit(".part", 1)
        if names is not None and stem.rpartition(".")[0] + suffix not in names:
            continue
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)  # its writer may be at it still
        else:
            with suppress(OSError):  # of a folder that is only read
                leftover.unlink()


@contextmanager
def alone(lock: Path, busy: str) -> Iterator[None]:
    """Keeps other processes from the same work, by a file that is gone afterwards; a killed process's keeps nobody.

    Raises:
        SidestepError: saying `busy`, if another is at it.
    """
    from filelock import FileLock, Timeout

    guard = FileLock(lock)
    try:
        guard.acquire(timeout=0)
    except Timeout:
        raise SidestepError(busy) from None
    try:
        yield
    finally:
        with suppress(OSError):  # of Windows, where releasing it deletes it
            lock.unlink()
        guard.release()


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


def write_json(path: str | Path, data: Any, *, replace: bool = True) -> None:
    """Writes `data` as indented JSON, whole or not at all; `replace` and errors as of `atomic_path`."""
    with atomic_path(path, replace=replace) as temporary:
        temporary.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
