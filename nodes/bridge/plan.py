"""The memory plan that the model loader shows."""

from __future__ import annotations

import comfy.model_management as memory
import torch

from ...pixart_core.memory import memory_plan
from .model import diffusion_model


def model_plan(model) -> str:
    """What a picture of the model's own size takes, stage by stage: text encoder in 8 bits, and its peak without."""
    config = diffusion_model(model).config
    values = {
        "dtype": model.model.product_dtype(),
        "vae_dtype": memory.vae_dtype(memory.vae_device()),
        "text_dtype": torch.bfloat16,
    }  # as `load_clip` keeps a large one
    eight, plain = (memory_plan(config, quantization=quantization, **values) for quantization in ("int8", "none"))
    device = model.load_device
    lines = [str(eight)]
    if plain.peak > eight.peak:
        lines.append(f"peak {plain.peak:.2f} GB with a text encoder that is not quantised")
    return "\n".join([*lines, f"{device} has {memory.get_total_memory(device) / 1e9:.2f} GB"])
