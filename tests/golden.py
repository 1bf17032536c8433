"""Reading tests/goldens: numbers from the authors' own code."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

import pixart_core as pc


def golden(name: str) -> tuple[dict, dict[str, Tensor]]:
    """(description, tensors) of a file."""
    with safe_open(Path(__file__).parent / "goldens" / f"{name}.safetensors", "pt") as file:
        return json.loads(file.metadata()["golden"]), {key: file.get_tensor(key) for key in file.keys()}


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under a prefix, without it."""
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}


def relative(a: Tensor, b: Tensor) -> float:
    """‖a − b‖ / ‖b‖."""
    return ((a - b).norm() / b.norm()).item()


def load_model(description: dict, tensors: dict[str, Tensor], prefix: str) -> pc.PixArt:
    """The transformer whose weights stand under a prefix."""
    model = pc.PixArt(pc.PixArtConfig.from_dict(description["config"]))
    model.load_state_dict(part(tensors, prefix))
    return model.eval()
