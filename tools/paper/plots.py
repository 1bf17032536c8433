"""The figures as pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Canvas
from PIL import Image, ImageDraw

from pixart_core.schedule import alphas_cumprod

Lines = Mapping[str, Sequence[tuple[float, float, float]]]
"""Label -> (x, mean, half of the interval)."""


def plot(found: Mapping[str, Any], path: Path) -> None:
    """What a figure's trainings came to, over their steps; a panel for each measure."""
    panels = list(_panels(found))
    canvas = Canvas(figsize=(4.6 * len(panels), 3.8), layout="constrained")
    for axes, (title, lines) in zip(np.atleast_1d(canvas.subplots(1, len(panels))), panels, strict=True):
        for label, points in lines.items():
            x, mean, half = (np.array(values) for values in zip(*points, strict=True))
            (line,) = axes.plot(x, mean, marker="o", ms=3, label=label)
            axes.fill_between(x, mean - half, mean + half, color=line.get_color(), alpha=0.15, linewidth=0)
        axes.set(xlabel="training step", ylabel=title)
        axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    canvas.savefig(path, dpi=110)


def _panels(found: Mapping[str, Any]) -> Iterator[tuple[str, Lines]]:
    if any("without" in marks for marks in found.values()):
        yield (
            "F1 of the edges, strength 1",
            {label: [(p["step"], p["f1"], 0.0) for p in marks["points"]] for label, marks in found.items()},
        )
        return
    for steps, measure, title in (
        ("1", "attributes", "attributes right in 1 step, %"),
        ("4", "at once", "everything right at once in 4 steps, %"),
        ("1", "distance", "Fréchet distance in 1 step"),
    ):
        yield (
            title,
            {
                label: [(p["step"], *p["marks"][steps][measure]) for p in marks["points"]]
                for label, marks in found.items()
            },
        )


def plot_schedules(path: Path) -> None:
    """β, ᾱ and logSNR of PixArt's schedule and of LCM's (paper Fig. 3)."""
    canvas = Canvas(figsize=(12, 3.6), layout="constrained")
    titles = ("β", "ᾱ", "logSNR = log ᾱ / (1 - ᾱ)")
    for axes, title in zip(panels := canvas.subplots(1, 3), titles, strict=True):
        axes.set(xlabel="timestep", ylabel=title)
        axes.grid(alpha=0.3)
    for label, scaled in (("PixArt (linear)", False), ("LCM (scaled linear)", True)):
        table = alphas_cumprod(scaled).double().numpy()
        steps = table / np.concatenate([[1.0], table[:-1]])
        for axes, values in zip(panels, (1 - steps, table, np.log(table / (1 - table))), strict=True):
            axes.plot(values, label=label)
    panels[-1].legend()
    canvas.savefig(path, dpi=110)


def strip(rows: Sequence[tuple[str, Path]], path: Path) -> None:
    """Pictures after every checkpoint below each other, each row with its name."""
    pictures = [(name, Image.open(picture).convert("RGB")) for name, picture in rows]
    margin, height = 90, max(picture.height for _, picture in pictures)
    width = margin + max(picture.width for _, picture in pictures)
    whole = Image.new("RGB", (width, height * len(pictures)), "white")
    pen = ImageDraw.Draw(whole)
    for row, (name, picture) in enumerate(pictures):
        whole.paste(picture, (margin, row * height))
        pen.text((6, row * height + height // 2), name.replace("step_", "step ").replace(" 0000", " "), fill="black")
    whole.save(path)
