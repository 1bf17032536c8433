"""Text and JSON as other programs write them: with a byte-order mark, as Windows' editors add it, or in UTF-16.

Standard library only.
"""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def decode(data: bytes, encoding: str = "utf-8") -> str:
    """The text in a file's bytes: as its byte-order mark says, else in `encoding`. The mark is no part of it.

    Raises:
        UnicodeDecodeError (a ValueError): if the bytes are no such text.
        LookupError: if there is no such encoding.
    """
    marked = next((name for mark, name in _MARKS if data.startswith(mark)), None)
    return data.decode(marked or encoding)


def parse_json(text: bytes | str) -> Any:
    """What a JSON text says, whatever Unicode encoding its bytes are in (RFC 8259 and its predecessors tell them apart
    by the first four).

    Raises:
        ValueError: if it is no JSON, or nested so deep that Python gives up.
    """
    try:
        return json.loads(text.removeprefix("\ufeff") if isinstance(text, str) else text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def read_json(file: str | Path) -> Any:
    """What a JSON file says; see `parse_json`. Raises OSError, ValueError."""
    return parse_json(Path(file).read_bytes())


def printable(text: str) -> str:
    """A text that can be written as UTF-8: the bytes of a file name that are none appear as \\udcXX."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
