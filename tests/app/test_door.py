"""What is refused at the door: other sites, others' sessions, what is too large, and what the page never asks."""

import json
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

import anyio
import pytest

from sidestep.app import answers, uploads
from sidestep.app.session import ARCHIVE, VIDEO

pytest.importorskip("gradio", reason="the page's extra is not installed")

from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.websockets import WebSocketDisconnect

from sidestep.app.door import MAX_BODY, MAX_UPLOAD
from sidestep.app.visitors import MAX_EACH

API = "/gradio_api"
TOKEN = "a token of words and 1 number"
BEYOND = "http://192.168.1.2"


@pytest.fixture(scope="module")
def guarded(build: Callable[..., Any]) -> Any:
    """The page beyond loopback, with a token."""
    return build(host="192.168.1.2", token=TOKEN)


def visitor(app: Any, address: str = "http://127.0.0.1", **options: Any) -> TestClient:
    return TestClient(app, base_url=address, **options)


def files(client: TestClient) -> list[Path]:
    return sorted(client.app.state.folder.rglob("*"))


def function(client: TestClient, control: str, event: str = "click") -> dict[str, Any]:
    """One of the page's functions, by the control that calls it."""
    config = client.get("/config").json()
    (number,) = (each["id"] for each in config["components"] if each["props"].get("elem_id") == control)
    return next(each for each in config["dependencies"] if [number, event] in each["targets"] and each["backend_fn"])


def begin(client: TestClient, session: str, **changed: Any) -> Any:
    body = {"data": [], "fn_index": function(client, "make")["id"], "session_hash": session}
    return client.post(f"{API}/run/predict", json={**body, **changed})


@pytest.mark.parametrize(
    ("headers", "answer"),
    [
        ({}, 200),
        ({"origin": "http://127.0.0.1"}, 200),
        ({"origin": "https://a.proxy", "sec-fetch-site": "same-origin"}, 200),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "http://127.0.0.1:8000"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "https://evil.example", "sec-fetch-site": "cross-site"}, 403),
        ({"origin": "http://localhost", "sec-fetch-site": "same-site"}, 403),
    ],
)
def test_a_page_elsewhere_can_leave_no_files_here(client: TestClient, headers: dict[str, str], answer: int) -> None:
    before, name = files(client), f"{len(headers)}-{answer}.png"
    upload = client.post(f"{API}/upload", files={"files": (name, repr(headers).encode())}, headers=headers)
    assert upload.status_code == answer
    assert (files(client) != before) == (answer == 200)


@pytest.mark.parametrize(
    "path", ["/config", f"{API}/queue/data?session_hash=one", f"{API}/heartbeat/one", f"{API}/info", "/"]
)
@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "script"},
        {"sec-fetch-site": "same-site", "sec-fetch-mode": "cors", "sec-fetch-dest": "empty"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"},
    ],
)
def test_a_page_elsewhere_reads_nothing_and_hears_no_events(
    client: TestClient, path: str, headers: dict[str, str]
) -> None:
    answer = client.get(path, headers=headers)
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers


def test_another_site_may_not_ask_whether_it_may(client: TestClient) -> None:
    headers = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    for asked in (headers, {**headers, "origin": "http://127.0.0.1"}):
        answer = client.options(f"{API}/queue/join", headers=asked)
        assert answer.status_code in (403, 405)
        assert "access-control-allow-origin" not in answer.headers


def test_a_link_elsewhere_leads_here_and_leaves_the_cookie(client: TestClient) -> None:
    client.get("/")
    (cookie,) = client.cookies.jar
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    answer = client.get("/", headers=link)
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    assert 'http-equiv="refresh"' in answer.text  # which comes from this site, so with the cookie
    assert "set-cookie" not in answer.headers
    client.get("/", headers={"sec-fetch-site": "same-origin"})
    assert [each.value for each in client.cookies.jar] == [cookie.value]


def test_there_are_no_web_sockets(client: TestClient) -> None:
    with (
        pytest.raises((WebSocketDisconnect, WebSocketDenialResponse)),
        client.websocket_connect(f"{API}/queue/join"),
    ):
        pass


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "TRACE", "OPTIONS"])
def test_other_methods_are_refused(client: TestClient, method: str) -> None:
    assert client.request(method, "/").status_code == 405


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", f"{API}/deep_link?session_hash=one"),  # writes a session's pictures to a file
        ("GET", f"{API}/proxy=https://evil.example/"),
        ("GET", f"{API}/vibe-code"),
        ("POST", f"{API}/vibe-code"),
        ("POST", f"{API}/component_server"),
        ("POST", f"{API}/process_recording"),
        ("POST", f"{API}/call/predict"),
        ("POST", f"{API}/stream/one"),
        ("GET", f"{API}/dev/reload"),
        ("GET", f"{API}/queue/status"),
        ("GET", "/monitoring"),
        ("GET", "/?page=another"),
        ("GET", "/docs"),
        ("POST", "/login"),
        ("POST", "/"),
        ("POST", "/sidestep/enter"),  # without a token to tell
    ],
)
def test_what_the_page_never_asks_is_not_there(client: TestClient, method: str, path: str) -> None:
    body = {"json": {"session_hash": "one", "data": []}} if method == "POST" else {}
    assert client.request(method, path, **body).status_code == 404


@pytest.mark.parametrize(
    "before", ["/assets/", "/static/", "/svelte/", "/sidestep/", "/sidestep/three/", f"{API}/file="]
)
@pytest.mark.parametrize(
    "climb",
    [
        "%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2fetc%2fpasswd",
        "..%5c..%5cetc%5cpasswd",
        "%2fetc%2fpasswd",
        "%252e%252e/%252e%252e/etc/passwd",
        "etc/passwd%00.png",
        "~/.bashrc",
        "file%3a%2f%2f%2fetc%2fpasswd",
    ],
)
def test_no_path_leads_out_of_the_page(client: TestClient, before: str, climb: str) -> None:
    answer = client.get(before + climb)
    assert answer.status_code in (403, 404)
    assert "root:" not in answer.text


@pytest.mark.parametrize("url", ["https://example.com/a.png", "//example.com/a.png", "http://127.0.0.1/config"])
def test_nothing_is_fetched_for_a_visitor(client: TestClient, url: str) -> None:
    assert client.get(f"{API}/file={url}").status_code == 403


def test_what_is_too_large_is_refused_before_it_is_read(client: TestClient) -> None:
    async def receive() -> Any:
        raise AssertionError("it is read")

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            answers.append(message["status"])

    answers: list[int] = []
    upload, json_ = (b"content-type", b"multipart/form-data; boundary=b"), (b"content-type", b"application/json")
    for path, length in (
        (f"{API}/upload", b"%d" % (MAX_UPLOAD + 1)),
        (f"{API}/queue/join", b"%d" % (MAX_BODY + 1)),
        (f"{API}/queue/join", b"9" * 5000),
        ("/config", b"%d" % (MAX_BODY + 1)),
    ):
        headers = [(b"host", b"127.0.0.1"), upload if path.endswith("upload") else json_, (b"content-length", length)]
        method = "GET" if path == "/config" else "POST"
        scope = {"type": "http", "method": method, "path": path, "headers": headers, "query_string": b""}
        anyio.run(client.app, {**scope, "scheme": "http", "root_path": ""}, receive, send)
    assert answers == [413] * 4


def test_large_uploads_are_refused(client: TestClient) -> None:
    big = {"files": ("big.png", b"0" * (20 * 2**20 + 1))}
    assert client.post(f"{API}/upload", files=big).status_code == 413
    many = [("files", (f"{i}.png", b"0" * 2**20)) for i in range(22)]  # each small enough
    assert client.post(f"{API}/upload", files=many).status_code == 413
    typed = {"content-type": "multipart/form-data; boundary=b"}
    assert client.post(f"{API}/upload", content=iter([b"0"]), headers=typed).status_code == 411
    assert client.post(f"{API}/upload", files={"files": ("small.png", b"0")}).status_code == 200


@pytest.mark.parametrize("length", ["-5", "abc", "1e3", "+7", ""])
def test_a_length_has_to_be_a_number(client: TestClient, length: str) -> None:
    assert client.post(f"{API}/queue/join", content=b"{}", headers={"content-length": length}).status_code == 400


@pytest.mark.parametrize(
    ("path", "kind", "content", "answer"),
    [
        ("upload", "application/json", b"{}", 415),
        ("upload", "image/png", b"0", 415),
        ("upload", "multipart/form-data", b"0", 400),  # without a boundary
        ("queue/join", "text/plain", b"{}", 415),  # which a browser sends anywhere
        ("queue/join", "application/x-www-form-urlencoded", b"a=b", 415),
        ("queue/join", "application/json", b"{", 400),
        ("queue/join", "application/json", b"[" * 200_000, 400),
        ("queue/join", "application/json", b'{"a":' * 40_000 + b"1" + b"}" * 40_000, 400),
        ("queue/join", "application/json", b"[]", 400),
        ("queue/join", "application/json", b"9" * 10_000, 400),
        ("queue/join", "application/json", b"\xff\xfe", 400),
    ],
    ids=lambda value: str(value)[:24],
)
def test_what_is_no_photo_and_no_json_is_refused(
    client: TestClient, path: str, kind: str, content: bytes, answer: int
) -> None:
    assert client.post(f"{API}/{path}", content=content, headers={"content-type": kind}).status_code == answer


@pytest.mark.parametrize(
    "changed",
    [
        {"fn_index": -1},
        {"fn_index": 10**9},
        {"fn_index": "1"},
        {"fn_index": None},
        {"fn_index": [1]},
        {"data": [1]},
        {"data": {}},
        {"data": None},
        {"batched": True},
    ],
    ids=str,
)
def test_only_the_functions_of_the_page_are_called(client: TestClient, changed: dict[str, Any]) -> None:
    assert begin(client, "one").status_code == 200
    assert begin(client, "one", **changed).status_code == 404


@pytest.mark.parametrize("name", ["", None, 7, ["a"], "../../etc", "a b", "x" * 65, "a\r\nSet-Cookie: a=b", "é"])
def test_a_session_has_a_plain_name(client: TestClient, name: Any) -> None:
    assert begin(client, name).status_code == 400


@pytest.mark.parametrize(
    "path",
    ["/etc/hostname", "examples/chair.jpg", "https://example.com/a.jpg", "../{}/a.png", "{}/../a.png", "", 5, None],
)
def test_nothing_but_an_upload_is_taken_for_one(client: TestClient, path: Any) -> None:
    upload = function(client, "upload", "upload")
    (sent,) = client.post(f"{API}/upload", files={"files": ("a.png", b"0")}).json()
    if isinstance(path, str):
        path = path.format(Path(sent).parent)
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    body = {"fn_index": upload["id"], "session_hash": "one"}
    before = files(client)
    for data in ([file, "tiny"], [sent, file], [{"a": [{"b": file}]}, "tiny"]):
        assert client.post(f"{API}/queue/join", json={**body, "data": data}).status_code == 403
    assert files(client) == before


def test_a_file_name_stays_a_name(client: TestClient) -> None:
    for name in (
        "../../up.png",
        "/etc/up.png",
        "..\\up.png",
        "a\r\nSet-Cookie: a=b.png",
        "x" * 5000 + ".png",
        "..",
        "\0",
    ):
        headers = {"content-type": "multipart/form-data; boundary=b"}
        part = f'--b\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n0\r\n--b--\r\n'
        answer = client.post(f"{API}/upload", content=part.encode(), headers=headers)
        assert "set-cookie" not in answer.headers
        assert answer.status_code in (200, 400, 413)  # also what is too long for a header
        for path in answer.json() if answer.status_code == 200 else []:
            assert Path(path).resolve().parent.parent == client.app.state.folder
    assert not list(client.app.state.folder.parent.glob("*.png"))


def test_a_session_is_the_visitors_who_used_it_first(app: Any) -> None:
    one, other, program = (visitor(app) for _ in range(3))
    one.get("/")
    other.get("/")
    assert begin(one, "mine").status_code == 200
    session = app.state.sessions.find("mine")
    folder = session._folder / "made-1"
    folder.mkdir()
    for name in (ARCHIVE, VIDEO, "other.png"):
        (folder / name).write_bytes(b"made")
    (session._folder / "photo-1").write_bytes(b"photo")
    for name in (ARCHIVE, VIDEO):
        assert one.get(f"{API}/file={folder / name}").content == b"made"
    for file in (folder / "other.png", session._folder / "photo-1", folder, session._folder, app.state.folder):
        assert one.get(f"{API}/file={file}").status_code == 403
    for stranger in (other, program):
        assert begin(stranger, "mine").status_code == 403
        for path in ("queue/data?session_hash=mine", "heartbeat/mine", f"file={folder / ARCHIVE}"):
            assert stranger.get(f"{API}/{path}").status_code == 403, path
        for path in ("cancel", "queue/join"):
            body = {"session_hash": "mine", "event_id": "one", "fn_index": 0, "data": []}
            assert stranger.post(f"{API}/{path}", json=body).status_code == 403
        twice = "queue/data?session_hash=theirs&session_hash=mine"
        assert stranger.get(f"{API}/{twice}").status_code == 400
    assert begin(one, "mine").status_code == 200


def test_with_a_page_too_many_the_longest_unused_one_goes_with_its_answers(app: Any) -> None:
    client = visitor(app)
    client.get("/")
    body = {"data": [], "fn_index": function(client, "make")["id"]}
    names = [f"page-{number}" for number in range(MAX_EACH + 1)]
    for name in names:
        assert begin(client, name).status_code == 200
        assert client.post(f"{API}/queue/join", json={**body, "session_hash": name}).status_code == 200
    (queue,) = (
        each.app.get_blocks()._queue for each in app.routes if hasattr(getattr(each, "app", None), "get_blocks")
    )
    assert [name for name in names if name in queue.pending_messages_per_session] == names[1:]
    assert [name for name in names if name in queue.pending_event_ids_session] == names[1:]
    assert [name for name in names if app.state.sessions.find(name) is not None] == names[1:]


@pytest.mark.parametrize(
    ("asked", "status", "content"),
    [
        ("bytes=0-1", 206, b"01"),  # as Safari begins a video
        ("bytes=4-", 206, b"456789"),
        ("bytes=-2", 206, b"89"),
        ("bytes=50-60", 416, b""),
        ("bytes=a-b-c", 400, None),
        ("bytes=0-1,3-4", 206, None),
    ],
)
def test_a_part_of_a_result_says_nothing_of_who_asked(guarded: Any, asked: str, status: int, content: bytes) -> None:
    client = visitor(guarded, BEYOND)
    client.get("/", params={"token": TOKEN})
    session = asked.encode().hex()
    assert begin(client, session).status_code == 200
    folder = guarded.state.sessions.find(session)._folder / "made-1"
    folder.mkdir(exist_ok=True)
    (folder / VIDEO).write_bytes(b"0123456789")
    (cookie,) = client.cookies.jar
    headers = {"range": asked, "authorization": f"Bearer {TOKEN}", "x-mine": "secret"}
    answer = client.get(f"{API}/file={folder / VIDEO}", headers=headers)
    assert answer.status_code == status
    assert content is None or answer.content == content
    told = str(answer.headers)
    assert not any(secret in told for secret in (TOKEN, str(cookie.value), "secret", "authorization"))
    whole = client.head(f"{API}/file={folder / VIDEO}")
    assert (whole.headers["content-length"], whole.headers["accept-ranges"]) == ("10", "bytes")


def test_a_cookie_that_this_server_did_not_seal_lets_nobody_in(guarded: Any) -> None:
    one = visitor(guarded, BEYOND)
    one.get("/", params={"token": TOKEN})
    (cookie,) = one.cookies.jar
    name, _, seal = str(cookie.value).partition(".")
    for forged in (name, f"{name}.", f"{name}.{seal[:-1]}", f"x{name[1:]}.{seal}", f".{seal}", f"{name}.{'é' * 64}"):
        thief = visitor(guarded, BEYOND, headers={"cookie": f"{cookie.name}={forged}".encode()})
        assert thief.get("/config").status_code == 401
    assert visitor(guarded, BEYOND, cookies=dict(one.cookies)).get("/config").status_code == 200


def test_the_token_is_asked_for_everywhere(guarded: Any) -> None:
    client = visitor(guarded, BEYOND)
    asked = client.get("/")
    assert asked.status_code == 401
    assert "<form" in asked.text
    assert asked.headers["cache-control"] == "no-store"
    for path in ("/config", "/sidestep/viewport.js", f"{API}/info", f"{API}/queue/data?session_hash=a", "/theme.css"):
        assert client.get(path).status_code == 401
    assert client.post(f"{API}/upload", files={"files": ("a.png", b"0")}).status_code == 401
    for wrong in ("", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "é"):
        for answer in (
            client.get("/", params={"token": wrong}),
            client.post("/sidestep/enter", data={"token": wrong}),
            client.get("/config", headers={"authorization": f"Bearer {wrong}".encode()}),
            client.get("/config", headers={"authorization": f"Basic {TOKEN}"}),
        ):
            assert answer.status_code == 401
            assert "set-cookie" not in answer.headers
    again = client.post("/sidestep/enter", data={"token": TOKEN[:-1]})
    assert "not the token" in again.text
    assert 'action="/sidestep/enter"' in again.text  # wherever the form is seen
    assert "not the token" not in asked.text


@pytest.mark.parametrize("way", ["address", "form"])
def test_the_token_lets_a_browser_in_once_and_its_cookie_then(guarded: Any, way: str) -> None:
    client = visitor(guarded, BEYOND)
    if way == "address":
        # Where a link elsewhere led here, a redirection would come without the cookie.
        answer = client.get("/", params={"token": TOKEN}, follow_redirects=False)
        assert answer.status_code == 200
        assert 'http-equiv="refresh" content="0; url=./"' in answer.text
    else:
        answer = client.post("/sidestep/enter", data={"token": TOKEN}, follow_redirects=False)
        assert answer.status_code == 303
        assert answer.headers["location"] == "../"
    assert TOKEN not in answer.text
    assert answer.headers["cache-control"] == "no-store"
    given = answer.headers["set-cookie"]
    for flag in ("HttpOnly", "SameSite=Strict", "Path=/"):
        assert flag in given
    assert "Secure" not in given
    assert TOKEN not in given
    assert client.get("/").status_code == 200
    assert client.get("/config").status_code == 200
    assert begin(client, way).status_code == 200
    assert visitor(guarded, BEYOND).get("/config").status_code == 401


def test_a_cookie_that_came_encrypted_is_sent_in_no_other_way(guarded: Any) -> None:
    client = visitor(guarded, BEYOND.replace("http:", "https:"))
    answer = client.get("/", params={"token": TOKEN}, follow_redirects=False)
    assert "Secure" in answer.headers["set-cookie"]


def test_programs_send_the_token_with_each_request(guarded: Any) -> None:
    client = visitor(guarded, BEYOND)
    headers = {"authorization": f"bearer {TOKEN}"}
    assert client.get("/config", headers=headers).status_code == 200
    sent = client.post(f"{API}/upload", files={"files": ("a.png", b"0")}, headers=headers)
    assert sent.status_code == 200
    assert client.get("/config").status_code == 401


def test_a_page_elsewhere_does_not_get_in_with_the_token(guarded: Any) -> None:
    client = visitor(guarded, BEYOND)
    answer = client.post("/sidestep/enter", data={"token": TOKEN}, headers={"origin": "https://evil.example"})
    assert answer.status_code == 403


def test_uploads_of_a_while_leave_room_for_no_more(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    now = monotonic() + uploads.KEPT
    monkeypatch.setattr(uploads, "monotonic", lambda: now)
    monkeypatch.setattr(uploads, "MAX_KEPT", 2500)
    answers = [client.post(f"{API}/upload", files={"files": ("a.png", bytes([i]) * 900)}) for i in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 503]
    assert "try again" in answers[-1].text
    now += uploads.KEPT
    assert client.post(f"{API}/upload", files={"files": ("a.png", b"0")}).status_code == 200


def test_a_second_file_and_a_long_name_of_an_upload_are_refused(client: TestClient) -> None:
    before = files(client)
    two = [("files", (f"two-{i}.png", b"2")) for i in range(2)]
    assert client.post(f"{API}/upload", files=two).status_code == 413
    one = {"files": ("long-1.png", b"1")}
    assert client.post(f"{API}/upload", params={"upload_id": "x" * 65}, files=one).status_code == 400
    assert not {path.name for path in files(client)} - {path.name for path in before} & {"two-0.png", "long-1.png"}
    assert client.post(f"{API}/upload", params={"upload_id": "x" * 64}, files=one).status_code == 200


def test_who_does_not_read_the_answers_gets_no_more(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "are_unread", lambda page, session: session == "one")
    body = {"data": [], "fn_index": function(client, "make")["id"]}
    refused, taken = (client.post(f"{API}/queue/join", json={**body, "session_hash": name}) for name in ("one", "two"))
    assert taken.status_code == 200
    assert refused.status_code == 429
    assert "load the page again" in refused.json()["error"]
    assert begin(client, "one").status_code == 200  # what waits in no queue


@pytest.mark.parametrize("path", ["queue/join", "run/predict"])
def test_the_page_can_show_why_a_call_was_refused(app: Any, guarded: Any, path: str) -> None:
    owner, other = visitor(app), visitor(app)
    for client in (owner, other):
        client.get("/")
    body = {"data": [], "fn_index": function(owner, "make")["id"], "session_hash": f"shown-{path.partition('/')[0]}"}
    assert owner.post(f"{API}/{path}", json=body).status_code == 200
    elsewhere = {"origin": "https://evil.example"}
    for answer, status, words in (
        (other.post(f"{API}/{path}", json=body), 403, "load the page again"),
        (owner.post(f"{API}/{path}", json={**body, "fn_index": -1}), 404, "load it again"),
        (owner.post(f"{API}/{path}", json=[]), 400, "Not a JSON object"),
        (owner.post(f"{API}/{path}", json=body, headers=elsewhere), 403, "another site"),
        (owner.post(f"{API}/{path}", json={**body, "a": "a" * MAX_BODY}), 413, "Too large"),
        (visitor(guarded, BEYOND).post(f"{API}/{path}", json=body), 401, "load the page again"),
    ):
        assert answer.status_code == status
        assert words in answer.json()["error"]  # with any other body it says that it could not be parsed


def test_the_page_may_say_that_an_event_is_over(client: TestClient) -> None:
    assert client.post(f"{API}/reset", json={"event_id": "one"}).status_code == 200


def test_a_body_is_read_once_and_arrives_whole(client: TestClient) -> None:
    begun = begin(client, "one", data=[])
    assert isinstance(json.loads(begun.content)["data"][0], int)
