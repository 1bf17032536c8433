"""What is read off a figure's marks, in words.

A distillation is told from another only beyond what chance does: the intervals over seeds of the sampling noise, and
how far away the same training comes out with another seed of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

Marks = Mapping[str, Any]
"""Of one training: what `work.Workshop.measure` found, oldest state first."""
Found = Mapping[str, Marks]
"""Label -> marks."""
Mark = tuple[float, float]
"""Mean, half of its 95 % interval."""

ANOTHER_SEED = "another seed"
MEASURES = (
    ("attributes right in one step", "1", "attributes"),
    ("all right at once in one step", "1", "at once"),
    ("all right at once in two steps", "2", "at once"),
    ("all right at once in four steps", "4", "at once"),
    ("Fréchet distance in one step", "1", "distance"),
    ("Fréchet distance in four steps", "4", "distance"),
)
"""Name, steps of sampling, mark."""
HALF = 0.5
"""Of a scene's rise: between two checkpoints more is called a jump."""
LEAST_RISE = 0.15
"""Of F1, for a scene to be asked whether it jumped."""


def mark(marks: Marks, step: int, steps: str, measure: str) -> Mark:
    """A mark after so many training steps, in so many sampling steps."""
    point = next(point for point in marks["points"] if point["step"] == step)
    mean, half = point["marks"][steps][measure]
    return mean, half


def common_step(found: Found) -> int:
    """The last step that all trainings were measured at."""
    return max(set.intersection(*({point["step"] for point in marks["points"]} for marks in found.values())))


def apart(one: Mark, other: Mark, seeds: float) -> bool:
    """Whether two marks differ by more than their intervals and the seed of a training allow."""
    return abs(one[0] - other[0]) > max(one[1] + other[1], seeds)


def compared(found: Found) -> str:
    """Each training beside the first: in which measures it is better or worse beyond chance."""
    step = common_step(found)
    first, again, *others = found
    return " ".join(_beside(other, found, (first, step), (again, step), (other, step)) for other in others)


def _beside(
    name: str, found: Found, first: tuple[str, int], again: tuple[str, int], other: tuple[str, int], more: str = ""
) -> str:
    pairs = []
    for title, steps, measure in MEASURES:
        one, seed, two = (mark(found[label], step, steps, measure) for label, step in (first, again, other))
        pairs.append((title, measure, one, two, abs(seed[0] - one[0])))
    return f"*{name}* beside *{first[0]}* after {other[1]} steps{more}: {_told(pairs)}."


def _told(pairs: Iterable[tuple[str, str, Mark, Mark, float]]) -> str:
    """In which measures the second mark is better or worse; each pair with what the seed of a training makes."""
    said: dict[str, list[str]] = {"better": [], "worse": [], "not told apart": []}
    for title, measure, one, two, seeds in pairs:
        words = f"{title} ({one[0]:.3g} → {two[0]:.3g})"
        better = (two[0] > one[0]) != (measure == "distance")
        said["not told apart" if not apart(one, two, seeds) else "better" if better else "worse"].append(words)
    return "; ".join(f"{how}: {', '.join(titles)}" for how, titles in said.items() if titles)


def pictures_alike(found: Found) -> str:
    """As `compared`, and once more where both trainings have seen the same number of pictures."""
    first, again, other = found
    one, two = found[first], found[other]
    seen = {point["step"] * two["batch"]: point["step"] for point in two["points"] if point["step"]}
    shared = [(point["step"], seen[n]) for point in one["points"] if (n := point["step"] * one["batch"]) in seen]
    if not shared:
        return compared(found)
    step, others = shared[-1]
    pictures = f", {step * one['batch']} pictures, of which *{first}* takes {step} steps"
    return f"{compared(found)} {_beside(other, found, (first, step), (again, step), (other, others), pictures)}"


def risen(found: Found) -> str:
    """How the marks of the first training went from before its first step to its last state."""
    label, marks = next(iter(found.items()))
    step = marks["points"][-1]["step"]
    pairs = [
        (title, measure, mark(marks, 0, steps, measure), mark(marks, step, steps, measure), 0.0)
        for title, steps, measure in MEASURES
    ]
    teacher = marks["teacher"]["teacher, 14 steps"]["at once"][0]
    return (
        f"*{label}*, after step {step} beside what it began as: {_told(pairs)}. Its teacher has all right at once in "
        f"{teacher:.3g} % in 14 steps."
    )


def followed(found: Found) -> str:
    """How F1 of edges rose in each training, and the largest rise between two checkpoints."""
    words = []
    for label, marks in found.items():
        curve = [(point["step"], point["f1"]) for point in marks["points"]]
        rises = [(b[1] - a[1], a[0], b[0]) for a, b in itertools.pairwise(curve)]
        rise, start, end = max(rises)
        words.append(
            f"*{label}*: F1 {curve[0][1]:.2f} without control, {curve[-1][1]:.2f} after step {curve[-1][0]}; steepest "
            f"from step {start} to {end}: {rise:+.2f}"
        )
    return ". ".join(words) + "."


def jumps(found: Found) -> str:
    """As `followed`, and in how many scenes most of the rise came between two checkpoints."""
    words = []
    for label, marks in found.items():
        scenes = [
            [point["each"][scene] for point in marks["points"]] for scene in range(len(marks["points"][0]["each"]))
        ]
        risen = [curve for curve in scenes if curve[-1] - curve[0] >= LEAST_RISE]
        sudden = sum(max(b - a for a, b in itertools.pairwise(each)) > HALF * (each[-1] - each[0]) for each in risen)
        words.append(
            f"Of {len(scenes)} scenes {len(risen)} rose by {LEAST_RISE} or more, and {sudden} of these by more than "
            f"half of it between two checkpoints (*{label}*)."
        )
    words.append(
        "The F1 of one scene goes up and down between checkpoints by chance, so such a jump alone is no sudden "
        "convergence."
    )
    return f"{followed(found)} {' '.join(words)}"
