"""Draw scenes and prepare them for training: latents and text embeddings, in buckets of three sizes."""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import numpy as np
import torch

from ...pixart_core.text import TextEncoder
from ...pixart_core.vae import encode, load_vae
from ...pixart_core.weightfile import save_weights
from ..data import KIND
from .scenes import caption, draw, random_scene

SIZES = {(128, 128): 0.5, (96, 160): 0.25, (160, 96): 0.25}
WORDINGS = 3
TOKENS = 40
EMPTY_SHARE = 0.04
"""Part of the wordings left empty, so that an empty prompt means "any scene" to every network."""


def prepare(models: Path, output: Path, pictures: int, seed: int) -> None:
    """Write a feature folder of `pictures` training scenes, with text_encoder/, tokenizer/ and vae/ of `models`."""
    text, vae = TextEncoder.from_pretrained(models, torch.float32), load_vae(models, torch.float32)
    output.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    names = []
    for size, share in SIZES.items():
        bucket = _bucket(text, vae, size, round(pictures * share), rng)
        names.append(f"bucket_{size[0]}x{size[1]}.safetensors")
        save_weights(bucket, output / names[-1])
        print(
            f"{names[-1]}: {len(bucket['latent'])} pictures, latent std {bucket['latent'].float().std():.3f}",
            flush=True,
        )
    (output / "dataset.json").write_text(
        json.dumps({"kind": KIND, "buckets": names, "pictures": pictures, "seed": seed})
    )


def _bucket(text, vae, size, count, rng, chunk: int = 64) -> dict[str, torch.Tensor]:
    latents, captions, masks = [], [], []
    for start in range(0, count, chunk):
        scenes = [random_scene(rng) for _ in range(min(chunk, count - start))]
        pictures = np.stack([np.asarray(draw(scene, size, rng.randrange(2**31)), np.float32) / 255 for scene in scenes])
        latents.append(encode(vae, torch.from_numpy(pictures)).half())
        words = ["" if rng.random() < EMPTY_SHARE else caption(scene, rng) for scene in scenes for _ in range(WORDINGS)]
        embedding, mask = text.encode(words, TOKENS)
        captions.append(embedding.half().unflatten(0, (len(scenes), WORDINGS)))
        masks.append(mask.to(torch.uint8).unflatten(0, (len(scenes), WORDINGS)))
    return {
        "latent": torch.cat(latents),
        "caption": torch.cat(captions),
        "caption_mask": torch.cat(masks),
        "image_size": torch.tensor([size], dtype=torch.float32).repeat(count, 1),
        "aspect_ratio": torch.full((count, 1), size[0] / size[1]),
    }


def main(arguments: list[str]) -> None:
    """Command line of `train.py nano features`."""
    parser = argparse.ArgumentParser(prog="train.py nano features", description=__doc__)
    parser.add_argument("models", type=Path, help="folder of text_encoder/, tokenizer/ and vae/")
    parser.add_argument("output", type=Path)
    parser.add_argument("--pictures", type=int, default=24_000)
    parser.add_argument("--seed", type=int, default=1)
    prepare(**vars(parser.parse_args(arguments)))
