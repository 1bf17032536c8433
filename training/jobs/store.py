"""The records of jobs: reading them, writing them, and what each of them has left.

All state is in the records, and everything that changes it happens in a turn of their lock: any number of servers may
hold a `Store` on them. What a job makes is elsewhere, where others may write: nothing there says what a job is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..config import TRAININGS, ConfigError, Settings, make_config
from ..run_dir import RunDir, RunDirError
from ..storage import LockHeldError, locked
from .job import ENDED, FILE, IDENTIFIER, Job, JobError, NoSuchJob, read_job, write_job

SETTINGS, LOG = "settings.json", "process.log"
DATASET = "dataset"
"""Sub-folder of a `prepare` job: what it makes, and its report."""
PATIENCE = 10.0
"""Seconds that somebody else's turn may take: it is a few file operations."""
QUEUED = ("prepare", *TRAININGS)
"""Commands that a job can be."""


class Store:
    """Jobs: their records in one folder, and their run folders in another.

    Args:
        root: folder of the run folders; made with the first job.
        records: folder of the records, which only we write; made with the first job.
        check: settings as they may be started here, or ValueError: called before every start, because what a path
            leads to may be another thing than when the job was made.
    """

    def __init__(
        self,
        root: str | Path,
        records: str | Path,
        check: Callable[[Settings], Settings] | None = None,
    ):
        self.root, self.records, self._check = Path(root), Path(records), check
        self._cache: dict[str, tuple[tuple[int, ...], Job]] = {}
        self._thread_lock = threading.RLock()

    # --- jobs ---

    def jobs(self) -> list[Job]:
        """All jobs: active ones, then the queue in its order, then the rest, the last to end first."""
        with self._thread_lock:
            found = []
            with contextlib.suppress(FileNotFoundError), os.scandir(self.records) as entries:
                for entry in entries:
                    if IDENTIFIER.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                        with contextlib.suppress(JobError):
                            found.append(self._read(entry.name))
            self._cache = {job.id: self._cache[job.id] for job in found if job.id in self._cache}
            return sorted(found, key=queue_order)

    def job(self, job_id: str) -> Job:
        """One job. Raises NoSuchJob when there is none of that id."""
        if not IDENTIFIER.fullmatch(job_id) or (self.records / job_id).is_symlink():
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
        write_job(self.records / job.id, job)
        self._cache.pop(job.id, None)

    def next_order(self) -> float:
        """An order behind every job's."""
        return max((job.order for job in self.jobs()), default=0.0) + 1

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Alone among all servers and threads; whoever changes a job reads it in here first. The system takes a turn
        back when its holder dies.

        Raises:
            TimeoutError: if another process holds it for unusually long.
        """
        self.records.mkdir(parents=True, exist_ok=True)
        file = self.records / ".lock"
        with self._thread_lock, contextlib.ExitStack() as held:
            try:
                held.enter_context(locked(file, PATIENCE))
            except LockHeldError as error:
                raise TimeoutError(
                    f"{file} is held by another process for {PATIENCE:.0f} s: is another ComfyUI stuck?"
                ) from error
            yield

    def checked(self, job: Job) -> Settings:
        """Its settings, as they may be started now.

        Raises:
            ValueError: if they may not.
        """
        if job.command not in QUEUED:
            raise ConfigError(f"no job is a {job.command!r}: {', '.join(QUEUED)}")
        config = make_config(job.command, {**job.settings, **self.own(job.command, job.id)})
        return config if self._check is None else self._check(config)

    def own(self, command: str, job_id: str) -> dict[str, str]:
        """The settings that say where a job writes."""
        if command == "prepare":
            return {"run": str(self.records / job_id), "output": str(self.root / job_id / DATASET)}
        return {"run": str(self.root / job_id)}

    def _read(self, job_id: str) -> Job:
        """A copy of a job, parsed again only when its file was replaced. Copies share `settings` and `result`."""
        folder = self.records / job_id
        try:
            info = os.stat(folder / FILE)
            stamp: tuple[int, ...] = (info.st_mtime_ns, info.st_ino, info.st_size)
        except OSError:
            stamp = ()
        kept = self._cache.get(job_id)
        if kept is None or kept[0] != stamp or not stamp:
            kept = self._cache[job_id] = (stamp, read_job(folder))
        return dataclasses.replace(kept[1])

    # --- what they have left ---

    def run_dir(self, job: Job) -> RunDir:
        """The folder of a job as a run."""
        return RunDir(self.root / job.id, private=self.records / job.id)

    def log_file(self, job: Job) -> Path:
        """What its process printed."""
        return self.records / job.id / LOG

    def dataset(self, job: Job) -> Path:
        """Where a `prepare` job leaves its dataset and the report."""
        return self.root / job.id / DATASET

    def result(self, job: Job) -> Path | None:
        """The file that others can use: the description of a finished dataset, or what a training has exported last.

        A file that lies there says nothing: the job's process has to have said that it made it.
        """
        if job.command not in TRAININGS:
            if job.state != "done":
                return None
            file = self.dataset(job) / "dataset.json"
        else:
            name = Path(str(self.status(job).get("export") or job.result.get("export") or "")).name
            file = self.root / job.id / "exports" / name
        return file if file.is_file() and not file.is_symlink() else None

    def remove(self, job: Job) -> None:
        """Its record and its whole run folder: moved aside first, so that each is gone in one go.

        Raises:
            JobError: if something in them is in use; then all is as it was.
        """
        folders = [folder for folder in (self.root / job.id, self.records / job.id) if folder.is_dir()]
        graves = [folder.with_name(f".deleted-{job.id}-{secrets.token_hex(3)}") for folder in folders]
        moved: list[tuple[Path, Path]] = []
        try:
            for folder, grave in zip(folders, graves, strict=True):
                folder.rename(grave)
                moved.append((folder, grave))
        except PermissionError as error:  # Windows does not move a folder that holds an open file
            for folder, grave in moved:
                grave.rename(folder)
            raise JobError(
                f"job {job.name} cannot be deleted, because a file of it is in use ({error}): unload models that it "
                "made, close what shows its folder, and delete it again"
            ) from error
        for _, grave in moved:
            shutil.rmtree(grave, ignore_errors=True)
        self._cache.pop(job.id, None)

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


def queue_order(job: Job) -> tuple[int, float]:
    """Sorts jobs as `Store.jobs` does."""
    if job.active:
        return (0, job.order)
    return (1, job.order) if job.state == "queued" else (2, -job.order)
