"""CUDA graphs in ComfyUI: whether a sampling run may replay its networks is decided when it begins.

Replayed is what `PixArtUNet` and the PixArt controls compute, and nothing around it: guidance, wrappers, previews and
interrupts of the host run as ever, once a step. A graph holds kernels and addresses, so whatever changes a network from
call to call, or moves its weights, keeps a run from being replayed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import comfy.patcher_extension
import torch
from comfy.patcher_extension import WrappersMP
from torch import nn

from .attention import attention_for
from .hint import controls_of

log = logging.getLogger(__name__)

GRAPHS_OFF = "pixart_delta_graphs_off"
"""Attachment of a MODEL: whether its owner wants no graphs."""
REPLAYED = "pixart_delta_replayed"
"""In transformer_options of a run: its networks may be replayed."""

_PATCHES = ("patches", "patches_replace", "optimized_attention_override")
_AROUND = (WrappersMP.APPLY_MODEL, WrappersMP.DIFFUSION_MODEL)
"""Wrappers that may put another network in the place of ours: TorchCompileModel's does."""
_ASK_FOR_MEMORY = ("attention_sub_quad", "attention_split")
"""Attentions of the host whose steps depend on how much memory is free."""


def with_graphs(executor, guider, sigmas, extra_args, *rest, **kwargs):
    """Wrapper of a MODEL's sampling runs (`WrappersMP.SAMPLER_SAMPLE`): lets them be replayed where that is safe."""
    patcher = guider.model_patcher
    unet = patcher.model.diffusion_model
    options = extra_args["model_options"].setdefault("transformer_options", {})
    graphs = getattr(unet, "graphs", None)  # another node may have put a network of its own in this place
    if graphs is not None and graphs.works_on(patcher.load_device):
        moved = next(_network_obstacles(patcher, guider.conds), "")
        reason = next(_run_obstacles(patcher, options, guider.conds), moved)
        _say(unet, f"not used: {reason}" if reason else "used from a size's second step on")
        if moved:
            graphs.clear()
        if not reason:
            options[REPLAYED] = True
    return executor(guider, sigmas, extra_args, *rest, **kwargs)


def may_replay(options: dict) -> bool:
    """Whether a call with these transformer_options may be replayed: patches can come with one condition of a run."""
    return bool(options.get(REPLAYED)) and not any(map(options.get, _PATCHES)) and not torch.compiler.is_compiling()


def forget_graphs(patcher, unpatch_all: bool) -> None:
    """When a model leaves the device (`CallbacksMP.ON_DETACH`), and not when only its clone takes its place."""
    graphs = getattr(patcher.model.diffusion_model, "graphs", None)
    if unpatch_all and graphs is not None:
        graphs.clear()


def _say(unet: Any, text: str) -> None:
    """Log a decision, once until it is another."""
    if unet.decision != text:
        unet.decision = text
        log.info("CUDA graphs are %s", text)


def _run_obstacles(patcher, options: dict, conds: dict[str, list[dict]]) -> Iterator[str]:
    """What of a run cannot be replayed, in words for its user."""
    if patcher.get_attachment(GRAPHS_OFF):
        yield "the node PixArt-δ CUDA Graphs turns them off"
    for name in _PATCHES:
        if options.get(name):
            yield f"another node patches the model ({name})"
    for kind in _AROUND:
        if found := comfy.patcher_extension.get_all_wrappers(kind, options):
            yield f"another node wraps the model ({getattr(found[0], '__qualname__', found[0])})"
    if changed := [key for key in patcher.object_patches if key.startswith("diffusion_model")]:
        yield f"another node replaces a part of the model ({changed[0]})"
    if patcher.hook_patches or patcher.forced_hooks or patcher.injections or _any_hooks(conds):
        yield "hooks change the model while it samples"
    if patcher.get_additional_models_with_key("multigpu"):
        yield "several GPUs sample"
    if (attention := attention_for(patcher.load_device).__name__) in _ASK_FOR_MEMORY:
        yield f"ComfyUI's {attention} asks how much memory is free"


def _any_hooks(conds: dict[str, list[dict]]) -> bool:
    return any(cond.get("hooks") is not None for side in conds.values() for cond in side or ())


def _network_obstacles(patcher, conds: dict[str, list[dict]]) -> Iterator[str]:
    """What of the networks of a run."""
    networks = [(patcher, patcher.model.diffusion_model)]
    networks += [(control.control_model_wrapped, control.control_model) for control in controls_of(conds)]
    for owner, network in networks:
        yield from _moving(owner, network)


def _moving(patcher, network: nn.Module) -> Iterator[str]:
    if patcher.is_dynamic():
        yield (
            "ComfyUI's dynamic memory moves the weights (start it with --disable-dynamic-vram, or put the node "
            "PixArt-δ CUDA Graphs after the loader)"
        )
    for module in network.modules():
        if getattr(module, "weight_function", None) or getattr(module, "bias_function", None):
            yield "a LoRA or another node changes weights while the model runs, because it is not whole on the device"
        if "forward" in vars(module):
            yield f"another node replaces the forward of {type(module).__name__}"
    for weight in network.parameters():
        if type(weight) is not nn.Parameter:
            yield f"weights are stored as {type(weight).__name__}"
        if weight.device != patcher.load_device:
            yield f"the model is not whole on {patcher.load_device}"
