"""Which scene trains, validates and tests."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol, TypeVar

from sidestep.captures.scene import model_name
from sidestep.errors import SidestepError
from sidestep.files import write_json
from sidestep.inputs import read_json

Split = Literal["train", "val", "test"]


class Named(Protocol):
    """What decides a scene's split; a `Scene` has it, and so has a scene in a store of latents."""

    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def category(self) -> str | None: ...
    @property
    def model(self) -> str: ...


S = TypeVar("S", bound=Named)
SPLITS: tuple[Split, ...] = ("train", "val", "test")


def model_split(model: str) -> Split:
    """The split of a furniture model, by a hash of its name: 10% test, 10% validation, the rest trains.

    The name alone decides, so scenes that are added later move nothing, and every scene of one model (another room,
    another camera path) falls on the same side.
    """
    u = int.from_bytes(hashlib.sha256(model.encode()).digest()[:8], "big") / 2**64
    return "test" if u < 0.1 else "val" if u < 0.2 else "train"


def paper_3class_split(names: Sequence[str]) -> dict[str, Split]:
    """The paper's 90-5-5 split of one category's scenes, by lexicographic order.

    The first int(0.9 n) train, the next int(0.05 n) validate, the rest test; on MVImgNet's chairs, tables and sofas
    this gives the authors' 168 test scenes.
    """
    train, val = int(0.9 * len(names)), int(0.05 * len(names))
    return {
        name: "train" if i < train else "val" if i < train + val else "test" for i, name in enumerate(sorted(names))
    }


def paper_167class_split(names: Sequence[str]) -> dict[str, Split]:
    """The paper's split of one of 167 categories: scenes 0, 99, 198, ... of the sorted list test.

    Scenes 49, 148, 247, ... validate; the authors' scripts validate on the test scenes.
    """
    return {name: "test" if i % 99 == 0 else "val" if i % 99 == 49 else "train" for i, name in enumerate(sorted(names))}


def split_scenes(scenes: Sequence[S], rule: str | Path) -> dict[Split, list[S]]:
    """The scenes of each split.

    Args:
        rule: "model" (by `model_split`), "paper-3class", "paper-167class", or a file that `write_split` wrote, of
            which every scene must be there; scenes that the file does not name are in no split.

    Raises:
        SidestepError: if the rule is unknown, the file unfit, or a scene or model falls in two splits.
    """
    splits: dict[Split, list[S]] = {split: [] for split in SPLITS}
    if rule == "model":
        for scene in scenes:
            splits[model_split(scene.model)].append(scene)
    elif rule in _PAPER_RULES:
        by_category: dict[str | None, list[S]] = {}
        for scene in scenes:
            by_category.setdefault(scene.category, []).append(scene)
        for group in by_category.values():
            split_of = _PAPER_RULES[str(rule)]([scene.name for scene in group])
            for scene in group:
                splits[split_of[scene.name]].append(scene)
    elif isinstance(rule, Path) or rule.endswith(".json"):
        by_id = {scene.id: scene for scene in scenes}
        for split, ids in read_split(rule).items():
            absent = [scene_id for scene_id in ids if scene_id not in by_id]
            if absent:
                raise SidestepError(f"{rule}: {len(absent)} scenes are not in the data, the first {absent[0]}")
            splits[split] = [by_id[scene_id] for scene_id in ids]
    else:
        raise SidestepError(f"split {rule!r} is unknown; use model, {', '.join(_PAPER_RULES)}, or a split's .json file")
    check_disjoint({split: [scene.id for scene in group] for split, group in splits.items()})
    return splits


def check_disjoint(splits: Mapping[Split, Sequence[str]]) -> None:
    """Refuses a scene, or a model (`Scene.model`), that is in two splits.

    Args:
        splits: scene ids ("category/name") by split.

    Raises:
        SidestepError: naming the first such scene or model.
    """
    seen: dict[str, tuple[Split, str]] = {}
    for split, ids in splits.items():
        for scene_id in ids:
            other, other_id = seen.setdefault(model_name(scene_id), (split, scene_id))
            if other != split:
                what = f"scene {scene_id}" if other_id == scene_id else f"model {model_name(scene_id)}"
                raise SidestepError(
                    f"{what} is in both {other} ({other_id}) and {split} ({scene_id}); keep one of them"
                )


def write_split(path: str | Path, splits: Mapping[Split, Sequence[Named]]) -> None:
    """Writes the scenes' ids by split as JSON."""
    write_json(path, {split: [scene.id for scene in group] for split, group in splits.items()})


def read_split(path: str | Path) -> dict[Split, list[str]]:
    """The scene ids by split of a file that `write_split` wrote.

    Raises:
        SidestepError: if the file is no split, or a scene or model is in two.
    """
    data = read_json(path)
    if not isinstance(data, dict) or set(data) != set(SPLITS):
        raise SidestepError(f"{path}: not a split; expected lists of scenes under {', '.join(SPLITS)}")
    for split in SPLITS:
        if not isinstance(data[split], list) or not all(isinstance(scene_id, str) for scene_id in data[split]):
            raise SidestepError(f"{path}: {split} is not a list of scene ids")
    splits = {split: data[split] for split in SPLITS}
    try:
        check_disjoint(splits)
    except SidestepError as error:
        raise SidestepError(f"{path}: {error}") from None
    return splits


_PAPER_RULES = {"paper-3class": paper_3class_split, "paper-167class": paper_167class_split}
