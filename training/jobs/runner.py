"""The processes of jobs: started, found again after a restart, and what their end means."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from pathlib import Path

from ..config import TRAININGS
from ..storage import replace_json
from . import process
from .job import Job
from .store import LOG, SETTINGS, Store
from .verdict import verdict

TRAIN = Path(__file__).resolve().parents[1] / "train.py"
_GRACE = {True: 1.0, False: 120.0}
"""Seconds after which a start whose process nobody saw is given up (its server died in that very moment): where the
system lists arguments, those of a process that was just started take a moment to show, and elsewhere it has to be
waited for what the process writes."""
KEPT = ("step", "steps", "loss", "export", "checkpoint", "message", "memory", "seconds_per_step", "pictures")


class Runner:
    """Starts and settles the jobs of a store; everything here is done in a turn of it."""

    def __init__(self, store: Store):
        self.store, self.python = store, sys.executable
        self.children: dict[str, subprocess.Popen[bytes]] = {}
        self._waiting_since: dict[str, float] = {}

    def launch(self, job: Job) -> None:
        """Start its process; a job that cannot be started has failed."""
        store, folder = self.store, self.store.records / job.id
        job.pid, job.identity, job.wanted = None, "", ""
        job.attempt += 1
        store.put(job, "preparing", "")
        try:
            for name in store.run_dir(job).requests():
                store.run_dir(job).take(name)
            config = store.checked(job)
            store.run_dir(job).create()
            replace_json(folder / SETTINGS, config.to_dict())
            arguments = [self.python, "-u", str(TRAIN), job.command, "--config", str(folder / SETTINGS)]
            if job.command in TRAININGS:
                arguments += ["--private", str(folder)]
            child = process.spawn(arguments, folder / LOG, process.environment(job.device))
        except (OSError, ValueError) as error:
            store.put(job, "failed", f"could not be started: {error}")
            return
        self.children[job.id] = child
        job.pid, job.identity = child.pid, process.identity(child.pid) or "ended"
        store.write(job)

    def settle(self, job: Job) -> None:
        """Bring the state of an active job up to what its process does."""
        if not job.active:
            return
        child = self.children.get(job.id)
        code = child.poll() if child is not None else None  # also takes the zombie away
        if child is not None and job.pid not in (None, child.pid):
            child, code = None, None  # of an earlier attempt: another server settled that one and started this
        if job.pid is None and not self._adopt(job):
            return
        if code is None and process.runs(job.pid, job.identity):
            if job.state == "preparing" and self.store.run_status(job).get("state") == "running":
                self.store.put(job, "running", "")
            return
        if child is not None and code is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = child.wait(5)  # it has ended between the two looks above, or a thread of it is about to
        self.children.pop(job.id, None)
        self._conclude(job, code)

    def ask_to_end(self, job: Job) -> None:
        """Have its process save what it can and end."""
        if self.store.run_status(job).get("state") == "running":
            self.store.run_dir(job).request("stop")
        elif job.pid is not None:
            # It is loading and has nothing to save; a signal also reaches it when it does not look at requests yet.
            process.end(job.pid)

    def _adopt(self, job: Job) -> bool:
        """Find the process of a start that was not written down; False while it may still show up."""
        pid = process.find(str(self.store.records / job.id / SETTINGS))
        known = process.identity(pid) if pid is not None else None
        if known is not None:
            job.pid, job.identity = pid, known
            self.store.write(job)
            return True
        since = self._waiting_since.setdefault(job.id, time.monotonic())
        return time.monotonic() - since > _GRACE[process.lists_arguments()]

    def _conclude(self, job: Job, code: int | None) -> None:
        store, status = self.store, self.store.run_status(job)
        job.result = {name: status[name] for name in KEPT if name in status} or job.result
        state, reason = verdict(job, status, code, store.log_file(job), store.result(job) is not None)
        job.wanted, job.pid, job.identity = "", None, ""
        self._waiting_since.pop(job.id, None)
        store.put(job, state, reason)
