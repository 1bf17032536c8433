"""Room on a disk, and sizes for people. Standard library only."""

from __future__ import annotations

import shutil
from pathlib import Path

GB = 1e9


class DiskError(OSError):
    """A disk has too little room for what is to be written; nothing was written yet."""


def in_units(size: float) -> str:
    """Bytes for people."""
    return f"{size / GB:.2f} GB" if size >= 0.1 * GB else f"{size / 1e6:.1f} MB"


def require_room(folder: Path, needed: float, what: str, way_out: str = "") -> None:
    """Whether a disk has room.

    Args:
        folder: on that disk; it need not exist yet.
        needed: bytes, besides what is there already.
        what: will be written, plural, for the message.
        way_out: something that makes it smaller, if there is anything, for the message.

    Raises:
        DiskError: if it has not.
    """
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    try:
        total, _, free = shutil.disk_usage(there)
    except OSError:
        return
    if needed > free and total:  # some network mounts say 0 of 0: they do not know
        raise DiskError(
            f"{what} need {in_units(needed)} more, but only {in_units(free)} are free there: free some space"
            f"{way_out and f', {way_out}'}, or choose another folder"
        )
