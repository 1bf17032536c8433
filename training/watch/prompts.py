"""A run's own prompts for its samples: encoded once, before its networks are loaded; embeddings stay in its folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...pixart_core.text import TextEncoder
from ..config import ConfigError
from ..prepare.words import TextError, lines, read_text

Prompts = tuple[list[str], Tensor, Tensor]
"""Prompts, their embeddings (P, tokens, D) float32 and masks (P, tokens) on the CPU."""


def own_prompts(prompts: Sequence[str], file: str) -> list[str]:
    """The prompts that samples are drawn for; none where the data's own captions are taken.

    Args:
        file: that holds more of them, one a line; empty = there is none.

    Raises:
        ConfigError: if the file cannot be read, or names none.
    """
    if not file:
        return list(prompts)
    try:
        said = [line.strip() for line in lines(read_text(Path(file)))]
    except (OSError, TextError) as error:
        raise ConfigError(f"prompt_file {file} cannot be read: {error}") from error
    if not any(said):
        raise ConfigError(f"prompt_file {file} holds no prompt: one a line is wanted")
    return [*prompts, *(line for line in said if line)]


def encode_prompts(prompts: list[str], models: str, tokens: int, kept: Path, device: torch.device) -> Prompts:
    """The prompts with their embeddings.

    The text encoder is freed again: beside the networks that come it could be too much for the device.

    Args:
        models: pipeline folder with the text encoder.
        tokens: most of a prompt.
        kept: folder that embeddings stay in.

    Raises:
        CheckpointError: if the text encoder cannot be read.
    """
    encoder = TextEncoder.from_pretrained(models, device=device, cache=kept)
    with torch.random.fork_rng(devices=[]):
        caption, mask = encoder.encode(prompts, tokens)
    return prompts, caption.float().cpu(), mask.cpu()
