"""Archives of pictures as the source of `prepare`: tars, Parquet and zips, one, several or a pattern, here or at a URL.

What an archive holds is kept in archives/HASH.json of the output, so that a second run, and the other parts of the same
one, need not go through it again. In a dataset a picture has the name that it has in the archive, and pictures are in
the order of their names: it does not matter how they are packed.
"""

from __future__ import annotations

import glob
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ...pixart_core.saving import save_json
from ...pixart_core.textfile import read_json
from ..data.shards import DataError
from ..data.waiting import Get, at_once
from .inside import OutsideError, check_inside
from .opened import is_url, matching, stamp
from .pictures import suffixes

KINDS = (".tar", ".parquet", ".zip")
"""Suffixes of archives; of a folder with several kinds the first is taken: img2dataset lays tables beside its tars."""
_VERSION = 1
"""Version of what is kept of an archive."""
_MAGIC = "*?["


@dataclass(frozen=True, slots=True)
class Packed:
    """Where in an archive a picture is."""

    archive: str
    known: str
    """`stamp` of the archive."""
    where: tuple
    trouble: str = ""
    """Why it has no caption."""

    def read(self) -> bytes:
        """The content of its file.

        Raises:
            PictureError: if it is damaged.
            StoreBusy, DataError: if the archive cannot be read.
        """
        from . import tables, tarred

        module = tables if _kind(self.archive) == ".parquet" else tarred
        return module.read_picture(self.archive, self.known, self.where)


def find_archives(location: str, only_inside: Sequence[str] = ()) -> list[str]:
    """The archives that an input means; none if it is a folder of pictures, or a list of them.

    Args:
        location: an archive, a folder of nothing but archives, a pattern (00*.tar, {00000..00099}.tar), or several of
            these with :: between them; each a path or a URL.
        only_inside: folders that they have to be in; default: anywhere, also at a URL.

    Raises:
        DataError: if there is none where there should be, or a store does not answer.
        OutsideError: if one is not where it may be.
    """
    parts = [each.strip() for each in location.split("::")]
    if len(parts) == 1 and not _means_archives(parts[0]):
        return []
    found: list[str] = []
    for part in parts:
        for each in _braces(part):
            if is_url(each) and only_inside:
                raise OutsideError(f"{each} is at a URL, and only the folders of only_inside may be read")
            some = _remote(each) if is_url(each) else _local(os.path.expanduser(each))
            if not some:
                raise DataError(f"{each} is no archive of pictures, and holds none ({', '.join(KINDS)})")
            found += some
    for each in found:
        if not is_url(each):
            check_inside(Path(each), only_inside)
    return list(dict.fromkeys(found))


def _means_archives(part: str) -> bool:
    """Whether an input is meant as archives: by its name, or as a folder that has archives alone."""
    if is_url(part) or _kind(part) or "{" in part or any(letter in part for letter in _MAGIC):
        return not os.path.exists(part) or bool(_kind(part))
    return os.path.isdir(os.path.expanduser(part)) and bool(_local(os.path.expanduser(part)))


def _kind(address: str) -> str:
    suffix = PurePosixPath(address.partition("?")[0] if is_url(address) else address).suffix.lower()
    return suffix if suffix in KINDS else ""


def _braces(part: str) -> list[str]:
    if "{" not in part or os.path.exists(part):
        return [part]
    from webdataset.shardlists import expand_urls

    return list(expand_urls(part))


def _local(part: str) -> list[str]:
    if os.path.isfile(part):
        return [part] if _kind(part) else []
    if os.path.isdir(part):
        return _of_first_kind(_inside(part))
    return _of_first_kind(sorted(glob.glob(part, recursive=True)))


def _inside(folder: str) -> list[str]:
    """The archives of a folder, however deep; none if it holds a picture or a list."""
    from .lists import LISTS

    found = []
    for where, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            if os.path.splitext(name)[1].lower() in suffixes() or name.lower() in LISTS:
                return []
            if _kind(name) and not name.startswith("."):
                found.append(os.path.join(where, name))
    return sorted(found)


def _remote(url: str) -> list[str]:
    if _kind(url) and not any(letter in url.partition("?")[0] for letter in "*["):
        return [url]
    if "*" in url or "[" in url:
        return _of_first_kind(matching(url))
    return next((some for kind in KINDS if (some := matching(f"{url.rstrip('/')}/*{kind}"))), [])


def _of_first_kind(addresses: list[str]) -> list[str]:
    kind = next((kind for kind in KINDS if any(_kind(each) == kind for each in addresses)), None)
    return [each for each in addresses if _kind(each) == kind] if kind else []


@dataclass(frozen=True)
class Listing:
    """How archives are read: settings of `prepare`."""

    folder: Path
    """Where what was found is kept."""
    column: str = ""
    image_column: str = ""
    encoding: str = ""
    get: Get = at_once
    """How a store is asked."""

    def of(self, archive: str, wordings: Callable[[Any], tuple[str, ...]], say: Callable[[str], None]):
        """The entries of an archive, its stamp, and the names of other files in it.

        Raises:
            StoreBusy, DataError: if it cannot be read.
        """
        return self.get(lambda: self._of(archive, wordings, say))

    def _of(self, archive: str, wordings, say):
        from .tarred import Entry

        known = stamp(archive)
        file = self.folder / f"{hashlib.sha256(archive.encode('utf-8', 'surrogateescape')).hexdigest()[:24]}.json"
        state = [_VERSION, known, self.column, self.image_column, self.encoding]
        try:
            kept = read_json(file)
            if kept["state"] == state:
                entries = [Entry(name, tuple(where), tuple(said), no) for name, where, said, no in kept["entries"]]
                return entries, known, kept["others"]
        except (OSError, ValueError, KeyError, TypeError):  # not there, or from a disk that was full
            pass
        entries, others = self._read(archive, known, wordings, say)
        self.folder.mkdir(parents=True, exist_ok=True)
        about = {"archive": archive, "state": state, "others": others, "entries": [astuple(each) for each in entries]}
        save_json(about, file)
        return entries, known, others

    def _read(self, archive: str, known: str, wordings, say):
        if _kind(archive) == ".parquet":
            from .tables import list_table

            return list_table(archive, known, self.column, self.image_column, wordings, say)
        from .tarred import list_packed

        return list_packed(archive, known, self.column, wordings, self.encoding)


def unique_names(archives: Sequence[str], names: Sequence[Sequence[str]]) -> list[list[str]]:
    """The names of pictures, by archive; those that several have, with their archive's before them."""
    often = Counter(name for some in names for name in some)
    out = []
    for archive, some in zip(archives, names, strict=True):
        stem = PurePosixPath(archive).stem
        seen: Counter[str] = Counter()
        own = []
        for name in some:
            seen[name] += 1
            twice = f"{stem}/{name}" if seen[name] == 1 else f"{stem}/{seen[name]}/{name}"
            own.append(name if often[name] == 1 else twice)
        out.append(own)
    return out
