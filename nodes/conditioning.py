"""Prompt and size nodes."""

from __future__ import annotations

from comfy_api.latest import io

from ..pixart_core.resolution import bins as table_of
from ..pixart_core.resolution import nearest_bin, with_ratio
from .bridge.guider import empty_latent
from .bridge.prompt import encode_prompts
from .bridge.ui import say
from .inputs import CATEGORY, side_input

UNCONDITIONAL = ["negative prompt", "learned null caption"]
BY_SIDES = "of width and height"


class PixArtDeltaTextEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PixArtDeltaTextEncode",
            display_name="PixArt-δ Text Encode",
            category=CATEGORY,
            search_aliases=["prompt", "clip text encode", "t5 text encode", "caption", "negative"],
            description="Encodes a prompt as PixArt was trained to read it: lower case, at most 120 tokens, no "
            "weighting brackets, with the picture's size beside it.",
            inputs=[
                io.Clip.Input(
                    "clip", tooltip="A T5 from PixArt-δ Text Encoder Loader, or from CLIPLoader (type pixart)."
                ),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="What the picture shows. Everything after 120 tokens (about 90 words) is cut off.",
                ),
                io.String.Input(
                    "negative_prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    default="",
                    tooltip="What the picture should not show. Read by base models with cfg above 1; LCM models (cfg "
                    "1) ignore it.",
                ),
                side_input(
                    "width",
                    0,
                    tooltip="Width in pixels that the 1024 px models are told (micro-conditioning). 0: the latent's "
                    "own. Connect PixArt-δ Resolution here.",
                ),
                side_input(
                    "height", 0, tooltip="Height in pixels that the 1024 px models are told. 0: the latent's own."
                ),
                io.Combo.Input(
                    "unconditional",
                    options=UNCONDITIONAL,
                    tooltip="What a base model is steered away from: the negative prompt (empty is fine, as in "
                    "diffusers), or the null caption that the model learned (as the authors' code does; needs the "
                    "model input).",
                ),
                io.Boolean.Input(
                    "clean_caption",
                    default=False,
                    tooltip="Also remove web addresses, markup, hashtags and file names, as the authors do.",
                ),
                io.Model.Input(
                    "model", optional=True, tooltip='Only for "learned null caption": the MODEL that holds it.'
                ),
            ],
            outputs=[
                io.Conditioning.Output("positive", display_name="positive", tooltip="The prompt."),
                io.Conditioning.Output("negative", display_name="negative", tooltip="The unconditional side."),
            ],
        )

    @classmethod
    def execute(
        cls,
        clip,
        prompt: str,
        negative_prompt: str,
        width: int,
        height: int,
        unconditional: str,
        clean_caption: bool,
        model=None,
    ) -> io.NodeOutput:
        if unconditional == UNCONDITIONAL[1] and model is None:
            raise ValueError('"learned null caption" is stored in the transformer: connect the model input')
        null_from = model if unconditional == UNCONDITIONAL[1] else None
        return io.NodeOutput(*encode_prompts(clip, prompt, negative_prompt, width, height, clean_caption, null_from))


class PixArtDeltaResolution(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PixArtDeltaResolution",
            display_name="PixArt-δ Resolution",
            category=CATEGORY,
            search_aliases=["size", "empty latent", "aspect ratio", "bins", "width", "height"],
            description="Turns a wished size into one of the sizes that the model was trained on (the authors' "
            "aspect-ratio bins) and makes the empty latent for it.",
            inputs=[
                side_input("width", 1024, tooltip="Wished width in pixels."),
                side_input("height", 1024, tooltip="Wished height in pixels."),
                io.Combo.Input(
                    "bins",
                    options=["1024", "512", "256", "off"],
                    tooltip="Table of trained sizes to choose from: the one of your model. off: exactly the wished "
                    "size, which must be multiples of 8 (for the bundled nano models, or to try other sizes).",
                ),
                io.Int.Input("batch_size", default=1, min=1, max=4096, tooltip="Pictures made at once."),
                io.Combo.Input(
                    "ratio",
                    options=[BY_SIDES, *(f"{ratio:.2f}" for ratio in table_of(1024, training=True))],
                    default=BY_SIDES,
                    optional=True,
                    advanced=True,
                    tooltip="Width / height instead of the two sides: 2.00 is twice as wide as high. With bins off the "
                    "area of the two sides is kept.",
                ),
            ],
            outputs=[
                io.Latent.Output("latent", display_name="latent", tooltip="Empty latent of the chosen size."),
                io.Int.Output("width", display_name="width", tooltip="Chosen width in pixels."),
                io.Int.Output("height", display_name="height", tooltip="Chosen height in pixels."),
            ],
        )

    @classmethod
    def execute(cls, width: int, height: int, bins: str, batch_size: int, ratio: str = BY_SIDES) -> io.NodeOutput:
        if ratio != BY_SIDES:
            height, width = with_ratio(height, width, float(ratio))
        if bins != "off":
            height, width = nearest_bin(height, width, int(bins))
            say(f"{width} × {height}")
        return io.NodeOutput(empty_latent(width, height, batch_size), width, height)
