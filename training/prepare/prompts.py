"""Prompts in place of pictures: a dataset whose latents the base model draws itself (`drawn.py`). Each prompt is a
source as a picture is, with the prompt as its caption and the size that it will be drawn in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..config import PrepareConfig
from ..data.shards import DataError
from .inside import check_inside
from .pictures import buckets, nearest_bucket
from .sources import EMPTY, Source
from .words import TextError, lines, read_text


@dataclass(frozen=True)
class Shape:
    """A size to draw in."""

    ratio: float
    """Key of its bucket: height / width."""
    bucket: tuple[int, int]
    """Height, width in px."""


def shapes_of(config: PrepareConfig) -> list[Shape]:
    """The sizes that pictures are drawn in, one after the other: the buckets nearest to `shapes` (width:height)."""
    table = buckets(config.resolution, config.multi_aspect)
    ratios = (nearest_bucket(height, width, table) for width, height in config.sides)
    return [Shape(ratio, table[ratio]) for ratio in ratios]


def read_prompts(file: Path, encoding: str = "") -> list[str]:
    """The prompts of a text file, one a line; blank lines count for nothing, a line of "" is the empty prompt.

    Raises:
        DataError: if it cannot be read, or holds none.
    """
    try:
        said = [line.strip() for line in lines(read_text(file, encoding))]
    except FileNotFoundError as error:
        raise DataError(f"prompts {file} does not exist: a text file of prompts, one a line, is wanted") from error
    except TextError as error:
        raise DataError(f"prompts {file}: {error}") from error
    prompts = ["" if line == EMPTY else line for line in said if line]
    if not prompts:
        raise DataError(f"prompts {file} holds no prompt: one a line is wanted")
    return prompts


def find_prompts(config: PrepareConfig) -> list[Source]:
    """Every picture that is to be drawn: `draws` for each prompt, named by their number and the prompt's.

    Raises:
        DataError: as `read_prompts`.
        OutsideError: if the file is not where files may be read.
    """
    file = Path(config.prompts).expanduser()
    check_inside(file, config.only_inside)
    prompts, shapes = read_prompts(file, config.encoding), shapes_of(config)
    return [
        Source(f"{number:08d}", file, (prompts[number // config.draws],), shapes[number % len(shapes)].bucket)
        for number in range(len(prompts) * config.draws)
    ]
