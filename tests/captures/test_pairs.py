from dataclasses import replace

import numpy as np
import pytest

from sidestep.captures import read_captures
from sidestep.captures.pairs import Pair, any_pairs, evaluation_pairs, paper_pairs, read_pairs, write_pairs
from sidestep.errors import SidestepError


@pytest.mark.parametrize("n_frames", [25, 40])
def test_paper_pairs_of_a_long_scene(n_frames):
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(50):
        pairs = paper_pairs(n_frames, rng)
        assert [reference for reference, _ in pairs] == list(range(10))
        targets = [target for _, target in pairs]
        assert len(set(targets)) == 10
        seen |= set(targets)
    assert seen == set(range(14, 25))


@pytest.mark.parametrize(
    ("n_frames", "pairs"),
    [
        (9, []),
        (10, []),
        (11, [(0, 10)]),
        (14, [(0, 12), (1, 13)]),
        (24, [(i, 17 + i) for i in range(7)]),
    ],
)
def test_paper_pairs_of_a_short_scene(n_frames, pairs):
    assert paper_pairs(n_frames, np.random.default_rng(0)) == pairs


def test_any_pairs_reach_every_ordered_pair_and_no_frame_with_itself():
    pairs = any_pairs(5, 2000, np.random.default_rng(0))
    assert len(pairs) == 2000
    assert set(pairs) == {(a, b) for a in range(5) for b in range(5) if a != b}


@pytest.mark.parametrize("n_frames", [0, 1])
def test_no_pairs_of_less_than_two_frames(n_frames):
    assert any_pairs(n_frames, 3, np.random.default_rng(0)) == []


def test_evaluation_pairs_depend_on_seed_and_scene_alone(furniture):
    scenes = read_captures(furniture)
    pairs = evaluation_pairs(scenes, seed=1, per_scene=3)
    assert len(pairs) == 9
    assert evaluation_pairs(scenes[::-1], seed=1, per_scene=3) == pairs
    assert evaluation_pairs(scenes[1:], seed=1, per_scene=3) == pairs[3:]
    assert evaluation_pairs(scenes, seed=2, per_scene=3) != pairs


def test_scene_too_short_to_evaluate_is_named(furniture):
    scenes = read_captures(furniture)
    short = replace(scenes[0], frames=scenes[0].frames[:9])
    with pytest.warns(UserWarning, match="chair/scopia024 left out: 9 frames"):
        assert len(evaluation_pairs([short, scenes[1]], seed=0)) == 1


def test_pairs_are_read_back(tmp_path, furniture):
    scenes = read_captures(furniture)
    pairs = evaluation_pairs(scenes, seed=0)
    write_pairs(tmp_path / "pairs.json", pairs)
    assert read_pairs(tmp_path / "pairs.json", scenes) == pairs


@pytest.mark.parametrize(
    ("pair", "fault"),
    [
        (Pair("chair/absent", "000.jpg", "020.jpg"), "chair/absent"),
        (Pair("chair/scopia024", "000.jpg", "099.jpg"), "099.jpg"),
        (Pair("chair/scopia024", "000.jpg", "000.jpg"), "twice"),
        (Pair("chair/scopia024", "000.jpg", 3), "must name"),  # type: ignore[arg-type]
    ],
)
def test_pairs_that_do_not_fit_the_data_are_refused(tmp_path, furniture, pair, fault):
    write_pairs(tmp_path / "pairs.json", [pair])
    with pytest.raises(SidestepError, match=rf"pairs\.json.*{fault}"):
        read_pairs(tmp_path / "pairs.json", read_captures(furniture))


@pytest.mark.parametrize("text", ["", "[]", '{"pairs": 3}', '{"pairs": [{"scene": "a"}]}', '{"pairs": [3]}'])
def test_file_that_is_no_pair_list_is_refused(tmp_path, text):
    (tmp_path / "pairs.json").write_text(text)
    with pytest.raises(SidestepError, match=r"pairs\.json"):
        read_pairs(tmp_path / "pairs.json")


def test_any_pairs_stay_within_the_gap_and_reach_all_of_it() -> None:
    pairs = any_pairs(12, 4000, np.random.default_rng(0), max_gap=3)
    assert {target - reference for reference, target in pairs} == {-3, -2, -1, 1, 2, 3}
    assert {reference for reference, _ in pairs} == {target for _, target in pairs} == set(range(12))
