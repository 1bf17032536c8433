"""Latent Consistency Distillation (paper Sec. 2.2, Algorithm 1) as plain functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..pixart_core.lcm import consistency, ddim_step, ddim_timesteps
from ..pixart_core.model import PixArt
from ..pixart_core.schedule import add_noise, predict_x0

LOSSES = ("huber", "l2")
_CONDITIONS = ("caption_mask", "image_size", "aspect_ratio")


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
    student: Callable[..., Tensor],
    teacher: PixArt,
    ema: Callable[..., Tensor],
    batch: Mapping[str, Tensor],
    noise: Tensor,
    index: Tensor,
    guidance: float | Tensor = 4.5,
    loss: str = "huber",
    huber_c: float = 0.001,
    table: Tensor | None = None,
    options: Mapping[str, Any] | None = None,
) -> LcdResult:
    """One step of Algorithm 1.

    Args:
        student: f_θ; the gradient flows into it alone.
        teacher: the frozen base model of the guided solver step, with a learned null caption.
        ema: f_{θ⁻}, the target network; without an average the student itself.
        batch: latent (B, C, h, w), caption (B, L, D), caption_mask (B, L), and for micro-conditioned models
            image_size (B, 2) and aspect_ratio (B, 1).
        noise: (B, C, h, w).
        index: (B,), which of the 50 DDIM timesteps 19, 39, …, 999 is t_{n+k}.
        guidance: ω in ε = ε_cond + ω (ε_cond − ε_uncond). As a tensor (B,) it is each picture's own, and student and
            ema take it beside the timestep (`guidance.GuidedTimestepEmbedder`).
        loss, huber_c: see `distance`.
        table: ᾱ of another noise schedule than PixArt's.
        options: for the student's forward with gradient: block_hook and attention of `PixArt.forward`.
    """
    latent = batch["latent"]
    grid = torch.tensor(ddim_timesteps(), device=latent.device)
    start = grid[index]
    end = (start - (grid[1] - grid[0])).clamp(min=0)
    noisy = add_noise(latent, noise, start, table)
    embedded = guidance if isinstance(guidance, Tensor) else None
    epsilon = _epsilon(student, noisy, start, batch, embedded, **(options or {}))
    prediction = consistency(noisy, epsilon, start, table)
    with torch.no_grad():
        x_prev = _guided_ddim_step(teacher, noisy, start, end, batch, guidance, table)
        target = consistency(x_prev, _epsilon(ema, x_prev, end, batch, embedded), end, table)
    return LcdResult(distance(prediction, target, loss, huber_c), prediction, target, x_prev, noisy, start, end)


def _epsilon(model, latent, timestep, batch, guidance=None, **options) -> Tensor:
    time = timestep if guidance is None else torch.stack([timestep.to(guidance), guidance], dim=1)
    out = model(latent, time, batch["caption"], *(batch.get(name) for name in _CONDITIONS), **options)
    return out[:, : latent.shape[1]].float()


def _guided_ddim_step(teacher, noisy, start, end, batch, guidance, table) -> Tensor:
    """Ψ(z, t_{n+k}, t_n, c) with guidance; conditional and unconditional in one batched forward."""
    null = teacher.null_caption(len(noisy), batch["caption"].shape[1]).to(batch["caption"])
    double = {name: torch.cat([batch[name]] * 2) for name in _CONDITIONS if name in batch}
    double["caption"] = torch.cat([batch["caption"], null])
    with torch.autocast(noisy.device.type, enabled=False):  # frozen: computes in the type of its weights, without casts
        both = _epsilon(teacher, torch.cat([noisy, noisy]), torch.cat([start, start]), double)
    epsilon, unconditional = both.chunk(2)
    x0, x0_unconditional = predict_x0(noisy, epsilon, start, table), predict_x0(noisy, unconditional, start, table)
    if isinstance(guidance, Tensor):
        guidance = guidance[:, None, None, None]
    guided_x0 = x0 + guidance * (x0 - x0_unconditional)
    return ddim_step(guided_x0, epsilon + guidance * (epsilon - unconditional), end, table)
