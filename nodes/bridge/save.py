"""Saving the transformer of a MODEL; base and ControlNet out of one file and into one."""

from __future__ import annotations

import os

import comfy.model_management as memory
import folder_paths
import torch

from ...pixart_core.checkpoint import merge_controlnet, save_pixart, split_controlnet
from .model import diffusion_model
from .preview import described
from .ui import say

_PREFIX = "model.diffusion_model."


def save_model(model, filename_prefix: str, layout: str, dtype: str) -> str:
    """Write a MODEL's transformer, patches merged, below ComfyUI's output folder; returns the path.

    The number that keeps names apart counts the files there, as ComfyUI's own save nodes do.
    """
    unet = diffusion_model(model)
    path = _output_path(filename_prefix) + (".safetensors" if layout == "authors" else "")
    memory.load_models_gpu([model])
    # As ComfyUI's own save nodes: a weight that is not patched yet is, at the moment it is moved.
    state = {key.removeprefix(_PREFIX): value.to("cpu") for key, value in model.state_dict_for_saving().items()}
    colours = described(model.model.latent_format)
    save_pixart(state, path, layout=layout, config=unet.config, dtype=getattr(torch, dtype), metadata=colours)
    say(f"saved {path}")
    return path


def split_file(joint: str, filename_prefix: str, dtype: str) -> tuple[str, str]:
    """Write the base model and the ControlNet of a joint file apart, below ComfyUI's output folder; their paths."""
    stem = _output_path(filename_prefix)
    paths = split_controlnet(joint, f"{stem}base.safetensors", f"{stem}controlnet.safetensors", _dtype(dtype))
    say("saved " + " and ".join(map(str, paths)))
    return str(paths[0]), str(paths[1])


def merge_files(base: str, control: str, filename_prefix: str, dtype: str) -> str:
    """Write a base model and a ControlNet as the authors' joint file below ComfyUI's output folder; its path."""
    path = merge_controlnet(base, control, f"{_output_path(filename_prefix)}joint.safetensors", _dtype(dtype))
    say(f"saved {path}")
    return str(path)


def _output_path(filename_prefix: str) -> str:
    """Folder, name and number below ComfyUI's output folder."""
    folder, name, counter, *_ = folder_paths.get_save_image_path(filename_prefix, folder_paths.get_output_directory())
    return os.path.join(folder, f"{name}_{counter:05}_")


def _dtype(name: str) -> torch.dtype | None:
    return None if name == "as stored" else getattr(torch, name)
