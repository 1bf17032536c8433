"""docs/paper.md: every figure that was drawn, with what the paper says and what came out here."""

from __future__ import annotations

import json
from pathlib import Path

INTRODUCTION = """# The paper's figures, drawn anew

On the bundled nano family, with `python -m tools.paper` (`--list` names the figures, `--check` recomputes their
beginnings). This page is written by it. The paper's models have 0.6 billion parameters and pictures of 1024 px, these
have 4 million and 128 px: what holds here need not hold there, and the other way round. Marks are means over seeds of
the sampling noise with their 95 % interval; every training has one seed.
"""


def write(place: Path) -> None:
    """The page of all figures whose JSON is in the folder, beside it."""
    sections = [_section(file) for file in sorted(place.glob("*.json"), key=_order)]
    place.with_name("paper.md").write_text("\n".join([INTRODUCTION, *sections]), encoding="utf-8")


def _order(file: Path) -> tuple[bool, int, str]:
    number = file.stem.isdigit()
    return not number, int(file.stem) if number else 0, file.stem


def _section(file: Path) -> str:
    figure = json.loads(file.read_text(encoding="utf-8"))
    title = f"Figure {file.stem}" if file.stem.isdigit() else file.stem.capitalize()
    pictures = "\n\n".join(f"![{title}]({file.parent.name}/{name})" for name in figure["pictures"])
    seconds = figure.get("trained_seconds", {})
    trained = f" Trained in {', '.join(f'{value} s' for value in seconds.values())}." if seconds else ""
    return (
        f"## {title}\n\nThe paper: {figure['paper']}.\n\n{pictures}\n\nHere: {figure['verdict']}{trained}\n\n"
        f"`python -m tools.paper {file.stem}`\n"
    )
