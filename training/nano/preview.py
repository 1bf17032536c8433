"""Fit the colours of ComfyUI's previews to an autoencoder: latent (4, h, w) and a constant to RGB, by least squares.

ComfyUI's latent2rgb shows a step's latent as these colours; Stable Diffusion's are false for another autoencoder.
`assemble` writes them into the files of a family; printed here are those of the bundled one, whose files are older, as
`nodes/bridge/preview.py` holds them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...pixart_core.vae import FACTOR, load_vae
from .evaluate import encoded


def fit(vae, pictures: Sequence[Image.Image]) -> tuple[Tensor, Tensor, Tensor]:
    """Factors (4, 3), bias (3,) and the share of each colour's variance that they explain (3,).

    Args:
        vae: from `load_vae`.
        pictures: sides are multiples of 8; each is compared with itself at an eighth of its size, in −1 … 1.
    """
    latents, colours = [], []
    for picture in pictures:
        latents.append(encoded(vae, picture)[0].flatten(1).T.double())
        small = picture.resize((picture.width // FACTOR, picture.height // FACTOR), Image.Resampling.BOX)
        colours.append(torch.from_numpy(np.asarray(small, np.float64).reshape(-1, 3) / 127.5 - 1))
    latent, colour = torch.cat(latents), torch.cat(colours)
    known = torch.cat([latent, torch.ones_like(latent[:, :1])], 1)
    solution = torch.linalg.lstsq(known, colour).solution
    explained = 1 - (colour - known @ solution).square().mean(0) / colour.var(0, correction=0)
    return solution[:-1], solution[-1], explained


def describe(vae, pictures: Sequence[Image.Image]) -> dict[str, list]:
    """What a transformer's file says for its previews: see `pixart_core.preview.COLOURS`."""
    factors, bias, _ = fit(vae, pictures)
    return {"factors": factors.float().tolist(), "bias": bias.float().tolist()}


def main(arguments: list[str]) -> None:
    """Command line of `train.py nano preview`."""
    parser = argparse.ArgumentParser(prog="train.py nano preview", description=__doc__)
    parser.add_argument("models", type=Path, help="pipeline folder with vae/ and scenes/")
    parser.add_argument("--pictures", type=Path, help="another folder of pictures than scenes/")
    options = parser.parse_args(arguments)
    files = sorted((options.pictures or options.models / "scenes").glob("*.png"))
    pictures = [Image.open(file).convert("RGB") for file in files]
    factors, bias, explained = fit(load_vae(options.models), pictures)
    print("_NANO_RGB = (", *(f"    {_tuple(row)}," for row in factors), ")", sep="\n")
    print(f"_NANO_BIAS = {_tuple(bias)}")
    print(f"# of {len(files)} pictures; R² {', '.join(f'{value:.2f}' for value in explained.tolist())}")


def _tuple(values: Tensor) -> str:
    return f"({', '.join(f'{value:.4f}' for value in values.tolist())})"
