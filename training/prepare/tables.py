"""Pictures in Parquet files, as the Hub's image datasets have them: a column of {bytes, path}, and one of captions."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Any

from ...pixart_core.textfile import parse_json
from ..data.shards import DataError
from .lists import CAPTION_COLUMNS
from .opened import asking, opened
from .pictures import PictureError
from .tarred import Entry

_ROWS = 16
"""Pictures that are read at once. A group of rows, which can have gigabytes, is never read as a whole."""
_LISTED = 1024
"""Captions that are read at once."""
_BUFFER = 1 << 20
"""Bytes of a column that are read at once."""


def list_table(
    address: str,
    known: str,
    column: str,
    image_column: str,
    wordings: Callable[[Any], tuple[str, ...]],
    say: Callable[[str], None],
) -> tuple[list[Entry], list[str]]:
    """The pictures of a Parquet file in its order; no other files.

    Args:
        known: `stamp` of the file.
        column, image_column: of captions and pictures; empty = the likeliest, which is said.
        wordings: makes captions of a value; raises ValueError on what is none.

    Raises:
        StoreBusy, DataError: if it cannot be read, or a column is not there or not the only one that it can be.
    """
    with opened(address, known) as file:
        table = _parquet(address, file)
        pictures, captions = _picture_column(address, table, image_column), _caption_column(address, table, column)
        say(f"{address}: pictures are column {pictures}, captions column {captions}")
        nested = f"{pictures}.path" in _leaves(table)
        entries, number = [], 0
        wanted = [captions, *([f"{pictures}.path"] if nested else [])]
        for group, row, values in _rows(address, table, wanted):
            path = (values.get(pictures) or {}).get("path") if nested else None
            name = path.replace("\\", "/") if path else f"{PurePosixPath(address).stem}/{number:08d}"
            where, number = (pictures, group, row), number + 1
            try:
                said = wordings(values[captions])
                entries.append(Entry(name, where, said, "" if said else f"its {captions} is empty"))
            except ValueError as error:
                entries.append(Entry(name, where, (), f"its {captions}: {error}"))
    return entries, []


def _rows(address: str, table: Any, columns: list[str]) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Group, row and values of each row."""
    for group in range(table.num_row_groups):
        with _damaged(address, group):
            batches = table.iter_batches(_LISTED, row_groups=[group], columns=columns, use_threads=False)
            for row, values in enumerate(value for batch in batches for value in batch.to_pylist()):
                yield group, row, values


def read_picture(address: str, known: str, where: tuple) -> bytes:
    """The content of a picture's file.

    Raises:
        PictureError: if the table holds none.
        StoreBusy, DataError: if it cannot be read.
    """
    pictures, group, row = where
    value = _cursor(address, known, pictures, os.getpid()).read(group, row)
    data = value.get("bytes") if isinstance(value, dict) else value
    if not data:
        raise PictureError("the table holds no bytes of it, only a name" if value else "the table holds no picture")
    return data


class _Cursor:
    """The pictures of a table one after the other; to go back is to begin the group of rows again."""

    def __init__(self, address: str, known: str, column: str):
        self.address = address
        self._held = opened(address, known)
        self._table = _parquet(address, self._held.__enter__())
        self._column = f"{column}.bytes" if f"{column}.bytes" in _leaves(self._table) else column
        self._group, self._first = -1, 0
        self._values: Any = []
        self._batches: Iterator[Any] = iter(())

    def read(self, group: int, row: int) -> Any:
        if group != self._group or row < self._first:
            self._group, self._first, self._values = group, 0, []
            self._batches = self._table.iter_batches(
                _ROWS, row_groups=[group], columns=[self._column], use_threads=False
            )
        try:
            with asking(self.address), _damaged(self.address, group):
                while row >= self._first + len(self._values):
                    self._first += len(self._values)
                    self._values = next(self._batches).column(0)
        except StopIteration as error:
            raise DataError(f"{self.address} has no row {row} in group {group}: it is another file now") from error
        except Exception:  # of a store that is busy: whoever asks again begins the group again
            self._group = -1
            raise
        return self._values[row - self._first].as_py()


@contextlib.contextmanager
def _damaged(address: str, group: int) -> Iterator[None]:
    """Raises DataError for what pyarrow says of a group that is damaged. Some of that is a bare OSError without a
    number, as those of a disk or a network have."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, pyarrow.ArrowException) or type(error) is OSError and error.errno is None:
            raise DataError(f"{address} is damaged in row group {group}: {error}") from error
        raise


@functools.lru_cache(maxsize=2)
def _cursor(address: str, known: str, column: str, _process: int) -> _Cursor:
    return _Cursor(address, known, column)


def _parquet(address: str, file: Any) -> Any:
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise DataError(f"{address} needs a package that is not installed here: pip install pyarrow") from error
    try:
        return ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False)
    except pyarrow.ArrowException as error:
        raise DataError(f"{address} cannot be read as Parquet: {error}") from error


def _leaves(table: Any) -> list[str]:
    """Columns by their whole names, such as image.bytes."""
    return [table.schema.column(index).path for index in range(len(table.schema))]


def _picture_column(address: str, table: Any, wanted: str) -> str:
    import pyarrow.types as types

    schema = table.schema_arrow
    features = parse_json((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    named = [name for name, about in features.items() if isinstance(about, dict) and about.get("_type") == "Image"]
    structs = [each.name for each in schema if types.is_struct(each.type) and each.type.get_field_index("bytes") >= 0]
    binary = [each.name for each in schema if types.is_binary(each.type) or types.is_large_binary(each.type)]
    return _chosen(
        address, "image_column", "picture", wanted, (named, structs, binary), [*structs, *binary], schema.names
    )


def _caption_column(address: str, table: Any, wanted: str) -> str:
    import pyarrow.types as types

    def is_text(kind: Any) -> bool:
        inner = kind.value_type if types.is_list(kind) or types.is_large_list(kind) else kind
        return types.is_string(inner) or types.is_large_string(inner)

    schema = table.schema_arrow
    texts = [each.name for each in schema if is_text(each.type)]
    usual = [name for name in CAPTION_COLUMNS if name in texts][:1]
    return _chosen(address, "caption_column", "caption", wanted, (usual, texts), texts, schema.names)


def _chosen(address, setting, what, wanted, guesses, possible, every) -> str:
    """The column that was asked for, or the only one of the first guess that has any."""
    if wanted:
        if wanted not in possible:
            raise DataError(
                f"{address}: {setting}={wanted} is no column of {what}s; its columns are {', '.join(every)}"
            )
        return wanted
    found: list[str] = next((guess for guess in guesses if guess), [])
    if len(found) == 1:
        return found[0]
    if not found:
        raise DataError(f"{address}: no column can hold {what}s; its columns are {', '.join(every)}")
    raise DataError(f"{address}: {' and '.join(found)} can hold {what}s: say which with {setting}=…")
