"""What became of a job whose process has ended: its state, and the reason in words."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from .job import Job

_TAIL = 4096


def verdict(job: Job, status: dict[str, Any], code: int | None, log: Path) -> tuple[str, str]:
    """State and reason.

    Args:
        job: as it was while the process ran; `wanted` says whether somebody asked for the end.
        status: the run's last status if it is this process's, else empty.
        code: the exit status; None when the process was not our child (it outlived the server that started it).
        log: what it printed.
    """
    ended, at = status.get("state"), _progress(job.result)
    if ended == "done" or ended is None and code == 0 and not job.wanted:
        return "done", ""
    if ended == "failed":
        return "failed", str(status.get("message") or _last_words(log, code))
    if ended == "stopped" and job.wanted:
        return job.wanted, f"{'paused' if job.wanted == 'paused' else 'stopped'}{at}, saved"
    if ended == "stopped":
        return "paused", f"its process was asked to end from outside{at}: resume goes on from there"
    if job.wanted:
        saved = "resume goes on from its last checkpoint" if at else "it had not begun"
        return job.wanted, f"ended without saving{at}: {saved}"
    return "failed", _last_words(log, code)


def last_line(log: Path) -> str:
    """The last line with words in it that a log holds."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
            lines = file.read().decode("utf-8", "replace").replace("\r", "\n").splitlines()
    except OSError:
        return ""
    return next((line.strip()[:500] for line in reversed(lines) if line.strip()), "")


def _last_words(log: Path, code: int | None) -> str:
    said = last_line(log)
    if said.startswith("error:"):
        return said.removeprefix("error:").strip()
    if code is not None and code == -getattr(signal, "SIGKILL", 0):
        how = "its process was killed (was the memory full?)"
    elif code is not None and code < 0:
        how = f"its process crashed (signal {-code})"
    else:
        how = "its process ended unexpectedly"
    return how + (f"; its log ends: {said}" if said else "") + ". Retry goes on from its last checkpoint"


def _progress(result: dict[str, Any]) -> str:
    return f" at step {result['step']} of {result['steps']}" if "step" in result and "steps" in result else ""
