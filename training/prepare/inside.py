"""Which files may be read, when somebody else than who runs this computer says what to prepare."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path


class OutsideError(ValueError):
    """A file that may not be read."""


def is_inside(file: Path, folders: Sequence[str]) -> bool:
    """Whether a file or folder, links followed, is in one of `folders`; without any, everything is."""
    real = Path(os.path.realpath(file))
    return not folders or any(real.is_relative_to(_real(each)) for each in folders)


def check_inside(file: Path, folders: Sequence[str]) -> None:
    """Raises OutsideError unless `is_inside`, whether the file exists or not."""
    if not is_inside(file, folders):
        raise OutsideError(f"{file.name} is, links followed, in none of the folders of only_inside")


@functools.lru_cache(maxsize=64)
def _real(folder: str) -> str:
    return os.path.realpath(folder)
