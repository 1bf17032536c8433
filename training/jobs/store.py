"""The folder of jobs: reading them, writing them, and what each of them has left there.

All state is in the folder, and everything that changes it happens in a turn of its lock: any number of servers may
hold a `Store` on one folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..config import TRAININGS
from ..run_dir import RunDir, RunDirError
from .job import ENDED, FILE, IDENTIFIER, Job, JobError, NoSuchJob, read_job, write_job
from .lock import turn

SETTINGS, LOG = "settings.json", "process.log"
DATASET = "dataset"
"""Sub-folder of a `prepare` job: what it makes, and its report."""


class Store:
    """The jobs of one folder.

    Args:
        root: folder of the job folders; made with the first job.
    """

    def __init__(self, root: str | Path):
        self.root = Path(root)
        self._cache: dict[str, tuple[tuple, Job]] = {}
        self._thread_lock = threading.RLock()

    # --- jobs ---

    def jobs(self) -> list[Job]:
        """All jobs: active ones, then the queue in its order, then the rest, the last to end first."""
        with self._thread_lock:
            found = []
            with contextlib.suppress(FileNotFoundError), os.scandir(self.root) as entries:
                for entry in entries:
                    if IDENTIFIER.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                        with contextlib.suppress(JobError):
                            found.append(self._read(entry.name))
            self._cache = {job.id: self._cache[job.id] for job in found if job.id in self._cache}
            return sorted(found, key=place)

    def job(self, job_id: str) -> Job:
        """One job. Raises NoSuchJob when there is none of that id."""
        if not IDENTIFIER.fullmatch(job_id) or (self.root / job_id).is_symlink():
            raise NoSuchJob(f"there is no job {job_id!r}")
        with self._thread_lock:
            return self._read(job_id)

    def put(self, job: Job, state: str, reason: str) -> Job:
        """Change its state; one that ends goes behind all others."""
        if state in ENDED:
            job.order = self.next_order()
        job.state, job.reason = state, reason
        self.write(job)
        return job

    def write(self, job: Job) -> None:
        """Keep a job as it is now."""
        write_job(self.root / job.id, job)
        self._cache.pop(job.id, None)

    def next_order(self) -> float:
        """A place behind every job."""
        return max((job.order for job in self.jobs()), default=0.0) + 1

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Alone among all servers and threads; whoever changes a job reads it in here first."""
        self.root.mkdir(parents=True, exist_ok=True)
        with self._thread_lock, turn(self.root / ".lock"):
            yield

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

    # --- what they have left ---

    def run_dir(self, job: Job) -> RunDir:
        """The folder of a job as a run."""
        return RunDir(self.root / job.id)

    def log_file(self, job: Job) -> Path:
        """What its process printed."""
        return self.root / job.id / LOG

    def dataset(self, job: Job) -> Path:
        """Where a `prepare` job leaves its dataset and the report."""
        return self.root / job.id / DATASET

    def results(self, job: Job) -> list[Path]:
        """Files that others can use: the description of a finished dataset, or a training's exports."""
        if job.command not in TRAININGS:
            found = [self.dataset(job) / "dataset.json"]
        else:
            found = (self.root / job.id / "exports").glob("*.safetensors")
        return [file for file in found if file.is_file() and not file.is_symlink()]

    def status(self, job: Job) -> dict[str, Any]:
        """How far it is: the run's own status while a process runs, what was kept of it afterwards."""
        return self.run_status(job) or dict(job.result) if job.active else dict(job.result)

    def run_status(self, job: Job) -> dict[str, Any]:
        """The run's status; nothing when there is none, it is damaged, or another process wrote it."""
        try:
            status = self.run_dir(job).read_status()
        except (RunDirError, OSError):
            return {}
        ours = isinstance(status, dict) and job.pid is not None and status.get("pid") == job.pid
        return status if ours else {}


def place(job: Job) -> tuple[int, float]:
    """Sorts jobs as `Store.jobs` does."""
    if job.active:
        return (0, job.order)
    return (1, job.order) if job.state == "queued" else (2, -job.order)
