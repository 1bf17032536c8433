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

from ..settings import is_number as is_number
from . import process as process
from .imported import import_jobs as import_jobs
from .job import ACTIVE as ACTIVE
from .job import STATES as STATES
from .job import Job as Job
from .job import JobError as JobError
from .job import NoSuchJob as NoSuchJob
from .metrics import read_metrics as read_metrics
from .queue import ACTIONS as ACTIONS
from .queue import Queue as Queue
from .queue import check_name as check_name
from .runner import TRAIN as TRAIN
from .verdict import count_of as count_of
from .verdict import last_line as last_line
from .verdict import plain_text as plain_text
