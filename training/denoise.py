"""The noise-prediction objective that base models are trained with (PixArt-α; ε-loss)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..pixart_core.model import PixArt
from ..pixart_core.schedule import add_noise, alphas_cumprod


def epsilon_loss(
    model: PixArt, batch: Mapping[str, Tensor], noise: Tensor, timestep: Tensor, snr_weight_cap: float = 1.0
) -> Tensor:
    """Mean squared error of the predicted noise, per sample weighted by min(1 + 1 / SNR, cap).

    Args:
        batch: latent, caption, caption_mask, image_size, aspect_ratio, as in `distill.lcd_loss`.
        noise: (B, C, h, w).
        timestep: (B,), 0 … 999.
        snr_weight_cap: 1 is the plain error. An error of ε costs 1 / SNR as much in ẑ_0, so a cap above 1 makes the
            noisy timesteps, where a picture's composition is decided, count more.

    Returns:
        Scalar.
    """
    latent = batch["latent"]
    noisy = add_noise(latent, noise, timestep)
    out = model(
        noisy, timestep, batch["caption"], batch["caption_mask"], batch.get("image_size"), batch.get("aspect_ratio")
    )
    error = (out[:, : latent.shape[1]].float() - noise).square().mean((1, 2, 3))  # (B,)
    weight = (1 / alphas_cumprod().to(latent.device)[timestep]).clamp(max=snr_weight_cap).float()  # 1 + 1/SNR = 1/ᾱ
    return (weight * error).mean()


def drop_captions(
    batch: Mapping[str, Tensor], null: Tensor, share: float, generator: torch.Generator
) -> dict[str, Tensor]:
    """Replace a random share of captions by the null caption (L, D) under the caption's own mask, as the authors do."""
    drop = torch.rand(len(batch["caption"]), generator=generator) < share
    caption = torch.where(
        drop.to(batch["caption"].device)[:, None, None],
        null[: batch["caption"].shape[1]].to(batch["caption"]),
        batch["caption"],
    )
    return {**batch, "caption": caption}
