"""What the dataset node does: pictures to a `prepare` job, its report, and a few of the pictures to show."""

from __future__ import annotations

import hashlib
import itertools
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management as memory
import folder_paths
from comfy.utils import ProgressBar
from PIL import Image
from torch import Tensor

from ...pixart_core.saving import replacing
from ...training.config import ConfigError, PrepareConfig
from ...training.estimate import require_room_for_shards
from ...training.jobs import Job
from ...training.prepare.prompted import check_drawing, find_prompts
from ...training.prepare.sources import LISTS, Source, caption_files, read_sources
from ..bridge import files
from ..bridge.ui import show_progress
from . import queue as jobs
from .paths import is_allowed
from .start import node_settings

_POLL = 0.25
_PATIENCE = 60.0
"""Seconds that ComfyUI's queue waits for the look at the pictures; the job goes on in any case."""
_LOOKED_AT = 64
"""Files of a folder that are looked at to see whether it is one of pictures with captions."""


@dataclass(frozen=True)
class Dataset:
    """What the node shows."""

    folder: Path
    report: str
    """Its last line says how far the job is."""
    job: str
    """Id."""
    pictures: list[Path]
    """Some of those it is made from, evenly taken."""


def prepare_dataset(name: str, values: dict[str, Any], more: str, shown: int) -> Dataset:
    """Queue the caching of a folder's features and wait for what it says about the pictures.

    Queued anew when the pictures are others than last time. The encoding goes on in the background.

    Args:
        values: settings of `prepare`.
        more: further settings, a key=value a line.
        shown: how many of the pictures to name.

    Raises:
        ConfigError, PathError: naming the setting that is wrong.
        CheckpointError, DataError, OutsideError, DiskError: what the job would fail with: there are no pictures or
            prompts, no model that can draw them, or no room for shards.
        JobError: if the pictures have changed while a training reads the dataset.
        ValueError: if no picture can be used.
    """
    config, _ = node_settings(PrepareConfig, values, more)
    sources = _pictures(config)
    job = _queued(config, name, _stamp(config, sources))
    folder = jobs.queue().dataset(job)
    text, job = _report(job, folder / "report.txt")
    if job.state == "failed":
        raise ValueError(f"{job.name}: {job.reason}")
    if job.state != "done":
        require_room_for_shards(folder)
    loose = [] if config.prompts else [source.path for source in sources if source.packed is None]
    picked = loose[:: max(1, len(loose) // shown)][:shown]
    return Dataset(folder, f"{text}{jobs.describe(job)}", job.id, [path for path in picked if is_allowed(path)])


def hints_of_images(source: str, images: Tensor, kind: str, more: str) -> dict[str, Any]:
    """The settings for hints that a batch of IMAGEs (B, H, W, C) holds, one for each picture in the order of their
    names; they are kept as files in the output folder.

    Args:
        source, more: the pictures and further settings, as for `prepare_dataset`.
        kind: what they are, "" if that is not known.

    Raises:
        ConfigError: if there are more or fewer than pictures.
    """
    config, _ = node_settings(PrepareConfig, {"input": source}, more)
    sources = _pictures(config)
    if len(sources) != len(images):
        raise ConfigError(
            f"hint_images holds {len(images)} pictures, and {source} {len(sources)}: one hint for each is wanted, in "
            "the order of their names"
        )
    pixels = (images[..., :3].clamp(0, 1) * 255).round().byte().cpu().numpy()
    digest = hashlib.sha256(pixels.data).hexdigest()[:16]
    folder = Path(folder_paths.get_output_directory(), "pixart_delta", "hints", digest)
    for picture, hint in zip(sources, pixels, strict=True):
        file = folder / Path(picture.name).with_suffix(".png")
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(file) as temporary:  # a file that is there is taken for whole
                Image.fromarray(hint).save(temporary, "PNG")
    return {"hints": "folder", "hint_folder": str(folder), "hint_kind": kind}


def prompts_file(text: str) -> str:
    """A file in the output folder with prompts that a node has as text, one a line; raises ConfigError without any."""
    said = "".join(f"{line.strip()}\n" for line in text.splitlines() if line.strip())
    if not said:
        raise ConfigError("prompts is empty: write some, one a line, or name a file of them as prompt_file")
    name = hashlib.sha256(said.encode()).hexdigest()[:16]
    file = Path(folder_paths.get_output_directory(), "pixart_delta", "prompts", f"{name}.txt")
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as temporary:
            temporary.write_text(said, "utf-8")
    return str(file)


def first_folder() -> str | None:
    """The first of `files.picture_folders` that holds a list or a picture with a caption; None if none does."""
    return next((name for name in files.picture_folders() if _has_captions(files.picture_folder(name))), None)


def _has_captions(folder: str) -> bool:
    """Whether there is a list, or a caption beside a picture, among the first files of a folder."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in itertools.islice(entries, _LOOKED_AT)]
    listed = any(name.lower() in LISTS for name in names)
    pairs = ((picture, file) for picture in map(Path(folder).joinpath, names) for file in caption_files(picture))
    return listed or any(file != picture and file.exists() for picture, file in pairs)


def _pictures(config: PrepareConfig) -> list[Source]:
    """The pictures as `prepare` reads them, or as it will draw them."""
    if config.prompts:
        check_drawing(config)
        return find_prompts(config)
    return read_sources(config.input, config.pictures, config.caption_column, config.only_inside, config.encoding)


def _queued(config: PrepareConfig, name: str, stamp: str) -> Job:
    """The job of these settings, made from the pictures as they are now."""
    queue = jobs.queue()
    job = queue.same(config, name)
    if job is None:
        job = queue.create(config, name, jobs.device(), stamp=stamp)
    elif job.state == "failed" or job.state == "done" and (job.stamp != stamp or not queue.result(job)):
        job = queue.again(job.id, stamp)
    jobs.watcher().wake()
    return job


def _report(job: Job, file: Path) -> tuple[str, Job]:
    """What the job says about the pictures, or why it does not yet; and the job as it is then."""
    started, told, bar = time.monotonic(), "", ProgressBar(1)
    while not file.exists() and (job.active or job.state == "queued"):
        memory.throw_exception_if_processing_interrupted()
        blocked = job.state == "queued" and job.id in jobs.queue().waits()
        if blocked or time.monotonic() - started > _PATIENCE:
            break
        seen = jobs.view(job)
        if seen["text"] != told:
            told = seen["text"]
            show_progress(told)
            bar.update_absolute(seen.get("step", 0), max(1, seen.get("steps", 1)))
        time.sleep(_POLL)
        job = jobs.queue().job(job.id)
    show_progress("")
    if file.exists():
        return file.read_text(encoding="utf-8"), job
    if job.state == "paused":
        return "It is paused: resume it in the panel, then run this again.\n", job
    where = "It waits in the queue" if job.state == "queued" else "The pictures are still being looked at"
    return f"{where}; run this again later for the report.\n", job


def _stamp(config: PrepareConfig, sources: list[Source]) -> str:
    """Changes when a picture, a caption, or another file that it is made from does, comes or goes."""
    # What a list says is in the sources; other captions are in files beside the pictures.
    seen = hashlib.sha256(repr([(source.listed, source.size) for source in sources]).encode())
    for count, file in enumerate(sorted({*_files(config, sources)})):
        if count % 1024 == 0:
            memory.throw_exception_if_processing_interrupted()
        try:
            about = os.stat(file)
        except OSError:
            continue
        seen.update(f"{file} {about.st_size} {about.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    return seen.hexdigest()


def _files(config: PrepareConfig, sources: list[Source]) -> Iterator[Path]:
    yield from map(Path, filter(None, (config.base, config.lora)))  # that prompts are drawn with
    for source in sources:
        yield source.path
        if source.listed is None:
            yield from caption_files(source.path)
    for folder in sorted({config.hint_folder, config.mask_folder, config.latents, config.embeddings} - {""}):
        for where, _, names in os.walk(folder):
            yield from (Path(where, each) for each in names)
