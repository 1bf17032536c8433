"""A folder of pictures, however deep: what is in it, and what of that is not used, by name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from .inside import is_inside
from .pictures import suffixes

CAPTION_SUFFIXES = (".txt", ".caption", ".TXT", ".CAPTION")


def caption_files(picture: Path) -> list[Path]:
    """Where the caption of a picture may be, best first: picture.txt, picture.caption, or picture.png.txt."""
    return [picture.with_suffix(suffix) for suffix in CAPTION_SUFFIXES] + [
        picture.with_name(picture.name + suffix) for suffix in CAPTION_SUFFIXES
    ]


@dataclass
class Contents:
    """The files of a folder by their names in it, with / between the parts."""

    pictures: list[str] = field(default_factory=list)
    """That Pillow reads, going by their suffix, whatever its case."""
    outside: list[str] = field(default_factory=list)
    """Links and folders that were not followed or could not be looked into."""
    others: list[str] = field(default_factory=list)
    """All other files; hidden files and folders are nobody's business."""


def look_into(folder: Path, only_inside: Sequence[str] = ()) -> Contents:
    """What a folder holds, links followed; one that leads back to a folder that it is in holds nothing new.

    Args:
        only_inside: folders that links may lead into; default: anywhere.
    """
    contents = Contents()
    waiting: list[tuple[Path, PurePosixPath, tuple]] = [(folder, PurePosixPath(), ())]
    while waiting:
        inside, name, above = waiting.pop()
        try:
            about = inside.stat()
            me = about.st_dev, about.st_ino
            entries = [] if me in above else list(os.scandir(inside))
        except OSError:
            contents.outside.append(name.as_posix())
            continue
        for entry in entries:
            inner, path = name / entry.name, Path(entry.path)
            if entry.name.startswith("."):
                continue
            if not _is_folder(entry):
                is_picture = inner.suffix.lower() in suffixes()
                (contents.pictures if is_picture else contents.others).append(inner.as_posix())
            elif only_inside and not is_inside(path, only_inside):
                contents.outside.append(inner.as_posix())
            else:
                waiting.append((path, inner, (*above, me)))
    return contents


def unused(contents: Contents, used: set[str]) -> list[tuple[str, str]]:
    """Name and why of every file that is neither a picture in `used`, nor a caption of a picture, nor hidden."""
    captions = {file.as_posix() for name in contents.pictures for file in caption_files(Path(name))}
    out = [(name, "no list names it") for name in sorted(set(contents.pictures) - used)] if used else []
    for name in sorted(contents.others):
        suffix = PurePosixPath(name).suffix
        if suffix in CAPTION_SUFFIXES:
            if name not in captions:
                out.append((name, "a caption without a picture that can be read"))
        else:
            out.append((name, f"no picture that Pillow reads here ({suffix or 'no suffix'})"))
    return out


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
