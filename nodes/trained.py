"""Nodes around a training: the dataset before it, its progress, and what it made."""

from __future__ import annotations

import time

from comfy_api.latest import io

from . import files
from .bridge import jobs
from .bridge.dataset import prepare_dataset
from .bridge.pictures import latest_samples, loss_plot, thumbnails
from .bridge.result import load_result, result_stamp
from .bridge.training import find_job, read_loss
from .bridge.ui import about_job

CATEGORY = "PixArt-δ/training"
DTYPES = ["default", "bfloat16", "float16", "float32"]
NO_HINTS = "none"
_SHOWN = 16
_JOB = "Id of a job, from a training node or from the panel. Empty: the newest training."


class PixArtDeltaDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PixArtDeltaDataset",
            display_name="PixArt-δ Training Dataset",
            category=CATEGORY,
            description="Checks a folder of pictures with captions, says what was found, and caches in the background "
            "what training reads: latents, text embeddings, hints.",
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=files.picture_folders(),
                    tooltip=(
                        "A folder in ComfyUI's input folder: pictures, and beside each a text file of the same name "
                        "with its caption (several lines are different wordings)."
                    ),
                ),
                io.Combo.Input(
                    "models",
                    options=files.names("pipeline"),
                    tooltip=(
                        "Text encoder and autoencoder that the base model was trained with: a pipeline folder in "
                        "models/pixart_delta, or the bundled one."
                    ),
                ),
                io.String.Input("name", default="", tooltip="What the job is called in the panel."),
                io.Int.Input(
                    "resolution",
                    default=1024,
                    min=64,
                    max=4096,
                    step=8,
                    tooltip=(
                        "Side in pixels of the square bucket: the size of the base model (128 for the bundled one)."
                    ),
                ),
                io.Boolean.Input(
                    "multi_aspect",
                    default=True,
                    tooltip=("Sort pictures into buckets by their shape. Off: all are cropped to the square."),
                ),
                io.Combo.Input(
                    "hints",
                    options=[NO_HINTS, *files.names("hed")],
                    tooltip=(
                        "For a ControlNet: the edge detector whose edges are the hints. none: the dataset has no hints."
                    ),
                ),
                io.String.Input(
                    "path",
                    default="",
                    advanced=True,
                    tooltip=(
                        "Another folder or list (metadata.jsonl, metadata.csv) instead: relative to the input folder, "
                        "or in a place that who runs the server allows."
                    ),
                ),
                io.String.Input(
                    "more_settings",
                    default="",
                    multiline=True,
                    advanced=True,
                    tooltip=(
                        "Any further setting, one key=value a line; `python training/train.py prepare --help` lists "
                        "them."
                    ),
                ),
            ],
            outputs=[
                io.String.Output("dataset", display_name="dataset", tooltip="For the training nodes."),
                io.String.Output("report", display_name="report", tooltip="What was found among the pictures."),
                io.Image.Output("pictures", display_name="pictures", tooltip="Up to 16 of them, small."),
            ],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **_inputs) -> float:
        return time.time()  # asked again each time: the job may have been deleted, or have ended

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
    ) -> io.NodeOutput:
        source = path or files.picture_folder(folder)
        values = {"input": source, "models": models, "resolution": resolution, "multi_aspect": multi_aspect}
        if hints != NO_HINTS:
            values |= {"hints": "hed", "hed": hints}
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
            category=CATEGORY,
            description="How far a training is: its loss as a picture, its latest samples, and the numbers as text. "
            "The panel in the sidebar shows the same, live.",
            inputs=[io.String.Input("job", default="", tooltip=_JOB)],
            outputs=[
                io.Image.Output("loss", display_name="loss", tooltip="The loss over the steps."),
                io.Image.Output("samples", display_name="samples", tooltip="The latest grid; grey when there is none."),
                io.String.Output("text", display_name="text", tooltip="State, step, loss, speed, time left."),
            ],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **_inputs) -> float:
        return time.time()

    @classmethod
    def execute(cls, job: str) -> io.NodeOutput:
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
            category=CATEGORY,
            description="Loads what a training saved last: a model, a LoRA on its base model, or a ControlNet beside "
            "its base model.",
            inputs=[
                io.String.Input(
                    "job",
                    default="",
                    tooltip=(
                        "Id of a job, from a training node or from the panel. Empty: the newest one with a result."
                    ),
                ),
                io.Combo.Input(
                    "dtype",
                    options=DTYPES,
                    tooltip=(
                        "Number format of the weights. default: what ComfyUI picks for your device, and bfloat16 on a "
                        "CPU that is fast in it."
                    ),
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip="Of a LoRA: 1 is as trained. Other results ignore it.",
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
    def fingerprint_inputs(cls, job: str | None = None, **_others) -> str | float:
        # A linked id is not known here: ask each time.
        return time.time() if job is None else result_stamp(job)

    @classmethod
    def execute(cls, job: str, dtype: str, strength: float) -> io.NodeOutput:
        return io.NodeOutput(*load_result(find_job(job, exported=True), dtype, strength))
