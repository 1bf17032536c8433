"""A training by its id, and what it left: its losses, and its result as the objects that ComfyUI works with."""

from __future__ import annotations

import logging
from pathlib import Path

from comfy_execution.graph_utils import ExecutionBlocker

from ...training.config import TRAININGS
from ...training.jobs import Job, JobError, read_metrics
from ..bridge.control_net import load_control
from ..bridge.guider import watch_sampling
from ..bridge.model import apply_lora, load_model
from . import queue as jobs

log = logging.getLogger(__name__)


def find_job(text: str, exported: bool = False) -> Job:
    """The job of an id; with an empty text the newest training, or the newest with a result.

    Raises:
        JobError: when there is none.
    """
    if text.strip():
        return jobs.queue().job(text.strip())
    trainings = (job for job in jobs.queue().jobs() if job.command in TRAININGS)
    found = [job for job in trainings if not exported or newest_export(job)]
    if not found:
        raise JobError("there is no training" + (" with a result yet" if exported else "") + ": run one first")
    return max(found, key=lambda job: job.created)


NEWEST = "the newest"


def results() -> list[str]:
    """What a node that uses results offers: the newest, then the trainings that have one, newest first."""
    found = [job for job in jobs.queue().jobs() if newest_export(job)]
    return [NEWEST, *(f"{job.name} ({job.id})" for job in sorted(found, key=lambda job: -job.created))]


def chosen(job: str, result: str) -> str:
    """The id that a node's inputs name: `job`, or else the entry of `results`, whatever it was called then."""
    return job.strip() or ("" if result == NEWEST else result.rsplit("(", 1)[-1].rstrip(")"))


def newest_export(job: Job) -> Path | None:
    """The file that a training wrote last for use elsewhere."""
    return jobs.queue().result(job) if job.command in TRAININGS else None


def read_loss(job: Job) -> tuple[list[int], list[float | None], list[list[float | None]]]:
    """Steps of a job, its losses, and those on what it holds out, for a plot: of all timesteps, and of four bands, the
    least noisy first."""
    columns = read_metrics(jobs.queue().run_dir(job).path / "metrics.jsonl")["columns"]
    steps = columns.get("step", [])
    held_out = ("validation", *(f"validation_{band}" for band in range(1, 5)))
    return steps, columns.get("loss", []), [columns.get(name, [None] * len(steps)) for name in held_out]


def awaited(job: Job) -> str:
    """What is said of a job that is on its way to its first result; "" where there is one, or none to come."""
    if newest_export(job) is not None or not (job.active or job.state == "queued"):
        return ""
    return f"{jobs.describe(job)}\nNo result yet: what is behind this node waits. Run again when there is one."


def load_result(job: Job, dtype: str, strength: float):
    """What is said of a job's newest export, its MODEL and CONTROL_NET; the base where it is a LoRA or a ControlNet.

    Raises:
        JobError: while there is no export.
    """
    file = newest_export(job)
    if file is None:
        raise JobError(f"{jobs.describe(job)}: there is no result yet. Wait for its end, or stop it, which saves")
    on_base = file.stem in ("lora", "controlnet")
    loaded = f"Loaded {file.name} of {job.name} ({job.command}, {job.id})."
    log.info(loaded)
    text = f"{jobs.describe(job)}\n{loaded}"
    model = watch_sampling(load_model(job.settings["base"] if on_base else str(file), dtype))
    if file.stem == "controlnet":
        return text, model, load_control(str(file), dtype)
    if file.stem == "lora":
        model = apply_lora(model, str(file), strength)
    return text, model, ExecutionBlocker(f"training {job.name} is no ControlNet: it has a MODEL alone")


def result_stamp(text: str) -> str:
    """Changes when the export of `find_job(text)` does, so that ComfyUI loads it again."""
    job = find_job(text, exported=True)
    file = newest_export(job)
    return f"{job.id} {file.stat().st_mtime_ns if file else None}"
