"""What a file of weights says of itself in the words of the modelspec standard (Stability AI, 1.0.1): hosts, hubs and
managers show it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .config import PixArtConfig

VERSION = "1.0.1"
_ARCHITECTURES = {"pixart": "pixart-alpha", "lora": "pixart-alpha/lora", "controlnet": "pixart-alpha/controlnet"}
"""By the kind that `identify` tells. PixArt-δ has PixArt-α's architecture."""
_SPEED = "Distilled: draws in 2 to 4 steps (LCM), without guidance."


def modelspec(kind: str, about: Mapping[str, Any], config: PixArtConfig | None = None) -> dict[str, str]:
    """Entries for a file's metadata.

    Args:
        kind: pixart, lora or controlnet.
        about: what the file says of itself in our own words; `training` has the command, and the settings with a name.
        config: of the model, for its resolution.
    """
    training = _mapping(about.get("training"))
    settings, command = _mapping(training.get("config")), training.get("command", "")
    title = settings.get("run") or f"PixArt-δ {kind}"
    out = {
        "sai_model_spec": VERSION,
        "architecture": _ARCHITECTURES.get(kind, "pixart-alpha"),
        "implementation": "https://github.com/PixArt-alpha/PixArt-alpha",
        "title": str(title),
        "prediction_type": "epsilon",
    }
    if config is not None:
        out["resolution"] = f"{config.input_size * 8}x{config.input_size * 8}"
    if command:
        steps = f" {training['step']} steps" if training.get("step") else ""
        speed = f" {_SPEED}" if command in ("lcd", "lcm-lora") else ""
        out["description"] = (
            f"Trained with PixArt-δ for ComfyUI, {command}{steps}, on {settings.get('base', '')}.{speed}"
        )
    if hint := about.get("hint"):
        out["preprocessor"] = str(hint)
    return {f"modelspec.{name}": value for name, value in out.items()}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
