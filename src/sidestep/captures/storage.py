"""A folder on a disk, or behind a URL: s3://bucket/prefix, https://host/folder, memory://name, through fsspec.

Credentials, endpoints and the like are the backends' own business: they read the environment and fsspec's
configuration files.
"""

import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

from sidestep.errors import SidestepError
from sidestep.files import atomic_path, make_folder, sweep
from sidestep.inputs import open_file

# Two letters or more, because C:/ is a disk; and caching:: may stand before it. A Path keeps one slash of the two.
_URL = re.compile(r"((?:\w+::)*[A-Za-z][A-Za-z0-9+.-]+):/+")
# Of a file that is read from front to back, what is fetched at once: on a disk, and behind a URL.
LOCAL_BYTES, REMOTE_BYTES = 2**20, 8 * 2**20


@dataclass(frozen=True)
class Storage:
    """Files under plain names in one place; nothing is open between two calls, so that it survives a fork.

    Attributes:
        path: the folder, or a URL without a slash at its end.
    """

    path: Path | str

    @classmethod
    def at(cls, path: str | PurePath) -> "Storage":
        """The place that a path or URL names; a URL may have gone through a `Path`."""
        text = path.as_posix() if isinstance(path, PurePath) else path
        found = _URL.match(text)
        if found is None:
            return cls(Path(path))
        scheme, rest = found[1], text[found.end() :].rstrip("/")
        return cls(Path("/", rest)) if scheme == "file" else cls(f"{scheme}://{rest}")

    @property
    def remote(self) -> bool:
        return isinstance(self.path, str)

    def __str__(self) -> str:
        return str(self.path)

    def locate(self, name: str) -> str:
        """The path or URL of a file, for messages and other programs."""
        return f"{self.path}/{name}"

    def read(self, name: str, start: int = 0, size: int | None = None) -> bytes:
        """A file's bytes: all, or `size` of them from `start` on, fewer only where the file ends before.

        Raises:
            FileNotFoundError: if it is not there.
            SidestepError: if it cannot be read.
        """
        if isinstance(self.path, Path):
            with _looking(self.locate(name)), open_file(self.path / name) as file:
                file.seek(start)
                return file.read() if size is None else file.read(size)
        with _asking(self.locate(name)) as (system, path):
            data: bytes = system.cat_file(path, start=start or None, end=None if size is None else start + size)
        if size is not None and len(data) > size:
            raise SidestepError(f"{self.locate(name)}: the server sends whole files only, not parts; copy the folder")
        return data

    def size(self, name: str) -> int | None:
        """A file's size in bytes, or None if it is not there, or is none.

        Raises:
            SidestepError: if that cannot be found out.
        """
        try:
            if isinstance(self.path, Path):
                with _looking(self.locate(name)):
                    found = (self.path / name).stat()
                return found.st_size if stat.S_ISREG(found.st_mode) else None
            with _asking(self.locate(name)) as (system, path):
                return int(system.info(path)["size"])
        except FileNotFoundError:
            return None

    def names(self) -> list[str]:
        """The names of what lies in the folder, sorted; none where there is no folder."""
        try:
            if isinstance(self.path, Path):
                with _looking(str(self.path)):
                    return sorted(path.name for path in self.path.iterdir())
            with _asking(self.path) as (system, path):
                system.invalidate_cache()
                return sorted(str(entry).rstrip("/").rpartition("/")[2] for entry in system.ls(path, detail=False))
        except FileNotFoundError:
            return []

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """A file to read from front to back, in which one may skip.

        Raises:
            FileNotFoundError: if it is not there.
            SidestepError: if it cannot be opened.
        """
        if isinstance(self.path, Path):
            with _looking(self.locate(name)):
                file = open_file(self.path / name, LOCAL_BYTES)
            with file:
                yield file
            return
        with _asking(self.locate(name)) as (system, path):
            stream: Any = system.open(path, "rb", block_size=REMOTE_BYTES, cache_type="readahead")
        with stream:
            yield stream

    @contextmanager
    def local(self, name: str) -> Iterator[Path]:
        """A file as one on the disk, fetched if it is behind a URL.

        Raises:
            FileNotFoundError: if it is not there.
            SidestepError: if it cannot be fetched.
        """
        if isinstance(self.path, Path):
            if self.size(name) is None:
                raise FileNotFoundError(self.locate(name))
            yield self.path / name
            return
        with TemporaryDirectory(prefix="sidestep-", ignore_cleanup_errors=True) as folder:
            with _asking(self.locate(name)) as (system, path):
                system.get_file(path, f"{folder}/{name}")
            yield Path(folder, name)

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """A temporary file on the disk to write to, which becomes `name`, whole, once the block has ended well."""
        if isinstance(self.path, Path):
            with atomic_path(self.path / name) as temporary:
                yield temporary
            return
        with TemporaryDirectory(prefix="sidestep-") as folder:
            yield Path(folder, name)
            try:
                with _asking(self.locate(name), "written") as (system, path):
                    system.put_file(f"{folder}/{name}", path)
            except FileNotFoundError as error:
                raise SidestepError(
                    f"{self.locate(name)}: cannot be written ({error}); make the bucket first"
                ) from None

    def sweep(self) -> None:
        """Deletes the temporary files that a killed `writing` left; behind a URL it leaves none."""
        if isinstance(self.path, Path):
            sweep(self.path)

    def make(self) -> None:
        """Makes the folder where it is not there, and tries it; behind a URL the first file that is written does.

        Raises:
            SidestepError: if it cannot be written into.
        """
        if isinstance(self.path, Path):
            make_folder(self.path)


@contextmanager
def _looking(file: str) -> Iterator[None]:
    """Turns what the system refuses into one line; what is not there is a FileNotFoundError."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(file) from None
    except OSError as error:
        raise SidestepError(f"{file}: cannot be read ({error.strerror})") from None


@contextmanager
def _asking(url: str, done: str = "read") -> Iterator[tuple[Any, str]]:
    """The file system that a URL is of, and the path in it; made anew after a fork, else kept by fsspec.

    Turns what a backend raises into one line; each has exceptions of its own. What is not there stays itself.
    """
    try:
        from fsspec.core import url_to_fs  # takes half a second to import, which folders need not wait for

        yield url_to_fs(url)
    except FileNotFoundError:
        raise
    except ImportError as error:
        raise SidestepError(f"{url}: {error}; pip install 'sidestep[packs]' brings what S3 and https need") from None
    except Exception as error:
        told = " ".join(str(error).split()) or type(error).__name__
        raise SidestepError(
            f"{url}: cannot be {done} ({told}); check the URL, the connection and the store's credentials"
        ) from None
