"""SIGTERM and Ctrl-C as a wish: what is under way is put in order before it ends."""

from __future__ import annotations

import signal
from types import FrameType


class StopSignal:
    """While it is entered, SIGTERM and Ctrl-C ask for a save and an orderly end."""

    def __init__(self):
        self.received = False

    def __enter__(self) -> StopSignal:
        self._before = {kind: signal.signal(kind, self._receive) for kind in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_exception) -> None:
        for kind, handler in self._before.items():
            signal.signal(kind, handler)

    def _receive(self, _kind: int, _frame: FrameType | None) -> None:
        self.received = True
