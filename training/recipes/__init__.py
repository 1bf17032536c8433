"""Settings for a device of a given memory, by name: `--recipe NAME`, and the nodes. Standard library only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...pixart_core.textfile import read_json
from ..settings import ConfigError

FOLDER = Path(__file__).parent
SIZES = (8, 12, 16, 24, 32)
"""GB of a device."""
NANO = "nano"
"""The recipe for the bundled models, and others as small, on any device."""
RECIPES = (*(f"{size}gb" for size in SIZES), NANO)
AUTO = "auto"
"""The name that means: by the size of the base, and the memory of the device."""

_OF_NANO = {"lcd": "nano_student", "lcm-lora": "nano_lcm_lora", "controlnet": "nano_controlnet"}
_SHORT_OF = 0.93
"""A card says a few percent less than what it is sold as."""


def recipe_values(command: str, name: str) -> dict[str, Any]:
    """The settings of a recipe: those for the largest device that is no larger than the one named.

    Raises:
        ConfigError: if there is no recipe of this name, or none of this command for so small a device.
    """
    if name not in RECIPES:
        raise ConfigError(f"there is no recipe {name!r}: choose one of {', '.join(RECIPES)}")
    stem = command.replace("-", "_")
    if name == NANO:
        return read_json(FOLDER / f"{_OF_NANO.get(command, f'nano_{stem}')}.json")
    size = int(name.removesuffix("gb"))
    files = (FOLDER / f"{stem}_{each}gb.json" for each in sorted(SIZES, reverse=True) if each <= size)
    found = next((file for file in files if file.exists()), None)
    if found is None:
        raise ConfigError(_too_small(command, size))
    return read_json(found)


def _too_small(command: str, size: int) -> str:
    """What is said of a command that a device of `size` GB is too small for."""
    least = next(each for each in SIZES if (FOLDER / f"{command.replace('-', '_')}_{each}gb.json").exists())
    text = f"{command} has no recipe for {size} GB, but for {least} GB and more"
    if command == "lcd":
        text += (
            ": the weights, their average, gradients and moments of a whole model alone take more than 8 GB. Train an "
            "LCM-LoRA instead (lcm-lora, recipe 8gb): it draws in 4 steps, too"
        )
    return text


def recipe_for(parameters: int, memory: float) -> str:
    """The name of the recipe for a base of so many parameters on a device of so many bytes.

    A device smaller than all of them gets the smallest; what does not fit is refused by its estimate.
    """
    if parameters < 50e6:
        return NANO
    fitting = [size for size in SIZES if size * _SHORT_OF * 2**30 <= memory]
    return f"{max(fitting, default=SIZES[0])}gb"
