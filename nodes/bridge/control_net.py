"""CONTROL_NET: the ControlNet-Transformer in ComfyUI's own class, so that stock nodes apply and chain it."""

from __future__ import annotations

import functools
import weakref
from typing import Any

import comfy.controlnet
import comfy.latent_formats
import comfy.model_management as memory
import comfy.ops
import torch
from comfy_execution.graph_utils import ExecutionBlocker
from torch import Tensor, nn

from ...pixart_core.checkpoint import read_controlnet
from ...pixart_core.controlnet import WIRINGS, ControlNetTransformer, hint_rgb
from ...pixart_core.identify import inspect_file
from .attention import attention_for
from .conds import aspect_ratio
from .graphs import may_replay
from .guider import watch_sampling
from .hint import RESIZE, RESIZE_MODES, VAE, pixart_control
from .model import PixArtDeltaConfig, PixArtUNet, load_model, pick_dtypes


class HostedControl(nn.Module):
    """A ControlNet of any wiring with the forward that ComfyUI's ControlNet calls."""

    def __init__(self, net: ControlNetTransformer, dtype, hint: str = ""):
        super().__init__()
        self.net, self.dtype = net, dtype
        self.hint = hint
        """What it was trained on, if its file remembers it."""

    def forward(
        self,
        x,
        hint,
        timesteps,
        context,
        control_base=None,
        transformer_options=None,
        c_size=None,
        c_ar=None,
        c_mask=None,
        **_others,
    ) -> dict:
        """Residuals under "input", which ComfyUI's samplers merge and batch; `PixArtUNet` adds i after block i.

        Each is a map (B, hidden, h, w) of the tokens, because other packs multiply residuals by masks of pictures.

        Args:
            control_base: weak reference to the model that is sampling, whose first block and embedders are used.
            _others: what nodes tell ControlNets of other families, such as `control_type`.

        Raises:
            ValueError: when the model that is sampling was not loaded by us: it would ignore the control.
        """
        model = control_base() if control_base is not None else None
        if model is None:
            raise ValueError(
                "a PixArt ControlNet steers models of PixArt-δ Model Loader only: load the transformer with it"
            )
        unet, options = _on_device(model, x.device), transformer_options or {}
        text = context.to(model.product_dtype())
        inputs = x.float(), timesteps, text, hint.float(), c_mask, c_size, aspect_ratio(c_size, c_ar)
        if may_replay(options):
            kept: tuple[Any, Any] = weakref.proxy(self), weakref.proxy(unet)  # a graph keeps no network
            compute = functools.partial(HostedControl._compute, *kept, {})
            residuals = unet.graphs(f"control {id(self)}", compute, inputs, unet.graphs.state([unet, self.net]))
        else:
            residuals = self._compute(unet, options, *inputs)
        rows = -(-x.shape[-2] // unet.config.patch_size)
        return {"input": [None if tokens is None else token_map(tokens, rows) for tokens in residuals]}

    def _compute(self, unet: PixArtUNet, options: dict, x: Tensor, *inputs: Tensor | None) -> list[Tensor | None]:
        attention = functools.partial(attention_for(x.device), transformer_options=options)
        return list(self.net(unet, x, *inputs, attention=attention))


def token_map(tokens: Tensor, rows: int) -> Tensor:
    """(B, rows · columns, C) -> (B, C, rows, columns), a view; `PixArtUNet` takes it back."""
    return tokens.unflatten(1, (rows, -1)).movedim(-1, 1)


def _on_device(model, device: torch.device) -> PixArtUNet:
    """The transformer of a model, or its copy on another device where ComfyUI samples on several."""
    for patcher in model.current_patcher.get_additional_models_with_key("multigpu"):
        if patcher.load_device == device:
            return patcher.model.diffusion_model
    return model.diffusion_model


def load_control(path: str, dtype: str = "default", vae=None):
    """A CONTROL_NET, of ComfyUI's own class, from any file of `pixart_core.read_controlnet`.

    Args:
        vae: reads the hints of nodes that apply the control without a VAE.

    Raises:
        pixart_core.CheckpointError: when the file is something else or damaged; says what it is.
    """
    config, copies, wiring, state = read_controlnet(path)
    device = memory.get_torch_device()
    weights, _ = pick_dtypes(dtype, device, state, PixArtDeltaConfig.supported_inference_dtypes)
    net = WIRINGS[wiring](config, copies, dtype=weights, operations=comfy.ops.manual_cast).eval()
    control = comfy.controlnet.ControlNet(
        HostedControl(net, weights, str(inspect_file(path).metadata.get("hint", ""))),
        compression_ratio=1,
        latent_format=comfy.latent_formats.SD15(),
        load_device=device,
        # ComfyUI rounds the timestep to this dtype; HostedControl computes in the model's.
        manual_cast_dtype=torch.float32,
        extra_conds=["control_base", "transformer_options", "c_size", "c_ar", "c_mask"],
    )
    # For hints that ComfyUI itself resizes: those of areas. The others see `bridge.hint`.
    control.upscale_algorithm = "area"
    if vae is not None:
        control.set_extra_arg(VAE, vae)
    net.load_state_dict(state, strict=True, assign=control.control_model_wrapped.is_dynamic())
    return control


def hint_of(control) -> str:
    """What a CONTROL_NET was trained on; "" if its file does not say it, or it is none of ours."""
    return getattr(getattr(control, "control_model", None), "hint", "")


def load_base(path: str, dtype: str):
    """The MODEL in a joint file; for a file without one, what stops the nodes that would use it, with a reason."""
    if inspect_file(path).kind == "pixart+controlnet":
        return watch_sampling(load_model(path, dtype))
    return ExecutionBlocker(f"{path} holds a ControlNet alone: take the MODEL from PixArt-δ Model Loader")


def apply_control(
    positive: list,
    negative: list,
    control,
    image: Tensor,
    vae,
    strength: float,
    start_percent: float,
    end_percent: float,
    resize: str,
) -> tuple[list, list]:
    """Both conditionings with the control on top of those they already have; at strength 0 unchanged.

    Args:
        control: a CONTROL_NET.
        image: (B, H, W, C), one hint for all or one for each picture of the batch.

    Raises:
        ValueError: on a CONTROL_NET that is not ours, or a hint that cannot be used.
    """
    if pixart_control(control) is None:
        raise ValueError(
            f"this CONTROL_NET is a {type(control).__name__}, not a PixArt ControlNet: load one with "
            "PixArt-δ ControlNet Loader, or use the stock node Apply ControlNet"
        )
    if start_percent > end_percent:
        raise ValueError(f"start_percent {start_percent:g} lies after end_percent {end_percent:g}: swap them")
    hint = hint_rgb(image.movedim(-1, 1))
    if strength == 0:
        return positive, negative
    applied: dict = {}

    def steered(conditioning: list) -> list:
        out = []
        for caption, values in conditioning:
            previous = values.get("control")
            if previous not in applied:
                copy = control.copy().set_cond_hint(hint, strength, (start_percent, end_percent), vae=vae)
                if resize != RESIZE_MODES[0]:
                    copy.set_extra_arg(RESIZE, resize)
                applied[previous] = copy.set_previous_controlnet(previous)
            out.append([caption, {**values, "control": applied[previous], "control_apply_to_uncond": False}])
        return out

    return steered(positive), steered(negative)
