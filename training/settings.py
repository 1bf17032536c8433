"""What a setting is: a dataclass field with a description and limits; read from JSON and `key=value`, and checked when
given. Standard library only."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, TypeGuard, TypeVar, get_origin, get_type_hints

from ..pixart_core.textfile import read_json

Kind = TypeVar("Kind", bound="Settings")

MILLION, BILLION = 10**6, 10**9
"""Bounds of counts that have none in themselves: beyond them is a slip, or somebody who wants to do harm."""

_TEXT_LIMIT = 4096
"""Characters of a text: as many as a path may have."""
_DEPTH_LIMIT, _PARTS_LIMIT = 4, 10_000
"""Most levels, and most values in all, of a setting that is a list or an object."""
_EXACT = 2**53
"""Beyond, JSON's readers no longer know a whole number exactly."""

_MARKS = ("content", "fixed", "free")
"""What a setting says of itself besides its limits: see `setting`."""


class ConfigError(ValueError):
    """A setting that is unknown, missing or out of range."""


def setting(default: Any, help: str, **limits: Any) -> Any:
    """A field with its description and limits (`low`, `high`, `choices`); a callable default makes the value.

    What a run may go on with: a setting that is `fixed` says what is trained, and may not change; so is one that names
    `content`, which may be elsewhere if it is the same; one that is `free` says nothing about what the weights become.
    """
    how = "default_factory" if callable(default) else "default"
    return field(**{how: default}, metadata={"help": help, **limits})


def path(help: str, **limits: Any) -> Any:
    """A field that names a file or folder, or is the URL of one; empty = none."""
    return setting("", help, path=True, **limits)


@dataclass(kw_only=True)
class Settings:
    """What every command's settings can do: be read, check themselves, and become plain values."""

    command: ClassVar[str]
    """What they are the settings of."""
    required: ClassVar[tuple[str, ...]] = ("run",)
    """Settings without which there is nothing to do."""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for each in fields(self):
            _check(each.name, getattr(self, each.name), hints[each.name], each.metadata)
        for name in self.required:
            if not getattr(self, name):
                raise ConfigError(f"{name} is not set: {type(self).__dataclass_fields__[name].metadata['help']}")

    @classmethod
    def load(
        cls: type[Kind], file: str | None, overrides: Iterable[str], recipe: Mapping[str, Any] | None = None
    ) -> Kind:
        """Settings from a recipe, a JSON file, which wins over that, and `key=value` texts, which win over both.

        Raises:
            ConfigError: naming the file or setting that is wrong.
        """
        values = {} if file is None else _read(file)
        return cls.make({**(recipe or {})} | values | cls.parse(map(_pair, overrides)))

    @classmethod
    def parse(cls, texts: Iterable[tuple[str, str]]) -> dict[str, Any]:
        """The values of settings that somebody wrote as text: pairs of a name and its value.

        Raises:
            ConfigError: naming the setting whose text is no value of its type.
        """
        kinds, known = get_type_hints(cls), cls.names()
        # The text of an unknown name stays as it is: what is wrong is the name, and `make` says so.
        return {name: _parse(name, text, kinds[name] if name in known else str) for name, text in texts}

    @classmethod
    def upgraded(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Values that an earlier version may have written, as this one writes them; `make` does it by itself."""
        return dict(values)

    @classmethod
    def make(cls: type[Kind], values: Mapping[str, Any]) -> Kind:
        """Settings from plain values.

        Raises:
            ConfigError: naming the setting that is unknown, with the name that was probably meant, or wrong.
        """
        known, values = cls.names(), cls.upgraded(values)
        for name in values:
            if name not in known:
                close = difflib.get_close_matches(name, known, 1)
                hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(sorted(known))}"
                raise ConfigError(f"{cls.command} has no setting {name}: {hint}")
        return cls(**values)

    @classmethod
    def names(cls) -> list[str]:
        """All settings."""
        return [each.name for each in fields(cls)]

    @classmethod
    def marked(cls, mark: str) -> dict[str, Any]:
        """The settings that are marked `content`, `fixed` or `free`, with their defaults."""
        return {each.name: _default(each) for each in fields(cls) if each.metadata.get(mark)}

    @classmethod
    def default(cls, name: str) -> Any:
        """The default of a setting; None if there is no such setting."""
        each = cls.__dataclass_fields__.get(name)
        return None if each is None else _default(each)

    @classmethod
    def describe(cls) -> str:
        """Every setting with its default and meaning, for `--help`."""
        lines = []
        for each in fields(cls):
            default = _default(each)
            choices = f" ({' | '.join(each.metadata['choices'])})" if "choices" in each.metadata else ""
            lines.append(f"  {each.name}={json.dumps(default)}{choices}\n      {each.metadata['help']}")
        return "\n".join(lines)

    @classmethod
    def form(cls) -> list[dict[str, Any]]:
        """Every setting as plain values for a form: name, type (int, float, bool, str, list, dict), default, help,
        whether it is required, and its limits (low, high, choices, path) where it has some."""
        kinds, rows = get_type_hints(cls), []
        for each in fields(cls):
            default = _default(each)
            kind = getattr(get_origin(kinds[each.name]) or kinds[each.name], "__name__", "str")
            row = {"name": each.name, "type": kind, "default": default, "required": each.name in cls.required}
            rows.append(row | {name: value for name, value in each.metadata.items() if name not in _MARKS})
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return dataclasses.asdict(self)

    def located(self: Kind) -> Kind:
        """The same with every local path absolute and `~` expanded, so that it means the same from any directory.

        URLs stay, and links are not followed: where they lead may change. Of several, with :: between them, each is
        looked at.
        """
        named = {each.name: getattr(self, each.name) for each in fields(self) if each.metadata.get("path")}
        return dataclasses.replace(
            self, **{name: "::".join(map(_absolute, x.split("::"))) for name, x in named.items()}
        )


def _absolute(text: str) -> str:
    return text if not text or "://" in text else os.path.abspath(os.path.expanduser(text))


def _default(setting: dataclasses.Field[Any]) -> Any:
    return setting.default if setting.default_factory is dataclasses.MISSING else setting.default_factory()


def is_number(value: Any) -> TypeGuard[float]:
    """Whether this is a number that JSON and a float can say: no infinity, no NaN, no true, nothing beyond 1e308."""
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # 10**400
        return False


def _read(file: str) -> dict[str, Any]:
    try:
        values = read_json(file)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the configuration {file}: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"the configuration {file} is not a JSON object of settings")
    return values


def _pair(override: str) -> tuple[str, str]:
    name, separator, text = override.partition("=")
    if not separator:
        raise ConfigError(f"--set takes key=value, got {override!r}")
    return name, text


def _parse(name: str, text: str, kind: Any) -> Any:
    if kind is str:
        return text
    try:
        return float(text) if kind is float else json.loads(text.lower() if kind is bool else text)
    except ValueError as error:
        raise ConfigError(f"{name}={text}: not a {getattr(kind, '__name__', 'value')}") from error


def _check(name: str, value: Any, kind: type, limits: Any) -> None:
    wanted = (int, float) if kind is float else kind
    if not isinstance(value, wanted) or isinstance(value, bool) and kind is not bool:
        noun = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(kind, kind.__name__)
        raise ConfigError(f"{name} is {_short(value)}: {noun} is wanted")
    if kind in (int, float) and not is_number(value):
        raise ConfigError(f"{name} is {_short(value)}: a finite number is wanted")
    if isinstance(value, str) and (len(value) > _TEXT_LIMIT or "\0" in value):
        raise ConfigError(
            f"{name} is {value!r:.200}: a text of at most {_TEXT_LIMIT} characters, without NUL, is wanted"
        )
    if isinstance(value, (dict, list)):
        _check_parts(name, value)
    if "choices" in limits and value not in limits["choices"]:
        raise ConfigError(f"{name} is {_short(value)}: choose one of {', '.join(limits['choices'])}")
    if "low" in limits and value < limits["low"] or "high" in limits and value > limits["high"]:
        raise ConfigError(
            f"{name} is {_short(value)}: it must be between {limits.get('low', '-∞')} and {limits.get('high', '∞')}"
        )


def _check_parts(name: str, value: Any) -> None:
    """Raises ConfigError on what is in a list or object, however deep, and is no plain value of a sane size."""
    level, seen = [value], 0
    for _ in range(_DEPTH_LIMIT):
        level = [part for each in level for part in (_items(name, each) if isinstance(each, (dict, list)) else ())]
        seen += len(level)
        if seen > _PARTS_LIMIT:
            raise ConfigError(f"{name} has more than {_PARTS_LIMIT} values")
        for part in level:
            plain = part is None or isinstance(part, (bool, dict, list))
            plain = plain or isinstance(part, str) and len(part) <= _TEXT_LIMIT and "\0" not in part
            if not plain and not (is_number(part) and (isinstance(part, float) or abs(part) <= _EXACT)):
                raise ConfigError(f"{name} holds {_short(part)}: finite numbers and short texts are wanted")
    if any(isinstance(part, (dict, list)) for part in level):
        raise ConfigError(f"{name} is nested more than {_DEPTH_LIMIT} levels deep")


def _items(name: str, value: Any) -> list[Any]:
    if isinstance(value, list):
        return value
    if not all(isinstance(key, str) and len(key) <= _TEXT_LIMIT for key in value):
        raise ConfigError(f"{name} has a name in it that is no short text")
    return list(value.values())


def _short(value: Any) -> str:
    """A value for a message; the digits of an endless whole number take Python minutes, or it refuses."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**20:
        return f"a number of about {round(value.bit_length() * math.log10(2))} digits"
    return f"{value!r:.200}"
