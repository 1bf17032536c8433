"""Turns between servers that share a folder of jobs; the system takes a turn back when its holder dies."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from ..run_dir import try_lock

PATIENCE = 10.0
"""Seconds that somebody else may take: it is a few file operations."""


@contextlib.contextmanager
def turn(file: Path, patience: float = PATIENCE) -> Iterator[None]:
    """Hold a file's lock (the file is made if missing).

    Raises:
        TimeoutError: if another process holds it for unusually long.
    """
    with open(file, "a+", encoding="utf-8") as handle:
        deadline = time.monotonic() + patience
        while not try_lock(handle):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{file} is held by another process for {patience:.0f} s: is another ComfyUI stuck?")
            time.sleep(0.01)
        yield  # closing the file gives the lock back
