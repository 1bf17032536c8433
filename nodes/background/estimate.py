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
from ...training.estimate import Estimate, decided, estimate, in_units, model_shape, pictures_text, time_text


def estimate_text(command: str, settings: dict[str, Any], data: Path) -> str:
    """Memory, disk and time of a training.

    Answers ComfyUI's Stop while it measures the device.

    Raises:
        CheckpointError, ConfigError: if the base model or a setting is not what the training takes.
    """
    config = make_training(command, {**settings, "run": "run"})
    sizes = _sizes(data)
    if not sizes:
        return "The dataset is still being looked at: the estimate comes with the next run."
    size = max(sizes, key=lambda size: size[0] * size[1])
    device = memory.get_torch_device()
    config = decided(config, device)
    expected = estimate(command, config, model_shape(config), *size)
    with torch.inference_mode():
        duration = time_text(expected, config, device, memory.throw_exception_if_processing_interrupted)
    have = f"{device} has {in_units(memory.get_total_memory(device))}"
    pictures = pictures_text(sizes, config.batch_size)
    return "\n".join([pictures, str(expected), have, duration, *_shortages(expected, device)])


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


def _sizes(data: Path) -> dict[tuple[int, int], int]:
    """Height, width -> pictures of a dataset, from its description, or from the report before that."""
    counts: dict[tuple[int, int], int] = {}
    if (data / "dataset.json").exists():
        for shard in read_json(data / "dataset.json").get("shards", ()):
            size = tuple(shard["bucket"])
            counts[size] = counts.get(size, 0) + shard["count"]
    elif (data / "report.json").exists():
        for name, count in read_json(data / "report.json")["buckets"].items():
            height, width = name.split("x")
            counts[int(height), int(width)] = count
    return counts
