"""Saving and converting transformers."""

from __future__ import annotations

from comfy_api.latest import io, ui

from .bridge.convert import save_model

CATEGORY = "PixArt-δ"


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
