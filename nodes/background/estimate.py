"""What a training will take, shown by its node before the job starts: from shapes alone, so it takes a second."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import comfy.model_management as memory
import folder_paths
import torch

from ...pixart_core.textfile import read_json
from ...training.config import make_training
from ...training.estimate import Estimate, estimate, in_units, model_shape, time_text


def estimate_text(command: str, settings: dict[str, Any], data: Path) -> str:
    """Memory, disk and time of a training.

    Answers ComfyUI's Stop while it measures the device.

    Raises:
        CheckpointError, ConfigError: if the base model or a setting is not what the training takes.
    """
    config = make_training(command, {**settings, "run": "run"})
    size = _largest(data)
    if size is None:
        return "The dataset is still being looked at: the estimate comes with the next run."
    device = memory.get_torch_device()
    expected = estimate(command, config, model_shape(config), *size)
    with torch.inference_mode():
        duration = time_text(expected, config, device, memory.throw_exception_if_processing_interrupted)
    have = f"{device} has {in_units(memory.get_total_memory(device))}"
    return "\n".join([str(expected), have, duration, *_shortages(expected, device)])


def _shortages(expected: Estimate, device: torch.device) -> list[str]:
    """A line for each thing that there is too little of."""
    lines, place = [], folder_paths.get_output_directory()
    if expected.memory > memory.get_total_memory(device):
        lines.append(
            f"TOO LITTLE MEMORY: this does not fit on {device}. Lower batch_size, switch "
            "gradient_checkpointing on, choose optimizer adamw8bit, or train a LoRA"
        )
    if expected.disk > shutil.disk_usage(place).free:
        lines.append(
            f"TOO LITTLE ROOM: {in_units(shutil.disk_usage(place).free)} are free in {place}. Make room, or "
            "set keep_checkpoints=1 in more_settings"
        )
    return lines


def _largest(data: Path) -> tuple[int, int] | None:
    """Height, width of the largest pictures of a dataset, from its description, or from the report before that."""
    if (data / "dataset.json").exists():
        sizes = [shard["bucket"] for shard in read_json(data / "dataset.json").get("shards", ())]
    elif (data / "report.json").exists():
        buckets = read_json(data / "report.json")["buckets"]
        sizes = [[int(part) for part in name.split("x")] for name in buckets]
    else:
        sizes = []
    return max((tuple(size) for size in sizes), key=lambda size: size[0] * size[1], default=None)
