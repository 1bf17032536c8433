"""What the training nodes start: settings to a job, or the trainer's own check of them."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import comfy.model_management as memory

from ...training.config import TRAININGS, ConfigError, Kind, TrainConfig
from ...training.estimate import Base, read_base
from ...training.jobs import TRAIN, Job, check_name, process
from ...training.recipes import AUTO, RECIPES, recipe_for, recipe_values
from ...training.run_dir import RunDir
from ..bridge import files
from . import queue as jobs
from .estimate import Prepared, check_and_estimate
from .paths import checked_settings, inside_roots, listed

_POLL = 0.25


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
    asked = _asked(command, name, values, more, recipe, start=not estimate_only)
    if not estimate_only:
        return _queued(asked, free)
    busy = jobs.running_on(jobs.device())
    if asked.data.ready and busy is None:
        return "", asked.about + _dry_run(asked.config)
    why = "The dataset is not ready yet" if busy is None else f"{busy.name} has the device now"
    return "", f"{asked.about}{asked.expected}\n{why}: run this again later to also try one real step."


def start_form(command: str, name: str, values: dict[str, Any], check_only: bool, recipe: str = "") -> tuple[str, str]:
    """`start_training` from the panel's form.

    Args:
        values: settings that differ from the defaults, all as they come from a browser: every path is checked, `base`,
            `models` and `hed` may be names of `files.names`, `data` a job's dataset.
        check_only: only say what it will take.
        recipe: as of `start_training`.

    Returns, raises: as `start_training`.
    """
    asked = _asked(command, name, {"data": "", **values}, "", recipe, start=not check_only)
    return ("", asked.about + asked.expected) if check_only else _queued(asked, free=False)


@dataclass(frozen=True)
class _Asked:
    """A training that was asked for, and can begin."""

    config: TrainConfig
    name: str
    data: Prepared
    job: Job | None
    """That was made of these settings before."""
    about: str
    """A line about its recipe."""
    expected: str
    """What it will take."""


def _asked(command: str, name: str, values: dict[str, Any], more: str, recipe: str, start: bool) -> _Asked:
    """See `start_training`. What would fail and is to be started is refused."""
    check_name(name)
    data, queue = _dataset(str(values["data"])), jobs.queue()
    config, base, about = _settings(command, values, more, recipe, data.folder)
    job = queue.same(config, name)
    run = RunDir(queue.root / (name or command)) if job is None else queue.run_dir(job)
    refuse = start and (job is None or job.state == "failed")
    return _Asked(config, name, data, job, about, check_and_estimate(config, base, data, run, refuse))


def _settings(
    command: str, values: dict[str, Any], more: str, recipe: str, data: Path
) -> tuple[TrainConfig, Base, str]:
    """Settings of a training on a dataset, with those of a recipe if one is named, what it starts from, and a line
    about what counts of the recipe."""
    kind = TRAININGS[command]
    config, given = node_settings(kind, values, more, data=str(data))
    base = read_base(config)
    if not recipe:
        return config, base, ""
    if recipe == AUTO:
        recipe = recipe_for(base.parameters, memory.get_total_memory(memory.get_torch_device()))
    chosen = recipe_values(command, recipe)
    own = {name for name, value in given.items() if name not in values or value != kind.default(name)}
    config = replace(config, **{name: value for name, value in chosen.items() if name not in own})
    counts = [f"{name} {value}" for name, value in chosen.items() if getattr(config, name) == value]
    return config, base, f"recipe {recipe}: {', '.join(counts)}\n"


def form() -> dict[str, Any]:
    """What the panel's form is made of: the settings of each training, and what to choose files from."""
    made = [{"value": job.id, "text": job.name} for job in jobs.queue().jobs() if job.command == "prepare"]
    models = files.names("model")
    chosen = {"base": models, "student": models, "models": files.names("pipeline")}
    own = ("run", "output")
    return {
        "commands": {name: [row for row in kind.form() if row["name"] not in own] for name, kind in TRAININGS.items()},
        "names": {name: [{"value": each, "text": each} for each in names] for name, names in chosen.items()}
        | {"data": made},
        "recipes": [AUTO, *RECIPES],
    }


def node_settings(kind: type[Kind], values: Mapping[str, Any], more: str, **known: str) -> tuple[Kind, dict[str, Any]]:
    """The settings that a node has inputs for, and those that it was given as text, a key=value a line: checked, see
    `checked_settings`; and as they were given."""
    lines = (line.strip() for line in more.splitlines())
    parts = (line.partition("=") for line in lines if line and not line.startswith("#"))
    texts = {name.strip(): text.strip() for name, _, text in parts}
    if taken := sorted(texts.keys() & {"run", "output", *values}):
        raise ConfigError(f"{taken[0]} is an input of the node: set it there, not in more_settings")
    given = {**values, **kind.parse(texts.items())}
    return checked_settings(kind, given, {**listed({**values, **texts}), **known}), given


def _dataset(text: str) -> Prepared:
    queue = jobs.queue()
    for job in queue.jobs():
        if job.command == "prepare" and text in (job.id, str(queue.dataset(job))):
            promised = {**job.settings, "hints": job.settings.get("hints", "none") != "none"}
            return Prepared(queue.dataset(job), queue.result(job) is not None, promised)
    if not text.strip():
        raise ConfigError("dataset is not set: connect PixArt-δ Training Dataset, or name a prepared folder")
    return Prepared(Path(inside_roots(text)), True, {})


def _queued(asked: _Asked, free: bool) -> tuple[str, str]:
    """A new job, or one that has failed, queued, with ComfyUI's models out of its way if wanted; see
    `start_training`."""
    queue, job = jobs.queue(), asked.job
    if job is None or job.state == "failed":
        if free:
            jobs.free_memory()
        if job is None:
            job = queue.create(asked.config, asked.name, jobs.device())
        else:
            job = queue.act(job.id, "retry") or job
        jobs.watcher().wake()
    return job.id, f"{jobs.describe(job)}\n{asked.about}{asked.expected}"


def _dry_run(config: TrainConfig) -> str:
    """What `train.py COMMAND --dry-run` says. Ends when the prompt is interrupted."""
    with tempfile.TemporaryDirectory(prefix="pixart_delta_", ignore_cleanup_errors=True) as folder:
        file, log = Path(folder) / "settings.json", Path(folder) / "log"
        file.write_text(json.dumps(config.to_dict() | {"run": str(Path(folder) / "run")}), encoding="utf-8")
        arguments = [sys.executable, "-u", str(TRAIN), config.command, "--config", str(file), "--dry-run"]
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
