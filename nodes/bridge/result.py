"""What a training left, as the objects that ComfyUI works with."""

from __future__ import annotations

from comfy_execution.graph_utils import ExecutionBlocker

from ...training.jobs import Job, JobError
from . import jobs
from .control import load_control
from .model import apply_lora, load_model
from .sampling import watch_sampling
from .training import find_job, newest_export


def load_result(job: Job, dtype: str, strength: float):
    """MODEL and CONTROL_NET of a job's newest export; the base where the export is a LoRA or a ControlNet.

    Raises:
        JobError: while there is no export.
    """
    file = newest_export(job)
    if file is None:
        how = jobs.describe(job)
        raise JobError(f"{how}: there is no result yet. Wait for its end, or stop it, which saves")
    if file.stem == "controlnet":
        return watch_sampling(load_model(job.settings["base"], dtype)), load_control(str(file), dtype)
    none = ExecutionBlocker(f"training {job.name} is no ControlNet: it has a MODEL alone")
    if file.stem == "lora":
        model = watch_sampling(load_model(job.settings["base"], dtype))
        return apply_lora(model, str(file), strength), none
    return watch_sampling(load_model(str(file), dtype)), none


def result_stamp(text: str) -> str:
    """Changes when the export of `find_job(text)` does, so that ComfyUI loads it again."""
    job = find_job(text, exported=True)
    file = newest_export(job)
    return f"{job.id} {file.stat().st_mtime_ns if file else None}"
