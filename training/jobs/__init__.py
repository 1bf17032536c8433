"""Trainings as background jobs: a queue on disk, one running job per device. Standard library only.

A job is a run folder (training/run_dir.py) that also holds

job.json        what was asked for, the state and its reason, which process runs it; replaced whole
settings.json   what `training/train.py COMMAND --config` is given
process.log     everything the process printed

so that a server which starts later, or a second one beside it, finds every job as it is.
"""

from . import process
from .job import ACTIVE, STATES, Job, JobError, NoSuchJob
from .metrics import read_metrics
from .queue import ACTIONS, Queue
from .runner import TRAIN
from .verdict import count_of, last_line, plain_text

__all__ = [
    "ACTIONS",
    "ACTIVE",
    "STATES",
    "TRAIN",
    "Job",
    "JobError",
    "NoSuchJob",
    "Queue",
    "count_of",
    "last_line",
    "plain_text",
    "process",
    "read_metrics",
]
