"""Nodes that write checkpoints: a transformer in another layout, the authors' joint file split and merged."""

from __future__ import annotations

from comfy_api.latest import io, ui

from .bridge import files
from .bridge.save import merge_files, save_model, split_file

CATEGORY = "PixArt-δ"
CONTROL_CATEGORY = f"{CATEGORY}/control"
SAVED_DTYPES = ["as stored", "float16", "bfloat16", "float32"]


class PixArtDeltaSaveCheckpoint(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PixArtDeltaSaveCheckpoint",
            display_name="PixArt-δ Save Checkpoint",
            category=CATEGORY,
            description="Saves a transformer, with its LoRAs merged, as safetensors in the layout you choose: converts "
            "between the authors', ComfyUI's and diffusers' files.",
            inputs=[
                io.Model.Input(
                    "model", tooltip="A MODEL from PixArt-δ Model Loader; LoRAs on it are merged into the file."
                ),
                io.String.Input(
                    "filename_prefix",
                    default="diffusion_models/pixart",
                    tooltip=("Place and start of the name below ComfyUI's output folder; a number follows."),
                ),
                io.Combo.Input(
                    "layout",
                    options=["authors", "diffusers"],
                    tooltip=(
                        "authors: one .safetensors file that this loader and ComfyUI's Load Diffusion Model read. "
                        "diffusers: a transformer folder (config.json and weights) for PixArtTransformer2DModel."
                    ),
                ),
                io.Combo.Input(
                    "dtype",
                    options=["float16", "bfloat16", "float32"],
                    tooltip="Number format of the file: float16 and bfloat16 take half the space of float32.",
                ),
            ],
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model, filename_prefix: str, layout: str, dtype: str) -> io.NodeOutput:
        path = save_model(model, filename_prefix, layout, dtype)
        return io.NodeOutput(ui=ui.PreviewText(f"saved {path}"))


class PixArtDeltaSplitControlNet(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PixArtDeltaSplitControlNet",
            display_name="PixArt-δ Split ControlNet",
            category=CONTROL_CATEGORY,
            description="Writes the base model and the ControlNet of the authors' joint file as two safetensors files, "
            "so that one ControlNet serves several models and nothing is stored twice.",
            inputs=[
                io.Combo.Input(
                    "control_net_name",
                    options=files.names("controlnet"),
                    tooltip=(
                        "The joint file, such as the authors' PixArt-XL-2-1024-ControlNet.pth, in models/controlnet."
                    ),
                ),
                io.String.Input(
                    "filename_prefix",
                    default="controlnet/pixart",
                    tooltip=(
                        "Place and start of the names below ComfyUI's output folder; a number, and base or "
                        "controlnet, follow."
                    ),
                ),
                io.Combo.Input(
                    "dtype",
                    options=SAVED_DTYPES,
                    tooltip=("Number format of the files: float16 and bfloat16 take half the space of float32."),
                ),
            ],
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, control_net_name: str, **_others) -> str:
        return files.stamp("controlnet", control_net_name)

    @classmethod
    def execute(cls, control_net_name: str, filename_prefix: str, dtype: str) -> io.NodeOutput:
        paths = split_file(files.locate("controlnet", control_net_name), filename_prefix, dtype)
        return io.NodeOutput(ui=ui.PreviewText("saved " + " and ".join(paths)))


class PixArtDeltaMergeControlNet(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PixArtDeltaMergeControlNet",
            display_name="PixArt-δ Merge ControlNet",
            category=CONTROL_CATEGORY,
            description="Writes a base model and a ControlNet as one file in the authors' layout.",
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=files.names("model"),
                    tooltip="The base model, in any layout that PixArt-δ Model Loader reads.",
                ),
                io.Combo.Input(
                    "control_net_name",
                    options=files.names("controlnet"),
                    tooltip="The ControlNet, in any layout that PixArt-δ ControlNet Loader reads.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="controlnet/pixart",
                    tooltip=("Place and start of the name below ComfyUI's output folder; a number and joint follow."),
                ),
                io.Combo.Input(
                    "dtype",
                    options=SAVED_DTYPES,
                    tooltip=("Number format of the file: float16 and bfloat16 take half the space of float32."),
                ),
            ],
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, model_name: str, control_net_name: str, **_others) -> str:
        return files.stamp("model", model_name) + files.stamp("controlnet", control_net_name)

    @classmethod
    def execute(cls, model_name: str, control_net_name: str, filename_prefix: str, dtype: str) -> io.NodeOutput:
        path = merge_files(
            files.locate("model", model_name), files.locate("controlnet", control_net_name), filename_prefix, dtype
        )
        return io.NodeOutput(ui=ui.PreviewText(f"saved {path}"))
