"""Saving the transformer of a MODEL."""

from __future__ import annotations

import os

import comfy.model_management as memory
import folder_paths
import torch

from ...pixart_core.checkpoint import save_pixart
from .model import diffusion_model
from .ui import say

_PREFIX = "model.diffusion_model."


def save_model(model, filename_prefix: str, layout: str, dtype: str) -> str:
    """Write a MODEL's transformer, patches merged, below ComfyUI's output folder; returns the path.

    The number that keeps names apart counts the files there, as ComfyUI's own save nodes do.
    """
    unet = diffusion_model(model)
    folder, name, counter, *_ = folder_paths.get_save_image_path(filename_prefix, folder_paths.get_output_directory())
    path = os.path.join(folder, f"{name}_{counter:05}_" + (".safetensors" if layout == "authors" else ""))
    memory.load_models_gpu([model])
    # As ComfyUI's own save nodes: a weight that is not patched yet is, at the moment it is moved.
    state = {key.removeprefix(_PREFIX): value.to("cpu") for key, value in model.state_dict_for_saving().items()}
    save_pixart(state, path, layout=layout, config=unet.config, dtype=getattr(torch, dtype))
    say(f"saved {path}")
    return path
