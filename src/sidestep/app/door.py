"""What of a request reaches the page: from whom, from which site, how large, for which of its parts, whose session.

Gradio serves more than this page needs: functions for programs, links to saved states, a proxy, an editor. What is not
listed here is not there.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from starlette.datastructures import Headers, QueryParams
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response

from sidestep.app import answers
from sidestep.app.session import ARCHIVE, MAX_BYTES
from sidestep.app.sessions import Sessions
from sidestep.app.uploads import Full, OnePhoto, Uploads, in_time
from sidestep.app.visitors import PROGRAM, Visitors

MAX_UPLOAD = MAX_BYTES + 2**20  # one photo and what is sent around it
MAX_BODY = 2**18  # settings, the poses of a path, and long prompts

API = "/gradio_api"
ENTER = "/sidestep/enter"
UPLOAD, JOIN, RUN = f"{API}/upload", f"{API}/queue/join", f"{API}/run/"
EVENTS, HEARTBEAT, FILE = f"{API}/queue/data", f"{API}/heartbeat/", f"{API}/file="
RESET = f"{API}/reset"
SENT = (UPLOAD, JOIN, RESET, f"{API}/cancel")
READ: tuple[str, ...] = ("/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", EVENTS)
READ += (f"{API}/app_id", f"{API}/info", f"{API}/startup-events", f"{API}/theme.css", f"{API}/upload_progress")
READ_BELOW = ("/assets/", "/static/", "/svelte/", "/sidestep/", HEARTBEAT, FILE)
OPEN = ("/manifest.json",)  # a browser asks for it without its cookies

# What gradio and the scene need, and nothing from anywhere else, nor for anybody else.
_POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'"
_HEADERS = [
    (b"content-security-policy", _POLICY.encode()),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"same-origin"),
    (b"x-content-type-options", b"nosniff"),
]

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")  # of a session

# A link elsewhere does not send a cookie that is meant for its own site; this page, loaded once more by itself, does.
# A redirection would not: it belongs to the link.
_AGAIN = '<!doctype html><title>Sidestep</title><meta http-equiv="refresh" content="0{}">'
_UNKEPT = {"cache-control": "no-store"}  # what depends on who asks
_ASK = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Sidestep</title>
<style>
body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 24rem; margin: 20vh auto; padding: 0 1rem }}
input, button {{ font: inherit; box-sizing: border-box; width: 100%; margin-top: .5rem; padding: .5rem }}
@media (prefers-color-scheme: dark) {{ body {{ background: #14181f; color: #e6e9ef }} }}
</style>
<form method="post" action="{action}">
<h1>Sidestep</h1>
<p role="alert">{fault}</p>
<label>The token that this page was started with<input name="token" type="password" autofocus required></label>
<button>Enter</button>
</form>
</html>"""


class _Refused(Exception):
    def __init__(self, status: int, words: str) -> None:
        self.status, self.words = status, words


class Door:
    """Lets through what the page itself would ask, and answers the rest."""

    def __init__(
        self,
        app: Any,
        visitors: Visitors,
        sessions: Sessions,
        uploads: Uploads,
        page: Any,
        folder: Path,
    ) -> None:
        """
        Args:
            page: gradio's, of which the functions and the queue are looked at.
            folder: where gradio puts uploads.
        """
        self._app, self._visitors, self._sessions, self._uploads = app, visitors, sessions, uploads
        self._page, self._folder = page, folder

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            send = _with(send, *_HEADERS)
            try:
                await self._enter(scope, receive, send)
            except _Refused as refused:
                await _told(scope["path"], refused.status, refused.words)(scope, receive, send)
            except ClientDisconnect:  # there is nobody to tell
                pass
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _enter(self, scope: Any, receive: Any, send: Any) -> None:
        request, path = Request(scope, receive), scope["path"]
        if scope["method"] not in ("GET", "HEAD", "POST"):
            raise _Refused(405, "Only GET, HEAD and POST are answered")
        if _is_foreign(request.headers):
            if not _is_link(scope, request.headers):
                raise _Refused(403, "Sent by another site's page")
            return await HTMLResponse(_AGAIN.format(""), headers=_UNKEPT)(scope, receive, send)
        _check_size(request.headers, MAX_UPLOAD if path == UPLOAD else MAX_BODY)
        visitor = self._visitors.known(request.headers)
        secure = scope["scheme"] == "https"
        if self._visitors.asks and (path == ENTER or (path == "/" and "token" in request.query_params)):
            cookie = None if visitor else self._visitors.greet(secure)
            return await (await self._admit(request, cookie))(scope, receive, send)
        if visitor is None and path not in OPEN:
            return await _ask(path)(scope, receive, send)
        _check_route(scope["method"], path)
        if path == "/" and "page" in request.query_params:
            raise _Refused(404, "There is one page")
        if path == "/" and visitor == PROGRAM:
            send = _with(send, (b"set-cookie", self._visitors.greet(secure).encode()))
        await self._pass(request, visitor or PROGRAM, send)

    async def _pass(self, request: Request, visitor: str, send: Any) -> None:
        """Passes on what the visitor asks of a session of theirs, or of none."""
        scope, receive, path = request.scope, request.receive, request.scope["path"]
        if path == UPLOAD:
            return await self._upload(request, visitor, send)
        if path == RESET:  # the page says it of no session, and gradio does nothing
            return await JSONResponse({"success": True})(scope, receive, send)
        if scope["method"] == "POST":
            receive = await self._checked(request, visitor)
        elif path == EVENTS:
            self._check_owner(visitor, _only(request.query_params))
        elif path.startswith(HEARTBEAT):
            self._check_owner(visitor, path.removeprefix(HEARTBEAT))
        elif path.startswith(FILE):
            return await self._result(visitor, Path(path.removeprefix(FILE)))(scope, receive, send)
        await self._app(scope, receive, send)

    async def _upload(self, request: Request, visitor: str, send: Any) -> None:
        _check_type(request.headers, "multipart/form-data")
        if len(request.query_params.get("upload_id", "")) > 64:  # gradio keeps each
            raise _Refused(400, "The upload's name is too long")
        body = OnePhoto(request.receive, request.headers["content-type"])

        async def answer(message: Any) -> None:
            if not body.more:
                await send(message)

        try:
            with self._uploads.place(visitor, int(request.headers.get("content-length", "0"))):
                await self._app(request.scope, body.receive, answer)
        except Full as full:
            raise _Refused(503, str(full)) from None
        except ClientDisconnect:
            if not body.more:
                raise
        if body.more:
            raise _Refused(413, "One photo at a time is taken")

    def _check_owner(self, visitor: str, session: Any) -> None:
        if not isinstance(session, str) or not _NAME.fullmatch(session):
            raise _Refused(400, "The session's name is missing, or is none")
        if not self._visitors.may_use(visitor, session):
            raise _Refused(403, "Another visitor's session; load the page again")

    def _result(self, visitor: str, file: Path) -> Response:
        """A result, or the part of it that is asked for; gradio would answer that with the request's own headers."""
        maker = self._sessions.maker(file)
        if maker is None or not self._visitors.may_use(visitor, maker) or not file.is_file():
            raise _Refused(403, "There is no such file of yours")
        headers = {"cache-control": "private"}
        return FileResponse(file, headers=headers, filename=ARCHIVE if file.name == ARCHIVE else None)

    async def _checked(self, request: Request, visitor: str) -> Any:
        """What was sent, to be received once more, if it is what the page would send."""
        _check_type(request.headers, "application/json")
        body = await _body(request)
        try:
            told = json.loads(body)
        except (ValueError, RecursionError):
            raise _Refused(400, "Not JSON") from None
        if not isinstance(told, dict):
            raise _Refused(400, "Not a JSON object")
        session, path = told.get("session_hash", ""), request.scope["path"]
        self._check_owner(visitor, session)
        if _is_call(path):
            self._check_call(told)
        if path == JOIN and answers.are_unread(self._page, session):
            # A page reads on only when it was let join, so it will not.
            raise _Refused(429, "Too many answers were not read; load the page again")

        async def again() -> Any:
            return waiting.pop() if waiting else await request.receive()

        waiting = [{"type": "http.request", "body": body, "more_body": False}]
        return again

    def _check_call(self, told: dict[str, Any]) -> None:
        index, data = told.get("fn_index"), told.get("data")
        function = self._page.fns.get(index) if isinstance(index, int) else None
        if function is None or not isinstance(data, list) or len(data) != len(function.inputs) or told.get("batched"):
            raise _Refused(404, "The page has no such function; load it again")
        # Gradio would copy any file of this machine, or fetch any address, for who names it in place of an upload.
        for path in _paths(told):
            file = Path(path) if isinstance(path, str) else Path()
            own = file.parent.parent == self._folder and re.fullmatch("[0-9a-f]{64}", file.parent.name)
            if not own or file.name == "..":
                raise _Refused(403, "Not an upload")

    async def _admit(self, request: Request, cookie: str | None) -> Response:
        if request.method == "POST":
            _check_type(request.headers, "application/x-www-form-urlencoded")
            told = parse_qs((await _body(request)).decode("latin-1")).get("token", [""])[-1]
        else:
            told = request.query_params.get("token", "")
        if not self._visitors.admits(told):
            return _ask("/", "That is not the token.")
        answer: Response
        if request.scope["path"] == ENTER:
            answer = RedirectResponse("../", 303, _UNKEPT)
        else:
            answer = HTMLResponse(_AGAIN.format("; url=./"), headers=_UNKEPT)  # without the token
        if cookie is not None:
            answer.headers["set-cookie"] = cookie
        return answer


def _is_foreign(headers: Headers) -> bool:
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site not in ("same-origin", "none")
    origin = headers.get("origin")  # from browsers that do not tell the site; programs tell neither
    return origin is not None and origin.partition("://")[2] != headers.get("host")


def _is_link(scope: Any, headers: Headers) -> bool:
    """Whether a user followed a link of another site to the page itself."""
    told = headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest")
    return scope["method"] == "GET" and scope["path"] == "/" and told == ("navigate", "document")


def _check_size(headers: Headers, limit: int) -> None:
    if "transfer-encoding" in headers:
        raise _Refused(411, "Its length has to be told")
    length = headers.get("content-length", "0")
    if not re.fullmatch("[0-9]+", length):
        raise _Refused(400, "Its length is no number")
    if len(length) > 12 or int(length) > limit:
        raise _Refused(413, f"Too large; {limit // 2**10} KB are taken")


async def _body(request: Request) -> bytes:
    try:
        return await Request(request.scope, in_time(request.receive)).body()
    except ClientDisconnect:
        raise _Refused(408, "It took too long to arrive") from None


def _check_type(headers: Headers, expected: str) -> None:
    if headers.get("content-type", "").partition(";")[0].strip().lower() != expected:
        raise _Refused(415, f"Not {expected}")


def _check_route(method: str, path: str) -> None:
    exact, below = (SENT, (RUN,)) if method == "POST" else (READ, READ_BELOW)
    odd = ".." in path.split("/") or "\\" in path or not path.isprintable()
    if odd or not (path in exact or path.startswith(below)):
        raise _Refused(404, "Not found")


def _only(query: QueryParams) -> str | None:
    """The session that a query names, if it names one and no more."""
    names = query.getlist("session_hash")
    return names[0] if len(names) == 1 else None


def _paths(told: Any) -> Iterator[Any]:
    """Every path in what was sent, however deep."""
    waiting = [told]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            if "path" in each:
                yield each["path"]
            waiting += each.values()
        elif isinstance(each, list):
            waiting += each


def _ask(path: str, fault: str = "") -> Response:
    headers = {"www-authenticate": "Bearer", **_UNKEPT}
    if path == "/":
        return HTMLResponse(_ASK.format(action=ENTER, fault=fault), 401, headers)
    return _told(path, 401, "The token is missing, or another; load the page again", headers)


def _is_call(path: str) -> bool:
    """Whether one of the page's functions is called."""
    return path == JOIN or path.startswith(RUN)


def _told(path: str, status: int, words: str, headers: dict[str, str] | None = None) -> Response:
    """A refusal, as who asks reads it: gradio's page shows its user the `error` of a call that failed, except where
    the status is 422 or 503, for which it has words of its own.
    """
    if _is_call(path):
        return JSONResponse({"error": words}, status, headers)
    return PlainTextResponse(words, status, headers)


def _with(send: Any, *headers: tuple[bytes, bytes]) -> Any:
    """Sends an answer with some more headers."""

    async def sent(message: Any) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], *headers]}
        await send(message)

    return sent
