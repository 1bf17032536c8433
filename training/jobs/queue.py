"""The queue: who runs next, what became of those that ran, and what people ask of them.

All state is in the folder, and everything that changes it happens in a turn of its lock: any number of servers may
hold a `Queue` on one folder and call `tick`, which starts and settles jobs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..config import TRAININGS, make_config
from ..run_dir import RunDir, RunDirError
from . import process
from .job import ACTIVE, DEVICE, FILE, IDENTIFIER, Job, JobError, new_id, read_job, replace_json, write_job
from .lock import turn
from .verdict import verdict

TRAIN = Path(__file__).resolve().parents[1] / "train.py"
SETTINGS, LOG = "settings.json", "process.log"
NAME_LENGTH = 80
_OWN = {"prepare": ("output", "dataset")}
"""Setting of a command that names what it writes, and where that is in the job's folder; else `run`, the folder."""
_GRACE = 120.0
"""Seconds after which a start whose process nobody saw is given up (its server died in that very moment)."""
_KEPT = ("step", "steps", "loss", "export", "checkpoint", "message", "memory", "seconds_per_step")


class Queue:
    """The jobs of one folder.

    Args:
        root: folder of the job folders; made with the first job.
        python: interpreter that trains.
    """

    def __init__(self, root: str | Path, python: str = sys.executable):
        self.root, self.python = Path(root), python
        self._children: dict[str, subprocess.Popen] = {}
        self._waiting_since: dict[str, float] = {}
        self._cache: dict[str, tuple[tuple, Job]] = {}
        self._thread_lock = threading.RLock()

    # --- looking ---

    def jobs(self) -> list[Job]:
        """All jobs: active ones, then the queue in its order, then the rest, newest first."""
        with self._thread_lock:
            found = []
            with contextlib.suppress(FileNotFoundError), os.scandir(self.root) as entries:
                for entry in entries:
                    if IDENTIFIER.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                        with contextlib.suppress(JobError):
                            found.append(self._read(entry.name))
            self._cache = {job.id: self._cache[job.id] for job in found if job.id in self._cache}
            return sorted(found, key=_place)

    def job(self, job_id: str) -> Job:
        """One job. Raises JobError when there is none of that id."""
        if not IDENTIFIER.fullmatch(job_id) or (self.root / job_id).is_symlink():
            raise JobError(f"there is no job {job_id!r}")
        with self._thread_lock:
            return self._read(job_id)

    def run_dir(self, job: Job) -> RunDir:
        """The folder of a job as a run."""
        return RunDir(self.root / job.id)

    def log_file(self, job: Job) -> Path:
        """What its process printed."""
        return self.root / job.id / LOG

    def dataset(self, job: Job) -> Path:
        """Where a `prepare` job leaves its dataset and the report."""
        return self.root / job.id / _OWN["prepare"][1]

    def status(self, job: Job) -> dict[str, Any]:
        """How far it is: the run's own status while a process runs, what was kept of it afterwards."""
        if not job.active:
            return dict(job.result)
        status = self._run_status(job)
        return status if status.get("pid") == job.pid else dict(job.result)

    # --- changing ---

    def create(
        self, command: str, settings: dict[str, Any], name: str = "", device: str = "cpu", after: str = ""
    ) -> Job:
        """Queue a job; its run folder is chosen here.

        Raises:
            JobError: on a name or device that cannot be.
            ConfigError: on settings that the command does not take.
        """
        check_name(name)
        if not DEVICE.fullmatch(device):
            raise JobError(f"no device {device!r}: cpu, mps, cuda:0 …")
        if after:
            self.job(after)
        job_id = new_id(command, name)
        config = make_config(command, {**settings, **self._own(command, job_id)})
        with self._turn():
            order = max((job.order for job in self.jobs()), default=0.0) + 1
            job = Job(job_id, command, config.to_dict(), device, name or command, order=order, created=time.time())
            job.after = after
            RunDir(self.root / job_id).create()
            try:
                self._write(job)
            except OSError:  # a full disk: leave nothing half-made
                shutil.rmtree(self.root / job_id, ignore_errors=True)
                raise
        return job

    def same(self, command: str, settings: dict[str, Any], name: str) -> Job | None:
        """The job that was made from these very settings, if it is still there."""
        for job in self.jobs():
            if job.command == command and job.name == (name or command):
                wanted = make_config(command, {**settings, **self._own(command, job.id)}).to_dict()
                if job.settings == wanted:
                    return job
        return None

    def act(self, job_id: str, action: str, before: str = "") -> Job | None:
        """Do one of ACTIONS to a job; `before` (a job's id; empty = the end) is for `move`. Returns it as it is then.

        Raises:
            JobError: when the job is not in a state for it.
        """
        if action not in ACTIONS:
            raise JobError(f"no action {action!r}: {', '.join(ACTIONS)}")
        with self._turn():
            job = self.job(job_id)
            self._settle(job)
            allowed = ACTIONS[action]
            if job.state not in allowed:
                raise JobError(f"job {job.name} is {job.state}: {action} needs one that is {' or '.join(allowed)}")
            return getattr(self, f"_{action}")(job, before) if action == "move" else getattr(self, f"_{action}")(job)

    def tick(self) -> list[Job]:
        """Settle jobs whose process has ended, start those whose turn it is; returns all, as `jobs` does."""
        if not self.root.is_dir():
            return []
        with self._turn():
            jobs = self.jobs()
            for job in jobs:
                self._settle(job)
            busy = {job.device for job in jobs if job.active}
            states = {job.id: job.state for job in jobs}
            for job in jobs:
                if job.state != "queued" or job.device in busy:
                    continue
                if job.after and states.get(job.after) != "done":
                    if states.get(job.after) in (None, "failed"):
                        self._put(job, "failed", f"job {job.after}, whose result it reads, has failed or was deleted")
                    continue
                self._launch(job)
                busy.add(job.device)
            return sorted(jobs, key=_place)

    # --- the actions ---

    def _start(self, job: Job) -> Job:
        """To the front of the queue."""
        job.order = min(each.order for each in self.jobs()) - 1
        return self._put(job, "queued", "")

    def _resume(self, job: Job) -> Job:
        if job.state == "done" and job.result.get("step", 0) >= job.result.get("steps", 0):
            raise JobError(f"job {job.name} has taken all its steps")
        return self._put(job, "queued", "")

    def _retry(self, job: Job) -> Job:
        if not job.command:
            raise JobError(f"job {job.name}: {job.reason}")
        return self._put(job, "queued", "")

    def _stop(self, job: Job) -> Job:
        return self._end(job, "done")

    def _pause(self, job: Job) -> Job:
        return self._end(job, "paused")

    def _kill(self, job: Job) -> Job:
        """End the process now; what was not saved is lost."""
        job.wanted = job.wanted or "paused"
        self._put(job, "stopping", "ended without saving")
        if process.runs(job.pid, job.identity):
            process.end(job.pid, force=True)
        return job

    def _sample(self, job: Job) -> Job:
        self.run_dir(job).request("sample")
        return job

    def _save(self, job: Job) -> Job:
        self.run_dir(job).request("save")
        return job

    def _move(self, job: Job, before: str) -> Job:
        line = [each for each in self.jobs() if each.state == "queued" and each.id != job.id]
        places = [each.id for each in line]
        if before and before not in places:
            raise JobError(f"job {before!r} is not in the queue")
        at = places.index(before) if before else len(line)
        low = line[at - 1].order if at > 0 else (line[at].order - 2 if line else job.order)
        high = line[at].order if at < len(line) else low + 2
        job.order = (low + high) / 2
        return self._put(job, job.state, job.reason)

    def _delete(self, job: Job) -> None:
        """Its whole folder: moved aside first, so that it is gone in one go."""
        folder = self.root / job.id
        grave = self.root / f".deleted-{job.id}-{secrets.token_hex(3)}"
        folder.rename(grave)
        shutil.rmtree(grave, ignore_errors=True)
        self._cache.pop(job.id, None)

    def _end(self, job: Job, wanted: str) -> Job:
        if not job.active:
            # Never started, or paused: there is nothing to end.
            return self._put(job, wanted, "stopped by you" if wanted == "done" else "taken out of the queue by you")
        job.wanted = wanted
        self._put(job, "stopping", "saves and ends")
        run = self.run_dir(job)
        if self._run_status(job).get("state") == "running":
            run.request("stop")
        elif job.pid is not None:
            # It is loading and has nothing to save; a signal also reaches it when it does not look at requests yet.
            process.end(job.pid)
        return job

    # --- the process ---

    def _launch(self, job: Job) -> None:
        folder = self.root / job.id
        job.pid, job.identity, job.wanted = None, "", ""
        job.attempt += 1
        self._put(job, "preparing", "")
        try:
            for name in self.run_dir(job).requests():
                self.run_dir(job).take(name)
            replace_json(folder / SETTINGS, job.settings)
            arguments = [self.python, "-u", str(TRAIN), job.command, "--config", str(folder / SETTINGS)]
            child = process.spawn(arguments, folder / LOG, process.environment(job.device))
        except OSError as error:
            self._put(job, "failed", f"could not be started: {error}")
            return
        self._children[job.id] = child
        job.pid, job.identity = child.pid, process.identity(child.pid) or "ended"
        self._write(job)

    def _settle(self, job: Job) -> None:
        """Bring the state of an active job up to what its process does."""
        if not job.active:
            return
        child = self._children.get(job.id)
        code = child.poll() if child is not None else None  # also takes the zombie away
        if job.pid is None and not self._adopt(job):
            return
        if code is None and process.runs(job.pid, job.identity):
            quiet = job.command not in TRAININGS  # has no status of its own
            if job.state == "preparing" and (quiet or self.status(job).get("state") == "running"):
                self._put(job, "running", "")
            return
        if child is not None:
            code = child.wait()  # it may have ended between the two looks above
        self._children.pop(job.id, None)
        self._conclude(job, code)

    def _adopt(self, job: Job) -> bool:
        """Find the process of a start that was not written down; False while it may still show up."""
        pid = process.find(str(self.root / job.id / SETTINGS))
        known = process.identity(pid) if pid is not None else None
        if known is not None:
            job.pid, job.identity = pid, known
            self._write(job)
            return True
        since = self._waiting_since.setdefault(job.id, time.monotonic())
        return time.monotonic() - since > _GRACE or process.lists_arguments()

    def _conclude(self, job: Job, code: int | None) -> None:
        status = self._run_status(job)
        ours = status if status.get("pid") == job.pid else {}
        job.result = {name: ours[name] for name in _KEPT if name in ours} or job.result
        state, reason = verdict(job, ours, code, self.log_file(job))
        job.wanted, job.pid, job.identity = "", None, ""
        self._waiting_since.pop(job.id, None)
        self._put(job, state, reason)

    def _run_status(self, job: Job) -> dict[str, Any]:
        """The run's status; nothing when there is none or it is damaged."""
        try:
            status = self.run_dir(job).read_status()
        except (RunDirError, OSError):
            return {}
        return status if isinstance(status, dict) else {}

    # --- files ---

    def _own(self, command: str, job_id: str) -> dict[str, str]:
        """The setting that says where the job writes: in its own folder."""
        name, place = _OWN.get(command, ("run", ""))
        return {name: str(self.root / job_id / place)}

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        self.root.mkdir(parents=True, exist_ok=True)
        with self._thread_lock, turn(self.root / ".lock"):
            yield

    def _put(self, job: Job, state: str, reason: str) -> Job:
        job.state, job.reason = state, reason
        self._write(job)
        return job

    def _write(self, job: Job) -> None:
        write_job(self.root / job.id, job)
        self._cache.pop(job.id, None)

    def _read(self, job_id: str) -> Job:
        """A copy of a job, parsed again only when its file was replaced. Copies share `settings` and `result`."""
        folder = self.root / job_id
        try:
            info = os.stat(folder / FILE)
            stamp = (info.st_mtime_ns, info.st_ino, info.st_size)
        except OSError:
            stamp = ()
        kept = self._cache.get(job_id)
        if kept is None or kept[0] != stamp or not stamp:
            kept = self._cache[job_id] = (stamp, read_job(folder))
        return dataclasses.replace(kept[1])


ACTIONS: dict[str, tuple[str, ...]] = {
    "start": ("queued",),
    "stop": ("queued", "preparing", "running", "paused", "stopping"),
    "pause": ("queued", "preparing", "running"),
    "resume": ("paused", "done"),
    "retry": ("failed",),
    "move": ("queued",),
    "delete": ("queued", "paused", "done", "failed"),
    "sample": ("running",),
    "save": ("running",),
    "kill": ACTIVE,
}
"""What can be asked of a job, and the states in which it can."""


def check_name(name: str) -> None:
    """Raises JobError on a name that is not a plain word or few, such as one with separators of paths."""
    if len(name) > NAME_LENGTH or not name.isprintable() or any(mark in name for mark in '/\\:<>"|?*') or ".." in name:
        raise JobError(
            f"the name {name[:NAME_LENGTH]!r} cannot be: use up to {NAME_LENGTH} letters, digits, spaces and dashes"
        )


def _place(job: Job) -> tuple:
    if job.active:
        return (0, job.order)
    return (1, job.order) if job.state == "queued" else (2, -job.order)
