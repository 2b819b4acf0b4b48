"""A model: a thing that can stand in a room, with the one who made it and the licence.

Each model is a file (.obj, .glb or .blend) with a record `<name>.model.json` beside it. In Blender's axes a model
stands upright along z and looks to -y. Where it lies and how large it is in its file does not matter: it is scaled to
its `size`.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

Split = Literal["train", "val", "test"]
Place = Literal["floor", "wall", "table", "ceiling", "hang"]
SUFFIX = ".model.json"


class FurnitureError(Exception):
    """Bad input, said in one line: which file or value, what is wrong with it, what to do."""


@dataclass(frozen=True)
class Model:
    """A record.

    Attributes:
        name: ends in a digit, and decides the split.
        library, title, creator, licence: what it is, where it is from, whose it is.
        category: the folder of its scenes.
        file: the model's file.
        size: metres along x, y and z.
        place: where it stands: on the floor; with its back to a wall; on a table; at the ceiling; hung on a wall.
        main: whether it may be what a scene shows; others only keep company.
        top: height in metres of the surface that things may stand on, or None.
    """

    name: str
    library: str
    title: str
    creator: str
    licence: str
    category: str
    file: Path
    size: tuple[float, float, float]
    place: Place
    main: bool
    top: float | None = None

    @property
    def split(self) -> Split:
        return split_of(self.name)


def split_of(name: str) -> Split:
    """The split of a model: 10% test, 10% validate, by the rule of `sidestep.captures.splits.model_split`.

    Written here again because Blender's Python has no torch; a test holds the two against each other.
    """
    u = fraction(name)
    return "test" if u < 0.1 else "val" if u < 0.2 else "train"


def fraction(*key: object) -> float:
    """A number in [0, 1) that the key alone decides, on every machine."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def write_model(model: Model) -> None:
    """Writes the record beside the model's file."""
    path = model.file.with_name(model.name + SUFFIX)
    path.write_text(json.dumps(_record(model), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _record(model: Model) -> dict[str, Any]:
    return asdict(model) | {"file": model.file.name}


def digest(models: Sequence[Model]) -> str:
    """The SHA-256 of the models' records, in any order: scenes are planned from these, wherever the files lie."""
    records = [_record(model) for model in sorted(models, key=lambda model: model.name)]
    return hashlib.sha256(json.dumps(records).encode()).hexdigest()


def read_models(*folders: Path) -> list[Model]:
    """The models of folders, by name.

    Raises:
        FurnitureError: if there is none, a record is damaged, its file is missing, or two have one name.
    """
    models: dict[str, Model] = {}
    for folder in folders:
        for path in sorted(folder.rglob("*" + SUFFIX)):
            model = _read(path)
            if model.name in models:
                raise FurnitureError(f"{path}: a second model named {model.name}; rename or remove one")
            models[model.name] = model
    if not models:
        raise FurnitureError(f"{', '.join(map(str, folders))}: no *{SUFFIX}; make models with catalogue.py first")
    return [models[name] for name in sorted(models)]


def _read(path: Path) -> Model:
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        data["file"] = path.with_name(data["file"])
        data["size"] = tuple(float(x) for x in data["size"])
        model = Model(**data)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise FurnitureError(f"{path}: no record of a model ({error}); make it again") from None
    if not model.file.is_file():
        raise FurnitureError(f"{model.file}: named by {path.name}, but not there; make the model again")
    if len(model.size) != 3 or not all(0 < x < 100 for x in model.size):
        raise FurnitureError(f"{path}: size {model.size} is not three lengths in metres")
    if model.place not in get_args(Place):
        raise FurnitureError(f"{path}: place {model.place!r}; one of {', '.join(get_args(Place))}")
    if not model.name[-1:].isdigit():
        raise FurnitureError(f"{path}: name {model.name!r} does not end in a digit, so that scenes cannot be numbered")
    return model
