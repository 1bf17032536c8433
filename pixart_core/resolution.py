"""The aspect-ratio bins that the 256, 512 and 1024 px models were trained on, and the way back to the asked size."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

# The authors' table for 1024 px: height / width -> (height, width) in px. Their 512 and 256 tables are halves and
# quarters of it. The marked bins exist in training only; inference (theirs and diffusers') leaves them out.
_BINS_1024 = {
    0.25: (512, 2048), 0.26: (512, 1984), 0.27: (512, 1920), 0.28: (512, 1856), 0.32: (576, 1792), 0.33: (576, 1728),
    0.35: (576, 1664), 0.4: (640, 1600), 0.42: (640, 1536), 0.48: (704, 1472), 0.5: (704, 1408), 0.52: (704, 1344),
    0.57: (768, 1344), 0.6: (768, 1280), 0.68: (832, 1216), 0.72: (832, 1152), 0.78: (896, 1152), 0.82: (896, 1088),
    0.88: (960, 1088), 0.94: (960, 1024), 1.0: (1024, 1024), 1.07: (1024, 960), 1.13: (1088, 960), 1.21: (1088, 896),
    1.29: (1152, 896), 1.38: (1152, 832), 1.46: (1216, 832), 1.67: (1280, 768), 1.75: (1344, 768), 2.0: (1408, 704),
    2.09: (1472, 704), 2.4: (1536, 640), 2.5: (1600, 640), 2.89: (1664, 576), 3.0: (1728, 576), 3.11: (1792, 576),
    3.62: (1856, 512), 3.75: (1920, 512), 3.88: (1984, 512), 4.0: (2048, 512),
}  # fmt: skip
_TRAINING_ONLY = {0.26, 0.27, 2.89, 3.11, 3.62, 3.75, 3.88}

Bins = dict[float, tuple[int, int]]


BASES = (256, 512, 1024)


def bins(base: int, training: bool = False) -> Bins:
    """The table of a base size: height / width -> (height, width) in px; 33 bins, with `training` 40.

    Raises:
        ValueError: if the authors published no table for `base`.
    """
    if base not in BASES:
        raise ValueError(f"there are aspect-ratio bins for {', '.join(map(str, BASES))} px, not for {base}")
    return {
        ratio: (height * base // 1024, width * base // 1024)
        for ratio, (height, width) in _BINS_1024.items()
        if training or ratio not in _TRAINING_ONLY
    }


def nearest_bin(height: int, width: int, base: int = 1024, training: bool = False) -> tuple[int, int]:
    """The bin (height, width) in px whose ratio is nearest to height / width; a tie goes to the smaller ratio."""
    if height < 1 or width < 1:
        raise ValueError(f"height and width must be at least 1 px, got {height} x {width}")
    table = bins(base, training)
    return table[min(table, key=lambda ratio: abs(ratio - height / width))]


def with_ratio(height: int, width: int, ratio: float) -> tuple[int, int]:
    """(height, width) in px of the same area with another width / height, in multiples of 8."""
    side = math.sqrt(height * width)
    return max(8, round(side / math.sqrt(ratio) / 8) * 8), max(8, round(side * math.sqrt(ratio) / 8) * 8)


def resize(images: Tensor, height: int, width: int) -> Tensor:
    """(B, C, h, w) -> (B, C, height, width): averages along a side that shrinks, interpolates along one that grows.

    For edge maps: bilinear interpolation looks at four pixels, and drops thin lines when it shrinks to less than half.
    """
    shrunk = (min(height, images.shape[-2]), min(width, images.shape[-1]))
    images = F.interpolate(images, size=shrunk, mode="area")
    return F.interpolate(images, size=(height, width), mode="bilinear", align_corners=False)


def resize_and_crop(images: Tensor, height: int, width: int, average: bool = False) -> Tensor:
    """Bring pictures made at a bin's size to the asked size: cover it, then cut the overhang off both sides equally.

    Args:
        images: (B, C, h, w).
        height, width: asked size in px.
        average: resize with `resize`, without aliasing, instead of bilinearly as diffusers does.

    Returns:
        (B, C, height, width).
    """
    old_height, old_width = images.shape[-2:]
    if (old_height, old_width) == (height, width):
        return images
    ratio = max(height / old_height, width / old_width)
    # max() keeps float error from making a side one pixel too short, which int() alone would.
    new_height, new_width = max(int(old_height * ratio), height), max(int(old_width * ratio), width)
    if average:
        images = resize(images, new_height, new_width)
    else:
        images = F.interpolate(images, size=(new_height, new_width), mode="bilinear", align_corners=False)
    top, left = (new_height - height) // 2, (new_width - width) // 2
    return images[..., top : top + height, left : left + width]
