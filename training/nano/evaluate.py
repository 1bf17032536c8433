"""Measure the nano family on captions it was not trained on: attributes read back, and a contact sheet.

`at once` is the share of pictures in which everything is right at the same time, counts included. On the hard captions,
which all name things that can be counted, it tells apart what is at 99 % in single attributes.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...pixart_core.controlnet import Hint
from ...pixart_core.pipeline import Pipeline
from ...pixart_core.vae import FACTOR, encode
from .. import sampling
from .scene_folder import resized
from .worlds import WORLDS, World, world_of

SIZES = ((128, 128), (128, 128), (96, 160), (160, 96))
"""Height, width at a resolution of 128; the squares twice, as in training."""
SEED = 20_240_117
HARD_SEED = 20_261_126
AT_ONCE = "at once"
BATCH = 25
"""Pictures that are made at once."""
_ROW = 8
"""Pictures in a row of a sheet."""


def held_out_prompts(count: int, resolution: int = 128, world: World = WORLDS[1]) -> list[tuple]:
    """(scene, caption, (height, width)) of scenes whose combination of attributes was never trained on.

    Args:
        resolution: of the model, px.
        world: that the model was trained on.
    """
    rng = random.Random(SEED)
    scenes = [world.pick(rng, held_out=True) for _ in range(count)]
    return [(scene, world.caption(scene, rng), _size(index, resolution)) for index, scene in enumerate(scenes)]


def hard_prompts(count: int, resolution: int = 128, world: World = WORLDS[1]) -> list[tuple]:
    """As `held_out_prompts`, of scenes with things that can be counted, and captions that say how many.

    In the first world a house, three trees and a boat in turn; in the second several trees and several sheep, one
    group left of the other.
    The first are the same whatever the count, and none has a combination of attributes that was ever trained on.
    """
    rng = random.Random(HARD_SEED)
    # Every size with every thing of the first world: three things, and four sizes.
    return [(*world.hard(rng, index), _size(index, resolution)) for index in range(count)]


def _size(index: int, resolution: int) -> tuple[int, int]:
    return resized(SIZES[index % len(SIZES)], resolution)


def resolution_of(pipeline: Pipeline) -> int:
    """Side in px of a model's own square pictures."""
    return pipeline.transformer.config.input_size * FACTOR


PROMPTS = {"held-out": held_out_prompts, "hard": hard_prompts}


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


def score(made: list[Image.Image], prompts: list[tuple], world: World = WORLDS[1]) -> dict[str, float]:
    """What is right, in percent of the pictures.

    Returns:
        all, the mean of the world's attributes; each attribute; each of its counts; and `at once`, the share of
        pictures in which all of these are right.
    """
    right: Counter[str] = Counter()
    for picture, (scene, _, _) in zip(made, prompts, strict=True):
        seen = world.marks(picture, scene)
        right.update(name for name, value in seen.items() if value)
        right[AT_ONCE] += all(seen.values())
    shares = {name: 100 * right[name] / len(prompts) for name in (*world.attributes, *world.counts, AT_ONCE)}
    return {"all": sum(shares[name] for name in world.attributes) / len(world.attributes), **shares}


def encoded(vae, picture: Image.Image) -> Tensor:
    """The latent (1, 4, h, w) of a picture."""
    return encode(vae, torch.from_numpy(np.asarray(picture, np.float32) / 255)[None])


def drawn(prompts: list[tuple], world: World = WORLDS[1]) -> list[Image.Image]:
    """The scenes of the prompts as the generator draws them: what the checker should find nothing wrong with."""
    rng = random.Random(SEED)
    return [world.draw(scene, size, rng.randrange(2**31)) for scene, _, size in prompts]


def main(arguments: list[str]) -> None:
    """Command line of `train.py nano evaluate`."""
    parser = argparse.ArgumentParser(prog="train.py nano evaluate", description=__doc__)
    parser.add_argument("models", type=Path, help="pipeline folder")
    parser.add_argument("--transformer", help="another transformer than the folder's")
    parser.add_argument("--sampler", choices=("lcm", "dpm"), default="lcm")
    parser.add_argument("--steps", type=int, nargs="+", default=[4])
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--captions", choices=PROMPTS, default="held-out")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument(
        "--drawn", action="store_true", help="the checker's own error: scenes as drawn, and through the vae"
    )
    parser.add_argument("--sheet", type=Path, help="PNG file for the first pictures, by the number of steps")
    parser.add_argument("--shown", type=int, default=_ROW, help=f"pictures of each in the sheet, {_ROW} in a row")
    options = parser.parse_args(arguments)
    pipeline = Pipeline.from_pretrained(options.models, transformer=options.transformer)
    world = world_of(options.models)
    prompts = PROMPTS[options.captions](options.count, resolution_of(pipeline), world)
    rows: list[list[Image.Image]] = []

    def tell(made: list[Image.Image], **about) -> None:
        shares = {name: round(value, 1) for name, value in score(made, prompts, world).items()}
        print(json.dumps({**about, "captions": len(prompts), "kind": options.captions, **shares}), flush=True)
        shown = made[: options.shown]
        rows.extend(shown[start : start + _ROW] for start in range(0, len(shown), _ROW))

    if options.drawn:
        scenes = drawn(prompts, world)
        tell(scenes, pictures="drawn")
        tell(sampling.pictures(pipeline.vae, (encoded(pipeline.vae, each)[0] for each in scenes)), pictures="vae")
    else:
        for steps in options.steps:
            made = pictures(pipeline, prompts, steps=steps, sampler=options.sampler, guidance=options.guidance)
            tell(made, sampler=options.sampler, steps=steps)
    if options.sheet is not None:
        sampling.contact_sheet(rows).save(options.sheet)
