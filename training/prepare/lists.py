"""Lists of pictures: JSON, JSON lines and tables of separated values. A row that cannot be meant as it stands ends the
reading, with its number: half a caption, or half a list, is nothing that anybody would notice later."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from ...pixart_core.textfile import parse_json
from ..data.shards import DataError
from .pictures import suffixes
from .words import TextError, lines, read_text

LISTS = ("data_info.json", "metadata.jsonl", "metadata.csv", "metadata.tsv")
NAME_COLUMNS = ("file_name", "path", "image", "file", "filename", "filepath", "image_path")
CAPTION_COLUMNS = ("text", "caption", "captions", "prompt")
_TABLES = (".csv", ".tsv")
_SEPARATORS = ",;\t|"


def rows(file: Path, encoding: str = "") -> Iterator[dict[str, Any]]:
    """The entries of a list, by column. In tables, columns that we know are in lower case, and every value is text.

    Args:
        encoding: see `read_text`.

    Raises:
        DataError: naming the file, and the entry or line that is wrong.
    """
    try:
        text = read_text(file, encoding)
    except (OSError, TextError) as error:
        raise DataError(f"the list {file} cannot be read: {error}") from error
    yield from _table(file, text) if file.suffix.lower() in _TABLES else _objects(file, text)


def _objects(file: Path, text: str) -> Iterator[dict[str, Any]]:
    if file.suffix.lower() == ".json":
        found = _parsed(file, text, "")
        if not isinstance(found, list):
            raise DataError(f"{file}: a JSON list of objects is wanted, found {found!r:.50}")
        numbered = ((f"entry {number}", row) for number, row in enumerate(found, 1))
    else:
        filled = ((number, line) for number, line in enumerate(lines(text), 1) if line.strip())
        numbered = ((f"line {number}", _parsed(file, line, f", line {number}")) for number, line in filled)
    for where, row in numbered:
        if not isinstance(row, dict):
            raise DataError(f"{file}, {where}: a JSON object is wanted, found {row!r:.50}")
        yield row


def _parsed(file: Path, text: str, where: str) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        raise DataError(f"{file}{where} cannot be read: {error}") from error


def _table(file: Path, text: str) -> Iterator[dict[str, str]]:
    """Rows of a table with a line of column names. Quotes are as RFC 4180 has them, and nothing else is."""
    separator, skipped = _separator(file, text)
    stream = io.StringIO(text, newline="")
    for _ in range(skipped):
        next(stream)
    reader = csv.reader(stream, delimiter=separator, strict=True, skipinitialspace=True)
    header: list[str] | None = None
    while True:
        begin = skipped + reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(
                f"{file}, line {begin}: {error}. A text in quotes ends at the next quote, before a "
                f'{_called(separator)}; write a quote inside it twice: "a 12"" vase"'
            ) from error
        if not any(cell.strip() for cell in cells):
            continue
        if header is None:
            header = _header(file, begin, cells)
        else:
            _check_row(file, begin, cells, header, separator)
            yield {name: cell for name, cell in zip(header, cells, strict=False) if name}


def _separator(file: Path, text: str) -> tuple[str, int]:
    """What separates the cells, and how many lines come before the names of the columns: the one that finds the column
    of names there, and the most others; or what a first line `sep=;` says, as spreadsheets write it."""
    first = next((line for line in lines(text) if line.strip()), "")
    if said := re.fullmatch(r"sep=(.)", first.strip('"')):
        return said[1], lines(text).index(first) + 1
    found = {}
    for separator in _SEPARATORS:
        cells = next(csv.reader([first[:100_000]], delimiter=separator, skipinitialspace=True), [])
        if any(cell.strip().lower() in NAME_COLUMNS for cell in cells):
            found[separator] = len(cells)
    if not found:
        raise DataError(
            f"{file}, line 1: no column is for the pictures' names ({' or '.join(NAME_COLUMNS)}); the first line has "
            f"to name the columns, found {first!r:.80}"
        )
    return max(found, key=found.__getitem__), 0


def _header(file: Path, line: int, cells: list[str]) -> list[str]:
    known = (*NAME_COLUMNS, *CAPTION_COLUMNS)
    names = [cell.strip().lower() if cell.strip().lower() in known else cell.strip() for cell in cells]
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise DataError(f"{file}, line {line}: there are several columns {', '.join(twice)}")
    return names


def _check_row(file: Path, line: int, cells: list[str], header: list[str], separator: str) -> None:
    """Raises DataError on a row that does not hold one cell for each column, or that swallowed others."""
    if len(cells) < len(header) or any(cell.strip() for cell in cells[len(header) :]):
        raise DataError(
            f"{file}, line {line}: it has {len(cells)} cells, and there are {len(header)} columns. A text with a "
            f'{_called(separator)} or line break in it has to be in quotes: "a car, parked"'
        )
    for name, cell in zip(header, cells, strict=False):
        if name in NAME_COLUMNS and cell.strip() and not re.search(r"\.\w+$", cell.strip()):
            raise DataError(
                f"{file}, line {line}: {cell.strip()!r:.60} is no name of a picture. A text with a line break in it "
                "has to be in quotes"
            )
        for inner in lines(cell) if "\n" in cell or "\r" in cell else ():
            if separator in inner and any(map(_is_picture, inner.split(separator))):
                raise DataError(
                    f"{file}, line {line}: the text that begins here in quotes holds what looks like another row "
                    f"({inner!r:.60}). Is a quote missing at its end, or one too many at its beginning?"
                )


def _is_picture(cell: str) -> bool:
    return PurePosixPath(cell.strip().strip('"')).suffix.lower() in suffixes()


def _called(separator: str) -> str:
    return {",": "comma", ";": "semicolon", "\t": "tab"}.get(separator, separator)
