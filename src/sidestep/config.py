"""An experiment's settings: a plain dataclass, filled from YAML and from `key=value` on the command line."""

import re
import reprlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar, dataclass_transform

import pydantic
import yaml

from sidestep.errors import SidestepError
from sidestep.files import atomic_path
from sidestep.inputs import read_text

T = TypeVar("T")
_MOST_BYTES = 64 * 2**10  # of a file; a key frame takes 50, and they are read at 40,000 a second
_MOST_DIGITS = 40


@dataclass_transform()
def settings(cls: type[T]) -> type[T]:
    """A dataclass whose fields `load_config` fills; a key that it does not have is refused, not ignored."""
    return pydantic.with_config(pydantic.ConfigDict(extra="forbid"))(dataclass(cls))


def load_config(cls: type[T], path: str | Path, overrides: Iterable[str] = ()) -> T:
    """Reads a YAML mapping into the `settings` class `cls`, with `key=value` overrides on top.

    A dotted key reaches into a nested dataclass (`unet.steps=100`); a value is read as YAML, so `true`, `1e-4` and
    `[1, 2]` mean what they look like.

    Raises:
        SidestepError: if the file cannot be read, an override is no `key=value`, or a key or value does not fit `cls`.
    """
    try:
        data = _parsed(read_text(path, _MOST_BYTES)) or {}
    except ValueError as error:
        raise SidestepError(f"{path}: not readable as YAML: {error}") from None
    if not isinstance(data, dict):
        raise SidestepError(f"{path}: expected `key: value` lines, found a {type(data).__name__}")
    for override in overrides:
        _apply(data, override)
    try:
        return pydantic.TypeAdapter(cls).validate_python(data)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        given = reprlib.repr(first["input"])
        raise SidestepError(f"{path}: setting {key!r}: {first['msg']} (got {given})") from None


def save_config(config: Any, path: str | Path) -> None:
    """Writes the resolved settings of a run as YAML that `load_config` reads back."""
    with atomic_path(path) as temporary:
        temporary.write_text(yaml.dump(_plain(asdict(config)), Dumper=_Dumper, sort_keys=False), encoding="utf-8")


class _Loader(yaml.SafeLoader):
    """YAML 1.1, except that 1e-4 is a number, as in YAML 1.2: 1.1 wants a dot and a sign in it.

    Without aliases, by which a few lines can stand for a value of any size.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            alias = self.peek_event()
            problem = f"write out what *{alias.anchor} stands for"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=alias.start_mark)
        return super().compose_node(parent, index)


def _whole_number(loader: _Loader, node: yaml.ScalarNode) -> int:
    # Of a number of a hundred thousand digits, in base 60 for one, not even a message can be made in time.
    if len(node.value) > _MOST_DIGITS:
        raise ValueError(f"{node.value[:_MOST_DIGITS]}... is a number too long for any setting")
    return loader.construct_yaml_int(node)


_Loader.add_constructor("tag:yaml.org,2002:int", _whole_number)


class _Dumper(yaml.SafeDumper):
    """Quotes a text that `_Loader` would take for a number."""


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
    )


def _apply(data: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise SidestepError(f"{override!r}: expected key=value, for example batch_size=8")
    *parents, last = key.split(".")
    for parent in parents:
        data = data.setdefault(parent, {})
        if not isinstance(data, dict):
            raise SidestepError(f"{override!r}: {parent!r} holds no settings of its own")
    try:
        data[last] = _parsed(text)
    except ValueError:
        raise SidestepError(f"{override!r}: the value is not readable as YAML") from None


def _parsed(text: str) -> Any:
    """What YAML says; a ValueError that tells in one line what is wrong with it."""
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        where = f"line {error.problem_mark.line + 1}" if error.problem_mark else "somewhere"
        raise ValueError(f"{error.problem} ({where})") from None
    except Exception as error:  # what makes a date or a number of text fails in many ways
        raise ValueError(next(iter(str(error).splitlines()), type(error).__name__)) from None


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
