"""Which figures there are: what the paper says, which trainings stand side by side, and what is read off them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Marks = Mapping[str, Any]
"""Of one training: what `work.measure` found, oldest checkpoint first."""


@dataclass(frozen=True)
class Figure:
    """Trainings of the nano base that differ in one thing.

    Attributes:
        command: of train.py; all trainings of a figure have the same.
        paper: what the paper says.
        variants: label -> the settings that differ from `COMMON[command]`.
        sentence: puts into words what `variants` came to.
        strip: also show pictures of the same prompts and noise after every checkpoint.
    """

    command: str
    paper: str
    variants: Mapping[str, Mapping[str, Any]]
    sentence: Callable[[Mapping[str, Marks]], str]
    strip: bool = False
    common: Mapping[str, Any] = field(default_factory=dict)


COMMON: dict[str, dict[str, Any]] = {
    "lcd": {
        "steps": 200,
        "batch_size": 16,
        "learning_rate": 3e-4,
        "schedule": "cosine",
        "final_learning_rate": 0.02,
        "warmup_steps": 20,
        "adam_beta2": 0.99,
        "adam_epsilon": 1e-8,
        "clip_norm": 1.0,
        "guidance": 3.0,
        "ema_decay": 0.95,
        "precision": "fp32",
        "seed": 0,
        "checkpoint_every": 50,
    },
    "controlnet": {
        "steps": 600,
        "batch_size": 8,
        "accumulation": 1,
        "learning_rate": 1.2e-3,
        "schedule": "cosine",
        "final_learning_rate": 0.05,
        "warmup_steps": 50,
        "adam_epsilon": 1e-8,
        "clip_norm": 1.0,
        "copy_blocks": 1,
        "caption_drop": 0.1,
        "precision": "fp32",
        "seed": 0,
        "checkpoint_every": 100,
    },
}
"""As the recipes of the bundled family, and shorter: on nano a distillation has converged after 200 steps."""


def last(marks: Marks, steps: int, measure: str = "attributes") -> tuple[float, float]:
    """A mark after the last training step, in so many sampling steps: mean, half of its 95 % interval."""
    mean, half = marks["points"][-1]["marks"][str(steps)][measure]
    return mean, half


def apart(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether two intervals do not touch."""
    return abs(one[0] - other[0]) > one[1] + other[1]


def beside(found: Mapping[str, Marks], steps: int = 1, measure: str = "attributes", unit: str = " %") -> str:
    """Every variant's last mark, and whether the best stands apart from the next."""
    marks = {label: last(each, steps, measure) for label, each in found.items()}
    order = sorted(marks, key=lambda label: marks[label][0], reverse=measure != "distance")
    words = "; ".join(f"{label}: {marks[label][0]:.3g} ± {marks[label][1]:.2g}{unit}" for label in order)
    if len(order) == 1:
        return words
    clear = apart(marks[order[0]], marks[order[1]])
    return f"{words}. " + (f"{order[0]} is better." if clear else "The intervals overlap: nothing can be told apart.")


def both(found: Mapping[str, Marks]) -> str:
    """On hard captions: attributes and distance of one-step pictures, and everything right at once in more steps, where
    single attributes are all right."""
    return (
        f"Attributes right in one step: {beside(found)} Everything right at once in two steps: "
        f"{beside(found, 2, 'at once')} In four: {beside(found, 4, 'at once')} "
        f"Fréchet distance in one step: {beside(found, 1, 'distance', '')}"
    )


def follows(found: Mapping[str, Marks]) -> str:
    """How F1 rose in each training, and the largest rise between two checkpoints."""
    words = []
    for label, marks in found.items():
        curve = [(point["step"], point["f1"]) for point in marks["points"]]
        rises = [(b[1] - a[1], a[0], b[0]) for a, b in itertools.pairwise(curve)]
        rise, start, end = max(rises)
        words.append(
            f"{label}: F1 {marks['without']:.2f} without control, {curve[0][1]:.2f} at step {curve[0][0]}, "
            f"{curve[-1][1]:.2f} at step {curve[-1][0]}; steepest from step {start} to {end}: {rise:+.2f}"
        )
    return ". ".join(words) + "."


FIGURES = {
    "2": Figure(
        "lcd",
        "a constant ω does better than an embedded one, and a larger batch improves FID and CLIP score",
        {
            "ω 3.5, batch 24": {"guidance": 3.5},
            "ω 4.5, batch 24": {"guidance": 4.5},
            "ω 3 to 15 embedded, sampled at 3.5, batch 24": {"guidance": 3.5, "w_embedding": True},
            "ω 3.5, batch 48": {"guidance": 3.5, "accumulation": 2},
            "ω 3.5, batch 48, as many pictures": {"guidance": 3.5, "accumulation": 2, "steps": 100},
        },
        both,
        common={"batch_size": 24},
    ),
    "3": Figure(
        "lcd",
        "LCM's noise schedule is changed to PixArt-α's, which is said to have the higher logSNR",
        {"linear": {}, "scaled linear": {"beta_schedule": "scaled_linear"}},
        both,
    ),
    "5": Figure(
        "controlnet",
        "ControlNet-Transformer does much better than ControlNet-UNet, and the better the more blocks it copies",
        {
            "transformer, N = 1": {},
            "transformer, N = 3": {"copy_blocks": 3},
            "UNet, N = 3": {"wiring": "unet", "copy_blocks": 3},
        },
        follows,
    ),
    "6": Figure(
        "controlnet",
        "the control converges suddenly, before step 1000, and details follow",
        {"learning rate 1.2e-3": {}, "learning rate 1e-5, as the paper's": {"learning_rate": 1e-5}},
        follows,
        strip=True,
    ),
    "8": Figure(
        "lcd",
        "pictures in four steps converge fast, with a batch of 24",
        {"batch 24": {"batch_size": 24}},
        both,
        strip=True,
    ),
    "loss": Figure("lcd", "not in the paper: Huber's distance or L2", {"Huber": {}, "L2": {"loss": "l2"}}, both),
    "average": Figure(
        "lcd", "not in the paper: μ = 0.95 or no average", {"μ = 0.95": {}, "none": {"ema_decay": 0.0}}, both
    ),
}
