"""`sidestep app` in a real browser: what a user sees and does, with the bundled model."""

import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sidestep.app.poses import Pose, matrices, target
from sidestep.cameras import Camera
from sidestep.captures import read_captures
from sidestep.images import load_image, resize_and_crop
from sidestep.keyframes import along, read_key_frames
from sidestep.pipeline import NovelViewPipeline

pytest.importorskip("gradio", reason="the page's extra is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-unsafe-swiftshader",
]
EXAMPLES = Path(__file__).parents[2] / "examples"
PATIENCE = 60_000  # ms; a loaded machine is slow, and nothing here is about time

# The command, but for how long the session of a closed page is kept.
PROGRAM = """
from sidestep.app import server, sessions
sessions.AWAY, server.SWEEP = 2, 1
from sidestep.__main__ import main
main()
"""

Open = Callable[..., Any]


def start(folder: Path, stderr: Any = None, **environment: str) -> tuple[str, subprocess.Popen[str]]:
    """A server whose temporary files go to a folder: its address and its process."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "app", "--port", "0"],
        # gradio looks for closed pages every 15 seconds, and four times a second where this is set.
        env={**os.environ, "TMPDIR": str(folder), "OMP_NUM_THREADS": "1", "GRADIO_IS_E2E_TEST": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert "http://127.0.0.1:" in line
    return next(word for word in line.split() if word.startswith("http")), process


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The page's address, and the folder that the server's temporary files go to."""
    folder = tmp_path_factory.mktemp("server")
    address, process = start(folder)
    yield address, folder
    process.send_signal(signal.SIGTERM)
    process.wait(60)
    assert not list(folder.glob("sidestep-app-*"))


@pytest.fixture(scope="module")
def pipe() -> NovelViewPipeline:
    return NovelViewPipeline.from_pretrained()


@pytest.fixture(scope="module")
def desk() -> Iterator[Any]:
    """A browser on a desk, whose cache keeps the page's scripts from test to test."""
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser.new_context(viewport={"width": 1280, "height": 1000})
        browser.close()


@pytest.fixture(scope="module")
def faults() -> list[str]:
    """Errors of any page, and what it asked of other machines."""
    return []


@pytest.fixture(autouse=True)
def _no_faults(faults: list[str]) -> Iterator[None]:
    yield
    assert not faults


@pytest.fixture(scope="module")
def open_page(server: tuple[str, Path], desk: Any, faults: list[str]) -> Open:
    """Opens the page as a new user."""

    def opened(**device: Any) -> Any:
        page = (desk.browser.new_context(**device) if device else desk).new_page()
        page.set_default_timeout(PATIENCE)
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        local = (server[0], "data:", "blob:")
        page.on("request", lambda request: None if request.url.startswith(local) else faults.append(request.url))
        page.goto(server[0])
        page.wait_for_function("document.querySelector('sidestep-viewport')?.pose")
        page.wait_for_selector("#examples button")
        return page

    return opened


@pytest.fixture(scope="module")
def shared(open_page: Open) -> Any:
    """One page for the tests that do not mind what was done on it before; loading one takes seconds."""
    return open_page()


def use_example(page: Any, name: str) -> None:
    page.click(f"#examples button[aria-label$={name}]")
    page.wait_for_selector("#coarse img")
    await_status(page, "Ready")


def picture(page: Any, name: str) -> str:
    return page.locator(f"#{name} img").get_attribute("src")


def await_another(page: Any, name: str, last: str) -> str:
    page.wait_for_function(
        "([name, last]) => (document.querySelector(`#${name} img`)?.src ?? last) !== last", arg=[name, last]
    )
    return picture(page, name)


def pose(page: Any) -> Pose:
    return Pose.read(page.evaluate("document.querySelector('sidestep-viewport').pose"))


def fields(page: Any) -> list[float]:
    return [float(page.locator("#pose input").nth(i).input_value()) for i in range(3)]


def await_fields(page: Any, pose: Pose) -> None:
    for _ in range(100):
        if fields(page) == [pose.yaw, pose.pitch, pose.distance]:
            return
        page.wait_for_timeout(100)
    pytest.fail(f"the fields stay at {fields(page)} instead of {pose}")


def await_pixels(page: Any, name: str, expected: np.ndarray) -> None:
    """Waits until a picture is the expected one, but for what JPEG changes."""
    for _ in range(100):
        distance = np.abs(shown_pixels(page, name) - expected).mean()
        if distance < 4:
            return
        page.wait_for_timeout(200)
    pytest.fail(f"the {name} picture stays {distance:.1f} grey levels away from the expected one")


def await_status(page: Any, text: str) -> None:
    page.wait_for_function("(text) => document.querySelector('#status').textContent.includes(text)", arg=text)


def fill(page: Any, field: str, text: str) -> None:
    page.fill(field, text)
    page.press(field, "Tab")


def choose_steps(page: Any, steps: int) -> None:
    page.click("#settings button >> nth=0")
    fill(page, "#steps input", str(steps))
    page.click("#settings button >> nth=0")


def download(page: Any, folder: Path) -> Path:
    """The folder that the page's download holds."""
    with page.expect_download() as started:
        page.click("#download")
    started.value.save_as(folder / "views.zip")
    with zipfile.ZipFile(folder / "views.zip") as archive:
        archive.extractall(folder / "out")
    return folder / "out"


def drag(page: Any, right: float, up: float, moves: int) -> None:
    box = page.locator("sidestep-viewport").bounding_box()
    spot = page.evaluate("document.querySelector('sidestep-viewport').spot")
    x, y = box["x"] + spot["x"], box["y"] + spot["y"]
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + right, y - up, steps=moves)
    page.mouse.up()


def shown_pixels(page: Any, name: str) -> np.ndarray:
    """The pixels of a picture as the browser decoded them, (H, W, 3)."""
    width, height, values = page.evaluate(
        """async (selector) => {
            const image = document.querySelector(selector);
            await image.decode();
            const canvas = document.createElement('canvas');
            [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
            const context = canvas.getContext('2d', { willReadFrequently: true });
            context.drawImage(image, 0, 0);
            return [canvas.width, canvas.height, [...context.getImageData(0, 0, canvas.width, canvas.height).data]];
        }""",
        f"#{name} img",
    )
    return np.array(values, np.float32).reshape(height, width, 4)[..., :3]


def test_a_photo_is_dropped_looked_at_from_the_side_and_made(
    open_page: Open, pipe: NovelViewPipeline, tmp_path: Path
) -> None:
    page = open_page()
    page.set_input_files("#upload input[type=file]", EXAMPLES / "sofa.jpg")
    page.wait_for_selector("#coarse img")
    before = picture(page, "coarse")
    assert fields(page) == [20, 0, 1]
    view = "document.querySelector('sidestep-viewport')"
    page.wait_for_function(f"{view}.previewPlane.visible && {view}.previewPlane.material.map?.image.src")
    await_status(page, "Ready")
    told = page.locator("p[role=status]").element_handle()

    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if request.method == "POST" else None)
    drag(page, -70, 40, moves=40)
    await_another(page, "coarse", before)
    moved = pose(page)
    assert moved.yaw < 10
    assert moved.pitch > 2
    await_fields(page, moved)

    # What is shown last is what the model makes of the last pose.
    photo = load_image(EXAMPLES / "sofa.jpg")
    reference = pipe.invert(photo, Camera.from_fov(45, *photo.size), scale=1.0)
    camera = target(reference.camera, moved, pipe.tunet.config.elevation)
    expected = np.asarray(pipe.coarse(reference, [camera])[0], np.float32)
    await_pixels(page, "coarse", expected)
    assert len(asked) < 30  # not one for each of 40 moves

    choose_steps(page, 2)
    page.click("#make")
    await_status(page, "Done")
    assert told.inner_text() == "Done."  # in the element that a screen reader watches
    coarse = picture(page, "coarse")
    final = picture(page, "final")
    assert final != coarse
    assert page.locator("#compare img").nth(1).get_attribute("src") == final
    slider = page.locator("#compare input")
    slider.focus()
    page.keyboard.press("Home")
    assert slider.input_value() == "0"

    scenes = {scene.name: scene for scene in read_captures(download(page, tmp_path))}
    made, own = scenes["views"].frames
    assert np.array_equal(own.load(), resize_and_crop(photo, 256))
    assert torch.allclose(made.camera.world_to_camera, camera.world_to_camera, atol=1e-4)
    await_pixels(page, "final", np.asarray(made.load(), np.float32))


def test_the_3d_view_stands_where_the_cameras_do(shared: Any, pipe: NovelViewPipeline) -> None:
    page = shared
    source, elevation = Camera.from_fov(45, 2, 2), pipe.tunet.config.elevation
    for yaw, pitch, distance in ((20, 0, 1), (-65, 30, 1.5), (0, -25, 0.6), (-80, 40, 1.9)):
        numbers = page.evaluate(
            "(pose) => { const view = document.querySelector('sidestep-viewport'); view.pose = pose; "
            "return view.matrix; }",
            {"yaw": yaw, "pitch": pitch, "distance": distance},
        )
        spot = page.evaluate("document.querySelector('sidestep-viewport').spot")
        box = page.locator("sidestep-viewport").bounding_box()
        assert 0 < spot["x"] < box["width"]
        assert 0 < spot["y"] < box["height"]
        (expected,) = matrices([target(source, Pose(yaw, pitch, distance), elevation)], source)
        assert numbers == pytest.approx(expected, abs=1e-5)


def test_a_path_is_cancelled_then_made_into_a_video(shared: Any) -> None:
    page = shared
    use_example(page, "chair")
    page.get_by_label("Orbit").check()
    fill(page, "#frames input[type=number]", "3")
    choose_steps(page, 100)
    page.click("#make")
    page.wait_for_selector("#status progress")
    page.click("#cancel")
    await_status(page, "Cancelled")
    assert not page.locator("#final img").count()
    choose_steps(page, 2)
    page.click("#make")
    await_status(page, "Done: 3 views")
    page.wait_for_function("document.querySelector('#video video')?.duration > 0")
    page.wait_for_function("document.querySelector('#video video').currentTime > 0")


def test_key_frames_are_recorded_made_and_read_back(shared: Any, pipe: NovelViewPipeline, tmp_path: Path) -> None:
    page = shared
    use_example(page, "table")
    page.get_by_label("Key frames").first.check()
    for count, key in enumerate((Pose(0, 0, 1), Pose(30, 8, 0.9), Pose(-60, 0, 1)), 1):
        for i, number in enumerate((key.yaw, key.pitch, key.distance)):
            fill(page, f"#pose input >> nth={i}", str(number))
        page.wait_for_function(
            "(key) => JSON.stringify(Object.values(document.querySelector('sidestep-viewport').pose)) === key",
            arg=f"[{key.yaw},{key.pitch},{key.distance}]",
        )
        page.click("#add")
        page.wait_for_selector(f"#keys li >> nth={count - 1}")
    page.get_by_role("button", name="Remove last").click()
    page.wait_for_selector("#keys li >> nth=2", state="detached")
    assert page.locator("#keys li").last.inner_text() == "30° yaw, 8° pitch, distance 0.9"
    fill(page, "#frames input[type=number]", "3")
    choose_steps(page, 1)
    page.click("#make")
    await_status(page, "Done: 3 views")
    out = download(page, tmp_path)
    keys = read_key_frames(out / "keys.yaml")
    assert [(key.yaw, key.pitch, key.distance) for key in keys] == [(0, 0, 1), (30, 8, 0.9)]
    photo = load_image(EXAMPLES / "table.jpg")
    expected = along(keys, Camera.from_fov(45, *photo.size), 3, elevation=pipe.tunet.config.elevation)
    (scene,) = (scene for scene in read_captures(out) if scene.name == "views")
    for frame, camera in zip(scene.frames[1:], expected, strict=True):
        assert torch.allclose(frame.camera.world_to_camera, camera.world_to_camera, atol=1e-4)


def test_a_file_that_is_no_photo_is_refused_in_words(shared: Any, tmp_path: Path) -> None:
    page = shared
    use_example(page, "chair")
    before = picture(page, "photo")
    (tmp_path / "chair.png").write_text("not a picture")
    page.set_input_files("#upload input[type=file]", tmp_path / "chair.png")
    await_status(page, "chair.png: not an image")
    assert "chair.png" in page.get_by_test_id("toast-text").inner_text()
    assert picture(page, "photo") == before
    use_example(page, "sofa")  # and the page works on


def test_two_users_keep_apart_and_leave_nothing_behind(open_page: Open, shared: Any, server: tuple[str, Path]) -> None:
    others = set(server[1].glob("*/session-*"))
    one, other = open_page(), open_page()
    use_example(one, "chair")
    use_example(other, "table")
    theirs = picture(other, "coarse"), pose(other)
    before = picture(one, "coarse")
    assert before != theirs[0]
    one.bring_to_front()  # a page behind another draws once a second
    drag(one, -60, 0, moves=8)
    await_another(one, "coarse", before)
    assert (picture(other, "coarse"), pose(other)) == theirs
    sessions = set(server[1].glob("*/session-*")) - others
    assert len(sessions) == 2
    for page in (one, other):
        page.close()
    for _ in range(100):
        if not any(folder.exists() for folder in sessions):
            break
        shared.wait_for_timeout(200)
    assert not any(folder.exists() for folder in sessions)
    assert all(folder.exists() for folder in others)


def test_of_what_waits_behind_another_user_the_last_is_made_unless_it_is_cancelled(
    open_page: Open, shared: Any
) -> None:
    busy, waiting = shared, open_page()
    use_example(waiting, "table")
    use_example(busy, "chair")
    choose_steps(waiting, 2)
    for yaw, cancelled in ((-70, False), (40, True)):
        choose_steps(busy, 100)
        busy.click("#make")
        await_status(busy, "Sampling")
        waiting.bring_to_front()
        waiting.click("#make")
        await_status(waiting, "Waiting")
        fill(waiting, "#pose input >> nth=0", str(yaw))
        waiting.click("#make")
        if cancelled:
            waiting.click("#cancel:enabled")
            await_status(waiting, "Cancelled")
        busy.click("#cancel")
        await_status(busy, "Cancelled")
        if not cancelled:
            await_status(waiting, "Done")
            assert "yaw -70" in waiting.locator("#final").inner_text()
    choose_steps(busy, 2)
    busy.click("#make")  # behind what waited
    await_status(busy, "Done")
    assert "Cancelled" in waiting.locator("#status").inner_text()
    assert "yaw -70" in waiting.locator("#final").inner_text()
    waiting.close()


def test_without_webgl_the_photo_is_shown_flat_and_the_arrow_keys_move_the_camera(
    server: tuple[str, Path], desk: Any
) -> None:
    page = desk.new_page()
    page.set_default_timeout(PATIENCE)
    page.add_init_script("HTMLCanvasElement.prototype.getContext = () => null")
    page.goto(server[0])
    page.wait_for_selector("sidestep-viewport[flat]")
    use_example(page, "chair")
    assert page.locator("sidestep-viewport #preview").get_attribute("src") == picture(page, "photo")
    assert page.locator("sidestep-viewport").bounding_box()["height"] < 150
    assert not page.get_by_text("Drag the orange camera").is_visible()
    before = picture(page, "coarse")
    page.locator("sidestep-viewport #stage").focus()
    page.keyboard.press("ArrowLeft")
    await_another(page, "coarse", before)
    await_fields(page, Pose(18, 0, 1))
    page.close()


def test_the_keyboard_is_enough(open_page: Open) -> None:
    page = open_page()

    def reach(script: str) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate(f"(() => {{ const on = document.activeElement; return {script}; }})()"):
                return
        pytest.fail(f"Tab does not reach what has {script}")

    reach("on.closest('#examples') !== null")
    page.keyboard.press("Enter")
    page.wait_for_selector("#coarse img")
    first = picture(page, "coarse")
    reach("on.tagName === 'SIDESTEP-VIEWPORT'")
    outline = "getComputedStyle(document.activeElement.shadowRoot.activeElement).outlineStyle"
    assert page.evaluate(outline) == "solid"
    for key in ("ArrowLeft", "ArrowLeft", "Shift+ArrowUp", "+"):
        page.keyboard.press(key)
    assert pose(page) == Pose(16, 10, 0.95)
    second = await_another(page, "coarse", first)
    await_fields(page, Pose(16, 10, 0.95))
    reach("on.closest('#pose') !== null")
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.type("-30")
    await_another(page, "coarse", second)
    page.wait_for_function("document.querySelector('sidestep-viewport').pose.yaw === -30")
    choose_steps(page, 2)
    page.focus("#pose input")
    reach("on.id === 'make'")
    page.keyboard.press("Enter")
    await_status(page, "Done")


def test_a_phone_shows_it_all_without_scrolling_sideways(open_page: Open) -> None:
    page = open_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True, color_scheme="dark")
    use_example(page, "chair")
    page.get_by_label("Key frames").first.check()
    page.click("#add")
    page.wait_for_selector("#keys li")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    wide = page.evaluate(
        "[...document.querySelectorAll('button, input, img, sidestep-viewport')]"
        ".map((each) => each.getBoundingClientRect()).filter((box) => box.width && box.right > 391).length"
    )
    assert wide == 0
    before = picture(page, "coarse")
    page.locator("sidestep-viewport").scroll_into_view_if_needed()
    spot = page.evaluate("document.querySelector('sidestep-viewport').spot")
    box = page.locator("sidestep-viewport").bounding_box()
    touch = page.context.new_cdp_session(page)

    def swipe(x: float, y: float, right: float, down: float) -> None:
        for share in (0, 0.2, 0.4, 0.6, 0.8, 1):
            at = {"x": box["x"] + x + share * right, "y": box["y"] + y + share * down}
            kind = "touchMove" if share else "touchStart"
            touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [at]})
            page.wait_for_timeout(30)
        touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})

    swipe(spot["x"], spot["y"], -40, 0)
    await_another(page, "coarse", before)
    moved = pose(page)
    assert moved.yaw < 15
    # Beside the camera, a finger scrolls.
    page.evaluate("scrollTo(0, 0)")
    box = page.locator("sidestep-viewport").bounding_box()
    swipe(30, 200, 0, -150)
    page.wait_for_function("scrollY > 50")
    assert pose(page) == moved


def test_ctrl_c_ends_the_server_amid_work_in_one_word(desk: Any, tmp_path: Path) -> None:
    with (tmp_path / "told").open("w") as told:
        address, process = start(tmp_path, told)
        page = desk.new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(address)
        page.click("#examples button >> nth=0")
        page.wait_for_selector("#coarse img")
        choose_steps(page, 100)
        page.click("#make")
        await_status(page, "Sampling")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        page.close()
    assert (tmp_path / "told").read_text().strip() == "interrupted"
    assert not list(tmp_path.glob("sidestep-app-*"))


@pytest.mark.slow
def test_a_token_is_asked_for_once_and_links_elsewhere_lead_in(desk: Any, tmp_path: Path) -> None:
    token = "a token of words and 1 number"
    address, process = start(tmp_path, SIDESTEP_TOKEN=token)

    def follow_link(context: Any, to: str) -> Any:
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        link = f'<a href="{to}">Sidestep</a>'
        page.route("http://elsewhere.example/", lambda route: route.fulfill(body=link, content_type="text/html"))
        page.goto("http://elsewhere.example/")
        page.click("a")
        page.wait_for_selector("#examples button")
        assert token not in page.url
        return page

    context = desk.browser.new_context()
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(address)
    for told in (token[:-1], token):
        assert not page.locator("#examples").count()
        page.get_by_label("The token").fill(told)
        page.get_by_role("button", name="Enter").click()
        page.wait_for_selector("text=That is not the token." if told != token else "#examples button")
    (cookie,) = context.cookies()
    assert cookie["httpOnly"]
    assert cookie["sameSite"] == "Strict"
    assert token not in cookie["value"]
    use_example(page, "chair")
    follow_link(context, address)  # without its cookie
    assert [each["value"] for each in context.cookies()] == [cookie["value"]]
    use_example(page, "table")  # the first one works on
    follow_link(desk.browser.new_context(), f"{address}/?token={token.replace(' ', '%20')}")
    process.send_signal(signal.SIGTERM)
    process.wait(60)
