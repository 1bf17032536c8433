"""docs/paper.md: every figure, with what the paper says and what came out here, or that it was not made yet."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

INTRODUCTION = """# The paper's figures, drawn anew

This page is written by `python -m tools.paper` (`--list` names the figures; `--check` computes the points of the
bundled family and the beginning of each training again, and compares). Tables 1 and 2 are of random weights of the
true shapes at 1024 px, on the GPU that they name. Figure 7 is of **the bundled nano family of {shown} px**, and
everything that is trained here of **that of {trained} px**, where a step takes a quarter of the time: the paper's
models have 0.6 billion parameters and pictures of 1024 px, these have 4 or 5 million. What holds here need not hold
there, and the other way round. With another family in `models/nano` the same commands draw all of it again.

Marks are read off pictures of captions that nothing was trained on and that all name things to be counted. *All right
at once*: every attribute of the caption is right, and every number, by a checker that compares pixels (of drawn scenes
it finds at most 1 % wrong). The Fréchet distance is one of latents to drawn scenes. Marks of figure 7 and of teachers
are means over {noises} seeds of the sampling noise with their 95 % interval, over {captions} captions. **Each training
was made {seeds} times**, with seeds of its own, and each of these was measured so; its marks are means over the
{seeds}, and the intervals are of them. *Better* and *worse* are said where the difference to the training of the same
seed, which sees the same pictures in the same noise, is beyond chance (Student's t, 95 %): with {seeds} seeds, only
what is large or very regular is told apart, and of twenty comparisons of what is alike one will be wrong.
"""
ELSEWHERE = """## Measured by other commands

In [measured.md](measured.md): LCD in float32, float16 and bfloat16 (`python -m tools.bench lcd_precision`),
distillation without pictures (`python tests/bench/bench_data_free.py FOLDER`), and how the bundled student and LoRA
converged; the control: [models/nano](../models/nano/README.md).
"""


def write(place: Path, figures: Mapping[str, Mapping[str, Any]], captions: int, noises: int, seeds: int) -> None:
    """The page beside the folder with the figures' JSON.

    Args:
        figures: name -> title, paper and command of every figure, in the order of the page.
        captions, noises: that marks are means of.
        seeds: that every training was made with.
    """
    sections = [_section(place, name, known) for name, known in figures.items()]
    counts = {"captions": captions, "noises": noises, "seeds": seeds}
    sizes = {"shown": _sizes(place, ["7"]), "trained": _sizes(place, figures.keys() - {"7"})}
    introduction = INTRODUCTION.format(**counts, **sizes)
    place.with_name("paper.md").write_text("\n".join([introduction, *sections, ELSEWHERE]), encoding="utf-8")


def _sizes(place: Path, names: Iterable[str]) -> str:
    """Px of the families that figures are of."""
    files = [place / f"{name}.json" for name in names]
    made = [json.loads(file.read_text(encoding="utf-8"))["made_with"]["family"] for file in files if file.exists()]
    return " and ".join(map(str, sorted({family["resolution"] for family in made}))) or "…"


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
    return f": CPU seconds of the trainings, all seeds together: {trained}." if trained else ""


def _table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
