"""T5 encoders: what their config.json says, in bounds that the weights allow, and their loading, plain or quantised."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import CheckpointError, MissingFileError, field, read_by, read_description, summary
from .functional import preferred_dtype
from .weightfile import WeightFile, open_weights

T5_VOCABULARY = 32128
"""Rows of T5's embedding: what transformers takes where a config.json does not say."""

# Field: kind, least and largest value; the first five have no default that would be anybody's encoder.
_NEEDED = ("d_model", "d_kv", "d_ff", "num_layers", "num_heads")
_FIELDS: dict[str, tuple[type, float | None, float | None]] = {
    **dict.fromkeys(_NEEDED, (int, 1, 10**6)),
    "vocab_size": (int, 1, 10**8),
    "relative_attention_num_buckets": (int, 4, 10**4),
    "relative_attention_max_distance": (int, 4, 10**6),
    "layer_norm_epsilon": (float, 0, 1),
    "feed_forward_proj": (str, None, None),
    "pad_token_id": (int, 0, 10**8),
}


def check_t5(config: Mapping[str, Any], file: WeightFile) -> None:
    """Compare a configuration with the names of the weights, before a layer is built.

    Raises:
        CheckpointError: on a value of another kind, out of bounds, or more layers than there are tensors.
    """
    try:
        for name, (kind, low, high) in _FIELDS.items():
            if name in config or name in _NEEDED:
                field(config, name, kind, low=low, high=high)
        field(config, "num_layers", int, high=len(file.tensors))
        if config.get("relative_attention_max_distance", 128) <= config.get("relative_attention_num_buckets", 32) // 2:
            raise ValueError("relative_attention_max_distance must be more than half of relative_attention_num_buckets")
    except ValueError as error:
        raise CheckpointError(f"the config.json of {file.path} does not describe its weights: {error}") from error


def encoder_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that decide an encoder; the others (labels, generation, quantisation …) would only cost or confuse."""
    return {name: value for name, value in config.items() if name in _FIELDS}


QUANTIZATIONS = ("none", "int8", "int4")


def _compute_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """What weights of `dtype` are multiplied in."""
    slow = device.type == "cpu" and dtype == torch.bfloat16 and preferred_dtype(device) == torch.float32
    return torch.float32 if slow else dtype


class _WideLinear(torch.nn.Linear):
    """A Linear layer that multiplies in float32, whatever its weight is kept in."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(x.float(), self.weight.float()).to(x.dtype)


class _StreamedLinear(torch.nn.Linear):
    """A Linear layer whose weight stays where it was read from, and is brought to its input for each product."""

    stored: Tensor
    """Not called weight: transformers would round the input to its type."""
    compute: torch.dtype

    @classmethod
    def replace(cls, layer: Any, stored: Tensor, compute: torch.dtype) -> None:
        """Make one of a plain layer."""
        layer.stored, layer.compute, layer.weight, layer.__class__ = stored, compute, None, cls

    def forward(self, x: Tensor) -> Tensor:
        weight = self.stored.to(x.device, x.dtype).to(self.compute)  # rounded as if it had been loaded
        return torch.nn.functional.linear(x.to(self.compute), weight).to(x.dtype)


def is_t5(config: Mapping[str, Any]) -> bool:
    """Whether a config.json describes a T5, whose encoder PixArt reads."""
    return config.get("model_type") == "t5"


def read_t5_config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.is_file():
        raise MissingFileError(f"{folder} has no config.json: a text encoder is a transformers folder of a T5 encoder")
    config = read_description(file)
    if not is_t5(config):
        kind = config.get("model_type") or config.get("_class_name") or "different"
        raise CheckpointError(f"{folder} holds a {kind} model; PixArt reads T5 (v1.1 XXL for the released weights)")
    for name in ("transformers_version", "_name_or_path"):  # say nothing about the weights
        config.pop(name, None)
    return {"pad_token_id": 0, **config}


def require_bitsandbytes(device: torch.device) -> None:
    missing = [name for name in ("bitsandbytes", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"8- and 4-bit text encoding needs {' and '.join(missing)}: pip install {' '.join(missing)}, "
            'or choose quantization "none"'
        )
    if device.type not in ("cpu", "cuda", "xpu"):
        raise ValueError(f'bitsandbytes does not run on {device.type}: choose quantization "none", or the device cpu')


def load_t5(folder: Path, dtype: torch.dtype, device: torch.device, quantization: str, streamed: bool = False) -> Any:
    """T5EncoderModel in eval mode on `device`, read and quantised one tensor at a time.

    transformers' own loading holds every shard mapped until the last tensor is quantised: 14 GB resident for T5-XXL in
    8-bit, where one tensor at a time takes 6.

    Args:
        streamed: leave matrices in the file, see `TextEncoder`.
    """
    from transformers import T5Config, T5EncoderModel

    compute = _compute_dtype(dtype, device)
    config, file = read_t5_config(folder), open_weights(folder)
    check_t5(config, file)
    with read_by("transformers", folder, "a T5 encoder"), torch.device("meta"):
        model = T5EncoderModel(T5Config(**encoder_fields(config)))
    if quantization != "none":
        _replace_linears(model, compute, quantization)
    if compute != dtype and not streamed:
        for module in model.modules():
            if type(module) is torch.nn.Linear:  # T5's have no bias
                module.__class__ = _WideLinear
    model.set_input_embeddings(model.shared)  # one matrix, whichever of its two names the files use
    wanted = dict(model.named_parameters())
    unexpected = []
    for stored in file.tensors:
        name = "shared.weight" if stored == "encoder.embed_tokens.weight" else stored
        if name.startswith(("decoder.", "lm_head.")):
            continue  # a whole T5: PixArt reads its encoder
        if name not in wanted or wanted[name].shape != file.tensors[stored].shape:
            unexpected.append(name)
            continue
        file.require_numbers([stored])
        module = model.get_submodule(name.rpartition(".")[0])
        tensor = file.read([stored])[stored]
        if streamed and type(module) is torch.nn.Linear:
            _StreamedLinear.replace(module, tensor, compute)
        else:
            module.weight = _parameter(module.weight, tensor, dtype, device)
    missing = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    for problem, names in (("unknown or of another shape", unexpected), ("missing", missing)):
        if names:
            raise CheckpointError(
                f"{folder} does not hold the weights its config.json describes: {problem} are {summary(sorted(names))}"
            )
    return model.eval().requires_grad_(False)


def _replace_linears(model: Any, compute: torch.dtype, quantization: str) -> None:
    """Swap Linear layers for bitsandbytes' as transformers does: all but `wo`, whose outliers 8 bits cannot hold."""
    from transformers import BitsAndBytesConfig
    from transformers.integrations import replace_with_bnb_linear

    settings = (
        {"load_in_8bit": True}
        if quantization == "int8"
        else {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": compute}
    )
    config = BitsAndBytesConfig(**settings)
    # It would say for every layer of every prompt that LLM.int8 multiplies in float16, as its paper does: newer ones to
    # their log, those before 0.50 as a warning.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "MatMul8bitLt: inputs will be cast", UserWarning)
    replace_with_bnb_linear(model, modules_to_not_convert=["wo"], quantization_config=config)
    model.config.quantization_config = config


def _parameter(old: torch.nn.Parameter, tensor: Tensor, dtype: torch.dtype, device: torch.device) -> torch.nn.Parameter:
    """`tensor` as a parameter of the kind of `old`: mapped if it needs no cast; bitsandbytes' kinds quantise here."""
    if type(old) is torch.nn.Parameter:
        return torch.nn.Parameter(tensor.to(device, dtype), requires_grad=False)
    kind: Any = type(old)
    return kind(tensor, requires_grad=False, **old.__dict__).to(device)
