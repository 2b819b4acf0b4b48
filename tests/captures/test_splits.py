import json
from collections import Counter

import pytest

from sidestep.captures import Scene, read_captures
from sidestep.captures.splits import (
    check_disjoint,
    model_split,
    paper_3class_split,
    paper_167class_split,
    read_split,
    split_scenes,
    write_split,
)
from sidestep.errors import SidestepError


def scenes(category: str, count: int) -> list[Scene]:
    return [Scene(f"{i:05x}", category, ()) for i in range(count)]


@pytest.mark.parametrize(("count", "test"), [(1437, 73), (1608, 81), (267, 14)])
def test_three_classes_give_the_authors_numbers_of_test_scenes(count, test):
    names = [f"{i:06d}" for i in range(count)]
    split = paper_3class_split(names[::-1])
    assert Counter(split.values())["test"] == test
    assert [split[name] for name in names] == sorted(split.values(), key=["train", "val", "test"].index)


def test_167_classes_test_every_99th_scene():
    names = [f"{i:06d}" for i in range(250)]
    split = paper_167class_split(names)
    assert [name for name in names if split[name] == "test"] == ["000000", "000099", "000198"]
    assert [name for name in names if split[name] == "val"] == ["000049", "000148", "000247"]


def test_paper_splits_count_in_each_category_by_itself():
    splits = split_scenes(scenes("8", 100) + scenes("36", 50), "paper-3class")
    assert {split: len(group) for split, group in splits.items()} == {"train": 135, "val": 7, "test": 8}
    splits = split_scenes(scenes("8", 100) + scenes("36", 50), "paper-167class")
    assert [scene.id for scene in splits["test"]] == ["8/00000", "8/00063", "36/00000"]


def test_model_split_keeps_all_scenes_of_a_model_together():
    models = [f"scopia{i:03d}" for i in range(200)]
    all_scenes = [Scene(model + variant, "chair", ()) for model in models for variant in ("", "s1", "s2")]
    splits = split_scenes(all_scenes, "model")
    assert all(len(group) % 3 == 0 and group for group in splits.values())
    assert sum(map(len, splits.values())) == 600


def test_committed_fixtures_are_held_out(furniture):
    assert {model_split(scene.model) for scene in read_captures(furniture)} == {"test"}


def test_split_file_is_read_back_and_applied(tmp_path):
    everything = scenes("chair", 40)
    splits = split_scenes(everything, "paper-3class")
    write_split(tmp_path / "split.json", splits)
    assert split_scenes(everything[::-1] + scenes("lamp", 3), tmp_path / "split.json") == splits
    assert split_scenes(everything, str(tmp_path / "split.json")) == splits


def test_split_file_whose_scenes_are_not_there(tmp_path):
    write_split(tmp_path / "split.json", split_scenes(scenes("chair", 40), "paper-3class"))
    with pytest.raises(SidestepError, match=r"split\.json: 1 scenes .* chair/00027"):
        split_scenes(scenes("chair", 39), tmp_path / "split.json")


def test_scene_in_two_splits_is_refused_by_name():
    with pytest.raises(SidestepError, match=r"scene chair/a is in both train .* and test"):
        check_disjoint({"train": ["chair/a", "chair/b"], "val": [], "test": ["chair/a"]})


def test_model_in_two_splits_is_refused_by_name():
    with pytest.raises(SidestepError, match="model chair/scopia024 is in both"):
        check_disjoint({"train": ["chair/scopia024"], "val": ["chair/scopia024s1"], "test": []})


def test_paper_rule_that_would_tear_a_model_apart_is_refused():
    torn = [Scene(f"scopia{i:03d}{variant}", "chair", ()) for i in range(5) for variant in ("", "s1")]
    with pytest.raises(SidestepError, match="model chair/scopia004"):
        split_scenes(torn, "paper-3class")


@pytest.mark.parametrize(
    "data",
    [[], {}, {"train": [], "val": []}, {"train": "a", "val": [], "test": []}, {"train": [1], "val": [], "test": []}],
)
def test_file_that_is_no_split_is_refused(tmp_path, data):
    (tmp_path / "split.json").write_text(json.dumps(data))
    with pytest.raises(SidestepError, match=r"split\.json"):
        read_split(tmp_path / "split.json")


def test_split_file_with_a_scene_twice_is_refused(tmp_path):
    (tmp_path / "split.json").write_text(json.dumps({"train": ["a/b"], "val": [], "test": ["a/b"]}))
    with pytest.raises(SidestepError, match=r"split\.json: scene a/b"):
        read_split(tmp_path / "split.json")


def test_unknown_rule_is_refused():
    with pytest.raises(SidestepError, match="random"):
        split_scenes([], "random")
