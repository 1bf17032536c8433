"""Half precision on a CPU that has none: products computed in float32, their inputs and outputs rounded.

What a GPU does, whose products add up in float32; a CPU's own emulation takes ten to a hundred times as long.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_HALF = (torch.bfloat16, torch.float16)
_PRODUCTS = (F.linear, F.conv2d, torch.bmm, torch.baddbmm, F.scaled_dot_product_attention)


class HalfByRounding(TorchFunctionMode):
    """Inside, products of half-precision tensors, and those that autocast makes so, are rounded float32 ones; with
    gradients, which are rounded where half-precision tensors would have them rounded."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        half = _half(args) if function in _PRODUCTS else None
        if half is None:
            return function(*args, **kwargs)

        def rounded(value: Any) -> Any:
            is_float = isinstance(value, Tensor) and value.is_floating_point()
            return value.to(half).float() if is_float else value

        with torch.autocast("cpu", enabled=False):
            return function(*map(rounded, args), **{name: rounded(each) for name, each in kwargs.items()}).to(half)


def _half(args: Any) -> torch.dtype | None:
    """The type that a product of these is made in, if it is a half one."""
    if not isinstance(args[0], Tensor) or args[0].device.type != "cpu":
        return None
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu")
    return args[0].dtype if args[0].dtype in _HALF else None


def where_emulated(device: torch.device | str) -> contextlib.AbstractContextManager[object]:
    """`HalfByRounding` on a CPU; nothing on a device that computes in half precision itself."""
    return HalfByRounding() if torch.device(device).type == "cpu" else contextlib.nullcontext()
