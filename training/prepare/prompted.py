"""Prompts in place of pictures: a dataset whose latents the base model draws itself (`drawn.py`). Each prompt is a
source as a picture is, with the prompt as its caption and the size that it will be drawn in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...pixart_core.checkpoint import describe_pixart
from ...pixart_core.delta import require_fit
from ...pixart_core.lora import load_lora
from ...pixart_core.model import PixArt
from ...pixart_core.t5 import read_t5_config
from ...pixart_core.text import find_text_encoder
from ..config import ConfigError, PrepareConfig
from ..data.samples import CAPTION_PADDING, padded
from ..data.shards import DataError
from ..task import require_guidable
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


def check_drawing(config: PrepareConfig) -> None:
    """Whether the base can draw the prompts, as far as names and shapes tell: no large weights are loaded.

    Raises:
        CheckpointError: if base, LoRA or text encoder are something else, or the LoRA does not fit.
        ConfigError: if the base has no learned null caption, is a distilled model, or reads other text embeddings.
    """
    shape, info = describe_pixart(config.base)
    null = info.null_caption
    if not null:
        raise ConfigError(
            f"base {config.base} has no learned null caption, which guidance needs: diffusers' layout leaves it out. "
            "Take the authors' .pth, or a file that this trainer exported"
        )
    require_guidable(config.base, info)
    if config.lora:
        require_fit(load_lora(config.lora), dict(PixArt(shape, device="meta").named_parameters()))
    width = int(read_t5_config(find_text_encoder(config.models)[0])["d_model"])
    if width != shape.caption_channels:
        raise ConfigError(
            f"models {config.models} makes text embeddings of {width} channels, and {config.base} reads "
            f"{shape.caption_channels}: take the text encoder that belongs to it, or another base"
        )
    if padded(config.max_tokens) > null:
        raise ConfigError(
            f"max_tokens is {config.max_tokens}, and the learned null caption of {config.base} has {null}: set "
            f"max_tokens={null // CAPTION_PADDING * CAPTION_PADDING}"
        )
