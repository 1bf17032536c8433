"""Prepared features: latents and text embeddings by aspect bucket, in an order that depends on seed and step alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

KIND = "pixart_delta_features"
_CAPTION_PADDING = 8
"""Captions of a batch are cut to the longest, rounded up to this: few shapes, so few graphs to compile."""


class DataError(ValueError):
    """A dataset that is missing, damaged or of another kind."""


class FeatureDataset:
    """A folder of dataset.json and one bucket_HxW.safetensors per picture size.

    A bucket holds latent (N, C, h, w), caption (N, K, L, D) for K wordings of each picture, caption_mask (N, K, L),
    image_size (N, 2) in px, and aspect_ratio (N, 1). Files are memory-mapped.
    """

    def __init__(self, folder: str | Path):
        folder = Path(folder)
        try:
            description = json.loads((folder / "dataset.json").read_text())
        except (OSError, json.JSONDecodeError) as error:
            raise DataError(f"{folder} is not a folder of prepared features: {error}") from error
        if description.get("kind") != KIND:
            raise DataError(f"{folder / 'dataset.json'} is of kind {description.get('kind')!r}, not {KIND!r}")
        self.description = description
        self.buckets = [_read_bucket(folder / name) for name in description["buckets"]]

    def __len__(self) -> int:
        return sum(len(bucket["latent"]) for bucket in self.buckets)

    def batches(self, batch_size: int, seed: int, start: int = 0) -> Iterator[dict[str, Tensor]]:
        """Endless batches, each of one bucket, beginning at batch number `start` of the same sequence.

        Raises:
            DataError: if no bucket fills a batch.
        """
        if all(len(bucket["latent"]) < batch_size for bucket in self.buckets):
            raise DataError(f"no bucket holds {batch_size} pictures: lower batch_size")
        epoch, number = 0, 0
        while True:
            generator = torch.Generator().manual_seed(seed * 100_003 + epoch)
            plan = self._plan(batch_size, generator)
            if number + len(plan) <= start:
                number += len(plan)
            else:
                for bucket, rows in plan:
                    if number >= start:
                        yield self._batch(bucket, rows, torch.Generator().manual_seed(seed * 7_919 + number))
                    number += 1
            epoch += 1

    def _plan(self, batch_size: int, generator: torch.Generator) -> list[tuple[int, Tensor]]:
        plan = []
        for index, bucket in enumerate(self.buckets):
            order = torch.randperm(len(bucket["latent"]), generator=generator)
            plan += [(index, rows) for rows in order.split(batch_size) if len(rows) == batch_size]
        return [plan[place] for place in torch.randperm(len(plan), generator=generator).tolist()]

    def _batch(self, bucket: int, rows: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        tensors = self.buckets[bucket]
        wording = torch.randint(tensors["caption"].shape[1], (len(rows),), generator=generator)
        mask = tensors["caption_mask"][rows, wording]
        length = min(-(-int(mask.sum(1).max()) // _CAPTION_PADDING) * _CAPTION_PADDING, mask.shape[1])
        return {
            "latent": tensors["latent"][rows].float(),
            "caption": tensors["caption"][rows, wording, :length].float(),
            "caption_mask": mask[:, :length],
            "image_size": tensors["image_size"][rows].float(),
            "aspect_ratio": tensors["aspect_ratio"][rows].float(),
        }


def _read_bucket(file: Path) -> dict[str, Tensor]:
    names = ("latent", "caption", "caption_mask", "image_size", "aspect_ratio")
    try:
        with safe_open(file, "pt") as opened:
            return {name: opened.get_tensor(name) for name in names}
    except Exception as error:  # safetensors raises its own, untyped errors for a missing, truncated or foreign file
        raise DataError(f"{file} cannot be read as prepared features: {error}") from error
