"""LoRA layers on a frozen PixArt: put there, taken out of the way, and read back (LCM-LoRA; PEFT)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..pixart_core.config import PixArtConfig
from ..pixart_core.convert import BLOCK_NAMES, diffusers_names
from ..pixart_core.delta import Delta, Lora
from ..pixart_core.model import PixArt
from .task import Outline, count_parameters

FUSED = {name.rpartition(".")[2]: len(parts) for name, parts in BLOCK_NAMES.items() if len(parts) > 1}
"""Linears that diffusers' models hold as several (qkv, kv_linear), and how many."""
TARGETS = ["rows.0", "rows.1", "rows.2", "proj", "q_linear", "fc1", "fc2", "linear", "t_block.1", "mlp.0", "mlp.2"]
"""Every Linear and the patch convolution, by the end of its name: what the authors' list of diffusers' names covers."""
_ADAPTER = "default"


class Unfused(nn.Module):
    """A fused Linear as Linears of its rows: q, k and v get LoRA layers of their own, as in the authors' training."""

    def __init__(self, fused: nn.Linear, parts: int):
        super().__init__()
        self.rows = nn.ModuleList()
        for weight, bias in zip(fused.weight.chunk(parts), fused.bias.chunk(parts), strict=True):
            linear = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
            linear.weight, linear.bias = (nn.Parameter(each, requires_grad=False) for each in (weight, bias))
            self.rows.append(linear)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([linear(x) for linear in self.rows], dim=-1)


def add_lora(model: PixArt, rank: int, alpha: float, seed: int = 0, kind: str = "lora") -> PixArt:
    """Freeze a model and put trainable float32 LoRA layers on it, in place. They begin as no change.

    Args:
        seed: of what does not begin as zero.
        kind: one of `config.LORA_KINDS`.
    """
    from peft import LoKrConfig, LoraConfig, inject_adapter_in_model

    model.requires_grad_(False)
    for name, module in list(model.named_modules()):
        parent, _, last = name.rpartition(".")
        if last in FUSED:
            setattr(model.get_submodule(parent), last, Unfused(module, FUSED[last]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "lokr":
            config = LoKrConfig(r=rank, alpha=alpha, target_modules=TARGETS)
        else:
            config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=TARGETS, use_dora=kind == "dora")
        inject_adapter_in_model(config, model, _ADAPTER)
    for layer in _layers(model).values():
        for name in (*layer.adapter_layer_names, "lora_magnitude_vector"):
            if isinstance(part := getattr(layer, name, None), (nn.ModuleDict, nn.ParameterDict)):
                part.float()  # PEFT gives them the type of the layer, in which small steps would be lost
        layer.cast_input_dtype_enabled = False  # autocast does it, without keeping a float32 copy of every input
        layer.eval()  # LoKr's draws a number at each step in training, for a dropout that it does not have
    return model


def lora_outline(shape: PixArtConfig, rank: int, extra_forwards: int = 0, kind: str = "lora") -> Outline:
    """The size of a training of LoRA layers: a down and an up matrix for every Linear and the patch convolution; q, k
    and v have their own. Others: see `_layer_size`."""
    base = PixArt(shape, device="meta")
    total = 0
    for name, module in base.named_modules():
        if hasattr(module, "weight"):
            parts = FUSED.get(name.rpartition(".")[2], 1)
            total += parts * _layer_size(module.weight[: len(module.weight) // parts], rank, kind)
    frozen = count_parameters(base)
    return Outline(total, frozen, shape.depth, extra_forwards=extra_forwards, has_weight_gradients=False)


def _layer_size(weight: Tensor, rank: int, kind: str) -> int:
    """Numbers that are trained for a weight."""
    rows, columns = weight.flatten(1).shape
    if kind != "lokr":
        return rank * (rows + columns) + (rows if kind == "dora" else 0)
    from peft.tuners.lokr.layer import factorization

    kernel = columns // weight.shape[1]
    (out_l, out_k), (in_m, in_n) = factorization(rows, -1), factorization(weight.shape[1], -1)
    whole = rank >= max(out_k, in_n) / 2
    return out_l * in_m + (out_k * in_n * kernel if whole else rank * (out_k + in_n * kernel))


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of the layers on a model as ComfyUI's loader names and reads them; empty if there are none."""
    lora = read_lora(model)
    out = {} if lora is None else lora.to_state_dict()
    for name, layer in _layers(model).items():
        key, part, _ = _target(name)
        stem = f"transformer.{diffusers_names(key)[part].removesuffix('.weight')}"
        if _is_dora(layer):
            out[f"{stem}.dora_scale"] = _dora_scale(layer)
        if _is_lokr(layer):
            out |= {f"{stem}.{each}": value for each, value in _lokr_parts(layer).items()}
    return out


def adapter_kind(model: nn.Module) -> str:
    """Which of `config.LORA_KINDS` is on a model; "" if none is."""
    layer = next(iter(_layers(model).values()), None)
    return "" if layer is None else "lokr" if _is_lokr(layer) else "dora" if _is_dora(layer) else "lora"


def _is_dora(layer: nn.Module) -> bool:
    return _ADAPTER in getattr(layer, "lora_magnitude_vector", ())


def _is_lokr(layer: nn.Module) -> bool:
    return hasattr(layer, "lokr_w1")


@torch.no_grad()
def _dora_scale(layer: Any) -> Tensor:
    """Sizes of a layer's rows, (rows, 1) or, of a convolution, (rows, 1, 1, 1).

    DoRA is m · (W + ΔW) / |W + ΔW|. ComfyUI's loader divides by |W|, so what it multiplies by is m · |W| / |W + ΔW|.
    """
    weight = layer.get_base_layer().weight.float()
    change = layer.lora_B[_ADAPTER].weight.flatten(1) @ layer.lora_A[_ADAPTER].weight.flatten(1)
    changed = weight.flatten(1) + layer.scaling[_ADAPTER] * change.to(weight.device)
    ratio = weight.flatten(1).norm(dim=1) / changed.norm(dim=1)
    size = layer.lora_magnitude_vector[_ADAPTER].weight.flatten() * ratio
    return size.view(-1, *[1] * (weight.ndim - 1))


@torch.no_grad()
def _lokr_parts(layer: Any) -> dict[str, Tensor]:
    """A layer's factors by name. Its scale is part of the first: readers take none beside whole factors, and divide
    alpha by the rank beside others, for which it is the rank."""
    names = ("lokr_w1", "lokr_w2", "lokr_w2_a", "lokr_w2_b")
    parts = {name: getattr(layer, name)[_ADAPTER].detach() for name in names if _ADAPTER in getattr(layer, name)}
    parts["lokr_w1"] = parts["lokr_w1"] * layer.scaling[_ADAPTER]
    if "lokr_w2_b" in parts:
        parts["alpha"] = torch.tensor(float(len(parts["lokr_w2_b"])))
    return parts


def read_lora(model: nn.Module) -> Lora | None:
    """The low-rank matrices on a model, of a LoRA or DoRA; None if there are none."""
    deltas = [
        Delta(
            *_target(name),
            layer.lora_B[_ADAPTER].weight.flatten(1).detach(),
            layer.lora_A[_ADAPTER].weight.flatten(1).detach(),
            float(layer.lora_alpha[_ADAPTER]),
        )
        for name, layer in _layers(model).items()
        if not _is_lokr(layer)
    ]
    return Lora("training", tuple(deltas)) if deltas else None


class WithoutLora:
    """A model as it was before its LoRA layers, to call beside it: one set of weights serves as both networks."""

    def __init__(self, model: PixArt):
        self.model = model

    def __call__(self, *args, **kwargs) -> Tensor:
        with _disabled(self.model):
            return self.model(*args, **kwargs)

    def null_caption(self, batch: int, length: int | None = None) -> Tensor:
        return self.model.null_caption(batch, length)


@contextlib.contextmanager
def _disabled(model: nn.Module) -> Iterator[None]:
    layers = _layers(model).values()
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def _target(name: str) -> tuple[str, int, int]:
    """The weight that a layer changes, and which of how many groups of its rows."""
    fused, found, part = name.partition(".rows.")
    return (f"{fused}.weight", int(part), FUSED[fused.rpartition(".")[2]]) if found else (f"{name}.weight", 0, 1)


def _layers(model: nn.Module) -> dict[str, Any]:
    """PEFT's layers by the name of what they replace."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "lora_A") or _is_lokr(module)}
