"""PixArt-δ in plain PyTorch: model, sampling, control, checkpoints and a pipeline. Knows nothing of ComfyUI.

Public names are loaded on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "PixArtConfig": "config",
    "PIXART_256": "config",
    "PIXART_512": "config",
    "PIXART_1024_MS": "config",
    "PixArt": "model",
    "ControlNetTransformer": "controlnet",
    "ControlNetUNet": "controlnet",
    "preferred_dtype": "functional",
    "lcm_timesteps": "lcm",
    "boundary_scalings": "schedule",
    "sample_lcm": "lcm",
    "CheckpointError": "checkpoint",
    "load_pixart": "checkpoint",
    "inspect_file": "identify",
    "save_pixart": "checkpoint",
    "load_controlnet": "checkpoint",
    "save_controlnet": "checkpoint",
    "load_lora": "lora",
    "apply_lora": "delta",
    "HED": "hed",
    "load_hed": "hed",
    "detect": "hed",
    "Pipeline": "pipeline",
    "Hint": "controlnet",
    "memory_plan": "memory",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
