"""LoRA for PixArt: every layout that trainers write, each at its own alpha, on the authors' fused weights.

A LoRA adds up · down · alpha / rank to a weight. Files name weights in diffusers' or the authors' way, dotted (PEFT,
diffusers) or flattened (OneTrainer, kohya), and keep alpha in four different places or nowhere.
"""

from __future__ import annotations

import logging
import math
import re
import reprlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .aliases import PathLike
from .convert import BLOCK_NAMES, TOP_NAMES, authors_name, diffusers_names
from .delta import Delta, Diff, Kron, Lora
from .errors import CheckpointError, check, field, summary
from .identify import inspect_file, own_metadata
from .textfile import parse_json
from .weightfile import WeightFile, open_weights

logger = logging.getLogger(__name__)

PEFT_DEFAULT_ALPHA = 8.0
"""What PEFT trains with when it is told no alpha: so was the official LCM-LoRA (rank 32, hence scale 0.25)."""

_PEFT = "base_model.model."
"""What PEFT's names go through. All other names keep alpha beside the matrices, or mean the rank by saying nothing."""

# What a tensor is, by how its name ends; the module's name is what precedes.
_ROLES = {
    "down": r"(\.lora_A(\.[\w-]+)?|\.lora_down|[._]lora\.down|\.lora_linear_layer\.down)\.weight|\.lora_A",
    "up": r"(\.lora_B(\.[\w-]+)?|\.lora_up|[._]lora\.up|\.lora_linear_layer\.up)\.weight|\.lora_B",
    "up_bias": r"\.lora_B(\.[\w-]+)?\.bias",
    "alpha": r"\.alpha",
    "diff": r"\.(diff|w_norm)",
    "diff_b": r"\.(diff_b|b_norm)",
    "set": r"\.set_weight",
    "size": r"\.dora_scale",
    **{each: rf"\.{each}" for each in ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")},
}
_ROLE = re.compile(r"(?P<stem>.+?)(?:" + "|".join(f"(?P<{role}>{ends})" for role, ends in _ROLES.items()) + ")")
# Other ways to change a weight, by what only their names have.
_OTHER_WAYS = {
    "LoHa": r"\.hada_",
    "LoKr of Tucker's kind": r"\.lokr_t2$",
    "OFT": r"\.(oft_blocks|oft_diag)",
    "GLoRA": r"\.[ab][12]\.weight$",
    "Tucker LoRA": r"\.lora_mid\.",
    "LoRA of another shape": r"\.reshape_weight$",
}
_TABLES = ("scale_shift_table", "y_embedding")  # parameters without a module of their own


class OtherAdapterError(CheckpointError):
    """A file changes weights in another way than a LoRA, DoRA or LoKr; ComfyUI's own loader may know it."""


def _flat(table: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    return {name.replace(".", "_"): name for ours, theirs in table.items() for name in (ours, *theirs)}


_FLAT_BLOCK, _FLAT_TOP = _flat(BLOCK_NAMES), _flat(TOP_NAMES)
_HEADS = {name.split(".")[0] for table in (TOP_NAMES, *TOP_NAMES.values()) for name in table}
_HEADS |= {"blocks", "transformer_blocks", "controlnet", "controlnet_blocks"}
"""What the names of PixArt's modules begin with."""


def load_lora(path: PathLike, alpha: float | None = None) -> Lora:
    """A LoRA, DoRA (`dora_scale`) or LoKr for PixArt from a file, or from a PEFT or diffusers folder.

    Alpha is, in this order: the argument; the file's own `.alpha` numbers; adapter_config.json beside the file; the
    file's metadata; PEFT's default 8 for PEFT's names; the rank (scale 1) for all others, as their programs take it.

    Args:
        alpha: to use for every weight; a LoKr whose factors are whole has no rank to divide it by, and none.

    Raises:
        CheckpointError: if it is no LoRA, is made for another model, is of another kind, or is damaged.
    """
    file = open_weights(path)
    if (info := inspect_file(path)).kind != "lora":
        raise CheckpointError(f"{path} is not a LoRA but {info.describe()}")
    config = file.configs.get("adapter_config.json") or _adapter_metadata(file)
    if config and not file.described and not _from_config(str(path), _fits, config, file):
        logger.warning("%s: the adapter_config.json beside it is of another rank, and is not used", path)
        config = {}
    state = file.assemble({name: (name,) for name in file.tensors})
    return parse_lora(state, str(path), alpha, config, own_metadata(file))


def is_for_pixart(path: PathLike) -> bool:
    """Whether an adapter, of whatever kind, changes modules that PixArt has, going by its names.

    Raises:
        CheckpointError: as `inspect_file`.
    """
    return bool(host_state(dict.fromkeys(open_weights(path).tensors, Tensor())))


def parse_lora(
    state: Mapping[str, Tensor],
    name: str = "LoRA",
    alpha: float | None = None,
    adapter_config: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Lora:
    """A LoRA from its tensors; arguments and errors as in `load_lora`. `adapter_config` is PEFT's."""
    config = adapter_config or {}
    _require_plain(state, config, name)
    modules, left_out = _modules(state, name)
    deltas, diffs, krons, guessed = [], [], [], False
    for stem, tensors in modules.items():
        target, prefix = _target(stem)
        key, part, parts = _authors_key(target)
        for role in ("diff", "set", "diff_b", "up_bias"):
            if role in tensors and not (tensors[role].is_floating_point() and tensors[role].ndim):
                raise CheckpointError(f"{name} is damaged: {role} of {stem} holds no 16- or 32-bit numbers")
        if "diff" in tensors or "set" in tensors:
            value = tensors["set"] if "set" in tensors else tensors["diff"]
            diffs.append(Diff(key, part, parts, value, "set" in tensors))
        if "diff_b" in tensors:
            diffs.append(Diff(_bias(key), part, parts, tensors["diff_b"]))
        if any(role.startswith("lokr") for role in tensors):
            krons.append(_kron(tensors, key, part, parts, f"{name}: {stem}", alpha))
            continue
        if not {"up", "down"} & tensors.keys():
            if "size" in tensors:
                raise CheckpointError(f"{name} is damaged: {stem} has a dora_scale and no matrices")
            continue
        if not {"up", "down"} <= tensors.keys():
            raise CheckpointError(f"{name} is damaged: {stem} has no {'up' if 'down' in tensors else 'down'} matrix")
        up, down = (_matrix(tensors[role], f"{name}: the {role} matrix of {stem}") for role in ("up", "down"))
        if up.shape[1] != down.shape[0]:
            raise CheckpointError(f"{name} is damaged: {stem} has rank {down.shape[0]} and {up.shape[1]}")
        own = alpha
        if alpha is None and "alpha" in tensors:
            own = _single(tensors["alpha"], f"{name} is damaged: {stem}.alpha")
        guessed |= own is None and not config and _PEFT in prefix
        if own is None:
            own = _from_config(name, _peft_alpha, target, down.shape[0], config, prefix)
        size = _magnitude(tensors["size"], len(up), f"{name}: {stem}") if "size" in tensors else None
        delta = Delta(key, part, parts, up, down, float(own), size)
        deltas.append(delta)
        if "up_bias" in tensors:
            diffs.append(Diff(_bias(key), part, parts, tensors["up_bias"].float() * delta.scale))
    if guessed:
        logger.warning(
            "%s does not say its alpha, and PEFT's default %g is taken: keep its adapter_config.json beside it",
            *(name, PEFT_DEFAULT_ALPHA),
        )
    if left_out:
        logger.warning("%s: its part for the transformer is taken; left out are %s", name, summary(left_out, 3))
    changes: list[Delta | Kron] = [*deltas, *krons]
    places = [(change.key, change.part) for change in changes]
    if len(set(places)) < len(places):
        raise CheckpointError(f"{name} holds two LoRAs for the same weights: save the one alone")
    return Lora(name, tuple(deltas), dict(metadata or {}), tuple(diffs), tuple(left_out), tuple(krons))


def _magnitude(tensor: Tensor, rows: int, what: str) -> Tensor:
    """DoRA's sizes of the rows; raises OtherAdapterError on those of columns, as some trainers have them."""
    if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
        raise CheckpointError(f"{what}.dora_scale holds no finite numbers: take another copy")
    if tensor.numel() != rows or tensor.ndim and tensor.shape[0] != rows:
        raise OtherAdapterError(
            f"{what}.dora_scale is {list(tensor.shape)}, of a DoRA of another kind: the sizes of {rows} rows are wanted"
        )
    return tensor.flatten()


def _kron(
    tensors: Mapping[str, Tensor], key: str, part: int, parts: int, what: str, alpha: float | None = None
) -> Kron:
    """A LoKr's change of a weight: each factor whole, or as two matrices, and then scaled by alpha over their rank."""
    if "size" in tensors:
        raise OtherAdapterError(f"{what} is a LoKr with a dora_scale, which only ComfyUI's own loader knows")
    factors, ranks = [], []
    for factor in ("lokr_w1", "lokr_w2"):
        halves = [f"{factor}_a", f"{factor}_b"]
        if factor in tensors:
            found = tensors[factor]
            if found.ndim < 2 or not found.numel() or not found.is_floating_point():
                raise CheckpointError(f"{what}.{factor} is {list(found.shape)} of {found.dtype}: take another copy")
        elif all(half in tensors for half in halves):
            up, down = (_matrix(tensors[half], f"{what}.{half}") for half in halves)
            if up.shape[1] != down.shape[0]:
                raise CheckpointError(f"{what} is damaged: {factor} has rank {down.shape[0]} and {up.shape[1]}")
            found = up.float() @ down.float()
            ranks.append(down.shape[0])
        else:
            raise CheckpointError(f"{what} is damaged: it has no {factor}")
        factors.append(found)
    first = factors[0].flatten(1)
    if alpha is None and "alpha" in tensors:
        alpha = _single(tensors["alpha"], f"{what}.alpha")
    if ranks and alpha is not None:  # beside whole factors alpha means nothing
        first = first.float() * (alpha / ranks[-1])
    return Kron(key, part, parts, first, factors[1])


def _require_plain(state: Mapping[str, Tensor], config: Mapping[str, Any], name: str) -> None:
    """Raise what a file is if it is anything but a LoRA, DoRA or LoKr."""
    ways = [way for way, mark in _OTHER_WAYS.items() if any(re.search(mark, key) for key in state)]
    if config.get("use_dora") or any("lora_magnitude_vector" in key for key in state):
        ways = ["DoRA of PEFT"]
    kind = str(config.get("peft_type") or "LORA")
    start = str(config.get("init_lora_weights", ""))
    if kind != "LORA":
        ways = [f"{kind} of PEFT"]
    elif re.match("pissa|olora|corda", start, re.IGNORECASE):
        raise CheckpointError(
            f"{name} was begun by {start}, which changes the base model, too: save it as a plain LoRA"
        )
    if ways:
        way = "is a DoRA of PEFT, whose sizes are others than in files for ComfyUI: train or export it without use_dora"
        error = CheckpointError if "of PEFT" in ways[0] else OtherAdapterError
        raise error(f"{name} {way if 'DoRA' in ways[0] else f'is a {ways[0]}, not a plain LoRA'}")
    if not any(_ROLE.fullmatch(key) for key in state):
        raise CheckpointError(f"{name} is not a LoRA: it holds {summary(state, 3)}")


def _modules(state: Mapping[str, Tensor], name: str) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
    """Stem -> its tensors by role; and the names that are of something else than a transformer."""
    modules: dict[str, dict[str, Tensor]] = {}
    others: list[tuple[str, bool]] = []
    prefixes = set()
    for key, tensor in state.items():
        match = _ROLE.fullmatch(key)
        try:
            prefixes.add(_target(match["stem"])[1] if match else "")
        except KeyError:
            others.append((key, True))
            continue
        if not match:
            others.append((key, False))
            continue
        tensors = modules.setdefault(match["stem"], {})
        role = next(role for role in _ROLES if match[role])
        if role in tensors:
            raise CheckpointError(f"{name} holds two LoRAs for {match['stem']}: save the one alone")
        tensors[role] = tensor
    mine = [(key, is_lora) for key, is_lora in others if not modules or _is_ours(key, prefixes)]
    if strange := [match["stem"] for key, is_lora in mine if is_lora and (match := _ROLE.fullmatch(key))]:
        raise CheckpointError(f"{name} is a LoRA for another model: PixArt has no {summary(strange, 3)}")
    if whole := [key for key, _ in mine]:
        raise CheckpointError(
            f"{name} holds more than a plain LoRA: {summary(whole, 3)}. PEFT's modules_to_save and bias "
            "are such: merge it into its model and save that"
        )
    return modules, [key for key, _ in others]


def _is_ours(key: str, prefixes: set[str]) -> bool:
    """Whether a name that is no module of PixArt claims to be one of the transformer's: by where it stands."""
    rests = [key[len(prefix) :] for prefix in prefixes if key.startswith(prefix)]
    return any(rest.startswith(tuple(f"{head}{end}" for head in _HEADS for end in "._")) for rest in rests)


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
    """(module name in the authors' or diffusers' way, whatever stands before it). KeyError if it is none of PixArt's.

    Dotted names are PEFT's and diffusers'; flattened ones (`lora_transformer_blocks_0_…`) OneTrainer's and kohya's.
    What stands before is a name, never a number: that would be a part of a larger network.
    """
    end = "." if "." in stem else "_"
    parts = [part for part in stem.replace(".processor.", ".").split(end) if end == "_" or part[:1] != "_"]
    for start in range(len(parts)):
        if start and parts[start - 1].isdecimal():
            break
        rest = end.join(parts[start:])
        try:
            module = rest if end == "." or rest in _HEADS else _unflatten(rest)
            _authors_key(module)
        except KeyError:
            continue
        return module, end.join([*parts[:start], ""])
    raise KeyError(stem)


def _bias(key: str) -> str:
    return key.removesuffix(".weight") + ".bias"


def _unflatten(flat: str) -> str:
    """transformer_blocks_0_attn1_to_q -> transformer_blocks.0.attn1.to_q, the authors' names likewise."""
    match = re.fullmatch(r"(transformer_blocks|blocks)_(\d+)_(.+)", flat)
    if match:
        return f"{match[1]}.{match[2]}.{_FLAT_BLOCK[match[3]]}"
    return _FLAT_TOP[flat]


def _authors_key(module: str) -> tuple[str, int, int]:
    """Authors' weight name, part and number of parts for a module's name in either way. KeyError if there is none."""
    module = re.sub(r"\.to_out$", ".to_out.0", module)  # early diffusers named the output so
    name = module if module.endswith(_TABLES) else f"{module}.weight"
    try:
        return authors_name(name)
    except KeyError:
        diffusers_names(name)
        return name, 0, 1


def _peft_alpha(module: str, rank: int, config: Mapping[str, Any], prefix: str) -> float:
    """Alpha of a module that carries none itself; with rank-stabilised LoRA, the alpha that gives the same scale."""
    if not config:
        return PEFT_DEFAULT_ALPHA if _PEFT in prefix else float(rank)
    alpha = field(config, "lora_alpha", float, PEFT_DEFAULT_ALPHA, -1e6, 1e6)
    alpha = _by_pattern(config, "alpha_pattern", module, alpha)
    return alpha * math.sqrt(rank) if config.get("use_rslora") else float(alpha)


def _by_pattern(config: Mapping[str, Any], name: str, module: str, default: Any) -> Any:
    """PEFT's rule: a pattern is the end of a module's name, and the first that fits counts.

    Raises:
        ValueError: if one is no pattern, its value no number, or it repeats so much that a search could take for ever.
    """
    patterns = config.get(name) or {}
    check(name, patterns, dict)
    for pattern in patterns:
        if len(pattern) > 200 or len(re.findall(r"[*+{?]", pattern)) > 3 or re.search(r"\)[*+{?]", pattern):
            raise ValueError(f"{name} has {reprlib.repr(pattern)}, which is too involved for a module's name")
        try:
            fits = re.match(rf"(.*\.)?({pattern})$", module)
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"{name} has {reprlib.repr(pattern)}, which is no pattern: {error}") from error
        if fits:
            return field(patterns, pattern, float, low=-1e6, high=1e6)
    return default


def _from_config(name: str, read: Callable[..., Any], *arguments: Any) -> Any:
    """What `read` makes of PEFT's configuration; of a wrong value the LoRA is named."""
    try:
        return read(*arguments)
    except ValueError as error:
        raise CheckpointError(f"{name}: {error} in adapter_config.json or the file's metadata") from error


def _fits(config: Mapping[str, Any], file: WeightFile) -> bool:
    """Whether an adapter_config.json that only lies beside a file is of its ranks."""
    for key, info in file.tensors.items():
        match = _ROLE.fullmatch(key)
        if match and match["down"] and info.shape:
            rank = _by_pattern(config, "rank_pattern", match["stem"], config.get("r", info.shape[0]))
            if rank != info.shape[0]:
                return False
    return True


def _adapter_metadata(file: WeightFile) -> dict[str, Any]:
    """PEFT's configuration as diffusers' save functions put it into the file, each key behind `transformer.`."""
    try:
        values = parse_json(file.metadata.get("lora_adapter_metadata", "{}"))
        check("it", values, dict)
    except ValueError as error:
        raise CheckpointError(f"{file.path}: its metadata key lora_adapter_metadata is not JSON: {error}") from error
    ours = [key for key in values if key.startswith("transformer.")] or list(values)  # not the text encoder's
    return {key.split(".", 1)[-1]: values[key] for key in ours}


def host_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an adapter of any kind under names that ComfyUI's own LoRA loader knows a PixArt model by."""
    out = {}
    for key, tensor in state.items():
        # The longest name first: `to_out` is one as well as `to_out.0`.
        for end in reversed([match.start() for match in re.finditer(r"\.", key)]):
            try:
                target, _ = _target(key[:end])
                name, part, parts = _authors_key(target)
            except KeyError:
                continue
            ours = f"diffusion_model.{name}" if parts == 1 else f"transformer.{diffusers_names(name)[part]}"
            out[ours.removesuffix(".weight") + key[end:]] = tensor
            break
    return out
