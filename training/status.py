"""`status`: how far a run is, for people. Standard library only."""

from __future__ import annotations

import time
from typing import Any

from .machine import in_units
from .run_dir import RunDir


def describe_run(folder: str) -> str:
    """One line each of what is known; lines of the form `name: value`.

    Raises:
        RunDirError: if the folder holds no run.
    """
    run = RunDir(folder)
    status = run.read_status()
    lines = {"command": run.read_config()["command"], "state": _state(run, status)}
    lines |= {"step": f"{status['step']} of {status['steps']}", **_progress(status)}
    for name in ("pictures", "device", "waiting", "notice", "checkpoint", "export", "message"):
        lines[name] = status.get(name)
    return "\n".join(f"{name}: {value}" for name, value in lines.items() if value is not None)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds: 1:02:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


def _state(run: RunDir, status: dict[str, Any]) -> str:
    under_way = status["state"] in ("preparing", "running")
    if under_way and not run.is_running():
        return f"killed, {duration(time.time() - status['time'])} ago or less: the same command resumes it"
    return f"{status['state']}, process {status['pid']}" if under_way else status["state"]


def _progress(status: dict[str, Any]) -> dict[str, str | None]:
    left = status.get("seconds_left") if status["state"] in ("preparing", "running") else None
    left = {"left": None if left is None else duration(left)}
    if "loss" not in status:  # before the first step, or of `prepare`
        return left
    return {
        "loss": f"{status['loss']:.5f}",
        "learning rate": f"{status['learning_rate']:.3g}",
        "seconds a step": f"{status['seconds_per_step']:.3g}",
        **left,
        "memory": f"{in_units(status['memory'])} at most",
    }
