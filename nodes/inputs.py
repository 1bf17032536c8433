"""What several nodes declare alike, said once: categories, inputs, and when a node has to run again.

The first argument of every input is its id, by which saved workflows know it.
"""

from __future__ import annotations

import time
from typing import Any, get_type_hints

from comfy_api.latest import io

from ..training.config import COMMANDS
from .bridge import files

CATEGORY = "PixArt-δ"
CONTROL_CATEGORY = f"{CATEGORY}/control"
TRAINING_CATEGORY = f"{CATEGORY}/training"
NONE = "none"
"""What a list offers besides files."""
_LARGEST_SIDE = 16384


def file_input(id: str, kind: str, tooltip: str, use: str = "") -> io.Input:
    """A file or folder of one of the kinds that `files.names` lists; at first one that works.

    use: what for, see `files.first_usable`.
    """
    return io.Combo.Input(id, options=files.names(kind), default=files.first_usable(kind, use), tooltip=tooltip)


def fingerprint(**kinds: str) -> classmethod[Any, ..., str]:
    """`fingerprint_inputs` of a node that runs again when a file changes: id of an input -> kind of its file."""

    def stamp(_node: type, /, **inputs: str) -> str:
        return "".join(files.stamp(kind, inputs[id]) for id, kind in kinds.items())

    return classmethod(stamp)


def _now(_node: type, /, **_inputs: object) -> float:
    return time.time()


always: classmethod[Any, ..., float] = classmethod(_now)
"""`fingerprint_inputs` of a node that runs each time: its job may have gone on, or have been deleted."""


def dtype_input(id: str) -> io.Input:
    """The dtype that a model is loaded in."""
    return io.Combo.Input(
        id,
        options=["default", "bfloat16", "float16", "float32"],
        tooltip="Number format of the weights. default: what ComfyUI picks for your device, and bfloat16 on a CPU that "
        "is fast in it.",
    )


def saved_dtype_input(id: str, written: str, *kept: str) -> io.Input:
    """The dtype that is written.

    Args:
        written: "file" or "files", for the tooltip.
        kept: choices before the dtypes, for tensors that stay as they are.
    """
    tooltip = f"Number format of the {written}: float16 and bfloat16 take half the space of float32."
    return io.Combo.Input(id, options=[*kept, "float16", "bfloat16", "float32"], tooltip=tooltip)


def side_input(id: str, default: int, tooltip: str, step: int = 8, low: int = 8, high: int = _LARGEST_SIDE) -> io.Input:
    """Width, height or shorter side in px; a default of 0 means one that is found out."""
    return io.Int.Input(id, default=default, min=min(default, low), max=high, step=step, tooltip=tooltip)


def resolution_input(id: str, of: str, step: int = 8, more: str = "") -> io.Input:
    """The size that pictures are prepared in.

    Args:
        of: "bucket" or "pictures", for the tooltip.
        more: the tooltip's end.
    """
    size = "the size of the base model (256 for the bundled one, 128 for the smaller)"
    tooltip = f"Side in pixels of the square {of}: {size}.{more}"
    return side_input(id, 1024, tooltip, step, low=64, high=4096)


def pipeline_input(id: str, what: str) -> io.Input:
    """A pipeline folder of which `what` is taken."""
    tooltip = (
        f"{what} that the base model was trained with: a pipeline folder in models/pixart_delta, or the bundled one."
    )
    return file_input(id, "pipeline", tooltip)


def job_input(id: str, empty: str) -> io.Input:
    """A job; `empty` is what is meant without one."""
    tooltip = f"Id of a job, from a training node or from the panel. Empty: {empty}."
    return io.String.Input(id, default="", tooltip=tooltip)


def prefix_input(id: str, default: str, follows: str, of: str = "name") -> io.Input:
    """Where a file is written, and what its name, or the names of several, begin with."""
    tooltip = f"Place and start of the {of} below ComfyUI's output folder; {follows}."
    return io.String.Input(id, default=default, tooltip=tooltip)


def share_input(id: str, default: float, tooltip: str) -> io.Input:
    """A moment of the sampling: 0 is its begin, 1 its end."""
    return io.Float.Input(id, default=default, min=0.0, max=1.0, step=0.001, tooltip=tooltip)


def lora_strength_input(id: str, tooltip: str) -> io.Input:
    """How much of a LoRA is added."""
    return io.Float.Input(id, default=1.0, min=-10.0, max=10.0, step=0.05, tooltip=tooltip)


def more_settings_input(id: str, command: str, of: str = "") -> io.Input:
    """Settings of a command that the node has no input for."""
    return io.String.Input(
        id,
        default="",
        multiline=True,
        advanced=True,
        tooltip=f"Any further setting{of}, one key=value a line; `python training/train.py {command} --help` lists "
        "them.",
    )


def setting_input(id: str, command: str, advanced: bool = False, optional: bool = False) -> io.Input:
    """The input of a setting of the trainer, which is called as the input."""
    kind = COMMANDS[command]
    setting = kind.__dataclass_fields__[id]
    limits, default = setting.metadata, setting.default
    about = {
        "tooltip": f"{limits['help'][0].upper()}{limits['help'][1:]}.",
        "advanced": advanced or None,
        "optional": optional,
    }
    if "choices" in limits:
        return io.Combo.Input(id, options=list(limits["choices"]), default=default, **about)
    wanted = get_type_hints(kind)[id]
    if wanted is bool:
        return io.Boolean.Input(id, default=default, **about)
    low, high = limits["low"], limits["high"]
    if wanted is int:
        return io.Int.Input(id, default=default, min=low, max=high, **about)
    step = 1e-7 if id == "learning_rate" else 0.1
    return io.Float.Input(id, default=default, min=low, max=high, step=step, round=False, **about)
