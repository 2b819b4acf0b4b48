"""A lock that is given out in the order of asking, and that long work can lend."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition


class Cancelled(Exception):
    """The user stopped the work, or began another, or the server ends."""


class Turns:
    """Lets one thread at a time use the models, and short work go between the steps of long work.

    A `threading.Lock` that is let go and taken again at once mostly comes back to the thread that had it.
    """

    def __init__(self) -> None:
        self._changed = Condition()
        self._line: deque[object] = deque()  # the first one's turn it is
        self._stopped = False

    @contextmanager
    def take(self) -> Iterator[None]:
        """Waits for the turn and holds it during the block.

        Raises:
            Cancelled: after `stop`.
        """
        ticket = object()
        try:
            with self._changed:
                self._wait(ticket)
            yield
        finally:
            with self._changed:
                self._line.remove(ticket)
                self._changed.notify_all()

    def lend(self) -> None:
        """Lets those who are waiting go first; called by the thread whose turn it is.

        Raises:
            Cancelled: after `stop`.
        """
        with self._changed:
            if self._stopped:
                raise Cancelled
            if len(self._line) > 1:
                ticket = self._line.popleft()
                self._changed.notify_all()
                self._wait(ticket)

    def stop(self, patience: float) -> None:
        """Ends all turns, for good: that of who has it when it lends next, for which it waits up to so many seconds."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._line, patience)

    def _wait(self, ticket: object) -> None:
        self._line.append(ticket)
        self._changed.wait_for(lambda: self._stopped or self._line[0] is ticket)
        if self._stopped:
            raise Cancelled
