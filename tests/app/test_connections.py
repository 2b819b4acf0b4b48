"""What becomes of connections that ask nothing, with real sockets."""

import asyncio
from typing import Any

import pytest

pytest.importorskip("gradio", reason="the page's extra is not installed")

import uvicorn
from uvicorn.server import ServerState

from sidestep.app import connections as module

ASK = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"


async def _app(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


async def _serve() -> tuple[asyncio.Server, int]:
    config = uvicorn.Config(_app, http=module.Connection, log_level="critical", timeout_keep_alive=10**6)
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: module.Connection(config, state, {}), "127.0.0.1", 0)
    return server, server.sockets[0].getsockname()[1]


async def _end(reader: asyncio.StreamReader) -> bytes:
    """What still comes before the end."""
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: he", ASK, ASK + b"GET / HT"])
def test_a_connection_that_asks_nothing_is_closed(monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(module, "IDLE", 0.05)

    async def run() -> bytes:
        server, port = await _serve()
        async with server:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            answer = await _end(reader)  # for ever, if it is not closed
            writer.close()
            return answer

    assert asyncio.run(run()).endswith(b"ok" if ASK in sent else b"")


def test_there_are_not_more_connections_than_agreed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CONNECTIONS", 2)

    async def run() -> None:
        server, port = await _serve()
        async with server:
            first, second, third = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
            assert await _end(third[0]) == b""
            for reader, writer in (first, second):
                writer.write(ASK)
                assert await reader.readuntil(b"ok")
                writer.close()
            while await _refused(port):  # until the server has seen that they are gone
                pass

    asyncio.run(run())


async def _refused(port: int) -> bool:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(ASK)
        await reader.readuntil(b"ok")
    except (ConnectionError, asyncio.IncompleteReadError):
        return True
    finally:
        writer.close()
    return False
