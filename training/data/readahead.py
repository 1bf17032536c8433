"""Helper processes that read ahead, and do not outlive the one that started them."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from ..machine import die_with_parent
from .waiting import Get, at_once

Item = TypeVar("Item")
Result = TypeVar("Result")

_END = object()
_AHEAD = 4
"""Results that each process has ready or under way."""
_SHARED = 10**9
"""Free bytes of shared memory below which tensors come through pipes instead: a container has 64 MB of it unless told
otherwise, and who writes more is killed (bus error)."""


def read_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int, get: Get = at_once
) -> Iterator[Result]:
    """`function` of every item, in their order, computed ahead by `workers` processes, or here if there are none.

    Args:
        function: picklable where processes are spawned, not forked (Windows, macOS). What it raises is raised here.
        items: without end, if you like.
        get: calls what it is given for the next result, and may do so again after an error: the same item then comes
            again, computed here.
    """
    calls = _Calls(function, packs=workers > 0 and _shared_memory() < _SHARED)
    loader = DataLoader(
        calls,
        batch_size=None,
        sampler=items,
        num_workers=workers,
        prefetch_factor=_AHEAD if workers else None,
        collate_fn=_unchanged,
        worker_init_fn=_begin,
        generator=torch.Generator(),  # its own, so that starting it draws nothing from the global one
    )
    with _without_sigterm():
        results = iter(loader)
    following = _Next(results, function)
    try:
        while (result := get(following)) is not _END:
            yield result
    finally:  # a kept error may hold `following` until some later garbage collection; the helpers are to end now
        del results
        following.let_go()


def _shared_memory() -> float:
    """Free bytes of it; where it is no file system it has no size of its own."""
    try:
        return shutil.disk_usage("/dev/shm").free
    except OSError:
        return float("inf")


@contextlib.contextmanager
def _without_sigterm() -> Iterator[None]:
    """Inside, no SIGTERM reaches this thread, nor any of a process that it forks: also none that a library starts there
    before `_begin`, which could take no more than its own thread out of a signal's way."""
    if not hasattr(signal, "sigwaitinfo"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(_worker: int) -> None:
    """Make a helper live exactly as long as its parent wants: what a terminal, a cluster or `timeout` signals to all
    processes alike is the parent's to answer, who may want some more batches."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on Windows and macOS, where a helper ends with the first SIGTERM
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_obey_parent, args=(os.getppid(),), daemon=True).start()


def _obey_parent(parent: int) -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent:
        pass
    os._exit(0)


class _Failure:
    """An error on its way home: raised in a worker, a DataLoader would drown its message in a traceback."""

    def __init__(self, error: Exception, item):
        self.error, self.item = error, item


class _Calls(Dataset):
    """`packs`: give bytes, which a DataLoader sends through a pipe, unlike tensors."""

    def __init__(self, function: Callable, packs: bool):
        self.function, self.packs = function, packs

    def __getitem__(self, item):
        try:
            result = self.function(item)
        except Exception as error:
            result = _Failure(error, item)
        return pickle.dumps(result, pickle.HIGHEST_PROTOCOL) if self.packs else result


class _Next:
    """The next result, or `_END`; after a failure, the same item once more, here."""

    def __init__(self, results: Iterator, function: Callable):
        self._results, self._function = results, function
        self._failed: _Failure | None = None

    def let_go(self) -> None:
        self._results = iter(())

    def __call__(self):
        if self._failed is not None:
            result = self._function(self._failed.item)
            self._failed = None
            return result
        result = next(self._results, _END)
        if isinstance(result, bytes):
            result = pickle.loads(result)  # written by our own process
        if isinstance(result, _Failure):
            self._failed = result
            raise result.error
        return result


def _unchanged(result):
    return result
