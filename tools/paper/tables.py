"""Tables 1 and 2 of the paper from what `python -m tools.bench gpu` measured on a GPU, or `table2` on a CPU."""

from __future__ import annotations

import json
from typing import Any

from ..comfy_server import ROOT

TITLE = "Tables 1 and 2: memory of a distillation, seconds of a picture"
PAPER = "a distillation at 1024 px fits into 32 GB at 12 pictures a GPU; a picture takes 0.5 s on an A100"
FILES = [ROOT / "output" / "bench" / name for name in ("gpu.json", "table2.json")]
"""The first that holds something is taken: a CPU measures Table 2 alone."""
COMMAND = "python -m tools.bench gpu --parts lcd table2"
PARTS = {"lcd": "Table 1", "table2": "Table 2"}


def measured() -> dict[str, Any] | None:
    """The figures of the device at hand; None where there is no file but of rehearsals, whose figures mean nothing."""
    for file in FILES:
        known = json.loads(file.read_text()) if file.is_file() else None
        if known is not None and not known["about"]["rehearsal"] and PARTS.keys() & known["parts"].keys():
            return _described(known)
    return None


def _described(known: dict[str, Any]) -> dict[str, Any]:
    rows = [
        [title, each["what"], f"{each['value']:.4g} {each['unit']}"]
        for part, title in PARTS.items()
        for kind in ("figures", "partial")  # what a part had measured before it failed counts
        for each in known["parts"].get(part, {}).get(kind, ())
    ]
    lacking = "" if "lcd" in known["parts"] else " Table 1, the memory of a distillation, waits for a GPU."
    return {
        "title": TITLE,
        "paper": PAPER,
        "verdict": f"measured on one {known['about']['device']}, torch {known['about']['torch']}.{lacking}",
        "pictures": [],
        "table": {"columns": ["", "what", "measured"], "rows": rows},
    }
