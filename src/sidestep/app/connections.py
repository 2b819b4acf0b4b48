"""How many connections the server holds, and how long it waits for one to ask."""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

try:
    import resource
except ImportError:  # Windows, which has no such limit
    resource = None  # type: ignore[assignment]

MAX_CONNECTIONS = 512  # 64 users with 6 each, as browsers hold at most, and some more
IDLE = 30.0  # seconds that a connection may take to send a request's headers
BACKLOG = 64  # connections that wait to be taken up


class Connection(H11Protocol):
    """Is closed at once where there are too many, and after a while where it asks nothing.

    Uvicorn alone waits for ever, and once the process has no file left for another connection it can do nothing else
    than fail to take it.
    """

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > min(MAX_CONNECTIONS, _files() // 2):
            transport.abort()
        else:
            self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect_no_more()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self._expect()  # before the next request, which may be there already
        super().on_response_complete()

    def _expect(self) -> None:
        self._expect_no_more()
        self._late = self.loop.call_later(IDLE, self._give_up)

    def _expect_no_more(self) -> None:
        if self._late is not None:
            self._late.cancel()

    def _give_up(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()


def _files() -> int:
    """How many files the process may have open."""
    return 2 * MAX_CONNECTIONS if resource is None else int(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
