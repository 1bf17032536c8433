"""The queue: who runs next, and what people ask of jobs. Any number of servers may call `tick` on one folder."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..config import TRAININGS, ConfigError, Settings, make_config
from ..settings import is_number
from . import process
from .job import ACTIVE, DEVICE, FINISHED, Job, JobError, new_id
from .runner import Runner
from .store import QUEUED, Store, queue_order

NAME_LENGTH = 80
_PLACES = ("only_inside", "run", "output")
"""Settings that say what a job may read and where it writes, not what it makes."""


class Queue(Store):
    """The jobs, and their processes."""

    @functools.cached_property
    def _runner(self) -> Runner:
        return Runner(self)

    # --- looking ---

    def actions(self, job: Job) -> list[str]:
        """Which of ACTIONS can be asked of it now."""
        return [name for name, states in ACTIONS.items() if job.state in states and not self._hindrance(job, name)]

    def waits(self, jobs: Iterable[Job] | None = None) -> dict[str, str]:
        """Id -> what a queued job waits for, in words; those that only wait for the next `tick` are missing.

        Args:
            jobs: all jobs, if the caller has them.
        """
        jobs = self.jobs() if jobs is None else list(jobs)
        sources, busy = {job.id: job for job in jobs}, {job.device: job for job in jobs if job.active}
        said = {}
        for job in jobs:
            source = sources.get(job.after)
            first = source if source is not None and source.state not in FINISHED else busy.get(job.device)
            if job.state == "queued" and first is not None:
                said[job.id] = f"waits for {first.name}" + (", which is paused" if first.state == "paused" else "")
        return said

    def readers(self, job: Job) -> list[Job]:
        """Jobs that read its result and have not ended for good."""
        return [each for each in self.jobs() if each.after == job.id and each.state not in (*FINISHED, "failed")]

    def same(self, config: Settings, name: str) -> Job | None:
        """The job that was made from these very settings, if it is still there."""
        command, wanted = config.command, _of_result(config.to_dict())
        named = (job for job in self.jobs() if job.command == command and job.name == (name or command))
        return next((job for job in named if _of_result(_settings_now(job)) == wanted), None)

    # --- changing ---

    def create(
        self,
        config: Settings,
        name: str = "",
        device: str = "cpu",
        after: str = "",
        stamp: str = "",
    ) -> Job:
        """Queue a job; its run folder is chosen here.

        Args:
            config: of its command; where it writes is set here.
            after: job whose result it reads; found here when that is a `prepare` job's dataset.
            stamp: of what it is made from, for `again`.

        Raises:
            JobError: on a name or device that cannot be.
            ConfigError: if no job is of this command.
        """
        command = config.command
        check_name(name)
        if not DEVICE.fullmatch(device):
            raise JobError(f"no device {device!r}: cpu, mps, cuda:0 …")
        if after:
            self.job(after)
        if command not in QUEUED:
            raise ConfigError(f"no job is a {command!r}: {', '.join(QUEUED)}")
        with self.turn():
            job_id = self._free_id(command, name)
            settings = dataclasses.replace(config, **self.own(command, job_id)).to_dict()
            order, after = self.next_order(), after or self._maker_of(settings.get("data", ""))
            job = Job(job_id, command, settings, device, name or command, order=order, created=time.time())
            job.after, job.stamp = after, stamp
            try:
                self.run_dir(job).create()
                self.write(job)
            except OSError:  # a full disk: leave nothing half-made
                for folder in (self.root, self.records):
                    shutil.rmtree(folder / job_id, ignore_errors=True)
                raise
        return job

    def _free_id(self, command: str, name: str) -> str:
        """One that nothing has: what somebody laid there before is no part of a new job."""
        while True:
            job_id = new_id(command, name)
            if not any(os.path.lexists(folder / job_id) for folder in (self.root, self.records)):
                return job_id

    def again(self, job_id: str, stamp: str) -> Job:
        """Queue a `prepare` job that has ended once more, because its pictures are others now.

        Raises:
            JobError: while a training reads its dataset, or when it has not ended.
        """
        with self.turn():
            job = self.job(job_id)
            if job.state not in ("done", "failed"):
                raise JobError(f"job {job.name} is {job.state}: only one that has ended can be made again")
            if reader := next((each for each in self.readers(job) if each.active), None):
                raise JobError(
                    f"the pictures of {job.name} have changed, and training {reader.name} reads its dataset: stop that "
                    "training or wait for its end, or give this dataset another name, which makes a new one"
                )
            # A dataset that is being made has no description: it is not to be taken for a finished one. Shards stay.
            for name in ("dataset.json", "report.txt", "report.json"):
                (self.dataset(job) / name).unlink(missing_ok=True)
            job.stamp, job.result = stamp, {}
            return self.put(job, "queued", "")

    def act(self, job_id: str, action: str, before: str = "") -> Job | None:
        """Do one of ACTIONS to a job; `before` (a job's id; empty = the end) is for `move`. Returns it as it is then.

        Raises:
            JobError: when the job is not in a state for it.
        """
        if action not in ACTIONS:
            raise JobError(f"no action {action!r}: {', '.join(ACTIONS)}")
        with self.turn():
            job = self.job(job_id)
            self._runner.settle(job)
            allowed = ACTIONS[action]
            if job.state not in allowed:
                raise JobError(f"job {job.name} is {job.state}: {action} needs one that is {' or '.join(allowed)}")
            if hindrance := self._hindrance(job, action):
                raise JobError(f"job {job.name}: {hindrance}")
            if action == "move":
                return self._move(job, before)
            return getattr(self, f"_{action}")(job)

    def rename(self, job_id: str, name: str) -> Job:
        """Call a job something else; its folder keeps its name.

        Raises:
            JobError: on a name that cannot be.
        """
        if not name.strip():
            raise JobError("a job needs a name")
        check_name(name)
        with self.turn():
            job = self.job(job_id)
            if not job.command:
                raise JobError(job.reason)  # damaged
            job.name = name.strip()
            self.write(job)
            return job

    def tick(self) -> list[Job]:
        """Settle jobs whose process has ended, start those whose turn it is; returns all, as `jobs` does.

        What goes wrong with one of them is raised when all others have had their turn.
        """
        if not self.records.is_dir():
            return []
        problems: list[Exception] = []
        with self.turn():
            jobs = self.jobs()
            for job in jobs:
                with _apart(problems):
                    self._runner.settle(job)
            busy, sources = {job.device for job in jobs if job.active}, {job.id: job for job in jobs}
            for job in jobs:
                with _apart(problems):
                    self._start_if_due(job, sources, busy)
        if problems:
            raise problems[0]
        return sorted(jobs, key=queue_order)

    def _start_if_due(self, job: Job, sources: dict[str, Job], busy: set[str]) -> None:
        """Start a queued job if its device is free and what it reads is there; `busy` then has its device."""
        if job.state != "queued":
            return
        source, named = sources.get(job.after), f"job {job.after}, whose result it reads,"
        if job.after and (source is None or source.state == "failed"):
            self.put(job, "failed", f"{named} has failed or was deleted")
        elif source is not None and source.state in FINISHED and not self.result(source):
            self.put(job, "failed", f"{named} is not finished: run its node again")
        elif job.device not in busy and (source is None or source.state in FINISHED):
            busy.add(job.device)
            self._runner.launch(job)

    # --- the actions ---

    def _hindrance(self, job: Job, action: str) -> str:
        """Why a job in a state for it cannot do this all the same; empty if it can."""
        if not job.command and action != "delete":
            return job.reason  # damaged
        if action in ("sample", "save") and job.command not in TRAININGS:
            return f"it makes a dataset, and has nothing to {action}"
        if action == "sample" and not job.settings.get("models"):
            return "it was started without the text encoder and autoencoder that draw samples"
        if action == "stop" and job.state == "paused" and not self.result(job):
            return "it has made nothing yet that could be used: resume or delete it"
        if action == "resume" and job.state in FINISHED:
            if job.command not in TRAININGS:
                return "its dataset is finished" if self.result(job) else ""
            return "it has taken all its steps" if _number(job, "step") >= _number(job, "steps") > 0 else ""
        return ""

    def _start(self, job: Job) -> Job:
        """To the front of the queue."""
        job.order = min(each.order for each in self.jobs()) - 1
        return self.put(job, "queued", "")

    def _resume(self, job: Job) -> Job:
        return self.put(job, "queued", "")

    _retry = _resume

    def _kill(self, job: Job) -> Job:
        """End the process now; what was not saved is lost."""
        job.wanted = job.wanted or "paused"
        self.put(job, "stopping", "ended without saving")
        if job.pid is not None and process.runs(job.pid, job.identity):
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
        waiting = [each.id for each in line]
        if before and before not in waiting:
            raise JobError(f"job {before!r} is not in the queue")
        at = waiting.index(before) if before else len(line)
        low = line[at - 1].order if at > 0 else (line[at].order - 2 if line else job.order)
        high = line[at].order if at < len(line) else low + 2
        job.order = (low + high) / 2
        return self.put(job, job.state, job.reason)

    def _delete(self, job: Job) -> None:
        if reader := next(iter(self.readers(job)), None):
            raise JobError(f"job {reader.name}, which is {reader.state}, reads what {job.name} made: delete that first")
        self.remove(job)

    def _end(self, job: Job, wanted: str) -> Job:
        if not job.active:
            # In the queue, or paused: there is nothing to end, and nothing is done as long as nothing is made.
            enough = wanted == "stopped" and self.result(job)
            return self.put(job, *(("stopped", "by you") if enough else ("paused", "taken out of the queue by you")))
        job.wanted = wanted
        self.put(job, "stopping", "saves and ends")
        self._runner.ask_to_end(job)
        return job

    _stop = functools.partialmethod(_end, wanted="stopped")
    _pause = functools.partialmethod(_end, wanted="paused")

    # --- places ---

    def _maker_of(self, data: str) -> str:
        """Id of the `prepare` job whose dataset this folder is; empty if it is none."""
        for job in self.jobs():
            if job.command == "prepare" and Path(data).parent.name == job.id:
                # By its name first: to look at the links of every job's folder takes long.
                return job.id if Path(data).resolve() == self.dataset(job).resolve() else ""
        return ""


ACTIONS: dict[str, tuple[str, ...]] = {
    "start": ("queued",),
    "stop": ("queued", "preparing", "running", "paused", "stopping"),
    "pause": ("queued", "preparing", "running"),
    "resume": ("paused", *FINISHED),
    "retry": ("failed",),
    "move": ("queued",),
    "delete": ("queued", "paused", *FINISHED, "failed"),
    "sample": ("running",),
    "save": ("running",),
    "kill": ACTIVE,
}
"""What can be asked of a job, and the states in which it can; `Queue.actions` knows what hinders one besides."""


@contextlib.contextmanager
def _apart(problems: list[Exception]) -> Iterator[None]:
    """Put what goes wrong with one job aside, so that the others have their turn."""
    try:
        yield
    except Exception as error:
        problems.append(error)


def check_name(name: str) -> None:
    """Raises JobError on a name that is not a plain word or few, such as one with separators of paths."""
    if len(name) > NAME_LENGTH or not name.isprintable() or any(mark in name for mark in '/\\:<>"|?*') or ".." in name:
        raise JobError(
            f"the name {name[:NAME_LENGTH]!r} cannot be: use up to {NAME_LENGTH} letters, digits, spaces and dashes"
        )


def _settings_now(job: Job) -> dict[str, Any]:
    """Its settings as this version says them; as they are if it does not take them."""
    try:
        return make_config(job.command, job.settings).to_dict()
    except ConfigError:
        return job.settings


def _of_result(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in _PLACES}


def _number(job: Job, name: str) -> float:
    """A count in the kept status; 0 where it is missing or damaged."""
    value = job.result.get(name)
    return value if is_number(value) else 0
