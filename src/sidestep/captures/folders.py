"""Files as they lie on people's disks: hidden ones, another case, smaller copies of the photos."""

import os
import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from sidestep.errors import SidestepError

COPIES = ("images", "images_2", "images_4", "images_8")  # nerfstudio's and 3D Gaussian splatting's, the largest first


def hidden(path: Path) -> bool:
    """Whether a system made it for itself: .DS_Store, ._003.jpg, __MACOSX, Thumbs.db."""
    return path.name.startswith(".") or path.name in ("__MACOSX", "Thumbs.db", "desktop.ini")


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, without hidden ones and links back to what they lie in; a file costs no look at it."""
    with os.scandir(folder) as entries:
        found = [Path(entry.path) for entry in entries if _leads_down(entry)]
    return [path for path in found if not hidden(path)]


def _leads_down(entry: os.DirEntry[str]) -> bool:
    if not entry.is_symlink():
        return entry.is_dir(follow_symlinks=False)
    target, parent = (Path(os.path.realpath(path)) for path in (entry.path, os.path.dirname(entry.path)))
    return os.path.isdir(target) and not parent.is_relative_to(target)


def spelled_out(path: Path) -> Path:
    """The path with a name and a parent of its own, which "." and ".." have not."""
    return Path(os.path.abspath(path)) if path.name in ("", "..") else path


def within(path: Path, folder: Path) -> bool:
    """Whether a path stays in a folder, by its text: neither ".." nor another root leads out of it."""
    return Path(os.path.abspath(path)).is_relative_to(os.path.abspath(folder))


def is_file(path: Path) -> bool:
    """Whether a file is there; none is under a name that no file can have, being too long, say."""
    try:
        return path.is_file()
    except OSError:
        return False


@contextmanager
def looking(path: Path) -> Iterator[None]:
    """Turns what the system refuses, a folder that may not be read or a name that is too long, into one line."""
    try:
        yield
    except OSError as error:
        what = f"{error.filename or path}: cannot be read ({error.strerror or error})"
        raise SidestepError(f"{what}; look after its permissions and its name") from None


def natural(name: str) -> str:
    """Sorts as people count: runs of digits by their value, r_2.png before r_10.png."""
    return re.sub(r"\d+", lambda digits: digits[0].zfill(20), name)


class Finder:
    """Finds files by the names that a model lists, where unpacking changed their case or their Unicode form.

    A folder is listed at most once, and only where a file is not there under its exact name.
    """

    def __init__(self) -> None:
        self._listings: dict[Path, dict[str, Path]] = {}

    def find(self, folder: Path, name: str) -> Path | None:
        """The file `name`, which may have folders in it, in a folder; or None."""
        exact = folder / name
        if is_file(exact):
            return exact
        found: Path | None = folder
        for part in PurePosixPath(name).parts:
            found = self._listing(found).get(_plain(part)) if found is not None else None
        return found if found is not None and is_file(found) else None

    def find_photo(self, scene: Path, name: str) -> Path | None:
        """The file `name` of a scene's images/, or else of its images_2/, images_4/ or images_8/; or None."""
        found = (self.find(scene / folder, name) for folder in COPIES)
        return next((path for path in found if path is not None), None)

    def _listing(self, folder: Path) -> dict[str, Path]:
        if folder not in self._listings:
            listing: dict[str, Path] = {}
            doubled: set[str] = set()
            for path in folder.iterdir() if folder.is_dir() else ():
                if not hidden(path):
                    key = _plain(path.name)
                    doubled |= {key} & listing.keys()
                    listing[key] = path
            self._listings[folder] = {key: path for key, path in listing.items() if key not in doubled}
        return self._listings[folder]


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
