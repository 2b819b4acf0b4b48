"""What the server answers, to whom, and from which files."""

import socket
from pathlib import Path

import pytest

from sidestep.app.session import Studio
from sidestep.errors import SidestepError

pytest.importorskip("gradio", reason="the page's extra is not installed")

from starlette.testclient import TestClient

from sidestep.app.server import build_app, example_photos, serve


@pytest.fixture
def client(studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TestClient:
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "")
    return TestClient(build_app(studio, tmp_path), base_url="http://127.0.0.1")


def test_the_page_and_what_it_loads_come_from_here_alone(client: TestClient) -> None:
    page = client.get("/")
    assert page.status_code == 200
    assert "default-src 'self'" in page.headers["content-security-policy"]
    for file in ("viewport.js", "three/three.module.min.js", "three/three.core.min.js", "three/LICENSE"):
        assert client.get(f"/sidestep/{file}").status_code == 200
    assert "bundled" in client.get("/sidestep/model-card").text.lower()


def test_another_name_for_this_machine_is_not_answered(client: TestClient) -> None:
    assert client.get("/", headers={"host": "elsewhere.example"}).status_code == 400
    assert client.get("/", headers={"host": "localhost:7860"}).status_code == 200


def test_every_loopback_address_answers_to_its_own_names_alone(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    for host, answer in (("127.0.0.2", 400), ("192.168.1.2", 200)):
        client = TestClient(build_app(studio, tmp_path, host), base_url=f"http://{host}:7860")
        assert client.get("/sidestep/viewport.js").status_code == 200
        assert client.get("/sidestep/viewport.js", headers={"host": "elsewhere.example"}).status_code == answer


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
def test_a_page_elsewhere_can_leave_no_files_here(
    client: TestClient, tmp_path: Path, headers: dict[str, str], answer: int
) -> None:
    upload = client.post("/gradio_api/upload", files={"files": ("photo.png", b"0")}, headers=headers)
    assert upload.status_code == answer
    assert bool(list(tmp_path.rglob("photo.png"))) == (answer == 200)


def test_no_other_site_may_frame_the_page(client: TestClient) -> None:
    assert "frame-ancestors 'self'" in client.get("/").headers["content-security-policy"]


def test_no_function_of_the_page_is_offered_to_programs(client: TestClient) -> None:
    offered = client.get("/gradio_api/info").json()
    assert offered["named_endpoints"] == offered["unnamed_endpoints"] == {}
    config = client.get("/config").json()
    assert {each["api_visibility"] for each in config["dependencies"]} == {"private"}


def test_files_outside_the_private_folder_are_not_served(client: TestClient, tmp_path: Path) -> None:
    assert client.get(f"/gradio_api/file={Path(__file__)}").status_code == 403
    (tmp_path / "own.txt").write_text("served")
    assert client.get(f"/gradio_api/file={tmp_path / 'own.txt'}").status_code == 200


def test_large_uploads_are_refused(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    big = {"files": ("big.png", b"0" * (20 * 2**20 + 1))}
    assert client.post("/gradio_api/upload", files=big).status_code == 413
    many = [("files", (f"{i}.png", b"0" * 2**20)) for i in range(22)]  # each small enough
    assert client.post("/gradio_api/upload", files=many).status_code == 413
    assert client.post("/gradio_api/upload", content=iter([b"0"])).status_code == 413  # of a length not told
    assert client.post("/gradio_api/upload", files={"files": ("small.png", b"0")}).status_code == 200


def test_the_examples_are_there() -> None:
    assert [path.name for path in example_photos()] == ["chair.jpg", "sofa.jpg", "table.jpg"]


def test_a_port_that_is_taken_is_named(studio: Studio) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SidestepError, match=f"127.0.0.1:{port} .*--port"):
            serve(studio, "127.0.0.1", port, print)
