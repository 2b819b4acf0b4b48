"""Encoding by the workers of a Ray cluster of this machine, against the store that one process makes."""

import importlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from miniatures import SETTINGS, contents, encode, tiny_prior, write_scenes
from sidestep.captures.writing import write_capture
from sidestep.encoding import Job, Shard
from sidestep.encoding_ray import RayEngine, _tell_of_waiting, _tries, _Worker
from sidestep.errors import SidestepError
from sidestep.prior import LatentPrior

pytest.importorskip("ray")
FURNITURE = Path(__file__).parent / "data" / "furniture"
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
linux = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="processes are found in /proc")


@pytest.fixture(scope="module")
def prior(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prior")
    tiny_prior().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A cluster of two cores, that this process is connected to as to one that is there already."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # the loopback alone
        patch.setenv("RAY_BACKEND_LOG_LEVEL", "fatal")
        patch.setenv("OMP_NUM_THREADS", "1")
        import ray

        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        yield
        ray.shutdown()


class OneProcess:
    """As much of Ray as the engine uses, in this process. It keeps a hash where Ray keeps a copy."""

    def __init__(self) -> None:
        self.data = self
        self.DataContext = SimpleNamespace(get_current=SimpleNamespace)
        self.ActorPoolStrategy = SimpleNamespace
        self.peak = 0

    def nodes(self) -> list[dict[str, Any]]:
        tracemalloc.start()
        return [{"Alive": True, "Resources": {"CPU": 2.0}}]

    def from_items(self, rows: Sequence[dict[str, Any]], override_num_blocks: int) -> "OneProcess":
        assert len(rows) == override_num_blocks
        self.sizes = [len(rows[index]["shard"]) for index in range(len(rows))]
        self.peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        self.rows = rows
        return self

    def map(self, worker: type, fn_constructor_args: tuple[Any, ...], **resources: Any) -> "OneProcess":
        self.worker = worker(*fn_constructor_args)
        return self

    def iter_rows(self) -> Iterator[dict[str, Any]]:
        return map(self.worker, self.rows)


def test_workers_make_the_same_store_and_shards_are_packed_one_by_one(prior, tmp_path, monkeypatch):
    ray = OneProcess()
    monkeypatch.setattr("sidestep.encoding_ray._cluster", lambda: nullcontext((ray, False)))
    scenes = [replace(scene, points=torch.randn(20_000, 3)) for scene in write_scenes(tmp_path)]
    loaded = LatentPrior.from_pretrained(prior, "cpu")
    options = {"prior_name": str(prior), "scenes_per_shard": 1}
    encode(loaded, scenes, tmp_path / "one", **options)
    encode(loaded, scenes, tmp_path / "many", engine=RayEngine(device="cpu"), **options)
    assert contents(tmp_path / "many") == contents(tmp_path / "one")
    assert len(ray.sizes) == 5
    assert ray.peak < 4 * max(ray.sizes)


@pytest.mark.slow
def test_workers_make_the_store_that_one_process_makes(cluster, prior, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    scenes = write_scenes(Path())  # paths that are relative to where the work was started
    loaded = LatentPrior.from_pretrained(prior, "cpu")
    options = {"prior_name": str(prior), "batch_size": 4}
    encode(loaded, scenes, tmp_path / "one", **options)
    photo = scenes[0].frames[0].path  # in the last of three shards
    data = photo.read_bytes()
    photo.write_bytes(data[:200])
    with pytest.raises(SidestepError) as caught:
        encode(loaded, scenes, tmp_path / "many", engine=RayEngine(1), **options)
    assert str(caught.value).startswith(f"{photo}: ")
    assert "\n" not in str(caught.value)
    photo.write_bytes(data)
    told = []
    encode(loaded, scenes, tmp_path / "many", engine=RayEngine(2), progress=lambda *pair: told.append(pair), **options)
    assert contents(tmp_path / "many") == contents(tmp_path / "one")
    total = sum(len(scene.frames) for scene in scenes)
    assert [told[-1], sorted(told)] == [(total, total), told]
    assert "".join(capfd.readouterr()) == ""


class Fatal:
    """What ends the process that unpickles it."""

    def __reduce__(self):
        return os.abort, ()


@pytest.mark.slow
def test_a_shard_that_its_workers_die_of_ends_the_run(cluster, prior, tmp_path):
    scenes = write_scenes(tmp_path)
    scenes[0] = replace(scenes[0], frames=(replace(scenes[0].frames[0], path=Fatal()),))
    loaded = LatentPrior.from_pretrained(prior, "cpu")
    with pytest.raises(SidestepError, match=r"shard-00002.safetensors: 4 workers died making it"):
        encode(loaded, scenes, tmp_path / "store", prior_name=str(prior), engine=RayEngine(1))
    assert {"shard-00000.safetensors", "shard-00001.safetensors"} < set(contents(tmp_path / "store"))


@pytest.mark.slow
def test_the_benchmark_has_a_row_for_each_number_of_workers(cluster, prior, monkeypatch, capsys):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    importlib.import_module("encoding").main(
        ["--data", str(FURNITURE), "--prior", str(prior), "--steps", "2", "--frames", "2", "--device", "cpu"]
    )
    caption, *lines = capsys.readouterr().out.splitlines()
    assert "6 frames in 3 shards" in caption
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[3:]]
    assert [row[0] for row in rows] == ["one process", "Ray, 1 worker", "Ray, 2 workers"]
    assert all(float(row[1]) > 0 for row in rows)


def test_a_worker_tells_what_its_machine_lacks(prior, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "store"
    row = {"index": 3, "file": str(out / "shard-00003.safetensors"), "shard": b""}
    job = Job(str(tmp_path / "none"), "0f", SETTINGS, 2, "digest")

    def told(job: Job, started_on: str = platform.node()) -> str:
        back = _Worker(job, "cpu", str(tmp_path), started_on)(row)
        assert back["index"] == 3
        return back["error"]

    assert told(job) == f"{out}: not here; give --out a folder that all machines share"
    out.mkdir()
    (out / "store.json").write_text("{}")
    assert told(job, "head").startswith(f"{tmp_path / 'none'}: no such folder")
    assert told(job, "head").endswith(f" (on {platform.node()})")
    assert "another prior" in told(replace(job, prior=str(prior)))


@pytest.mark.parametrize(
    ("machines", "asked", "expected"),
    [
        ([(8, 0), (8, 0)], {}, (2, 8, None)),
        ([(8, 0), (4, 0)], {"workers": 3}, (3, 4, None)),
        ([(2, 0)], {"workers": 2}, (2, 1, None)),
        ([(4, 2), (64, 8), (32, 0)], {}, (10, 2, "cuda")),
        ([(16, 1), (16, 0)], {"workers": 1}, (1, 4, "cuda")),
        ([(16, 1), (16, 0)], {"device": "cpu"}, (2, 16, "cpu")),
    ],
)
def test_workers_share_the_cores_of_their_machines(machines, asked, expected):
    assert RayEngine(**asked)._divide(machines, may_grow=False) == expected


def test_more_workers_than_there_is_room_for_are_refused_or_wait(caplog):
    with pytest.raises(SidestepError, match="3 workers need a core each, and there is room for 2"):
        RayEngine(3)._divide([(2, 0)], may_grow=False)
    with pytest.raises(SidestepError, match="1 workers need a GPU each, and there is room for 0"):
        RayEngine(device="cuda")._divide([(2, 0)], may_grow=False)
    assert RayEngine(4, "cuda")._divide([(8, 2)], may_grow=True) == (4, 1, "cuda")
    assert "room for 2 of 4 workers" in caplog.text
    with pytest.raises(SidestepError, match="say 'cuda'"):
        RayEngine(device="cuda:1")._divide([(8, 2)], may_grow=True)


def test_what_a_cluster_lacks_is_told(tmp_path, caplog):
    assert RayEngine()._divide([(8, 0)], may_grow=True) == (1, 8, None)
    assert "has no GPU now, so CPUs encode" in caplog.text
    caplog.clear()
    shards = [Shard(tmp_path / f"shard-{index:05d}.safetensors", ()) for index in range(2)]
    _tell_of_waiting(shards, 4, "cuda")
    assert "no worker has begun yet; each needs 4 cores and a GPU" in caplog.text
    caplog.clear()
    _tries(shards[1].file).write_bytes(b".")
    _tell_of_waiting(shards, 4, "cuda")
    assert caplog.text == ""


@pytest.fixture(scope="module")
def captures(tmp_path_factory) -> Path:
    """Ten scenes of three or four photos."""
    folder = tmp_path_factory.mktemp("captures")
    for scene in write_scenes(tmp_path_factory.mktemp("photos")):
        images, cameras = [frame.load() for frame in scene.frames], [frame.camera for frame in scene.frames]
        for copy in ("a", "b"):
            write_capture(folder / "rooms" / f"{scene.name}{copy}", images, cameras)
    return folder


@pytest.fixture(scope="module")
def command(captures, prior) -> Callable[..., list[str]]:
    def make(out: Path, *more: str) -> list[str]:
        given = ["encode", captures, "--prior", prior, "--out", out, "--steps", 50, "--scenes-per-shard", 1]
        given += ["--batch-size", 1, "--device", "cpu", "--json", *more]
        return [sys.executable, "-m", "sidestep", *map(str, given)]

    return make


@pytest.fixture(scope="module")
def whole(command, tmp_path_factory) -> dict[str, bytes]:
    """What one process makes."""
    out = tmp_path_factory.mktemp("stores") / "whole"
    subprocess.run(command(out), check=True, capture_output=True, env=environment())
    return contents(out)


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def descendants(pid: int) -> dict[int, str]:
    """The processes below one, with their names."""
    parents, names = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            text = (folder / "stat").read_text()
            names[int(folder.name)] = (folder / "cmdline").read_text().split("\0")[0]
        except OSError:
            continue  # it has ended meanwhile
        state, parent = text.rpartition(")")[2].split()[:2]
        if state != "Z":
            parents[int(folder.name)] = int(parent)
    found, below = {}, {pid}
    while below:
        below = {child for child, parent in parents.items() if parent in below}
        found |= {child: names[child] for child in below}
    return found


@contextmanager
def started(command: list[str], out: Path, shards: int) -> Iterator[subprocess.Popen]:
    """A run in a process of its own that has made so many shards."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment(), **pipes) as run:
        try:
            while len(times(out)) < shards:
                assert run.poll() is None, run.communicate()
                time.sleep(0.02)
            yield run
        finally:
            run.kill()


def times(out: Path) -> dict[str, int]:
    """When each shard that is there was made."""
    return {path.name: path.stat().st_mtime_ns for path in out.glob("shard-*")}


@linux
@pytest.mark.slow
def test_a_killed_worker_changes_nothing(command, whole, tmp_path):
    out = tmp_path / "store"
    with started(command(out, "--engine", "ray", "--workers", "2"), out, shards=2) as run:
        workers = [pid for pid, name in descendants(run.pid).items() if name.startswith("ray::MapWorker")]
        os.kill(workers[0], signal.SIGKILL)
        assert len(times(out)) < 9
        printed, messages = run.communicate()
    assert run.returncode == 0, messages
    assert json.loads(printed)["frames"] == 34
    assert "Traceback" not in messages
    assert {path.name: path.read_bytes() for path in out.iterdir()} == whole


@linux
@pytest.mark.slow
def test_a_killed_run_goes_on_and_leaves_no_process(command, whole, tmp_path):
    out = tmp_path / "store"
    made: dict[str, int] = {}
    for stop, code in ((signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)):
        with started(command(out, "--engine", "ray", "--workers", "2"), out, len(made) + 1) as run:
            processes = descendants(run.pid)
            assert sum(name.startswith("ray::MapWorker") for name in processes.values()) == 2
            run.send_signal(stop)
            _, messages = run.communicate()
        assert run.returncode == code, messages
        if stop == signal.SIGTERM:
            assert messages.splitlines()[-1] == "terminated; run the same command again to go on"
        while any(Path(f"/proc/{pid}/exe").exists() for pid in processes):
            time.sleep(0.1)
        assert made.items() <= times(out).items()  # nothing was made again
        made = times(out)
        assert len(made) < 10
    (out / ".shard-00009.0f.part.safetensors").write_bytes(b"what a writer leaves that is killed in the midst of it")
    subprocess.run(command(out, "--engine", "ray"), check=True, capture_output=True, env=environment())
    assert made.items() <= times(out).items()
    assert {path.name: path.read_bytes() for path in out.iterdir()} == whole
