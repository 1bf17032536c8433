"""PixArt-δ in plain PyTorch: model, sampling, control, checkpoints and a pipeline. Knows nothing of ComfyUI.

Public names are loaded on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

_NAMES = {
    "config": ("PixArtConfig", "PIXART_256", "PIXART_512", "PIXART_1024_MS"),
    "model": ("PixArt",),
    "controlnet": ("ControlNetTransformer", "ControlNetUNet", "Hint"),
    "functional": ("preferred_dtype",),
    "schedule": ("boundary_scalings",),
    "lcm": ("lcm_timesteps", "sample_lcm"),
    "checkpoint": ("CheckpointError", "load_pixart", "save_pixart", "load_controlnet", "save_controlnet"),
    "identify": ("inspect_file",),
    "lora": ("load_lora",),
    "delta": ("apply_lora",),
    "hed": ("HED", "load_hed", "detect"),
    "pipeline": ("Pipeline",),
    "int8": ("quantize_blocks",),
    "memory": ("memory_plan",),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
