"""Where a dataset's files are: a folder, or a URL whose shards pass through a folder on this machine."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...pixart_core.leftovers import temporary_folder
from ...pixart_core.saving import replacing
from ...pixart_core.textfile import parse_json
from ..machine import DiskError, require_packages
from .shards import DESCRIPTION, DataError, Shard, ShardInfo, hash_file
from .waiting import StoreBusy, aside, has_ended

CACHE_GIGABYTES = 100
"""What the shards of all remote datasets may take in one cache; the least recently used make way."""
STALLED = 20.0
"""Seconds without a byte after which a transfer is begun anew."""
_SHORT = 3
"""How often a file may come shorter than it should be before it is taken for another one: a transfer that is cut off is
not always noticed."""
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_GONE = (404, 410)
"""HTTP's words for what is not there, and will not be."""
_REFUSED = (401, 403)
"""HTTP's words for whom it is not shown."""


class Location:
    """A folder, or a URL (http, https, s3, … whatever fsspec opens), that holds a dataset.

    Args:
        cache: where the shards of a URL are kept; default: the user's cache, or $PIXART_DELTA_CACHE.
    """

    def __init__(self, address: str | Path, cache: str | Path | None = None):
        self.address = str(address).rstrip("/")
        self.is_remote = "://" in self.address
        base = cache or os.environ.get("PIXART_DELTA_CACHE") or Path.home() / ".cache" / "pixart-delta"
        self.cache = Path(base) / "features" / hashlib.sha256(self.address.encode()).hexdigest()[:16]
        self._short: dict[str, int] = {}

    def __str__(self) -> str:
        return self.address

    def describe(self) -> bytes:
        """What dataset.json holds.

        Raises:
            StoreBusy: if it cannot be read now.
            DataError: if there is none.
        """
        if self.is_remote:
            self.cache.mkdir(parents=True, exist_ok=True)
            with temporary_folder(self.cache / DESCRIPTION) as folder:
                url = f"{self.address}/{DESCRIPTION}"
                with explained(url, self.cache):
                    _download(url, folder / DESCRIPTION)
                text = (folder / DESCRIPTION).read_bytes()
            if not _is_json(text) and self._may_be_cut(DESCRIPTION):  # it has no checksum of its own
                raise StoreBusy(f"{url} cannot be read: it came cut short, or as something else")
            return text
        try:
            return Path(self.address, DESCRIPTION).read_bytes()
        except OSError as error:
            raise DataError(f"{self} is not a folder of prepared features, which `prepare` makes: {error}") from error

    def open(self, info: ShardInfo) -> Shard:
        """A shard, brought here first if it is elsewhere. The last ones stay open.

        Raises:
            StoreBusy: if it cannot be brought now.
            DataError: if it is not there, or damaged.
        """
        return _open(self._local(info) if self.is_remote else f"{self.address}/{info.name}", info)

    def _local(self, info: ShardInfo) -> Path:
        path = self.cache / f"{info.sha256[:16]}_{info.name}"
        with contextlib.suppress(FileNotFoundError):  # not there, or making way for another process's shards just now
            if path.stat().st_size == info.bytes:  # else it was cut short, as by a full disk or a crash
                os.utime(path)
                return path
        self.cache.mkdir(parents=True, exist_ok=True)
        url = f"{self.address}/{info.name}"
        with replacing(path) as temporary:
            with explained(url, self.cache):
                digest = _download(url, temporary)
            if digest != info.sha256:
                self._refuse(url, info, temporary.stat().st_size)
        self._short.pop(info.name, None)
        _clean(self.cache.parent)
        return path

    def _refuse(self, url: str, info: ShardInfo, size: int) -> None:
        if size < info.bytes and self._may_be_cut(info.name):
            raise StoreBusy(f"{url} cannot be read: it came with {size} of its {info.bytes} bytes")
        raise DataError(f"shard {url} is damaged or not the one that dataset.json lists: copy it there again")

    def _may_be_cut(self, name: str) -> bool:
        """Whether a file that came wrong is asked for again."""
        self._short[name] = self._short.get(name, 0) + 1
        return self._short[name] < _SHORT


def fetch_whole(url: str, path: Path) -> Path:
    """A copy of a remote file, made unless it is there; of a file that is not checked otherwise.

    Raises:
        StoreBusy, DataError, DiskError: as `explained`.
    """
    if path.exists():
        os.utime(path)
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with explained(url, path.parent), replacing(path) as temporary:
        _download(url, temporary)
    _clean(path.parent.parent)
    return path


@functools.lru_cache(maxsize=160)  # more than the shards of a shuffled window: opening one takes 0.05 s
def _open(path: str | Path, info: ShardInfo) -> Shard:
    return Shard(Path(path), info)


def _clean(folder: Path) -> None:
    from webdataset.cache import LRUCleanup

    LRUCleanup(str(folder), CACHE_GIGABYTES * 10**9, keyfn=os.path.getmtime, interval=None).cleanup()


def _download(url: str, path: Path) -> str:
    """Copy a remote file to `path`; its sha256."""
    from fsspec.callbacks import Callback

    class Progress(Callback):
        last = time.monotonic()

        def relative_update(self, inc: int = 1) -> None:
            self.last = time.monotonic()

    files, there = file_system(url)  # which may import for seconds, and none of them count
    progress = Progress()
    call = aside(lambda: files.get_file(there, str(path), callback=progress))
    while not has_ended(call, 0.5):
        if time.monotonic() - progress.last > STALLED:
            raise TimeoutError(f"no byte came for {STALLED:.0f} s")
    call.result()  # raises what the call did
    return hash_file(path)


def file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the path there. Raises PackageError if what reads from one is too old."""
    require_packages(("fsspec", "webdataset"))
    import fsspec

    scheme = url.partition("://")[0]
    options = {}
    if scheme in ("http", "https"):
        import aiohttp

        # The default ends every transfer after five minutes, however well it comes along.
        kept = fsspec.config.conf.get(scheme, {}).get("client_kwargs", {})
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=STALLED, sock_read=STALLED)
        options = {"client_kwargs": {"timeout": timeout, **kept}}
    return fsspec.core.url_to_fs(url, **options)


def _is_json(text: bytes) -> bool:
    try:
        parse_json(text)
    except ValueError:
        return False
    return True


@contextlib.contextmanager
def explained(url: str, cache: Path) -> Iterator[None]:
    """Each of fsspec's file systems has its own errors: which are final, which may pass?

    Raises:
        StoreBusy: if the file cannot be had now.
        DataError: if there is none, or the URL's file system is not known here.
        DiskError: if the disk is full.
    """
    try:
        yield
    except ImportError as error:  # s3fs for s3://, gcsfs for gs:// …
        scheme = url.partition("://")[0]
        raise DataError(
            f"{scheme}:// needs a package that is not installed here ({error}): install it with pip"
        ) from error
    except (DataError, DiskError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _DISK:
            raise DiskError(
                f"the disk of the cache {cache} is full: free some space, or set PIXART_DELTA_CACHE to another folder"
            ) from error
        problem = f"{url} cannot be read: {type(error).__name__} {error}".rstrip()
        if _is_refusal(error):
            # What is asked for at night may have outlived its key. A new one is found by a new file system only.
            type(file_system(url)[0]).clear_instance_cache()
            problem += (
                ". The store refuses access: renew its credentials or its permission, and reading goes on by itself"
            )
        raise (DataError if _is_final(error) else StoreBusy)(problem) from error


def _is_final(error: BaseException) -> bool:
    """Whether asking again is of no use. Some of fsspec's file systems call everything FileNotFoundError, also a server
    that is busy, which its cause then tells."""
    causes = _causes(error)
    if statuses := _statuses(causes):
        return all(status in _GONE for status in statuses)
    if isinstance(error, FileNotFoundError):
        return not any(isinstance(each, (ConnectionError, TimeoutError)) or _of_network(each) for each in causes)
    return isinstance(error, (ValueError, TypeError, NotImplementedError)) and not _of_network(error)


def _is_refusal(error: BaseException) -> bool:
    """Whether the store is there and does not let us in. s3fs makes PermissionError of an expired token, which comes
    as 400; botocore has errors of its own for credentials that are missing or cannot be renewed."""
    causes = _causes(error)
    refused = any(isinstance(each, PermissionError) or "Credential" in type(each).__name__ for each in causes)
    return refused or any(status in _REFUSED for status in _statuses(causes))


def _causes(error: BaseException) -> list[BaseException]:
    causes = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    return causes


def _statuses(causes: list[BaseException]) -> list[int]:
    """HTTP's numbers in errors of aiohttp (`status`) and botocore (`response`)."""
    found = []
    for each in causes:
        response = getattr(each, "response", None)
        about = response.get("ResponseMetadata", {}) if isinstance(response, dict) else {}
        found += [getattr(each, "status", None), about.get("HTTPStatusCode")]
    return [status for status in found if isinstance(status, int)]


def _of_network(error: BaseException) -> bool:
    return any(kind.__module__.partition(".")[0] == "aiohttp" for kind in type(error).__mro__)
