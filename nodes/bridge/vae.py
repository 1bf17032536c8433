"""VAE: an AutoencoderTiny of any width as one of ComfyUI's autoencoders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.model_management as memory
import comfy.model_patcher
import comfy.sd
import comfy.taesd.taesd
import torch
from torch import Tensor, nn

from ...pixart_core import vae as core_vae
from ...pixart_core.errors import CheckpointError, read_by
from ...pixart_core.identify import inspect_file
from ...pixart_core.weightfile import open_weights

LATENT_SCALE = 0.18215
"""What ComfyUI multiplies a latent by before PixArt-α sees it (latent_formats.SD15)."""

KL_CHANNELS = 128
"""Channels of the first convolution of Stable Diffusion's AutoencoderKL, which ComfyUI's class is laid out for."""


class TinyAutoencoder(nn.Module):
    """An AutoencoderTiny of any width as ComfyUI calls an autoencoder: pixels in −1 … 1, raw latents."""

    def __init__(self, vae: Any):
        super().__init__()
        self.vae: Any = vae  # diffusers' class, of which this knows two methods
        self.to_model = LATENT_SCALE / vae.config.scaling_factor

    def encode(self, pixels: Tensor) -> Tensor:
        return self.vae.encode(pixels).latents / self.to_model

    def decode(self, latent: Tensor) -> Tensor:
        return self.vae.decode(latent * self.to_model).sample


def load_vae(path: str):
    """A VAE from a file or folder: AutoencoderTiny of any width, or Stable Diffusion 1.x's as ComfyUI loads it.

    Raises:
        CheckpointError: when it is not an autoencoder with 4 latent channels, or damaged.
    """
    weights = open_weights(path)
    if (info := inspect_file(path)).kind != "vae":
        raise CheckpointError(f"{path} is not an autoencoder but {info.describe()}")
    if weights.configs.get("config.json", {}).get("_class_name") == "AutoencoderTiny":
        folder = Path(path) if Path(path).is_dir() else Path(path).parent
        return _tiny(core_vae.load_vae(folder, dtype=torch.float32))
    first = weights.tensors.get("encoder.conv_in.weight")
    if first is not None and (channels := (*first.shape, 0)[0]) != KL_CHANNELS:
        raise CheckpointError(
            f"{path} is an autoencoder with {channels} channels; PixArt-α/δ takes Stable "
            f"Diffusion 1.x's, with {KL_CHANNELS}"
        )
    weights.require_numbers()
    with read_by("ComfyUI", Path(path), "an autoencoder"):
        vae = comfy.sd.VAE(sd=weights.read(), metadata=weights.metadata)
        vae.throw_exception_if_invalid()
    if vae.latent_channels != core_vae.LATENT_CHANNELS:
        raise CheckpointError(
            f"{path} is an autoencoder with {vae.latent_channels} latent channels; PixArt-α/δ takes "
            "Stable Diffusion 1.x's, with 4"
        )
    return vae


def _tiny(vae: nn.Module):
    # ComfyUI's constructor knows which attributes its version has: let it make its own tiny autoencoder, then swap it.
    host = comfy.sd.VAE(sd=comfy.taesd.taesd.TAESD(latent_channels=core_vae.LATENT_CHANNELS).state_dict())
    host.first_stage_model = TinyAutoencoder(vae).to(host.vae_dtype).eval()
    host.patcher = comfy.model_patcher.ModelPatcher(
        host.first_stage_model, load_device=host.device, offload_device=memory.vae_offload_device()
    )
    host.disable_offload, host.size = True, None
    return host
