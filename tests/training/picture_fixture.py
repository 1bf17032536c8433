"""A folder of small pictures with captions, as a user might have it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from pixart_delta.training.config import PrepareConfig

SIZES = ((64, 64), (72, 120), (64, 64), (120, 72))
"""Height, width of one picture after the other; at a resolution of 64 they fall into three buckets."""


def draw_picture(seed: int, height: int, width: int) -> Image.Image:
    """A picture of noise, always the same."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def make_pictures(folder: Path, count: int) -> Path:
    """Write 0000.png, 0000.txt, … and return the folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        draw_picture(number, *SIZES[number % len(SIZES)]).save(folder / f"{number:04d}.png")
        (folder / f"{number:04d}.txt").write_text(f"a sky over a lake, number {number}\n")
    return folder


def prepare_settings(folder: Path, models: Path | str, **changes) -> PrepareConfig:
    """Settings that make of folder/pictures shards of two pictures in folder/out."""
    values = {"input": str(folder / "pictures"), "output": str(folder / "out"), "models": str(models)}
    return PrepareConfig(**values | {"resolution": 64, "shard_size": 2, "workers": 0, "batch_size": 2} | changes)


def shard_bytes(folder: Path) -> dict[str, bytes]:
    """The files of a dataset."""
    return {file.name: file.read_bytes() for file in [*folder.glob("*.tar"), folder / "dataset.json"]}
