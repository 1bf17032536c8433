"""Figure 7 on the bundled weights: the teacher in 14 steps beside the student in four, with marks and seconds."""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

from ..comfy_server import ROOT
from . import plots
from .work import base_of, train_py

TITLE = "Figure 7: teacher in 14 steps, student in four"
PAPER = "PixArt-δ in 4 steps beside its teacher PixArt-α in 14; on an A100 0.5 s and 2.2 s (Table 2)"
NOTE = (
    "The teacher draws with DPM-Solver++ at the guidance that the student learned, ω = 3, which is conventionally "
    "called 4. Seconds are those of the CPU, with one thread, a picture at a time, from caption to pixels; other "
    "programs were running"
)
OMEGA = 3.0
"""That the bundled student learned; conventional guidance 4."""
FOLDER = ROOT / "models" / "nano256"
"""What the demo draws with."""
STEPS = (1, 2, 4, 8)
_ROUNDS = 9


def measure(count: int, seeds: int, sheet: Path | None = None, teacher: bool = True) -> dict[str, Any]:
    """Marks of the bundled student and of its base at the guidance that it learned, on the hard captions.

    Args:
        count: captions.
        seeds: of the sampling noise.
        sheet: picture to write: the first square captions, a row for each entry.
        teacher: also measure the base, which takes two thirds of the time.
    """
    drawn = () if sheet is None else ("--sheet", sheet.with_suffix(".sheet.png"))
    out = train_py(
        *("nano", "curve", FOLDER, "--guidance", OMEGA, "--captions", "hard", "--count", count, "--seeds", seeds),
        *("--steps", *STEPS, *drawn, *([] if teacher else ["--no-teacher"])),
    )
    lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    found = {"captions": count, "seeds": seeds, "marks": lines[0]}
    if sheet is not None:
        plots.labelled(drawn[1], sheet, [name.replace(", ", ",\n") for name in lines[0]])
        drawn[1].unlink()
        found["shown"] = lines[1]["shown"]
    return found


def seconds() -> dict[str, float]:
    """CPU seconds of a square picture, one at a time on one thread: caption, steps and decoding."""
    import torch

    import pixart_core as pc

    torch.set_num_threads(1)
    out = {}
    for name, weights, options in (
        ("student, 4 steps", None, {"steps": 4}),
        ("teacher, 14 steps", str(base_of(FOLDER)), {"steps": 14, "sampler": "dpm", "guidance": 1 + OMEGA}),
    ):
        pipeline, taken = pc.Pipeline.from_pretrained(FOLDER, transformer=weights), []
        for seed in range(1 + _ROUNDS):
            started = time.process_time()
            pipeline("a house on a meadow in front of red mountains by day", seed=seed, **options)
            taken.append(time.process_time() - started)
        out[name] = round(statistics.median(taken[1:]), 3)
    return out


def table(found: dict[str, Any]) -> dict[str, list]:
    rows = [
        [name, *(plots.with_interval(marks[mark]) for mark in ("attributes", "at once", "distance"))]
        for name, marks in found["marks"].items()
    ]
    return {"columns": ["", "attributes right, %", "all right at once, %", "Fréchet distance"], "rows": rows}


def sentence(found: dict[str, Any]) -> str:
    marks, seconds = found["marks"], found["seconds"]
    teacher, student = marks["teacher, 14 steps"]["at once"], marks["student, 4 steps"]["at once"]
    near = abs(teacher[0] - student[0]) <= teacher[1] + student[1]
    ratio = seconds["teacher, 14 steps"] / seconds["student, 4 steps"]
    return (
        f"Everything is right at once in {teacher[0]:.1f} % of the teacher's pictures in 14 steps and in "
        f"{student[0]:.1f} % of the student's in four: "
        + ("the intervals overlap. " if near else "that is a difference beyond the intervals. ")
        + f"In two steps these are {marks['student, 2 steps']['at once'][0]:.1f} %, in one "
        f"{marks['student, 1 step']['at once'][0]:.1f} % of the pictures. "
        f"A picture takes {seconds['student, 4 steps']:.2f} s of one core and {seconds['teacher, 14 steps']:.2f} s, "
        f"{ratio:.1f} times as much (the paper, on GPUs: 4.4 to 6.9 times); the networks run 4 and 28 times."
    )
