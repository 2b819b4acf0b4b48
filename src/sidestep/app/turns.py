"""A lock that is given out in the order of asking, and that long work can lend."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition


class Turns:
    """Lets one thread at a time use the models, and short work go between the steps of long work.

    A `threading.Lock` that is let go and taken again at once mostly comes back to the thread that had it.
    """

    def __init__(self) -> None:
        self._changed = Condition()
        self._line: deque[object] = deque()  # the first one's turn it is

    @contextmanager
    def take(self) -> Iterator[None]:
        """Waits for the turn and holds it during the block."""
        with self._changed:
            self._wait(object())
        try:
            yield
        finally:
            with self._changed:
                self._line.popleft()
                self._changed.notify_all()

    def lend(self) -> None:
        """Lets those who are waiting go first; called by the thread whose turn it is."""
        with self._changed:
            if len(self._line) > 1:
                ticket = self._line.popleft()
                self._changed.notify_all()
                self._wait(ticket)

    def _wait(self, ticket: object) -> None:
        self._line.append(ticket)
        self._changed.wait_for(lambda: self._line[0] is ticket)
