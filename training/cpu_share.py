"""Whether a training gets the processor: its CPU time against the clock's."""

from __future__ import annotations

import time

import psutil
import torch

LITTLE = 0.4
"""Share of what it could use below which somebody should know."""
_SECONDS = 15.0
"""Between two looks: short enough to be news, long enough for more than a hiccup."""


class CpuShare:
    """Looks again and again; the first look is at what the start of the process got.

    Args:
        device: that computes. Of a GPU's training the processor has little to do, so that little says nothing.
    """

    def __init__(self, device: torch.device):
        self._counts = device.type == "cpu"
        process = psutil.Process()
        began = time.time() - process.create_time()
        self._mark = time.monotonic() - began, 0.0
        self._threads = 1
        """That compute: one while modules and files are loaded."""
        self._waited = 0.0
        self.notice = ""
        """For people, when it is little; else empty."""

    def look(self, waited: float = 0.0) -> bool:
        """Whether `notice` may have changed.

        Args:
            waited: seconds for data since the last call, when there was nothing to compute.
        """
        self._waited += waited
        seconds = time.monotonic() - self._mark[0]
        if not self._counts or seconds < _SECONDS:
            return False
        used = _cpu_seconds()
        could = max(seconds - self._waited, 1e-3) * self._threads
        share = (used - self._mark[1]) / could
        self.notice = ""
        if share < LITTLE and could > 0.1 * seconds:
            got = f"gets {max(share, 0):.0%} of the processor time that it could use"
            self.notice = f"{got}: other programs keep this machine busy"
        self._mark, self._waited = (time.monotonic(), used), 0.0
        self._threads = min(torch.get_num_threads(), psutil.cpu_count() or 1)
        return True


def _cpu_seconds() -> float:
    """Of all threads of this process since it began."""
    times = psutil.Process().cpu_times()
    return times.user + times.system
