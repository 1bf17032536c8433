"""The figures as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Canvas
from PIL import Image, ImageDraw, ImageFont

from pixart_core.schedule import alphas_cumprod

from .seeds import number

_DISTILLED = (
    (("marks", "1", "attributes"), "attributes right in 1 step, %"),
    (("marks", "2", "at once"), "all right at once in 2 steps, %"),
    (("marks", "4", "at once"), "all right at once in 4 steps, %"),
    (("marks", "1", "distance"), "Fréchet distance in 1 step"),
)
_CONTROLLED = (
    (("f1",), "F1 of all edges, strength 1"),
    (("recall_things",), "share of the edges of things found"),
    (("recall_land",), "share of the edges of the land found"),
)
_TEACHER = "teacher, 14 steps"
_QUALITY = 88
"""Of JPEG, in which pictures of scenes are a fifth of what they are as PNG."""
_WIDEST = 1200
"""Px of a sheet without the names: what a page shows anyway."""
_STYLES = ("--", ":", "-.")
"""Of the lines of teachers."""


def with_interval(value: Sequence[float]) -> str:
    """A mark for a table."""
    mean, half = value
    return f"{mean:.3g} ± {round(half, 6):.2g}"  # seeds that agree differ by their rounding alone


def plot(found: Mapping[str, Any], path: Path) -> None:
    """What a figure's trainings came to, over their steps; a panel for each measure, bands are 95 % intervals."""
    controls = "f1" in next(iter(found.values()))["points"][0]
    panels = _CONTROLLED if controls else _DISTILLED
    canvas = Canvas(figsize=(4 * len(panels), 4.2), layout="constrained")
    for axes, (keys, title) in zip(canvas.subplots(1, len(panels), sharey=controls), panels, strict=True):
        for label, marks in found.items():
            x = np.array([point["step"] for point in marks["points"]])
            mean, half = np.array([number(point, keys) for point in marks["points"]]).T
            (line,) = axes.plot(x, mean, marker="o", ms=3, label=label)
            axes.fill_between(x, mean - half, mean + half, color=line.get_color(), alpha=0.15, linewidth=0)
        for index, (name, known) in enumerate({} if controls else teachers(found).items()):
            style = _STYLES[index % len(_STYLES)]
            axes.axhline(known[keys[-1]][0], color="grey", linestyle=style, label=name)
        axes.set(xlabel="training step", title=title)
        if keys[-1] == "distance":
            axes.set_yscale("log")
        axes.grid(alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    canvas.savefig(path, dpi=80)


def teachers(found: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The teachers of different guidance that the trainings of a figure have, in 14 steps."""
    return {f"{_TEACHER}, guidance {1 + marks['guidance']:g}": marks["teacher"][_TEACHER] for marks in found.values()}


def plot_scenes(found: Mapping[str, Any], path: Path) -> None:
    """F1 of every scene over the steps, in the first training of each kind."""
    canvas = Canvas(figsize=(5 * len(found), 4), layout="constrained")
    panels = np.atleast_1d(canvas.subplots(1, len(found), sharey=True))
    panels[0].set(ylabel="F1 of edges, strength 1", ylim=(0, 1))
    for axes, (label, marks) in zip(panels, found.items(), strict=True):
        points = marks["trainings"][0]
        axes.plot([point["step"] for point in points], [point["each"] for point in points], linewidth=0.8, alpha=0.6)
        axes.set(title=f"each scene, {label}", xlabel="training step")
        axes.grid(alpha=0.3)
    canvas.savefig(path, dpi=80)


def plot_schedules(path: Path) -> None:
    """β, ᾱ and logSNR of PixArt's schedule and of LCM's (paper Fig. 3)."""
    canvas = Canvas(figsize=(13, 3.6), layout="constrained")
    titles = ("β", "√ᾱ: share of the picture in z_t", "logSNR = log(ᾱ / (1 - ᾱ))")
    for axes, title in zip(panels := canvas.subplots(1, 3), titles, strict=True):
        axes.set(xlabel="timestep", title=title)
        axes.grid(alpha=0.3)
    for label, scaled in (("PixArt (linear)", False), ("LCM (scaled linear)", True)):
        table = alphas_cumprod(scaled).double().numpy()
        betas = 1 - table / np.concatenate([[1.0], table[:-1]])
        for axes, values in zip(panels, (betas, np.sqrt(table), log_snr(scaled)), strict=True):
            axes.plot(values, label=label)
    panels[-1].legend()
    canvas.savefig(path, dpi=80)


def log_snr(scaled: bool) -> np.ndarray:
    """log ᾱ / (1 − ᾱ) of PixArt's schedule, or of LCM's scaled-linear one, (1000,)."""
    table = alphas_cumprod(scaled).double().numpy()
    return np.log(table / (1 - table))


def schedules() -> str:
    """Where the logSNR of the one is above that of the other."""
    ours, theirs = log_snr(False), log_snr(True)
    crossing = int(np.argmax(ours < theirs))
    return (
        f"PixArt's logSNR is above LCM's at timesteps 0 to {crossing - 1} ({ours[0]:.1f} and {theirs[0]:.1f} at 0) and "
        f"below at all others ({ours[-1]:.1f} and {theirs[-1]:.1f} at 999). So it spans more, as the paper says, but "
        "higher it is only where there is hardly any noise."
    )


def labelled(sheet: Path, path: Path, rows: Sequence[str] = (), columns: Sequence[str] = ()) -> None:
    """A sheet of pictures with names beside its rows, or above its columns."""
    picture = Image.open(sheet).convert("RGB")
    picture.thumbnail((_WIDEST, picture.height), Image.Resampling.LANCZOS)
    font = ImageFont.load_default(13)
    left, top = (78 if rows else 0), (20 if columns else 0)
    whole = Image.new("RGB", (left + picture.width, top + picture.height), "white")
    whole.paste(picture, (left, top))
    pen = ImageDraw.Draw(whole)
    for index, name in enumerate(rows):
        middle = top + (index + 0.5) * picture.height / len(rows)
        pen.text((4, middle), name, fill="black", font=font, anchor="lm")
    for index, name in enumerate(columns):
        middle = left + (index + 0.5) * picture.width / len(columns)
        pen.text((middle, top / 2), name, fill="black", font=font, anchor="mm")
    whole.save(path, quality=_QUALITY)
