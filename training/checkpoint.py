"""The whole state of a run in one safetensors file, written atomically: weights, EMA, optimiser; the step is metadata.

Data order, noise and timesteps depend on seed and step alone, so no random state needs saving.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ..pixart_core.weightfile import CheckpointError, save_weights
from .run_dir import RunDir


def save_checkpoint(
    run: RunDir, step: int, model: nn.Module, ema: nn.Module, optimizer: torch.optim.Optimizer, keep: int
) -> Path:
    """Write the checkpoint of `step`, then delete all but the newest `keep`."""
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    state |= {f"ema.{name}": tensor for name, tensor in ema.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        state |= {f"optimizer.{index}.{name}": tensor for name, tensor in moments.items()}
    path = save_weights(state, run.checkpoint(step), {"training": json.dumps({"step": step})})
    for old in run.checkpoints()[:-keep]:
        old.unlink()
    return path


def load_checkpoint(path: Path, model: nn.Module, ema: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Fill all three strictly and return the step.

    Raises:
        CheckpointError: if the file is damaged or of another model.
    """
    try:
        with safe_open(path, "pt") as file:
            step = json.loads(file.metadata()["training"])["step"]
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        model.load_state_dict(_part(tensors, "model."))
        ema.load_state_dict(_part(tensors, "ema."))
    except Exception as error:  # whatever is wrong with the file, the way out is the same
        raise CheckpointError(f"cannot resume from {path}: {error}. Delete it to resume from the one before") from error
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _part(tensors, "optimizer.").items():
        index, _, key = name.partition(".")
        moments.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    return step


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
