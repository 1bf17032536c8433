"""Figure 7 on the bundled weights: the teacher in 14 steps beside the student in four, with marks and seconds."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from PIL import Image

from .work import BASE, NANO, train_py

PAPER = "PixArt-δ in 4 steps beside its teacher PixArt-α in 14; on an A100 0.5 s and 2.2 s (Table 2)"
_WHO = {
    "student": ("--steps", 4, 2, 1),
    "teacher": ("--transformer", BASE, "--sampler", "dpm", "--steps", 14, 4),
}


def measure(count: int, sheet: Path | None = None) -> dict[str, Any]:
    """Pictures in which everything is right at once, in percent of the hard captions, by model and number of sampling
    steps, and the seconds of it all.

    Args:
        count: captions.
        sheet: picture to write: the first captions, a row for each entry.
    """
    found, sheets = {}, []
    for who, options in _WHO.items():
        where = () if sheet is None else ("--sheet", sheet.with_name(f"{sheet.stem}_{who}.png"))
        started = time.monotonic()
        lines = train_py(
            "nano", "evaluate", NANO, "--captions", "hard", "--count", count, *where, *options
        ).splitlines()
        for line in map(json.loads, (line for line in lines if line.startswith("{"))):
            found[f"{who}, {line['steps']} step{'s' * (line['steps'] > 1)}"] = line["at once"]
        found[f"{who}, seconds"] = round(time.monotonic() - started, 1)
        sheets += where[1:]
    if sheet is not None:
        _below([Image.open(each) for each in sheets]).save(sheet)
        for each in sheets:
            each.unlink()
    return found


def sentence(found: dict[str, Any]) -> str:
    marks = "; ".join(f"{name}: {value} %" for name, value in found.items() if not name.endswith("seconds"))
    return f"Attributes and counts all right at once on hard captions that nothing was trained on: {marks}."


def _below(pictures: list[Image.Image]) -> Image.Image:
    """Pictures of one width below each other."""
    whole = Image.new("RGB", (max(each.width for each in pictures), sum(each.height for each in pictures)), "white")
    top = 0
    for each in pictures:
        whole.paste(each, (0, top))
        top += each.height
    return whole
