"""The node of the live workflow: what is drawn in the browser, as a picture."""

from __future__ import annotations

from comfy_api.latest import io

from .bridge.drawing import read_drawing
from .inputs import CONTROL_CATEGORY


class PixArtDeltaLiveCanvas(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PixArtDeltaLiveCanvas",
            display_name="PixArt-δ Live Canvas",
            category=CONTROL_CATEGORY,
            description="Draw with the mouse or a pen, and the picture follows: after each stroke the workflow runs "
            "again. The drawing travels in the prompt itself, so that nothing is uploaded or left on disk.",
            search_aliases=["painter", "sketch", "draw", "scribble", "real time", "live", "realtime", "canvas"],
            inputs=[
                # The browser puts a canvas in its place (web/live/canvas.mjs); for other clients it is a plain text.
                io.String.Input(
                    "drawing",
                    default="",
                    socketless=True,
                    tooltip="What is drawn, as a PNG in a data: address. Empty: a blank sheet.",
                    extra_dict={"widgetType": "PIXART_DELTA_DRAWING"},
                ),
                io.Int.Input(
                    "size",
                    default=256,
                    min=64,
                    max=2048,
                    step=64,
                    tooltip="Width and height in px that the drawing is given out at: the size of the picture, or "
                    "twice as much for finer edges.",
                ),
                io.Boolean.Input(
                    "live",
                    default=True,
                    tooltip="Run the previews behind this canvas whenever a stroke, or an input of theirs, has "
                    "changed. What a newer stroke has overtaken is not drawn. Off: only with Run.",
                ),
            ],
            outputs=[io.Image.Output(tooltip="Dark lines on white, for PixArt-δ HED Preprocessor.")],
        )

    @classmethod
    def execute(cls, drawing: str, size: int, live: bool) -> io.NodeOutput:
        return io.NodeOutput(read_drawing(drawing, size))
