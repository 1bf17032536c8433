"""Nodes of what trainings train on: a dataset of pictures, or of prompts alone."""

from __future__ import annotations

from comfy_api.latest import io

from ..training.config import WITHOUT_WEIGHTS
from .background.dataset import Dataset, first_folder, hints_of_images, prepare_dataset, prompts_file
from .bridge import files
from .bridge.hint_kind import kind_of_image
from .bridge.pictures import thumbnails
from .bridge.ui import about_job
from .inputs import (
    NONE,
    TRAINING_CATEGORY,
    always,
    file_input,
    lora_strength_input,
    more_settings_input,
    pipeline_input,
    resolution_input,
    setting_input,
)

_SHOWN = 16
"""Pictures of a dataset that its node shows."""


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
                pipeline_input("models", "Text encoder and autoencoder"),
                io.String.Input("name", default="", tooltip="What the job is called in the panel."),
                resolution_input("resolution", "bucket"),
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
        return io.NodeOutput(str(made.folder), made.report, thumbnails(made.pictures), ui=_about_dataset(made))


class PixArtDeltaPromptDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PixArtDeltaPromptDataset",
            display_name="PixArt-δ Dataset from Prompts",
            category=TRAINING_CATEGORY,
            search_aliases=["train", "distil", "fast", "without pictures", "data-free", "synthetic", "prepare"],
            description="A dataset to make a model fast with, without any pictures: the model draws for your prompts "
            "itself, and Train LCD or Train LCM-LoRA distil it from that. Runs in the background.",
            inputs=[
                file_input(
                    "base", "model", tooltip="The base model that draws, and that is made fast.", use="training"
                ),
                io.String.Input(
                    "prompts",
                    default="",
                    multiline=True,
                    tooltip="One a line: of the kind that you draw, some hundreds for a real model. Empty: those of "
                    "prompt_file.",
                ),
                pipeline_input("models", "Text encoder"),
                io.String.Input("name", default="", tooltip="What the job is called in the panel."),
                resolution_input("resolution", "pictures", 16, " Upright and wide ones have about the same area."),
                setting_input("draws", "prepare"),
                io.Combo.Input(
                    "lora",
                    options=[NONE, *files.names("lora")],
                    tooltip="A LoRA of the base that it draws with, such as a style: the distilled model has it, too.",
                ),
                lora_strength_input("lora_strength", tooltip="How much of the LoRA is added."),
                setting_input("guidance", "prepare", advanced=True),
                setting_input("draw_steps", "prepare", advanced=True),
                io.String.Input(
                    "prompt_file",
                    default="",
                    advanced=True,
                    tooltip="A text file of prompts instead, one a line: relative to the input folder, or in a place "
                    "that who runs the server allows.",
                ),
                more_settings_input("more_settings", "prepare"),
            ],
            outputs=[
                io.String.Output("dataset", display_name="dataset", tooltip="For the training nodes."),
                io.String.Output("report", display_name="report", tooltip="What will be drawn."),
            ],
            is_output_node=True,
        )

    fingerprint_inputs = always

    @classmethod
    def execute(
        cls,
        base: str,
        prompts: str,
        models: str,
        name: str,
        resolution: int,
        draws: int,
        lora: str,
        lora_strength: float,
        guidance: float,
        draw_steps: int,
        prompt_file: str,
        more_settings: str,
    ) -> io.NodeOutput:
        values = {"base": base, "prompts": prompt_file or prompts_file(prompts), "models": models, "draws": draws}
        values |= {"resolution": resolution, "guidance": guidance, "draw_steps": draw_steps}
        if lora != NONE:
            values |= {"lora": lora, "lora_strength": lora_strength}
        made = prepare_dataset(name, values, more_settings, _SHOWN)
        return io.NodeOutput(str(made.folder), made.report, ui=_about_dataset(made))


def _about_dataset(made: Dataset) -> dict:
    """What a dataset's node shows: its job first, then what was found."""
    found, _, job = made.report.rpartition("\n")
    return about_job(f"{job}\n{found}", made.job)
