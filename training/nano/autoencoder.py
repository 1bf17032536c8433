"""Train the nano family's f8 autoencoder, a narrow AutoencoderTiny, on crops of scenes and of their edge maps.

It starts as one that hands colours through, learns with Muon, and a loss of gradients keeps edges; in the last part of
the steps a small critic can be listened to. The same command again goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import functools
import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageChops, ImageFilter
from torch import Tensor, nn

from ...pixart_core.autoencoder import AutoencoderTiny
from ...pixart_core.autoencoder_config import TinyConfig
from ...pixart_core.hed import load_hed
from ...pixart_core.pipeline import default_device
from ...pixart_core.vae import load_vae, save_vae
from ..settings import ConfigError
from .critic import Judge
from .learning import Learner, drawn, fast_half, muon, step_rng
from .reconstruction import BUNDLED_HED, held_out, survival
from .scene_folder import resized
from .worlds import WORLDS, World

SIZES = ((128, 128), (96, 160), (160, 96))
_EVERY = 200
"""Steps after which the training says how far it is and is kept."""
_FILES = 4000
"""Pictures of a folder that are used at most: one that goes on growing then changes nothing."""
_HELD_OUT = 8
"""Scenes that it is measured on while it trains."""
_CRITIC_FROM = 0.6
"""Part of the steps after which the critic is listened to."""
_COLOURS = 3
EDGE_SHARE = 0.12
"""Part of the pictures shown as edge maps, because ControlNet hints go through the same autoencoder."""


def edge_map(picture: Image.Image) -> Image.Image:
    """White lines on black where neighbouring pixels differ, as a soft-edge detector draws them."""
    wide = picture.filter(ImageFilter.MaxFilter(3))
    thin = picture.filter(ImageFilter.MinFilter(3))
    grey = np.asarray(ImageChops.subtract(wide, thin).convert("L"), np.float32)
    return Image.fromarray((255 * np.clip(grey / 60, 0, 1)).astype(np.uint8)).convert("RGB")


class Source:
    """Where crops are cut from: files of a folder, or scenes drawn on the spot.

    Args:
        world, resolution: of the scenes.
        folder: of PNG files; None = scenes.
    """

    def __init__(self, world: World = WORLDS[1], resolution: int = 128, folder: Path | None = None):
        self.world, self.resolution = world, resolution
        self.files = None if folder is None else sorted(folder.glob("*.png"))[:_FILES]
        if self.files == []:
            raise ConfigError(f"{folder} holds no PNG files: draw them with `nano scenes`, or leave --pictures out")

    def picture(self, rng: random.Random) -> Image.Image:
        """One of its pictures by chance."""
        if self.files is not None:
            with Image.open(rng.choice(self.files)) as picture:
                return picture.convert("RGB")
        size = resized(rng.choice(SIZES), self.resolution)
        return self.world.draw(self.world.pick(rng), size, rng.randrange(2**31))

    def crops(self, rng: random.Random, batch: int, side: int) -> Tensor:
        """(batch, 3, side, side) in -1 … 1, some of them of edge maps."""
        out = np.empty((batch, side, side, 3), np.float32)
        for row in range(batch):
            picture = self.picture(rng)
            if rng.random() < EDGE_SHARE:
                picture = edge_map(picture)
            top, left = rng.randrange(picture.height - side + 1), rng.randrange(picture.width - side + 1)
            out[row] = np.asarray(picture)[top : top + side, left : left + side]
        return torch.from_numpy(out / 127.5 - 1).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """L1, squared error, and the error of both gradients, so that small things keep their edges."""
    error = output - target
    gradient = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + 4 * error.square().mean() + 0.5 * gradient


def moment_penalty(latent: Tensor) -> Tensor:
    """Keeps every latent channel near zero mean and unit variance: the diffusion schedule then fits without a scale."""
    mean, std = latent.mean((0, 2, 3)), latent.std((0, 2, 3))
    return mean.square().mean() + (std - 1).square().mean()


def build(channels: int) -> AutoencoderTiny:
    """A narrow AutoencoderTiny with 4 latent channels; its raw latent is the model's latent (scaling factor 1)."""
    widths = (channels,) * 4
    vae = AutoencoderTiny(TinyConfig(widths, widths, (0, 1, 2, 3), (3, 3, 2, 1), scaling_factor=1.0))
    with torch.no_grad():
        hand_through(vae)
    return vae


def hand_through(vae: AutoencoderTiny) -> None:
    """Initialise: three channels of every layer are red, green and blue of one pixel in 8 by 8, about normal in the
    latent; blocks add nothing yet, and what the other channels do is up to chance.

    Where all is chance, hundreds of steps pass until colours come through.
    """
    encoder, decoder = vae.encoder.layers, vae.decoder.layers
    ends = {encoder[0]: (1.0, 0.0), encoder[-1]: (4.0, -2.0), decoder[0]: (0.25, 0.5), decoder[-1]: (1.0, 0.0)}
    for layer in (*encoder, *decoder):
        if isinstance(layer, nn.Conv2d):
            scale, offset = ends.get(layer, (1.0, 0.0))
            if layer not in ends:
                nn.init.dirac_(layer.weight).add_(0.02 * torch.randn_like(layer.weight))
            straight = nn.init.dirac_(torch.empty_like(layer.weight))
            layer.weight[:_COLOURS] = scale * straight[:_COLOURS]
            if layer.bias is not None:
                layer.bias.zero_()[:_COLOURS] = offset
        elif convolutions := [each for each in layer.modules() if isinstance(each, nn.Conv2d)]:
            for each in convolutions:
                nn.init.kaiming_normal_(each.weight, nonlinearity="relu")
                nn.init.zeros_(each.get_parameter("bias"))
            nn.init.zeros_(convolutions[-1].weight)


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
    world: int = 1,
    pictures: Path | None = None,
    critic: float = 0.0,
    hidden_rate: float = 0.007,
    decoder_only: bool = False,
) -> None:
    """Train and save in diffusers' layout; says how good it is and is kept every `_EVERY` steps.

    Args:
        side: of the crops, px.
        resolution: that scenes are drawn at.
        workers: processes that make crops; 0 = this one.
        world: number of the scenes' world.
        pictures: folder of pictures to take crops of, instead of scenes drawn on the spot.
        critic: the critic's share of the decoder's gradient in the last part of the steps; 0 = none.
        learning_rate, hidden_rate: highest of the cycle, of Adam and of Muon: see `muon`.
        decoder_only: go on with the decoder of what is saved in `output`: latents made with it stay what they are.
    """
    output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    device = default_device()
    vae = load_vae(output, torch.float32).requires_grad_(False) if decoder_only else build(channels)
    vae = vae.to(device).to(memory_format=torch.channels_last)
    net = vae.decoder.requires_grad_() if decoder_only else vae
    judge = Judge(device, critic) if critic > 0 else None
    beside = {} if judge is None else {"judge": judge}
    optimizer = muon(net, learning_rate, hidden_rate, outer=(vae.encoder.layers[0], vae.decoder.layers[-1]))
    kept = output / ("decoder.pt" if decoder_only else "training.pt")
    learner = Learner(net, steps, file=kept, beside=beside, optimizer=optimizer)
    scenes, hed = held_out(_HELD_OUT, resolution, WORLDS[world]), load_hed(BUNDLED_HED)
    rows = f"{seed} decoder" if decoder_only else seed
    draw = functools.partial(Source(WORLDS[world], resolution, pictures).crops, batch=batch, side=side)
    for crops in drawn(draw, rows, range(learner.step, steps), workers):
        step_rng(seed, learner.step)
        now = judge if learner.step >= _CRITIC_FROM * steps else None
        crops = crops.to(device, memory_format=torch.channels_last)
        loss, latent, decoded = _forward(vae, crops, noise, now)
        learner.update(loss)
        if now is not None:
            now.learn(decoded.detach(), crops)
        if learner.tells(_EVERY):
            ratio, f1, _ = survival(vae, hed, scenes)
            print(
                f"step {learner.step} loss {loss.item():.4f} PSNR {ratio:.2f} dB edges F1 {f1:.3f} "
                f"latent std {latent.std().item():.2f} max {latent.abs().max().item():.1f}",
                flush=True,
            )
            learner.save()
    save_vae(vae.half().cpu(), output)


def _forward(
    vae: AutoencoderTiny, pictures: Tensor, noise: float, judge: Judge | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, latents, and what came back of pictures (B, 3, H, W)."""
    with fast_half(pictures.device):
        latent = vae.encoder(pictures).float()
        decoded = vae.decoder(latent + noise * torch.randn_like(latent)).float()
    reconstruction = reconstruction_loss(decoded, pictures)
    loss = reconstruction + 0.1 * moment_penalty(latent)
    if judge is not None:
        last = [each for each in vae.decoder.modules() if isinstance(each, nn.Conv2d)][-1].weight
        loss = loss + judge.loss(decoded, reconstruction, last)
    return loss, latent, decoded


def main(arguments: list[str]) -> None:
    """Command line of `train.py nano autoencoder`."""
    parser = argparse.ArgumentParser(prog="train.py nano autoencoder", description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--hidden-rate", type=float, default=0.007, help="of Muon, for the layers between")
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--noise", type=float, default=0.03)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resolution", type=int, default=128, help="px of the square scenes that crops are of")
    parser.add_argument("--workers", type=int, default=0, help="processes that draw; 0 = the one that trains")
    parser.add_argument("--world", type=int, choices=WORLDS, default=1, help="whose scenes")
    parser.add_argument("--pictures", type=Path, help="folder of PNG files, as `nano scenes` makes, to take crops of")
    parser.add_argument(
        "--decoder-only", action="store_true", help="afterwards, once more: better pictures of the same latents"
    )
    parser.add_argument(
        "--critic", type=float, default=0.0, help="share of a critic's gradient in the last part; 0 = none"
    )
    train(**vars(parser.parse_args(arguments)))
