"""Training nodes: each queues a background job and returns at once; the panel in the sidebar follows it.

Their settings are the trainer's own (training/config.py): type, default, limits and description come from there.
"""

from __future__ import annotations

import time
from typing import Any, ClassVar, get_type_hints

from comfy_api.latest import io

from ..training.config import COMMANDS
from . import files
from .bridge.training import start_training
from .bridge.ui import about_job

CATEGORY = "PixArt-δ/training"
NONE = "none"
RUN = ["train", "estimate only"]
ADVANCED = ("accumulation", "precision", "optimizer", "gradient_checkpointing", "checkpoint_every")
# Not the seed: the editor would change a widget of that name after every run, and each run would be a new training.


class TrainingNode(io.ComfyNode):
    """What the four training nodes share."""

    COMMAND: ClassVar[str]
    TITLE: ClassVar[str]
    ABOUT: ClassVar[str]
    OWN: ClassVar[tuple[str, ...]]
    """Settings that this training has besides the common ones."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=cls.__name__,
            display_name=cls.TITLE,
            category=CATEGORY,
            description=cls.ABOUT,
            inputs=[
                io.Combo.Input(
                    "base",
                    options=files.names("model"),
                    tooltip=("The model to start from: a base model, not a distilled one."),
                ),
                io.String.Input(
                    "dataset",
                    default="",
                    tooltip=("Prepared features: from PixArt-δ Training Dataset, or a folder of `train.py prepare`."),
                ),
                io.String.Input(
                    "name",
                    default="",
                    tooltip=(
                        "What the job is called in the panel. Run again with the same name and settings, and nothing "
                        "is started anew."
                    ),
                ),
                *(setting_input(cls.COMMAND, name) for name in ("steps", "batch_size", "learning_rate", *cls.OWN)),
                io.Combo.Input(
                    "samples_with",
                    options=[*files.names("pipeline"), NONE],
                    tooltip=(
                        "Text encoder and autoencoder that draw the samples: a pipeline folder in "
                        "models/pixart_delta, or the bundled one. none: no samples."
                    ),
                ),
                setting_input(cls.COMMAND, "sample_every"),
                io.Combo.Input(
                    "run",
                    options=RUN,
                    tooltip=(
                        "train: queue the job. estimate only: check everything, take one real step unless a job has "
                        "the device, and show memory, time and disk; nothing is written."
                    ),
                ),
                *(setting_input(cls.COMMAND, name, advanced=True) for name in ADVANCED),
                io.Boolean.Input(
                    "free_memory",
                    default=False,
                    advanced=True,
                    tooltip=("Unload ComfyUI's own models first, so that the training has the memory."),
                ),
                io.String.Input(
                    "more_settings",
                    default="",
                    multiline=True,
                    advanced=True,
                    tooltip=(
                        "Any further setting of the trainer, one key=value a line; `python training/train.py "
                        f"{cls.COMMAND} --help` lists them."
                    ),
                ),
            ],
            outputs=[
                io.String.Output(
                    "job",
                    display_name="job",
                    tooltip=("Id of the job: for PixArt-δ Training Status and PixArt-δ Use Trained Result."),
                )
            ],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **_inputs) -> float:
        return time.time()  # asked again each time: the job may have been deleted

    @classmethod
    def execute(
        cls,
        base: str,
        dataset: str,
        name: str,
        samples_with: str,
        sample_every: int,
        run: str,
        free_memory: bool,
        more_settings: str,
        **settings: Any,
    ) -> io.NodeOutput:
        values = {"base": base, "data": dataset, **settings}
        if samples_with != NONE:
            values |= {"models": samples_with, "sample_every": sample_every}
        job, text = start_training(cls.COMMAND, name, values, more_settings, run == RUN[1], free_memory)
        return io.NodeOutput(job, ui=about_job(text, job))


class PixArtDeltaTrainLCD(TrainingNode):
    COMMAND, TITLE, OWN = "lcd", "PixArt-δ Train LCD", ("guidance",)
    ABOUT = (
        "Latent Consistency Distillation, as in the paper: makes a model that draws in 2 to 4 steps from a base "
        "model. Runs in the background."
    )


class PixArtDeltaTrainLCMLora(TrainingNode):
    COMMAND, TITLE, OWN = "lcm-lora", "PixArt-δ Train LCM-LoRA", ("guidance", "lora_rank")
    ABOUT = (
        "The same distillation into a LoRA: a small file that makes its base model draw in 4 steps, for less "
        "memory. Runs in the background."
    )


class PixArtDeltaTrainControlNet(TrainingNode):
    COMMAND, TITLE, OWN = "controlnet", "PixArt-δ Train ControlNet", ("copy_blocks",)
    ABOUT = "Trains a ControlNet-Transformer on a dataset with hints, such as edges. Runs in the background."


class PixArtDeltaFineTune(TrainingNode):
    COMMAND, TITLE, OWN = "finetune", "PixArt-δ Fine-Tune", ("lora_rank",)
    ABOUT = "Goes on training a base model, or a LoRA on it, on your own pictures. Runs in the background."


def setting_input(command: str, name: str, advanced: bool = False) -> io.Input:
    """The input of a setting of the trainer."""
    kind = COMMANDS[command]
    setting = kind.__dataclass_fields__[name]
    limits, default = setting.metadata, setting.default
    about = {"tooltip": f"{limits['help'][0].upper()}{limits['help'][1:]}.", "advanced": advanced or None}
    if "choices" in limits:
        return io.Combo.Input(name, options=list(limits["choices"]), default=default, **about)
    wanted = get_type_hints(kind)[name]
    if wanted is bool:
        return io.Boolean.Input(name, default=default, **about)
    low, high = limits["low"], limits["high"]
    if wanted is int:
        return io.Int.Input(name, default=default, min=low, max=high, **about)
    step = 1e-7 if name == "learning_rate" else 0.1
    return io.Float.Input(name, default=default, min=low, max=high, step=step, round=False, **about)
