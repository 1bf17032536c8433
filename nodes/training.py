"""Training nodes: the trainings, their progress and what they made; `datasets` has what they train on.

Each training is a background job: its node queues it and returns at once, and the panel in the sidebar follows it. Its
settings are the trainer's own (training/config.py): type, default, limits and description come from there.
"""

from __future__ import annotations

import time
from typing import Any, ClassVar

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..training.recipes import AUTO, RECIPES
from .background import queue as jobs
from .background.result import NEWEST, awaited, chosen, find_job, load_result, read_loss, result_stamp, results
from .background.start import start_training
from .bridge import files
from .bridge.pictures import latest_samples, loss_plot
from .bridge.ui import about_job
from .inputs import (
    NONE,
    TRAINING_CATEGORY,
    always,
    dtype_input,
    file_input,
    job_input,
    lora_strength_input,
    more_settings_input,
    setting_input,
)

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
    ALIASES: ClassVar[list[str]]
    """Other words that the editor's search finds it by."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=cls.__name__,
            display_name=cls.TITLE,
            category=TRAINING_CATEGORY,
            search_aliases=cls.ALIASES,
            description=cls.ABOUT,
            inputs=[
                file_input(
                    "base",
                    "model",
                    tooltip="The model to start from: a base model, not a distilled one.",
                    use="training",
                ),
                io.String.Input(
                    "dataset",
                    default="",
                    tooltip="Prepared features: from PixArt-δ Training Dataset, or a folder of `train.py prepare`.",
                ),
                io.String.Input(
                    "name",
                    default="",
                    tooltip="What the job is called in the panel. Run again with the same name and settings, and "
                    "nothing is started anew.",
                ),
                *(setting_input(name, cls.COMMAND) for name in ("steps", "batch_size", "learning_rate", *cls.OWN)),
                io.Combo.Input(
                    "samples_with",
                    options=[*files.names("pipeline"), NONE],
                    tooltip="Text encoder and autoencoder that draw the samples: a pipeline folder in "
                    "models/pixart_delta, or the bundled one. none: no samples.",
                ),
                setting_input("sample_every", cls.COMMAND),
                io.Combo.Input(
                    "run",
                    options=RUN,
                    tooltip="train: queue the job. estimate only: check everything, take one real step unless a job "
                    "has the device, and show memory, time and disk; nothing is written.",
                ),
                *(setting_input(name, cls.COMMAND, advanced=True) for name in ADVANCED),
                io.Boolean.Input(
                    "free_memory",
                    default=False,
                    advanced=True,
                    tooltip="Unload ComfyUI's own models first, so that the training has the memory.",
                ),
                more_settings_input("more_settings", cls.COMMAND, " of the trainer"),
                io.Combo.Input(
                    "recipe",
                    options=[AUTO, *RECIPES, NONE],
                    default=AUTO,
                    optional=True,
                    tooltip="Settings for a device of this memory, in place of those at their defaults: what you "
                    "change wins. auto: by your device's memory and the base's size. none: all as shown.",
                ),
                io.String.Input(
                    "sample_prompts",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="Own prompts for the samples, one a line: each is a row of the grid, with the same noise "
                    "every time, first before the training begins. Empty: captions of the dataset.",
                ),
                setting_input("validation", cls.COMMAND, optional=True),
            ],
            outputs=[
                io.String.Output(
                    "job",
                    display_name="job",
                    tooltip="Id of the job: for PixArt-δ Training Status and PixArt-δ Use Trained Result.",
                )
            ],
            is_output_node=True,
        )

    fingerprint_inputs = always

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
        recipe: str = NONE,  # of a graph that was made before there were any
        sample_prompts: str = "",
        **settings: Any,
    ) -> io.NodeOutput:
        prompts = [line.strip() for line in sample_prompts.splitlines() if line.strip()]
        values = {"base": base, "data": dataset, "sample_prompts": prompts, **settings}
        if samples_with != NONE:
            values |= {"models": samples_with, "sample_every": sample_every}
        recipe = "" if recipe == NONE else recipe
        job, text = start_training(cls.COMMAND, name, values, more_settings, run == RUN[1], free_memory, recipe)
        return io.NodeOutput(job, ui=about_job(text, job))


class PixArtDeltaTrainLCD(TrainingNode):
    COMMAND, TITLE, OWN = "lcd", "PixArt-δ Train LCD", ("guidance",)
    ALIASES = ["train", "distil", "distill", "lcm", "few steps", "fast"]
    ABOUT = (
        "Latent Consistency Distillation, as in the paper: makes a model that draws in 2 to 4 steps from a base "
        "model. Runs in the background."
    )


class PixArtDeltaTrainLCMLora(TrainingNode):
    COMMAND, TITLE, OWN = "lcm-lora", "PixArt-δ Train LCM-LoRA", ("guidance", "lora_rank")
    ALIASES = ["train", "distil", "distill", "lora", "lcm", "fast"]
    ABOUT = (
        "The same distillation into a LoRA: a small file that makes its base model draw in 4 steps, for less "
        "memory. Runs in the background."
    )


class PixArtDeltaTrainControlNet(TrainingNode):
    COMMAND, TITLE, OWN = "controlnet", "PixArt-δ Train ControlNet", ("copy_blocks",)
    ALIASES = ["train", "controlnet", "edges", "hint"]
    ABOUT = "Trains a ControlNet-Transformer on a dataset with hints, such as edges. Runs in the background."


class PixArtDeltaFineTune(TrainingNode):
    COMMAND, TITLE, OWN = "finetune", "PixArt-δ Fine-Tune", ("lora_rank",)
    ALIASES = ["train", "finetune", "lora", "dreambooth", "style"]
    ABOUT = "Goes on training a base model, or a LoRA on it, on your own pictures. Runs in the background."


class PixArtDeltaTrainingStatus(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PixArtDeltaTrainingStatus",
            display_name="PixArt-δ Training Status",
            category=TRAINING_CATEGORY,
            search_aliases=["train", "loss", "progress", "samples", "monitor"],
            description="How far a training is: its loss as a picture, its latest samples, and the numbers as text. "
            "The panel in the sidebar shows the same, live.",
            inputs=[
                job_input("job", "the newest training"),
                io.Boolean.Input(
                    "follow",
                    default=True,
                    optional=True,
                    tooltip="While the job runs, draw the previews behind this node anew whenever it has new samples.",
                ),
            ],
            outputs=[
                io.Image.Output("loss", display_name="loss", tooltip="The loss over the steps."),
                io.Image.Output("samples", display_name="samples", tooltip="The latest grid; grey when there is none."),
                io.String.Output("text", display_name="text", tooltip="State, step, loss, speed, time left."),
            ],
            is_output_node=True,
        )

    fingerprint_inputs = always

    @classmethod
    def execute(cls, job: str, follow: bool = True) -> io.NodeOutput:
        found = find_job(job)
        text = jobs.describe(found)
        samples = latest_samples(jobs.queue().run_dir(found).samples())
        return io.NodeOutput(loss_plot(*read_loss(found)), samples, text, ui=about_job(text, found.id))


class PixArtDeltaTrainedResult(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PixArtDeltaTrainedResult",
            display_name="PixArt-δ Use Trained Result",
            category=TRAINING_CATEGORY,
            search_aliases=["train", "load trained", "checkpoint", "result", "use lora"],
            description="Loads what a training saved last: a model, a LoRA on its base model, or a ControlNet beside "
            "its base model.",
            inputs=[
                job_input("job", "what `result` says"),
                dtype_input("dtype"),
                lora_strength_input("strength", tooltip="Of a LoRA: 1 is as trained. Other results ignore it."),
                io.Combo.Input(
                    "result",
                    options=results(),
                    default=NEWEST,
                    optional=True,
                    tooltip="Which training; `job` goes before it. Press R when a training has made one since.",
                ),
                io.Boolean.Input(
                    "follow",
                    default=False,
                    optional=True,
                    tooltip="Watch it learn: while the job runs, it saves a result after each grid of samples, and the "
                    "previews behind this node draw your own prompt with it.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The trained model; for a LoRA, its base with it; for a ControlNet, its base."),
                io.ControlNet.Output(
                    tooltip="The trained ControlNet. Other trainings have none: nodes connected here stop and say so."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, result: str = NEWEST) -> bool:
        return True  # a training is found by its id, also when it has another name by now; `execute` says if it is gone

    @classmethod
    def fingerprint_inputs(cls, job: str | None = None, result: str = NEWEST, **_others) -> str | float:
        # A linked id is not known here: ask each time.
        return time.time() if job is None else result_stamp(chosen(job, result))

    @classmethod
    def execute(
        cls, job: str, dtype: str, strength: float, result: str = NEWEST, follow: bool = False
    ) -> io.NodeOutput:
        found = find_job(chosen(job, result), exported=True)
        if text := awaited(found):
            return io.NodeOutput(ExecutionBlocker(None), ExecutionBlocker(None), ui=about_job(text, found.id))
        text, *loaded = load_result(found, dtype, strength)
        return io.NodeOutput(*loaded, ui=about_job(text, found.id))
