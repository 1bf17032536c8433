"""Text files of other people: captions and lists, whatever their encoding and line ends.

Nothing is guessed: a file that is no Unicode text, and of which nobody said the encoding, is refused and not half read.
"""

from __future__ import annotations

import stat
from pathlib import Path

from ...pixart_core.textfile import decode


class TextError(ValueError):
    """A file that is not readable as text."""


def read_text(file: Path, encoding: str = "") -> str:
    """The text of a file, with its line ends as they are.

    Args:
        encoding: of files without a byte-order mark; default: UTF-8.

    Raises:
        FileNotFoundError: if there is none.
        TextError: naming the file, and the line where it is no such text.
    """
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise TextError(f"{file.name} is no file")  # a pipe would be waited for
        data = file.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise TextError(f"{file.name} cannot be read: {error.strerror}") from error
    return decode_text(data, file.name, encoding)


def decode_text(data: bytes, name: str, encoding: str = "") -> str:
    """The text that a file of this name holds; see `read_text`.

    Raises:
        TextError: naming the file, and the line where it is no such text.
    """
    encoding = encoding or "utf-8"
    try:
        text = decode(data, encoding)
    except UnicodeError as error:
        before = data[: getattr(error, "start", 0)]
        line = 1 + before.count(b"\n") + before.replace(b"\r\n", b"").count(b"\r")
        raise TextError(
            f"{name} cannot be read as {encoding.upper()} text, from line {line} on: save it as UTF-8, or say "
            "what it is (encoding=cp1252, gbk, shift_jis …)"
        ) from error
    if "\0" in text:
        line = len(lines(text[: text.index("\0")]))
        raise TextError(
            f"{name} cannot be read as {encoding.upper()} text: line {line} holds a NUL; if it is UTF-16, say "
            "so (encoding=utf-16-le or utf-16-be)"
        )
    return text


def lines(text: str) -> list[str]:
    """The lines of a text, whichever of the three systems wrote it. Not `str.splitlines`, which also ends a line at
    characters that a caption may hold (U+2028, U+0085, a form feed)."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
