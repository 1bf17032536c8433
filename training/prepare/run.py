"""`prepare`: look at all pictures, say what was found, then encode this part's shards."""

from __future__ import annotations

import itertools
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..config import PrepareConfig
from ..processes import in_order
from ..shards import DataError, Shard, ShardInfo, write_description, write_shard
from .encoders import Encoders
from .inputs import HintError, InputReader, Inputs
from .pictures import PictureError
from .plan import PlannedShard, plan_shards, remove_others
from .report import Report, count_buckets, left_out
from .sources import CaptionError, Source, read_sources
from .survey import survey

_LETTERS_PER_TOKEN = 3
"""Of English in T5, rather too few: what is estimated with it is rather too much."""
_OVERHEAD = 6000
"""Bytes of a sample besides its arrays: tar headers, padding, JSON."""
_SAY_EVERY = 10.0
"""Seconds between lines of progress, where there is no terminal."""


def prepare(config: PrepareConfig, dry_run: bool = False) -> Report:
    """Make, or finish, the dataset in config.output.

    Args:
        dry_run: only look and report.

    Raises:
        DataError: if no picture can be used, or one changes meanwhile.
        OSError: if the disk is too small.
    """
    part, parts = which_part(config)
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    encoders = Encoders(config)
    identity = {} if dry_run else encoders.identity()  # early, because it names missing weights
    sources = read_sources(config.input, config.pictures, config.caption_column)
    findings = survey(sources, config, part, parts, _say)
    shards = plan_shards(sources, findings, config.shard_size)
    report = Report(
        input=config.input,
        pictures=len(sources),
        usable=sum(not finding.problem for finding in findings),
        left_out=left_out(sources, findings),
        buckets=count_buckets(findings),
        enlarged=sum(finding.height < finding.bucket[0] or finding.width < finding.bucket[1] for finding in findings),
        wordings=sum(len(finding.letters) for finding in findings if not finding.problem),
        shards=len(shards),
        bytes=sum(_estimate(shard, config, encoders) for shard in shards),
        free=shutil.disk_usage(output).free,
    )
    report.write(output)
    if part == 0:
        print(report.text(), flush=True)
    if not report.usable:
        raise DataError(f"no picture of {config.input} can be used: {output / 'report.txt'} says why")
    if not dry_run:
        _make(shards, [shard.state(identity) for shard in shards], part, parts, config, encoders)
    return report


def which_part(config: PrepareConfig) -> tuple[int, int]:
    """This process's part, and how many there are: hosts (part, parts) times what torchrun or accelerate started."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    return config.part * world + rank, config.parts * world


def _make(
    shards: list[PlannedShard], states: list[str], part: int, parts: int, config: PrepareConfig, encoders
) -> None:
    output = Path(config.output)
    own = list(zip(shards, states, strict=True))[part::parts]
    todo = [(shard, state) for shard, state in own if not shard.finished(output, state, thorough=True)]
    _check_disk(output, sum(_estimate(shard, config, encoders) for shard, _ in todo))
    if len(todo) < len(own):
        _say(f"{len(own) - len(todo)} of {len(own)} shards are there already")
    _write_all(todo, config, encoders, output)
    made = [shard.finished(output, state, thorough=False) for shard, state in zip(shards, states, strict=True)]
    if None in made:
        _say(f"this part is done; {made.count(None)} of {len(made)} shards are still to come from the other parts")
    else:
        _finish(output, shards, made, config, encoders)


def _write_all(todo, config: PrepareConfig, encoders: Encoders, output: Path) -> None:
    """Make shards one after the other, while helper processes read ahead, over the borders of shards too."""
    size = config.batch_size
    batches = [
        [(source, shard.bucket) for source, _ in shard.entries[start : start + size]]
        for shard, _ in todo
        for start in range(0, len(shard.entries), size)
    ]
    ahead = in_order(_ReadBatch(config), batches, config.workers)
    progress = _Progress(sum(len(shard.entries) for shard, _ in todo))
    for shard, state in todo:
        for leftover in output.glob(f".{shard.name}.*.tmp"):  # of a process that was killed
            leftover.unlink(missing_ok=True)
        count = -(-len(shard.entries) // size)
        samples = _samples(shard, itertools.islice(ahead, count), encoders, progress)
        shard.finish(output, state, write_shard(output, shard.name, shard.bucket, samples))
    progress.close()


def _samples(shard: PlannedShard, batches: Iterator[list[Inputs]], encoders: Encoders, progress: _Progress):
    entries = zip(itertools.count(shard.first), shard.entries)
    for batch in batches:
        for inputs, parts in zip(batch, encoders.encode(batch), strict=True):
            number, (source, finding) = next(entries)
            about = {
                "height": inputs.size[0],
                "width": inputs.size[1],
                "bucket": list(shard.bucket),
                "ratio": finding.ratio,
                "captions": list(inputs.captions),
                "tokens": parts.pop("tokens", None) or [len(parts["caption.npy"])],
                "source": source.name,
            }
            yield {"__key__": f"{number:08d}", "json": about, **parts}
        progress.add(len(batch))


def _finish(output: Path, shards, made: list[ShardInfo], config: PrepareConfig, encoders: Encoders) -> None:
    remove_others(output, shards)
    hints = config.hints if config.hints in ("", "hed") else "folder"
    pictures = sum(info.count for info in made)
    write_description(
        output,
        made,
        scaling_factor=encoders.scaling_factor(),
        caption_channels=Shard(output / made[0].name, made[0]).read(0, ["caption.npy"])["caption.npy"].shape[1],
        max_tokens=config.max_tokens,
        resolution=config.resolution,
        hints=hints,
        pictures=pictures,
    )
    _say(f"{output} holds {pictures} prepared pictures in {len(made)} shards")


class _ReadBatch:
    """Inputs of a batch; runs in the reading processes."""

    def __init__(self, config: PrepareConfig):
        self.reader = InputReader(config)

    def __call__(self, batch: list[tuple[Source, tuple[int, int]]]) -> list[Inputs]:
        return [self._read(source, bucket) for source, bucket in batch]

    def _read(self, source: Source, bucket: tuple[int, int]) -> Inputs:
        try:
            return self.reader.read(source, bucket)
        except (PictureError, CaptionError, HintError) as error:
            raise DataError(
                f"{source.name} has changed since it was looked at ({error}): run `prepare` again"
            ) from error


def _estimate(shard: PlannedShard, config: PrepareConfig, encoders: Encoders) -> int:
    """Bytes of a shard, about."""
    channels, width = encoders.shape()
    latent = shard.bucket[0] * shard.bucket[1] // 64 * channels * 2
    total = 0
    for _, finding in shard.entries:
        tokens = sum(min(config.max_tokens, letters // _LETTERS_PER_TOKEN + 2) for letters in finding.letters)
        total += latent * (2 if config.hints else 1) + tokens * width * 2 + _OVERHEAD
    return total


def _check_disk(output: Path, needed: int) -> None:
    free = shutil.disk_usage(output).free
    if needed > free:
        raise OSError(
            f"the shards need about {needed / 1e9:.2f} GB and {output} has {free / 1e9:.2f} GB free: make room there, "
            "or choose another output"
        )


class _Progress:
    """Pictures a second and the time left; on a terminal always, else every few seconds."""

    def __init__(self, total: int):
        self.total, self.done = total, 0
        self.started = self.said = time.monotonic()

    def add(self, count: int) -> None:
        self.done += count
        now = time.monotonic()
        if sys.stdout.isatty() or now - self.said >= _SAY_EVERY:
            self.said = now
            print(self._line(now), end="\r" if sys.stdout.isatty() else "\n", flush=True)

    def close(self) -> None:
        if self.done:
            _say(self._line(time.monotonic()))

    def _line(self, now: float) -> str:
        rate = self.done / max(now - self.started, 1e-9)
        left = (self.total - self.done) / rate / 60
        return f"{self.done}/{self.total} pictures, {rate:.1f} pictures/s, {left:.1f} min left"


def _say(text: str) -> Any:
    print(text, flush=True)
