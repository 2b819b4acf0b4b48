"""What becomes of `sidestep app` when many people use it at once, some of them slow, some of them gone.

Each client does over HTTP what the page does in a browser: it comes, sends a photo of its own, drags the camera and
has views made, and compares what it gets with the same views made alone beforehand. Some press Cancel, some close the
page while they wait, some send what is no photo; a slow one sends, and another reads, a byte a second. It fails if an
answer is lost or is another client's. Its miniature model is the tests' own, so it needs tests/ beside its folder.
"""

import argparse
import asyncio
import base64
import io
import itertools
import json
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import httpx
import numpy as np
import torch
from PIL import Image
from table import markdown, publish, run

from sidestep import NovelViewPipeline
from sidestep.app.poses import Pose
from sidestep.app.session import Made, Session, Settings
from sidestep.app.studio import Studio
from sidestep.errors import SidestepError
from sidestep.images import jpeg_url

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from miniatures import tiny_pipeline

FOV = 45.0
POSES = [{"yaw": 20, "pitch": 0, "distance": 1}, {"yaw": -35, "pitch": 10, "distance": 0.8}]
ALIKE = 0.1  # mean difference of grey values, of 255, up to which two pictures are one
PATIENCE = 300.0  # seconds after which an answer is lost
API = "gradio_api"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the clients and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=50, help="at a time [50]")
    parser.add_argument("--seconds", type=float, default=600, help="how long they keep coming [600]")
    parser.add_argument("--model", help="as of `sidestep app` [a miniature one with random weights]")
    parser.add_argument("--steps", type=int, default=2, help="of the sampling [2]")
    parser.add_argument("--threads", type=int, default=1, help="the server's OMP_NUM_THREADS [1]")
    parser.add_argument("--out", type=Path, help="markdown file to write the tables to")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.model is None:
            tiny_pipeline().save_pretrained(folder / "model")  # a view of its takes milliseconds
        model = options.model or str(folder / "model")
        users = _users(folder, model, options.clients, options.steps)
        told = _serve_and_load(folder, model, users, options)
    publish(told.text(options, "a miniature model" if options.model is None else options.model), options.out)
    if told.count["lost"] or told.count["mixed up"] or told.tracebacks:
        raise SidestepError(
            f"{told.count['lost']} answers lost, {told.count['mixed up']} mixed up, {told.tracebacks} tracebacks: "
            + "; ".join(told.faults[:5])
        )


@dataclass
class User:
    """A photo, and what is to be seen of it from each of POSES: a coarse view, a final one as shown, and as stored."""

    photo: bytes
    coarse: list[Image.Image] = field(default_factory=list)
    shown: list[Image.Image] = field(default_factory=list)
    stored: list[Image.Image] = field(default_factory=list)


@dataclass
class Told:
    """What the clients saw.

    Attributes:
        count: jobs, by what became of them.
        waits: seconds to an answer, by what was asked.
        samples: minute, MiB of memory, threads, open files, MiB on the disk, sessions on the disk, jobs answered.
        tracebacks: in what the server wrote to its terminal.
        left: files that were there after its end.
    """

    count: Counter[str] = field(default_factory=Counter)
    waits: dict[str, list[float]] = field(default_factory=dict)
    samples: list[list[float]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    tracebacks: int = 0
    left: int = 0

    def text(self, options: argparse.Namespace, model: str) -> str:
        caption = (
            f"{options.clients} clients at a time for {options.seconds:g} s, {model}, {options.steps} steps, "
            f"{os.cpu_count()} cores, {options.threads} thread(s); {os.getloadavg()[0]:.1f} processes wanted to run at "
            "the end (load average)."
        )
        names = ("asked", "answered", "refused in words", "cancelled", "closed while waiting", "lost", "mixed up")
        jobs = [[name, str(self.count[name])] for name in names]
        jobs += [["visits", str(self.count["visits"])], ["tracebacks of the server", str(self.tracebacks)]]
        jobs += [["files left after its end", str(self.left)]]
        waits = [
            [name, str(len(each)), *(f"{value:.2f}" for value in (median(each), _last(each, 100), max(each)))]
            for name, each in self.waits.items()
            if each
        ]
        over = [[f"{minute:.1f}", *(f"{value:.0f}" for value in rest)] for minute, *rest in self.samples]
        columns = ("minute", "memory, MiB", "threads", "open files", "on the disk, MiB", "sessions", "jobs answered")
        return "\n".join(
            (
                markdown(caption, ["jobs", ""], jobs),
                markdown("Seconds to the answer.", ["", "times", "median", "99 of 100 within", "longest"], waits),
                markdown("The server, from its start on.", columns, over),
            )
        )


def _last(values: list[float], parts: int) -> float:
    return quantiles(values, n=parts, method="inclusive")[-1] if len(values) > 1 else values[0]


def _users(folder: Path, model: str, count: int, steps: int) -> list[User]:
    """As many photos of coloured patches, with their views, each made alone."""
    studio = Studio([model], lambda name: NovelViewPipeline.from_pretrained(name, device="cpu"))
    users = []
    for seed in range(count):
        patches = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
        path = folder / "photo.png"
        Image.fromarray(patches).resize((96, 72), Image.Resampling.BICUBIC).save(path)
        own = folder / f"alone-{seed}"
        own.mkdir()
        session, settings = Session(studio, own), Settings(model, FOV, steps=steps)
        session.open(path)
        user = User(path.read_bytes())
        for pose in POSES:
            user.coarse.append(_shown(session.coarse(settings, Pose.read(pose))))
            *_, made = session.make(settings, Pose.read(pose))
            assert isinstance(made, Made)
            user.shown.append(_shown(made.views.images[0]))
            user.stored.append(made.views.images[0])
        session.close()
        users.append(user)
    for name in ("coarse", "shown", "stored"):
        for one, other in itertools.combinations([getattr(user, name) for user in users], 2):
            if min(_difference(*pair) for pair in itertools.product(one, other)) <= 2 * ALIKE:
                raise SidestepError("two clients' views look alike, and a mix-up would not be seen; use another model")
    return users


def _shown(picture: Image.Image) -> Image.Image:
    """A picture as the page's JPEG has it."""
    return _opened(jpeg_url(picture))


def _difference(one: Image.Image, other: Image.Image) -> float:
    return float(np.abs(np.asarray(one, np.float32) - np.asarray(other.convert("RGB"), np.float32)).mean())


def _serve_and_load(folder: Path, model: str, users: list[User], options: argparse.Namespace) -> Told:
    server_folder, errors = folder / "server", folder / "stderr.txt"
    server_folder.mkdir()
    environment = {**os.environ, "TMPDIR": str(server_folder), "OMP_NUM_THREADS": str(options.threads)}
    command = [sys.executable, "-m", "sidestep", "app", "--model", model, "--device", "cpu", "--port", "0"]
    told = Told()
    with (
        errors.open("w") as stderr,
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True) as server,
    ):
        assert server.stdout is not None
        try:
            url = next((word for word in server.stdout.readline().split() if word.startswith("http")), None)
            if url is None:
                raise SidestepError(f"the server did not start: {errors.read_text()}")
            asyncio.run(_load(url, server.pid, server_folder, users, told, options))
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(60)
    told.tracebacks = errors.read_text().count("Traceback")
    told.left = sum(path.is_file() for path in server_folder.rglob("*"))
    return told


async def _load(url: str, pid: int, folder: Path, users: list[User], told: Told, options: argparse.Namespace) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE) as first:
        while True:  # it listens before it answers
            with suppress(httpx.TransportError):
                config = (await first.get("/config")).json()
                break
    page = Page(config, options.steps)
    end = time.monotonic() + options.seconds
    watching = [
        asyncio.create_task(each)
        for each in (
            _watch(pid, folder, told, options.seconds),
            _knock(url, told),
            _send_slowly(url),
            _read_slowly(url),
        )
    ]
    await asyncio.gather(*(_come_and_go(url, page, number, users, told, end) for number in range(len(users))))
    told.samples.append(_sample(pid, folder, told, options.seconds))
    for task in watching:
        task.cancel()
    for result in await asyncio.gather(*watching, return_exceptions=True):
        if isinstance(result, Exception):
            raise result


class Page:
    """The numbers of the page's functions, and what its controls hold at the start."""

    def __init__(self, config: dict[str, Any], steps: int) -> None:
        self._components = {each["id"]: each["props"] for each in config["components"]}
        self._dependencies = config["dependencies"]
        self._steps = steps
        ids = {props.get("elem_id"): number for number, props in self._components.items()}
        self.upload = self._called(ids["upload"], "upload")
        self.follow = self._called(ids["viewport"], "input")
        self.begin = self._called(ids["make"], "click")
        self.cancel = self._called(ids["cancel"], "click")
        self.make = next(each for each in self._dependencies if each["trigger_after"] == self.begin["id"])

    def _called(self, component: int, event: str) -> dict[str, Any]:
        return next(each for each in self._dependencies if [component, event] in each["targets"] and each["backend_fn"])

    def inputs(self, function: dict[str, Any], first: Any, pose: Any = None) -> list[Any]:
        """What is sent to a function: its first input, a pose, and all others as they are on the page."""

        def value(number: int) -> Any:
            props = self._components[number]
            special = {"viewport": pose, "steps": self._steps, "photo": True, "fov": FOV}
            return special.get(props.get("elem_id"), props.get("value"))

        values = [value(number) for number in function["inputs"]]
        return [first, *values[1:]] if first is not None else values


class Refused(Exception):
    """The server said in words that it does not do it."""


class Client:
    """One visitor's page."""

    def __init__(self, url: str, page: Page) -> None:
        self.http = httpx.AsyncClient(base_url=url, timeout=PATIENCE)
        self.session = secrets.token_hex(8)
        self._page = page

    @asynccontextmanager
    async def here(self) -> AsyncIterator[None]:
        """The page is open, which its heartbeat says."""
        (await self.http.get("/")).raise_for_status()

        async def heartbeat() -> None:
            async with self.http.stream("GET", f"{API}/heartbeat/{self.session}") as answer:
                async for _ in answer.aiter_bytes():
                    pass

        beating = asyncio.create_task(heartbeat())
        try:
            yield
        finally:
            beating.cancel()
            with suppress(asyncio.CancelledError):
                await beating
            await self.http.aclose()

    async def call(self, function: dict[str, Any], data: list[Any]) -> list[Any]:
        """Calls a function that nobody waits for."""
        answer = await self.http.post(f"{API}/run/predict", json=self._body(function, data))
        if answer.is_error:
            raise Refused(answer.text)
        return list(answer.json()["data"])

    async def ask(self, function: dict[str, Any], data: list[Any]) -> list[Any]:
        """Calls a function that stands in the queue, and waits for its last answer."""
        join = await self.http.post(f"{API}/queue/join", json=self._body(function, data))
        if join.status_code == 503:
            raise Refused(join.text)
        join.raise_for_status()
        query = {"session_hash": self.session}
        async with self.http.stream("GET", f"{API}/queue/data", params=query) as answer:
            answer.raise_for_status()
            async for line in answer.aiter_lines():
                if not line.startswith("data:"):
                    continue
                message = json.loads(line[5:])
                if message["msg"] == "process_completed" and message["event_id"] == join.json()["event_id"]:
                    if not message["success"]:
                        raise Refused(str(message["output"]))
                    return list(message["output"]["data"])
        raise SidestepError("the answer broke off")

    def _body(self, function: dict[str, Any], data: list[Any]) -> dict[str, Any]:
        return {"data": data, "fn_index": function["id"], "session_hash": self.session, "event_data": None}

    async def send(self, content: bytes, name: str) -> None:
        """Sends a photo and has it opened."""
        sent = await self.http.post(f"{API}/upload", files={"files": (name, content)})
        if sent.status_code == 503:
            raise Refused(sent.text)
        sent.raise_for_status()
        (path,) = sent.json()
        file = {"path": path, "orig_name": name, "size": len(content), "meta": {"_type": "gradio.FileData"}}
        _refuse_bad((await self.ask(self._page.upload, self._page.inputs(self._page.upload, file)))[-1])

    async def coarse(self, pose: dict[str, Any]) -> Image.Image:
        """What the camera sees while it is dragged."""
        url, *_ = await self.ask(self._page.follow, self._page.inputs(self._page.follow, None, pose))
        return _opened(url)

    async def final(self, pose: dict[str, Any]) -> tuple[Image.Image, Image.Image]:
        """A view, as the page shows it and as its archive holds it."""
        turn, *_ = await self.call(self._page.begin, [])
        status, shown, _, _, download, _ = await self.ask(
            self._page.make, self._page.inputs(self._page.make, turn, pose)
        )
        _refuse_bad(status)
        if "value" not in shown:
            raise Refused(status["text"])
        archive = await self.http.get(f"{API}/file={download['value']['path']}")
        archive.raise_for_status()
        with zipfile.ZipFile(io.BytesIO(archive.content)) as files:
            return _opened(shown["value"]), Image.open(io.BytesIO(files.read("views/images/000.png")))


def _refuse_bad(status: dict[str, Any]) -> None:
    if status.get("tone") == "bad":
        raise Refused(status["text"])


def _opened(url: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


async def _come_and_go(url: str, page: Page, number: int, users: list[User], told: Told, end: float) -> None:
    """One client's visits, one after another, until the time is over."""
    rng, user = random.Random(number), users[number]
    await asyncio.sleep(rng.random())
    while time.monotonic() < end:
        told.count["visits"] += 1
        client = Client(url, page)
        async with client.here():
            try:
                if rng.random() < 0.1:
                    await _job(told, "what is no photo", client.send(b"<svg/>" * 50, "chair.jpg"))
                if not await _job(told, "photo", client.send(user.photo, "chair.png")):
                    continue
                for turn in range(rng.randint(1, 3)):
                    if time.monotonic() > end:
                        break
                    which = turn % len(POSES)
                    coarse = await _job(told, "coarse view", client.coarse(POSES[which]))
                    _compare(told, "coarse", coarse, user.coarse[which])
                    made = await _job(told, "final view", client.final(POSES[which]))
                    if made is not None:
                        _compare(told, "final", made[0], user.shown[which])
                        _compare(told, "stored", made[1], user.stored[which])
                await _end_badly(client, page, rng, told)
            except httpx.TransportError as error:
                told.count["lost"] += 1
                told.faults.append(repr(error))


async def _job(told: Told, name: str, work: Any) -> Any:
    """Waits for an answer and counts it; True where it is no picture."""
    told.count["asked"] += 1
    started = time.monotonic()
    try:
        answer = await asyncio.wait_for(work, PATIENCE)
    except Refused as refused:
        told.count["refused in words" if str(refused) else "lost"] += 1
        return None
    except (TimeoutError, SidestepError, httpx.HTTPStatusError) as error:
        told.count["lost"] += 1
        told.faults.append(f"{name}: {error!r}")
        return None
    told.count["answered"] += 1
    told.waits.setdefault(name, []).append(time.monotonic() - started)
    return True if answer is None else answer


def _compare(told: Told, name: str, picture: Image.Image | None, expected: Image.Image) -> None:
    if picture is not None and (far := _difference(expected, picture)) > ALIKE:
        told.count["mixed up"] += 1
        told.faults.append(f"{name} view differs by {far:.2f}")


async def _end_badly(client: Client, page: Page, rng: random.Random, told: Told) -> None:
    """Cancels a job, or leaves while it waits, or neither."""
    choice = rng.random()
    if choice > 0.4:
        return
    told.count["asked"] += 1
    job = asyncio.create_task(client.final(POSES[0]))
    await asyncio.sleep(rng.random())
    if choice < 0.2:
        job.cancel()
        with suppress(asyncio.CancelledError, Refused):
            await job
        told.count["closed while waiting"] += 1
        return
    await client.call(page.cancel, [])
    try:
        await asyncio.wait_for(job, PATIENCE)
        told.count["answered"] += 1  # before it was cancelled
    except Refused:
        told.count["cancelled"] += 1
    except TimeoutError:
        told.count["lost"] += 1
        told.faults.append("a cancelled view")


async def _knock(url: str, told: Told) -> None:
    """Loads the page every second, as somebody who comes anew."""
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE) as http:
        while True:
            started = time.monotonic()
            (await http.get("/")).raise_for_status()
            told.waits.setdefault("the page itself", []).append(time.monotonic() - started)
            await asyncio.sleep(1)


async def _send_slowly(url: str) -> None:
    """Sends a photo at a byte a second."""
    host = httpx.URL(url)
    while True:
        _, writer = await asyncio.open_connection(host.host, host.port)
        with suppress(ConnectionError):
            writer.write(
                f"POST /{API}/upload HTTP/1.1\r\nHost: {host.host}:{host.port}\r\nContent-Length: 100000\r\n"
                "Content-Type: multipart/form-data; boundary=b\r\n\r\n"
                '--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'.encode()
            )
            while True:
                writer.write(b"0")
                await writer.drain()
                await asyncio.sleep(1)


async def _read_slowly(url: str) -> None:
    """Asks for the page's largest script and reads a byte a second."""
    host = httpx.URL(url)
    few = socket.socket()
    few.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # else the system takes all of it at once
    few.setblocking(False)
    await asyncio.get_running_loop().sock_connect(few, (host.host, host.port))
    reader, writer = await asyncio.open_connection(sock=few, limit=16)
    writer.write(f"GET /sidestep/three/three.core.min.js HTTP/1.1\r\nHost: {host.host}:{host.port}\r\n\r\n".encode())
    while await reader.read(1):
        await asyncio.sleep(1)


async def _watch(pid: int, folder: Path, told: Told, seconds: float) -> None:
    """Samples the server ten times, evenly."""
    for part in range(10):
        told.samples.append(_sample(pid, folder, told, seconds * part / 10))
        await asyncio.sleep(seconds / 10)


def _sample(pid: int, folder: Path, told: Told, after: float) -> list[float]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines)
    memory, threads = int(status["VmRSS"].split()[0]) / 1024, int(status["Threads"])
    size = 0
    for file in folder.rglob("*"):
        with suppress(FileNotFoundError):
            size += file.stat().st_size
    sessions = len(list(folder.glob("sidestep-app-*/session-*")))
    files = len(os.listdir(f"/proc/{pid}/fd"))
    return [after / 60, memory, threads, files, size / 2**20, sessions, told.count["answered"]]


if __name__ == "__main__":
    run(main)
