"""What the training nodes start: settings to a job, or the trainer's own check of them."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import comfy.model_management as memory

from ...training.config import COMMANDS, TRAININGS, ConfigError, make_training
from ...training.estimate import pick_recipe
from ...training.jobs import TRAIN, Job, check_name, process
from ...training.recipes import AUTO, RECIPES, recipe_values
from ...training.run_dir import RunDir
from ..bridge import files
from . import queue as jobs
from .estimate import Prepared, check_and_estimate
from .paths import checked_settings, inside_roots

_POLL = 0.25
_PLACEHOLDER = "chosen-by-the-queue"


def start_training(
    command: str,
    name: str,
    values: dict[str, Any],
    more: str,
    estimate_only: bool,
    free: bool,
    recipe: str = "",
) -> tuple[str, str]:
    """Queue a training, or find the one that was made from the same settings.

    Args:
        values: settings; `base` and `models` may be names of `files.names`, `data` a job's dataset.
        more: further settings, a key=value a line.
        estimate_only: run the trainer's own check instead, which takes one real step (unless a job has the device)
            and writes nothing.
        free: take ComfyUI's models off the device when the job is queued.
        recipe: name of one (`recipe.RECIPES`) whose settings count where `values` has the default; "auto" picks one;
            empty = none.

    Returns:
        The job's id (empty with estimate_only), and a text about it.

    Raises:
        ConfigError, PathError, JobError: naming the setting that is wrong.
        CheckpointError, DataError, DiskError, ImportError: what the job would fail with.
    """
    check_name(name)
    data = _dataset(values["data"])
    settings, about = _settings(command, {**values, "data": str(data.folder)}, more, recipe)
    busy = jobs.running_on(jobs.device())
    job, starts, expected = _checked(command, name, settings, data, not estimate_only)
    if estimate_only and data.ready and busy is None:
        return "", about + _dry_run(command, settings)
    if estimate_only:
        why = "The dataset is not ready yet" if busy is None else f"{busy.name} has the device now"
        return "", f"{about}{expected}\n{why}: run this again later to also try one real step."
    if job is None or starts:
        job = _queued(command, settings, name, job, free)
    return job.id, f"{jobs.describe(job)}\n{about}{expected}"


def start_form(command: str, name: str, values: dict[str, Any], check_only: bool, recipe: str = "") -> tuple[str, str]:
    """`start_training` from the panel's form.

    Args:
        values: settings that differ from the defaults, all as they come from a browser: every path is checked, `base`,
            `models` and `hed` may be names of `files.names`, `data` a job's dataset.
        check_only: only say what it will take.
        recipe: as of `start_training`.

    Returns, raises: as `start_training`.
    """
    check_name(name)
    data = _dataset(str(values.get("data", "")))
    settings, about = _settings(command, {**values, "data": str(data.folder)}, "", recipe)
    job, starts, expected = _checked(command, name, settings, data, not check_only)
    if check_only:
        return "", about + expected
    if job is None or starts:
        job = _queued(command, settings, name, job, free=False)
    return job.id, f"{jobs.describe(job)}\n{about}{expected}"


def _settings(command: str, values: dict[str, Any], more: str, recipe: str) -> tuple[dict[str, Any], str]:
    """Settings of a training whose dataset is known, with those of a recipe if one is named, and a line about what of
    it counts."""
    settings = node_settings(command, values, more, known=("data",))
    if not recipe:
        return settings, ""
    name, chosen = _recipe(command, recipe, settings)
    settings = node_settings(command, values, more, known=("data",), recipe=chosen)
    counts = [f"{key} {value}" for key, value in chosen.items() if settings.get(key) == value]
    return settings, f"recipe {name}: {', '.join(counts)}\n"


def _checked(
    command: str, name: str, settings: dict[str, Any], data: Prepared, start: bool
) -> tuple[Job | None, bool, str]:
    """The job that was made of these settings before, whether one is to be started, and what it will take. What would
    fail and is to be started is refused."""
    job = jobs.queue().same(command, settings, name)
    starts = start and (job is None or job.state == "failed")
    run = RunDir(jobs.queue().root / (name or command)) if job is None else jobs.queue().run_dir(job)
    config = make_training(command, {**settings, "run": _PLACEHOLDER})
    return job, starts, check_and_estimate(config, data, run, refuse=starts)


def form() -> dict[str, Any]:
    """What the panel's form is made of: the settings of each training, and what to choose files from."""
    made = [{"value": job.id, "text": job.name} for job in jobs.queue().jobs() if job.command == "prepare"]
    chosen = {"base": files.names("model"), "models": files.names("pipeline")}
    own = ("run", "output")
    return {
        "commands": {name: [row for row in COMMANDS[name].form() if row["name"] not in own] for name in TRAININGS},
        "names": {name: [{"value": each, "text": each} for each in names] for name, names in chosen.items()}
        | {"data": made},
        "recipes": [AUTO, *RECIPES],
    }


def node_settings(
    command: str,
    values: dict[str, Any],
    more: str,
    known: tuple[str, ...] = (),
    recipe: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Settings of a node, checked as the trainer does, with checked paths.

    Args:
        values, more: as in `start_training`.
        known: names of those in `values` whose paths need no check.
        recipe: settings that count where `values` has the default.
    """
    kind, own = COMMANDS[command], "output" if command == "prepare" else "run"
    lines = (line.strip() for line in more.splitlines())
    parts = (line.partition("=") for line in lines if line and not line.startswith("#"))
    written = [(name.strip(), text.strip()) for name, _, text in parts]
    if taken := sorted({name for name, _ in written} & {"run", "output", *values}):
        raise ConfigError(f"{taken[0]} is an input of the node: set it there, not in more_settings")
    changed = {name: value for name, value in values.items() if value != kind.default(name)}
    given = kind.upgraded(values | {**(recipe or {})} | changed | kind.parse(written))
    kind.make({**given, own: _PLACEHOLDER})
    checked = checked_settings(command, {name: value for name, value in given.items() if name not in known})
    return {name: {**given, **checked}[name] for name in kind.names() if name in given}


def _recipe(command: str, name: str, settings: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name of a recipe, and its settings."""
    if name == AUTO:
        config = make_training(command, {**settings, "run": _PLACEHOLDER})
        name = pick_recipe(config, memory.get_total_memory(memory.get_torch_device()))
    return name, recipe_values(command, name)


def _dataset(text: str) -> Prepared:
    queue = jobs.queue()
    for job in queue.jobs():
        if job.command == "prepare" and text in (job.id, str(queue.dataset(job))):
            promised = {**job.settings, "hints": job.settings.get("hints", "none") != "none"}
            return Prepared(queue.dataset(job), queue.result(job) is not None, promised)
    if not text.strip():
        raise ConfigError("dataset is not set: connect PixArt-δ Training Dataset, or name a prepared folder")
    return Prepared(Path(inside_roots(text)), True, {})


def _queued(command: str, settings: dict[str, Any], name: str, job: Job | None, free: bool) -> Job:
    """A new job, or one that has failed, queued, with ComfyUI's models out of its way if wanted."""
    if free:
        jobs.free_memory()
    if job is None:
        queued = jobs.queue().create(command, settings, name, jobs.device())
    else:
        queued = jobs.queue().act(job.id, "retry") or job
    jobs.watcher().wake()
    return queued


def _dry_run(command: str, settings: dict[str, Any]) -> str:
    """What `train.py COMMAND --dry-run` says. Ends when the prompt is interrupted."""
    with tempfile.TemporaryDirectory(prefix="pixart_delta_", ignore_cleanup_errors=True) as folder:
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
