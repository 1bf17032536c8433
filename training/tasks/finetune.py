"""`finetune`: noise prediction, of the whole model or of LoRA layers on it."""

from __future__ import annotations

import torch

from ...pixart_core.config import PixArtConfig
from ...pixart_core.model import PixArt
from ...pixart_core.schedule import NUM_TIMESTEPS
from ..config import FinetuneConfig
from ..denoise import drop_captions, epsilon_loss
from ..lora import add_lora
from .base import DTYPES, Task, load_base


class Finetune(Task):
    """Noise prediction on the data's own captions, some of them dropped."""

    command = "finetune"
    sampler = "dpm"
    config: FinetuneConfig

    def __init__(self, config: FinetuneConfig):
        if config.lora_rank:
            base = load_base(config, DTYPES[config.precision], config.caption_drop > 0)
            super().__init__(config, add_lora(base, config.lora_rank, config.lora_alpha, config.seed), average=False)
            return
        model = load_base(config, torch.float32, config.caption_drop > 0) if config.base else _new_model(config)
        super().__init__(config, model.train(), average=config.ema_decay > 0)

    def loss(self, model, batch, draws):
        latent, config = batch["latent"], self.config
        noise, timestep = draws.normal(latent.shape[1:]), draws.integers(NUM_TIMESTEPS)
        if config.caption_drop:
            batch = drop_captions(batch, self.null_caption(), draws.uniform() < config.caption_drop)
        return epsilon_loss(model, batch, noise, timestep, config.snr_weight_cap, self.forward_options())

    def ema_decay(self, step):
        return min(self.config.ema_decay, (1 + step) / (10 + step))


def _new_model(config: FinetuneConfig) -> PixArt:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return PixArt(PixArtConfig.from_dict(config.model)).initialize_weights()
