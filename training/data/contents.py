"""A base and a dataset known by what they hold, wherever they lie; and where the files of a moved run are now."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...pixart_core.textfile import parse_json
from ..settings import ConfigError
from .remote import Location
from .shards import DataError

_PIECES, _PIECE = 32, 1 << 16
"""How many pieces of a large file are looked at, and their bytes: its names, shapes and some of every part."""


def identify(name: str, location: str) -> str | None:
    """A name for the content of a setting that names weights or `data`; None if it cannot be read."""
    if not location:
        return None
    try:
        return _dataset(location) if name == "data" else _weights(Path(location))
    except (OSError, ValueError, KeyError, TypeError):  # whoever reads it for use says what is wrong
        return None


def current_path(name: str, about: Mapping[str, Any], run: Path, given: str = "") -> str:
    """Where a file or folder of a run is now: as given, as it was, or as far from the run's folder as it was.

    Args:
        name: of the setting.
        about: the run's settings.
        run: its folder now.
        given: by the user.

    Raises:
        ConfigError: if it is nowhere there.
    """
    was = given or about.get(name) or ""
    if not was or "://" in was or Path(was).exists():
        return was
    if not given:
        try:
            moved = os.path.normpath(run.absolute() / os.path.relpath(was, about["run"]))
        except (ValueError, KeyError):  # another drive of Windows
            moved = ""
        if moved and Path(moved).exists():
            return moved
    raise ConfigError(f"{name} of {run} is not at {was}: say where it is now with {name}=…")


def _dataset(location: str) -> str | None:
    try:
        about = parse_json(Location(location).describe())
    except DataError:
        return None
    shards = sorted([each["name"], each["sha256"], each["count"]] for each in about["shards"])
    repeats = sorted(about["repeats"].items()) if about.get("repeats") else ()  # as ids of before, where there are none
    return hashlib.sha256(repr((about["scaling_factor"], shards, *repeats)).encode()).hexdigest()[:32]


def _weights(path: Path) -> str:
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    if not files:
        raise FileNotFoundError(path)
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.relative_to(path).as_posix()} {size} ".encode("utf-8", "surrogateescape"))
        with file.open("rb") as stream:
            for start in sorted({0, *(max(0, size - _PIECE) * i // (_PIECES - 1) for i in range(_PIECES))}):
                stream.seek(start)
                digest.update(stream.read(_PIECE))
    return digest.hexdigest()[:32]
