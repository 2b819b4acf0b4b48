"""What the server answers, to whom, and from which files."""

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import pytest

from sidestep.app import answers, server
from sidestep.app.sessions import Sessions
from sidestep.app.studio import Studio
from sidestep.errors import SidestepError

pytest.importorskip("gradio", reason="the page's extra is not installed")

from starlette.testclient import TestClient

from sidestep.app.server import _listen, example_photos, serve
from sidestep.app.uploads import Uploads


def test_the_page_and_what_it_loads_come_from_here_alone(client: TestClient) -> None:
    page = client.get("/")
    assert page.status_code == 200
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["cross-origin-resource-policy"] == "same-origin"
    for file in ("viewport.js", "three/three.module.min.js", "three/three.core.min.js", "three/LICENSE"):
        assert client.get(f"/sidestep/{file}").status_code == 200
    assert "bundled" in client.get("/sidestep/model-card").text.lower()


def test_another_name_for_this_machine_is_not_answered(client: TestClient) -> None:
    assert client.get("/", headers={"host": "elsewhere.example"}).status_code == 400
    assert client.get("/", headers={"host": "localhost:7860"}).status_code == 200


def test_every_loopback_address_answers_to_its_own_names_alone(build: Callable[..., Any]) -> None:
    for host, name, answer in (
        ("127.0.0.2", "127.0.0.2", 400),
        ("::1", "[::1]", 400),
        ("192.168.1.2", "192.168.1.2", 200),
    ):
        client = TestClient(build(host=host), base_url=f"http://{name}:7860")
        assert client.get("/sidestep/viewport.js").status_code == 200
        assert client.get("/sidestep/viewport.js", headers={"host": "elsewhere.example"}).status_code == answer


def test_a_proxy_on_this_machine_passes_on_its_own_name(build: Callable[..., Any]) -> None:
    token = "a token of words and 1 number"
    client = TestClient(build(token=token), base_url="http://127.0.0.1:7860")
    headers = {"host": "sidestep.example"}
    assert client.get("/config", headers={**headers, "authorization": f"Bearer {token}"}).status_code == 200
    assert client.get("/config", headers=headers).status_code == 401  # as for a name that is pointed here


def test_a_sweep_that_fails_ends_no_other_and_comes_again(
    build: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    swept: list[str] = []

    def fail(name: str) -> Any:
        swept.append(name)
        raise OSError(24, f"Too many open files for {name}")

    async def fail_async(self: Uploads) -> None:
        fail("uploads")

    monkeypatch.setattr(server, "SWEEP", 0.01)
    monkeypatch.setattr(Sessions, "sweep", lambda self: fail("sessions"))
    monkeypatch.setattr(answers, "sweep", lambda page, sessions: fail("answers"))
    monkeypatch.setattr(Uploads, "sweep", fail_async)
    app = build()

    async def run() -> None:  # as any server does
        async with app.router.lifespan_context(app):
            while len(swept) < 6:
                await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(run(), 60))
    assert swept[:6] == ["sessions", "answers", "uploads"] * 2
    for name in swept[:3]:
        assert f"Too many open files for {name}" in caplog.text


def test_no_other_site_may_frame_the_page(client: TestClient) -> None:
    assert "frame-ancestors 'self'" in client.get("/").headers["content-security-policy"]


def test_no_function_of_the_page_is_offered_to_programs(client: TestClient) -> None:
    offered = client.get("/gradio_api/info").json()
    assert offered["named_endpoints"] == offered["unnamed_endpoints"] == {}
    config = client.get("/config").json()
    assert {each["api_visibility"] for each in config["dependencies"]} == {"private"}


def test_the_examples_are_there() -> None:
    assert [path.name for path in example_photos()] == ["chair.jpg", "sofa.jpg", "table.jpg"]


def test_a_port_that_is_taken_is_named(studio: Studio) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SidestepError, match=f"127.0.0.1:{port} .*--port"):
            serve(studio, "127.0.0.1", port, print)


def test_addresses_of_both_kinds_are_listened_on() -> None:
    for host in ("127.0.0.1", "::1"):
        try:
            probe = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        except OSError:
            continue  # this machine has none
        probe.close()
        with _listen(host, 0) as listening, socket.create_connection((host, listening.getsockname()[1])):
            pass


@pytest.mark.parametrize("host", ["0.0.0.0", "", "192.168.1.2", "::", "some.name"])
def test_other_machines_are_let_in_by_a_token_alone(studio: Studio, host: str) -> None:
    with pytest.raises(SidestepError, match="--token"):
        serve(studio, host, 0, print)


@pytest.mark.parametrize(
    "token", ["", "short", "a token of words\r\n", "a token that isn’t ascii", " a token of words"]
)
def test_a_token_that_can_be_guessed_or_not_be_sent_is_refused(studio: Studio, token: str) -> None:
    with pytest.raises(SidestepError, match="16 or more"):
        serve(studio, "127.0.0.1", 0, print, token)
