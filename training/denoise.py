"""The noise-prediction objective that base models are trained with (PixArt-α; ε-loss)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..pixart_core.schedule import add_noise, alphas_cumprod


def epsilon_loss(
    model: Callable[..., Tensor],
    batch: Mapping[str, Tensor],
    noise: Tensor,
    timestep: Tensor,
    snr_weight_cap: float = 1.0,
    options: Mapping[str, Any] | None = None,
) -> Tensor:
    """Mean squared error of the predicted noise, per sample weighted by min(1 + 1 / SNR, cap).

    Args:
        batch: latent, caption, caption_mask, image_size, aspect_ratio, as in `distill.lcd_loss`.
        noise: (B, C, h, w).
        timestep: (B,), 0 … 999.
        snr_weight_cap: 1 is the plain error. An error of ε costs 1 / SNR as much in ẑ_0, so a cap above 1 makes the
            noisy timesteps, where a picture's composition is decided, count more.
        options: block_hook and attention of `PixArt.forward`.

    Returns:
        Scalar.
    """
    latent = batch["latent"]
    noisy = add_noise(latent, noise, timestep)
    conditions = [batch.get(name) for name in ("caption_mask", "image_size", "aspect_ratio")]
    out = model(noisy, timestep, batch["caption"], *conditions, **(options or {}))
    error = (out[:, : latent.shape[1]].float() - noise).square().mean((1, 2, 3))  # (B,)
    weight = (1 / alphas_cumprod().to(latent.device)[timestep]).clamp(max=snr_weight_cap).float()  # 1 + 1/SNR = 1/ᾱ
    return (weight * error).mean()


def drop_captions(batch: Mapping[str, Tensor], null: Tensor, drop: Tensor) -> dict[str, Tensor]:
    """Replace captions by the null caption (L, D) where drop (B,) says so, under their own mask, as the authors do."""
    caption = batch["caption"]
    return {**batch, "caption": torch.where(drop[:, None, None], null[: caption.shape[1]].to(caption), caption)}
