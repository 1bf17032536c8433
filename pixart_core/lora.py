"""LoRA for PixArt: every layout that trainers write, each at its own alpha, on the authors' fused weights.

A LoRA adds up · down · alpha / rank to a weight. Files name weights in diffusers' or the authors' way, dotted (PEFT,
diffusers) or flattened (OneTrainer, kohya), and keep alpha in four different places or nowhere.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .convert import BLOCK_NAMES, TOP_NAMES, authors_name, diffusers_names, summary
from .errors import CheckpointError, check, field
from .identify import METADATA_KEY, inspect_file, own_metadata
from .textfile import parse_json
from .weightfile import WeightFile, open_weights, save_weights

PEFT_DEFAULT_ALPHA = 8.0
"""What PEFT trains with when it is told no alpha: so was the official LCM-LoRA (rank 32, hence scale 0.25)."""

# Dotted names are PEFT's (which keeps alpha elsewhere) or diffusers'; flattened ones are OneTrainer's and kohya's.
_PEFT_PREFIXES = ("unet.base_model.model.", "transformer.base_model.model.", "base_model.model.")
_DOTTED_PREFIXES = ("transformer.", "lora_transformer.", "unet.", "model.diffusion_model.", "diffusion_model.", "")
_FLAT_PREFIXES = ("lora_transformer_", "lora_unet_", "lycoris_")

_DOWN = (
    ".lora_A.weight",
    ".lora_A.default.weight",
    ".lora_down.weight",
    ".lora.down.weight",
    "_lora.down.weight",
    ".lora_linear_layer.down.weight",
)
_UP = (
    ".lora_B.weight",
    ".lora_B.default.weight",
    ".lora_up.weight",
    ".lora.up.weight",
    "_lora.up.weight",
    ".lora_linear_layer.up.weight",
)
_ALPHA = (".alpha",)


def _flat(table: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    return {name.replace(".", "_"): name for ours, theirs in table.items() for name in (ours, *theirs)}


_FLAT_BLOCK, _FLAT_TOP = _flat(BLOCK_NAMES), _flat(TOP_NAMES)


@dataclass(frozen=True)
class Delta:
    """One change of one weight, or of some rows of a fused one."""

    key: str
    """The authors' name of the weight."""
    part: int
    """Which of `parts` equal groups of rows is changed: q, k, v of a fused matrix."""
    parts: int
    """1 = the whole weight."""
    up: Tensor
    """(rows, rank)."""
    down: Tensor
    """(rank, columns)."""
    alpha: float

    @property
    def scale(self) -> float:
        return self.alpha / self.down.shape[0]

    @property
    def rows(self) -> slice | None:
        """The changed rows; None = all."""
        height = self.up.shape[0]
        return None if self.parts == 1 else slice(self.part * height, (self.part + 1) * height)

    def matrix(self) -> Tensor:
        """up · down · alpha / rank, (rows, columns) float32."""
        return self.scale * (self.up.float() @ self.down.float())


@dataclass(frozen=True)
class Lora:
    """A LoRA in the authors' names."""

    name: str
    """Where it came from, for messages."""
    deltas: tuple[Delta, ...]
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def rank(self) -> int:
        """The largest rank in it."""
        return max(delta.down.shape[0] for delta in self.deltas)

    def to_state_dict(self) -> dict[str, Tensor]:
        """Diffusers' names below `transformer.`, with alpha: what ComfyUI's own LoRA loaders read."""
        out: dict[str, Tensor] = {}
        for delta in self.deltas:
            names = diffusers_names(delta.key)
            if delta.parts > 1:
                changes = [(names[delta.part], delta.up)]
            else:  # a LoRA of a whole fused matrix: each part takes its rows of `up`, all share `down`
                changes = list(zip(names, delta.up.chunk(len(names)), strict=True))
            for name, up in changes:
                stem = "transformer." + name.removesuffix(".weight")
                out[f"{stem}.lora_A.weight"] = delta.down.clone()
                out[f"{stem}.lora_B.weight"] = up.clone()
                out[f"{stem}.alpha"] = torch.tensor(float(delta.alpha))
        return out


def load_lora(path: str | os.PathLike, alpha: float | None = None) -> Lora:
    """A LoRA for PixArt from a file, or from a PEFT or diffusers folder.

    Alpha is, in this order: the argument; the file's own `.alpha` numbers; adapter_config.json beside the file; the
    file's metadata; PEFT's default 8 for PEFT's names; the rank (scale 1) for all others, as their programs take it.

    Args:
        alpha: to use for every weight.

    Raises:
        CheckpointError: if it is no LoRA, is made for another model, is not of the plain kind, or is damaged.
    """
    file = open_weights(path)
    if not any(key.endswith(_DOWN) for key in file.tensors) and (info := inspect_file(path)).kind != "lora":
        raise CheckpointError(f"{path} is not a LoRA but {info.describe()}")
    config = file.configs.get("adapter_config.json") or _adapter_metadata(file)
    state = file.assemble({name: (name,) for name in file.tensors})
    return parse_lora(state, str(path), alpha, config, own_metadata(file))


def parse_lora(
    state: Mapping[str, Tensor],
    name: str = "LoRA",
    alpha: float | None = None,
    adapter_config: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Lora:
    """A LoRA from its tensors; arguments and errors as in `load_lora`. `adapter_config` is PEFT's."""
    if not any(key.endswith(_DOWN) for key in state):
        kinds = [kind for kind, mark in (("LoHa", "hada_w"), ("LoKr", "lokr_w")) if any(mark in key for key in state)]
        raise CheckpointError(
            f"{name} is {f'a {kinds[0]}, not a plain LoRA' if kinds else 'not a LoRA'}: it holds {summary(state, 3)}"
        )
    config = adapter_config or {}
    if config.get("use_dora") or any("dora_scale" in key or "lora_magnitude_vector" in key for key in state):
        raise CheckpointError(
            f"{name} is a DoRA, which changes weights in another way than a LoRA: train or export it without use_dora"
        )
    modules = _modules(state, name)
    deltas, strange = [], []
    for stem, tensors in modules.items():
        try:
            target, prefix = _target(stem)
            key, part, parts = _authors_key(target)
        except KeyError:
            strange.append(stem)
            continue
        if not {"up", "down"} <= tensors.keys():
            raise CheckpointError(f"{name} is damaged: {stem} has no {'up' if 'down' in tensors else 'down'} matrix")
        up, down = (_matrix(tensors[role], f"{name}: the {role} matrix of {stem}") for role in ("up", "down"))
        if up.shape[1] != down.shape[0]:
            raise CheckpointError(f"{name} is damaged: {stem} has rank {down.shape[0]} and {up.shape[1]}")
        value = alpha
        if alpha is None and "alpha" in tensors:
            value = _single(tensors["alpha"], f"{name} is damaged: {stem}.alpha")
        elif alpha is None:
            try:
                value = _peft_alpha(target, down.shape[0], config, prefix)
            except ValueError as error:
                raise CheckpointError(f"{name}: {error} in adapter_config.json or the file's metadata") from error
        deltas.append(Delta(key, part, parts, up, down, float(value)))
    if strange:
        raise CheckpointError(f"{name} is a LoRA for another model: PixArt has no {summary(strange, 3)}")
    return Lora(name, tuple(deltas), dict(metadata or {}))


def _modules(state: Mapping[str, Tensor], name: str) -> dict[str, dict[str, Tensor]]:
    """Stem -> its up, down and alpha."""
    modules: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for key, tensor in state.items():
        for role, ends in (("down", _DOWN), ("up", _UP), ("alpha", _ALPHA)):
            end = next((end for end in ends if key.endswith(end)), None)
            if end:
                modules.setdefault(key.removesuffix(end), {})[role] = tensor
                break
        else:
            unknown.append(key)
    if unknown:
        raise CheckpointError(f"{name} holds more than a plain LoRA: {summary(unknown, 3)}")
    return modules


def _matrix(tensor: Tensor, what: str) -> Tensor:
    """A matrix, or the kernel of a convolution as one. Quantised numbers are none."""
    if tensor.ndim < 2 or not tensor.numel() or not tensor.is_floating_point():
        raise CheckpointError(
            f"{what} is {list(tensor.shape)} of {tensor.dtype}; 16- or 32-bit matrices are wanted: take another copy"
        )
    return tensor.flatten(1)


def _single(tensor: Tensor, what: str) -> float:
    value = tensor.item() if tensor.numel() == 1 and not tensor.is_complex() else math.nan
    if not math.isfinite(value):
        raise CheckpointError(f"{what} is no finite number: take another copy, or give alpha")
    return float(value)


def _target(stem: str) -> tuple[str, str]:
    """(module name in the authors' or diffusers' way, the prefix before it). KeyError if it is not one of PixArt's."""
    for prefix in _FLAT_PREFIXES:
        if stem.startswith(prefix):
            return _unflatten(stem[len(prefix) :]), prefix
    for prefix in _PEFT_PREFIXES + _DOTTED_PREFIXES:
        if stem.startswith(prefix):
            return stem[len(prefix) :].replace(".processor.", "."), prefix
    raise KeyError(stem)


def _unflatten(flat: str) -> str:
    """transformer_blocks_0_attn1_to_q -> transformer_blocks.0.attn1.to_q, the authors' names likewise."""
    match = re.fullmatch(r"(transformer_blocks|blocks)_(\d+)_(.+)", flat)
    if match:
        return f"{match[1]}.{match[2]}.{_FLAT_BLOCK[match[3]]}"
    return _FLAT_TOP[flat]


def _authors_key(module: str) -> tuple[str, int, int]:
    """Authors' weight name, part and number of parts for a module's name in either way. KeyError if there is none."""
    module = re.sub(r"\.to_out$", ".to_out.0", module)  # early diffusers named the output so
    try:
        return authors_name(f"{module}.weight")
    except KeyError:
        diffusers_names(f"{module}.weight")
        return f"{module}.weight", 0, 1


def _peft_alpha(module: str, rank: int, config: Mapping[str, Any], prefix: str) -> float:
    """Alpha of a module that carries none itself; with rank-stabilised LoRA, the alpha that gives the same scale."""
    if not config:
        return PEFT_DEFAULT_ALPHA if prefix in _PEFT_PREFIXES else float(rank)
    alpha = field(config, "lora_alpha", float, PEFT_DEFAULT_ALPHA, -1e6, 1e6)
    patterns = config.get("alpha_pattern") or {}
    check("alpha_pattern", patterns, dict)
    for pattern in patterns:  # PEFT matches the end of the module's name
        if _matches(pattern, module):
            alpha = field(patterns, pattern, float, low=-1e6, high=1e6)
    return alpha * math.sqrt(rank) if config.get("use_rslora") else float(alpha)


def _matches(pattern: str, module: str) -> bool:
    """Whether a module's name ends in a pattern of PEFT's, as `re` has it.

    Raises:
        ValueError: if it is none, or repeats so much that a search could take for ever.
    """
    if len(pattern) > 200 or len(re.findall(r"[*+{?]", pattern)) > 3 or re.search(r"\)[*+{?]", pattern):
        raise ValueError(f"alpha_pattern has {reprlib.repr(pattern)}, which is too involved for a module's name")
    try:
        return re.fullmatch(rf"(.*\.)?({pattern})", module) is not None
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"alpha_pattern has {reprlib.repr(pattern)}, which is no pattern: {error}") from error


def _adapter_metadata(file: WeightFile) -> dict[str, Any]:
    """PEFT's configuration as diffusers' save functions put it into the file, each key behind `transformer.`."""
    try:
        values = parse_json(file.metadata.get("lora_adapter_metadata", "{}"))
        check("it", values, dict)
    except ValueError as error:
        raise CheckpointError(f"{file.path}: its metadata key lora_adapter_metadata is not JSON: {error}") from error
    return {key.split(".", 1)[-1]: value for key, value in values.items()}


def require_fit(lora: Lora, weights: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError if a weight (authors' name) that the LoRA changes is missing or of another shape."""
    for delta in lora.deltas:
        expected = (delta.parts * delta.up.shape[0], delta.down.shape[1])
        found = tuple(weights[delta.key].flatten(1).shape) if delta.key in weights else None
        if found != expected:
            raise CheckpointError(
                f"{lora.name} does not fit this PixArt model: {delta.key} is "
                f"{list(found) if found else 'missing'}, the LoRA is made for {list(expected)}"
            )


@torch.no_grad()
def apply_lora(model: nn.Module, lora: Lora, strength: float = 1.0) -> None:
    """Add `strength` times a LoRA to a model's weights, in place, in float32. The negative strength takes it off again.

    Raises:
        CheckpointError: before anything is changed, if a weight is missing or of another shape.
    """
    weights = dict(model.named_parameters())
    require_fit(lora, weights)
    if strength == 0:
        return
    for delta in lora.deltas:
        weight = weights[delta.key]
        rows = weight if delta.rows is None else weight[delta.rows]
        change = strength * delta.matrix().to(weight.device)
        rows.copy_((rows.float() + change.reshape(rows.shape)).to(weight.dtype))


def save_lora(lora: Lora, path: str | os.PathLike, metadata: Mapping[str, Any] | None = None) -> Path:
    """Save a LoRA as one safetensors file that carries its alpha, atomically."""
    values = {**lora.metadata, **(metadata or {}), "kind": "lora", "rank": lora.rank}
    return save_weights(lora.to_state_dict(), path, {METADATA_KEY: json.dumps(values)})
