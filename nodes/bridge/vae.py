"""VAE: diffusers' AutoencoderTiny of any width as one of ComfyUI's autoencoders."""

from __future__ import annotations

import comfy.model_management as memory
import comfy.model_patcher
import comfy.sd
import comfy.taesd.taesd
import torch
from torch import Tensor, nn

from ...pixart_core import vae as core_vae
from ...pixart_core.checkpoint import CheckpointError, inspect_file

LATENT_SCALE = 0.18215
"""What ComfyUI multiplies a latent by before PixArt-α sees it (latent_formats.SD15)."""


class TinyAutoencoder(nn.Module):
    """diffusers' AutoencoderTiny of any width as ComfyUI calls an autoencoder: pixels in −1 … 1, raw latents."""

    def __init__(self, vae: nn.Module):
        super().__init__()
        self.vae = vae
        self.to_model = LATENT_SCALE / vae.config.scaling_factor

    def encode(self, pixels: Tensor) -> Tensor:
        return self.vae.encode(pixels).latents / self.to_model

    def decode(self, latent: Tensor) -> Tensor:
        return self.vae.decode(latent * self.to_model).sample


def load_vae(path: str):
    """A VAE from a file or folder: AutoencoderTiny of any width, or what ComfyUI itself loads.

    Raises:
        CheckpointError: when it is not an autoencoder.
    """
    info = inspect_file(path)
    if info.kind != "vae":
        raise CheckpointError(f"{path} is not an autoencoder but {info.describe()}")
    vae = core_vae.load_vae(path, dtype=torch.float32)
    if type(vae).__name__ != "AutoencoderTiny":
        return comfy.sd.VAE(sd=vae.state_dict())
    # ComfyUI's constructor knows which attributes its version has; give it a tiny autoencoder of its own width first.
    host = comfy.sd.VAE(sd=comfy.taesd.taesd.TAESD(latent_channels=4).state_dict())
    host.first_stage_model = TinyAutoencoder(vae).to(host.vae_dtype).eval()
    host.patcher = comfy.model_patcher.ModelPatcher(host.first_stage_model, load_device=host.device,
                                                    offload_device=memory.vae_offload_device())
    host.disable_offload, host.size = True, None
    return host
