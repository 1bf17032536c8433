"""ControlNet and HED nodes."""

from __future__ import annotations

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from .bridge import files
from .bridge.control_net import RESIZE_MODES, apply_control, hint_of, load_base, load_control
from .bridge.hed import round_trip, soft_edges
from .bridge.hint_kind import warn_of_another
from .bridge.pictures import read_picture
from .inputs import CONTROL_CATEGORY, dtype_input, file_input, fingerprint, share_input, side_input


class PixArtDeltaControlNetLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PixArtDeltaControlNetLoader",
            display_name="PixArt-δ ControlNet Loader",
            category=CONTROL_CATEGORY,
            search_aliases=["load controlnet", "control", "hed", "edges"],
            description="Loads a ControlNet-Transformer for PixArt: the authors' file, which also holds its base model "
            "(both come out), or a ControlNet alone, in the authors' or diffusers' layout.",
            inputs=[
                file_input(
                    "control_net_name",
                    "controlnet",
                    tooltip="A file in models/controlnet, such as the authors' PixArt-XL-2-1024-ControlNet.pth, or a "
                    "controlnet folder in models/controlnet or models/pixart_delta.",
                ),
                dtype_input("dtype"),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="Only for Apply nodes and stackers that have no vae input: reads the hint where they give "
                    "none.",
                ),
            ],
            outputs=[
                io.ControlNet.Output(tooltip="For PixArt-δ Apply ControlNet, or the stock Apply ControlNet."),
                io.Model.Output(
                    tooltip="The base model in the same file. With a file that holds a ControlNet alone, nodes "
                    "connected here stop and say so."
                ),
            ],
        )

    fingerprint_inputs = fingerprint(control_net_name="controlnet")

    @classmethod
    def execute(cls, control_net_name: str, dtype: str, vae=None) -> io.NodeOutput:
        path = files.locate("controlnet", control_net_name)
        return io.NodeOutput(load_control(path, dtype, vae), load_base(path, dtype))


class PixArtDeltaApplyControlNet(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PixArtDeltaApplyControlNet",
            display_name="PixArt-δ Apply ControlNet",
            category=CONTROL_CATEGORY,
            search_aliases=["controlnet", "control", "edges", "hint", "strength"],
            description="Makes a picture follow a hint, such as the edges of another. Works with base models and with "
            "LCM in 4 steps; several can follow one another.",
            inputs=[
                io.Conditioning.Input("positive", tooltip="The encoded prompt."),
                io.Conditioning.Input("negative", tooltip="The unconditional side; read with cfg above 1 only."),
                io.ControlNet.Input("control_net", tooltip="A CONTROL_NET from PixArt-δ ControlNet Loader."),
                io.Image.Input(
                    "image",
                    tooltip="The hint, of the kind that the ControlNet was trained on: for the released one the edges, "
                    "white on black, of PixArt-δ HED Preprocessor. One for the whole batch, or one a picture, of "
                    "its size.",
                ),
                io.Vae.Input("vae", tooltip="The VAE that decodes your pictures: PixArt reads the hint through it."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    tooltip="1 is as trained, 0 is off, about 0.5 leaves the prompt more freedom.",
                ),
                share_input("start_percent", 0.0, tooltip="Where in the sampling control begins: 0 is the first step."),
                share_input(
                    "end_percent",
                    1.0,
                    tooltip="Where it ends: 1 is after the last step. Steps after it are as fast as without control.",
                ),
                io.Combo.Input(
                    "resize",
                    options=list(RESIZE_MODES),
                    tooltip="What happens to a hint of another size than the picture. crop: cover it and cut the "
                    "overhang, as in training; stretch: distort; pad: fit inside, black around.",
                ),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.unique_id],
            outputs=[
                io.Conditioning.Output("positive_out", display_name="positive", tooltip="With the control."),
                io.Conditioning.Output("negative_out", display_name="negative", tooltip="With the control."),
            ],
        )

    @classmethod
    def execute(
        cls,
        positive,
        negative,
        control_net,
        image,
        vae,
        strength: float,
        start_percent: float,
        end_percent: float,
        resize: str,
    ) -> io.NodeOutput:
        warn_of_another(hint_of(control_net), cls.hidden.prompt, cls.hidden.unique_id)
        return io.NodeOutput(
            *apply_control(positive, negative, control_net, image, vae, strength, start_percent, end_percent, resize)
        )


class PixArtDeltaHEDPreprocessor(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PixArtDeltaHEDPreprocessor",
            display_name="PixArt-δ HED Preprocessor",
            category=CONTROL_CATEGORY,
            search_aliases=["edges", "soft edge", "softedge", "canny", "lineart", "scribble", "outline"],
            description="Soft edges exactly as PixArt's ControlNet was trained on: full resolution, nothing rounded. "
            "Other HED nodes return 8 bits at 512 px, which is not what the model knows.",
            inputs=[
                io.Image.Input("image", tooltip="The picture whose edges the new one follows, at its size."),
                file_input(
                    "hed_name",
                    "hed",
                    tooltip="ControlNetHED.pth (lllyasviel/Annotators on Hugging Face) in models/pixart_delta, or the "
                    "small network that comes with the bundled models.",
                ),
                io.Boolean.Input(
                    "safe",
                    default=False,
                    tooltip="Round the edges to three levels, as other HED nodes do by default. PixArt was trained "
                    "without.",
                ),
                io.Boolean.Input(
                    "scribble", default=False, tooltip="Thin the edges to drawn lines. PixArt was trained without."
                ),
                side_input(
                    "resolution",
                    0,
                    step=64,
                    tooltip="Shorter side in pixels to look for edges at. 0, as in training: the picture's own.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=["float32", "bfloat16", "float16"],
                    tooltip="float32 as in training; bfloat16 is faster and differs by about a hundredth.",
                ),
                io.Vae.Input("vae", optional=True, tooltip="Only for the second output."),
            ],
            outputs=[
                io.Image.Output("edges", display_name="edges", tooltip="The edge map, white on black."),
                io.Image.Output(
                    "as_seen",
                    display_name="as the model sees it",
                    tooltip="The edge map after the autoencoder, whose latent is what the ControlNet reads. Needs the "
                    "vae input.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, hed_name: str) -> bool | str:
        """In the place of "not in list": what to download, and where it goes."""
        try:
            return bool(files.locate("hed", hed_name))
        except FileNotFoundError as error:
            return str(error)

    fingerprint_inputs = fingerprint(hed_name="hed")

    @classmethod
    def execute(
        cls, image, hed_name: str, safe: bool, scribble: bool, resolution: int, dtype: str, vae=None
    ) -> io.NodeOutput:
        path, stamp = files.locate("hed", hed_name), files.stamp("hed", hed_name)
        edges = soft_edges(path, stamp, image, safe, scribble, resolution, dtype)
        needs_vae = ExecutionBlocker('PixArt-δ HED Preprocessor: "as the model sees it" needs its vae input')
        return io.NodeOutput(edges, needs_vae if vae is None else round_trip(vae, edges))


class PixArtDeltaExamplePicture(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PixArtDeltaExamplePicture",
            display_name="PixArt-δ Example Picture",
            category=CONTROL_CATEGORY,
            search_aliases=["load image", "sample image", "demo"],
            description="A small picture that comes with the extension, so that the control workflows run as they are. "
            "Put Load Image in its place for your own.",
            inputs=[
                io.Combo.Input(
                    "picture",
                    options=files.example_pictures(),
                    tooltip="Drawn landscapes of the kind that the bundled models know.",
                ),
            ],
            outputs=[io.Image.Output(tooltip="The picture, for PixArt-δ HED Preprocessor.")],
        )

    @classmethod
    def execute(cls, picture: str) -> io.NodeOutput:
        return io.NodeOutput(read_picture(files.example_picture(picture)))
