"""Files that are either whole or not there."""

import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sidestep.errors import SidestepError


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary sibling of `path` to write to, renamed to `path` once the block has ended well.

    The temporary name keeps the suffix, because image and video writers choose their format by it. On an error it
    is removed and what stood at `path` before stays. A folder that is already there is replaced.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.part{path.suffix}")
    try:
        yield temporary
        if path.is_dir() and temporary.is_dir():
            # Moved away before it is deleted: a kill in between must not leave half a folder under its name.
            old = temporary.with_suffix(".old")
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


def sweep(folder: Path, names: Container[str]) -> None:
    """Deletes the temporary files that killed writers of some of a folder's files left.

    Args:
        names: of files that are whole already, so that a writer who is still at one of them does no harm by failing.
    """
    for leftover in folder.glob(".*.part*"):
        stem, suffix = leftover.name[1:].rsplit(".part", 1)
        if stem.rpartition(".")[0] + suffix in names:
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
