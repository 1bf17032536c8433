"""The pictures to prepare and what is said about them: a folder with captions beside them, or a list in a file.

a folder     every picture in it, however deep; picture.txt or picture.caption beside it holds the caption. Several
             lines are different wordings; blank lines count for nothing, and a line of "" is the empty prompt.
a list       metadata.jsonl, .csv or .tsv (Hugging Face imagefolder): file_name and text, caption or prompt;
             data_info.json (PixArt's authors): path, prompt, height, width. Found in the folder, or named themselves.
archives     tars, Parquet and zips: see archives.py.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from ..data.shards import DataError
from .archives import Listing, Packed, find_archives, unique_names
from .folder import caption_files, look_into, unused
from .inside import check_inside
from .lists import CAPTION_COLUMNS, LISTS, NAME_COLUMNS, rows
from .pictures import suffixes
from .words import TextError, lines, read_text

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
    packed: Packed | None = None
    """Where it is in an archive; `path` is then the archive's."""

    def captions(self, encoding: str = "") -> tuple[str, ...]:
        """All wordings.

        Args:
            encoding: of a file beside the picture, see `read_text`.

        Raises:
            CaptionError: if there is none, or none that can be read.
        """
        found = self.listed if self.listed is not None else _beside(self.path, encoding)
        if not found and self.packed is not None:
            raise CaptionError(self.packed.trouble)
        if not found:
            raise CaptionError("the list has no caption for it")
        return found


@dataclass
class Found:
    """What there is to prepare."""

    sources: list[Source] = field(default_factory=list)
    """Every picture, sorted by name, whether it can be used or not."""
    unused: list[tuple[str, str]] = field(default_factory=list)
    """Name and why of every other file in the folder that somebody may miss."""


def read_sources(
    location: str | Path,
    pictures: str | Path = "",
    column: str = "",
    only_inside: Sequence[str] = (),
    encoding: str = "",
) -> list[Source]:
    """The pictures of `find_sources`; of archives, which take a while to be looked through, these themselves."""
    if archives := find_archives(str(location), only_inside):
        return [Source(name, Path(name), (), None, Packed(name, "", ())) for name in archives]
    return find_sources(location, pictures, column, only_inside, encoding).sources


def find_sources(
    location: str | Path,
    pictures: str | Path = "",
    column: str = "",
    only_inside: Sequence[str] = (),
    encoding: str = "",
) -> Found:
    """Every picture of a folder or list, and what of the folder is none.

    Args:
        location: the folder, or a list in it.
        pictures: folder that the names of a list are relative to; default: the list's own, or where PixArt's authors
            have theirs (InternImgs beside InternData).
        column: of a list's captions; default: the first of CAPTION_COLUMNS that it has.
        only_inside: folders that a list has to be in, and that links to folders are followed into; default: anywhere.
            A link that leads elsewhere comes as a source, so that the report names it.
        encoding: of the list, see `read_text`.

    Raises:
        DataError: if there are none, or a list cannot be read.
        OutsideError: if the list is not where it may be.
    """
    location = Path(location).expanduser()
    if not location.exists():
        raise DataError(f"{location} does not exist: give a folder of pictures, or a list of them")
    lists = _lists_in(location) if location.is_dir() else [location]
    contents = look_into(location, only_inside) if location.is_dir() else None
    found: Iterable[Source]
    if lists or contents is None:
        found = _listed(lists[0], pictures, column, only_inside, encoding)
    else:
        found = (Source(name, location / name) for name in contents.pictures + contents.outside)
    sources: dict[str, Source] = {}
    for source in found:
        if (before := sources.get(source.name)) is not None:  # the authors list a picture once for each prompt
            source = replace(source, listed=(before.listed or ()) + (source.listed or ()))
        sources[source.name] = source
    if not sources:
        known = "the list names none" if lists else ", ".join(sorted(suffixes()))
        raise DataError(f"{location} holds no pictures ({known})")
    left = []
    if contents is not None:
        used = {os.path.relpath(source.path, location).replace(os.sep, "/") for source in sources.values()}
        left = [(name, why) for name, why in unused(contents, used) if location / name != (lists and lists[0])]
    return Found([sources[name] for name in sorted(sources)], left)


def find_packed(
    archives: Sequence[str], listing: Listing, first: int, looked: Callable[[], None], say: Callable[[str], None]
) -> Found:
    """Every picture of some archives, and what of them is none.

    Args:
        archives: of `find_archives`.
        first: which is looked through first, if others look, too.
        looked: called after each.
        say: told lines for people.

    Raises:
        StoreBusy, DataError: if one cannot be read, or there are no pictures.
    """
    found: list[Any] = [None] * len(archives)
    for index in [*range(first, len(archives)), *range(first)]:
        found[index] = listing.of(archives[index], functools.partial(_said, column=listing.column), say)
        looked()
    sources: list[Source] = []
    names = unique_names(archives, [[entry.name for entry in entries] for entries, _, _ in found])
    for archive, own, (entries, known, _) in zip(archives, names, found, strict=True):
        path = Path(archive)
        for name, entry in zip(own, entries, strict=True):
            packed = Packed(archive, known, entry.where, entry.trouble)
            sources.append(Source(name, path, entry.captions, None, packed))
    if not sources:
        raise DataError(f"{', '.join(archives)[:500]}: no pictures are in there ({', '.join(sorted(suffixes()))})")
    left = [
        (name, f"no picture that Pillow reads here ({PurePosixPath(name).suffix or 'no suffix'})")
        for _, _, others in found
        for name in others
    ]
    return Found(sorted(sources, key=lambda source: source.name), left)


def _said(value: Any, column: str) -> tuple[str, ...]:
    """The captions of a file's text, of a table's cell, or of the object that a .json holds."""
    if isinstance(value, str):
        return _of_text(value)
    if isinstance(value, dict):
        names = [column] if column else CAPTION_COLUMNS
        value = next((value[name] for name in names if value.get(name)), None)
    if isinstance(value, list) and not all(isinstance(each, str) for each in value):
        raise ValueError(f"a caption is no text: {value!r:.80}")
    return _wordings(value)


def _lists_in(folder: Path) -> list[Path]:
    """The lists that a folder holds, that of LISTS which comes first first, whatever the case of its name."""
    names = {name.lower(): name for name in sorted(os.listdir(folder), reverse=True)}
    return [folder / names[name] for name in LISTS if name in names and (folder / names[name]).is_file()]


def _beside(picture: Path, encoding: str) -> tuple[str, ...]:
    for file in caption_files(picture):
        try:
            said = _of_text(read_text(file, encoding))
        except FileNotFoundError:
            continue
        except TextError as error:
            raise CaptionError(str(error)) from error
        if not said:
            raise CaptionError(f"{file.name} is empty; a line of {EMPTY} would be an empty prompt")
        return said
    raise CaptionError(f"there is no {picture.stem}.txt or {picture.stem}.caption beside it")


def _of_text(text: str) -> tuple[str, ...]:
    """The wordings that a caption's file holds: its lines."""
    said = [line.strip() for line in lines(text)]
    return tuple("" if line == EMPTY else line for line in said if line)


def _listed(
    file: Path, pictures: str | Path, column: str, only_inside: Sequence[str], encoding: str
) -> Iterator[Source]:
    check_inside(file, only_inside)
    root = Path(pictures).expanduser() if pictures else _pictures_of(file.parent)
    for number, row in enumerate(rows(file, encoding), 1):
        name = next((row[key] for key in NAME_COLUMNS if row.get(key)), None)
        if not isinstance(name, str):
            raise DataError(f"{file}, entry {number}: no picture is named ({' or '.join(NAME_COLUMNS)})")
        if column and column not in row:
            raise DataError(f"{file}, entry {number}: there is no {column} among {', '.join(map(str, row))}")
        said = row[column] if column else next((row[key] for key in CAPTION_COLUMNS if row.get(key)), None)
        if isinstance(said, list) and not all(isinstance(each, str) for each in said):
            raise DataError(f"{file}, entry {number}: a caption is no text: {said!r:.80}")
        height, width = row.get("height"), row.get("width")
        size = None
        if type(height) is int and type(width) is int and height > 0 and width > 0:
            size = height, width
        name = _as_here(name.strip(), root)
        yield Source(name, root / name, _wordings(said), size)


def _as_here(name: str, root: Path) -> str:
    """A name whose folders Windows separated, as this system separates them."""
    return name.replace("\\", "/") if os.sep == "/" and "\\" in name and not (root / name).exists() else name


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
