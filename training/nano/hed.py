"""Train the nano family's narrow HED: exact boundaries of drawn scenes, and what a full HED sees in photographs.

The same command again goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import functools
import random
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import ImageFilter
from torch import Tensor, nn

from ...pixart_core.hed import HED, fused, load_hed
from ...pixart_core.pipeline import default_device
from ...pixart_core.saving import save_weights
from .learning import Learner, drawn, fast_half, muon
from .photographs import Crops, agreement, distillation_loss, photographs, remember
from .scene_folder import resized
from .worlds import WORLDS, World

SIZES = ((128, 128), (96, 160), (160, 96))
WIDTHS = (16, 32, 64, 72, 80)
"""0.41 M parameters, 0.8 MB in half precision; (8, 16, 16, 24, 24) is enough for drawn scenes alone."""
_SCALE = 64.0
"""The network takes 0 … 255; trained on a range near 1 all its layers learn at one pace, and the scale is folded in."""
_EVERY = 100
"""Steps after which the training says how far it is and is kept."""
_FUSED = 5.0
"""Weight of the mean of the sides, the map that is used, against one side."""


def scene_batch(
    rng: random.Random, count: int, size: tuple[int, int], world: World = WORLDS[1]
) -> tuple[Tensor, Tensor]:
    """Pictures (count, 3, H, W) in 0 … 255 and their boundaries (count, 1, H, W) in 0 … 1.

    Half of the pictures are blurred, of another contrast and noisy, as those that a model makes.
    """
    pictures, edges = [], []
    for _ in range(count):
        scene, seed = world.pick(rng), rng.randrange(2**31)
        picture = world.draw(scene, size, seed)
        if rng.random() < 0.5:
            picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.9)))
        pixels = np.asarray(picture, np.float32)
        if rng.random() < 0.5:
            noise = np.random.default_rng(seed).normal(size=pixels.shape).astype(np.float32)
            pixels = (pixels - 128) * rng.uniform(0.75, 1.15) + 128 + rng.uniform(-15, 15) + rng.uniform(0, 4) * noise
        pictures.append(pixels.clip(0, 255))
        edges.append(world.boundaries(scene, size, seed))
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2), torch.from_numpy(np.stack(edges))[:, None]


def balanced_loss(logits: Tensor, edges: Tensor) -> Tensor:
    """Cross entropy in which the few boundary pixels weigh as much as all others (HED, eq. 2)."""
    share = edges.mean((1, 2, 3), keepdim=True)
    weight = edges * (1 - share) + (1 - edges) * share
    return F.binary_cross_entropy_with_logits(logits, edges, weight, reduction="sum") / weight.sum()


def deep_loss(sides: list[Tensor], edges: Tensor) -> Tensor:
    """Every side output at full size, class-balanced, and their mean (what `pixart_core.hed.detect` uses), plain.

    Plain, because balance makes lines wide, which the sides may have and the result may not.
    """
    sides = [F.interpolate(side, edges.shape[-2:], mode="bilinear") for side in sides]
    plain = F.binary_cross_entropy_with_logits(torch.stack(sides).mean(0), edges)
    return sum(balanced_loss(side, edges) for side in sides) + _FUSED * plain


def f1(logits: Tensor, edges: Tensor) -> float:
    """The F1 score of pixels above one half, without tolerance."""
    found, true = logits > 0, edges > 0.5
    return float(2 * (found & true).sum() / (found.sum() + true.sum()).clamp(min=1))


def build(widths: Sequence[int] = WIDTHS) -> HED:
    """A narrow network with He's initialisation, for inputs divided by `_SCALE`."""
    net = HED(tuple(widths))
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu" if module.out_channels > 1 else "linear")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    nn.init.constant_(net.norm, 128 / _SCALE)
    return net


@torch.no_grad()
def fold_scale(net: HED, scale: float = _SCALE) -> HED:
    """The same network for inputs in 0 … 255; with 1 / `_SCALE` back again."""
    net.norm.mul_(scale)
    net.get_parameter("block1.convs.0.weight").div_(scale)
    return net


def see(net: HED, pixels: Tensor) -> list[Tensor]:
    """Side outputs for pixels in 0 … 255 while the scale is not folded in."""
    with fast_half(pixels.device):
        sides = net((pixels / _SCALE).contiguous(memory_format=torch.channels_last))
    return [side.float() for side in sides]


def some_scenes(rng: random.Random, count: int, resolution: int, world: World) -> tuple[Tensor, Tensor]:
    """A `scene_batch` of one of the sizes."""
    return scene_batch(rng, count, resized(rng.choice(SIZES), resolution), world)


def step_loss(
    net: HED, scenes: tuple[Tensor, Tensor], crops: tuple[Tensor, list[Tensor]] | None, device: torch.device
) -> Tensor:
    """The loss of scenes with their boundaries, and of crops of photographs with their teacher's edges."""
    pictures, edges = (each.to(device) for each in scenes)
    loss = deep_loss(see(net, pictures), edges)
    if crops is None:
        return loss
    pixels, teacher = crops
    return loss + distillation_loss(see(net, pixels.to(device)), [each.to(device) for each in teacher], _FUSED)


def train(
    output: Path,
    steps: int,
    batch: int,
    learning_rate: float,
    seed: int,
    crops: Crops | None = None,
    resolution: int = 128,
    widths: Sequence[int] = WIDTHS,
    world: int = 1,
    start: Path | None = None,
    hidden_rate: float = 0.015,
    workers: int = 0,
) -> Path:
    """Train and save `output`/hed.safetensors in half precision; prints a line every `_EVERY` steps.

    Args:
        learning_rate, hidden_rate: highest of the cycle, of Adam and of Muon: see `muon`.
        crops: of photographs, half of every batch; None = scenes alone.
        resolution, world: of the scenes.
        widths: channels of the five blocks.
        start: a network to go on from, such as the bundled one, instead of chance; its channels count.
        workers: processes that draw scenes; 0 = this one.
    """
    output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    net = build(widths) if start is None else fold_scale(load_hed(start).train(), 1 / _SCALE)
    device = default_device()
    net = net.requires_grad_().to(device).to(memory_format=torch.channels_last)
    convolutions = [each for each in net.modules() if isinstance(each, nn.Conv2d)]
    outer = [each for each in convolutions if each.in_channels == 3 or each.out_channels == 1]
    learner = Learner(net, steps, file=output / "training.pt", optimizer=muon(net, learning_rate, hidden_rate, outer))
    held_out = [
        scene_batch(random.Random(10_000 + index), 16, resized(size, resolution), WORLDS[world])
        for index, size in enumerate(SIZES)
    ]
    began, count = time.perf_counter(), batch if crops is None else (batch + 1) // 2
    draw = functools.partial(some_scenes, count=count, resolution=resolution, world=WORLDS[world])
    for scenes in drawn(draw, seed, range(learner.step, steps), workers):
        # By the number of the step, so that nothing random has to be kept.
        cut = None if crops is None else crops.batch(random.Random(f"{seed} {learner.step} crops"), batch - count)
        loss = step_loss(net, scenes, cut, device)
        learner.update(loss)
        if learner.tells(_EVERY):
            with torch.no_grad():
                maps = [fused(net(pictures.to(device) / _SCALE), pictures.shape[-2:]).cpu() for pictures, _ in held_out]
            scores = [f1(logits, edges) for logits, (_, edges) in zip(maps, held_out, strict=True)]
            print(
                f"step {learner.step} loss {loss.item():.3f} F1 {sum(scores) / len(scores):.3f} "
                f"{time.perf_counter() - began:.0f} s",
                flush=True,
            )
            learner.save()
    state = {name: tensor.half().cpu() for name, tensor in fold_scale(net).state_dict().items()}
    return save_weights(state, output / "hed.safetensors")


def report(hed: Path, teacher: HED, pictures: Path) -> None:
    """Print how well the saved network agrees with its teacher on pictures that it was not trained on."""
    names = photographs(pictures)
    values = agreement(load_hed(hed), teacher, names)
    for path, value in zip(names, values, strict=True):
        print(f"{value:.3f} {path.name}")
    print(f"correlation with the teacher: mean {sum(values) / len(values):.3f}, least {min(values):.3f}")


def main(arguments: list[str]) -> None:
    """Command line of `train.py nano hed`."""
    parser = argparse.ArgumentParser(prog="train.py nano hed", description=__doc__)
    parser.add_argument("output", type=Path, help="folder for hed.safetensors and what a stopped training goes on from")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--hidden-rate", type=float, default=0.015, help="of Muon, for the layers between")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resolution", type=int, default=128, help="px of the square scenes")
    parser.add_argument("--world", type=int, choices=WORLDS, default=1, help="whose scenes")
    parser.add_argument("--widths", type=int, nargs=5, default=WIDTHS, help="channels of the five blocks")
    parser.add_argument("--workers", type=int, default=0, help="processes that draw; 0 = the one that trains")
    parser.add_argument("--start", type=Path, help="a HED to go on from, instead of chance; --widths are its own then")
    parser.add_argument("--teacher", type=Path, help="a full HED (ControlNetHED.pth), to learn photographs from")
    parser.add_argument("--photographs", type=Path, help="folder of pictures to learn on; needs --teacher")
    parser.add_argument("--held-out", type=Path, help="folder of pictures to compare both networks on at the end")
    options = vars(parser.parse_args(arguments))
    teacher, learnt, held_out = (options.pop(name) for name in ("teacher", "photographs", "held_out"))
    if (learnt or held_out) and not teacher:
        parser.error("--photographs and --held-out need --teacher")
    full = load_hed(teacher) if teacher else None
    crops = (
        Crops(remember(full, teacher, photographs(learnt), options["output"] / "edges")) if full and learnt else None
    )
    saved = train(**options, crops=crops)
    if full and held_out:
        report(saved, full, held_out)
