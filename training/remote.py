"""Where a dataset's files are: a folder, or a URL whose shards pass through a folder on this machine."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ..pixart_core.weightfile import temporary_name
from .shards import DESCRIPTION, DataError, HashingFile, Shard, ShardInfo

T = TypeVar("T")

CACHE_GIGABYTES = 100
"""What the shards of all remote datasets may take in one cache; the least recently used make way."""
_ATTEMPTS = 3


class Place:
    """A folder, or a URL (http, https, s3, … whatever fsspec opens), that holds a dataset.

    Args:
        cache: where the shards of a URL are kept; default: the user's cache, or $PIXART_DELTA_CACHE.
    """

    def __init__(self, location: str | Path, cache: str | Path | None = None):
        self.location = str(location).rstrip("/")
        self.is_remote = "://" in self.location
        base = cache or os.environ.get("PIXART_DELTA_CACHE") or Path.home() / ".cache" / "pixart-delta"
        self.cache = Path(base) / "features" / hashlib.sha256(self.location.encode()).hexdigest()[:16]

    def __str__(self) -> str:
        return self.location

    def describe(self) -> str:
        """The text of dataset.json.

        Raises:
            DataError: if there is none.
        """
        if self.is_remote:
            url = f"{self.location}/{DESCRIPTION}"
            return _retry(url, lambda: _read(url)).decode()
        try:
            return Path(self.location, DESCRIPTION).read_text("utf-8")
        except OSError as error:
            raise DataError(f"{self} is not a folder of prepared features, which `prepare` makes: {error}") from error

    def open(self, info: ShardInfo) -> Shard:
        """A shard, brought here first if it is elsewhere. The last ones stay open."""
        return _open(self._local(info) if self.is_remote else f"{self.location}/{info.name}", info)

    def _local(self, info: ShardInfo) -> Path:
        path = self.cache / f"{info.sha256[:16]}_{info.name}"
        with contextlib.suppress(FileNotFoundError):  # not there, or making way for another process's shards just now
            if path.stat().st_size == info.bytes:  # else it was cut short, as by a full disk or a crash
                os.utime(path)
                return path
        self.cache.mkdir(parents=True, exist_ok=True)
        temporary = temporary_name(path)
        url = f"{self.location}/{info.name}"
        try:
            if _retry(url, lambda: _download(url, temporary)) != info.sha256:
                raise DataError(f"shard {url} is damaged or not the one that dataset.json lists: copy it there again")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        _clean(self.cache.parent)
        return path


@functools.lru_cache(maxsize=160)  # more than the shards of a shuffled window: opening one takes 0.05 s
def _open(path: str | Path, info: ShardInfo) -> Shard:
    return Shard(Path(path), info)


def _clean(folder: Path) -> None:
    from webdataset.cache import LRUCleanup

    LRUCleanup(str(folder), CACHE_GIGABYTES * 10**9, keyfn=os.path.getmtime, interval=None).cleanup()


def _read(url: str) -> bytes:
    import fsspec

    with fsspec.open(url, "rb") as file:
        return file.read()


def _download(url: str, path: Path) -> str:
    """Copy a remote file to `path`; its sha256."""
    import fsspec

    with fsspec.open(url, "rb") as source, path.open("wb") as file:
        target = HashingFile(file)
        shutil.copyfileobj(source, target, 1 << 20)
        file.flush()
        os.fsync(file.fileno())
    return target.digest.hexdigest()


def _retry(url: str, action: Callable[[], T]) -> T:
    """What `action` returns, tried again because networks fail."""
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return action()
        except Exception as error:  # each of fsspec's file systems has its own
            if isinstance(error, ImportError):  # s3fs for s3://, gcsfs for gs:// …
                scheme = url.partition("://")[0]
                raise DataError(
                    f"{scheme}:// needs a package that is not installed here ({error}): install it with pip"
                ) from error
            if attempt == _ATTEMPTS or isinstance(error, FileNotFoundError):
                raise DataError(f"{url} cannot be read: {type(error).__name__} {error}".rstrip()) from error
            time.sleep(2**attempt)
    raise AssertionError
