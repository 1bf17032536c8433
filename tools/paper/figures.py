"""Which figures there are: what the paper says, which trainings stand side by side, and what is read off them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .verdict import Found, compared, followed, jumps, pictures_alike, risen


@dataclass(frozen=True)
class Figure:
    """Trainings of the nano base that differ in one thing.

    Attributes:
        title: what stands above it.
        command: of train.py; all trainings of a figure have the same.
        paper: what the paper says.
        variants: label -> the settings that differ from `COMMON[command]`; the first is what the others are compared
            with. Each is trained with every one of `SEEDS`.
        sentence: puts into words what `variants` came to.
        note: what has to be known to read it.
        strip: also show pictures of the same prompts, or scenes, and noise after every checkpoint of the first.
    """

    title: str
    command: str
    paper: str
    variants: Mapping[str, Mapping[str, Any]]
    sentence: Callable[[Found], str]
    note: str = ""
    strip: bool = False
    common: Mapping[str, Any] = field(default_factory=dict)


SEEDS = (0, 1, 2)
"""Of the trainings of each kind: of a seed all see the same pictures in the same noise."""
COMMON: dict[str, dict[str, Any]] = {
    "lcd": {
        "steps": 100,
        "batch_size": 24,
        "learning_rate": 3e-4,
        "warmup_steps": 10,
        "adam_beta2": 0.99,
        "adam_epsilon": 1e-8,
        "clip_norm": 1.0,
        "guidance": 3.0,
        "ema_decay": 0.95,
        "precision": "fp32",
        "checkpoint_every": 25,
    },
    "controlnet": {
        "steps": 600,
        "batch_size": 8,
        "accumulation": 1,
        "learning_rate": 6e-4,
        "warmup_steps": 50,
        "adam_epsilon": 1e-8,
        "clip_norm": 1.0,
        "copy_blocks": 1,
        "caption_drop": 0.1,
        "precision": "fp32",
        "checkpoint_every": 75,
    },
}
"""As the recipes of the bundled family, and shorter; a control has half of its recipe's rate, at which some of several
blocks were thrown back. The learning rate is constant, as the paper's: with one that falls to the end, what stands
before the end would not be what a shorter training comes to."""
MEASURED_EVERY = 50
"""Steps of a distillation between two states that are measured; all checkpoints are shown."""

_SHORT = (
    "A hundred steps are the steep part of the curve and not its end: what is compared is how fast it is learned. The "
    "student in models/nano was trained for a thousand"
)


FIGURES = {
    "8": Figure(
        "Figure 8: pictures in four steps over the training",
        "lcd",
        "pictures in four steps converge fast, with a batch of 24",
        {"batch 24": {}},
        risen,
        note="The seven columns are the first square ones of the hard captions, with the same noise in every row. "
        + _SHORT,
        strip=True,
    ),
    "2": Figure(
        "Figure 2: guidance",
        "lcd",
        "a constant ω does better than an embedded one",
        {"ω 3.5": {}, "ω 4.5": {"guidance": 4.5}, "ω embedded, 3 to 15": {"w_embedding": True}},
        compared,
        common={"guidance": 3.5},
        note="The embedded one is sampled at ω 3.5. Teachers have the same guidance, which conventionally is called "
        f"1 + ω: 4.5 and 5.5. {_SHORT}",
    ),
    "batch": Figure(
        "Figure 2: batch size",
        "lcd",
        "a larger batch (384 instead of 24) improves FID and CLIP score",
        {
            "batch 24": {},
            "batch 48 (24 twice)": {"accumulation": 2},
            "batch 6": {"batch_size": 6, "steps": 200},
        },
        pictures_alike,
        note="48 by accumulation. " + _SHORT,
    ),
    "batch384": Figure(
        "Figure 2: the paper's larger batch",
        "lcd",
        "a larger batch (384 instead of 24) improves FID and CLIP score",
        {"batch 24": {}, "batch 384 (24 sixteen times)": {"accumulation": 16}},
        pictures_alike,
        note=_SHORT,
    ),
    "schedule": Figure(
        "Figure 3: a distillation on either noise schedule",
        "lcd",
        "the adjusted schedule further enhances pictures (other papers are cited for it)",
        {"linear": {}, "scaled linear": {"beta_schedule": "scaled_linear"}},
        compared,
        note="Each is sampled on the schedule that it was distilled on. The base was trained on the linear one, so "
        "that on the other its timesteps name another share of noise than it knows: that is measured here, too. "
        + _SHORT,
    ),
    "5": Figure(
        "Figure 5: ControlNet-UNet and ControlNet-Transformer",
        "controlnet",
        "ControlNet-Transformer does much better than ControlNet-UNet, and the better the more blocks it copies",
        {
            "transformer, N = 3": {"copy_blocks": 3},
            "UNet, N = 3": {"wiring": "unet", "copy_blocks": 3},
            **{f"transformer, N = {count}": {"copy_blocks": count} for count in (1, 2, 5)},
        },
        followed,
        note="Three of the nano model's six blocks are half of its depth, as 14 are of 28; 1, 2, 3 and 5 stand for the "
        "paper's 4, 7, 13 and 27. The paper asks for N on the outlines of faces and bodies; here edges of what stands "
        "on the ground are told from those of mountains, ground, sun and clouds: which of the hint's edges have one of "
        "the picture beside them. A base of 28 narrow blocks was not trained: it asks for a GPU",
    ),
    "6": Figure(
        "Figures 6 and 12: control over the steps of its training",
        "controlnet",
        "the control converges suddenly, before step 1000, and details follow",
        {"learning rate 6e-4": {}},
        jumps,
        note="From left to right: scene, its edges, and pictures in four steps after so many steps of training, "
        "always of the same noise and at strength 1. The scenes are the first four square ones of those that nothing "
        "was trained on. The bundled control was trained for 4000 steps, this one for 600",
        strip=True,
    ),
    "rate": Figure(
        "Figures 6 and 12: the paper's learning rate and accumulation",
        "controlnet",
        "learning rate 2e-5 as for the distillation, gradients of four batches added",
        {
            "6e-4": {},
            "2e-5, as the paper's": {"learning_rate": 2e-5},
            "6e-4, four batches added": {"accumulation": 4},
        },
        jumps,
    ),
    "average": Figure(
        "The average of the weights",
        "lcd",
        "targets come from an average of the student with μ = 0.95 (not compared with anything)",
        {"μ = 0.95": {}, "none": {"ema_decay": 0.0}},
        compared,
        note="Without an average targets come from the student itself, and the student itself is measured",
    ),
    "loss": Figure(
        "The distance in the loss",
        "lcd",
        "any distance d (not compared; the authors' code has Huber's)",
        {"Huber": {}, "L2": {"loss": "l2"}},
        compared,
    ),
}
