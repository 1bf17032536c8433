"""Large files, here or behind a URL, of which parts are read: nothing is unpacked, and nothing copied that need not be.

A server that gives no parts of a file (as Python's own) is the exception: its files pass through the cache of remote
datasets as a whole.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ..data.remote import Location, explained, fetch_whole, file_system
from ..data.shards import DataError

_TELLS = ("size", "ETag", "etag", "LastModified", "Last-Modified", "last_modified", "mtime", "Content-MD5", "created")
"""What fsspec's file systems say of a file that changes when it does."""
_BLOCK = 1 << 18
"""Bytes that are read ahead where a remote file is read here and there."""


def is_url(address: str) -> bool:
    """Whether this is an address that fsspec opens, and no path."""
    return "://" in address


def asking(address: str) -> contextlib.AbstractContextManager[None]:
    """Surrounds reading of a file that stays open, so that errors of a store are told apart.

    Raises:
        StoreBusy, DataError: as `stamp`.
    """
    return explained(address, Location(address).cache) if is_url(address) else contextlib.nullcontext()


def stamp(address: str) -> str:
    """A text that changes when the file does.

    Raises:
        StoreBusy: if that cannot be known now.
        DataError: if there is no such file.
    """
    if not is_url(address):
        try:
            about = os.stat(address)
        except OSError as error:
            raise DataError(f"{address} cannot be read: {error.strerror}") from error
        return f"{about.st_size} {about.st_mtime_ns}"
    with asking(address):
        files, there = file_system(address)
        info = files.info(there)
    return json.dumps({name: str(info[name]) for name in _TELLS if info.get(name) is not None})


def read_part(address: str, known: str, start: int, size: int) -> bytes:
    """So many bytes of a file.

    Args:
        known: its `stamp`.

    Raises:
        StoreBusy, DataError: as `stamp`; also if the file ends before.
    """
    place = _place(address, known)
    if is_url(place):
        with asking(address):
            files, there = file_system(place)
            data = files.cat_file(there, start=start, end=start + size)
    else:
        data = os.pread(_handle(place, known, os.getpid()).fileno(), size, start) if hasattr(os, "pread") else b""
        if len(data) != size:  # Windows, or a read of more than the system gives at once
            with open(place, "rb") as file:
                file.seek(start)
                data = file.read(size)
    if len(data) != size:
        raise DataError(f"{address} ends in the middle of a picture: it was cut short, or is another file now")
    return data


@contextlib.contextmanager
def opened(address: str, known: str, from_start: bool = False) -> Iterator[IO[bytes]]:
    """A file to seek and read in.

    Args:
        known: its `stamp`.
        from_start: whether all of it is read in order, so that much may be read ahead.

    Raises:
        StoreBusy, DataError: as `stamp`; also for what happens inside.
    """
    place = _place(address, known)
    if not is_url(place):
        with open(place, "rb") as file:
            yield file
        return
    with asking(address):
        files, there = file_system(place)
        options = {} if from_start else {"block_size": _BLOCK}
        with files.open(there, "rb", cache_type="readahead", **options) as file:
            yield file


def matching(pattern: str) -> list[str]:
    """The URLs that a pattern with * and ? stands for, sorted.

    Raises:
        StoreBusy, DataError: as `stamp`.
    """
    with asking(pattern):
        files, there = file_system(pattern)
        return sorted(files.unstrip_protocol(each) for each in files.glob(there))


@functools.lru_cache(maxsize=4096)
def _place(address: str, known: str) -> str:
    """Where parts of it can be read: where it is, or a copy in the cache."""
    if not is_url(address):
        return address
    location = Location(address)
    with explained(address, location.cache):
        files, there = file_system(address)
        if address.partition("://")[0] not in ("http", "https") or _gives_parts(files, there):
            return address
    name = hashlib.sha256(f"{address} {known}".encode()).hexdigest()[:16]
    return str(fetch_whole(address, location.cache / f"{name}_{Path(address.partition('?')[0]).name}"))


def _gives_parts(files, url: str) -> bool:
    from fsspec.asyn import sync

    async def ask() -> bool:
        session = await files.set_session()
        async with session.get(files.encode_url(url), headers={"Range": "bytes=0-0"}) as answer:
            answer.raise_for_status()
            return answer.status == 206  # its body, which may be all of the file, is left unread

    return sync(files.loop, ask)


@functools.lru_cache(maxsize=64)
def _handle(path: str, _known: str, _process: int) -> IO[bytes]:
    """A local file, open in this process. Closed with it, or when many others were opened since."""
    return open(path, "rb", buffering=0)
