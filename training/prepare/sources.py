"""The pictures to prepare and what is said about them: a folder with captions beside them, or a list in a file.

a folder     every picture in it, however deep; picture.txt or picture.caption beside it holds the caption. Several
             lines are different wordings; blank lines count for nothing, and a line of "" is the empty prompt.
a list       metadata.jsonl or metadata.csv (Hugging Face imagefolder): file_name and text, caption or prompt;
             data_info.json (PixArt's authors): path, prompt, height, width. Found in the folder, or named themselves.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..shards import DataError
from .inside import check_inside, is_inside

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
CAPTION_SUFFIXES = (".txt", ".caption")
LISTS = ("data_info.json", "metadata.jsonl", "metadata.csv")
NAME_COLUMNS = ("file_name", "path", "image", "file")
CAPTION_COLUMNS = ("text", "caption", "captions", "prompt")
EMPTY = '""'
"""A line of a caption file that means the empty prompt."""


class CaptionError(ValueError):
    """No caption, or none that can be read."""


@dataclass(frozen=True, slots=True)
class Source:
    """A picture, by the name that the list or folder gives it."""

    name: str
    path: Path
    listed: tuple[str, ...] | None = None
    """Wordings from a list; None = they are in a file beside the picture."""
    size: tuple[int, int] | None = None
    """Height, width in px, if the list says it."""

    def captions(self) -> tuple[str, ...]:
        """All wordings.

        Raises:
            CaptionError: if there is none.
        """
        found = self.listed if self.listed is not None else _beside(self.path)
        if not found:
            raise CaptionError("the list has no caption for it")
        return found


def read_sources(
    location: str | Path, pictures: str | Path = "", column: str = "", only_inside: Sequence[str] = ()
) -> list[Source]:
    """Every picture of a folder or list, sorted by name, whether it can be used or not.

    Args:
        location: the folder, or a list in it.
        pictures: folder that the names of a list are relative to; default: the list's own, or where PixArt's authors
            have theirs (InternImgs beside InternData).
        column: of a list's captions; default: the first of CAPTION_COLUMNS that it has.
        only_inside: folders that a list has to be in, and that links to folders are followed into; default: anywhere.
            A link that leads elsewhere comes as a source, so that the report names it.

    Raises:
        DataError: if there are none, or a list cannot be read.
        OutsideError: if the list is not where it may be.
    """
    location = Path(location).expanduser()
    if location.is_dir():
        lists = [location / name for name in LISTS if (location / name).is_file()]
        found = _listed(lists[0], pictures, column, only_inside) if lists else _folder(location, only_inside)
    elif location.is_file():
        found = _listed(location, pictures, column, only_inside)
    else:
        raise DataError(f"{location} does not exist: give a folder of pictures, or a list of them")
    sources: dict[str, Source] = {}
    for source in found:
        if (before := sources.get(source.name)) is not None:  # the authors list a picture once for each prompt
            source = replace(source, listed=before.listed + source.listed)
        sources[source.name] = source
    if not sources:
        raise DataError(f"{location} holds no pictures ({', '.join(sorted(SUFFIXES))})")
    return [sources[name] for name in sorted(sources)]


def _folder(folder: Path, only_inside: Sequence[str]) -> Iterator[Source]:
    for where, folders, names in os.walk(folder, followlinks=True):
        away = [name for name in folders if not is_inside(Path(where, name), only_inside)] if only_inside else []
        for name in away:
            folders.remove(name)
            yield Source(Path(where, name).relative_to(folder).as_posix(), Path(where, name))
        for name in names:
            path = Path(where, name)
            if path.suffix.lower() in SUFFIXES and not name.startswith("."):
                yield Source(path.relative_to(folder).as_posix(), path)


def _beside(picture: Path) -> tuple[str, ...]:
    for suffix in CAPTION_SUFFIXES:
        file = picture.with_suffix(suffix)
        try:
            lines = [line.strip() for line in file.read_text("utf-8-sig").splitlines()]
        except FileNotFoundError:
            continue
        except (OSError, UnicodeDecodeError) as error:
            raise CaptionError(f"{file.name} cannot be read as UTF-8 text: {error}") from error
        if not any(lines):
            raise CaptionError(f"{file.name} is empty; a line of {EMPTY} would be an empty prompt")
        return tuple("" if line == EMPTY else line for line in lines if line)
    raise CaptionError(f"there is no {picture.stem}.txt or {picture.stem}.caption beside it")


def _listed(file: Path, pictures: str | Path, column: str, only_inside: Sequence[str]) -> Iterator[Source]:
    check_inside(file, only_inside)
    root = Path(pictures).expanduser() if pictures else _pictures_of(file.parent)
    for number, row in enumerate(_rows(file), 1):
        name = next((row[key] for key in NAME_COLUMNS if row.get(key)), None)
        if not isinstance(name, str):
            raise DataError(f"{file}, entry {number}: no picture is named ({' or '.join(NAME_COLUMNS)})")
        if column and column not in row:
            raise DataError(f"{file}, entry {number}: there is no {column} among {', '.join(map(str, row))}")
        said = row[column] if column else next((row[key] for key in CAPTION_COLUMNS if row.get(key)), None)
        size = (row.get("height"), row.get("width"))
        yield Source(name, root / name, _wordings(said), size if all(isinstance(side, int) for side in size) else None)


def _wordings(said: Any) -> tuple[str, ...]:
    every = said if isinstance(said, list) else [said]
    return tuple(
        "" if text.strip() == EMPTY else text.strip() for text in every if isinstance(text, str) and text.strip()
    )


def _pictures_of(folder: Path) -> Path:
    """The authors keep lists in InternData/partition and pictures in InternImgs."""
    data = folder.parent if folder.name.startswith("partition") else folder
    theirs = data.with_name(data.name.replace("InternalData", "InternImgs").replace("InternData", "InternImgs"))
    return theirs if theirs != data and theirs.is_dir() else folder


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            if file.suffix == ".csv":
                yield from csv.DictReader(stream)
                return
            rows = json.load(stream) if file.suffix == ".json" else map(json.loads, filter(str.strip, stream))
            for number, row in enumerate(rows, 1):
                if not isinstance(row, dict):
                    raise DataError(f"{file}, entry {number}: a JSON object is wanted, found {row!r:.50}")
                yield row
    except (OSError, ValueError) as error:  # of JSON and of UTF-8, too
        raise error if isinstance(error, DataError) else DataError(f"{file} cannot be read: {error}") from error
