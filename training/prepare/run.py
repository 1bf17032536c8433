"""`prepare`: look at all pictures, say what was found, then encode this part's shards."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from ..config import PrepareConfig
from ..data.readahead import read_ahead
from ..data.shards import DESCRIPTION, DataError, Shard, ShardInfo, write_description, write_shard
from ..machine import require_room
from .archives import Listing, find_archives
from .captions import Captions, Encoded, remove_captions
from .drawn import plan_drawing
from .encoders import Encoders
from .inputs import InputReader, Inputs
from .opened import is_url
from .plan import PlannedShard, plan_shards, remove_others
from .progress import Progress, follow, say
from .prompted import check_drawing, find_prompts
from .report import Report, count_buckets, left_out
from .sources import Found, Source, find_packed, find_sources
from .survey import ERRORS, survey

_LETTERS_PER_TOKEN = 3
"""Letters of English that make a token of T5, rather too few: what is estimated with it is rather too much."""
_ROUND = 16
"""Shards whose captions are encoded together, before their pictures."""
_OVERHEAD = 6000
"""Bytes of a sample besides its arrays: tar headers, padding, JSON."""


def prepare(config: PrepareConfig, dry_run: bool = False) -> Report | None:
    """Make, or finish, the dataset in config.output. SIGTERM and Ctrl-C end it; the next call goes on.

    Args:
        dry_run: only look and report.

    Returns:
        What was found; None if it was stopped.

    Raises:
        DataError: if no picture can be used, or one changes meanwhile.
        OutsideError: if the list of pictures is not where files may be read.
        DiskError: if the disk is too small.
        RuntimeError: if the device has too little memory.
        RunDirError: if config.run is in use.
    """
    with follow(config, silent=dry_run) as progress:
        try:
            return _prepare(config, dry_run, progress)
        except torch.OutOfMemoryError as error:
            raise RuntimeError(
                f"the device is out of memory with batch_size={config.batch_size}: lower it, or set precision=bf16"
            ) from error
    return None


def _prepare(config: PrepareConfig, dry_run: bool, progress: Progress) -> Report:
    part, parts = which_part(config)
    output = Path(config.output)
    if config.prompts:
        check_drawing(config)
    encoders = Encoders(config)
    progress.say_state("preparing", device=str(encoders.device))
    identity = {} if dry_run else encoders.identity()  # early, because it names missing weights
    found = _find(config, part, parts, progress)
    sources = found.sources
    output.mkdir(parents=True, exist_ok=True)  # only now: of an input without pictures nothing is left
    findings = plan_drawing(sources, config) if config.prompts else survey(sources, config, part, parts, progress)
    shards = plan_shards(sources, findings, config.shard_size)
    report = Report(
        input=config.input or config.prompts,
        pictures=len(sources),
        usable=sum(not finding.problem for finding in findings),
        left_out=left_out(sources, findings),
        unused=found.unused,
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
    _repeats(shards, config.repeats)
    if not report.usable:
        raise DataError(f"no picture of {config.input} can be used: {output / 'report.txt'} says why")
    if not dry_run:
        _make(shards, [shard.state(identity) for shard in shards], part, parts, config, encoders, progress)
    return report


def _find(config: PrepareConfig, part: int, parts: int, progress: Progress) -> Found:
    """The pictures of the input, whatever it is, or those that are to be drawn."""
    if config.prompts:
        return Found(find_prompts(config))
    if is_url(config.input):
        progress.be_patient()
    archives = progress.get(lambda: find_archives(config.input, config.only_inside))
    if not archives:
        found = find_sources(config.input, config.pictures, config.caption_column, config.only_inside, config.encoding)
        ours = [each for each in found.unused if Path(config.input, each[0]).is_relative_to(config.output)]
        return Found(found.sources, [each for each in found.unused if each not in ours])
    folder = Path(config.output) / "archives"
    listing = Listing(folder, config.caption_column, config.image_column, config.encoding, progress.get)
    progress.begin("preparing", "looked through", len(archives), "archives")

    def looked() -> None:
        progress.add(1)
        progress.check()

    found = find_packed(archives, listing, part * len(archives) // parts, looked, say)
    progress.end()
    return found


def which_part(config: PrepareConfig) -> tuple[int, int]:
    """This process's part, and how many there are: hosts (part, parts) times what torchrun or accelerate started."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    return config.part * world + rank, config.parts * world


def _make(
    shards: list[PlannedShard],
    states: list[str],
    part: int,
    parts: int,
    config: PrepareConfig,
    encoders: Encoders,
    progress: Progress,
) -> None:
    output = Path(config.output)
    own = list(zip(shards, states, strict=True))[part::parts]
    progress.begin("running", "drawn" if config.prompts else "encoded", sum(len(shard.entries) for shard, _ in own))
    todo = []
    for shard, state in own:
        progress.check()
        if shard.finished(output, state, thorough=True):
            progress.skip(len(shard.entries))
            progress.keep()
        else:
            todo.append((shard, state))
    if len(todo) < len(own):
        say(f"{len(own) - len(todo)} of {len(own)} shards are there already")
    require_room(output, sum(_estimate(shard, config, encoders) for shard, _ in todo), f"the shards of {output}")
    progress.watch_processor(encoders.device)
    if todo:
        # Until all are made there is no dataset: the description of an earlier one would not fit the new shards.
        (output / DESCRIPTION).unlink(missing_ok=True)
    _write_all(todo, config, encoders, progress)
    found = [shard.finished(output, state, thorough=False) for shard, state in zip(shards, states, strict=True)]
    made = [info for info in found if info is not None]
    if missing := len(found) - len(made):
        say(f"this part is done; {missing} of {len(found)} shards are still to come from the other parts")
    else:
        _finish(output, shards, made, config, encoders)


def _write_all(todo, config: PrepareConfig, encoders: Encoders, progress: Progress) -> None:
    """Make shards, some at a time: first all their captions, then their pictures."""
    for start in range(0, len(todo), _ROUND):
        some = todo[start : start + _ROUND]
        if not config.embeddings:
            _encode_captions(some, config, encoders, progress)
        _write_shards(some, config, encoders, progress)
    progress.end()


def _encode_captions(some, config: PrepareConfig, encoders: Encoders, progress: Progress) -> None:
    """Make the captions of shards, and take the text encoder out of memory."""
    reader, size = InputReader(config), config.batch_size
    missing = [(shard, kept) for shard, state in some if not (kept := _captions(config, shard, state)).made()]
    total, done = sum(len(shard.entries) for shard, _ in missing), 0
    if missing:
        encoders.free("vae", "hed", "painter")

    def encoded(shard: PlannedShard):
        nonlocal done
        for start in range(0, len(shard.entries), size):
            progress.check()
            progress.note(f"encoding captions, {done} of {total}: those of the next pictures come first")
            sources = [source for source, _ in shard.entries[start : start + size]]
            batch = [(source.name, _unchanged(source, lambda each: reader.captions(each))) for source in sources]
            for (_, wordings), (embedding, tokens) in zip(batch, encoders.encode_captions(batch), strict=True):
                yield wordings, tokens, embedding
            done += len(batch)

    for shard, kept in missing:
        kept.write(encoded(shard))
    encoders.free("text")
    progress.note("")


def _captions(config: PrepareConfig, shard: PlannedShard, state: str) -> Captions:
    return Captions(Path(config.output), shard.name, state)


def _write_shards(some, config: PrepareConfig, encoders: Encoders, progress: Progress) -> None:
    """Make shards one after the other, while helper processes read ahead, over the borders of shards too."""
    size, output = config.batch_size, Path(config.output)
    batches = [
        [(source, shard.bucket) for source, _ in shard.entries[start : start + size]]
        for shard, _ in some
        for start in range(0, len(shard.entries), size)
    ]
    ahead = progress.waiting_for(read_ahead(_ReadBatch(config), batches, config.workers, progress.get))
    for shard, state in some:
        for leftover in output.glob(f".{shard.name}.*.tmp"):  # of earlier versions
            if leftover.is_file():
                leftover.unlink(missing_ok=True)
        kept = _captions(config, shard, state)
        count = -(-len(shard.entries) // size)
        captions = None if config.embeddings else kept.read()
        samples = _samples(shard, itertools.islice(ahead, count), captions, encoders, progress)
        shard.finish(output, state, write_shard(output, shard.name, shard.bucket, samples))
        kept.remove()
        progress.keep()


def _samples(
    shard: PlannedShard,
    batches: Iterator[list[Inputs]],
    captions: Iterator[Encoded] | None,
    encoders: Encoders,
    progress: Progress,
):
    entries = zip(itertools.count(shard.first), shard.entries)
    for batch in batches:
        progress.check()
        done = progress.status["step"] + len(batch)
        tokens = [None if captions is None else _add_caption(inputs, next(captions)) for inputs in batch]
        for inputs, each, parts in zip(batch, tokens, encoders.encode(batch, progress.add), strict=True):
            number, (source, finding) = next(entries)
            about = {
                "height": inputs.size[0],
                "width": inputs.size[1],
                "bucket": list(shard.bucket),
                "ratio": finding.ratio,
                "captions": list(inputs.captions),
                "tokens": each or [len(parts["caption.npy"])],
                "source": source.name,
            }
            yield {"__key__": f"{number:08d}", "json": about, **parts}
        progress.add(done - progress.status["step"])


def _add_caption(inputs: Inputs, encoded: Encoded) -> list[int]:
    """Give a picture the embeddings of its wordings; returns their tokens."""
    wordings, tokens, inputs.cached["caption.npy"] = encoded
    if wordings != inputs.captions:
        raise DataError(f"{inputs.source.name} has another caption than when it was looked at: run `prepare` again")
    return tokens


def _knobs(shards: list[PlannedShard], config: PrepareConfig) -> dict[str, Any]:
    """What a description says of settings that few datasets have; those without are described as ever."""
    every = {
        "flip": config.flip,
        "masks": "" if config.masks == "none" else config.masks,
        "repeats": _repeats(shards, config.repeats),
    }
    return {name: value for name, value in every.items() if value}


def _repeats(shards: list[PlannedShard], repeats: Mapping[str, int]) -> dict[str, int]:
    """Number of each picture in the dataset that is repeated -> how often; the folder nearest to it decides."""
    names = [source.name for shard in shards for source, _ in shard.entries]
    found, unmet = {}, set(repeats)
    for number, name in enumerate(names):
        folders = [str(each) for each in PurePosixPath(name).parents if str(each) in repeats]
        unmet.difference_update(folders)
        if folders and repeats[folders[0]] > 1:
            found[str(number)] = repeats[folders[0]]
    if unmet:
        raise DataError(
            f"repeats names {', '.join(sorted(unmet))}, and no picture that can be used is in such a folder"
        )
    return found


def _finish(output: Path, shards, made: list[ShardInfo], config: PrepareConfig, encoders: Encoders) -> None:
    pictures = sum(info.count for info in made)
    write_description(
        output,
        made,
        scaling_factor=encoders.scaling_factor(),
        caption_channels=Shard(output / made[0].name, made[0]).read(0, ["caption.npy"])["caption.npy"].shape[1],
        max_tokens=config.max_tokens,
        resolution=config.resolution,
        hints="" if config.hints == "none" else config.hints,
        hint_kind=config.kind_of_hints,
        pictures=pictures,
        **_knobs(shards, config),
    )
    remove_others(output, shards)  # now that no description lists them
    remove_captions(output)
    say(f"{output} holds {pictures} prepared pictures in {len(made)} shards")


class _ReadBatch:
    """Inputs of a batch; runs in the reading processes."""

    def __init__(self, config: PrepareConfig):
        self.reader = InputReader(config)

    def __call__(self, batch: list[tuple[Source, tuple[int, int]]]) -> list[Inputs]:
        return [self._read(source, bucket) for source, bucket in batch]

    def _read(self, source: Source, bucket: tuple[int, int]) -> Inputs:
        return _unchanged(source, lambda each: self.reader.read(each, bucket))


def _unchanged(source: Source, read: Callable[[Source], Any]) -> Any:
    """What `read` gives for a source that could be read before.

    Raises:
        DataError: if it cannot any more.
    """
    try:
        return read(source)
    except tuple(ERRORS) as error:
        raise DataError(f"{source.name} has changed since it was looked at ({error}): run `prepare` again") from error


def _estimate(shard: PlannedShard, config: PrepareConfig, encoders: Encoders) -> int:
    """Bytes of a shard, about."""
    channels, width = encoders.shape()
    latent = shard.bucket[0] * shard.bucket[1] // 64 * channels * 2
    total = 0
    for _, finding in shard.entries:
        tokens = sum(min(config.max_tokens, letters // _LETTERS_PER_TOKEN + 2) for letters in finding.letters)
        total += latent * (1 if config.hints == "none" else 2) * (1 + config.flip) + tokens * width * 2 + _OVERHEAD
    return total
