"""What trainings that differ in their seed alone came to: each mark's mean and interval, and what is beyond chance."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from scipy import stats

Marks = Mapping[str, Any]
"""Of one training: what `work.Workshop.measure` found, oldest state first."""
Path = Sequence[str | int]
"""To a number of a point: ("f1",), or ("marks", "4", "at once", 0)."""
_CONTROL = ("f1", "recall_things", "recall_land")
"""Marks of a control."""
CHANCE = 0.05
"""How often two trainings that differ in nothing are told apart."""


def interval(values: Sequence[float]) -> list[float]:
    """Mean, and half the width of its 95 % interval (Student's t)."""
    half = stats.t.ppf(1 - CHANCE / 2, len(values) - 1) * stats.sem(values)
    return [statistics.fmean(values), float(half)]


def merged(trainings: Sequence[Marks]) -> dict[str, Any]:
    """The marks of trainings of one kind as one: each is its mean over them and half of its interval.

    What a training starts from is the same for all, and keeps its interval over the seeds of the sampling noise.
    """
    steps = [_point([training["points"][index] for training in trainings]) for index in range(len(_points(trainings)))]
    about = {name: value for name, value in trainings[0].items() if name != "points"}
    return {"points": steps, **about, "trainings": [training["points"] for training in trainings]}


def _points(trainings: Sequence[Marks]) -> list[dict[str, Any]]:
    counts = {len(training["points"]) for training in trainings}
    assert len(counts) == 1, f"trainings of one kind have {counts} points"
    return trainings[0]["points"]


def _point(points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    first = points[0]
    if "marks" not in first:
        return {"step": first["step"], **{name: _interval(points, [name]) for name in first if name in _CONTROL}}
    if first["step"] == 0:
        return {"step": 0, "marks": first["marks"]}
    marks = {
        steps: {name: _interval(points, ["marks", steps, name, 0]) for name in each}
        for steps, each in first["marks"].items()
    }
    return {"step": first["step"], "marks": marks}


def _interval(points: Sequence[Mapping[str, Any]], path: Path) -> list[float]:
    return interval([number(point, path) for point in points])


def number(point: Any, path: Path) -> float:
    """What lies in a point at a path."""
    for key in path:
        point = point[key]
    return point


def apart(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether trainings differ from others of the same seeds, which see the same pictures in the same noise, beyond
    chance (Student's t of the differences)."""
    return bool(stats.ttest_rel(one, other).pvalue < CHANCE)
