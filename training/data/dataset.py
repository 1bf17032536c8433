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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...pixart_core.textfile import parse_json
from .draws import generator_for
from .readahead import read_ahead
from .remote import Location
from .shards import KIND, VERSION, DataError, ShardInfo, flipped
from .waiting import Get, Patience, at_once

_MOST = 1000
"""Most repeats of a picture."""
CAPTION_PADDING = 8
"""Captions of a batch are padded to the longest, rounded up to this: few shapes, so few graphs to compile."""
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
            raise DataError(f"{self.location}/dataset.json is damaged: run `prepare` again ({error})") from error
        if not isinstance(self.description, dict):
            raise DataError(f"{self.location}/dataset.json is damaged: run `prepare` again (it is no JSON object)")
        if self.description.get("kind") != KIND:
            raise DataError(f"{self.location}/dataset.json is of kind {self.description.get('kind')!r}, not {KIND!r}")
        if self.description.get("version") != VERSION:
            raise DataError(f"{self.location} was prepared by another version of this trainer: run `prepare` again")
        scale = self.description.get("scaling_factor")
        if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0 < scale < math.inf:
            raise DataError(
                f"{self.location}/dataset.json is damaged: its scaling_factor is {scale!r}; run `prepare` again"
            )
        try:
            listed = self.description["shards"]
            self.shards = [ShardInfo(**{**each, "bucket": tuple(each["bucket"])}) for each in listed]
        except DataError as error:
            raise DataError(f"{self.location}: {error}. Run `prepare` again") from error
        except (KeyError, TypeError) as error:
            raise DataError(f"{self.location}/dataset.json is damaged: run `prepare` again ({error!r})") from error
        self._starts = np.cumsum([0, *(shard.count for shard in self.shards)])
        self._times = self._repeats()

    def __getstate__(self) -> dict[str, Any]:
        """The dataset as a reading process gets it, which does not wait itself: it tells the one that started it."""
        return {**self.__dict__, "_get": at_once}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _repeats(self) -> np.ndarray:
        """How often each sample comes in an epoch."""
        times = np.ones(len(self), np.int64)
        try:
            for name, count in self.description.get("repeats", {}).items():
                if type(count) is not int or not 0 < count <= _MOST:
                    raise ValueError(count)
                times[int(name)] = count
        except (ValueError, IndexError, AttributeError) as error:
            raise DataError(f"{self.location}/dataset.json is damaged: its repeats; run `prepare` again") from error
        return times

    @property
    def rows(self) -> dict[tuple[int, int], int]:
        """Rows of an epoch of each size (height, width in px): its pictures, each as often as it is repeated."""
        counts = dict.fromkeys(self.buckets, 0)
        for shard, start, end in zip(self.shards, self._starts, self._starts[1:], strict=False):
            counts[shard.bucket] += int(self._times[start:end].sum())
        return counts

    @property
    def buckets(self) -> dict[tuple[int, int], int]:
        """Pictures of each size (height, width in px)."""
        counts: dict[tuple[int, int], int] = {}
        for shard, start, end in zip(self.shards, self._starts, self._starts[1:], strict=False):
            counts[shard.bucket] = counts.get(shard.bucket, 0) + int((self._times[start:end] > 0).sum())
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
        if hint:
            require_hints(self.location, self.description)
        reader = _Reader(self, 0, hint)
        sizes: dict[tuple[int, int], list[int]] = {}
        for number in numbers:
            sizes.setdefault(self.locate(number)[0].bucket, []).append(number)
        groups = [each[at : at + batch_size] for each in sizes.values() for at in range(0, len(each), batch_size)]
        out = []
        for group in groups:
            samples = [self._get(functools.partial(reader.sample, each, generator_for(0, each))) for each in group]
            batch = collate(samples)
            out.append((group, {name: value for name, value in batch.items() if isinstance(value, Tensor)}))
        return out

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
        if hint:
            require_hints(self.location, self.description)
        planned = self._numbered(size, seed, start, rank, world, whole)
        yield from read_ahead(_Reader(self, seed, hint), planned, workers, self._get)

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
        if hint:
            require_hints(self.location, self.description)
        largest = max(self.buckets, key=self.buckets.__getitem__)
        shards = [index for index, shard in enumerate(self.shards) if shard.bucket == largest]
        every = (number for index in shards for number in range(self._starts[index], self._starts[index + 1]))
        numbers = (number for number in every if self._times[number])
        reader = _Reader(self, 0, hint)
        chosen = itertools.islice(numbers, count)
        samples = [self._get(functools.partial(reader.sample, number, generator_for(0, number))) for number in chosen]
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
    """Planned batches to tensors; runs in the reading processes."""

    def __init__(self, dataset: FeatureDataset, seed: int, hint: bool):
        self.dataset, self.seed, self.hint = dataset, seed, hint

    def __call__(self, planned: _PlannedBatch) -> dict[str, Any]:
        samples = [self.sample(sample, generator_for(self.seed, planned.number, row)) for row, sample in planned.rows]
        batch = collate(samples) | {"share": torch.tensor(planned.share)}
        return batch | ({"keys": []} if planned.idle else {})

    def sample(self, sample: int, generator: torch.Generator) -> dict[str, Any]:
        info, row = self.dataset.locate(sample)
        about = self.dataset.description
        mirrored = bool(about.get("flip")) and bool(torch.randint(2, (), generator=generator))
        shown = {
            name: flipped(name) if mirrored else name for name in ("moments.npy", *(["hint.npy"] if self.hint else []))
        }
        parts = [*shown.values(), "caption.npy", "json", *(["mask.npy"] if about.get("masks") else [])]
        shard = self.dataset.location.open(info)
        read = shard.read(row, parts)
        stored = {**read, **{name: read[part] for name, part in shown.items()}}
        problem = _problem(stored, info, self.dataset.description.get("caption_channels"))
        if problem:
            source = stored["json"].get("source") if isinstance(stored["json"], dict) else None
            raise shard.error(f"holds a sample that cannot be used, {source or shard.keys[row]}: {problem}")
        about, scale = stored["json"], self.dataset.description["scaling_factor"]
        wording = int(torch.randint(len(about["tokens"]), (), generator=generator))
        first = sum(about["tokens"][:wording])
        out = {
            "latent": _draw(stored["moments.npy"], scale, generator),
            "caption": torch.from_numpy(stored["caption.npy"][first : first + about["tokens"][wording]]),
            "image_size": (about["height"], about["width"]),
            "aspect_ratio": (about["ratio"],),
            "keys": about["source"],
            "prompt": about["captions"][wording],
        }
        if self.hint:
            out["hint"] = _draw(stored["hint.npy"], scale, generator)
        if "mask.npy" in stored:
            mask = torch.from_numpy(stored["mask.npy"]).float()
            out["mask"] = mask.flip(2) if mirrored else mask
        return out


def _problem(stored: dict[str, Any], info: ShardInfo, channels: int | None) -> str:
    """What is wrong with a sample's parts; empty if nothing is."""
    about = stored["json"]
    if not isinstance(about, dict):
        return "its description is no JSON object"
    size = (info.bucket[0] // 8, info.bucket[1] // 8)
    for part in ("moments.npy", "hint.npy"):
        array = stored.get(part)
        if array is not None and (array.dtype.kind != "f" or array.ndim != 3 or array.shape[1:] != size):
            return f"{part} is {array.shape} of {array.dtype}, and its bucket wants numbers ({size[0]}, {size[1]})"
        if array is not None and len(array) not in (4, 8):
            return f"{part} has {len(array)} channels, not 4 or 8"
    mask = stored.get("mask.npy")
    if mask is not None:
        good = mask.dtype.kind == "f" and mask.shape == (1, *size) and np.isfinite(mask).all() and mask.min() >= 0
        if not (good and mask.any()):
            return (
                f"mask.npy is {mask.shape} of {mask.dtype}, and shares (1, {size[0]}, {size[1]}) are wanted, not all 0"
            )
    tokens, captions = about.get("tokens"), about.get("captions")
    if not (isinstance(tokens, list) and tokens and all(type(each) is int and each > 0 for each in tokens)):
        return f"its numbers of tokens are {tokens!r}"
    if not (isinstance(captions, list) and len(captions) == len(tokens)):
        return f"it has {len(tokens)} wordings and other captions: {captions!r}"
    caption = stored["caption.npy"]
    wanted = (sum(tokens), caption.shape[-1] if channels is None and caption.ndim else channels)
    if caption.dtype.kind != "f" or caption.shape != wanted:
        return f"caption.npy is {caption.shape} of {caption.dtype}, and numbers {wanted} are wanted"
    for name in ("height", "width", "ratio"):
        value = about.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e6:
            return f"its {name} is {value!r}"
    return "" if isinstance(about.get("source"), str) else f"its source is {about.get('source')!r}"


def to_float32(value: Any) -> Any:
    """What was stored in half precision as what is computed with."""
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.float16 else value


def _draw(stored: np.ndarray, scale: float, generator: torch.Generator) -> Tensor:
    """A latent from its posterior, scaled; from an autoencoder without deviations, the latent itself."""
    moments = torch.from_numpy(stored).float()
    if len(moments) == 4:
        return moments * scale
    mean, deviation = moments.chunk(2)
    return (mean + deviation * torch.randn(mean.shape, generator=generator)) * scale


def padded(tokens: int) -> int:
    """Length of the captions of a batch whose longest has so many tokens."""
    return -(-tokens // CAPTION_PADDING) * CAPTION_PADDING


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Samples, each with caption (tokens, D), image_size, aspect_ratio and keys, and latent, hint and mask or none of
    them, as one batch of `FeatureDataset.batches`."""
    lengths = [len(sample["caption"]) for sample in samples]
    caption = samples[0]["caption"].new_zeros(len(samples), padded(max(lengths)), samples[0]["caption"].shape[1])
    for row, (sample, length) in enumerate(zip(samples, lengths, strict=True)):
        caption[row, :length] = sample["caption"]
    together: dict[str, Tensor] = {
        name: torch.stack([sample[name] for sample in samples])
        for name in ("latent", "hint", "mask")
        if name in samples[0]
    }
    for name in ("image_size", "aspect_ratio"):
        together[name] = torch.tensor([sample[name] for sample in samples], dtype=torch.float32)
    mask = (torch.arange(caption.shape[1]) < torch.tensor(lengths)[:, None]).to(torch.uint8)
    return {**together, "caption": caption, "caption_mask": mask, "keys": [sample["keys"] for sample in samples]}
