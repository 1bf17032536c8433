"""Helper processes that read ahead, and do not outlive the one that started them."""

from __future__ import annotations

import os
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
    loader = DataLoader(
        _Calls(function),
        batch_size=None,
        sampler=items,
        num_workers=workers,
        prefetch_factor=_AHEAD if workers else None,
        collate_fn=_unchanged,
        worker_init_fn=_begin,
        generator=torch.Generator(),  # its own, so that starting it draws nothing from the global one
    )
    following = _Next(iter(loader), _Calls(function))
    while (result := get(following)) is not _END:
        yield result


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
    def __init__(self, function: Callable):
        self.function = function

    def __getitem__(self, item):
        try:
            return self.function(item)
        except Exception as error:
            return _Failure(error, item)


class _Next:
    """The next result, or `_END`; after a failure, the same item once more."""

    def __init__(self, results: Iterator, calls: _Calls):
        self._results, self._calls = results, calls
        self._failed: _Failure | None = None

    def __call__(self):
        result = next(self._results, _END) if self._failed is None else self._calls[self._failed.item]
        self._failed = result if isinstance(result, _Failure) else None
        if self._failed is not None:
            raise self._failed.error
        return result


def _unchanged(result):
    return result
