"""What the training nodes do: settings to a job, a job to texts, pictures and the file to load."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import comfy.model_management as memory
from comfy_execution.utils import get_executing_context

from ...training.config import COMMANDS, ConfigError, load_config
from ...training.jobs import TRAIN, Job, JobError, process, read_metrics
from . import jobs
from .estimate import estimate_text
from .paths import checked_settings, inside_roots

_POLL = 0.25
_REPORT_PATIENCE = 600.0
"""Seconds to wait for the look at the pictures of a large dataset; the job goes on in any case."""
_PLACEHOLDER = "chosen-by-the-queue"


def start_training(command: str, name: str, values: dict[str, Any], more: str, estimate_only: bool,
                   free: bool) -> tuple[str, str]:
    """Queue a training, or find the one that was made from the same settings.

    Args:
        values: settings; `base` and `models` may be names of `files.names`, `data` a job's dataset.
        more: further settings, a key=value a line.
        estimate_only: run the trainer's own check instead, which takes one real step and writes nothing.

    Returns:
        The job's id (empty with estimate_only), and a text about it.

    Raises:
        ConfigError, PathError, JobError: naming the setting that is wrong.
    """
    data, after = _dataset(values["data"])
    settings = _settings(command, {**values, "data": str(data)}, more, known=data)
    if estimate_only and not after:
        return "", _dry_run(command, settings)
    expected = estimate_text(command, settings, data)
    if estimate_only:
        return "", f"{expected}\nThe dataset is not ready yet: run this again to also try one real step."
    if free:
        jobs.free_memory()
    job = _queue(command, settings, name, after)
    return job.id, f"{jobs.describe(jobs.view(job))}\n{expected}"


def prepare_dataset(name: str, values: dict[str, Any], more: str) -> tuple[str, str, str]:
    """Queue the caching of a folder's features and wait for what it says about the pictures.

    Returns:
        Folder of the dataset, report, job id. The encoding goes on in the background.

    Raises:
        ValueError: if no picture can be used.
    """
    job = _queue("prepare", _settings("prepare", values, more), name, "")
    folder = jobs.queue().dataset(job)
    report, started = folder / "report.txt", time.monotonic()
    while not report.exists() and job.state in ("preparing", "running", "queued"):
        memory.throw_exception_if_processing_interrupted()
        if time.monotonic() - started > _REPORT_PATIENCE or job.state == "queued" and _waits(job):
            break
        time.sleep(_POLL)
        job = jobs.queue().job(job.id)
    if job.state == "failed":
        raise ValueError(f"{job.name}: {job.reason}")
    text = report.read_text(encoding="utf-8") if report.exists() else "It waits in the queue; run this again later.\n"
    return str(folder), f"{text}{jobs.describe(jobs.view(job))}", job.id


def _waits(job: Job) -> bool:
    """Whether something else runs where this job is to run."""
    return any(other.active and other.device == job.device for other in jobs.queue().jobs())


def find_job(text: str, commands: tuple[str, ...] | None = None, exported: bool = False) -> Job:
    """The job of an id; with an empty text the newest one that fits.

    Raises:
        JobError: when there is none.
    """
    if text.strip():
        return jobs.queue().job(text.strip())
    found = [job for job in jobs.queue().jobs() if job.command and (commands is None or job.command in commands)
             and (not exported or newest_export(job))]
    if not found:
        raise JobError("there is no training" + (" with a result yet" if exported else "") + ": run one first")
    return max(found, key=lambda job: job.created)


def newest_export(job: Job) -> Path | None:
    """The file that a training wrote last for use elsewhere."""
    folder = jobs.queue().run_dir(job).path / "exports"
    files = [file for file in folder.glob("*.safetensors") if file.is_file() and not file.is_symlink()]
    return max(files, key=lambda file: file.stat().st_mtime_ns, default=None)


def read_loss(job: Job) -> tuple[list[int], list[float | None]]:
    """Steps and losses of a job for a plot."""
    columns = read_metrics(jobs.queue().run_dir(job).path / "metrics.jsonl")["columns"]
    return columns.get("step", []), columns.get("loss", [])


def follow(job_id: str) -> None:
    """Show the job's progress under the node that is running, now and later."""
    context = get_executing_context()
    if context is not None and job_id:
        jobs.watcher().follow(job_id, context.node_id)


def _settings(command: str, values: dict[str, Any], more: str, known: Path | None = None) -> dict[str, Any]:
    """Settings of a node as the trainer's own reader understands them, with checked paths."""
    names = [each.name for each in fields(COMMANDS[command])]
    own = "output" if command == "prepare" else "run"
    lines = [line.strip() for line in more.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    asked = {line.partition("=")[0].strip() for line in lines}
    if taken := sorted(asked & {"run", "output", *values}):
        raise ConfigError(f"{taken[0]} is an input of the node: set it there, not in more_settings")
    texts = [f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in values.items()]
    lines = [f"{name.strip()}={value.strip()}" for name, _, value in (line.partition("=") for line in lines)]
    config = load_config(command, None, [*texts, *lines, f"{own}={_PLACEHOLDER}"]).to_dict()
    chosen = {name: config[name] for name in names if name in asked | set(values)}
    data = {"data": str(known)} if known else {}
    return checked_settings(command, {key: value for key, value in chosen.items() if key not in data}) | data


def _dataset(text: str) -> tuple[Path, str]:
    """Folder of prepared features, and the job that makes it if that is not done."""
    for job in jobs.queue().jobs():
        if job.command == "prepare" and text in (job.id, str(jobs.queue().dataset(job))):
            return jobs.queue().dataset(job), "" if job.state == "done" else job.id
    if not text.strip():
        raise ConfigError("dataset is not set: connect PixArt-δ Training Dataset, or name a prepared folder")
    return Path(inside_roots(text)), ""


def _queue(command: str, settings: dict[str, Any], name: str, after: str) -> Job:
    job = jobs.queue().same(command, settings, name)
    if job is None:
        job = jobs.queue().create(command, settings, name, jobs.device(), after)
    elif job.state == "failed":
        job = jobs.queue().act(job.id, "retry")
    jobs.watcher().wake()
    return job


def _dry_run(command: str, settings: dict[str, Any]) -> str:
    """What `train.py COMMAND --dry-run` says. Ends when the prompt is interrupted."""
    with tempfile.TemporaryDirectory(prefix="pixart_delta_") as folder:
        file, log = Path(folder) / "settings.json", Path(folder) / "log"
        file.write_text(json.dumps({**settings, "run": str(Path(folder) / "run")}), encoding="utf-8")
        arguments = [sys.executable, "-u", str(TRAIN), command, "--config", str(file), "--dry-run"]
        child = process.spawn(arguments, log, process.environment(jobs.device()))
        try:
            while child.poll() is None:
                memory.throw_exception_if_processing_interrupted()
                time.sleep(_POLL)
        finally:
            if child.poll() is None:
                process.end(child.pid, force=True)
                child.wait()
        text = log.read_text(encoding="utf-8", errors="replace").strip()
    if child.returncode:
        raise ConfigError(text.rpartition("error:")[2].strip() or f"the check ended with {child.returncode}")
    return text
