"""Training nodes: the dataset, the trainings, their progress and what they made.

Each training is a background job: its node queues it and returns at once, and the panel in the sidebar follows it. Its
settings are the trainer's own (training/config.py): type, default, limits and description come from there.
"""

from __future__ import annotations

import time
from typing import Any, ClassVar, get_type_hints

from comfy_api.latest import io

from ..training.config import COMMANDS, WITHOUT_WEIGHTS
from ..training.recipes import AUTO, RECIPES
from .background import queue as jobs
from .background.dataset import first_folder, hints_of_images, prepare_dataset
from .background.result import NEWEST, chosen, find_job, load_result, read_loss, result_stamp, results
from .background.start import start_training
from .bridge import files
from .bridge.hint_kind import kind_of_image
from .bridge.pictures import latest_samples, loss_plot, thumbnails
from .bridge.ui import about_job
from .inputs import TRAINING_CATEGORY, always, dtype_input, file_input, lora_strength_input, more_settings_input

NONE = "none"
RUN = ["train", "estimate only"]
ADVANCED = ("accumulation", "precision", "optimizer", "gradient_checkpointing", "checkpoint_every")
# Not the seed: the editor would change a widget of that name after every run, and each run would be a new training.
_SHOWN = 16
"""Pictures of a dataset that its node shows."""


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
                *(setting_input(cls.COMMAND, name) for name in ("steps", "batch_size", "learning_rate", *cls.OWN)),
                io.Combo.Input(
                    "samples_with",
                    options=[*files.names("pipeline"), NONE],
                    tooltip="Text encoder and autoencoder that draw the samples: a pipeline folder in "
                    "models/pixart_delta, or the bundled one. none: no samples.",
                ),
                setting_input(cls.COMMAND, "sample_every"),
                io.Combo.Input(
                    "run",
                    options=RUN,
                    tooltip="train: queue the job. estimate only: check everything, take one real step unless a job "
                    "has the device, and show memory, time and disk; nothing is written.",
                ),
                *(setting_input(cls.COMMAND, name, advanced=True) for name in ADVANCED),
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
                setting_input(cls.COMMAND, "validation", optional=True),
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


def setting_input(command: str, name: str, advanced: bool = False, optional: bool = False) -> io.Input:
    """The input of a setting of the trainer."""
    kind = COMMANDS[command]
    setting = kind.__dataclass_fields__[name]
    limits, default = setting.metadata, setting.default
    about = {
        "tooltip": f"{limits['help'][0].upper()}{limits['help'][1:]}.",
        "advanced": advanced or None,
        "optional": optional,
    }
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


class PixArtDeltaDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PixArtDeltaDataset",
            display_name="PixArt-δ Training Dataset",
            category=TRAINING_CATEGORY,
            search_aliases=["train", "pictures", "captions", "prepare", "cache latents"],
            description="Checks a folder of pictures with captions, says what was found, and caches in the background "
            "what training reads: latents, text embeddings, hints.",
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=files.picture_folders(),
                    default=first_folder(),
                    tooltip="A folder in ComfyUI's input folder: pictures, and beside each a text file of the same "
                    "name with its caption (several lines are different wordings).",
                ),
                file_input(
                    "models",
                    "pipeline",
                    tooltip="Text encoder and autoencoder that the base model was trained with: a pipeline folder in "
                    "models/pixart_delta, or the bundled one.",
                ),
                io.String.Input("name", default="", tooltip="What the job is called in the panel."),
                io.Int.Input(
                    "resolution",
                    default=1024,
                    min=64,
                    max=4096,
                    step=8,
                    tooltip="Side in pixels of the square bucket: the size of the base model (128 for the bundled "
                    "one).",
                ),
                io.Boolean.Input(
                    "multi_aspect",
                    default=True,
                    tooltip="Sort pictures into buckets by their shape. Off: all are cropped to the square.",
                ),
                io.Combo.Input(
                    "hints",
                    options=[NONE, *files.names("hed"), *WITHOUT_WEIGHTS],
                    tooltip="For a ControlNet: what finds the hints in the pictures: a HED network, or a detector of "
                    "controlnet_aux. Others by name in more_settings. none: no hints, or those of hint_images.",
                ),
                io.String.Input(
                    "path",
                    default="",
                    advanced=True,
                    tooltip="Another folder or list (metadata.jsonl, metadata.csv) instead: relative to the input "
                    "folder, or in a place that who runs the server allows.",
                ),
                more_settings_input("more_settings", "prepare"),
                io.Image.Input(
                    "hint_images",
                    optional=True,
                    tooltip="Hints from any preprocessor node: a batch with one for each picture, in the order of "
                    "their names.",
                ),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.unique_id],
            outputs=[
                io.String.Output("dataset", display_name="dataset", tooltip="For the training nodes."),
                io.String.Output("report", display_name="report", tooltip="What was found among the pictures."),
                io.Image.Output("pictures", display_name="pictures", tooltip="Up to 16 of them, small."),
            ],
            is_output_node=True,
        )

    fingerprint_inputs = always

    @classmethod
    def execute(
        cls,
        folder: str,
        models: str,
        name: str,
        resolution: int,
        multi_aspect: bool,
        hints: str,
        path: str,
        more_settings: str,
        hint_images=None,
    ) -> io.NodeOutput:
        source = path or files.picture_folder(folder)
        values = {"input": source, "models": models, "resolution": resolution, "multi_aspect": multi_aspect}
        if hint_images is not None:
            kind, _ = kind_of_image(cls.hidden.prompt, cls.hidden.unique_id, "hint_images")
            values |= hints_of_images(source, hint_images, kind, more_settings)
        elif hints != NONE:
            values |= {"hints": hints} if hints in WITHOUT_WEIGHTS else {"hints": "hed", "hed": hints}
        made = prepare_dataset(name, values, more_settings, _SHOWN)
        found, _, job = made.report.rpartition("\n")
        about = about_job(f"{job}\n{found}", made.job)
        return io.NodeOutput(str(made.folder), made.report, thumbnails(made.pictures), ui=about)


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
                io.String.Input(
                    "job",
                    default="",
                    tooltip="Id of a job, from a training node or from the panel. Empty: the newest training.",
                ),
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
                io.String.Input(
                    "job",
                    default="",
                    tooltip="Id of a job, from a training node or from the panel. Empty: what `result` says.",
                ),
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
        return io.NodeOutput(*load_result(find_job(chosen(job, result), exported=True), dtype, strength))
