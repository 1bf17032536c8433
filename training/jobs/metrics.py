"""The metrics of a run for a chart: those after a step, thinned, whatever the size of the file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, BinaryIO

from ..settings import is_number

POINTS = 1000
"""Points of a chart: more than it has pixels tells nobody anything."""
_SMALL = 512 * 1024
"""Bytes that are read whole and then thinned; more is sampled by seeking, so that memory stays flat."""
_LINE = 4096
"""No line is longer."""
_COLUMNS = 32
"""A run writes six numbers a line."""
_NAME = 64
"""Characters of a column's name."""


def read_metrics(file: Path, since: int = -1, points: int = POINTS) -> dict[str, Any]:
    """Lines with a step above `since`: about evenly spread, the last one always among them.

    Returns:
        columns: {name: list of numbers, None where a line lacks it}, all of one length, `step` among them; and
        thinned: whether lines were left out.
    """
    try:
        with file.open("rb") as source:
            size = os.fstat(source.fileno()).st_size
            start = _first_after(source, since, size) if since >= 0 else 0
            if size - start <= _SMALL:
                source.seek(start)
                lines = source.read(size - start).splitlines()
                # Half a line is one that is being written.
                rows = [row for row in map(_parse, lines) if row is not None and row["step"] > since]
                picked = _spread(rows, points)
                thinned = len(picked) < len(rows)
            else:
                picked, thinned = _sample(source, start, size, points, since), True
    except OSError:  # not begun, or an upload put something else in its place
        picked, thinned = [], False
    names = list(dict.fromkeys(name for row in picked for name in row))[:_COLUMNS]
    return {"columns": {name: [row.get(name) for row in picked] for name in names}, "thinned": thinned}


def _spread(rows: list[dict[str, Any]], points: int) -> list[dict[str, Any]]:
    if len(rows) <= points:
        return rows
    return [rows[round(i * (len(rows) - 1) / (points - 1))] for i in range(points)]


def _sample(source: BinaryIO, start: int, size: int, points: int, since: int) -> list[dict[str, Any]]:
    """One line at each of `points` evenly spread offsets, and the last line, of those above `since`."""
    rows: list[dict[str, Any]] = []
    for i in range(points):
        row = _line_from(source, start + i * (size - start) // points)
        if row is not None and row["step"] > (rows[-1]["step"] if rows else since):
            rows.append(row)
    source.seek(max(start, size - 2 * _LINE))
    last = [row for row in map(_parse, source.read().splitlines()[1:]) if row is not None]
    return rows + [row for row in last[-1:] if not rows or row["step"] != rows[-1]["step"]]


def _first_after(source: BinaryIO, step: int, size: int) -> int:
    """An offset in the file before which every line has a step of at most `step`, by bisection."""
    low, high = 0, size
    while high - low > _LINE:
        middle = (low + high) // 2
        row = _line_from(source, middle)
        if row is None or row["step"] > step:
            high = middle
        else:
            low = middle
    return low


def _line_from(source: BinaryIO, offset: int) -> dict[str, Any] | None:
    """The first whole line that begins at or after an offset."""
    source.seek(max(0, offset - 1))
    if offset > 0:
        source.readline(_LINE)
    return _parse(source.readline(_LINE))


def _parse(line: bytes) -> dict[str, Any] | None:
    """A line's numbers; None for one that is damaged. What JSON cannot say (NaN) becomes None."""
    try:
        row = json.loads(line) if len(line) <= _LINE else {}
        step = row["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step <= 2**53:
        return None
    names = [name for name in row if len(name) <= _NAME][:_COLUMNS]
    return {name: row[name] if is_number(row[name]) else None for name in {"step": None, **dict.fromkeys(names)}}
