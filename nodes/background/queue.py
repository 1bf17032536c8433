"""The queue of trainings inside ComfyUI: where it lies, which device it uses, and the thread that watches over it."""

from __future__ import annotations

import functools
import json
import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import comfy.model_management as memory
import folder_paths
from server import PromptServer

from ...training.config import TRAININGS
from ...training.jobs import Job, JobError, Queue, count_of, import_jobs, is_number, last_line, plain_text, process
from ...training.prepare.inside import is_inside
from .paths import check_start

log = logging.getLogger(__name__)

EVENT = "pixart_delta.jobs"
"""Websocket event: {"jobs": [views that changed], "deleted": [ids]}; at most four a second."""
_BUSY, _IDLE = 0.5, 2.0
"""Seconds between two looks, with and without a process."""
_NUMBERS = ("step", "steps", "loss", "learning_rate", "seconds_per_step", "seconds_left", "memory")


_making = threading.Lock()


def queue() -> Queue:
    """This server's queue: run folders in output/pixart_delta/training, records where no route of ComfyUI writes.

    Raises:
        JobError: if records cannot be kept where no upload gets.
    """
    with _making:  # watcher, nodes and routes may be the first
        return _queue()


@functools.cache
def _queue() -> Queue:
    root = Path(folder_paths.get_output_directory()) / "pixart_delta" / "training"
    made = Queue(root, _records(), check_start)
    for job in import_jobs(made):
        log.info("training %s of an earlier version was taken over: %s", job.id, job.state)
    return made


def _records() -> Path:
    """Where the records are: a folder of ComfyUI's for what no route reads or writes.

    Raises:
        JobError: if it lies in a folder that uploads reach.
    """
    folder = Path(folder_paths.get_system_user_directory("pixart_delta")) / "jobs"
    reached = [folder_paths.get_directory_by_type(kind) for kind in ("output", "input", "temp")]
    reached.append(folder_paths.get_public_user_directory("default"))
    if is_inside(folder, reached):
        raise JobError(
            f"trainings cannot be kept safely: uploads reach {folder}, which says what is started. Start ComfyUI with "
            "another --user-directory, outside its input, output and temp folders"
        )
    return folder


def device() -> str:
    """Name of the device that ComfyUI computes on, for a job."""
    found = memory.get_torch_device()
    if found.type in ("cuda", "xpu"):
        return f"{found.type}:{process.machine_wide(found.type, found.index or 0)}"
    return "mps" if found.type == "mps" else "cpu"


def running_on(name: str) -> Job | None:
    """The job that has a device now."""
    return next((job for job in queue().jobs() if job.active and job.device == name), None)


def free_memory() -> None:
    """Take ComfyUI's own models off the device. In a node's thread."""
    memory.unload_all_models()
    memory.soft_empty_cache()


def view(job: Job, waits: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What the panel shows of a job; numbers that JSON cannot say are left out.

    Args:
        waits: of `Queue.waits`, if the caller has it.
    """
    status = queue().status(job)
    numbers = {name: status[name] for name in _NUMBERS if is_number(status.get(name))}
    if waits is None:
        waits = queue().waits() if job.state == "queued" else {}
    quiet = job.active and job.command not in TRAININGS and "steps" not in numbers
    seen = {
        "id": job.id,
        "name": job.name,
        "command": job.command,
        "state": job.state,
        "wanted": job.wanted if job.active else "",
        "reason": job.reason or waits.get(job.id, "") or _notice(status, job),
        "device": job.device,
        "created": job.created,
        "order": job.order,
        "attempt": job.attempt,
        "after": job.after,
        **numbers,
        "says": last_line(queue().log_file(job)) if quiet else "",
        "pictures": plain_text(str(status.get("pictures") or ""))[:200],
        "export": Path(str(status.get("export") or "")).name,
        "checkpoint": Path(str(status.get("checkpoint") or "")).name,
        **(_stamps(job) if job.active else {}),
        "actions": queue().actions(job),
    }
    return {**seen, "text": _words(seen)}


def _stamps(job: Job) -> dict[str, Any]:
    """When a job that runs wrote its result, and its newest grid of samples, as Unix times: what shows them follows."""
    samples, result = queue().run_dir(job).samples(), queue().result(job)
    files = {"exported": result, "sampled": samples[-1] if samples else None}
    return {name: file.stat().st_mtime for name, file in files.items() if file is not None and file.exists()}


def view_texts(jobs: list[Job]) -> dict[str, str]:
    """Id -> view as JSON, of all jobs. A thousand of these are a thousand objects, where the views are ten thousand,
    and when Python's garbage collector looks through many new ones, all of ComfyUI halts for a while."""
    waits = queue().waits(jobs)
    return {job.id: _view_text(job, waits) for job in jobs}


def _view_text(job: Job, waits: Mapping[str, str]) -> str:
    """One view as JSON; where something is wrong with a job, it is seen with what that is, and so are all others."""
    try:
        return json.dumps(view(job, waits), allow_nan=False)
    except Exception as error:
        reason = f"it cannot be shown ({type(error).__name__}: {str(error)[:200]}): delete it"
        return json.dumps(view(Job(job.id, "", {}, "cpu", job.id, "failed", reason), {}), allow_nan=False)


def describe(job: Job) -> str:
    """A job in words: "Mountains: running, step 12 of 100, loss 0.02, 3.1 min left"."""
    return view(job)["text"]


def _words(seen: dict[str, Any]) -> str:
    parts = [f"{seen['name']}: {seen['state']}"]
    parts += [text for text in (seen["reason"], seen["says"]) if text]
    if "step" in seen and "steps" in seen:
        parts.append(f"{count_of(seen['command'])} {seen['step']} of {seen['steps']}")
    if "loss" in seen:
        parts.append(f"loss {seen['loss']:.5g}")
    if "seconds_per_step" in seen:
        parts.append(f"{seen['seconds_per_step']:.3g} s a {count_of(seen['command'])}")
    if "seconds_left" in seen and seen["state"] == "running":
        parts.append(f"{seen['seconds_left'] / 60:.1f} min left")
    return ", ".join(parts)


def _notice(status: Mapping[str, Any], job: Job) -> str:
    """What its process waits for (a store of data that is busy or out of reach), or says of how it fares."""
    return plain_text(str(status.get("waiting") or status.get("notice") or ""))[:500] if job.active else ""


class Watcher(threading.Thread):
    """Ticks the queue and tells browsers what changed. One per server; ends with it."""

    def __init__(self):
        super().__init__(name="pixart_delta jobs", daemon=True)
        self._wake = threading.Event()
        self._told: dict[str, str] = {}
        self._complaint = ""

    def wake(self) -> None:
        """Look now: something was asked for."""
        self._wake.set()

    def run(self) -> None:
        while True:
            pause = _IDLE
            try:
                jobs = queue().tick()
                pause = _BUSY if any(job.active or job.state == "queued" for job in jobs) else _IDLE
                self._tell(view_texts(jobs))
                self._complaint = ""
            except Exception as error:  # a full disk now may be free in a minute: the jobs need their watcher
                self._complain(error)
            self._wake.wait(pause)
            if self._wake.is_set():
                self._wake.clear()
                # Several requests at once make one event.
                threading.Event().wait(0.25)

    def _tell(self, views: dict[str, str]) -> None:
        changed = [json.loads(text) for job_id, text in views.items() if self._told.get(job_id) != text]
        deleted = [job_id for job_id in self._told if job_id not in views]
        if changed or deleted:
            PromptServer.instance.send_sync(EVENT, {"jobs": changed, "deleted": deleted})
        self._told = views

    def _complain(self, error: Exception) -> None:
        text = f"the training queue cannot work: {error}"
        if text != self._complaint:
            log.warning(text, exc_info=not isinstance(error, OSError))
        self._complaint = text


@functools.cache
def watcher() -> Watcher:
    """This server's watcher, started at the first call."""
    thread = Watcher()
    thread.start()
    return thread
