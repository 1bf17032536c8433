"""What is read off a figure's marks, in words: a training is told from another only beyond what chance does."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .seeds import Path, apart, number

Found = Mapping[str, Mapping[str, Any]]
"""Label -> marks of its trainings, see `seeds.merged`."""
Pair = tuple[str, bool, Sequence[float], Sequence[float]]
"""Name of a measure, whether less is better, and what the trainings of one kind and of another came to."""

_DISTILLED: tuple[tuple[str, Path], ...] = (
    ("attributes right in one step", ("marks", "1", "attributes", 0)),
    ("all right at once in one step", ("marks", "1", "at once", 0)),
    ("all right at once in two steps", ("marks", "2", "at once", 0)),
    ("all right at once in four steps", ("marks", "4", "at once", 0)),
    ("Fréchet distance in one step", ("marks", "1", "distance", 0)),
    ("Fréchet distance in four steps", ("marks", "4", "distance", 0)),
)
CONTROLLED: tuple[tuple[str, Path], ...] = (
    ("F1", ("f1",)),
    ("edges of things found", ("recall_things",)),
    ("edges of the land found", ("recall_land",)),
)
HALF = 0.5
"""Of a scene's rise: between two checkpoints more is called a jump."""
LEAST_RISE = 0.15
"""Of F1, for a scene to be asked whether it jumped."""


def values(marks: Mapping[str, Any], step: int, path: Path) -> list[float]:
    """A number after so many training steps, of each training."""
    return [number(next(point for point in points if point["step"] == step), path) for points in marks["trainings"]]


def common_step(found: Found) -> int:
    """The last step that all trainings were measured at."""
    return max(set.intersection(*({point["step"] for point in marks["points"]} for marks in found.values())))


def compared(found: Found) -> str:
    """Each kind of training beside the first: in which measures it is better or worse beyond chance."""
    step = common_step(found)
    first, *others = found
    return " ".join(_beside(found, (first, step), (other, step)) for other in others)


def _beside(found: Found, first: tuple[str, int], other: tuple[str, int], more: str = "") -> str:
    pairs = _pairs((found[first[0]], first[1]), (found[other[0]], other[1]))
    return f"*{other[0]}* beside *{first[0]}* after {other[1]} steps{more}: {_told(pairs)}."


def _pairs(one: tuple[Mapping[str, Any], int], two: tuple[Mapping[str, Any], int]) -> list[Pair]:
    measures = _DISTILLED if "marks" in one[0]["points"][0] else CONTROLLED
    return [(title, "distance" in path, values(*one, path), values(*two, path)) for title, path in measures]


def _told(pairs: Iterable[Pair]) -> str:
    """In which measures the second is better or worse."""
    said: dict[str, list[str]] = {"better": [], "worse": [], "not told apart": []}
    for title, less_is_better, one, two in pairs:
        before, after = statistics.fmean(one), statistics.fmean(two)
        better = (after > before) != less_is_better
        how = "not told apart" if not apart(one, two) else "better" if better else "worse"
        said[how].append(f"{title} ({before:.3g} → {after:.3g})")
    return "; ".join(f"{how}: {', '.join(titles)}" for how, titles in said.items() if titles)


def pictures_alike(found: Found) -> str:
    """As `compared`, and once more for each of the others where it has seen as many pictures as the first."""
    first, *others = found
    words = [compared(found)]
    for other in others:
        one, two = found[first], found[other]
        seen = {point["step"] * two["batch"]: point["step"] for point in two["points"] if point["step"]}
        shared = [(point["step"], seen[n]) for point in one["points"] if (n := point["step"] * one["batch"]) in seen]
        if shared:
            step, steps = shared[-1]
            pictures = f", {step * one['batch']} pictures, of which *{first}* takes {step} steps"
            words.append(_beside(found, (first, step), (other, steps), pictures))
    return " ".join(words)


def risen(found: Found) -> str:
    """How the marks of the first kind went from before its first step to its last state."""
    label, marks = next(iter(found.items()))
    step = marks["points"][-1]["step"]
    teacher = marks["teacher"]["teacher, 14 steps"]["at once"][0]
    return (
        f"*{label}*, after step {step} beside what it began as: {_told(_pairs((marks, 0), (marks, step)))}. Its "
        f"teacher has all right at once in {teacher:.3g} % in 14 steps."
    )


def followed(found: Found) -> str:
    """How F1 of edges rose in each kind of training, the largest rise between two checkpoints, and who is better."""
    words = []
    for label, marks in found.items():
        curve = [(point["step"], *point["f1"]) for point in marks["points"]]
        rises = [(b[1] - a[1], a[0], b[0]) for a, b in itertools.pairwise(curve)]
        rise, start, end = max(rises)
        step, mean, half = curve[-1]
        words.append(
            f"*{label}*: F1 {curve[0][1]:.2f} without control, {mean:.2f} ± {half:.2f} after step {step}; steepest "
            f"from step {start} to {end}: {rise:+.2f}."
        )
    return f"{' '.join(words)} {compared(found)}".strip()


def jumps(found: Found) -> str:
    """As `followed`, and in how many scenes most of the rise came between two checkpoints."""
    words = []
    for label, marks in found.items():
        scenes = [
            list(each) for points in marks["trainings"] for each in zip(*(p["each"] for p in points), strict=True)
        ]
        risen = [curve for curve in scenes if curve[-1] - curve[0] >= LEAST_RISE]
        sudden = sum(max(b - a for a, b in itertools.pairwise(each)) > HALF * (each[-1] - each[0]) for each in risen)
        words.append(
            f"Of {len(scenes)} scenes, of all trainings together, {len(risen)} rose by {LEAST_RISE} or more, and "
            f"{sudden} of these by more than half of it between two checkpoints (*{label}*)."
        )
    words.append(
        "The F1 of one scene goes up and down between checkpoints by chance, so such a jump alone is no sudden "
        "convergence."
    )
    return f"{followed(found)} {' '.join(words)}"
