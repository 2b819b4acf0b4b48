"""Models made by Infinigen: the parts that need neither it nor Blender. A stand-in plays the worker."""

import importlib
import json
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

import pytest

ROOT = Path(__file__).parents[1]
WORKER = """
import json, os, signal, sys
from pathlib import Path
out, seeds = Path(sys.argv[2]), sys.argv[4:]
print("Info: Blender talks too")
for seed in map(int, seeds):
    with (out / "tried").open("a") as file:
        file.write(f"{seed} ")
    name = f"infinigen{seed:05d}"
    if seed == 3:
        os.kill(os.getpid(), signal.SIGSEGV)
    if seed == 5:
        print(f"{name}\\tno mesh", flush=True)
        continue
    if seed == 66:
        sys.exit("out of disk")
    (out / name).mkdir()
    (out / name / f"{name}.model.json").write_text("{}")
    print(f"{name}\\t", flush=True)
"""


@pytest.fixture
def procedural(monkeypatch):
    before = set(sys.modules)
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "furniture")
    yield importlib.import_module("procedural")
    for name in {"procedural", "models"} - before:
        sys.modules.pop(name, None)


@pytest.fixture
def worker(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    return (sys.executable, str(script))


def test_a_seed_decides_the_factory_and_all_come_by_their_weights(procedural):
    taken = [procedural.factory_of(seed) for seed in range(6000)]
    assert taken[:50] == [procedural.factory_of(seed) for seed in range(50)]
    total = sum(factory.weight for factory in procedural.FACTORIES)
    counts = Counter(taken)
    for factory in procedural.FACTORIES:
        expected = 6000 * factory.weight / total
        assert abs(counts[factory] - expected) < 5 * expected**0.5


def test_the_factories_are_distinct_and_have_places_that_a_room_knows(procedural):
    assert len({factory.name for factory in procedural.FACTORIES}) == len(procedural.FACTORIES)
    assert {factory.place for factory in procedural.FACTORIES} <= set(get_args(procedural.Place))


def test_a_fault_ends_one_object_only_and_nothing_is_tried_twice(procedural, worker, tmp_path):
    out, steps = tmp_path / "models", []
    procedural.make(out, range(8), 2, lambda *step: steps.append(step), worker)
    made = sorted(path.name for path in out.iterdir() if path.is_dir())
    assert made == [f"infinigen{seed:05d}" for seed in (0, 1, 2, 4, 6, 7)]
    refused = json.loads((out / "refused.json").read_text())
    assert refused == {"infinigen00003": "ended Blender (SIGSEGV)", "infinigen00005": "no mesh"}
    assert steps == [(i, 8) for i in range(1, 9)]
    procedural.make(out, range(10), 1, None, worker)
    assert sorted(map(int, (out / "tried").read_text().split())) == list(range(10))


def test_a_worker_that_fails_for_another_reason_ends_the_work_and_refuses_nothing(procedural, worker, tmp_path):
    with pytest.raises(procedural.FurnitureError, match="out of disk"):
        procedural.make(tmp_path / "models", [65, 66, 67], 1, None, worker)
    assert not (tmp_path / "models" / "refused.json").exists()


@pytest.mark.skipif(find_spec("infinigen") is not None, reason="Infinigen is installed")
def test_without_infinigen_it_says_what_to_install(procedural, tmp_path):
    with pytest.raises(procedural.FurnitureError, match="requirements-procedural"):
        procedural.make(tmp_path, [1])
