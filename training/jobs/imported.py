"""Jobs of earlier versions, whose records lay in the run folders: taken over once, and none of them is started.

Others can write there: what is taken over is checked as a new job is, and only a person can start it. After that
nothing there is read as a record again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from pathlib import Path
from typing import Any

from ..run_dir import RunDir
from ..settings import is_number
from .job import ENDED, FILE, IDENTIFIER, Job, read_job
from .queue import Queue, check_name
from .runner import KEPT
from .verdict import plain_text

log = logging.getLogger(__name__)

MARK = "imported"
"""File among the records: it was done."""
_TEXT = 500
_NO_PROCESS: dict[str, Any] = {"wanted": "", "pid": None, "identity": ""}


def import_jobs(queue: Queue) -> list[Job]:
    """Make records of the jobs in the queue's run folders, if that was never done. Returns those that were made."""
    if (queue.records / MARK).exists():
        return []
    made = []
    with queue.turn():
        if (queue.records / MARK).exists():  # another server was faster
            return []
        for folder in _folders(queue.root):
            if not (queue.records / folder.name).exists():
                try:
                    job = _taken_over(queue, folder)
                    (queue.records / job.id).mkdir()
                    if job.command:
                        queue.run_dir(job).write_config(job.command, job.settings)
                    queue.write(job)
                    made.append(job)
                except Exception as error:  # one bad job hides no other
                    log.warning("job %s of an earlier version is left out: %s", folder.name, error)
        known = {job.id for job in made}
        for job in made:
            if job.after and job.after not in known:
                job.after = ""
                queue.write(job)
        (queue.records / MARK).touch()
    return made


def _folders(root: Path) -> list[Path]:
    found = root.iterdir() if root.is_dir() else ()
    return sorted(
        folder
        for folder in found
        if IDENTIFIER.fullmatch(folder.name)
        and not folder.is_symlink()
        and folder.is_dir()
        and (folder / FILE).is_file()
        and not (folder / FILE).is_symlink()
    )


def _taken_over(queue: Queue, folder: Path) -> Job:
    """A job as it may be here: ended or paused, with settings that pass; one without them is failed and can be seen."""
    old = read_job(folder)
    name = _text(old.name) or folder.name
    try:
        check_name(name)
    except ValueError:
        name = folder.name
    if not old.command:
        return dataclasses.replace(old, reason=_text(old.reason))
    try:
        settings = queue.checked(old).to_dict()
    except (ValueError, OSError) as error:
        reason = (
            f"it was made by an earlier version, and cannot be taken over ({_text(error)}): delete it, or make it anew"
        )
        return Job(folder.name, "", {}, "cpu", name, "failed", reason, order=old.order, created=old.created)
    ended = old.state in ENDED
    if not ended:
        with contextlib.suppress(ValueError, OSError):
            run = RunDir(folder)
            if run.is_running():  # a process of the earlier version: it saves and ends
                run.request("stop")
    return dataclasses.replace(
        old,
        settings=settings,
        name=name,
        state=old.state if ended else "paused",
        reason=_text(old.reason) if ended else "it was made by an earlier version: resume it",
        after=old.after if IDENTIFIER.fullmatch(old.after) else "",
        stamp=_text(old.stamp),
        result=_result(old.result),
        **_NO_PROCESS,
    )


def _result(values: dict[str, Any]) -> dict[str, Any]:
    """Its numbers and short texts."""
    kept = {name: values[name] for name in KEPT if name in values}
    return {
        name: value if is_number(value) else _text(value)
        for name, value in kept.items()
        if is_number(value) or isinstance(value, str)
    }


def _text(value: Any) -> str:
    return plain_text(str(value))[:_TEXT]
