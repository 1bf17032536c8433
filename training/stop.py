"""SIGTERM and Ctrl-C as a wish: what is under way is put in order before it ends."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType

_ONE_PRESS = 1.0
"""Seconds in which one Ctrl-C may come twice: from the terminal, and from a launcher that passes it on."""


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

    def __exit__(self, *_exception) -> None:
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
