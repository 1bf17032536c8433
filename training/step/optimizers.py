"""The optimisers by name, what they keep of each parameter, and how their state goes into a checkpoint."""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..machine import PackageError
from .muon import Muon

PACKAGES = {"adamw8bit": "bitsandbytes", "prodigy": "prodigyopt", "schedulefree": "schedulefree"}
"""What must be installed for one; the others are PyTorch's."""
SLICE = 11
"""Of Prodigy's two vectors that find the rate every so many numbers are kept, as its authors advise for memory."""
STATE_BYTES = {"adamw": 8, "adamw8bit": 2, "prodigy": 8 + 8 / SLICE, "adafactor": 0, "schedulefree": 8, "muon": 4}
"""Bytes of state for a number that is trained. Adafactor's rows and columns are as good as none; Muon keeps twice as
much of the few that it leaves to AdamW."""
_OUTER = ("embedder", "t_block", "final_layer")
"""Matrices whose one side is not the stream of tokens: Muon leaves them to AdamW."""
_STACKED = {"qkv": 3, "kv_linear": 2}
"""Layers that hold several matrices, one below the other."""
_FIXED = ("params", "lr", "weight_decay")
"""Of a group: what the settings say anew at every start."""


def check_optimizer(kind: str, device: torch.device) -> None:
    """Whether the optimiser's package can compute on a device: bitsandbytes long took 8-bit steps on CUDA alone.

    Raises:
        PackageError: if it cannot.
    """
    if kind != "adamw8bit" or device.type == "cuda":
        return
    probe = nn.Parameter(torch.zeros(1, device=device))
    probe.grad = torch.zeros_like(probe)
    try:
        make_optimizer(kind, {"probe": probe}, 1e-3).step()
    except (RuntimeError, ValueError, NotImplementedError, AttributeError) as error:
        found = importlib.metadata.version("bitsandbytes")
        raise PackageError(
            f"bitsandbytes {found} has no 8-bit AdamW for {device}: install a newer one (pip install --upgrade "
            "bitsandbytes) or choose optimizer=adamw"
        ) from error


def make_optimizer(
    kind: str,
    parameters: Mapping[str, nn.Parameter],
    learning_rate: float,
    weight_decay: float = 0.0,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    dtype: torch.dtype = torch.float32,
) -> torch.optim.Optimizer:
    """The optimiser of a training. Matrices decay, biases and tables do not.

    Args:
        kind: one of `STATE_BYTES`.
        weight_decay, beta2, epsilon: AdamW's, for all of them that have such.
        dtype: of Muon's matrix products.
    """
    if kind == "muon":
        return _make_muon(parameters, learning_rate, weight_decay, (0.9, beta2), epsilon, dtype)
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, each in parameters.items():
        (matrices if each.ndim >= 2 and not name.endswith("scale_shift_table") else rest).append(each)
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    adam: dict[str, Any] = {"lr": learning_rate, "betas": (0.9, beta2), "eps": epsilon}
    if kind == "adamw8bit":
        from bitsandbytes.optim import AdamW8bit  # takes seconds to import

        return AdamW8bit(groups, **adam)
    if kind == "prodigy":
        from prodigyopt import Prodigy

        return Prodigy(groups, **adam, slice_p=SLICE)
    if kind == "schedulefree":
        from schedulefree import AdamWScheduleFree

        made = AdamWScheduleFree(groups, **adam)
        made.train()
        return made
    if kind == "adafactor":
        return torch.optim.Adafactor(groups, lr=learning_rate)
    return torch.optim.AdamW(groups, fused=True, **adam)


def _make_muon(
    parameters: Mapping[str, nn.Parameter],
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float],
    epsilon: float,
    dtype: torch.dtype,
) -> Muon:
    """Muon for the matrices between tokens, with steps as large as AdamW's, and AdamW for the rest."""
    groups: dict[tuple[bool, bool, int], list[nn.Parameter]] = {}
    for name, each in parameters.items():
        is_matrix = each.ndim >= 2 and not name.endswith("scale_shift_table")
        is_hidden = is_matrix and each.ndim == 2 and not any(outer in name for outer in _OUTER)
        parts = next((count for layer, count in _STACKED.items() if f".{layer}.weight" in name), 1) if is_hidden else 1
        groups.setdefault((is_hidden, is_matrix, parts), []).append(each)
    made = [
        {"params": params, "lr": learning_rate, "is_hidden": is_hidden, "parts": parts}
        | {"weight_decay": weight_decay if is_matrix else 0.0}
        for (is_hidden, is_matrix, parts), params in groups.items()
    ]
    return Muon(made, betas, epsilon, matched=True, dtype=dtype)


def group_numbers(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """What an optimiser counts for each group (Prodigy's rate, schedule-free's sums), ready for JSON."""

    def plain(value: Any) -> Any:
        return value.item() if isinstance(value, Tensor) and value.numel() == 1 else value

    counts = [{name: plain(value) for name, value in group.items()} for group in optimizer.param_groups]
    kept = (bool, int, float)
    return [
        {name: value for name, value in group.items() if name not in _FIXED and type(value) in kept} for group in counts
    ]


def set_group_numbers(optimizer: torch.optim.Optimizer, numbers: list[dict[str, Any]]) -> None:
    """Put back what `group_numbers` gave."""
    for group, values in zip(optimizer.param_groups, numbers, strict=True):
        group.update(values)


@contextlib.contextmanager
def evaluated(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Inside, the trained weights are those to use: with schedule-free AdamW the average, and not where the gradient is
    taken. Afterwards they are what they were to the last bit, as its own way back is not."""
    free: Any = optimizer
    if not hasattr(free, "eval"):
        yield
        return
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    before = [parameter.detach().clone() for parameter in trained]
    free.eval()
    try:
        yield
    finally:
        free.train()
        with torch.no_grad():
            for parameter, value in zip(trained, before, strict=True):
                parameter.copy_(value)


@torch.no_grad()
def average_weights(state: dict[str, Tensor], z: Mapping[str, Tensor], beta1: float) -> None:
    """Turn the weights that schedule-free AdamW takes gradients at into their average, in place.

    Args:
        state: by name.
        z: its other sequence, of each that was trained.
    """
    for name, value in z.items():
        state[name].lerp_(value.to(state[name]), 1 - 1 / beta1)
