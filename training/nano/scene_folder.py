"""Draw scenes as a folder of pictures with captions beside them, as a user's own data would come to `prepare`.

The same command again draws what is missing; how many processes draw changes nothing.
"""

from __future__ import annotations

import argparse
import os
import random
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from ..prepare.sources import EMPTY
from ..storage import replacing
from .worlds import WORLDS, World

SIZES = ((128, 128), (96, 160), (128, 128), (160, 96))
"""Height, width of one picture after the other, at a resolution of 128."""
WORDINGS = 3
EMPTY_SHARE = 0.04
"""Part of the wordings left empty, so that an empty prompt means "any scene" to every network."""
_CHUNK = 16
"""Pictures that a process is given at once."""


def resized(size: tuple[int, int], resolution: int) -> tuple[int, int]:
    """A size that is said for a resolution of 128, at another."""
    return size[0] * resolution // 128, size[1] * resolution // 128


def plan(
    pictures: int, seed: int, resolution: int = 128, world: World = WORLDS[1]
) -> Iterator[tuple[Any, tuple[int, int], int, list[str]]]:
    """Scene, size, seed of its drawing, and lines of caption of every picture."""
    rng = random.Random(seed)
    for index in range(pictures):
        scene = world.pick(rng)
        drawing = rng.randrange(2**31)
        lines = [EMPTY if rng.random() < EMPTY_SHARE else world.caption(scene, rng) for _ in range(WORDINGS)]
        yield scene, resized(SIZES[index % len(SIZES)], resolution), drawing, lines


def draw_folder(
    output: Path, pictures: int, seed: int, resolution: int = 128, workers: int = 1, world: int = 1
) -> None:
    """Write 000000.png, 000000.txt, …: scenes of the training part, each with WORDINGS lines of caption.

    Args:
        resolution: side in px of the square ones.
        workers: processes that draw.
        world: number of what is drawn, see `worlds`.
    """
    output.mkdir(parents=True, exist_ok=True)
    planned = enumerate(plan(pictures, seed, resolution, WORLDS[world]))
    lacking = [(output, world, index, *what) for index, what in planned if not (output / f"{index:06d}.txt").exists()]
    if workers > 1 and len(lacking) > _CHUNK:
        with ProcessPoolExecutor(workers) as pool:
            for _ in pool.map(_write, lacking, chunksize=_CHUNK):
                pass
    else:
        for each in lacking:
            _write(each)


def _write(what: tuple[Path, int, int, Any, tuple[int, int], int, list[str]]) -> None:
    """One picture and its captions, which come last: where they are, the picture is whole."""
    output, world, index, scene, size, seed, lines = what
    WORLDS[world].draw(scene, size, seed).save(output / f"{index:06d}.png")
    with replacing(output / f"{index:06d}.txt") as file:
        file.write_text("\n".join(lines) + "\n", "utf-8")


def main(arguments: list[str]) -> None:
    """Command line of `train.py nano scenes`."""
    parser = argparse.ArgumentParser(prog="train.py nano scenes", description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--pictures", type=int, default=24_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--resolution", type=int, default=128, help="px of the square ones")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that draw")
    parser.add_argument(
        "--world", type=int, choices=WORLDS, default=1, help="what is drawn: 2 has weather and counted things"
    )
    draw_folder(**vars(parser.parse_args(arguments)))
