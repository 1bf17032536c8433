"""A folder of small pictures with captions, as a user might have it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

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
