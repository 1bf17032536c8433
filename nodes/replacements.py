"""Which nodes of other packs ours stand in for: workflows made with them open on ours where that pack is missing.

ComfyUI offers the exchange in the editor, and makes it itself in graphs that come by its API. The pack is
ComfyUI_ExtraModels, the other way to run PixArt; names and order of its inputs are those of its public source.
"""

from __future__ import annotations

from comfy_api.latest import ComfyAPI, io
from server import PromptServer

from .conditioning import UNCONDITIONAL

_PROMPT = {
    "negative_prompt": "",
    "width": 0,
    "height": 0,
    "unconditional": UNCONDITIONAL[0],
    "clean_caption": False,
}


class _Exchange(io.NodeReplace):
    """An exchange whose outputs are renumbered by the server only where their numbers differ.

    ComfyUI's server exchanges the nodes of a graph in the order of a set, and renumbers a node's links by the old names
    of the inputs that they lead to: where such a neighbour was exchanged before it, that is a KeyError, and the whole
    graph is refused with status 500. The editor needs the outputs in any case, to connect the new node.
    """

    def __init__(self, outputs: list[int], **mapping):
        self._outputs = [{"old_idx": index, "new_idx": to} for index, to in enumerate(outputs)]
        differ = outputs != list(range(len(outputs)))
        super().__init__(**mapping, output_mapping=self._outputs if differ else None)

    def as_dict(self) -> dict:
        """What the editor is told."""
        return super().as_dict() | {"output_mapping": self._outputs}


def _replace(old: str, widgets: list[str], new: str, renamed: dict[str, str], fixed: dict, outputs: list[int]):
    """One exchange: names of inputs old -> new, values for inputs that the old one lacks, and where its outputs go."""
    return _Exchange(
        outputs,
        new_node_id=f"PixArtDelta{new}",
        old_node_id=old,
        old_widget_ids=widgets,
        input_mapping=[
            *({"new_id": to, "old_id": name} for name, to in renamed.items()),
            *({"new_id": name, "set_value": value} for name, value in fixed.items()),
        ],
    )


def replacements() -> list[io.NodeReplace]:
    """All exchanges."""
    model = {"ckpt_name": "model_name"}
    prompt = {"text": "prompt", "T5": "clip"}
    t5 = ["t5v11_name", "t5v11_ver", "path_type", "device", "dtype"]
    # Its width is the first number of its table, so that its ratio is width / height as ours.
    square = {"width": 1024, "height": 1024, "bins": "1024", "batch_size": 1}
    lora = {"model": "model", "lora_name": "lora_name", "strength": "strength"}
    return [
        _replace("PixArtCheckpointLoader", ["ckpt_name", "model"], "ModelLoader", model, {"dtype": "default"}, [0]),
        _replace("PixArtCheckpointLoaderSimple", ["ckpt_name"], "ModelLoader", model, {"dtype": "default"}, [0]),
        _replace(
            "T5v11Loader", t5, "TextEncoderLoader", {"t5v11_name": "text_encoder_name"}, {"quantization": "none"}, [0]
        ),
        _replace("T5TextEncode", ["text"], "TextEncode", prompt, _PROMPT, [0]),
        _replace("PixArtT5TextEncode", ["text"], "TextEncode", prompt, _PROMPT, [0]),
        _replace("PixArtLoraLoader", ["lora_name", "strength"], "LoraLoader", lora, {}, [0]),
        _replace("PixArtResolutionSelect", ["model", "ratio"], "Resolution", {"ratio": "ratio"}, square, [1, 2]),
    ]


async def register() -> None:
    """Tell ComfyUI's server about them, where it can exchange nodes."""
    known = getattr(ComfyAPI(), "node_replacement", None)
    is_served = getattr(PromptServer, "instance", None) is not None  # ComfyUI keeps them with its server
    if is_served and known is not None:
        for replacement in replacements():
            await known.register(replacement)
