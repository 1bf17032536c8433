"""Trainings as background jobs: a queue on disk, one running job per device. Standard library only.

A job has a run folder (training/run_dir.py), where others may write, and a record, where only we do:

job.json        what was asked for, the state and its reason, which process runs it; replaced whole
settings.json   what `training/train.py COMMAND --config` is given
status.json     what the process says of itself
control/        what it is asked for
process.log     everything the process printed

so that a server which starts later, or a second one beside it, finds every job as it is. Nothing in a run folder starts
a job or changes what it does; settings and paths are checked again before every start.
"""

from ..settings import is_number
from . import process
from .imported import import_jobs
from .job import ACTIVE, STATES, Job, JobError, NoSuchJob
from .metrics import read_metrics
from .queue import ACTIONS, Queue, check_name
from .runner import TRAIN
from .verdict import count_of, last_line, plain_text

__all__ = [
    "ACTIONS",
    "ACTIVE",
    "STATES",
    "TRAIN",
    "check_name",
    "Job",
    "JobError",
    "NoSuchJob",
    "Queue",
    "count_of",
    "import_jobs",
    "is_number",
    "last_line",
    "plain_text",
    "process",
    "read_metrics",
]
