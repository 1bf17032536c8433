"""How much of the processor a job gets."""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil
import torch

_CPU_SECONDS = 15.0
"""Between two looks at the processor: short enough to be news, long enough for more than a hiccup."""
LITTLE = 0.4
"""Share of what a job could use of the processor below which somebody should know."""


class CpuShare:
    """Whether a job gets the processor: its CPU time against the clock's. It looks again and again.

    Args:
        device: that computes. Of a GPU's job the processor has little to do, so that little says nothing.
        say: told a line for people when it has become little.
        from_now: leave out what was before; else the first look is at what the start of the process got.
    """

    def __init__(self, device: torch.device, say: Callable[[str], None] = lambda _line: None, from_now: bool = False):
        self._counts, self._say = device.type == "cpu", say
        self._threads = 1
        """Threads that compute: one while modules and files are loaded."""
        began = time.time() - psutil.Process().create_time()
        self._mark = time.monotonic() - began, 0.0
        if from_now:
            self._begin()
        self._waited = 0.0
        self.notice = ""
        """What to tell people when it is little; else empty."""

    def look(self, waited: float = 0.0) -> bool:
        """Whether `notice` may have changed.

        Args:
            waited: seconds for data since the last call, when there was nothing to compute.
        """
        self._waited += waited
        seconds = time.monotonic() - self._mark[0]
        if not self._counts or seconds < _CPU_SECONDS:
            return False
        used = _cpu_seconds()
        could = max(seconds - self._waited, 1e-3) * self._threads
        share = (used - self._mark[1]) / could
        before, self.notice = self.notice, ""
        if share < LITTLE and could > 0.1 * seconds:
            got = f"gets {max(share, 0):.0%} of the processor time that it could use"
            self.notice = f"{got}: other programs keep this machine busy"
            if not before:
                self._say(self.notice)
        self._begin()
        self._waited = 0.0
        return True

    def _begin(self) -> None:
        self._mark = time.monotonic(), _cpu_seconds()
        self._threads = min(torch.get_num_threads(), psutil.cpu_count() or 1)


def _cpu_seconds() -> float:
    """Processor time of all threads of this process since it began."""
    times = psutil.Process().cpu_times()
    return times.user + times.system
