"""ControlNet and HED nodes."""

from __future__ import annotations

from comfy_api.latest import io, ui
from comfy_execution.graph_utils import ExecutionBlocker

from . import files
from .bridge.control import RESIZE_MODES, apply_control, load_base, load_control, read_picture
from .bridge.convert import merge_files, split_file
from .bridge.hed import round_trip, soft_edges

CATEGORY = "PixArt-δ/control"
DTYPES = ["default", "bfloat16", "float16", "float32"]
SAVED_DTYPES = ["as stored", "float16", "bfloat16", "float32"]


class PixArtDeltaControlNetLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PixArtDeltaControlNetLoader",
            display_name="PixArt-δ ControlNet Loader",
            category=CATEGORY,
            description="Loads a ControlNet-Transformer for PixArt: the authors' file, which also holds its base model "
            "(both come out), or a ControlNet alone, in the authors' or diffusers' layout.",
            inputs=[
                io.Combo.Input(
                    "control_net_name",
                    options=files.names("controlnet"),
                    tooltip=(
                        "A file in models/controlnet, such as the authors' PixArt-XL-2-1024-ControlNet.pth, or a "
                        "controlnet folder in models/controlnet or models/pixart_delta."
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
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip=(
                        "Only for Apply nodes and stackers that have no vae input: reads the hint where they give none."
                    ),
                ),
            ],
            outputs=[
                io.ControlNet.Output(tooltip="For PixArt-δ Apply ControlNet, or the stock Apply ControlNet."),
                io.Model.Output(
                    tooltip="The base model in the same file. With a file that holds a ControlNet alone, "
                    "nodes connected here stop and say so."
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, control_net_name: str, **_others) -> str:
        return files.stamp("controlnet", control_net_name)

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
            category=CATEGORY,
            description="Makes a picture follow the edges of another. Works with base models and with LCM in 4 steps; "
            "several can follow one another.",
            inputs=[
                io.Conditioning.Input("positive", tooltip="The encoded prompt."),
                io.Conditioning.Input("negative", tooltip="The unconditional side; read with cfg above 1 only."),
                io.ControlNet.Input("control_net", tooltip="A CONTROL_NET from PixArt-δ ControlNet Loader."),
                io.Image.Input(
                    "image",
                    tooltip=(
                        "The edge map, white on black, from PixArt-δ HED Preprocessor: one for the whole batch, or "
                        "one for each picture. It should have the size of the picture."
                    ),
                ),
                io.Vae.Input("vae", tooltip="The VAE that decodes your pictures: PixArt reads the hint through it."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    tooltip=("1 is as trained, 0 is off, about 0.5 leaves the prompt more freedom."),
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    tooltip="Where in the sampling control begins: 0 is the first step.",
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    tooltip=("Where it ends: 1 is after the last step. Steps after it are as fast as without control."),
                ),
                io.Combo.Input(
                    "resize",
                    options=list(RESIZE_MODES),
                    tooltip=(
                        "What happens to a hint of another size than the picture. crop: cover it and cut the "
                        "overhang, as in training; stretch: distort; pad: fit inside, black around."
                    ),
                ),
            ],
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
        return io.NodeOutput(
            *apply_control(positive, negative, control_net, image, vae, strength, start_percent, end_percent, resize)
        )


class PixArtDeltaHEDPreprocessor(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PixArtDeltaHEDPreprocessor",
            display_name="PixArt-δ HED Preprocessor",
            category=CATEGORY,
            description="Soft edges exactly as PixArt's ControlNet was trained on: full resolution, nothing rounded. "
            "Other HED nodes return 8 bits at 512 px, which is not what the model knows.",
            inputs=[
                io.Image.Input("image", tooltip="The picture whose edges the new one follows, at its size."),
                io.Combo.Input(
                    "hed_name",
                    options=files.names("hed"),
                    tooltip=(
                        "ControlNetHED.pth (lllyasviel/Annotators on Hugging Face) in models/pixart_delta, or the "
                        "small network that comes with the bundled models."
                    ),
                ),
                io.Boolean.Input(
                    "safe",
                    default=False,
                    tooltip=(
                        "Round the edges to three levels, as other HED nodes do by default. PixArt was trained without."
                    ),
                ),
                io.Boolean.Input(
                    "scribble", default=False, tooltip=("Thin the edges to drawn lines. PixArt was trained without.")
                ),
                io.Int.Input(
                    "resolution",
                    default=0,
                    min=0,
                    max=16384,
                    step=64,
                    tooltip=("Shorter side in pixels to look for edges at. 0, as in training: the picture's own."),
                ),
                io.Combo.Input(
                    "dtype",
                    options=["float32", "bfloat16", "float16"],
                    tooltip=("float32 as in training; bfloat16 is faster and differs by about a hundredth."),
                ),
                io.Vae.Input("vae", optional=True, tooltip="Only for the second output."),
            ],
            outputs=[
                io.Image.Output("edges", display_name="edges", tooltip="The edge map, white on black."),
                io.Image.Output(
                    "as_seen",
                    display_name="as the model sees it",
                    tooltip=(
                        "The edge map after the autoencoder, whose latent is what the ControlNet reads. Needs the vae "
                        "input."
                    ),
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, hed_name: str, **_others) -> str:
        return files.stamp("hed", hed_name)

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
            category=CATEGORY,
            description="A small picture that comes with the extension, so that the control workflows run as they are. "
            "Put Load Image in its place for your own.",
            inputs=[
                io.Combo.Input(
                    "picture",
                    options=files.example_pictures(),
                    tooltip=("Drawn landscapes of the kind that the bundled models know."),
                ),
            ],
            outputs=[io.Image.Output(tooltip="The picture, for PixArt-δ HED Preprocessor.")],
        )

    @classmethod
    def execute(cls, picture: str) -> io.NodeOutput:
        return io.NodeOutput(read_picture(files.example_picture(picture)))


class PixArtDeltaSplitControlNet(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PixArtDeltaSplitControlNet",
            display_name="PixArt-δ Split ControlNet",
            category=CATEGORY,
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
            category=CATEGORY,
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
