"""Pictures in tars (img2dataset's, webdataset's, or a folder packed as it is) and zips, and what is said about them.

Files whose names are equal up to the first dot of the last part are one sample, as in webdataset: 0001.jpg, 0001.txt,
0001.json. A caption is the text of .txt or .caption; else what .json says under one of the names of a list's columns.
"""

from __future__ import annotations

import functools
import os
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO, Any

from ...pixart_core.textfile import parse_json
from ..data.shards import DataError
from .opened import asking, opened, read_part
from .pictures import PictureError, suffixes
from .words import TextError, decode_text

_BLOCK = 512
"""Bytes that a tar is made of."""
_TEXTS = ("txt", "caption")
_LONGEST = 1 << 20
"""Bytes of a caption's file; what is longer is none."""


@dataclass(frozen=True)
class Entry:
    """A picture of an archive."""

    name: str
    where: tuple
    """What `read_picture` wants to know, ready for JSON."""
    captions: tuple[str, ...] = ()
    trouble: str = ""
    """Why there is no caption."""


@dataclass
class _Sample:
    """The files of one name."""

    pictures: list[tuple[str, str, tuple]] = field(default_factory=list)
    """Name, suffix and place."""
    texts: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    """Suffix -> name and content."""


def list_packed(
    address: str, known: str, column: str, wordings: Callable[[Any], tuple[str, ...]], encoding: str
) -> tuple[list[Entry], list[str]]:
    """The pictures of a tar or zip in its order, and the names of other files.

    Args:
        known: `stamp` of the file.
        column: what the caption is called in .json; empty = as in a list.
        wordings: makes captions of a text, or of what .json holds; raises ValueError on what is none.
        encoding: see `decode_text`.

    Raises:
        StoreBusy, DataError: if it cannot be read.
    """
    from webdataset.tariterators import base_plus_ext

    samples: dict[str, _Sample] = {}
    others: list[str] = []
    members = _zip_members if address.lower().endswith(".zip") else _tar_members
    with opened(address, known, from_start=True) as file:
        for raw, size, where, read in members(address, file):
            name = raw.removeprefix("./")
            if any(part.startswith((".", "__MACOSX")) for part in name.split("/")):
                continue
            key, suffix = base_plus_ext(name)
            last = (suffix or "").rpartition(".")[2].lower()
            if key is not None and f".{last}" in suffixes():
                samples.setdefault(key, _Sample()).pictures.append((name, suffix, where))
            elif last in (*_TEXTS, "json") and size <= _LONGEST and key is not None:
                samples.setdefault(key, _Sample()).texts[suffix.lower()] = name, read()
            else:
                others.append(name)
    entries = [
        _entry(name, suffix, where, sample.texts, column, wordings, encoding)
        for sample in samples.values()
        for name, suffix, where in sample.pictures
    ]
    return entries, others


def read_picture(address: str, known: str, where: tuple) -> bytes:
    """The content of a picture's file.

    Raises:
        PictureError: if it is damaged.
        StoreBusy, DataError: if the archive cannot be read.
    """
    if address.lower().endswith(".zip"):
        try:
            with asking(address):
                return _open_zip(address, known, os.getpid()).read(where[0])
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
            raise PictureError(f"it cannot be unpacked: {error}") from error
    return read_part(address, known, *where)


def _entry(name, suffix, where, texts, column, wordings, encoding) -> Entry:
    """A picture with its caption: of its own (0001.jpg.txt), or of all files of the name."""
    kinds = [] if column else [end for kind in _TEXTS for end in (kind, f"{suffix.lower()}.{kind}")]
    for kind in [*kinds, "json"]:
        if kind not in texts:
            continue
        said, data = texts[kind]
        try:
            text = decode_text(data, said, encoding)
            captions = wordings(parse_json(text) if kind == "json" else text)
        except (TextError, ValueError) as error:
            return Entry(name, where, (), str(error) if str(error).startswith(said) else f"{said}: {error}")
        if captions:
            return Entry(name, where, captions)
        if kind != "json":
            return Entry(name, where, (), f"{said} is empty")
    named = f"no {column} in a .json" if column else "no .txt, .caption or .json with a caption"
    return Entry(name, where, (), f"there is {named} of its name in the archive")


def _tar_members(address: str, file: IO[bytes]) -> Iterator[tuple[str, int, tuple, Callable[[], bytes]]]:
    end = 0
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                vars(tar)["members"].clear()  # it keeps them all
                end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
                if member.isfile():
                    read = functools.partial(_read_member, tar, member)
                    yield member.name, member.size, (member.offset_data, member.size), read
            file.seek(end)
            if len(file.read(_BLOCK)) < _BLOCK:
                raise DataError(f"{address} is damaged: it ends in the middle, as if it was copied in part")
    except tarfile.TarError as error:
        raise DataError(f"{address} cannot be read as a tar, which must not be compressed: {error}") from error


def _read_member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    return b"" if file is None else file.read()


def _zip_members(address: str, file: IO[bytes]) -> Iterator[tuple[str, int, tuple, Callable[[], bytes]]]:
    try:
        with zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                if not info.is_dir():
                    yield info.filename, info.file_size, (info.filename,), functools.partial(archive.read, info)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:  # the latter two: compressed how, locked
        raise DataError(f"{address} cannot be read as a zip: {error}") from error


@functools.lru_cache(maxsize=4)
def _open_zip(address: str, known: str, _process: int) -> zipfile.ZipFile:
    """A zip, open in this process as long as few others are."""
    held = opened(address, known)
    archive = zipfile.ZipFile(held.__enter__())
    vars(archive)["held"] = held  # else its file is closed with the context
    return archive
