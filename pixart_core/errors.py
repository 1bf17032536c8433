"""The one error of files that cannot be used, and the one boundary behind which other libraries read them."""

from __future__ import annotations

import contextlib
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .textfile import read_json

MAX_JSON_BYTES = 32 * 2**20
"""Largest size of a file that describes weights: the index of a model in a thousand shards has less than a tenth."""
_MISSING = object()
_KINDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    list: "a list",
    dict: "an object",
}


class CheckpointError(ValueError):
    """A file of weights cannot be used; the message names the file, what is wrong and the way out."""


class MissingFileError(CheckpointError, FileNotFoundError):
    """A file or folder is not there."""


def damaged(file: Path, detail: str = "") -> CheckpointError:
    """The error about a file whose bytes are not what its own format says."""
    size = file.stat().st_size
    return CheckpointError(f"{file} ({size:,} bytes) is cut short or damaged: download or copy it again{detail}")


@contextlib.contextmanager
def read_by(library: str, path: Path, what: str) -> Iterator[None]:
    """What another library raises over a user's files, inside, becomes a CheckpointError that names them.

    Only the library's own reading belongs inside, as programming errors would be taken for the file's, too; the
    original error stays attached. Memory that ran out and packages that are missing are not the file's fault.

    Args:
        what: the file should have been, "a tokenizer", say.
    """
    try:
        yield
    except (CheckpointError, MemoryError, ImportError):
        raise
    except BaseException as error:
        # Rust's panics, of tokenizers and safetensors, derive from BaseException, as an interrupt does.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{path} is damaged or not {what} that this version of {library} reads: download or copy it again, or "
            f"update {library} [{text[:300]}]"
        ) from error


def read_description(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: if it is larger than any description, not JSON, or no object.
    """
    if (size := file.stat().st_size) > MAX_JSON_BYTES:
        raise CheckpointError(f"{file} has {size:,} bytes, too many for a description: download or copy it again")
    try:
        values = read_json(file)
    except ValueError as error:
        raise CheckpointError(f"{file} is not valid JSON: {error}: download or copy it again") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{file} holds {reprlib.repr(values)}, not named values: download or copy it again")
    return values


def field(
    values: Mapping[str, Any],
    name: str,
    kind: type,
    default: Any = _MISSING,
    low: float | None = None,
    high: float | None = None,
) -> Any:
    """A value of a description, of the kind and in the range that is wanted. `float` takes whole numbers, too.

    Raises:
        ValueError: naming the field, its value and what is wanted.
    """
    value = values.get(name, default)
    if value is _MISSING:
        raise ValueError(f"{name} is missing")
    if value is default:
        return value
    check(name, value, kind, low, high)
    return value


def check(name: str, value: Any, kind: type, low: float | None = None, high: float | None = None) -> None:
    """Raise ValueError unless `value` is of a kind and in a range; NaN is in none."""
    fits = isinstance(value, (int, float) if kind is float else kind) and (kind is bool or not isinstance(value, bool))
    if not fits:
        raise ValueError(f"{name} is {reprlib.repr(value)}: {_KINDS[kind]} is wanted")
    if low is not None and not value >= low:
        raise ValueError(f"{name} must be at least {low:g}, got {reprlib.repr(value)}")
    if high is not None and not value <= high:
        raise ValueError(f"{name} must be at most {high:g}, got {reprlib.repr(value)}")


def summary(names: Iterable[str], limit: int = 5) -> str:
    """The first few names and how many more there are, for messages."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
