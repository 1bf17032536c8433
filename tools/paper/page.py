"""docs/paper.md: every figure, with what the paper says and what came out here, or that it was not made yet."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

INTRODUCTION = """# The paper's figures, drawn anew

This page is written by `python -m tools.paper` (`--list` names the figures; `--check` computes the points of the
bundled family and the beginning of each training again, and compares). Tables 1 and 2 are of random weights of the
true shapes at 1024 px, on the GPU that they name. Everything else here is of **the bundled nano family of
{resolution} px**: the paper's models have 0.6 billion parameters and pictures of 1024 px, these have some 4 million
and {resolution} px. What holds here need not hold there, and the other way round. With another family in `models/nano`
the same commands draw all of it again.

Marks are read off pictures of captions that nothing was trained on and that all name things to be counted. *All right
at once*: every attribute of the caption is right, and every number, by a checker that compares pixels (of drawn scenes
it finds 1 % wrong). The Fréchet distance is one of latents to drawn scenes. Each mark is the mean over {seeds} seeds of
the sampling noise with its 95 % interval, over {captions} captions. A distillation has one seed of its own, so each
figure but figure 8 also shows its first one with another: *better* and *worse* are said only of differences beyond the
intervals and beyond what that other seed makes. One other seed is little: it warns of chance, and does not measure it.
"""
ELSEWHERE = """## Measured by other commands

In [measured.md](measured.md): LCD in float32, float16 and bfloat16 (`python -m tools.bench lcd_precision`),
distillation without pictures (`python tests/bench/bench_data_free.py FOLDER`), and how the bundled student and LoRA
converged; the control: [models/nano](../models/nano/README.md). The control figures were drawn with the edges of
`docs/paper/hed.safetensors`, which the family had then.
"""


def write(place: Path, figures: Mapping[str, Mapping[str, Any]], captions: int, seeds: int) -> None:
    """The page beside the folder with the figures' JSON.

    Args:
        figures: name -> title, paper and command of every figure, in the order of the page.
        captions, seeds: that marks are means of.
    """
    sections = [_section(place, name, known) for name, known in figures.items()]
    made = [json.loads(file.read_text(encoding="utf-8"))["made_with"]["family"] for file in place.glob("*.json")]
    resolution = " and ".join(map(str, sorted({each["resolution"] for each in made}))) or "…"
    introduction = INTRODUCTION.format(captions=captions, seeds=seeds, resolution=resolution)
    place.with_name("paper.md").write_text("\n".join([introduction, *sections, ELSEWHERE]), encoding="utf-8")


def _section(place: Path, name: str, known: Mapping[str, Any]) -> str:
    head = f"## {known['title']}\n\nThe paper: {known['paper']}.\n"
    file = place / f"{name}.json"
    if not file.exists():
        return f"{head}\n**Not made yet**: `{known['command']}`{known['cost']}.\n"
    figure = json.loads(file.read_text(encoding="utf-8"))
    pictures = [f"![{known['title']}]({place.name}/{picture})\n" for picture in figure["pictures"]]
    shown = [f"Captions of the columns: {'; '.join(figure['shown'])}.\n"] if "shown" in figure else []
    note = [f"{figure['note']}.\n"] if figure.get("note") else []
    table = [_table(**figure["table"])] if "table" in figure else []
    parts = [
        head,
        *pictures,
        *shown,
        *table,
        f"**Here**: {figure['verdict']}\n",
        *note,
        f"`{known['command']}`{_took(figure)}\n",
    ]
    return "\n".join(parts)


def _took(figure: Mapping[str, Any]) -> str:
    seconds = figure.get("trained_seconds", {})
    trained = ", ".join(f"{label} {value}" for label, value in seconds.items())
    return f": CPU seconds of the trainings: {trained}." if trained else ""


def _table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
