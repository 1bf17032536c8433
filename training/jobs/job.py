"""One job, and the file that keeps it."""

from __future__ import annotations

import dataclasses
import json
import re
import secrets
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from ..settings import is_number
from ..storage import patiently, replace_json

STATES = ("queued", "preparing", "running", "paused", "stopping", "stopped", "done", "failed")
ACTIVE = ("preparing", "running", "stopping")
"""States in which a process exists."""
ENDED = ("paused", "stopped", "done", "failed")
"""States in which there is no process, and nothing is waited for."""
FINISHED = ("done", "stopped")
"""States in which its result can be read: it took all its steps, or a person said that these are enough. (A version
before called both done.)"""
FILE = "job.json"
_FILE_LIMIT = 1 << 20
"""Largest size in bytes: settings come in a request of 64 KiB, or are those of a node."""
_LARGEST = 2**53
"""Largest number in it: what every reader of JSON still knows exactly."""
IDENTIFIER = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
DEVICE = re.compile(r"cpu|mps|(cuda|xpu):\d{1,2}")


class JobError(ValueError):
    """Something that a job cannot be or do now; the message says what can be done."""


class NoSuchJob(JobError):
    """A job that does not exist, or no more."""


@dataclass
class Job:
    """What job.json holds. `settings` and `result` are replaced and never changed: copies of a job share them."""

    id: str
    command: str
    """One of training.config.COMMANDS."""
    settings: dict[str, Any]
    device: str
    """cpu, mps, cuda:N or xpu:N, N counted over the whole machine: one job at a time runs on each."""
    name: str = ""
    """What the person called it."""
    state: str = "queued"
    reason: str = ""
    """Why it is in this state, for people."""
    order: float = 0.0
    """Order in the queue: the smallest goes first. When it ends it gets the largest, so that what ended last is known.
    A number of its own, since clocks go back."""
    created: float = 0.0
    """Unix time, to show."""
    after: str = ""
    """Job whose result this one reads: it starts when that one is done, and fails when that one fails."""
    stamp: str = ""
    """A digest of what it was made from (a dataset's pictures), to see whether that has changed since."""
    wanted: str = ""
    """While stopping: the state to end in (paused or stopped; a version before wrote done for the latter)."""
    pid: int | None = None
    identity: str = ""
    """The process's identity (`process.identity`): a process of that number with another one is not ours."""
    attempt: int = 0
    """How often its process was started."""
    result: dict[str, Any] = field(default_factory=dict)
    """The last status of the run, kept when the process has ended."""

    @property
    def active(self) -> bool:
        return self.state in ACTIVE


def _plain(kind: Any) -> Any:
    return int | float if kind is float else get_origin(kind) if get_origin(kind) is dict else kind


_TYPES = {name: _plain(kind) for name, kind in get_type_hints(Job).items()}
"""Field -> what `isinstance` wants."""


def new_id(command: str, name: str) -> str:
    """A folder name nobody has: from the name as far as its letters are plain, and a random end."""
    plain = unicodedata.normalize("NFKD", name or command).encode("ascii", "ignore").decode().lower()
    slug = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:40].strip("-")
    return f"{slug or command}-{secrets.token_hex(3)}"


def read_job(folder: Path) -> Job:
    """The job of a folder; one whose file is damaged comes out as failed, so that it can be seen and deleted.

    Raises:
        NoSuchJob: if the folder holds none.
    """
    try:
        with patiently(lambda: (folder / FILE).open("rb")) as file:
            job = Job(**json.loads(file.read(_FILE_LIMIT), parse_constant=_refuse))
        _check(job, folder.name)
        return job
    except (OSError, ValueError, TypeError, RecursionError) as error:
        if not (folder / FILE).exists():
            raise NoSuchJob(f"there is no job {folder.name}: it was deleted") from None
        reason = f"{FILE} cannot be read ({str(error)[:200]}): delete the job"
        return Job(folder.name, "", {}, "cpu", folder.name, "failed", reason)


def _refuse(constant: str) -> None:
    raise ValueError(f"it holds {constant}")


def _check(job: Job, name: str) -> None:
    """Raises ValueError on a job that is not this folder's, or on a field of another type than it has."""
    for each, kind in _TYPES.items():
        value = getattr(job, each)
        number = isinstance(value, (int, float))
        if not isinstance(value, kind) or number and not (is_number(value) and abs(value) <= _LARGEST):
            raise ValueError(f"{each} is of another kind")
    if job.id != name or job.state not in STATES:
        raise ValueError("it is not a job of this folder")
    if not DEVICE.fullmatch(job.device):
        raise ValueError(f"device is {job.device[:20]!r}")


def write_job(folder: Path, job: Job) -> None:
    """Replace job.json whole: a reader, or a full disk, never leaves half a file."""
    replace_json(folder / FILE, dataclasses.asdict(job))
