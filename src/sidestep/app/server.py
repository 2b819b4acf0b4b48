"""Serves the page: on which address, with which limits, from which private folder."""

import asyncio
import ipaddress
import logging
import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse
from starlette.datastructures import Headers
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.staticfiles import StaticFiles

from sidestep.app.session import MAX_BYTES, Sessions, Studio
from sidestep.errors import SidestepError
from sidestep.models import BUNDLED, model_folder

LOOPBACK = ("127.0.0.1", "localhost")
SWEEP = 10  # seconds between looking for sessions whose time is over
STATIC = Path(__file__).parent / "static"

# What gradio and the scene need, and nothing from anywhere else.
_POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'"
MAX_REQUEST = MAX_BYTES + 2**20  # one photo and what is sent around it


def serve(studio: Studio, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serves the page until the process is told to stop.

    Args:
        studio: its first model is loaded before the page is there.
        host: address to listen on; other machines reach the page only where it is not loopback's.
        port: 0 takes a free one.
        ready: called with the page's address once it answers.

    Raises:
        SidestepError: if the first model cannot be loaded, or the address is not to be had.
    """
    listening = _listen(host, port)
    with listening, tempfile.TemporaryDirectory(prefix="sidestep-app-") as folder:
        app = build_app(studio, Path(folder), host)
        ready(f"http://{host}:{listening.getsockname()[1]}")
        sessions: Sessions = app.state.sessions

        async def sweep() -> None:
            sessions.sweep()

        config = uvicorn.Config(
            app, log_level="warning", timeout_graceful_shutdown=1, callback_notify=sweep, timeout_notify=SWEEP
        )
        _Server(config, sessions).run(sockets=[listening])


def build_app(studio: Studio, folder: Path, host: str = LOOPBACK[0]) -> FastAPI:
    """The page as an application that any ASGI server runs.

    Args:
        folder: private; uploads and results go there.
        host: what it is reached by; loopback's name alone is answered where it is loopback's.
    """
    # Gradio reads these when it is imported and when components are made.
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import gradio as gr

    from sidestep.app.page import build_page

    app = FastAPI(openapi_url=None)
    app.add_middleware(_Guard)
    app.add_middleware(_Headers)
    if _is_loopback(host):
        # A page elsewhere must not reach this one through a name that it points here.
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK, host])
    app.get("/sidestep/model-card")(_model_card)
    app.mount("/sidestep", StaticFiles(directory=STATIC))
    app.state.sessions = Sessions(studio, folder)
    page = build_page(studio, app.state.sessions, example_photos())
    return gr.mount_gradio_app(
        app,
        page,
        path="/",
        server_name=host,
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=MAX_BYTES,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        css_paths=[STATIC / "page.css"],
        theme=_theme(),
    )


def _theme() -> Any:
    import gradio as gr

    theme = gr.themes.Default(
        primary_hue="teal",
        neutral_hue="slate",
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
    fill, over = "*primary_700", "*primary_800"  # under white letters; the usual ones are too light for them
    return theme.set(
        button_primary_background_fill=fill,
        button_primary_background_fill_dark=fill,
        button_primary_background_fill_hover=over,
        button_primary_background_fill_hover_dark=over,
    )


def example_photos() -> list[Path]:
    """The photos that come with the package, or with its checkout."""
    here = Path(__file__).resolve()
    folders = (here.parent / "examples", here.parents[3] / "examples")
    return next((found for folder in folders if (found := sorted(folder.glob("*.jpg")))), [])


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SidestepError(f"{host}:{port} cannot be listened on ({reason}); try another --port, or 0") from None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in LOOPBACK


def _model_card() -> PlainTextResponse:
    return PlainTextResponse((Path(model_folder(BUNDLED)) / "README.md").read_text(encoding="utf-8"))


class _Server(uvicorn.Server):
    """Ends the users' work before their connections."""

    def __init__(self, config: uvicorn.Config, sessions: Sessions) -> None:
        super().__init__(config)
        self._sessions = sessions

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Open pages hold their connections; that these are cut off is no fault to tell.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL + 1)
        await asyncio.to_thread(self._sessions.stop)
        await super().shutdown(sockets)


class _Guard:
    """Refuses what another site's page sends, and what is larger than a photo.

    A browser sends an upload to any address without asking there first.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        answer = self._app
        if scope["type"] == "http" and scope["method"] not in ("GET", "HEAD", "OPTIONS"):
            headers = Headers(scope=scope)
            if _is_foreign(headers):
                answer = PlainTextResponse("Sent by another site's page", status_code=403)
            elif "transfer-encoding" in headers or int(headers.get("content-length", 0)) > MAX_REQUEST:
                answer = PlainTextResponse("Too large", status_code=413)
        await answer(scope, receive, send)


def _is_foreign(headers: Headers) -> bool:
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site not in ("same-origin", "none")
    origin = headers.get("origin")  # from browsers that do not tell the site; programs tell neither
    return origin is not None and origin.partition("://")[2] != headers.get("host")


class _Headers:
    """Adds to each answer what keeps the page to itself."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                own = [(b"content-security-policy", _POLICY.encode()), (b"referrer-policy", b"no-referrer")]
                message = {**message, "headers": [*message["headers"], *own]}
            await send(message)

        await self._app(scope, receive, with_headers)
