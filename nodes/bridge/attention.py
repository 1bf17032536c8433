"""Which of ComfyUI's attentions our networks use."""

from __future__ import annotations

from collections.abc import Callable

import comfy.ldm.modules.attention as host_attention
import torch
from comfy.cli_args import args


def attention_for(device: torch.device) -> Callable:
    """ComfyUI's attention; on a CPU scaled_dot_product_attention, unless the user asked for another.

    ComfyUI's default there is sub-quadratic attention, which saves memory that a CPU has and is slower.
    """
    if device.type == "cpu" and not (args.use_split_cross_attention or args.use_quad_cross_attention):
        return host_attention.attention_pytorch
    return host_attention.optimized_attention
