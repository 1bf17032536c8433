"""`sample` and `export`: pictures and files from what a run has learned so far."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..pixart_core.pipeline import default_device
from ..pixart_core.text import TextEncoder
from ..pixart_core.vae import load_vae
from .config import ConfigError, ExportConfig, SampleConfig
from .contents import place_now
from .data import FeatureDataset
from .export import default_name, write_result
from .restore import restore
from .sampling import draw_grid
from .task import DTYPES, Task


def sample(config: SampleConfig) -> Path:
    """Draw a grid and write it; returns its path."""
    task, run, step = restore(config.run, config.base)
    models = place_now("models", task.config.to_dict(), run.path, config.models)
    if not models:
        raise ConfigError("models is not set, and the run has none: the pipeline folder to make samples with")
    device = default_device()
    # The text encoder goes before the networks come: both at once may be too much for the device.
    if task.needs_hint or not config.prompts:
        task.config.data = place_now("data", task.config.to_dict(), run.path, config.data)
    batch = _prompted(task, models, config.prompts, device) if config.prompts else _examples(task, config.count)
    for network in (task.model, task.ema, *task.frozen):
        if network is not None:
            network.to(device)
    path = Path(config.output) if config.output else run.path / "samples" / f"sample_{step:08d}_{config.seed}.png"
    draw_grid(task, batch, load_vae(models, device=device), config.seed).save(path)
    return path


def export(config: ExportConfig) -> Path:
    """Write a run's weights in a layout; returns the path."""
    task, run, step = restore(config.run, config.base)
    name = default_name(task.model, config.layout)
    path = Path(config.output) if config.output else run.path / "exports" / name
    return write_result(task, path, config.layout, DTYPES[config.dtype], config.average, step)


def _examples(task: Task, count: int) -> dict[str, Any]:
    return FeatureDataset(task.config.data).examples(count, task.needs_hint)[0]


def _prompted(task: Task, models: str, prompts: list[str], device: torch.device) -> dict[str, Tensor]:
    """A batch for prompts, in the model's own size; for a ControlNet with the hints of the run's data."""
    shape = task.model.config
    caption, mask = TextEncoder.from_pretrained(models, device=device).encode(prompts, shape.model_max_length)
    batch = {"latent": torch.empty(len(prompts), shape.in_channels, shape.input_size, shape.input_size)}
    if task.needs_hint:
        batch = {name: value for name, value in _examples(task, len(prompts)).items() if name != "keys"}
        hints = len(batch["latent"])
        if hints < len(prompts):
            raise ConfigError(f"prompts are {len(prompts)}, but the run's data has only {hints} hints of one size")
    return {**batch, "caption": caption.float(), "caption_mask": mask}
