"""Conditions of our MODEL in the form that ComfyUI batches."""

from __future__ import annotations

import comfy.conds
import torch
import torch.nn.functional as F
from torch import Tensor


class Padded(comfy.conds.CONDRegular):
    """A tensor (B, L, …) that goes into one batch with others of another L, filled up with zeros."""

    def can_concat(self, other) -> bool:
        one, two = self.cond, other.cond
        return one.shape[:1] + one.shape[2:] == two.shape[:1] + two.shape[2:] and one.device == two.device

    def concat(self, others) -> Tensor:
        parts = [self.cond, *(other.cond for other in others)]
        length = max(part.shape[1] for part in parts)
        rest = [0, 0] * (self.cond.ndim - 2)
        return torch.cat([F.pad(part, [*rest, 0, length - part.shape[1]]) for part in parts])


class Length(Padded):
    """The mask (B, L) of captions that are whole: ones. None where all have one length: no mask is faster than ones."""

    def concat(self, others) -> Tensor | None:
        return super().concat(others) if any(o.cond.shape != self.cond.shape for o in others) else None
