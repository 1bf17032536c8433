"""Tables 1 and 2 of the paper from what `python -m tools.bench gpu` measured on a GPU, or `table2` on a CPU."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from ..comfy_server import ROOT

TITLE = "Tables 1 and 2: memory of a distillation, seconds of a picture"
PAPER = "a distillation at 1024 px fits into 32 GB at 12 pictures a GPU; a picture takes 0.5 s on an A100"
FILES = [ROOT / "output" / "bench" / name for name in ("gpu.json", "table2.json")]
"""The first that holds something is taken: a CPU measures Table 2 alone."""
COMMAND = "python -m tools.bench gpu --parts lcd table2"
_OF_THE_PAPER = re.compile(r"(?P<what>.+) \(the paper(?:'s)?: (?P<value>[\d.]+)[^)]*\)")
PARTS = {"lcd": "Table 1", "table2": "Table 2"}


def measured() -> dict[str, Any] | None:
    """The figures of the device at hand; None where there is no file but of rehearsals, whose figures mean nothing."""
    for file in FILES:
        known = json.loads(file.read_text()) if file.is_file() else None
        if known is not None and not known["about"]["rehearsal"] and PARTS.keys() & known["parts"].keys():
            return _described(known)
    return None


def _described(known: dict[str, Any]) -> dict[str, Any]:
    figures = [
        (title, each)
        for part, title in PARTS.items()
        for kind in ("figures", "partial")  # what a part had measured before it failed counts
        for each in known["parts"].get(part, {}).get(kind, ())
    ]
    rows = [[title, each["what"], f"{each['value']:.4g} {each['unit']}"] for title, each in figures]
    lacking = "" if "lcd" in known["parts"] else " Table 1, the memory of a distillation, waits for a GPU."
    device = f"measured on one {known['about']['device']}, torch {known['about']['torch']}."
    return {
        "title": TITLE,
        "paper": PAPER,
        "verdict": f"{device} {_beside_the_paper([each for _, each in figures])}{lacking}".strip(),
        "pictures": [],
        "table": {"columns": ["", "what", "measured"], "rows": rows},
    }


def _beside_the_paper(figures: Iterable[dict[str, Any]]) -> str:
    """Which of the figures that the paper has, too, are below its own, and which are above."""
    said: dict[str, list[str]] = {"below": [], "above": []}
    for each in figures:
        found = _OF_THE_PAPER.fullmatch(each["what"])
        if found and each["value"] != float(found["value"]):
            words = f"{found['what']} ({each['value']:.3g} {each['unit']}, there {found['value']})"
            said["below" if each["value"] < float(found["value"]) else "above"].append(words)
    return " ".join(f"{side.capitalize()} the paper's: {', '.join(all_)}." for side, all_ in said.items() if all_)
