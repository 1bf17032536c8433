"""Nodes that write checkpoints: a transformer in another layout, the authors' joint file split and merged."""

from __future__ import annotations

from comfy_api.latest import io, ui

from .bridge import files
from .bridge.save import merge_files, save_model, split_file
from .inputs import CATEGORY, CONTROL_CATEGORY, file_input, fingerprint, prefix_input, saved_dtype_input


class PixArtDeltaSaveCheckpoint(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PixArtDeltaSaveCheckpoint",
            display_name="PixArt-δ Save Checkpoint",
            category=CATEGORY,
            search_aliases=["save model", "convert", "export", "diffusers", "merge lora"],
            description="Saves a transformer, with its LoRAs merged, as safetensors in the layout you choose: converts "
            "between the authors', ComfyUI's and diffusers' files.",
            inputs=[
                io.Model.Input(
                    "model", tooltip="A MODEL from PixArt-δ Model Loader; LoRAs on it are merged into the file."
                ),
                prefix_input("filename_prefix", "diffusion_models/pixart", "a number follows"),
                io.Combo.Input(
                    "layout",
                    options=["authors", "diffusers"],
                    tooltip="authors: one .safetensors file that this loader and ComfyUI's Load Diffusion Model read. "
                    "diffusers: a transformer folder (config.json and weights) for PixArtTransformer2DModel.",
                ),
                saved_dtype_input("dtype", "file"),
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
            search_aliases=["split", "extract", "convert controlnet"],
            description="Writes the base model and the ControlNet of the authors' joint file as two safetensors files, "
            "so that one ControlNet serves several models and nothing is stored twice.",
            inputs=[
                file_input(
                    "control_net_name",
                    "controlnet",
                    tooltip="The joint file, such as the authors' PixArt-XL-2-1024-ControlNet.pth, in "
                    "models/controlnet.",
                ),
                prefix_input(
                    "filename_prefix", "controlnet/pixart", "a number, and base or controlnet, follow", "names"
                ),
                saved_dtype_input("dtype", "files", "as stored"),
            ],
            outputs=[],
            is_output_node=True,
        )

    fingerprint_inputs = fingerprint(control_net_name="controlnet")

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
            search_aliases=["merge", "join", "convert controlnet"],
            description="Writes a base model and a ControlNet as one file in the authors' layout.",
            inputs=[
                file_input(
                    "model_name", "model", tooltip="The base model, in any layout that PixArt-δ Model Loader reads."
                ),
                file_input(
                    "control_net_name",
                    "controlnet",
                    tooltip="The ControlNet, in any layout that PixArt-δ ControlNet Loader reads.",
                ),
                prefix_input("filename_prefix", "controlnet/pixart", "a number and joint follow"),
                saved_dtype_input("dtype", "file", "as stored"),
            ],
            outputs=[],
            is_output_node=True,
        )

    fingerprint_inputs = fingerprint(model_name="model", control_net_name="controlnet")

    @classmethod
    def execute(cls, model_name: str, control_net_name: str, filename_prefix: str, dtype: str) -> io.NodeOutput:
        path = merge_files(
            files.locate("model", model_name), files.locate("controlnet", control_net_name), filename_prefix, dtype
        )
        return io.NodeOutput(ui=ui.PreviewText(f"saved {path}"))
