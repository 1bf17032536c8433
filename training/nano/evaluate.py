"""Measure the nano family on captions it was not trained on: attributes read back, and a contact sheet."""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ...pixart_core.controlnet import Hint
from ...pixart_core.pipeline import Pipeline
from .. import sampling
from .checker import attributes_right
from .scenes import ATTRIBUTES, caption, random_scene

SIZES = ((128, 128), (128, 128), (96, 160), (160, 96))
"""Height, width; the squares twice, as in training."""
SEED = 20_240_117
BATCH = 25
"""Pictures that are made at once."""


def held_out_prompts(count: int) -> list[tuple]:
    """(scene, caption, (height, width)) of scenes whose combination of attributes was never trained on."""
    rng = random.Random(SEED)
    scenes = [random_scene(rng, held_out=True) for _ in range(count)]
    return [(scene, caption(scene, rng), SIZES[index % len(SIZES)]) for index, scene in enumerate(scenes)]


def by_size(prompts: list[tuple], make: Callable[[tuple[int, int], list[int], int], Iterable[Tensor]]) -> list[Tensor]:
    """A latent (4, h, w) for each of `held_out_prompts`, in their order; those of one size are made `BATCH` at once.

    Args:
        make: of a size, the prompts' numbers, and how many of the size there were before.
    """
    made: dict[int, Tensor] = {}
    for size in sorted({size for _, _, size in prompts}):
        rows = [index for index, prompt in enumerate(prompts) if prompt[2] == size]
        for start in range(0, len(rows), BATCH):
            chunk = rows[start : start + BATCH]
            made |= zip(chunk, make(size, chunk, start), strict=True)
    return [made[index] for index in range(len(prompts))]


def pictures(
    pipeline: Pipeline, prompts: list[tuple], hints: list[Tensor] | None = None, strength: float = 1.0, **options
) -> list[Image.Image]:
    """A picture for each prompt.

    Args:
        hints: (1, H, W, 3) for each picture.
        strength: of the hints.
        options: of `Pipeline.sample`.
    """

    def make(size: tuple[int, int], rows: list[int], start: int) -> Tensor:
        texts = [prompts[index][1] for index in rows]
        hint = None if hints is None else Hint(torch.cat([hints[index] for index in rows]), strength)
        return pipeline.sample(texts, height=size[0], width=size[1], seed=start, hint=hint, **options)

    return sampling.pictures(pipeline.vae, by_size(prompts, make))


def score(made: list[Image.Image], prompts: list[tuple]) -> dict[str, float]:
    """Share of attributes right, in percent: of all, and of each."""
    right: Counter[str] = Counter()
    for picture, (scene, _, _) in zip(made, prompts, strict=True):
        right.update(name for name, value in attributes_right(picture, scene).items() if value)
    shares = {name: 100 * right[name] / len(prompts) for name in ATTRIBUTES}
    return {"all": sum(shares.values()) / len(shares), **shares}


def main(arguments: list[str]) -> None:
    """Command line of `train.py nano evaluate`."""
    parser = argparse.ArgumentParser(prog="train.py nano evaluate", description=__doc__)
    parser.add_argument("models", type=Path, help="pipeline folder")
    parser.add_argument("--transformer", help="another transformer than the folder's")
    parser.add_argument("--sampler", choices=("lcm", "dpm"), default="lcm")
    parser.add_argument("--steps", type=int, nargs="+", default=[4])
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--sheet", type=Path, help="PNG file for the first pictures, a row for each number of steps")
    options = parser.parse_args(arguments)
    pipeline = Pipeline.from_pretrained(options.models, transformer=options.transformer)
    prompts, rows = held_out_prompts(options.count), []
    for steps in options.steps:
        made = pictures(pipeline, prompts, steps=steps, sampler=options.sampler, guidance=options.guidance)
        rows.append(made[:12])
        shares = {name: round(value, 1) for name, value in score(made, prompts).items()}
        print(json.dumps({"sampler": options.sampler, "steps": steps, "captions": len(prompts), **shares}), flush=True)
    if options.sheet is not None:
        sampling.contact_sheet(rows).save(options.sheet)
