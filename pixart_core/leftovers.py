"""Places for files that are being written, and the end of those whose writer was killed. Standard library only.

What is to appear under a name is written into a folder of its own beside it, `.NAME.RANDOM.tmp`, together with
whatever temporary files a library makes there, and then moved. While its writer lives it holds a lock in there; so
whoever writes into the same place next knows which of these folders nobody will come back to, and removes them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # asked for below by this name
    import msvcrt

_LOCK = "lock"
_LOCK_OFFSET = 1 << 20
"""On Windows a locked byte cannot be read by others: it lies behind the end."""
NO_LOCKS = () if fcntl is None else (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
"""What a mount says that has no locks."""
_HELD = (errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK)
"""What taking a lock says that another one has."""
_held: weakref.WeakSet[IO[str]] = weakref.WeakSet()
"""The locks of this process."""


def _let_go() -> None:
    for lock in list(_held):
        lock.close()


if hasattr(os, "register_at_fork"):  # a forked process that outlives us must not keep them
    os.register_at_fork(after_in_child=_let_go)


@contextlib.contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """A new folder beside `path`, which goes when the block ends, however it does. Earlier ones whose writer is gone
    are removed first.

    Raises:
        OSError: if it cannot be made.
    """
    remove_leftovers(path.parent)
    folder, lock = _claim(path)
    try:
        yield folder
    finally:
        lock.close()
        _remove(folder)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed writers left in a folder."""
    for each in folder.glob(".*.tmp"):
        if each.is_dir() and not each.is_symlink():
            _remove_if_left(each)


def _remove_if_left(folder: Path) -> None:
    try:
        with open(folder / _LOCK, "r+", encoding="utf-8") as lock:
            if take_lock(lock) is not None:
                return
            _empty(folder)
            if fcntl is not None:  # while we hold it, so that whoever is just making this folder takes another
                (folder / _LOCK).unlink()
        _remove(folder)  # closed: Windows deletes no open file, and NFS keeps one under another name
    except FileNotFoundError:  # its writer ended between two steps; one that lives makes another
        with contextlib.suppress(OSError):
            folder.rmdir()
    except OSError:  # of somebody else
        return


def _empty(folder: Path) -> None:
    """Delete what can be deleted now, but for the lock."""
    for each in folder.iterdir():
        with contextlib.suppress(OSError):
            if each.is_dir() and not each.is_symlink():
                shutil.rmtree(each, ignore_errors=True)
            elif each.name != _LOCK:
                each.unlink()


def _remove(folder: Path) -> None:
    """Remove a folder, its lock last: a transfer that was given up may still make a file in there, or have it open
    (which Windows does not delete), and without a lock nobody would know the rest for a leftover."""
    with contextlib.suppress(OSError):
        _empty(folder)
        (folder / _LOCK).unlink(missing_ok=True)
        try:
            folder.rmdir()
        except OSError:
            (folder / _LOCK).touch()


def _claim(path: Path) -> tuple[Path, IO[str]]:
    """A new folder, locked. Who removes leftovers may come between making and locking it: then another one."""
    for _ in range(8):
        folder = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        folder.mkdir()
        with contextlib.suppress(FileNotFoundError):
            lock = open(folder / _LOCK, "w", encoding="utf-8")
            _held.add(lock)
            # Where there are no locks, nobody takes it for left either.
            if take_lock(lock) not in _HELD and (folder / _LOCK).exists():
                return folder, lock
            lock.close()
    raise OSError(f"{path.parent} keeps no folder that is made in it")


def take_lock(file: IO[str]) -> int | None:
    """Take a file's lock, without waiting; the number of the error if it cannot be had: another process holds it, or
    this file system has none (`NO_LOCKS`)."""
    try:
        if fcntl is None:
            file.seek(_LOCK_OFFSET)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno
    return None
