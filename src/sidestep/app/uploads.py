"""How much may be sent at a time, and how long it lies on the disk.

A session copies the photo that it opens. What was sent cannot be deleted then, because gradio keeps one file of a photo
that several people send.
"""

import asyncio
import math
import secrets
import shutil
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from python_multipart.multipart import parse_options_header

from sidestep.app.session import MAX_BYTES
from sidestep.app.sessions import is_session

AT_ONCE, AT_ONCE_EACH = 64, 4
SLOWEST = 300.0  # seconds that a body may take to arrive
KEPT = 600.0  # seconds after which one is deleted; it waits for a turn where many are at work
MAX_KEPT, MAX_KEPT_EACH = 64 * MAX_BYTES, 8 * MAX_BYTES
MAX_PHOTOS, MAX_PHOTOS_EACH = 4096, 128  # that are kept; small ones take room too

Receive = Callable[[], Awaitable[Any]]


class Full(Exception):
    """There is no place for another upload now."""


@dataclass
class _Upload:
    """What one takes: bytes, until a time of the clock."""

    visitor: str
    size: int
    until: float = math.inf  # it is under way


class Uploads:
    """The uploads that are under way, and those in the private folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._uploads: list[_Upload] = []

    @contextmanager
    def place(self, visitor: str, size: int) -> Iterator[None]:
        """Takes the place of an upload of so many bytes: one of those under way during the block, and room after it.

        Raises:
            Full: if there is none.
        """
        now = monotonic()
        self._uploads = [each for each in self._uploads if each.until > now]
        own = [each for each in self._uploads if each.visitor == visitor]
        if _running(own) >= AT_ONCE_EACH:
            raise Full("You are sending too many photos at once; wait until one has arrived")
        if _is_over(own, size, MAX_KEPT_EACH, MAX_PHOTOS_EACH):
            raise Full("You sent too many photos; try again in a few minutes")
        if _running(self._uploads) >= AT_ONCE or _is_over(self._uploads, size, MAX_KEPT, MAX_PHOTOS):
            raise Full("Too many photos are being sent; try again in a few minutes")
        upload = _Upload(visitor, size)
        self._uploads.append(upload)
        try:
            yield
        finally:
            upload.until = monotonic() + KEPT

    async def sweep(self) -> None:
        """Removes what is old, also the rest of an upload that broke off; to be called now and then.

        A folder is put aside first, between two steps of gradio's, which lays a photo that is sent again into the
        folder of the last.
        """
        aside = []
        for entry in self._folder.iterdir():
            with suppress(FileNotFoundError):  # gone meanwhile
                if is_session(entry) or time.time() - entry.lstat().st_mtime < KEPT:
                    continue
                if entry.is_dir():
                    aside.append(entry.rename(entry.with_name(f"old-{secrets.token_hex(8)}")))
                else:
                    entry.unlink()
        for folder in aside:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


def _running(uploads: list[_Upload]) -> int:
    return sum(each.until == math.inf for each in uploads)


def _is_over(uploads: list[_Upload], size: int, most: int, count: int) -> bool:
    return sum(each.size for each in uploads) + size > most or len(uploads) >= count


def in_time(receive: Receive) -> Receive:
    """A body, which ends as if the sender had gone when it takes too long."""
    end = monotonic() + SLOWEST

    async def received() -> Any:
        try:
            return await asyncio.wait_for(receive(), max(0.0, end - monotonic()))
        except TimeoutError:
            return {"type": "http.disconnect"}

    return received


class OnePhoto:
    """An upload's body, which ends as if the sender had gone where it takes too long or a second file begins.

    Attributes:
        more: whether one began. Gradio would take a thousand.
    """

    def __init__(self, receive: Receive, kind: str) -> None:
        """
        Args:
            kind: its content type, which names the boundary between its parts.
        """
        _, options = parse_options_header(kind)
        self.more = False
        self._receive = in_time(receive)
        self._line = b"--" + options.get(b"boundary", b"")
        self._lines, self._rest = 0, b""

    async def receive(self) -> Any:
        message = await self._receive()
        body = self._rest + message.get("body", b"")
        self._lines += body.count(self._line)  # one before the file and one after it
        self._rest = body[1 - len(self._line) :]
        self.more = self._lines > 2
        return {"type": "http.disconnect"} if self.more else message
