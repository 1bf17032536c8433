"""Train the nano family's f8 autoencoder, a narrow AutoencoderTiny, on crops of scenes and of their edge maps.

The same command again goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageChops, ImageFilter
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ...pixart_core.autoencoder import AutoencoderTiny
from ...pixart_core.autoencoder_config import TinyConfig
from ...pixart_core.functional import sampling_dtype
from ...pixart_core.pipeline import default_device
from ...pixart_core.vae import save_vae
from .learning import Learner, step_rng
from .scene_folder import resized
from .scenes import draw, random_scene

SIZES = ((128, 128), (96, 160), (160, 96))
_EVERY = 100
"""Steps after which the training says how far it is and is kept."""
EDGE_SHARE = 0.12
"""Part of the pictures shown as edge maps, because ControlNet hints go through the same autoencoder."""


def edge_map(picture: Image.Image) -> Image.Image:
    """White lines on black where neighbouring pixels differ, as a soft-edge detector draws them."""
    wide = picture.filter(ImageFilter.MaxFilter(3))
    thin = picture.filter(ImageFilter.MinFilter(3))
    grey = np.asarray(ImageChops.subtract(wide, thin).convert("L"), np.float32)
    return Image.fromarray((255 * np.clip(grey / 60, 0, 1)).astype(np.uint8)).convert("RGB")


def crops(rng: random.Random, batch: int, side: int, resolution: int = 128) -> Tensor:
    """(batch, 3, side, side) in -1 … 1, of scenes drawn for that resolution."""
    out = np.empty((batch, side, side, 3), np.float32)
    for row in range(batch):
        size = resized(rng.choice(SIZES), resolution)
        picture = draw(random_scene(rng), size, rng.randrange(2**31))
        if rng.random() < EDGE_SHARE:
            picture = edge_map(picture)
        top, left = rng.randrange(size[0] - side + 1), rng.randrange(size[1] - side + 1)
        out[row] = np.asarray(picture)[top : top + side, left : left + side]
    return torch.from_numpy(out / 127.5 - 1).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


class Batches(Dataset):
    """The crops of every step from `start` on, each a function of the seed and its number alone."""

    def __init__(self, seed: int, start: int, steps: int, batch: int, side: int, resolution: int):
        self.seed, self.numbers, self.what = seed, range(start, steps), (batch, side, resolution)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Tensor:
        return crops(random.Random(f"{self.seed} {self.numbers[index]}"), *self.what)


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """L1, squared error and the error of both gradients, so that small objects keep their edges."""
    error = output - target
    gradient = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + 2 * error.square().mean() + gradient


def moment_penalty(latent: Tensor) -> Tensor:
    """Keeps every latent channel near zero mean and unit variance: the diffusion schedule then fits without a scale."""
    mean, std = latent.mean((0, 2, 3)), latent.std((0, 2, 3))
    return mean.square().mean() + (std - 1).square().mean()


def build(channels: int) -> AutoencoderTiny:
    """A narrow AutoencoderTiny with 4 latent channels; its raw latent is the model's latent (scaling factor 1)."""
    widths = (channels,) * 4
    return AutoencoderTiny(TinyConfig(widths, widths, (0, 1, 2, 3), (3, 3, 2, 1), scaling_factor=1.0))


def psnr(vae, pictures: Tensor) -> float:
    """Mean peak signal-to-noise ratio, dB, of a round trip of pictures (B, 3, H, W) in -1 … 1."""
    with torch.no_grad():
        output = vae.decode(vae.encode(pictures).latents).sample.clamp(-1, 1)
    return float((10 * torch.log10(4 / (output - pictures).square().mean((1, 2, 3)))).mean())


def train(
    output: Path,
    steps: int,
    batch: int,
    side: int,
    learning_rate: float,
    channels: int,
    noise: float,
    seed: int,
    resolution: int = 128,
    workers: int = 0,
) -> None:
    """Train and save in diffusers' layout; prints a line and is kept every `_EVERY` steps.

    Args:
        side: of the crops, px.
        resolution: that scenes are drawn at.
        workers: processes that draw; 0 = this one.
    """
    output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    device = default_device()
    vae = build(channels).to(device).to(memory_format=torch.channels_last)
    learner = Learner(vae, steps, learning_rate, weight_decay=1e-3, file=output / "training.pt")
    held_out = torch.cat([crops(random.Random(10_000 + i), 1, 96, resolution) for i in range(48)]).to(device)
    is_half_fast = sampling_dtype(device) != torch.float32
    batches = Batches(seed, learner.step, steps, batch, side, resolution)
    for drawn in DataLoader(batches, batch_size=None, num_workers=workers):
        step_rng(seed, learner.step)
        pictures = drawn.to(device, memory_format=torch.channels_last)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=is_half_fast):
            latent = vae.encoder(pictures).float()
            output_picture = vae.decoder(latent + noise * torch.randn_like(latent)).float()
        loss = reconstruction_loss(output_picture, pictures) + 0.1 * moment_penalty(latent)
        learner.update(loss)
        if learner.tells(_EVERY):
            print(
                f"step {learner.step} loss {loss.item():.4f} PSNR {psnr(vae, held_out):.2f} dB "
                f"latent std {latent.std().item():.2f} max {latent.abs().max().item():.1f}",
                flush=True,
            )
            learner.save()
    save_vae(vae.half().cpu(), output)


def main(arguments: list[str]) -> None:
    """Command line of `train.py nano autoencoder`."""
    parser = argparse.ArgumentParser(prog="train.py nano autoencoder", description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=2.5e-3)
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--noise", type=float, default=0.08)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resolution", type=int, default=128, help="px of the square scenes that crops are of")
    parser.add_argument("--workers", type=int, default=0, help="processes that draw; 0 = the one that trains")
    train(**vars(parser.parse_args(arguments)))
