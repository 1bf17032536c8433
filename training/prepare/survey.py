"""Look at every picture before the first is encoded: can it be read, has it a caption, which bucket is it for?

What was found is kept in survey/00000.json … (a chunk of pictures each), so that a second run, and the other parts of
the same one, need not look again at files that have not changed since.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from ...pixart_core.saving import save_json
from ...pixart_core.textfile import read_json
from ..config import PrepareConfig
from ..data.readahead import read_ahead
from .inputs import HintError, InputReader, MaskError, check_hint, check_ratio, digest, pixels
from .inside import OutsideError
from .pictures import PictureError, buckets, nearest_bucket
from .progress import Progress
from .sources import CaptionError, Source

_VERSION = 3
"""Version of what is looked for; findings of another one are made anew."""
CHUNK = 1024
"""Pictures whose findings share a file."""
PROBLEMS = {
    "outside": "outside the allowed folders",
    "unreadable": "cannot be read",
    "caption": "without a caption",
    "elongated": "too long",
    "hint": "without a usable hint",
    "mask": "without a usable mask",
    "duplicate": "the same as another",
}
"""Why pictures are left out."""
ERRORS: dict[type[Exception], str] = {
    OutsideError: "outside",
    PictureError: "unreadable",
    CaptionError: "caption",
    HintError: "hint",
    MaskError: "mask",
}
"""What is raised of a picture that is left out, and its problem."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What is known about a picture."""

    problem: str = ""
    """A key of PROBLEMS; empty = it can be used."""
    why: str = ""
    height: int = 0
    width: int = 0
    ratio: float = 0.0
    """Key of its bucket."""
    bucket: tuple[int, int] = (0, 0)
    """Height, width in px."""
    picture: str = ""
    """Names the content of the picture's file."""
    content: str = ""
    """Names the content of everything that the sample is made from."""
    letters: tuple[int, ...] = ()
    """Length of each wording."""


class Surveyor:
    """Makes findings; runs in the reading processes."""

    def __init__(self, config: PrepareConfig):
        self.reader = InputReader(config)
        self.buckets = buckets(config.resolution, config.multi_aspect)

    def __call__(self, source: Source) -> Finding:
        try:
            inputs = self.reader.read(source)
        except tuple(ERRORS) as error:
            return Finding(ERRORS[type(error)], str(error))
        try:
            check_ratio(inputs.size)
        except PictureError as error:
            return Finding("elongated", str(error), *inputs.size)
        latent = inputs.cached.get("moments.npy")
        shape = inputs.size if latent is None else pixels(latent)
        ratio = nearest_bucket(*shape, self.buckets)
        bucket = self.buckets[ratio] if latent is None else shape
        try:
            check_hint(inputs, bucket)
        except HintError as error:
            return Finding("hint", str(error), *inputs.size)
        contents = self.reader.contents(source)
        content = digest(json.dumps([source.name, inputs.captions, contents]).encode())
        return Finding("", "", *inputs.size, ratio, bucket, contents[0], content, tuple(map(len, inputs.captions)))

    def fingerprint(self, sources: list[Source]) -> str:
        """Names the state that the sources' files are in, without reading them."""
        config = self.reader.config
        told = [
            _VERSION,
            config.resolution,
            config.multi_aspect,
            config.latents,
            config.embeddings,
            config.hint_folder or config.hints.replace("none", ""),  # as earlier versions, whose findings still hold
            config.encoding,
        ]
        told.append(config.only_inside)
        told += [each for each in (config.trigger, config.mask_folder or config.masks) if each not in ("", "none")]
        for source in sources:
            told.append([source.name, source.listed, source.size])
            if source.packed is not None:
                told.append(astuple(source.packed))
            for file in self.reader.files(source):
                state = _state(file)
                told.append([str(file), state and state.st_size, state and state.st_mtime_ns])
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def survey(sources: list[Source], config: PrepareConfig, part: int, parts: int, progress: Progress):
    """The findings of all sources, in their order, duplicates marked.

    Each of `parts` processes begins with another chunk, so that together they look at every file about once.
    """
    surveyor = Surveyor(config)
    folder = Path(config.output) / "survey"
    folder.mkdir(parents=True, exist_ok=True)
    chunks = [sources[start : start + CHUNK] for start in range(0, len(sources), CHUNK)]
    findings: list[list[Finding]] = [[] for _ in chunks]
    first = part * len(chunks) // parts
    progress.begin("preparing", "looked at", len(sources))
    for index in [*range(first, len(chunks)), *range(first)]:
        progress.check()
        file, state = folder / f"{index:05d}.json", surveyor.fingerprint(chunks[index])
        findings[index] = _load(file, state)
        if findings[index]:
            progress.skip(len(chunks[index]))
            continue
        for finding in read_ahead(surveyor, chunks[index], config.workers, progress.get):
            findings[index].append(finding)
            progress.add(1)
            progress.check()
        save_json({"state": state, "findings": [astuple(finding) for finding in findings[index]]}, file)
    progress.end()
    return _without_duplicates(sources, [finding for chunk in findings for finding in chunk], config.keep_duplicates)


def _state(file: Path) -> os.stat_result | None:
    try:
        return file.stat()
    except OSError:  # not there, a link in a circle, or a folder that may not be looked into
        return None


def _load(file: Path, state: str) -> list[Finding]:
    try:
        stored = read_json(file)
    except (OSError, ValueError):  # not there, or from a disk that was full
        return []
    if stored.get("state") != state:
        return []
    return [_finding(row) for row in stored["findings"]]


def _finding(row: list[Any]) -> Finding:
    values: list[Any] = [tuple(each) if isinstance(each, list) else each for each in row]
    return Finding(*values)


def _without_duplicates(sources: list[Source], findings: list[Finding], keep: bool) -> list[Finding]:
    first: dict[str, str] = {}
    out = []
    for source, finding in zip(sources, findings, strict=True):
        same = finding.picture and first.setdefault(finding.picture, source.name)
        if same and same != source.name and not keep:
            finding = Finding("duplicate", f"as {same}")
        out.append(finding)
    return out
