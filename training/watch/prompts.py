"""A run's own prompts for its samples: encoded once, before its networks are loaded; embeddings stay in its folder."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ...pixart_core.text import TextEncoder
from ..config import ConfigError, TrainConfig
from ..prepare.words import TextError, lines, read_text
from ..run_dir import RunDir
from ..task import read_base

Prompts = tuple[list[str], Tensor, Tensor]
"""Prompts, their embeddings (P, tokens, D) float32 and masks (P, tokens) on the CPU."""


def own_prompts(config: TrainConfig) -> list[str]:
    """The prompts that samples are drawn for; none where the data's own captions are taken.

    Raises:
        ConfigError: if the file of prompts cannot be read, or names none.
    """
    if not config.prompt_file:
        return list(config.sample_prompts)
    try:
        said = [line.strip() for line in lines(read_text(Path(config.prompt_file)))]
    except (OSError, TextError) as error:
        raise ConfigError(f"prompt_file {config.prompt_file} cannot be read: {error}") from error
    if not any(said):
        raise ConfigError(f"prompt_file {config.prompt_file} holds no prompt: one a line is wanted")
    return [*config.sample_prompts, *(line for line in said if line)]


def encode_prompts(config: TrainConfig, run: RunDir, device: torch.device) -> Prompts | None:
    """The prompts with their embeddings; None without own prompts, or without the pipeline folder that samples need.

    The text encoder is freed again: beside the networks that come it could be too much for the device.

    Raises:
        ConfigError, CheckpointError: if prompts, text encoder or base cannot be read.
    """
    prompts = own_prompts(config)
    if not prompts or not config.models:
        return None
    encoder = TextEncoder.from_pretrained(config.models, device=device, cache=run.path / "samples" / "embeddings")
    with torch.random.fork_rng(devices=[]):
        caption, mask = encoder.encode(prompts, read_base(config).shape.model_max_length)
    return prompts, caption.float().cpu(), mask.cpu()
