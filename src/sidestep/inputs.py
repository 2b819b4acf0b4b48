"""Files that come from elsewhere: opened only if they are files, read up to a limit, taken for text only if they are.

A folder that somebody was sent may hold a pipe, of which reading never ends, a sparse file that claims a terabyte, or
JSON nested a million deep.
"""

import errno
import hashlib
import json
import os
import stat
from io import DEFAULT_BUFFER_SIZE, BufferedReader, FileIO
from pathlib import Path
from typing import Any

from sidestep.errors import SidestepError

# The environment's: folders that links may lead to, several as in PATH.
LINKS_TO = "SIDESTEP_LINKS_TO"
MOST_TEXT = 64 * 2**20  # bytes of a JSON file: 2.5 million numbers; what is read of it may take 25 times as much memory


def open_file(path: str | Path, buffering: int = DEFAULT_BUFFER_SIZE) -> BufferedReader:
    """A file, open for reading.

    Args:
        buffering: bytes read at once.

    Raises:
        OSError: as of `open`, and of a pipe or device too; of a name that no file can have as well.
    """
    try:
        file: BufferedReader = BufferedReader(FileIO(path, opener=_without_waiting), buffering)
    except ValueError as error:  # a null byte, or half of a character
        raise OSError(errno.EINVAL, str(error), str(path)) from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "a pipe or a device, and no file", str(path))
    return file


def read_bytes(path: str | Path, most: int) -> bytes:
    """A whole file.

    Raises:
        SidestepError: if it cannot be read, or has more than `most` bytes.
    """
    try:
        with open_file(path) as file:
            if os.fstat(file.fileno()).st_size > most:
                raise SidestepError(f"{path}: larger than {_told(most)}, which no such file is")
            return file.read()
    except FileNotFoundError:
        raise SidestepError(f"{path}: no such file") from None
    except OSError as error:
        raise SidestepError(f"{path}: cannot be read ({error.strerror or error})") from None


def read_text(path: str | Path, most: int = MOST_TEXT) -> str:
    """A whole file of text, in UTF-8, with a byte order mark or without.

    Raises:
        SidestepError: as `read_bytes`, or if it is no such text.
    """
    try:
        return read_bytes(path, most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SidestepError(f"{path}: cannot be read as text ({error}); save it as UTF-8") from None


def read_json(path: str | Path, most: int = MOST_TEXT) -> Any:
    """What a JSON file holds, of any shape. NaN and Infinity, which Python writes, are numbers.

    Raises:
        SidestepError: as `read_text`, or if it is no JSON, or nested more deeply than Python can follow.
    """
    text = read_text(path, most)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SidestepError(f"{path}: cannot be read as JSON ({error})") from None


def sha256_of(path: str | Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits.

    Raises:
        OSError: as `open_file`.
    """
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def leads_out(path: Path, root: Path) -> bool:
    """Whether links lead a path out of a folder; or, where its text does already, out of what holds both.

    Not where they lead into a folder that SIDESTEP_LINKS_TO names. In the hub's cache every file is a link from
    snapshots/REVISION/ to blobs/ beside, which is no way out either.
    """
    top = Path(os.path.commonpath((os.path.abspath(path), os.path.abspath(root))))
    real = Path(os.path.realpath(path))
    allowed = [Path(folder) for folder in os.environ.get(LINKS_TO, "").split(os.pathsep) if folder]
    if any(real.is_relative_to(os.path.realpath(folder)) for folder in (top, *allowed)):
        return False
    repositories = (folder.parent.parent for folder in path.absolute().parents if folder.parent.name == "snapshots")
    return not any(real.parent == Path(os.path.realpath(repository), "blobs") for repository in repositories)


def link_out(path: Path, place: str) -> SidestepError:
    """The error of a file that `leads_out` of a place."""
    return SidestepError(
        f"{path}: a link out of {place}, to {path.resolve()}; copy it there, or, if the link is yours, name a folder "
        f"above that in the environment's {LINKS_TO}"
    )


def _without_waiting(path: str, flags: int) -> int:
    # Opening a pipe would wait for somebody to write to it. For files the flag means nothing.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _told(size: int) -> str:
    return f"{size // 2**20} MiB" if size >= 2**20 else f"{size // 2**10} KiB"
