"""The memory plan that the model loader shows."""

from __future__ import annotations

import comfy.model_management as memory

from ...pixart_core.memory import memory_plan
from .model import diffusion_model


def model_plan(model) -> str:
    """What a picture of the model's own size needs, stage by stage, at the dtype it was loaded in."""
    unet = diffusion_model(model)
    side = unet.config.input_size * 8
    plan = memory_plan(unet.config, height=side, width=side, batch=1, dtype=model.model.get_dtype_inference())
    total = memory.get_total_memory(model.load_device) / 1e9
    return f"{plan}\n{model.load_device} has {total:.1f} GB"
