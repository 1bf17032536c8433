"""What a T5 encoder's config.json says about its shape, in bounds that its weights allow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .errors import CheckpointError, field
from .weightfile import WeightFile

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
