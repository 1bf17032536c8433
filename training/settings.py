"""What a setting is: a dataclass field with a description and limits, checked when given. Standard library only."""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, get_type_hints

_EDGES = ("hints", "hed")
"""The one value of a setting of paths that is none."""


class ConfigError(ValueError):
    """A setting that is unknown, missing or out of range."""


def setting(default: Any, help: str, **limits: Any) -> Any:
    """A field with its description and limits (`low`, `high`, `choices`); a callable default makes the value."""
    how = "default_factory" if callable(default) else "default"
    return field(**{how: default}, metadata={"help": help, **limits})


def path(help: str) -> Any:
    """A field that names a file or folder, or is the URL of one; empty = none."""
    return setting("", help, path=True)


@dataclass(kw_only=True)
class Settings:
    """What every command's settings can do: check themselves, and become plain values."""

    required: ClassVar[tuple[str, ...]] = ("run",)
    """Settings without which there is nothing to do."""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for each in fields(self):
            _check(each.name, getattr(self, each.name), hints[each.name], each.metadata)
        for name in self.required:
            if not getattr(self, name):
                raise ConfigError(f"{name} is not set: {type(self).__dataclass_fields__[name].metadata['help']}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return dataclasses.asdict(self)

    def located(self) -> Settings:
        """The same with every local path absolute and `~` expanded, so that it means the same from any directory.

        URLs stay, and links are not followed: where they lead may change.
        """
        named = {each.name: getattr(self, each.name) for each in fields(self) if each.metadata.get("path")}
        local = {name: text for name, text in named.items() if text and "://" not in text and (name, text) != _EDGES}
        return dataclasses.replace(self, **{name: os.path.abspath(os.path.expanduser(x)) for name, x in local.items()})


def _check(name: str, value: Any, kind: type, limits: Any) -> None:
    wanted = (int, float) if kind is float else kind
    if not isinstance(value, wanted) or isinstance(value, bool) and kind is not bool:
        noun = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(kind, kind.__name__)
        raise ConfigError(f"{name} is {value!r}: {noun} is wanted")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{name} is {value}: a finite number is wanted")
    if "choices" in limits and value not in limits["choices"]:
        raise ConfigError(f"{name} is {value!r}: choose one of {', '.join(limits['choices'])}")
    if "low" in limits and value < limits["low"] or "high" in limits and value > limits["high"]:
        raise ConfigError(
            f"{name} is {value}: it must be between {limits.get('low', '-∞')} and {limits.get('high', '∞')}"
        )
