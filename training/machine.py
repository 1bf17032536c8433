"""The machine that a training runs on: room on its disks, packages that it lacks, signals. Standard library only."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from types import FrameType

GB = 1e9
_ROOT = Path(__file__).resolve().parents[1]
_ONE_PRESS = 1.0
"""Seconds in which one Ctrl-C may come twice: from the terminal, and from a launcher that passes it on."""
_PR_SET_PDEATHSIG = 1


class DiskError(OSError):
    """A disk has too little room for what is to be written; nothing was written yet."""


def in_units(size: float) -> str:
    """Bytes for people."""
    return f"{size / GB:.2f} GB" if size >= 0.1 * GB else f"{size / 1e6:.1f} MB"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds: 1:02:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


class PackageError(ImportError):
    """A package that training needs is not there, or is too old; the message says what installs it."""


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


def explain_import(error: ImportError) -> str:
    """What cannot be imported, and the command that installs it into this very Python."""
    if isinstance(error, PackageError):
        return str(error)
    module = error.name if isinstance(error, ModuleNotFoundError) else None
    problem = f"{module.partition('.')[0]} is not installed" if module else str(error)
    return f'{problem}. What training needs is installed by: {sys.executable} -m pip install "{_ROOT}[train]"'


def require_packages(names: Iterable[str]) -> None:
    """Whether packages are there, in versions that pyproject.toml allows: an old one may train something else than it
    should. None is imported.

    Raises:
        PackageError: if one is not.
    """
    stated = (_ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise PackageError(explain_import(ModuleNotFoundError(name=name)))
        bound = re.search(rf'"{name}(?:\[\w+\])?>=([\d.]+)"', stated)
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # somebody's own folder of it
            continue
        if bound and _release(found) < _release(bound[1]):
            raise PackageError(explain_import(ImportError(f"{name} {found} is older than {bound[1]}")))


def _release(version: str) -> tuple[int, ...]:
    """The numbers of a version to compare by; what follows them (rc1, .dev0, +cu128) does not count."""
    return tuple(map(int, re.findall(r"\d+", re.match(r"[\d.]*", version)[0])))  # type: ignore[index]


def out_of_memory(batch_size: int) -> str:
    """What is said where a training does not fit its device, and the ways out."""
    return (
        f"the device is out of memory with batch_size={batch_size}: lower it (and raise accumulation), or set "
        "gradient_checkpointing=true, optimizer=adamw8bit, precision=bf16"
    )


class StopSignal:
    """While it is entered, SIGTERM and Ctrl-C ask for an orderly end; a second Ctrl-C ends at once.

    Args:
        says: what is said at the first one; empty = nothing, because another process says it.
    """

    def __init__(self, says: str):
        self.received, self._says = False, says
        self._first = 0.0

    def __enter__(self) -> StopSignal:
        self._before = {kind: signal.signal(kind, self._receive) for kind in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_exception: object) -> None:
        for kind, handler in self._before.items():
            signal.signal(kind, handler)

    def _receive(self, kind: int, _frame: FrameType | None) -> None:
        if not self.received:
            self.received, self._first = True, time.monotonic()
            if self._says:  # not by print, which may be what was interrupted
                os.write(2, f"\n{self._says}; Ctrl-C again ends at once\n".encode())
        elif kind == signal.SIGINT and time.monotonic() - self._first > _ONE_PRESS:
            signal.signal(kind, signal.SIG_DFL)
            signal.raise_signal(kind)


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent is gone, even by `kill -9`.

    Linux only; elsewhere a DataLoader's worker notices by itself within five seconds.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
