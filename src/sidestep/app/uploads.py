"""How much may be sent at a time, and how long it lies on the disk.

A session copies the photo that it opens. What was sent cannot be deleted then, because gradio keeps one file of a photo
that several people send.
"""

import asyncio
import shutil
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sidestep.app.session import MAX_BYTES, is_session

AT_ONCE, AT_ONCE_EACH = 64, 4
SLOWEST = 300.0  # seconds that an upload may take
KEPT = 600.0  # seconds after which one is deleted; it waits for a turn where many are at work
MAX_KEPT, MAX_KEPT_FILES = 64 * MAX_BYTES, 4096

Receive = Callable[[], Awaitable[Any]]


class Full(Exception):
    """There is no place for another upload now."""


class Uploads:
    """The uploads that are under way, and those in the private folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: Counter[str] = Counter()

    @contextmanager
    def place(self, visitor: str) -> Iterator[None]:
        """Takes the place of an upload during the block.

        Raises:
            Full: if there is none.
        """
        if self._running[visitor] >= AT_ONCE_EACH:
            raise Full("You are sending too many photos at once; wait until one has arrived")
        sizes = list(self._sizes())
        if self._running.total() >= AT_ONCE or sum(sizes) > MAX_KEPT or len(sizes) > MAX_KEPT_FILES:
            raise Full("Too many photos are being sent; try again in a few minutes")
        self._running[visitor] += 1
        try:
            yield
        finally:
            self._running[visitor] -= 1
            self._running += Counter()  # forgets who is at none

    def sweep(self) -> None:
        """Removes what is old, also the rest of an upload that broke off; to be called now and then."""
        for entry in self._entries():
            with suppress(FileNotFoundError):  # gone meanwhile
                if time.time() - entry.lstat().st_mtime < KEPT:
                    continue
                if entry.is_dir():
                    shutil.rmtree(entry, ignore_errors=True)
                else:
                    entry.unlink()

    def _entries(self) -> list[Path]:
        return [entry for entry in self._folder.iterdir() if not is_session(entry)]

    def _sizes(self) -> Iterator[int]:
        for entry in self._entries():
            for file in (entry, *entry.rglob("*")):
                with suppress(FileNotFoundError):  # gone meanwhile
                    yield 0 if file.is_dir() else file.lstat().st_size


def in_time(receive: Receive) -> Receive:
    """An upload's body, which ends as if the sender had gone when it takes too long."""
    end = time.monotonic() + SLOWEST

    async def received() -> Any:
        try:
            return await asyncio.wait_for(receive(), max(0.0, end - time.monotonic()))
        except TimeoutError:
            return {"type": "http.disconnect"}

    return received
