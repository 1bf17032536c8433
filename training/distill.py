"""Latent Consistency Distillation (paper Sec. 2.2, Algorithm 1) as plain functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..pixart_core.lcm import consistency, ddim_step, ddim_timesteps
from ..pixart_core.model import PixArt
from ..pixart_core.schedule import add_noise, predict_x0

LOSSES = ("huber", "l2")


@dataclass(frozen=True)
class LcdResult:
    """One distillation step; tensors (B, C, h, w) unless said otherwise."""

    loss: Tensor
    """Scalar."""
    prediction: Tensor
    """f_θ(z_{t_{n+k}}, t_{n+k}) of the student."""
    target: Tensor
    """f_{θ⁻}(ẑ_{t_n}, t_n) of the EMA network."""
    x_prev: Tensor
    """ẑ_{t_n}: the guided DDIM solver step from `noisy`."""
    noisy: Tensor
    """z_{t_{n+k}}."""
    start_timestep: Tensor
    """(B,): t_{n+k}."""
    end_timestep: Tensor
    """(B,): t_n."""


def distance(prediction: Tensor, target: Tensor, loss: str = "huber", huber_c: float = 0.001) -> Tensor:
    """Mean pseudo-Huber √(d² + c²) − c, or mean squared error.

    Raises:
        ValueError: on another name.
    """
    error = prediction - target
    if loss == "huber":
        return ((error.square() + huber_c**2).sqrt() - huber_c).mean()
    if loss == "l2":
        return error.square().mean()
    raise ValueError(f"unknown loss {loss!r}: choose one of {', '.join(LOSSES)}")


def lcd_loss(
    student: PixArt,
    teacher: PixArt,
    ema: PixArt,
    batch: Mapping[str, Tensor],
    noise: Tensor,
    index: Tensor,
    guidance: float = 4.5,
    loss: str = "huber",
    huber_c: float = 0.001,
) -> LcdResult:
    """One step of Algorithm 1.

    Args:
        student: f_θ; the gradient flows into it alone.
        teacher: the frozen base model of the guided solver step, with a learned null caption.
        ema: f_{θ⁻}, the target network.
        batch: latent (B, C, h, w), caption (B, L, D), caption_mask (B, L), and for micro-conditioned models
            image_size (B, 2) and aspect_ratio (B, 1).
        noise: (B, C, h, w).
        index: (B,), which of the 50 DDIM timesteps 19, 39, …, 999 is t_{n+k}.
        guidance: ω in ε = ε_cond + ω (ε_cond − ε_uncond).
        loss, huber_c: see `distance`.
    """
    latent = batch["latent"]
    grid = torch.tensor(ddim_timesteps(), device=latent.device)
    start = grid[index]
    end = (start - (grid[1] - grid[0])).clamp(min=0)
    noisy = add_noise(latent, noise, start)
    prediction = consistency(noisy, _epsilon(student, noisy, start, batch), start)
    with torch.no_grad():
        x_prev = _guided_ddim_step(teacher, noisy, start, end, batch, guidance)
        target = consistency(x_prev, _epsilon(ema, x_prev, end, batch), end)
    return LcdResult(distance(prediction, target, loss, huber_c), prediction, target, x_prev, noisy, start, end)


def _epsilon(model: PixArt, latent: Tensor, timestep: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    out = model(
        latent, timestep, batch["caption"], batch["caption_mask"], batch.get("image_size"), batch.get("aspect_ratio")
    )
    return out[:, : latent.shape[1]].float()


def _guided_ddim_step(teacher, noisy, start, end, batch, guidance) -> Tensor:
    """Ψ(z, t_{n+k}, t_n, c) with guidance; conditional and unconditional in one batched forward."""
    null = teacher.null_caption(len(noisy), batch["caption"].shape[1]).to(batch["caption"])
    double = {name: torch.cat([value, value]) for name, value in batch.items() if name != "caption"}
    double["caption"] = torch.cat([batch["caption"], null])
    epsilon, unconditional = _epsilon(teacher, torch.cat([noisy, noisy]), torch.cat([start, start]), double).chunk(2)
    x0, x0_unconditional = predict_x0(noisy, epsilon, start), predict_x0(noisy, unconditional, start)
    guided_x0 = x0 + guidance * (x0 - x0_unconditional)
    return ddim_step(guided_x0, epsilon + guidance * (epsilon - unconditional), end)
