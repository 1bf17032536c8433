"""What an autoencoder keeps of pictures that it was not trained on: PSNR, and F1 of the edges before and after."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ...pixart_core.hed import HED, load_hed
from ...pixart_core.vae import load_vae
from .. import sampling
from .evaluate import drawn, encoded, held_out_prompts
from .evaluate_control import edge_f1, soft_edges
from .worlds import WORLDS, World

BUNDLED_HED = Path(__file__).resolve().parents[2] / "models" / "nano" / "hed" / "hed.safetensors"


def held_out(count: int, resolution: int, world: World) -> list[Image.Image]:
    """Scenes of the evaluation's part, drawn."""
    return drawn(held_out_prompts(count, resolution, world), world)


def survival(vae, hed: HED, pictures: Sequence[Image.Image]) -> tuple[float, float, list[Image.Image]]:
    """Mean PSNR in dB, mean F1 of the edges (1 px beside their place allowed), and what came back.

    Args:
        pictures: sides are multiples of 8.
    """
    back = sampling.pictures(vae, (encoded(vae, picture)[0] for picture in pictures))
    ratios = [_psnr(*pair) for pair in zip(pictures, back, strict=True)]
    edges = zip(soft_edges(hed, back), soft_edges(hed, pictures), strict=True)
    return float(np.mean(ratios)), float(np.mean([edge_f1(*pair) for pair in edges])), back


def _psnr(one: Image.Image, other: Image.Image) -> float:
    error = np.asarray(one, np.float32) - np.asarray(other, np.float32)
    return float(10 * np.log10(255**2 / max(np.square(error).mean(), 1e-6)))


def main(arguments: list[str]) -> None:
    """Command line of `train.py nano reconstruction`."""
    parser = argparse.ArgumentParser(prog="train.py nano reconstruction", description=__doc__)
    parser.add_argument("vae", type=Path, help="autoencoder folder, or a pipeline folder")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--resolution", type=int, default=128, help="px of the square scenes")
    parser.add_argument("--world", type=int, choices=WORLDS, default=1)
    parser.add_argument(
        "--hed", type=Path, default=BUNDLED_HED, help="what finds the edges; the bundled one is the default"
    )
    parser.add_argument("--sheet", type=Path, help="PNG: the first scenes, and below each what came back")
    options = parser.parse_args(arguments)
    pictures = held_out(options.count, options.resolution, WORLDS[options.world])
    ratio, f1, back = survival(load_vae(options.vae), load_hed(options.hed), pictures)
    about = {"scenes": options.count, "world": options.world, "resolution": options.resolution}
    print(json.dumps({**about, "psnr": round(ratio, 2), "edge_f1": round(f1, 4)}), flush=True)
    if options.sheet is not None:
        sampling.contact_sheet([pictures[:8], back[:8]]).save(options.sheet)
