"""Types that many signatures name."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

DType = torch.dtype | None
Device = torch.device | str | None
PathLike = str | os.PathLike[str]
Attention = Callable[..., Tensor]
"""(q, k, v, heads, mask=None) on (B, N, C) tensors -> (B, N, C); see `functional.attention`."""


class Operations(Protocol):
    """Where the classes of layers come from: torch.nn, or a host's namespace that has them under the same names."""

    @property
    def Linear(self) -> type[nn.Linear]: ...

    @property
    def Conv2d(self) -> type[nn.Conv2d]: ...

    @property
    def GroupNorm(self) -> type[nn.GroupNorm]: ...
