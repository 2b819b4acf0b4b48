"""An experiment's settings: a plain dataclass, filled from YAML and from `key=value` on the command line."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar, dataclass_transform

import pydantic
import yaml

from sidestep.errors import SidestepError

T = TypeVar("T")


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
    path = Path(path)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0]
        raise SidestepError(f"{path}: not a readable YAML file ({reason})") from None
    if not isinstance(data, dict):
        raise SidestepError(f"{path}: expected `key: value` lines, found a {type(data).__name__}")
    for override in overrides:
        _apply(data, override)
    try:
        return pydantic.TypeAdapter(cls).validate_python(data)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise SidestepError(f"{path}: setting {key!r}: {first['msg']} (got {first['input']!r})") from None


def save_config(config: Any, path: str | Path) -> None:
    """Writes the resolved settings of a run as YAML that `load_config` reads back."""
    Path(path).write_text(yaml.safe_dump(_plain(asdict(config)), sort_keys=False), encoding="utf-8")


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
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise SidestepError(f"{override!r}: the value is not readable as YAML") from None
    data[last] = _number(value)


def _number(value: Any) -> Any:
    # YAML 1.1 reads 1e-4 as a string, because it wants a dot in a float.
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
