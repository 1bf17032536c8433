"""Files that are replaced in one go, and locks on files that end with whoever holds them. Standard library only."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

from ..pixart_core.leftovers import NO_LOCKS, take_lock

Result = TypeVar("Result")

_IS_WINDOWS = sys.platform == "win32"
_PAUSE = 0.01
"""Seconds between two attempts to take a lock."""


class LockHeldError(OSError):
    """A lock that another process did not give back in time.

    Args:
        holder: what that process wrote into the file.
    """

    def __init__(self, holder: str):
        super().__init__(holder)
        self.holder = holder


@contextlib.contextmanager
def replacing(file: Path, temporary: Path | None = None) -> Iterator[Path]:
    """Where to write what then replaces `file` in one go; if the block fails, `file` stays as it was.

    Args:
        temporary: that file, beside `file`; default: one that no other process writes.
    """
    temporary = temporary or file.with_name(f".{file.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        yield temporary
        patiently(lambda: temporary.replace(file))
    finally:
        temporary.unlink(missing_ok=True)


def replace_json(file: Path, values: Any, temporary: Path | None = None) -> None:
    """Write a JSON file; see `replacing`. Raises OSError, and then leaves the old one."""
    with replacing(file, temporary) as beside:
        beside.write_text(json.dumps(values, indent=1), encoding="utf-8")


def patiently(action: Callable[[], Result]) -> Result:
    """What `action` on a file returns. On Windows none can be replaced while another process has it open, nor be opened
    while it is replaced: both take a moment, so that it is tried for a second there."""
    for _ in range(50 if _IS_WINDOWS else 0):
        try:
            return action()
        except PermissionError:
            time.sleep(0.02)
    return action()


@contextlib.contextmanager
def locked(file: Path, patience: float, take: Callable[[IO[str]], bool] | None = None) -> Iterator[IO[str]]:
    """Hold a file's lock and have the file open, which is made if missing; closing it gives the lock back.

    Args:
        patience: seconds to wait for another process.
        take: takes the lock if it is free; default: `try_lock`.

    Raises:
        LockHeldError: if another process holds it for longer.
    """
    with open(file, "a+", encoding="utf-8") as opened:
        deadline = time.monotonic() + patience
        while not (take or try_lock)(opened):
            if time.monotonic() > deadline:
                opened.seek(0)
                raise LockHeldError(opened.read())
            time.sleep(_PAUSE)
        yield opened


def try_lock(file: IO[str]) -> bool:
    """Take a file's lock if it is free; whether it was. Where a file system has no locks nobody can be kept out."""
    return take_lock(file) in (None, *NO_LOCKS)


def try_named_lock(file: IO[str]) -> bool:
    """As `try_lock`, for a file in which the holder writes "process N": that counts where there are no locks."""
    problem = take_lock(file)
    if problem not in NO_LOCKS:
        return problem is None
    file.seek(0)
    holder = file.read(64).removeprefix("process ")
    if _IS_WINDOWS:
        return not holder  # to ask for a process by signal 0 would be Ctrl-C there
    try:
        os.kill(int(holder), 0)
    except (ValueError, OSError, OverflowError):
        return True
    return int(holder) == os.getpid()
