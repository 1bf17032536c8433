"""Batches of prepared features: each of one picture size, in an order that the seed and a number decide.

Every picture comes once in an epoch. The pictures of a size are dealt out evenly to as many batches as they need, so a
batch may have fewer pictures than was asked for. It then counts for so much less (`share`), and every picture weighs
the same in an epoch's gradients. Two other ways were thought of: filling batches up by repeats costs more and teaches
nothing new, and batches of several sizes need several passes through the model, on each process equally many.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...pixart_core.textfile import parse_json
from .draws import generator_for
from .readahead import read_ahead
from .remote import Location
from .samples import collate, read_sample, to_float32
from .shards import KIND, VERSION, DataError, ShardInfo
from .waiting import Get, Patience, at_once

_MOST = 1000
"""Most repeats of a picture."""
SHUFFLE_WINDOW = 32_768
"""Samples that are shuffled among each other. A dataset of no more is shuffled as a whole; of a larger one the shards
are shuffled, and this many samples at a time, so that a cache of remote shards can be smaller than the dataset."""


class FeatureDataset:
    """A folder, or URL, of shards that `prepare` made: see shards.py for what is in them.

    Args:
        patience: for a URL's store, when it is busy or out of reach; default: it says in the log what is waited for.

    Raises:
        DataError: if there is no dataset, or one of another kind.
    """

    def __init__(self, location: str | Path, cache: str | Path | None = None, patience: Patience | None = None):
        self.location = Location(location, cache)
        self._get: Get = (patience or Patience()).get if self.location.is_remote else at_once
        text = self._get(self.location.describe)
        try:
            self.description = parse_json(text)
        except ValueError as error:
            raise self._damaged(error) from error
        if not isinstance(self.description, dict):
            raise self._damaged("it is no JSON object")
        if self.description.get("kind") != KIND:
            raise DataError(f"{self.location}/dataset.json is of kind {self.description.get('kind')!r}, not {KIND!r}")
        if self.description.get("version") != VERSION:
            raise DataError(f"{self.location} was prepared by another version of this trainer: run `prepare` again")
        scale = self.description.get("scaling_factor")
        if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0 < scale < math.inf:
            raise self._damaged(f"its scaling_factor is {scale!r}")
        try:
            listed = self.description["shards"]
            self.shards = [ShardInfo(**{**each, "bucket": tuple(each["bucket"])}) for each in listed]
        except DataError as error:
            raise DataError(f"{self.location}: {error}. Run `prepare` again") from error
        except (KeyError, TypeError) as error:
            raise self._damaged(repr(error)) from error
        self._starts = np.cumsum([0, *(shard.count for shard in self.shards)])
        self._times = self._repeats()

    def __getstate__(self) -> dict[str, Any]:
        """The dataset as a reading process gets it, which does not wait itself: it tells the one that started it."""
        return {**self.__dict__, "_get": at_once}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _damaged(self, problem: object) -> DataError:
        """The error about a description that is not what `prepare` wrote."""
        return DataError(f"{self.location}/dataset.json is damaged: run `prepare` again ({problem})")

    def _repeats(self) -> np.ndarray:
        """How often each sample comes in an epoch."""
        times = np.ones(len(self), np.int64)
        try:
            for name, count in self.description.get("repeats", {}).items():
                if type(count) is not int or not 0 < count <= _MOST:
                    raise ValueError(count)
                times[int(name)] = count
        except (ValueError, IndexError, AttributeError) as error:
            raise self._damaged("its repeats") from error
        return times

    @property
    def rows(self) -> dict[tuple[int, int], int]:
        """Rows of an epoch of each size (height, width in px): its pictures, each as often as it is repeated."""
        return self._by_size(self._times)

    @property
    def buckets(self) -> dict[tuple[int, int], int]:
        """Pictures of each size (height, width in px)."""
        return self._by_size(self._times > 0)

    def _by_size(self, counted: np.ndarray) -> dict[tuple[int, int], int]:
        """What is counted of each sample, summed up for each size; those with nothing are left out."""
        counts: dict[tuple[int, int], int] = {}
        for shard, start, end in zip(self.shards, self._starts, self._starts[1:], strict=False):
            counts[shard.bucket] = counts.get(shard.bucket, 0) + int(counted[start:end].sum())
        return {size: count for size, count in counts.items() if count}

    def hold_out(self, share: float) -> list[int]:
        """Take a share of the pictures, at least one, out of all batches; returns their numbers. The same ones every
        time.

        Raises:
            DataError: if none would be left.
        """
        count = max(1, round(share * len(self)))
        if count >= len(self):
            raise DataError(f"{self.location} holds {len(self)} pictures: validation={share} leaves none to train on")
        chosen = torch.randperm(len(self), generator=generator_for(len(self)))[:count].sort().values.tolist()
        self._times[chosen] = 0
        return chosen

    def some(
        self, numbers: Sequence[int], batch_size: int, hint: bool = False
    ) -> list[tuple[list[int], dict[str, Any]]]:
        """These samples in batches of one size, as those of `batches`, with their numbers: the same every time.

        Raises:
            DataError: as `batches`.
        """
        reader = _Reader(self, 0, hint)
        sizes: dict[tuple[int, int], list[int]] = {}
        for number in numbers:
            sizes.setdefault(self.locate(number)[0].bucket, []).append(number)
        groups = [each[at : at + batch_size] for each in sizes.values() for at in range(0, len(each), batch_size)]
        out = []
        for group in groups:
            batch = collate(self._fixed(reader, group))
            out.append((group, {name: value for name, value in batch.items() if isinstance(value, Tensor)}))
        return out

    def _fixed(self, reader: _Reader, numbers: Iterable[int]) -> list[dict[str, Any]]:
        """Samples, each with the wording and the latent that it has every time."""
        return [self._get(functools.partial(reader.sample, each, generator_for(0, each))) for each in numbers]

    def batches(
        self,
        batch_size: int,
        seed: int,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        hint: bool = False,
        whole: bool = False,
    ) -> Iterator[dict[str, Any]]:
        """Endless batches of one of `world` processes, beginning at batch number `start` of the same sequence.

        The batches of all processes are planned as one of at most world · batch_size, of which this one takes every
        world-th row: how many processes share the work changes nothing. Every sample comes once in an epoch, or as
        often as its folder is repeated.

        Args:
            batch_size: pictures of this process, at most.
            seed: of the order, the wordings and the latents.
            workers: processes that read ahead; 0 reads here.
            hint: whether hints are wanted.
            whole: only whole batches, so that some samples are left out of each epoch: the plan of earlier versions.

        Yields:
            latent (b, 4, h, w), scaled, drawn from the autoencoder's posterior; caption (b, L, D); caption_mask (b, L);
            image_size (b, 2) in px; aspect_ratio (b, 1); hint (b, 4, h, w) if wanted; mask (b, 1, h, w), the share of
            each latent pixel that counts, if the dataset has masks; share (): rows of all processes, as a share of
            world · batch_size; keys: names of this process's pictures. The caption is in half precision, as it is
            stored, the mask of captions uint8, the rest float32. A process for which a batch has no row gets another's,
            and no keys: what it computes counts for nothing.

        Raises:
            DataError: if hints are wanted and there are none, a shard is damaged, or no size fills a whole batch.
        """
        size = batch_size * world
        if not self.batches_per_epoch(size, whole):
            raise DataError(
                f"{self.location}: no size has the {size} pictures of a batch, and this run was begun by an earlier "
                "version, which took whole batches alone: begin a new run, in a new folder, which takes every picture"
            )
        reader = _Reader(self, seed, hint)
        planned = self._numbered(size, seed, start, rank, world, whole)
        yield from read_ahead(reader, planned, workers, self._get)

    def batches_per_epoch(self, size: int, whole: bool = False) -> int:
        """Batches of at most `size` pictures, over all processes, that an epoch has.

        Args:
            whole: see `batches`.
        """
        return sum(count // size if whole else -(-count // size) for count in self.rows.values())

    def rows_per_epoch(self, size: int, whole: bool = False) -> int:
        """Rows that an epoch has: all of them, unless only whole batches are taken."""
        return sum(count // size * size if whole else count for count in self.rows.values())

    def locate(self, sample: int) -> tuple[ShardInfo, int]:
        """The shard that holds a sample, and its row there."""
        shard = int(np.searchsorted(self._starts, sample, side="right")) - 1
        return self.shards[shard], int(sample - self._starts[shard])

    def examples(self, count: int, hint: bool = False) -> tuple[dict[str, Any], list[str]]:
        """The first pictures of the largest bucket, at most `count`, as a batch, and their captions: to sample with.

        Raises:
            DataError: as `batches`.
        """
        reader = _Reader(self, 0, hint)
        largest = max(self.buckets, key=self.buckets.__getitem__)
        shards = [index for index, shard in enumerate(self.shards) if shard.bucket == largest]
        every = (number for index in shards for number in range(self._starts[index], self._starts[index + 1]))
        numbers = (number for number in every if self._times[number])
        samples = self._fixed(reader, itertools.islice(numbers, count))
        batch = {name: to_float32(value) for name, value in collate(samples).items()}
        return batch, [sample["prompt"] for sample in samples]

    def _numbered(
        self, size: int, seed: int, start: int, rank: int, world: int, whole: bool
    ) -> Iterator[_PlannedBatch]:
        """This process's batches, without end."""
        per_epoch = self.batches_per_epoch(size, whole)
        for epoch in itertools.count(start // per_epoch):
            plan = self._plan(size, seed, epoch, whole)
            for index in range(start % per_epoch if epoch == start // per_epoch else 0, per_epoch):
                rows = list(enumerate(plan[index].tolist()))
                own = rows[rank::world]
                yield _PlannedBatch(epoch * per_epoch + index, own or rows[:1], len(rows) / size, not own)

    def _plan(self, size: int, seed: int, epoch: int, whole: bool) -> list[Tensor]:
        """Sample numbers of each batch of an epoch."""
        generator = generator_for(seed, epoch)
        queues = [_dealt_out(self._shuffled(bucket, generator), size, whole) for bucket in self.buckets]
        turns = torch.repeat_interleave(torch.tensor([len(queue) for queue in queues]))
        turns = turns[torch.randperm(len(turns), generator=generator)]
        following = [iter(queue) for queue in queues]
        return [next(following[turn]) for turn in turns.tolist()]

    def _shuffled(self, bucket: tuple[int, int], generator: torch.Generator) -> Tensor:
        """The samples of a bucket: shards in random order, samples in random order within windows of shards."""
        shards = [index for index, shard in enumerate(self.shards) if shard.bucket == bucket]
        window = max(1, SHUFFLE_WINDOW * self.rows[bucket] // int(self._times.sum()))
        parts, waiting = [], []
        for index in torch.randperm(len(shards), generator=generator).tolist():
            shard = shards[index]
            numbers = torch.arange(self._starts[shard], self._starts[shard + 1])
            waiting.append(numbers.repeat_interleave(torch.from_numpy(self._times[numbers.numpy()])))
            if sum(map(len, waiting)) >= window:
                parts.append(_mix(waiting, generator))
                waiting = []
        return torch.cat([*parts, _mix(waiting, generator)] if waiting else parts)


def require_hints(location: Any, description: Mapping[str, Any]) -> None:
    """Raises DataError if the samples of a dataset, going by its description, have no hints."""
    if not description.get("hints"):
        raise DataError(f"{location} was prepared without hints: run `prepare` again with hints=hed or a folder")


class _PlannedBatch(NamedTuple):
    """A process's part of a batch."""

    number: int
    rows: list[tuple[int, int]]
    """(row of the whole batch, sample)."""
    share: float
    idle: bool
    """Whether the row is another process's, because there is none for this one."""


def _dealt_out(samples: Tensor, size: int, whole: bool) -> Sequence[Tensor]:
    """Samples in batches of at most `size`, as few and as even as can be; or in whole ones, and the rest left out."""
    if whole:
        return samples[: len(samples) // size * size].view(-1, size).unbind()
    return samples.tensor_split(-(-len(samples) // size))


def _mix(samples: list[Tensor], generator: torch.Generator) -> Tensor:
    together = torch.cat(samples)
    return together[torch.randperm(len(together), generator=generator)]


class _Reader:
    """Planned batches to tensors; runs in the reading processes.

    Raises:
        DataError: if hints are wanted and there are none.
    """

    def __init__(self, dataset: FeatureDataset, seed: int, hint: bool):
        if hint:
            require_hints(dataset.location, dataset.description)
        self.dataset, self.seed, self.hint = dataset, seed, hint

    def __call__(self, planned: _PlannedBatch) -> dict[str, Any]:
        samples = [self.sample(sample, generator_for(self.seed, planned.number, row)) for row, sample in planned.rows]
        batch = collate(samples) | {"share": torch.tensor(planned.share)}
        return batch | ({"keys": []} if planned.idle else {})

    def sample(self, sample: int, generator: torch.Generator) -> dict[str, Any]:
        info, row = self.dataset.locate(sample)
        shard = self.dataset.location.open(info)
        return read_sample(shard, row, info.bucket, self.dataset.description, self.hint, generator)
