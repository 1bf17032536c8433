"""A tiny dataset of prepared features, random but always the same, as `prepare` would have written it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from pixart_delta.training.data import FeatureDataset
from pixart_delta.training.data.shards import write_description, write_shard

BUCKETS = {(64, 64): 12, (48, 80): 9}
"""Height, width in px -> pictures."""


def make_features(
    folder: Path,
    buckets: Mapping[tuple[int, int], int] = BUCKETS,
    width: int = 16,
    tokens: tuple[int, ...] = (10, 6),
    shard_size: int = 5,
    hint: bool = True,
    deviation: bool = True,
    seed: int = 0,
) -> Path:
    """Write shards and dataset.json into `folder`, which is made, and return it.

    Args:
        buckets: height, width in px -> number of pictures.
        width: of the text embeddings.
        tokens: of each wording.
        hint: whether the samples have hints.
        deviation: whether latents have a deviation (8 channels), as AutoencoderKL's, or not (4), as the nano family's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    shards, number = [], 0

    def moments(height, width):
        mean = rng.standard_normal((4, height // 8, width // 8))
        return np.concatenate([mean, np.full_like(mean, 0.1)] if deviation else [mean]).astype(np.float16)

    for size, count in buckets.items():
        samples = []
        for _ in range(count):
            sample = {
                "__key__": f"{number:08d}",
                "moments.npy": moments(*size),
                "caption.npy": rng.standard_normal((sum(tokens), width)).astype(np.float16),
                "json": {
                    "height": size[0],
                    "width": size[1],
                    "bucket": list(size),
                    "ratio": round(size[0] / size[1], 2),
                    "captions": [f"picture {number}, wording {index}" for index in range(len(tokens))],
                    "tokens": list(tokens),
                    "source": f"{number:08d}.png",
                },
            }
            samples.append(sample | ({"hint.npy": moments(*size)} if hint else {}))
            number += 1
        for start in range(0, count, shard_size):
            name = f"{size[0]}x{size[1]}_{start // shard_size:05d}.tar"
            shards.append(write_shard(folder, name, size, samples[start : start + shard_size]))
    write_description(
        folder,
        shards,
        scaling_factor=1.0,
        caption_channels=width,
        max_tokens=max(tokens),
        hints="hed" if hint else "",
        pictures=number,
    )
    return folder


def take(location, count, batch_size=4, seed=1, **options):
    """The first batches of a dataset."""
    cache = options.pop("cache", None)
    return list(itertools.islice(FeatureDataset(location, cache).batches(batch_size, seed, **options), count))


def same(one, other) -> bool:
    """Whether two batches are equal to the last bit."""
    return one["keys"] == other["keys"] and all(torch.equal(one[name], other[name]) for name in one if name != "keys")
