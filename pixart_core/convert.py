"""Names and configuration between the authors' layout (ours) and diffusers'.

Conversion is data: tables of names. Where diffusers has to_q, to_k and to_v, the authors have one fused matrix whose
rows are theirs one after another, so one of their names may stand for two or three of diffusers'.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from .config import PixArtConfig
from .errors import field, summary
from .functional import position_embedding

TOP_NAMES = {
    "pos_embed": ("pos_embed.pos_embed",),  # stored by early diffusers only; computed by later ones
    "x_embedder.proj": ("pos_embed.proj",),
    "t_embedder.mlp.0": ("adaln_single.emb.timestep_embedder.linear_1",),
    "t_embedder.mlp.2": ("adaln_single.emb.timestep_embedder.linear_2",),
    "csize_embedder.mlp.0": ("adaln_single.emb.resolution_embedder.linear_1",),
    "csize_embedder.mlp.2": ("adaln_single.emb.resolution_embedder.linear_2",),
    "ar_embedder.mlp.0": ("adaln_single.emb.aspect_ratio_embedder.linear_1",),
    "ar_embedder.mlp.2": ("adaln_single.emb.aspect_ratio_embedder.linear_2",),
    "t_block.1": ("adaln_single.linear",),
    # Written by diffusers' own converter of 2023, ignored (with a warning) by its models today: keeps the null caption.
    "y_embedder.y_embedding": ("caption_projection.y_embedding",),
    "y_embedder.y_proj.fc1": ("caption_projection.linear_1",),
    "y_embedder.y_proj.fc2": ("caption_projection.linear_2",),
    "final_layer.linear": ("proj_out",),
    "final_layer.scale_shift_table": ("scale_shift_table",),
}
BLOCK_NAMES = {
    "scale_shift_table": ("scale_shift_table",),
    "attn.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "attn.proj": ("attn1.to_out.0",),
    "cross_attn.q_linear": ("attn2.to_q",),
    "cross_attn.kv_linear": ("attn2.to_k", "attn2.to_v"),
    "cross_attn.proj": ("attn2.to_out.0",),
    "mlp.fc1": ("ff.net.0.proj",),
    "mlp.fc2": ("ff.net.2",),
}
_ZERO_LINEARS = {"before_proj": ("before_proj",), "after_proj": ("after_proj",)}

# (authors' prefix, diffusers' prefix, table of what may follow); {} is the index of a block.
_SECTIONS = (
    ("blocks.{}.", "transformer_blocks.{}.", BLOCK_NAMES),
    ("controlnet.{}.copied_block.", "controlnet_blocks.{}.transformer_block.", BLOCK_NAMES),
    ("controlnet.{}.", "controlnet_blocks.{}.", _ZERO_LINEARS),
    ("", "", TOP_NAMES),
)


def _invert(table: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, int, int]]:
    return {part: (name, index, len(parts)) for name, parts in table.items() for index, part in enumerate(parts)}


def _pattern(prefix: str) -> re.Pattern[str]:
    return re.compile(re.escape(prefix).replace(r"\{\}", r"(\d+)") + r"(.+?)(\.weight|\.bias)?")


_FROM_AUTHORS = [(_pattern(ours), theirs, table) for ours, theirs, table in _SECTIONS]
_FROM_DIFFUSERS = [(_pattern(theirs), ours, _invert(table)) for ours, theirs, table in _SECTIONS]


def _look_up(name: str, sections: list[tuple[re.Pattern[str], str, dict[str, Any]]]) -> tuple[str, Any, str]:
    """(target prefix, table entry, '.weight' or '.bias' or '') of a parameter name; KeyError if it is in no table."""
    for pattern, prefix, table in sections:
        match = pattern.fullmatch(name)
        if match:
            *index, stem, end = match.groups()
            if stem in table:
                return prefix.format(*index), table[stem], end or ""
    raise KeyError(name)


def diffusers_names(name: str) -> tuple[str, ...]:
    """Diffusers' names for an authors' parameter name, in the order of the fused rows.

    Raises:
        KeyError: if no PixArt parameter or ControlNet parameter has that name.
    """
    prefix, parts, end = _look_up(name, _FROM_AUTHORS)
    return tuple(prefix + part + end for part in parts)


def authors_name(name: str) -> tuple[str, int, int]:
    """(authors' name, which part of its fused rows, how many parts) for a diffusers' parameter name.

    Raises:
        KeyError: if no PixArt parameter or ControlNet parameter has that name.
    """
    prefix, (stem, index, count), end = _look_up(name, _FROM_DIFFUSERS)
    return prefix + stem + end, index, count


def diffusers_sources(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Authors' name -> the diffusers' names whose rows, put together, make it.

    Raises:
        ValueError: naming what is unknown, or which part of a fused matrix is missing.
    """
    parts: dict[str, dict[int, str]] = {}
    counts: dict[str, int] = {}
    unknown = []
    for name in names:
        try:
            target, index, count = authors_name(name)
        except KeyError:
            unknown.append(name)
            continue
        parts.setdefault(target, {})[index] = name
        counts[target] = count
    if unknown:
        raise ValueError(f"no part of a PixArt transformer in diffusers' layout: {summary(unknown)}")
    for target, found in parts.items():
        if len(found) < counts[target]:
            missing = set(diffusers_names(target)) - set(found.values())
            raise ValueError(f"weights are missing: {summary(sorted(missing))}")
    return {target: tuple(found[i] for i in range(counts[target])) for target, found in parts.items()}


def diffusers_to_authors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A transformer's or a ControlNet's state dict in the authors' names. Tensors that need no fusing are shared.

    Raises:
        ValueError: as `diffusers_sources`.
    """
    return {
        target: state[names[0]] if len(names) == 1 else torch.cat([state[name] for name in names])
        for target, names in diffusers_sources(state).items()
    }


def authors_to_diffusers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `diffusers_to_authors`, except that `pos_embed`, which diffusers computes, is left out.

    Parts of fused matrices are views of them.

    Raises:
        ValueError: naming what is unknown.
    """
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name == "pos_embed":
            continue
        try:
            names = diffusers_names(name)
        except KeyError:
            raise ValueError(f"no part of a PixArt transformer in the authors' layout: {name}") from None
        out.update(zip(names, tensor.chunk(len(names)), strict=True) if len(names) > 1 else [(names[0], tensor)])
    return out


def position_buffer(config: PixArtConfig) -> Tensor:
    """The `pos_embed` that the authors store, (1, base_size², hidden) float32: for files of layouts that drop it."""
    side = config.base_size
    return position_embedding(side, side, config.hidden_size, side, config.interpolation_scale)


def config_to_diffusers(config: PixArtConfig) -> dict[str, Any]:
    """The config.json that diffusers' PixArtTransformer2DModel loads.

    Raises:
        ValueError: if diffusers cannot express the shape.
    """
    if config.mlp_ratio != 4.0:
        raise ValueError(
            f"diffusers' PixArt transformer has mlp_ratio 4, this model has {config.mlp_ratio}: "
            "save it in the authors' layout"
        )
    return {
        "_class_name": "PixArtTransformer2DModel",
        "_diffusers_version": "0.30.0",
        "activation_fn": "gelu-approximate",
        "attention_bias": True,
        "attention_head_dim": config.hidden_size // config.num_heads,
        "caption_channels": config.caption_channels,
        "cross_attention_dim": config.hidden_size,
        "in_channels": config.in_channels,
        "interpolation_scale": config.interpolation_scale,
        "norm_elementwise_affine": False,
        "norm_eps": 1e-6,
        "norm_type": "ada_norm_single",
        "num_attention_heads": config.num_heads,
        "num_embeds_ada_norm": 1000,
        "num_layers": config.depth,
        "out_channels": config.out_channels,
        "patch_size": config.patch_size,
        "sample_size": config.input_size,
        "use_additional_conditions": config.micro_condition,
    }


def is_transformer(values: Mapping[str, Any]) -> bool:
    """Whether a diffusers config.json describes a PixArt transformer; one that names no class is taken for one."""
    name = values.get("_class_name", "model_type" in values or "PixArtTransformer2DModel")
    return name == "PixArtTransformer2DModel" or (  # the general class that the first releases were saved with
        name == "Transformer2DModel" and values.get("norm_type") == "ada_norm_single"
    )


def config_from_diffusers(values: Mapping[str, Any]) -> PixArtConfig:
    """The configuration in a diffusers transformer's config.json; what it leaves out has diffusers' default.

    Raises:
        ValueError: if it describes another model than PixArt.
    """
    if not is_transformer(values) or values.get("caption_channels") is None:
        name = values.get("_class_name") or values.get("model_type") or "different model"
        raise ValueError(f"config.json describes a {name}, not a PixArt transformer")
    sample_size = field(values, "sample_size", int, 128, low=1)
    micro_condition, scale = values.get("use_additional_conditions"), values.get("interpolation_scale")
    in_channels = field(values, "in_channels", int, 4)
    out_channels = values.get("out_channels", 8)
    heads = field(values, "num_attention_heads", int, 16)
    return PixArtConfig(
        input_size=sample_size,
        hidden_size=heads * field(values, "attention_head_dim", int, 72),
        depth=values.get("num_layers", 28),
        num_heads=heads,
        caption_channels=values["caption_channels"],
        interpolation_scale=float(max(sample_size // 64, 1)) if scale is None else scale,
        micro_condition=sample_size == 128 if micro_condition is None else micro_condition,
        patch_size=values.get("patch_size", 2),
        in_channels=in_channels,
        learn_sigma=(in_channels if out_channels is None else out_channels) == 2 * in_channels,
    )
