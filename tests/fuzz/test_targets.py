"""A few changed files for every reader; `tests/fuzz/run.py` tries thousands."""

from functools import cache
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(Path(__file__).parent)
    from judge import Judge
    from mutation import KINDS, Edit, edited
    from targets import TARGETS

FOUND = sorted(path for path in (Path(__file__).parents[1] / "data" / "bad").glob("*/*"))
QUICK = settings(derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))


@cache
def judge_of(name: str) -> Judge:
    return Judge(TARGETS[name])


@cache
def seeds_of(name: str) -> list[bytes]:
    return TARGETS[name].seeds()


@pytest.mark.parametrize("name", TARGETS)
def test_valid_files_are_read(name):
    judge = judge_of(name)
    before = judge.read
    assert [judge.look_at(seed) for seed in seeds_of(name)] == [None] * len(seeds_of(name))
    assert judge.read - before == (len(seeds_of(name)) if TARGETS[name].whole else 0)


@pytest.mark.parametrize("name", TARGETS)
def test_changed_files_are_read_or_refused(name):
    target = TARGETS[name]
    edits = st.builds(
        Edit,
        st.sampled_from(KINDS),
        st.floats(0, 1),
        st.integers(0, 255),
        st.sampled_from(target.words) | st.binary(min_size=1, max_size=8) if target.words else st.binary(max_size=8),
    )

    @settings(QUICK, max_examples=3 if target.slow else 10)
    @given(st.sampled_from(seeds_of(name)), st.lists(edits, min_size=1, max_size=4))
    def changed(seed: bytes, changes: list[Edit]) -> None:
        assert judge_of(name).look_at(edited(seed, changes)) is None

    changed()


@pytest.mark.parametrize("path", FOUND, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_was_found_once(path):
    """Each of these bytes once brought about another exception than ours, took too long, or too much memory."""
    assert judge_of(path.parent.name).look_at(path.read_bytes()) is None
