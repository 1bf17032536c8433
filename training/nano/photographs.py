"""Photographs and what a full HED sees in them: what the nano family's narrow HED is distilled from.

The edges are computed once (seconds a photograph) and kept in a folder, so that a training started again does not
wait for them; crops of the two are drawn when they are needed.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from safetensors import safe_open
from torch import Tensor

from ...pixart_core.hed import HED, detect, fused
from ...pixart_core.saving import save_weights
from .learning import fast_half

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
SIDES = (768, 512, 320)
"""Shorter side in px at which photographs are seen in turn: who knows one scale only is surprised by others."""
_CLIP = 8.0
"""Logits beyond are as good as certain."""


def photographs(folder: Path) -> list[Path]:
    """The pictures below a folder, sorted.

    Raises:
        SystemExit: if there is none.
    """
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not found:
        raise SystemExit(f"{folder} holds no picture ({', '.join(SUFFIXES)})")
    return found


def read(path: Path, side: int) -> Tensor:
    """A picture as (3, H, W) uint8, the shorter side `side` px, both multiples of 16, at most 4:3."""
    with Image.open(path) as file:
        picture = ImageOps.exif_transpose(file).convert("RGB")
    scale = side / min(picture.size)
    width, height = (min(max(round(length * scale / 16), 1) * 16, side * 4 // 3 // 16 * 16) for length in picture.size)
    fitted = ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1).contiguous()


@torch.no_grad()
def seen_by(teacher: HED, pixels: Tensor) -> list[Tensor]:
    """The teacher's five side outputs for (3, H, W) in 0 … 255, before the sigmoid: (1, H / 2^i, W / 2^i) float16."""
    with fast_half(pixels.device):
        sides = teacher(pixels[None].float().contiguous(memory_format=torch.channels_last))
    return [side[0].clamp(-_CLIP, _CLIP).half() for side in sides]


def remember(teacher: HED, teacher_path: Path, pictures: Sequence[Path], folder: Path) -> list[Path]:
    """One file for each picture in `folder`, its pixels and edges; what is there already is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for index, path in enumerate(pictures):
        side = SIDES[index % len(SIDES)]
        made_from = f"{path.resolve()} {path.stat().st_size} {teacher_path.resolve()}"
        file = folder / f"{hashlib.sha256(made_from.encode()).hexdigest()[:16]}_{side}.safetensors"
        if not file.exists():
            pixels = read(path, side)
            sides = {f"side{level}": edges for level, edges in enumerate(seen_by(teacher, pixels))}
            save_weights({"pixels": pixels, **sides}, file)
        files.append(file)
        print(f"edges of {path.name} ({index + 1} of {len(pictures)})", flush=True)
    return files


class Crops:
    """Square crops of remembered photographs with the teacher's edges, mirrored half of the time."""

    def __init__(self, files: Sequence[Path], side: int = 192):
        self.side = side
        self.files = [safe_open(file, framework="pt") for file in files]

    def batch(self, rng: random.Random, count: int) -> tuple[Tensor, list[Tensor]]:
        """Pixels (count, 3, side, side) in 0 … 255 and five side outputs (count, 1, side / 2^i, …), float32."""
        rows = [self._crop(rng) for _ in range(count)]
        pixels, *sides = (torch.stack(parts).float() for parts in zip(*rows, strict=True))
        return pixels, sides

    def _crop(self, rng: random.Random) -> list[Tensor]:
        file = rng.choice(self.files)
        height, width = file.get_slice("pixels").get_shape()[1:]
        # Whole cells of the coarsest map, so that every map is cut at the same place.
        top, left = (rng.randint(0, (length - self.side) // 16) * 16 for length in (height, width))
        parts = []
        for level, name in enumerate(("pixels", *(f"side{level}" for level in range(5)))):
            step = 2 ** max(level - 1, 0)
            a, b, length = top // step, left // step, self.side // step
            parts.append(file.get_slice(name)[:, a : a + length, b : b + length])
        return [part.flip(-1) for part in parts] if rng.random() < 0.5 else parts


def distillation_loss(sides: list[Tensor], teacher: list[Tensor], fused_weight: float) -> Tensor:
    """Cross entropy with the teacher's soft edges: of each side at its size, of the mean of all at full size."""
    loss = sum(
        F.binary_cross_entropy_with_logits(side, target.sigmoid()) for side, target in zip(sides, teacher, strict=True)
    )
    mean, target = (fused(maps, teacher[0].shape[-2:]) for maps in (sides, teacher))
    plain = F.binary_cross_entropy_with_logits(mean, target.sigmoid())
    return loss + fused_weight * (plain + 10 * F.mse_loss(mean.sigmoid(), target.sigmoid()))


def agreement(net: HED, teacher: HED, pictures: Sequence[Path], side: int = SIDES[0]) -> list[float]:
    """Correlation of the two networks' soft edges (`pixart_core.detect`) on each picture, −1 … 1."""
    values = []
    for path in pictures:
        pixels = read(path, side).permute(1, 2, 0)[None].float() / 255
        maps = torch.stack([detect(model, pixels).flatten() for model in (net, teacher)])
        values.append(float(torch.corrcoef(maps)[0, 1]))
    return values
