"""LoRA layers on a frozen PixArt: put there, taken out of the way, and read back (LCM-LoRA; PEFT)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..pixart_core.config import PixArtConfig
from ..pixart_core.convert import BLOCK_NAMES
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


def add_lora(model: PixArt, rank: int, alpha: float, seed: int = 0) -> PixArt:
    """Freeze a model and put trainable float32 LoRA layers on it, in place. They begin as no change.

    seed: of the down matrices.
    """
    from peft import LoraConfig, inject_adapter_in_model

    model.requires_grad_(False)
    for name, module in list(model.named_modules()):
        parent, _, last = name.rpartition(".")
        if last in FUSED:
            setattr(model.get_submodule(parent), last, Unfused(module, FUSED[last]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=TARGETS), model, _ADAPTER)
    for layer in _layers(model).values():
        layer.lora_A.float()  # PEFT gives them the type of the layer, in which small steps would be lost
        layer.lora_B.float()
        layer.cast_input_dtype_enabled = False  # autocast does it, without keeping a float32 copy of every input
    return model


def lora_outline(shape: PixArtConfig, rank: int, extra_forwards: int = 0) -> Outline:
    """The size of a training of LoRA layers: a down and an up matrix for every Linear and the patch convolution; q, k
    and v have their own."""
    base = PixArt(shape, device="meta")
    total = 0
    for name, module in base.named_modules():
        if hasattr(module, "weight"):
            rows, columns = module.weight.flatten(1).shape
            total += rows + columns * FUSED.get(name.rpartition(".")[2], 1)
    frozen = count_parameters(base)
    return Outline(rank * total, frozen, shape.depth, extra_forwards=extra_forwards, has_weight_gradients=False)


def read_lora(model: nn.Module) -> Lora | None:
    """The LoRA on a model; None if there is none."""
    deltas = [
        Delta(
            *_target(name),
            layer.lora_B[_ADAPTER].weight.flatten(1).detach(),
            layer.lora_A[_ADAPTER].weight.flatten(1).detach(),
            float(layer.lora_alpha[_ADAPTER]),
        )
        for name, layer in _layers(model).items()
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
    return {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}
