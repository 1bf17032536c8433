"""What half precision does to the numbers: LCD's signal, and a one-step picture, beside the same in float32.

    python -m tests.bench.bench_precision [--device cpu] [--pictures 8]     on a CPU products are rounded float32 ones

On the bundled nano base and student, with the drawn scenes that come with them. At t = 999 the noise prediction is
multiplied by 157 (1/√ᾱ), so its roundings become signal.

LCD and LCM-LoRA: mean |(p − t) − (p₃₂ − t₃₂)| / mean |p₃₂ − t₃₂|, p prediction of the student, t target of its average,
₃₂ all in float32; target at most 0.10 at every t in fp16, with and without gradient checkpointing. One step of the
student at t = 999: root mean square error of x₀ in standard deviations of it; targets 0.06 in bf16, 0.01 in fp16.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import tempfile
from pathlib import Path

import torch

import pixart_core as pc
from pixart_core.lcm import ddim_timesteps
from pixart_core.schedule import consistency
from pixart_core.text import TextEncoder
from pixart_core.vae import encode, load_vae
from tests import conftest  # noqa: F401 - registers the root folder as a package
from tests.bench.half import where_emulated

NANO = conftest.ROOT / "models" / "nano"
TIMESTEPS = (499, 739, 899, 999)
training = "pixart_delta.training."


def scenes(count: int, device: str) -> dict[str, torch.Tensor]:
    """Latents and captions of the first scenes."""
    import numpy as np
    from PIL import Image

    files = sorted((NANO / "scenes").glob("*.png"))
    square = [file for file in files if Image.open(file).size == (128, 128)][:count]
    pictures = torch.stack(
        [torch.from_numpy(np.asarray(Image.open(f).convert("RGB"), np.float32) / 255) for f in square]
    )
    caption, mask = TextEncoder.from_pretrained(NANO, device="cpu").encode(
        [file.with_suffix(".txt").read_text().splitlines()[0] for file in square], 120
    )
    size = torch.full((len(square), 2), 128.0)
    batch = {
        "latent": encode(load_vae(NANO), pictures),
        "caption": caption.float(),
        "caption_mask": mask,
        "image_size": size,
        "aspect_ratio": torch.ones(len(square), 1),
    }
    return {name: value.to(device) for name, value in batch.items()}


def lcd_signal(batch: dict, device: str, command: str = "lcd", **settings) -> dict[int, torch.Tensor]:
    """Timestep -> prediction − target of the first step of a distillation, with the trainer's own arithmetic."""
    config = importlib.import_module(training + "config")
    distill = importlib.import_module(training + "distill")
    with tempfile.TemporaryDirectory() as folder:
        values = {"run": folder, "data": folder, "base": str(NANO / "base" / "pixart_nano_base.safetensors")}
        kind = {"lcd": distill.Lcd, "lcm-lora": distill.LcmLora}[command]
        task = kind(config.make_config(command, {**values, **settings}))
    target = task.model if task.ema is None else task.ema
    for network in (task.model, target, *task.frozen):
        network.to(device)
    grid, out = ddim_timesteps(), {}
    noise = torch.randn(batch["latent"].shape, generator=torch.Generator().manual_seed(0)).to(device)
    for t in TIMESTEPS:
        index = torch.full((len(noise),), grid.index(t), device=device)
        with task.autocast():
            result = distill.lcd_loss(
                task.model, task.teacher, target, batch, noise, index, 4.5, options=task.forward_options()
            )
        out[t] = (result.prediction - result.target).detach().float().cpu()
    return out


@torch.no_grad()
def one_step(batch: dict, device: str, dtype: torch.dtype) -> torch.Tensor:
    """x₀ of the student after one step at t = 999, from four noises for each caption: 32 pictures of 8."""
    model = pc.load_pixart(NANO / "transformer", dtype, device)
    found = []
    for seed in range(1, 5):
        noise = torch.randn(batch["latent"].shape, generator=torch.Generator().manual_seed(seed)).to(device)
        t = torch.full((len(noise),), 999, device=device)
        epsilon = model(noise, t, batch["caption"], batch["caption_mask"], batch["image_size"], batch["aspect_ratio"])
        found.append(consistency(noise, epsilon[:, :4].float(), t).cpu())
    return torch.cat(found)


def measure(device: str, count: int) -> tuple[dict, bool]:
    batch = scenes(count, device)
    with where_emulated(device):
        return _measure(batch, device)


def _measure(batch: dict, device: str) -> tuple[dict, bool]:
    rows, good = {}, True
    for command in ("lcd", "lcm-lora"):
        exact = lcd_signal(batch, device, command, precision="fp32")
        for precision, checkpointing in itertools.product(("fp16", "bf16"), (False, True)):
            found = lcd_signal(batch, device, command, precision=precision, gradient_checkpointing=checkpointing)
            errors = {t: ((found[t] - exact[t]).abs().mean() / exact[t].abs().mean()).item() for t in TIMESTEPS}
            rows[f"{command} {precision}{', checkpointing' * checkpointing}"] = errors
            good &= precision == "bf16" or max(errors.values()) <= 0.10
    reference = one_step(batch, device, torch.float32)
    for dtype, limit in ((torch.float16, 0.01), (torch.bfloat16, 0.06)):
        error = (one_step(batch, device, dtype) - reference).square().mean().sqrt() / reference.std()
        rows[f"one step {str(dtype).removeprefix('torch.')}"] = {999: error.item()}
        good &= error.item() <= limit
    return rows, good


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    figures, met = measure(options.device, options.pictures)
    for name, errors in figures.items():
        print(f"{name:28}" + "  ".join(f"t={t}: {error:.3f}" for t, error in errors.items()))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))
    raise SystemExit(0 if met else 1)
