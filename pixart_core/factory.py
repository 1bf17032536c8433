"""What makes the layers of every network here: of which namespace, in which dtype, on which device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .aliases import Device, DType, Operations


@dataclass(frozen=True)
class Factory:
    """Makes layers alike.

    Args:
        dtype, device: of their parameters.
        operations: namespace that their classes are taken from: torch.nn, or ComfyUI's, which casts and pages.
    """

    dtype: DType = None
    device: Device = None
    operations: Operations = nn

    def linear(self, inputs: int, outputs: int) -> nn.Linear:
        """A Linear with a bias."""
        return self.operations.Linear(inputs, outputs, dtype=self.dtype, device=self.device)

    def conv(self, inputs: int, outputs: int, kernel: int, **options: Any) -> nn.Conv2d:
        """A Conv2d; `options` are torch's."""
        return self.operations.Conv2d(inputs, outputs, kernel, dtype=self.dtype, device=self.device, **options)

    def norm(self, groups: int, channels: int, eps: float) -> nn.GroupNorm:
        """A GroupNorm."""
        return self.operations.GroupNorm(groups, channels, eps, dtype=self.dtype, device=self.device)

    def zeros(self, *shape: int) -> Tensor:
        """What a parameter or buffer begins as."""
        return torch.zeros(shape, dtype=self.dtype, device=self.device)
