"""CLIP: T5 in ComfyUI's own classes, at the width of the weights, with PixArt's prompt rules, plain or in 8 bits."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.quant_ops as quant_ops
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models_base
import comfy.text_encoders.pixart_t5
import comfy.utils
import folder_paths
import torch
from torch import Tensor

from ...pixart_core.errors import CheckpointError
from ...pixart_core.identify import inspect_file
from ...pixart_core.t5 import T5_VOCABULARY
from ...pixart_core.text import find_text_encoder
from ...pixart_core.tokenizer import load_tokenizer
from ...pixart_core.weightfile import WeightFile, open_weights
from .family import READER, mark
from .prompt import cut_tokens, prompt_text

_SCALES: dict[str, dict[str, Any]] = {
    "int8_tensorwise": {"per_channel": True},
    "float8_e4m3fn": {"scale": "recalculate"},
}
"""How finely a weight is scaled: int8 by rows, fp8 as a whole."""


class T5Tokenizer(comfy.sd1_clip.SDTokenizer):
    """ComfyUI's tokenizer wrapper with PixArt's prompt rules: lower case, at most 120 tokens, no padding of its own.

    Without padding no attention mask is needed: cross-attention sees the prompt's own tokens only.
    """

    def __init__(self, folder: str, width: int, embedding_directory=None, tokenizer_data=None):
        super().__init__(
            folder,
            pad_with_end=False,
            embedding_directory=embedding_directory,
            embedding_size=width,
            embedding_key="t5xxl",
            tokenizer_class=SimpleNamespace(from_pretrained=load_tokenizer),
            has_start_token=False,
            pad_to_max_length=False,
            max_length=10**8,
            min_length=1,
            tokenizer_data=tokenizer_data or {},
        )

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **kwargs) -> list[list[tuple]]:
        tokens = super().tokenize_with_weights(prompt_text(text), return_word_ids, **kwargs)[0]
        return [cut_tokens(tokens, self)]


class T5(comfy.text_encoders.pixart_t5.PixArtT5XXL):
    """ComfyUI's PixArt text encoder, whose conditioning says who read it."""

    mark = ""
    """See `family.mark`."""

    def encode_token_weights(self, token_weight_pairs) -> tuple:
        out = super().encode_token_weights(token_weight_pairs)
        if not self.mark:
            return out
        return (*out[:2], {**(out[2] if len(out) > 2 else {}), READER: self.mark})


def load_clip(path: str, quantization: str = "none", disable_dynamic: bool = False):
    """A CLIP that holds a T5 encoder of any width, from a file or a transformers folder.

    Args:
        path: a single file (ComfyUI's t5xxl_….safetensors), a text_encoder folder or a pipeline folder. A T5 that
            does not use the vocabulary of T5 v1.1 needs its tokenizer beside it.
        quantization: "none", or "8-bit": weights are quantised one by one while they are read.

    Raises:
        CheckpointError: when it is not a T5 encoder, is damaged or has no tokenizer.
    """
    source = find_text_encoder(path)[0] if Path(path).is_dir() else path
    if (info := inspect_file(source)).kind != "t5":
        raise CheckpointError(f"{path} is not a T5 text encoder but {info.describe()}")
    weights = open_weights(source)
    state = _encoder_state(weights)
    shape = _t5_shape(state, path)
    parameters = comfy.utils.calculate_parameters(state)
    dtype = state["encoder.final_layer_norm.weight"].dtype
    dtype = torch.bfloat16 if dtype == torch.float32 and parameters > 10**9 else dtype
    reader = mark(state["shared.weight"])
    options = {"t5xxl_model_config": shape, "dtype": dtype}
    if quantization == "8-bit" and not _is_quantized(state):
        state = _quantize(weights, state)
    if _is_quantized(state):
        options["t5xxl_quantization_metadata"] = {"mixed_ops": True}
    target = comfy.supported_models_base.ClipTarget(
        functools.partial(
            comfy.sd1_clip.SD1Tokenizer,
            clip_name="t5xxl",
            tokenizer=functools.partial(T5Tokenizer, _tokenizer_folder(path, shape), shape["d_model"]),
        ),
        T5,
    )
    clip = comfy.sd.CLIP(
        target,
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
        parameters=parameters,
        state_dict=[state],
        model_options=options,
        disable_dynamic=disable_dynamic,
    )
    clip.cond_stage_model.mark = reader
    clip.patcher.cached_patcher_init = (_load_clip_patcher, (path, quantization))
    return clip


def _load_clip_patcher(path: str, quantization: str, disable_dynamic: bool = False):
    return load_clip(path, quantization, disable_dynamic).patcher


def eight_bit_format() -> str:
    """The 8-bit format of this ComfyUI: int8 since 0.27, fp8 before."""
    return "int8_tensorwise" if "int8_tensorwise" in quant_ops.QUANT_ALGOS else "float8_e4m3fn"


def _is_quantized(state: dict[str, Tensor]) -> bool:
    return any(key.endswith(".comfy_quant") for key in state)


def _quantize(weights: WeightFile, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every Linear weight of a T5 encoder in 8 bits, marked as ComfyUI's quantised checkpoints are.

    Each is mapped on its own and let go again, so that memory holds the 8-bit weights and one plain one.
    """
    kind = eight_bit_format()
    layout = quant_ops.get_layout_class(quant_ops.QUANT_ALGOS[kind]["comfy_tensor_layout"])
    mark = torch.tensor(list(json.dumps({"format": kind}).encode()), dtype=torch.uint8)
    linear = [key for key in state if re.search(r"\.(SelfAttention\.[qkvo]|DenseReluDense\.w\w+)\.weight$", key)]
    quantized = {key: state.pop(key) for key in list(state) if key not in linear}
    state.clear()
    for key in linear:
        layer = key.removesuffix(".weight")
        quantized[key], params = layout.quantize(weights.read([key])[key].float(), **_SCALES[kind])
        quantized[f"{layer}.weight_scale"], quantized[f"{layer}.comfy_quant"] = params.scale, mark
        if not params.scale.isfinite().all():
            raise CheckpointError(f"{weights.path} holds NaN or infinite weights ({key}): use another copy")
    return quantized


def _encoder_state(weights: WeightFile) -> dict[str, Tensor]:
    """The encoder's tensors, mapped; scaled fp8 files in ComfyUI's present form."""
    state, _ = comfy.utils.convert_old_quants(weights.read(), "")
    if "shared.weight" not in state and "encoder.embed_tokens.weight" in state:
        state["shared.weight"] = state["encoder.embed_tokens.weight"]
    return {
        key: tensor
        for key, tensor in state.items()
        if key == "shared.weight" or key.startswith("encoder.") and key != "encoder.embed_tokens.weight"
    }


def _t5_shape(state: dict[str, Tensor], path: str) -> dict:
    """ComfyUI's T5 configuration, read off the weights. Raises CheckpointError when they are not a whole T5 encoder."""
    attention, feed = "encoder.block.{}.layer.0.SelfAttention.", "encoder.block.{}.layer.1.DenseReluDense."
    layers = 0
    while attention.format(layers) + "q.weight" in state:
        layers += 1
    gated = feed.format(0) + "wi_0.weight" in state
    names = ["shared.weight", "encoder.final_layer_norm.weight", attention.format(0) + "relative_attention_bias.weight"]
    for layer in range(max(layers, 1)):
        names += [attention.format(layer) + f"{name}.weight" for name in "qkvo"]
        names += [feed.format(layer) + f"{name}.weight" for name in (("wi_0", "wi_1", "wo") if gated else ("wi", "wo"))]
        names += [f"encoder.block.{layer}.layer.{part}.layer_norm.weight" for part in (0, 1)]
    missing = [name for name in names if name not in state]
    if missing:
        raise CheckpointError(
            f"{path} is not a whole T5 encoder: it lacks {missing[0]}. PixArt takes "
            "T5 v1.1 XXL (t5xxl_fp16.safetensors, or the text_encoder folder)"
        )
    (vocabulary, width), heads = state["shared.weight"].shape, state[names[2]].shape[1]
    inner, hidden = (
        state[name].shape[axis]
        for name, axis in ((attention.format(0) + "q.weight", 0), (feed.format(0) + "wo.weight", 1))
    )
    return {
        "d_model": width,
        "d_kv": inner // heads,
        "d_ff": hidden,
        "vocab_size": vocabulary,
        "num_layers": layers,
        "num_heads": heads,
        "is_gated_act": gated,
        "dense_act_fn": "gelu_pytorch_tanh" if gated else "relu",
        "model_type": "t5",
    }


def _tokenizer_folder(path: str, shape: dict) -> str:
    if Path(path).is_dir():
        return str(find_text_encoder(path)[1])
    if shape["vocab_size"] == T5_VOCABULARY:  # T5's own vocabulary, which ComfyUI carries
        return str(Path(comfy.text_encoders.pixart_t5.__file__).parent / "t5_tokenizer")
    raise CheckpointError(
        f"{path} is a T5 encoder with a vocabulary of {shape['vocab_size']}: its file has no "
        "tokenizer, choose the folder that has tokenizer/ beside it"
    )
