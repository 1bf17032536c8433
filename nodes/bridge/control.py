"""CONTROL_NET: the ControlNet-Transformer in ComfyUI's own class, so that stock nodes apply and chain it."""

from __future__ import annotations

import functools
import weakref

import comfy.controlnet
import comfy.latent_formats
import comfy.model_management as memory
import comfy.ops
import numpy as np
import torch
import torch.nn.functional as F
from comfy_execution.graph_utils import ExecutionBlocker
from PIL import Image
from torch import Tensor, nn

from ...pixart_core.checkpoint import read_controlnet
from ...pixart_core.controlnet import WIRINGS, ControlNetTransformer, hint_rgb
from ...pixart_core.identify import inspect_file
from ...pixart_core.resolution import resize_and_crop
from ...pixart_core.vae import FACTOR
from .model import PixArtDeltaConfig, PixArtUNet, aspect_ratio, attention_for, load_model, pick_dtypes
from .sampling import watch_sampling

RESIZE_MODES = ("crop", "stretch", "pad")


class HostedControl(nn.Module):
    """A ControlNet of any wiring with the forward that ComfyUI's ControlNet calls."""

    def __init__(self, net: ControlNetTransformer, dtype):
        super().__init__()
        self.net, self.dtype = net, dtype

    def forward(
        self, x, hint, timesteps, context, base, exact_timesteps, options, c_size=None, c_ar=None, c_mask=None
    ) -> dict:
        """Residuals under "input": ComfyUI's samplers merge and batch them, `PixArtUNet` adds i after block i.

        Args:
            timesteps: rounded to the compute dtype by ComfyUI, therefore not used.
            base: weak reference to the `PixArtUNet` that is sampling.
        """
        attention = functools.partial(attention_for(x.device), transformer_options=options)
        return {
            "input": self.net(
                base(),
                x,
                exact_timesteps,
                context,
                hint,
                c_mask,
                c_size,
                aspect_ratio(x, c_size, c_ar),
                attention=attention,
            )
        }


class PixArtControl(comfy.controlnet.ControlNet):
    """ComfyUI's ControlNet around ours. The base model, which embeds the hint, is the one that is sampling."""

    def __init__(self, net: HostedControl | None = None, load_device=None):
        super().__init__(
            net,
            compression_ratio=1,
            latent_format=comfy.latent_formats.SD15(),
            load_device=load_device,
            extra_conds=["c_size", "c_ar", "c_mask"],
        )
        self.resize = RESIZE_MODES[0]

    def copy(self) -> PixArtControl:
        other = PixArtControl(load_device=self.load_device)
        other.control_model, other.control_model_wrapped = self.control_model, self.control_model_wrapped
        other.resize = self.resize
        self.copy_to(other)
        return other

    def pre_run(self, model, percent_to_timestep_function) -> None:
        _require_fit(self.control_model.net, model.diffusion_model)
        super().pre_run(model, percent_to_timestep_function)
        self.manual_cast_dtype = model.get_dtype_inference()
        self.set_extra_arg("base", weakref.ref(model.diffusion_model))

    def cleanup(self) -> None:
        for name in ("base", "exact_timesteps", "options"):
            self.extra_args.pop(name, None)
        super().cleanup()

    def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
        start, end = self.timestep_range
        size = x_noisy.shape[-2:]
        if end <= t[0] <= start and (self.cond_hint is None or self.cond_hint.shape[-2:] != size):
            self.cond_hint = self._encode_hint(*size).to(x_noisy.device, self.manual_cast_dtype)
        self.set_extra_arg("exact_timesteps", self.model_sampling_current.timestep(t).float())
        self.set_extra_arg("options", transformer_options)
        return super().get_control(x_noisy, t, cond, batched_number, transformer_options)

    def _encode_hint(self, height: int, width: int) -> Tensor:
        """The hint picture as the latent (B, 4, height, width) that the base model embeds."""
        channels = self.control_model.net.config.in_channels
        if self.vae is None:
            raise ValueError(
                "PixArt's ControlNet reads its hint through the autoencoder: connect the vae input of the "
                "node that applies it"
            )
        if self.vae.latent_channels != channels:
            raise ValueError(
                f"the VAE of the hint makes latents of {self.vae.latent_channels} channels, PixArt-α/δ "
                f"takes {channels}: connect the VAE that decodes your pictures (Stable Diffusion 1.x's)"
            )
        picture = fit_hint(hint_rgb(self.cond_hint_original), height * FACTOR, width * FACTOR, self.resize)
        loaded = memory.loaded_models(only_currently_used=True)
        latent = self.vae.encode(picture.movedim(1, -1))
        memory.load_models_gpu(loaded)
        if not latent.isfinite().all():
            raise ValueError("the autoencoder made NaN of the hint: its weights are damaged, or its dtype overflows")
        return self.latent_format.process_in(latent)


def _require_fit(net: ControlNetTransformer, base) -> None:
    """Raise ValueError when the model that is sampling is not the kind that this control steers."""
    if not isinstance(base, PixArtUNet):
        raise ValueError(
            f"a PixArt ControlNet steers models of PixArt-δ Model Loader only, and this MODEL holds a "
            f"{type(base).__name__}: load the transformer with PixArt-δ Model Loader"
        )
    own, other = net.config, base.config
    if (own.hidden_size, own.num_heads) != (other.hidden_size, other.num_heads):
        raise ValueError(
            f"this ControlNet is for a base model of hidden size {own.hidden_size} with {own.num_heads} "
            f"heads, the MODEL has {other.hidden_size} with {other.num_heads}: load the ControlNet that "
            "was trained on this model"
        )
    try:
        net.check_copies(other, len(net.controlnet))
    except ValueError as error:
        raise ValueError(
            f"this ControlNet does not fit a MODEL of {other.depth} blocks ({error}): load the ControlNet "
            "that was trained on this model"
        ) from error


def fit_hint(hint: Tensor, height: int, width: int, mode: str) -> Tensor:
    """(B, C, h, w) -> (B, C, height, width): "crop" covers and cuts, "stretch" distorts, "pad" adds black borders."""
    if mode == "crop" or hint.shape[-2:] == (height, width):
        return resize_and_crop(hint, height, width)
    if mode == "stretch":
        return F.interpolate(hint, (height, width), mode="bilinear")
    scale = min(height / hint.shape[-2], width / hint.shape[-1])
    inner = [
        min(max(round(side * scale), 1), limit) for side, limit in zip(hint.shape[-2:], (height, width), strict=True)
    ]
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    return F.pad(
        F.interpolate(hint, inner, mode="bilinear"), (left, width - inner[1] - left, top, height - inner[0] - top)
    )


def load_control(path: str, dtype: str = "default") -> PixArtControl:
    """A CONTROL_NET from any file of `pixart_core.read_controlnet`.

    Raises:
        pixart_core.CheckpointError: when the file is something else or damaged; says what it is.
    """
    config, copies, wiring, state = read_controlnet(path)
    device = memory.get_torch_device()
    weights, _ = pick_dtypes(dtype, device, state, PixArtDeltaConfig.supported_inference_dtypes)
    net = WIRINGS[wiring](config, copies, dtype=weights, operations=comfy.ops.manual_cast).eval()
    control = PixArtControl(HostedControl(net, weights), device)
    net.load_state_dict(state, strict=True, assign=control.control_model_wrapped.is_dynamic())
    return control


def load_base(path: str, dtype: str):
    """The MODEL in a joint file; for a file without one, what stops the nodes that would use it, with a reason."""
    if inspect_file(path).kind == "pixart+controlnet":
        return watch_sampling(load_model(path, dtype))
    return ExecutionBlocker(f"{path} holds a ControlNet alone: take the MODEL from PixArt-δ Model Loader")


def apply_control(
    positive: list,
    negative: list,
    control: PixArtControl,
    image: Tensor,
    vae,
    strength: float,
    start_percent: float,
    end_percent: float,
    resize: str,
) -> tuple[list, list]:
    """Both conditionings with the control on top of those they already have; at strength 0 unchanged.

    Args:
        image: (B, H, W, C), one hint for all or one for each picture of the batch.

    Raises:
        ValueError: on a CONTROL_NET that is not ours, or a hint that cannot be used.
    """
    if not isinstance(control, PixArtControl):
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
                copy.resize = resize
                applied[previous] = copy.set_previous_controlnet(previous)
            out.append([caption, {**values, "control": applied[previous], "control_apply_to_uncond": False}])
        return out

    return steered(positive), steered(negative)


def read_picture(path: str) -> Tensor:
    """A picture file as IMAGE (1, H, W, 3)."""
    with Image.open(path) as picture:
        return torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32) / 255)[None]
