"""MODEL: `pixart_core.PixArt` as one of ComfyUI's own models."""

from __future__ import annotations

import dataclasses
import functools
import logging
import weakref
from pathlib import Path
from typing import Any

import comfy.conds
import comfy.model_base
import comfy.model_management as memory
import comfy.model_patcher
import comfy.patcher_extension
import comfy.sd
import comfy.supported_models
import comfy.utils
import torch
from comfy.cli_args import args
from comfy.patcher_extension import CallbacksMP, WrapperExecutor, WrappersMP
from torch import Tensor, nn

from ...pixart_core.checkpoint import read_pixart
from ...pixart_core.config import PixArtConfig
from ...pixart_core.delta import require_fit
from ...pixart_core.errors import CheckpointError
from ...pixart_core.functional import preferred_dtype
from ...pixart_core.graphs import Graphs
from ...pixart_core.identify import FileInfo, inspect_file, is_distilled, is_fine_tuned, is_scaled_linear
from ...pixart_core.lora import OtherAdapterError, host_state, load_lora
from ...pixart_core.memory import GB, amount, memory_plan
from ...pixart_core.model import PixArt
from ...pixart_core.schedule import alphas_cumprod
from ...pixart_core.weightfile import open_weights
from .attention import attention_for
from .conds import aspect_ratio, caption_conds, size_conds
from .family import SOURCE
from .graphs import forget_graphs, may_replay, with_graphs
from .hint import with_ready_hints
from .patches import BlockPatches, compares_sides, without_effect
from .preview import latent_format
from .ui import say

DISTILLED = "pixart_delta_distilled"
_KNOWN_PATCHES = "pixart_delta_known_patches"
"""Attachment of our MODELs: whether the file holds an LCM model (None: unknown)."""


PRODUCT_DTYPE = "pixart_delta_product_dtype"
"""In transformer_options: what the blocks' products are computed in."""

SCALED_LINEAR = {"beta_schedule": "linear", "linear_start": 0.00085, "linear_end": 0.012, "timesteps": 1000}
"""What ComfyUI calls the noise schedule of the original LCM; its "linear" is in the roots of β."""


class PixArtUNet(PixArt):
    """`pixart_core.PixArt` with the forward that ComfyUI calls: its attention, wrappers, patches and control."""

    def __init__(self, config: PixArtConfig, dtype=None, device=None, operations=nn, **_unet_config):
        super().__init__(config, dtype=dtype, device=device, operations=operations)
        self.dtype = dtype
        # What nodes read of a diffusion model; the names are those of ComfyUI's own PixArt class.
        self.in_channels, self.out_channels = config.in_channels, config.out_channels
        self.patch_size, self.num_heads = config.patch_size, config.num_heads
        self.hidden_size, self.depth = config.hidden_size, config.depth
        self.pred_sigma, self.micro_conditioning = config.learn_sigma, config.micro_condition
        self.pe_interpolation, self.pe_precision = config.interpolation_scale, None
        self._named: tuple = (None, set())
        self.graphs = Graphs()
        self.decision = ""
        """What was said last about graphs, see `bridge.graphs`."""

    # As ComfyUI calls it, with names of its own.
    def forward(  # type: ignore[override]
        self, x, timesteps, context, control=None, transformer_options=None, **conds
    ) -> Tensor:
        """x (B, 4, h, w), timesteps (B,), context (B, L, C) -> epsilon (B, 4, h, w)."""
        options = transformer_options or {}
        wrappers = comfy.patcher_extension.get_all_wrappers(WrappersMP.DIFFUSION_MODEL, options)
        executor = WrapperExecutor.new_class_executor(self._predict, self, wrappers)
        return executor.execute(x, timesteps, context, control, options, **conds)

    def _predict(self, x, timesteps, context, control, options, c_size=None, c_ar=None, c_mask=None, **_) -> Tensor:
        self._name_without_effect(options)
        context = context.to(options.get(PRODUCT_DTYPE, context.dtype))
        inputs = x, timesteps, context, c_mask, c_size, aspect_ratio(c_size, c_ar), *(_residuals(control) or ())
        if not may_replay(options):
            return self._compute(options, *inputs)
        # The state at every step: other networks of the run can have moved this one since. The graph outlives the run:
        # it keeps nothing of its options, and does not keep this network.
        itself: Any = weakref.proxy(self)
        compute = functools.partial(PixArtUNet._compute, itself, {})
        return self.graphs("step", compute, inputs, self.graphs.state([self]))

    def _compute(self, options: dict, x, timesteps, context, mask, size, ratio, *residuals: Tensor | None) -> Tensor:
        out = super().forward(
            x,
            timesteps,
            context,
            mask,
            size,
            ratio,
            control=residuals,
            attention=functools.partial(attention_for(x.device), transformer_options=options),
            block_hook=BlockPatches(self, options, x, context),
        )
        return out[:, : self.config.in_channels]

    def _name_without_effect(self, options: dict) -> None:
        """Say once in a sampling run which attached patches cannot do anything here."""
        run, named = self._named
        if run is not options.get("sample_sigmas"):
            named = set()
        new = [text for text in dict.fromkeys(without_effect(options, self.config.depth)) if text not in named]
        self._named = (options.get("sample_sigmas"), named.union(new))
        if new:
            say(
                f"Warning: no effect on a PixArt model: {', '.join(new)}. They change parts of a UNet; this is a plain "
                f"row of {self.config.depth} transformer blocks",
                logging.WARNING,
            )


def _residuals(control: dict | None) -> list[Tensor | None] | None:
    """ComfyUI's control output as the list `PixArt.forward` takes: residual i is added after block i.

    Maps (B, hidden, h, w), as `bridge.control_net` makes them, become tokens again; neither way copies.
    """
    if not control:
        return None
    if control.get("middle") or control.get("output"):
        raise ValueError(
            "the CONTROL_NET on this PixArt model is one of another model family: load a PixArt "
            "ControlNet with PixArt-δ ControlNet Loader"
        )
    maps = control.get("input") or []
    return [item.flatten(2).movedim(1, 2) if item is not None and item.ndim == 4 else item for item in maps]


class PixArtDelta(comfy.model_base.PixArt):
    """ComfyUI's PixArt around our transformer. Being a PixArt gives it ComfyUI's LoRA key map."""

    def __init__(self, model_config, device=None):
        comfy.model_base.BaseModel.__init__(self, model_config, device=device, unet_model=PixArtUNet)

    def product_dtype(self) -> torch.dtype:
        """The dtype of the blocks' products: what ComfyUI, or one of its nodes, chose for computing."""
        return super().get_dtype_inference()

    def get_dtype_inference(self) -> torch.dtype:
        """The dtype of what goes into the transformer: its stream of tokens is float32 whatever else is not (see
        `pixart_core.layers`), and a latent rounded before it would undo that."""
        return torch.float32

    def _apply_model(
        self, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, control_base=None, **kwargs
    ) -> Tensor:
        """`control_base` is for the control alone."""
        options = {**(transformer_options or {}), PRODUCT_DTYPE: self.product_dtype()}
        return super()._apply_model(x, t, c_concat, c_crossattn, control, options, **kwargs)

    def extra_conds(self, **kwargs) -> dict:
        config, patcher = self.diffusion_model.config, self.current_patcher
        options = {} if patcher is None else patcher.model_options.get("transformer_options", {})
        conds = comfy.model_base.BaseModel.extra_conds(self, **kwargs)
        conds |= caption_conds(kwargs, config.model_max_length, one_batch=compares_sides(options))
        if config.micro_condition:
            conds |= size_conds(kwargs)
        # The base model of a PixArt control, which ComfyUI's ControlNet passes on.
        return conds | {"control_base": comfy.conds.CONDConstant(weakref.ref(self))}


class PixArtDeltaConfig(comfy.supported_models.PixArtAlpha):
    """Not registered with ComfyUI: its own detection would take the 256 and 512 px models for PixArt-Σ."""

    def __init__(self, config: PixArtConfig, info: FileInfo):
        super().__init__(
            {
                **config.to_dict(),
                "image_model": "pixart_alpha",
                "out_channels": config.out_channels,
                "model_channels": config.hidden_size,  # read by nodes for UNets
                "config": config,
            }
        )
        self.latent_format = latent_format(config, info)
        if is_scaled_linear(info):
            self.sampling_settings = SCALED_LINEAR

    def get_model(self, state_dict, prefix="", device=None):
        return PixArtDelta(self, device=device).eval()


def load_model(path: str, dtype: str = "default", disable_dynamic: bool = False):
    """A MODEL from any PixArt-α/δ file or diffusers folder.

    Args:
        path: see `pixart_core.read_pixart`.
        dtype: "default" or the name of a torch dtype.
        disable_dynamic: ComfyUI passes True when it needs a copy without its dynamic memory management.

    Raises:
        pixart_core.CheckpointError: when the file is something else or damaged; says what it is.
    """
    config, state = read_pixart(path, exact_stream=True)
    model_config = PixArtDeltaConfig(config, inspect_file(path))
    device = memory.get_torch_device()
    supported = model_config.supported_inference_dtypes
    weights, compute = pick_dtypes(dtype, device, state, supported)
    model_config.set_inference_dtype(weights, compute)
    model = model_config.get_model(state)
    if "y_embedder.y_embedding" not in state:
        model.diffusion_model.y_embedder.y_embedding = None  # diffusers' layout has no null caption
    # Looked up now, not imported: ComfyUI replaces it at start-up when dynamic memory management is on.
    patcher_class = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    patcher = patcher_class(model, load_device=device, offload_device=memory.unet_offload_device())
    model.diffusion_model.load_state_dict(state, strict=True, assign=patcher.is_dynamic())
    patcher.cached_patcher_init = (load_model, (path, dtype))
    patcher.set_attachments(DISTILLED, seems_distilled(path))
    patcher.set_attachments(SOURCE, path)
    patcher.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, "pixart_delta_hints", with_ready_hints)
    patcher.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, "pixart_delta_graphs", with_graphs)
    patcher.add_callback_with_key(CallbacksMP.ON_DETACH, "pixart_delta_graphs", forget_graphs)
    return patcher


def pick_dtypes(dtype: str, device, state: dict, supported: list[torch.dtype]) -> tuple:
    """(dtype of the weights, dtype they are cast to for computing or None), as ComfyUI picks them.

    One exception: where ComfyUI computes in float32 because the device is a CPU, and the user did not ask for that,
    a CPU that multiplies bfloat16 natively does so (2.5 instead of 9.4 s a step at 512 px).
    """
    if dtype != "default":
        weights = getattr(torch, dtype)
        native = weights == preferred_dtype(device)
        return weights, None if native else memory.unet_manual_cast(weights, device, supported)
    weights = memory.unet_dtype(
        device=device,
        model_params=comfy.utils.calculate_parameters(state),
        supported_dtypes=supported,
        weight_dtype=comfy.utils.weight_dtype(state),
    )
    if memory.is_device_cpu(device) and weights == torch.float32 and not (args.fp32_unet or args.force_fp32):
        return preferred_dtype(device), None
    return weights, memory.unet_manual_cast(weights, device, supported)


def seems_distilled(path: str) -> bool | None:
    """Whether a file holds an LCM or one-step model, going by its name where nothing in it says so; None when that does
    not, either. Used for warnings only."""
    said = is_distilled(inspect_file(path))
    if said is not None:
        return said
    name = Path(path).name.lower()
    few_steps = "lcm" in name or "dmd" in name
    return True if few_steps else False if name.startswith("pixart-xl-2") else None


def diffusion_model(model) -> PixArtUNet:
    """The transformer in a MODEL. Raises ValueError when it was not loaded by us."""
    unet = model.model.diffusion_model
    if not isinstance(unet, PixArtUNet):
        raise ValueError(f"this MODEL holds a {type(unet).__name__}: load it with PixArt-δ Model Loader")
    return unet


def noise_table(model) -> Tensor | None:
    """ᾱ of the noise schedule that a MODEL was distilled on; None where that is PixArt's."""
    is_scaled = model.model.model_config.sampling_settings == SCALED_LINEAR
    return alphas_cumprod(scaled_linear=True) if is_scaled else None


def null_caption(model, length: int) -> Tensor:
    """The model's learned unconditional caption, (1, length, caption_channels), as the authors use it."""
    return diffusion_model(model).null_caption(1, length).float().cpu()


def seems_lcm(model) -> bool | None:
    """Whether a MODEL is an LCM or one-step model; None where that is not known, as with any LoRA on it that may have
    made it one."""
    is_known = not model.patches or model.get_attachment(_KNOWN_PATCHES) == model.patches_uuid
    return model.get_attachment(DISTILLED) if is_known else None


def apply_lora(model, path: str, strength: float):
    """MODEL with a LoRA in any known layout, at its own alpha. Raises CheckpointError on one of another model."""
    stays_known = seems_lcm(model) is not None and is_fine_tuned(inspect_file(path))
    patched = _with_lora(model, path, strength)
    if stays_known:
        patched.set_attachments(_KNOWN_PATCHES, patched.patches_uuid)
    return patched


def _with_lora(model, path: str, strength: float):
    """What is no plain LoRA (DoRA, LoKr, LoHa, OFT …) is left to ComfyUI's own loader, under the names it knows."""
    weights = diffusion_model(model).state_dict()
    try:
        lora = load_lora(path)
    except OtherAdapterError:
        return _apply_other(model, path, strength)
    require_fit(lora, weights)
    if not lora.is_plain:
        return _apply_other(model, path, strength)
    # Without the differences: ComfyUI's loader knows no part of a fused bias.
    low_rank = dataclasses.replace(lora, diffs=()).to_state_dict()
    patched, _ = comfy.sd.load_lora_for_models(model, None, low_rank, strength, 0)
    for diff in lora.diffs:
        height = diff.value.shape[0]
        key = f"diffusion_model.{diff.key}"
        place = key if diff.rows is None else (key, (0, diff.part * height, height))
        patched.add_patches({place: ("set" if diff.replaces else "diff", (diff.value,))}, strength)
    return patched


def _apply_other(model, path: str, strength: float):
    state = host_state(open_weights(path).read())
    patched, _ = comfy.sd.load_lora_for_models(model, None, state, strength, 0)
    if not state or patched.patches_uuid == model.patches_uuid:
        raise CheckpointError(f"{path} changes nothing that ComfyUI knows in a PixArt model: it is of another one")
    return patched


def model_plan(model) -> str:
    """Two sentences: what a picture of the model's own size takes while it is sampled, and what the device has."""
    config, dtype = diffusion_model(model).config, model.model.product_dtype()
    side = config.input_size * 8
    takes = memory_plan(config, dtype=dtype)["sample"].total
    return (
        f"{side} × {side} px take {amount(takes)} while they are sampled ({str(dtype).removeprefix('torch.')}). "
        f"{model.load_device} has {amount(memory.get_total_memory(model.load_device) / GB)}."
    )
