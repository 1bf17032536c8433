"""Draw scenes as a folder of pictures with captions beside them, as a user's own data would come to `prepare`."""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from ..prepare.sources import EMPTY
from .scenes import caption, draw, random_scene

SIZES = ((128, 128), (96, 160), (128, 128), (160, 96))
"""Height, width of one picture after the other."""
WORDINGS = 3
EMPTY_SHARE = 0.04
"""Part of the wordings left empty, so that an empty prompt means "any scene" to every network."""


def draw_folder(output: Path, pictures: int, seed: int) -> None:
    """Write 000000.png, 000000.txt, …: scenes of the training part, each with WORDINGS lines of caption."""
    output.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    for index in range(pictures):
        scene = random_scene(rng)
        draw(scene, SIZES[index % len(SIZES)], rng.randrange(2**31)).save(output / f"{index:06d}.png")
        lines = [EMPTY if rng.random() < EMPTY_SHARE else caption(scene, rng) for _ in range(WORDINGS)]
        (output / f"{index:06d}.txt").write_text("\n".join(lines) + "\n", "utf-8")


def main(arguments: list[str]) -> None:
    """Command line of `train.py nano scenes`."""
    parser = argparse.ArgumentParser(prog="train.py nano scenes", description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--pictures", type=int, default=24_000)
    parser.add_argument("--seed", type=int, default=1)
    draw_folder(**vars(parser.parse_args(arguments)))
