"""Whether a training can begin, and what it will take, said by its node before there is a job: from names and shapes
alone, so it takes a second."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management as memory
import torch

from ...pixart_core.textfile import read_json
from ...training.config import TrainConfig
from ...training.estimate import (
    Base,
    FeatureDataset,
    check_before,
    decided,
    estimate,
    in_units,
    pictures_text,
    require_memory,
    time_text,
)
from ...training.run_dir import RunDir


@dataclass(frozen=True)
class Prepared:
    """The features that a training will read."""

    folder: Path
    ready: bool
    """Whether they are all there."""
    promised: dict[str, Any]
    """What is known of their description before they are."""


def check_and_estimate(config: TrainConfig, base: Base, data: Prepared, run: RunDir, refuse: bool) -> str:
    """Memory, disk and time of a training that can begin.

    Answers ComfyUI's Stop while it measures the device.

    Args:
        base: from `read_base`.
        run: a folder where its own will be.
        refuse: raise if memory or disk is too small; else the text says so.

    Raises:
        CheckpointError, ConfigError, DataError, DiskError, ImportError: what the job would fail with.
    """
    made = FeatureDataset(data.folder) if data.ready else None
    device = memory.get_torch_device()
    check_before(config, base, data.folder, data.promised if made is None else made.description, device)
    sizes = _reported_sizes(data.folder) if made is None else made.buckets
    if not sizes:
        return "The dataset is still being looked at: the estimate comes with the next run."
    size = max(sizes, key=lambda size: size[0] * size[1])
    total = memory.get_total_memory(device)
    config = decided(config, device)
    expected = estimate(config, base.shape, *size)
    short = []
    for check in (
        lambda: require_memory(expected, config.batch_size, device, total),
        lambda: run.require_room(expected.checkpoint, config),
    ):
        try:
            check()
        except (ValueError, OSError) as error:
            if refuse:
                raise
            short.append(f"This cannot be trained: {error}")
    with torch.inference_mode():
        interrupts = memory.throw_exception_if_processing_interrupted
        duration = time_text(expected, config.precision, config.steps, device, interrupts)
    pictures = pictures_text(sizes, config.batch_size)
    return "\n".join([pictures, str(expected), f"{device} has {in_units(total)}", duration, *short])


def _reported_sizes(data: Path) -> dict[tuple[int, int], int]:
    """Height, width -> pictures of a dataset that is being made, from its report; none as long as there is none."""
    counts: dict[tuple[int, int], int] = {}
    if (data / "report.json").exists():
        for name, count in read_json(data / "report.json")["buckets"].items():
            height, width = name.split("x")
            counts[int(height), int(width)] = count
    return counts
