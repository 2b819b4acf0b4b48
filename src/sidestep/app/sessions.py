"""The users' sessions: by which name, and for how long."""

import secrets
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from time import monotonic

from sidestep.app.session import Session
from sidestep.app.studio import Studio
from sidestep.errors import SidestepError

MAX_SESSIONS = 64
UNUSED = 3600.0  # seconds after which a session ends that nobody used
SPARE = 60.0  # the same where somebody else is in need of its place
SPARE_WAITING = 600.0  # the same where it waits for others' work to end
AWAY = 300.0  # the same where its page was closed, or its connection broke
LAST_STEP = 10.0  # seconds that a cancelled step may still take where the server ends
_FOLDER = "session-"


@dataclass
class _Place:
    """A session, and what tells how long it stays."""

    session: Session
    uses: int = 0  # that go on
    used: float = 0.0  # last, by the clock
    left: bool = False  # whether its page was closed since
    patience: float = UNUSED  # seconds that it may lie unused

    @property
    def over(self) -> bool:
        """Whether its time is."""
        return not self.uses and self._unused > self.patience

    @property
    def spare(self) -> bool:
        """Whether it can make room for somebody else's."""
        waiting = self.session.wanted and self.session.has_photo
        return not self.uses and (self.left or self._unused > (SPARE_WAITING if waiting else SPARE))

    @property
    def _unused(self) -> float:
        return monotonic() - self.used


class Sessions:
    """All users' sessions by the page's name for them."""

    def __init__(self, studio: Studio, folder: Path) -> None:
        self._studio, self._folder = studio, folder
        self._places: OrderedDict[str, _Place] = OrderedDict()  # the longest unused one first
        self._lock = Lock()

    @property
    def busy(self) -> bool:
        """Whether anybody's views are being made."""
        with self._lock:
            return any(place.session.busy for place in self._places.values())

    @contextmanager
    def use(self, name: str) -> Iterator[Session]:
        """The session of this name, which stays during the block; a new one where there is none, in place of one that
        is not used.

        Raises:
            SidestepError: if all are.
        """
        last = None
        with self._lock:
            if name not in self._places:
                last = self._make_room()
                folder = self._folder / f"{_FOLDER}{secrets.token_hex(16)}"
                folder.mkdir(mode=0o700)
                self._places[name] = _Place(Session(self._studio, folder))
            place = self._places[name]
            self._places.move_to_end(name)
            place.used, place.left = monotonic(), False
            place.uses += 1
        try:
            if last is not None:
                last.close()
            yield place.session
        finally:
            with self._lock:
                place.uses -= 1
                place.used = monotonic()

    def _make_room(self) -> Session | None:
        """Takes out a session that can make room for another, where there is none."""
        if len(self._places) < MAX_SESSIONS:
            return None
        for name, place in self._places.items():
            if place.spare:
                return self._places.pop(name).session
        raise SidestepError(f"{MAX_SESSIONS} people use this page now; try again in a few minutes")

    def find(self, name: str) -> Session | None:
        """The session of this name; asking for it does not count as using it."""
        with self._lock:
            place = self._places.get(name)
        return None if place is None else place.session

    def maker(self, file: Path) -> str | None:
        """The name of the session that this is a result of."""
        with self._lock:
            return next((name for name, place in self._places.items() if place.session.made(file)), None)

    def leave(self, name: str) -> None:
        """Ends the work of this name's session, and in a while the session, unless it is asked for before.

        A page that was closed looks like one whose connection broke, or whose machine sleeps. What it asked for
        last can arrive after that, so a session that was left once never again gets as long as others.
        """
        with self._lock:
            place = self._places.get(name)
            if place is None:
                return
            place.used, place.left, place.patience = monotonic(), True, AWAY
        place.session.cancel()

    def end(self, name: str) -> None:
        """Closes this name's session, if there is one."""
        with self._lock:
            place = self._places.pop(name, None)
        if place is not None:
            place.session.close()

    def sweep(self) -> None:
        """Closes the sessions whose time is over; to be called now and then."""
        with self._lock:
            over = [self._places.pop(name) for name in [name for name, place in self._places.items() if place.over]]
        for place in over:
            place.session.close()

    def stop(self) -> None:
        """Ends all work, for good, and waits for it: a thread that computes while Python ends takes it down."""
        with self._lock:
            sessions = [place.session for place in self._places.values()]
        for session in sessions:
            session.cancel()
        self._studio.turns.stop(LAST_STEP)
        for session in sessions:
            session.wait(LAST_STEP)


def is_session(entry: Path) -> bool:
    """Whether this entry of the private folder is a session's."""
    return entry.name.startswith(_FOLDER)
