"""What became of a job whose process has ended: its state, and the reason in words."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

from ..config import TRAININGS
from .job import Job

_TAIL = 4096
_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Escape sequences and characters that move the cursor or turn the writing direction."""


def verdict(job: Job, status: dict[str, Any], code: int | None, log: Path, made: bool) -> tuple[str, str]:
    """State and reason.

    Args:
        job: as it was while the process ran; `wanted` says whether somebody asked for the end.
        status: the run's last status if it is this process's, else empty.
        code: the exit status; None when the process was not our child (it outlived the server that started it).
        log: what it printed.
        made: whether there is something to use (`Store.result`).
    """
    ended, at = status.get("state"), _progress(job)
    if ended == "done" or ended is None and code == 0 and not job.wanted:
        return "done", ""
    if ended == "failed":
        return "failed", plain_text(str(status.get("message") or _last_words(job, log, code)))
    # Without anything to use it can only be gone on with.
    end = {"done": "stopped"}.get(job.wanted, job.wanted) if made else "paused"
    if ended == "stopped" and job.wanted:
        return end, f"{at.strip()}, saved".removeprefix(", ")
    if ended == "stopped":
        return "paused", f"its process was asked to end from outside{at}: resume goes on from there"
    if job.wanted:
        return end, f"ended without saving{at}: {f'resume {_goes_on(job)}' if at else 'it had not begun'}"
    return "failed", _last_words(job, log, code)


def last_line(log: Path) -> str:
    """The last line with words in it that a log holds, as plain text."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
            lines = file.read().decode("utf-8", "replace").replace("\r", "\n").splitlines()
    except OSError:
        return ""
    texts = (plain_text(line).strip() for line in reversed(lines))
    return next((text[:500] for text in texts if text), "")


def plain_text(text: str) -> str:
    """A text without what a terminal would obey: for a page, whoever wrote it."""
    return _CONTROL.sub("", text)


def count_of(command: str) -> str:
    """What a command counts in `step` and `steps`."""
    return "step" if command in TRAININGS else "picture"


def _last_words(job: Job, log: Path, code: int | None) -> str:
    said = last_line(log)
    if said.startswith("error:"):
        return said.removeprefix("error:").strip()
    if code is not None and code == -getattr(signal, "SIGKILL", 0):
        how = "its process was killed (was the memory full?)"
    elif code is not None and code == -getattr(signal, "SIGBUS", 0):
        how = (
            "its process was ended because a file that it read was cut short or went away meanwhile (signal "
            f"{-code}): were base, data or their disk replaced or removed? Put them back"
        )
    elif code is not None and code < 0:
        how = f"its process crashed (signal {-code})"
    else:
        how = "its process ended unexpectedly"
    return how + (f"; its log ends: {said}" if said else "") + f". Retry {_goes_on(job)}"


def _goes_on(job: Job) -> str:
    return "goes on from its last checkpoint" if job.command in TRAININGS else "keeps the parts that are finished"


def _progress(job: Job) -> str:
    step, steps = job.result.get("step"), job.result.get("steps")
    return "" if step is None or steps is None else f" at {count_of(job.command)} {step} of {steps}"
