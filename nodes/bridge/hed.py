"""HED under ComfyUI's memory management, and what the autoencoder leaves of an edge map."""

from __future__ import annotations

import functools

import comfy.model_management as memory
import comfy.model_patcher
import comfy.ops
import comfy.utils
import torch
from torch import Tensor

from ...pixart_core.hed import detect, load_hed

_BYTES_PER_PIXEL = 4 * 64
"""Numbers that are alive at once for a pixel: a few maps of 64 channels at full size."""


@functools.lru_cache(maxsize=1)
def _load(path: str, stamp: str, dtype: torch.dtype):
    """The network as one of ComfyUI's managed models; read again when its file changed."""
    net = load_hed(path, dtype, operations=comfy.ops.manual_cast)
    # Looked up now, not imported: ComfyUI replaces it at start-up when dynamic memory management is on.
    return comfy.model_patcher.CoreModelPatcher(
        net, load_device=memory.get_torch_device(), offload_device=memory.unet_offload_device()
    )


def soft_edges(
    path: str, stamp: str, images: Tensor, safe: bool, scribble: bool, resolution: int, dtype: str
) -> Tensor:
    """IMAGE (B, H, W, C) -> its edge maps as IMAGE (B, H, W, 3). Raises as `pixart_core.hed.detect`."""
    patcher = _load(path, stamp, getattr(torch, dtype))
    side = max(1.0, resolution / min(images.shape[1:3]))
    pixels = images.shape[1] * images.shape[2] * side**2
    memory.load_models_gpu([patcher], memory_required=pixels * _BYTES_PER_PIXEL * getattr(torch, dtype).itemsize)
    progress = comfy.utils.ProgressBar(len(images))
    edges = []
    for index in range(len(images)):
        picture = images[index : index + 1].to(patcher.load_device)
        edges.append(detect(patcher.model, picture, safe, scribble, resolution).to(memory.intermediate_device()))
        progress.update(1)  # also where an interrupt is noticed
    return torch.cat(edges).expand(-1, -1, -1, 3)


def round_trip(vae, edges: Tensor) -> Tensor:
    """IMAGE -> what an autoencoder leaves of it: what the ControlNet really sees. Cut to multiples of 8 px."""
    return vae.decode(vae.encode(edges))
