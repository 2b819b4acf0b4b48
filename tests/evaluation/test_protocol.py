"""Which pairs are evaluated."""

import math
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest

from sidestep.captures import Scene, read_captures
from sidestep.captures.pairs import Pair, read_pairs, write_pairs
from sidestep.errors import SidestepError
from sidestep.evaluation.protocol import (
    DISTANCES,
    PROTOCOLS,
    distance_pairs,
    frame_beside,
    held_out_pairs,
    listed_pairs,
    pairs_of_frames,
    wrong_partners,
)

FURNITURE = Path(__file__).parents[1] / "data" / "furniture"


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return read_captures(FURNITURE)


def test_each_scene_gives_each_distance_in_both_directions(scenes: list[Scene]) -> None:
    pairs = pairs_of_frames(distance_pairs(scenes, seed=0), scenes)
    assert len(pairs) == 3 * 2 * len(scenes)
    for scene in scenes:
        own = [pair.info for pair in pairs if pair.scene is scene]
        assert {info.subsets[1:] for info in own} == {(d, side) for d in DISTANCES for side in ("left", "right")}
        for info in own:
            low, high = DISTANCES[info.subsets[1]]
            assert low <= info.gap <= high
            assert info.gap == abs(int(info.target[:3]) - int(info.reference[:3]))


def test_a_scene_added_changes_no_other_pair_nor_their_order(scenes: list[Scene]) -> None:
    some = distance_pairs(scenes[1:], seed=0)
    every = distance_pairs(scenes[::-1], seed=0)
    assert [pair for pair in every if pair.scene != scenes[0].id] == some
    assert distance_pairs(scenes, seed=1) != distance_pairs(scenes, seed=0)


def test_a_short_scene_gives_the_distances_that_it_has(scenes: list[Scene]) -> None:
    short = replace(scenes[0], frames=scenes[0].frames[:7])
    gaps = sorted(pair.info.gap for pair in pairs_of_frames(distance_pairs([short], 0), [short]))
    assert len(gaps) == 4
    assert all(gap <= 5 for gap in gaps[:2])
    assert gaps[2:] == [6, 6]


def test_the_frame_beside_a_target_is_the_next_away_from_the_reference_or_else_the_one_before_it(
    scenes: list[Scene],
) -> None:
    scene = scenes[0]
    last = len(scene.frames) - 1
    for reference, target, beside in (
        (3, 8, 9), (8, 3, 2), (5, 6, 7), (3, last, last - 1), (last, 0, 1), (last - 1, last, None), (1, 0, None),
    ):  # fmt: skip
        names = [scene.frames[place].name for place in (reference, target)]
        (pair,) = pairs_of_frames([Pair(scene.id, *names)], scenes)
        found = frame_beside(pair)
        assert found is (None if beside is None else scene.frames[beside])


def test_a_scene_of_one_frame_is_left_out_and_named(scenes: list[Scene]) -> None:
    single = replace(scenes[0], frames=scenes[0].frames[:1])
    with pytest.warns(UserWarning, match="chair/scopia024 left out: one frame gives no pair"):
        assert distance_pairs([single, scenes[1]], 0) == distance_pairs([scenes[1]], 0)


def test_the_side_is_where_the_camera_steps_to(scenes: list[Scene]) -> None:
    for pair in pairs_of_frames(distance_pairs(scenes, seed=0), scenes):
        seen, _ = pair.reference.camera.project(pair.target.camera.centre[None])
        depth = (pair.reference.camera.rotation @ pair.target.camera.centre + pair.reference.camera.translation)[2]
        right = (float(seen[0, 0]) > pair.reference.camera.width / 2) == (float(depth) > 0)
        assert ("right" in pair.info.subsets) == right
        axes = [camera.rotation[2] for camera in (pair.reference.camera, pair.target.camera)]
        assert math.cos(math.radians(pair.info.turn)) == pytest.approx(float(axes[0] @ axes[1]), abs=1e-3)


def test_the_kept_lists_are_what_the_seed_gives_for_the_committed_scenes(scenes: list[Scene]) -> None:
    kept = files("sidestep.evaluation") / "pairs" / "furniture-test.json"
    listed = [pair for pair in read_pairs(str(kept)) if pair.scene in {scene.id for scene in scenes}]
    assert listed == held_out_pairs(scenes, PROTOCOLS["distance"], "test", seed=0)
    validation = read_pairs(str(files("sidestep.evaluation") / "pairs" / "furniture-val.json"))
    assert not {pair.scene for pair in validation} & {pair.scene for pair in listed}


def test_the_papers_protocol_draws_the_papers_pairs(scenes: list[Scene]) -> None:
    split = replace(PROTOCOLS["paper-3class"], split="model")
    for pair in held_out_pairs(scenes, split, "test", seed=0):
        assert int(pair.reference[:3]) < 10
        assert int(pair.target[:3]) >= 14


def test_a_split_without_scenes_is_refused(scenes: list[Scene]) -> None:
    with pytest.raises(SidestepError, match="none of the 3 scenes is in split val of rule model; name other data"):
        held_out_pairs(scenes, PROTOCOLS["distance"], "val", seed=0)


def test_a_list_that_names_a_pair_twice_is_refused(scenes: list[Scene], tmp_path: Path) -> None:
    pair = Pair(scenes[0].id, "000.jpg", "001.jpg")
    write_pairs(tmp_path / "pairs.json", [pair, pair])
    with pytest.raises(SidestepError, match=r"pairs\.json: .*000\.jpg to 001\.jpg is listed twice"):
        listed_pairs(tmp_path / "pairs.json", scenes)


def test_a_picture_in_place_of_a_list_is_refused_in_one_short_line(scenes: list[Scene]) -> None:
    with pytest.raises(SidestepError, match=r"000\.jpg: cannot be read as text ") as told:
        listed_pairs(scenes[0].frames[0].path, scenes)
    assert len(str(told.value)) < 400


def test_wrong_partners_are_of_the_same_distance_and_another_pair(scenes: list[Scene]) -> None:
    pairs = pairs_of_frames(distance_pairs(scenes, seed=0), scenes)
    partners = wrong_partners(pairs, seed=0)
    assert sorted(partners) == list(range(len(pairs)))
    for pair, partner in zip(pairs, partners, strict=True):
        assert partner != pair.position
        assert pairs[partner].info.subsets[1] == pair.info.subsets[1]
