"""What a reader may do with bytes, whatever they are: read them or refuse them, soon and in little memory."""

import contextlib
import io
import resource
import shutil
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from targets import Target

from sidestep.errors import SidestepError

MOST_SECONDS = 5.0  # of the processor
MOST_WAITING = 60.0  # in all; a reader that waits for a pipe takes no processor
OFTEN = 20  # inputs after which memory is asked for, which takes longer than a small file
MOST_BYTES = 2**30  # that the process may grow by
LONGEST = 2100  # characters of a message
MEMORY = Path("/dev/shm")


class TooSlow(BaseException):
    """Raised in the midst of a reader; no `except Exception` stops it."""


@dataclass
class Judge:
    """Gives bytes to a target and keeps count.

    Attributes:
        read, refused: how many were.
        faults: what was wrong -> the first bytes that brought it about.
    """

    target: Target
    read: int = 0
    refused: int = 0
    faults: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # In memory where there is such a folder: a disk is slower than any reader.
        self._folder = tempfile.TemporaryDirectory(prefix="sidestep-fuzz-", dir=MEMORY if MEMORY.is_dir() else None)
        self.folder = Path(self._folder.name)
        self._prepare()
        self._looked = 0
        self._ask()

    def _prepare(self) -> None:
        for path in self.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        self.target.prepare(self.folder)

    def _ask(self) -> None:
        # The peak never falls: what a process took before, another test say, hides as much.
        self._peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def end(self) -> None:
        """Deletes the folder."""
        self._folder.cleanup()

    def look_at(self, data: bytes) -> str | None:
        """The fault that the bytes show, or None. Of memory it is told of OFTEN inputs together, by the last."""
        begun = time.process_time()
        fault = self._try(data)
        if time.process_time() - begun > MOST_SECONDS:
            fault = fault or f"took more than {MOST_SECONDS:g} s"
        self._looked += 1
        if self._looked % OFTEN == 0:
            peak = self._peak
            self._ask()
            if self._peak - peak > MOST_BYTES:
                fault = fault or f"took {(self._peak - peak) / 2**30:.1f} GiB"
        if fault is not None:
            self.faults.setdefault(fault, data)
        return fault

    def _try(self, data: bytes) -> str | None:
        try:
            with _limited(), warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
                warnings.simplefilter("ignore")
                self.target.read(data, self.folder)
            self.read += 1
        except SidestepError as error:
            self.refused += 1
            return _fault_of(error)
        except TooSlow:
            self._prepare()  # what it was at may lie about
            return f"took more than {MOST_WAITING:g} s"
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            return f"{type(error).__name__} in {_place(error)}"
        return None


def _fault_of(error: SidestepError) -> str | None:
    """What is wrong with a refusal: it is no line, or hides that memory ran out."""
    text = str(error)
    if not text.isprintable() or len(text) > LONGEST or not text:
        return f"message is no line: {_place(error)}"
    cause: BaseException | None = error
    while cause is not None:
        # FFmpeg's own is of a size that it did not ask the system for.
        if isinstance(cause, MemoryError) and not type(cause).__module__.startswith("av."):
            return f"MemoryError in {_place(cause)}"
        cause = cause.__cause__ or cause.__context__
    return None


def _place(error: BaseException) -> str:
    """The innermost line of the package that an exception went through, and the line that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/sidestep/" in frame.filename]
    return " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in (*frames[-1:], *own[-1:]))


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    if signal.getsignal(signal.SIGALRM) is not _stop:
        signal.signal(signal.SIGALRM, _stop)
    signal.setitimer(signal.ITIMER_REAL, MOST_WAITING)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _stop(number: int, frame: FrameType | None) -> None:
    raise TooSlow
