"""Trained weights as small files for use elsewhere: in our loaders, ComfyUI, diffusers, PEFT and the authors' code."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..pixart_core.checkpoint import read_pixart, save_controlnet, save_pixart
from ..pixart_core.config import PixArtConfig
from ..pixart_core.controlnet import ControlNetTransformer
from ..pixart_core.delta import Lora, save_lora
from ..pixart_core.identify import METADATA_KEY
from ..pixart_core.model import PixArt
from ..pixart_core.modelspec import modelspec
from ..pixart_core.saving import save_json, save_weights
from .checkpoint import restore
from .config import ConfigError, ExportConfig, TrainConfig
from .lora import adapter_kind, adapter_state, read_lora
from .task import DTYPES, Task

LAYOUTS = {
    "pixart": ("comfyui", "diffusers"),
    "lora": ("comfyui", "peft"),
    "controlnet": ("comfyui", "diffusers", "joint"),
}
"""What each kind of network can be written as."""

# The modules of diffusers' transformer that have LoRA layers, as the authors' script names them.
_PEFT_TARGETS = [
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "proj_out",
    "ff.net.0.proj",
    "ff.net.2",
    "proj",
    "linear",
    "linear_1",
    "linear_2",
]


def export(config: ExportConfig) -> Path:
    """Write a run's weights in a layout; returns the path."""
    task, trained, run, step = restore(config.run, config.base)
    name = default_name(task.model, config.layout)
    path = Path(config.output) if config.output else run.path / "exports" / name
    return write_result(task, trained, path, config.layout, DTYPES[config.dtype], config.average, step)


def kind_of(model: nn.Module) -> str:
    """pixart, lora or controlnet."""
    if isinstance(model, ControlNetTransformer):
        return "controlnet"
    return "lora" if adapter_kind(model) else "pixart"


def default_name(model: nn.Module, layout: str = "comfyui") -> str:
    """The name of the file or folder that a layout is."""
    kind = kind_of(model)
    if layout == "comfyui":
        return f"{kind}.safetensors"
    is_folder = layout == "peft" or kind == "pixart"
    return f"{kind}_{layout}" if is_folder else f"{kind}_{layout}.safetensors"


def write_result(
    task: Task,
    config: TrainConfig,
    path: Path,
    layout: str = "comfyui",
    dtype: torch.dtype = torch.float16,
    average: bool = True,
    step: int | None = None,
) -> Path:
    """Write what a training made; see `write_weights`. config, step: its settings, and after which step it was taken,
    for the description in the file.

    Folders and files are described by their names alone, because the file leaves this machine.
    """
    named = {each.name for each in fields(config) if each.metadata.get("path")}
    settings = {name: Path(value).name if name in named else value for name, value in config.to_dict().items()}
    settings.pop("sample_prompts")  # somebody's own words
    description: dict[str, Any] = {"training": {"command": task.command, "step": step, "config": settings}}
    if task.hint:
        description["hint"] = task.hint
    description |= task.colours
    return write_weights(task.result(average), path, layout, dtype, description, config.base)


def write_weights(
    model: PixArt | ControlNetTransformer,
    path: Path,
    layout: str,
    dtype: torch.dtype,
    description: Mapping[str, Any],
    base: str,
) -> Path:
    """Write a trained network.

    Args:
        model: a PixArt, one with LoRA layers, or a ControlNet.
        path: .safetensors file, or folder for the layouts peft and diffusers' transformer.
        layout: one of `LAYOUTS`.
        dtype: of the weights in the file.
        description: what the file says of itself.
        base: checkpoint that the joint layout takes the frozen base from.

    Raises:
        ConfigError: if the network has no such layout.
        CheckpointError: if it cannot be written.
    """
    kind = kind_of(model)
    known = LAYOUTS[kind]
    if layout not in known:
        raise ConfigError(f"layout is {layout!r}: a {kind} is written as {', '.join(known[:-1])} or {known[-1]}")
    adapter = adapter_kind(model)
    if adapter in ("dora", "lokr"):
        if layout != "comfyui":
            raise ConfigError(f"layout is {layout!r}: a {adapter} is written as comfyui alone")
        state = {name: tensor.to(dtype) for name, tensor in adapter_state(model).items()}
        about = {**description, "kind": "lora", "adapter": adapter}
        return save_weights(state, path, {METADATA_KEY: json.dumps(about), **modelspec("lora", about)})
    if (found := read_lora(model)) is not None:
        lora = _cast(found, dtype)
        if layout == "comfyui":
            return save_lora(lora, path, description)
        return save_peft(lora, path, description, model.config)
    names = "diffusers" if layout == "diffusers" else "authors"
    if isinstance(model, PixArt):
        return save_pixart(model, path, names, dtype=dtype, metadata=description)
    joint = read_pixart(base)[1] if layout == "joint" else None
    return save_controlnet(model, path, names, dtype=dtype, metadata=description, base=joint)


def save_peft(lora: Lora, folder: Path, description: Mapping[str, Any], shape: PixArtConfig) -> Path:
    """Write a LoRA as the folder that `PeftModel.from_pretrained(diffusers' PixArt transformer, folder)` reads.

    shape: of the model that the LoRA is of, for that of convolutions.
    """
    from peft import LoraConfig

    state = {}
    for name, tensor in lora.to_state_dict().items():
        if not name.endswith(".alpha"):
            state["base_model.model." + name.removeprefix("transformer.")] = tensor
    down, up = (f"base_model.model.pos_embed.proj.lora_{side}.weight" for side in "AB")
    state[down] = state[down].view(-1, shape.in_channels, shape.patch_size, shape.patch_size)
    state[up] = state[up][:, :, None, None]
    folder.mkdir(parents=True, exist_ok=True)
    about = modelspec("lora", description)
    save_weights(state, folder / "adapter_model.safetensors", {METADATA_KEY: json.dumps(description), **about})
    alpha = lora.deltas[0].alpha
    adapter = LoraConfig(r=lora.rank, lora_alpha=alpha, target_modules=_PEFT_TARGETS, inference_mode=True)
    values = {**adapter.to_dict(), "target_modules": _PEFT_TARGETS}  # as a list: PEFT's own is an unordered set
    save_json(values, folder / "adapter_config.json")
    return folder


def _cast(lora: Lora, dtype: torch.dtype) -> Lora:
    deltas = (dataclasses.replace(delta, up=delta.up.to(dtype), down=delta.down.to(dtype)) for delta in lora.deltas)
    return dataclasses.replace(lora, deltas=tuple(deltas))
