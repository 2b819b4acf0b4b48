"""Serves the page: on which address, to whom, from which private folder."""

import asyncio
import ipaddress
import logging
import os
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.staticfiles import StaticFiles

from sidestep.app import answers
from sidestep.app.connections import BACKLOG, Connection
from sidestep.app.door import Door
from sidestep.app.session import MAX_BYTES
from sidestep.app.sessions import Sessions
from sidestep.app.studio import Studio
from sidestep.app.uploads import Uploads
from sidestep.app.visitors import Visitors
from sidestep.errors import SidestepError
from sidestep.models import BUNDLED, model_folder

logger = logging.getLogger(__name__)

LOOPBACK = ("127.0.0.1", "localhost")
SWEEP = 10  # seconds between looking for sessions and uploads whose time is over
STATIC = Path(__file__).parent / "static"


def serve(studio: Studio, host: str, port: int, ready: Callable[[str], None], token: str | None = None) -> None:
    """Serves the page until the process is told to stop.

    Args:
        studio: its first model is loaded before the page is there.
        host: address to listen on; other machines reach the page only where it is not loopback's.
        port: 0 takes a free one.
        ready: called with the page's address once it answers.
        token: what lets a visitor in; without one everybody is, and no address but loopback's is listened on.

    Raises:
        SidestepError: if the first model cannot be loaded, the address is not to be had, or the token is missing or
            too short.
    """
    if token is None and not _is_loopback(host):
        raise SidestepError(f"{host} can be reached from other machines; give it a --token, or stay on {LOOPBACK[0]}")
    listening = _listen(host, port)
    with listening, tempfile.TemporaryDirectory(prefix="sidestep-app-") as folder:
        port = listening.getsockname()[1]
        app = build_app(studio, Path(folder), host, port, token)
        ready(f"http://{_in_address(host)}:{port}")
        config = uvicorn.Config(
            app,
            http=Connection,  # which takes headers of a limited length alone, as h11 does
            backlog=BACKLOG,
            ws="none",
            log_level="warning",
            timeout_graceful_shutdown=1,
        )
        _Server(config, app.state.sessions).run(sockets=[listening])


def build_app(
    studio: Studio, folder: Path, host: str = LOOPBACK[0], port: int = 7860, token: str | None = None
) -> FastAPI:
    """The page as an application that any ASGI server runs.

    Args:
        folder: private; uploads and results go there.
        host: what it is reached by; loopback's name alone is answered where it is loopback's and there is no token.
        token: what lets a visitor in; without one everybody is.
    """
    sessions, uploads = Sessions(studio, folder), Uploads(folder)
    # Gradio reads these when it is imported and when components are made.
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    # Else it keeps a table of 10,000 calls and takes its percentiles anew after each call.
    os.environ["GRADIO_ANALYTICS_MAX_EVENTS"], os.environ["GRADIO_ANALYTICS_CACHE_FREQUENCY"] = "1", str(10**9)
    import gradio as gr

    from sidestep.app.page import build_page

    page = build_page(studio, sessions, example_photos())

    @asynccontextmanager
    async def swept(app: FastAPI) -> AsyncIterator[None]:
        sweeping = asyncio.create_task(_keep_sweeping(page, sessions, uploads))
        yield
        sweeping.cancel()

    app = FastAPI(openapi_url=None, lifespan=swept)
    app.state.sessions = sessions

    def end(session: str) -> None:
        sessions.end(session)
        answers.forget(page, session)

    visitors = Visitors(token, f"sidestep-{port}", sessions, end)
    # The last one that is added comes first.
    app.add_middleware(Door, visitors=visitors, sessions=sessions, uploads=uploads, page=page, folder=folder)
    if _is_loopback(host) and token is None:
        # A page elsewhere must not reach this one through a name that it points here, which has no cookie of a token.
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK, _in_address(host)])
    app.get("/sidestep/model-card")(_model_card)
    app.mount("/sidestep", StaticFiles(directory=STATIC))
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


async def _keep_sweeping(page: Any, sessions: Sessions, uploads: Uploads) -> None:
    while True:
        await asyncio.sleep(SWEEP)
        await _sweep(page, sessions, uploads)


async def _sweep(page: Any, sessions: Sessions, uploads: Uploads) -> None:
    """Removes what is over."""
    with _survived():
        await asyncio.to_thread(sessions.sweep)
    with _survived():
        answers.sweep(page, sessions)
    with _survived():
        await uploads.sweep()


@contextmanager
def _survived() -> Iterator[None]:
    """That something cannot be removed once, as where no file can be opened any more, ends nothing else."""
    try:
        yield
    except Exception as error:  # of a defect, the terminal is told where it is
        logger.error("what is over could not be removed: %s", error, exc_info=not isinstance(error, OSError))


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
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SidestepError(
            f"{_in_address(host)}:{port} cannot be listened on ({reason}); try another --port, or 0"
        ) from None


def _in_address(host: str) -> str:
    return f"[{host}]" if ":" in host else host


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
