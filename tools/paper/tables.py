"""Tables 1 and 2 of the paper from what `python -m tools.bench gpu` measured on a GPU."""

from __future__ import annotations

import json
from typing import Any

from ..comfy_server import ROOT

TITLE = "Tables 1 and 2: memory of a distillation, seconds of a picture"
PAPER = "a distillation at 1024 px fits into 32 GB at 12 pictures a GPU; a picture takes 0.5 s on an A100"
FILE = ROOT / "output" / "bench" / "gpu.json"
COMMAND = "python -m tools.bench gpu --parts lcd table2"
PARTS = {"lcd": "Table 1", "table2": "Table 2"}


def measured() -> dict[str, Any] | None:
    """The figures that a card gave; None where there is no such file, or of a rehearsal, whose figures mean nothing."""
    known = json.loads(FILE.read_text()) if FILE.is_file() else None
    if known is None or known["about"]["rehearsal"] or not PARTS.keys() & known["parts"].keys():
        return None
    rows = [
        [title, each["what"], f"{each['value']:.4g} {each['unit']}"]
        for part, title in PARTS.items()
        for each in known["parts"].get(part, {}).get("figures", ())
    ]
    return {
        "title": TITLE,
        "paper": PAPER,
        "verdict": f"measured on one {known['about']['device']}, torch {known['about']['torch']}.",
        "pictures": [],
        "table": {"columns": ["", "what", "measured"], "rows": rows},
    }
