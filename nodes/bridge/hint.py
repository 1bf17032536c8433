"""Hints of a PixArt control: brought to the picture's size and into latents when a sampling run of our MODEL starts.

A CONTROL_NET is an object of ComfyUI's own class, which other packs ask for by its exact type. What that class cannot
do (shrink without aliasing, resize modes, a VAE of the loader) happens here, for the time of one run.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import comfy.model_management as memory
import torch
import torch.nn.functional as F
from torch import Tensor

from ...pixart_core.controlnet import ControlNetTransformer, hint_rgb
from ...pixart_core.resolution import resize, resize_and_crop
from ...pixart_core.vae import FACTOR
from .ui import say_once

RESIZE_MODES = ("crop", "stretch", "pad")
RESIZE, VAE = "resize", "vae"
"""Extra arguments of a CONTROL_NET (`set_extra_arg`, which its copies keep): a resize mode other than the first, and
the VAE for hints that came without one."""


def pixart_control(control) -> ControlNetTransformer | None:
    """The network in a CONTROL_NET of ours, whatever class another pack has put around it; None for any other."""
    net = getattr(getattr(control, "control_model", None), "net", None)
    return net if isinstance(net, ControlNetTransformer) else None


def with_ready_hints(executor, guider, sigmas, extra_args, callback, noise, *rest, **kwargs):
    """Wrapper of a MODEL's sampling runs (`WrappersMP.SAMPLER_SAMPLE`): readies the hints of their PixArt controls.

    Raises:
        ValueError: when a control does not fit the model, or its hint or VAE cannot be used.
    """
    patcher = guider.model_patcher
    with contextlib.ExitStack() as stack:
        for control in controls_of(guider.conds):
            require_fit(_net(control), patcher.model.diffusion_model.config)
            if _acts(control, sigmas) and noise.ndim == 4:
                stack.enter_context(_ready(control, noise.shape, patcher.load_device))
        return executor(guider, sigmas, extra_args, callback, noise, *rest, **kwargs)


def controls_of(conds: dict[str, list[dict]]) -> list:
    """The PixArt controls of a guider's conditionings, each once, chained ones too."""
    found = {}
    for cond in (cond for side in conds.values() for cond in side or ()):
        control = cond.get("control")
        while control is not None:
            found[id(control)] = control
            control = control.previous_controlnet
    return [control for control in found.values() if pixart_control(control) is not None]


def _net(control) -> ControlNetTransformer:
    """The network of one of `controls_of`."""
    return control.control_model.net


def _acts(control, sigmas: Tensor) -> bool:
    """Whether a step of this run lies between the control's start and end."""
    if control.timestep_range is None:
        return True
    start, end = control.timestep_range
    steps = sigmas[sigmas > 0]
    return bool(len(steps) and steps.max() >= end and steps.min() <= start)


@contextlib.contextmanager
def _ready(control, shape: torch.Size, device: torch.device) -> Iterator[None]:
    """Within it, a control and its copies on other devices hold the hint at the picture's size, and as its latent."""
    net, vae = _net(control), control.vae or control.extra_args.get(VAE)
    require_vae(vae, net.config.in_channels)
    copies = {device: control} | getattr(control, "multigpu_clones", {})
    before = [(copy, copy.cond_hint_original, copy.vae) for copy in copies.values()]
    picture = _picture(control, shape)
    latent = control.latent_format.process_in(_encode(vae, picture))
    try:
        for place, copy in copies.items():
            copy.cond_hint_original, copy.vae = picture, vae
            copy.cond_hint = latent.to(place, torch.float32)
        yield
    finally:
        for copy, original, own_vae in before:
            copy.cond_hint_original, copy.vae = original, own_vae


def _picture(control, shape: torch.Size) -> Tensor:
    """The hint (at most B, 3, H, W) at the size of the picture whose latents have this shape."""
    hints = control.cond_hint_original
    if len(hints) > shape[0]:
        say_once(
            f"there are {len(hints)} hint pictures for {shape[0]} {'picture' if shape[0] == 1 else 'pictures'}: "
            "the first are used",
            logging.WARNING,
        )
    mode = control.extra_args.get(RESIZE, RESIZE_MODES[0])
    return fit_hint(hint_rgb(hints[: shape[0]]), shape[-2] * FACTOR, shape[-1] * FACTOR, mode)


def _encode(vae, picture: Tensor) -> Tensor:
    loaded = memory.loaded_models(only_currently_used=True)
    latent = vae.encode(picture.movedim(1, -1).contiguous())  # a grey hint is one plane seen three times
    # A model that is gone leaves an entry of None in that list, on which ComfyUI's loading fails.
    memory.load_models_gpu([patcher for patcher in loaded if patcher is not None])
    if not latent.isfinite().all():
        raise ValueError("the autoencoder made NaN of the hint: its weights are damaged, or its dtype overflows")
    return latent


def require_vae(vae, channels: int) -> None:
    """Raise ValueError without a VAE, or with one whose latents have another number of channels."""
    if vae is None:
        raise ValueError(
            "PixArt's ControlNet reads its hint through the autoencoder: connect the vae input of the node that "
            "applies it, or, where that has none, of PixArt-δ ControlNet Loader"
        )
    if vae.latent_channels != channels:
        raise ValueError(
            f"the VAE of the hint makes latents of {vae.latent_channels} channels, PixArt-α/δ "
            f"takes {channels}: connect the VAE that decodes your pictures (Stable Diffusion 1.x's)"
        )


def require_fit(net: ControlNetTransformer, base) -> None:
    """Raise ValueError when a model of the configuration `base` is not the kind that this network steers."""
    own = net.config
    if (own.hidden_size, own.num_heads) != (base.hidden_size, base.num_heads):
        raise ValueError(
            f"this ControlNet is for a base model of hidden size {own.hidden_size} with {own.num_heads} "
            f"heads, the MODEL has {base.hidden_size} with {base.num_heads}: load the ControlNet that "
            "was trained on this model"
        )
    try:
        net.check_copies(base, len(net.controlnet))
    except ValueError as error:
        raise ValueError(
            f"this ControlNet does not fit a MODEL of {base.depth} blocks ({error}): load the ControlNet "
            "that was trained on this model"
        ) from error


def fit_hint(hint: Tensor, height: int, width: int, mode: str) -> Tensor:
    """(B, C, h, w) -> (B, C, height, width): "crop" covers and cuts, "stretch" distorts, "pad" adds black borders."""
    if mode == "crop" or hint.shape[-2:] == (height, width):
        return resize_and_crop(hint, height, width, average=True)
    if mode == "stretch":
        return resize(hint, height, width)
    scale = min(height / hint.shape[-2], width / hint.shape[-1])
    inner = [
        min(max(round(side * scale), 1), limit) for side, limit in zip(hint.shape[-2:], (height, width), strict=True)
    ]
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    return F.pad(resize(hint, *inner), (left, width - inner[1] - left, top, height - inner[0] - top))
