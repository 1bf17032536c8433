"""`finetune`: noise prediction (PixArt-α's ε-loss), of the whole model or of LoRA layers on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..pixart_core.checkpoint import load_pixart
from ..pixart_core.config import PixArtConfig
from ..pixart_core.model import PixArt
from ..pixart_core.schedule import NUM_TIMESTEPS, add_noise, alphas_cumprod, look_up
from .config import FinetuneConfig
from .lora import add_lora, lora_outline
from .task import Outline, Task, count_parameters, mask_weight


def epsilon_loss(
    model: Callable[..., Tensor],
    batch: Mapping[str, Tensor],
    noise: Tensor,
    timestep: Tensor,
    snr_weight_cap: float = 1.0,
    min_snr_gamma: float = 0.0,
    options: Mapping[str, Any] | None = None,
) -> Tensor:
    """Mean squared error of the predicted noise, per sample weighted by min(1 + 1 / SNR, cap).

    Args:
        batch: latent, caption, caption_mask, image_size, aspect_ratio, mask, as in `distill.lcd_loss`.
        noise: (B, C, h, w).
        timestep: (B,), 0 … 999.
        snr_weight_cap: 1 is the plain error. An error of ε costs 1 / SNR as much in ẑ_0, so a cap above 1 makes the
            noisy timesteps, where a picture's composition is decided, count more.
        min_snr_gamma: if not 0, the weight is min(SNR, γ) / SNR instead (Hang et al. 2023, for ε).
        options: block_hook and attention of `PixArt.forward`.

    Returns:
        Scalar.
    """
    latent = batch["latent"]
    noisy = add_noise(latent, noise, timestep)
    conditions = [batch.get(name) for name in ("caption_mask", "image_size", "aspect_ratio")]
    out = model(noisy, timestep, batch["caption"], *conditions, **(options or {}))
    error = (mask_weight(batch) * (out[:, : latent.shape[1]].float() - noise).square()).mean((1, 2, 3))  # (B,)
    alpha = look_up(alphas_cumprod(), timestep)
    weight = (1 / alpha).clamp(max=snr_weight_cap)  # 1 + 1/SNR = 1/ᾱ
    if min_snr_gamma:
        weight = (min_snr_gamma * (1 - alpha) / alpha).clamp(max=1.0)  # γ/SNR
    return (weight * error).mean()


class Finetune(Task):
    """Noise prediction on the data's own captions, some of them dropped."""

    command = "finetune"
    sampler = "dpm"

    @classmethod
    def outline(cls, config, shape):
        if config.lora_rank:
            return lora_outline(shape, config.lora_rank, kind=config.lora_kind)
        return Outline(count_parameters(PixArt(shape, device="meta")), 0, shape.depth)

    @classmethod
    def packages(cls, config):
        return [*super().packages(config), *(["peft"] if config.lora_rank else [])]

    def __init__(self, config: FinetuneConfig):
        super().__init__(config)
        if config.lora_rank:
            base = load_pixart(config.base, self.dtype)
            self.set_model(add_lora(base, config.lora_rank, config.lora_alpha, config.seed, config.lora_kind))
        else:
            model = load_pixart(config.base, torch.float32) if config.base else _new_model(config)
            self.set_model(model.train())
        self.weighting = config.snr_weight_cap, config.min_snr_gamma
        """What `epsilon_loss` weights timesteps by."""

    def loss(self, model, batch, draws):
        latent = batch["latent"]
        noise, timestep = draws.normal(latent.shape[1:]), draws.integers(NUM_TIMESTEPS)
        batch = self.with_captions_dropped(batch, draws)
        return epsilon_loss(model, batch, noise, timestep, *self.weighting, self.forward_options())

    def ema_decay(self, step):
        return min(self.decay, (1 + step) / (10 + step))


def _new_model(config: FinetuneConfig) -> PixArt:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return PixArt(PixArtConfig.from_dict(config.model)).initialize_weights()
