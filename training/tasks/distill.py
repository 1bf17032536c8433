"""`lcd` and `lcm-lora`: Latent Consistency Distillation, of the whole model or into LoRA layers on it."""

from __future__ import annotations

import torch
from torch import Tensor

from ...pixart_core.lcm import DDIM_STEPS
from ...pixart_core.schedule import alphas_cumprod
from ..config import DistillConfig, LcdConfig, LcmLoraConfig
from ..denoise import drop_captions
from ..distill import lcd_loss
from ..draws import Draws
from ..guidance import GuidedTimestepEmbedder, with_fixed_guidance
from ..lora import WithoutLora, add_lora
from .base import DTYPES, Task, load_base


class Distillation(Task):
    """A student that learns a step of a guided teacher (paper Algorithm 1)."""

    config: DistillConfig

    def loss(self, model, batch, draws):
        latent, config = batch["latent"], self.config
        noise, index = draws.normal(latent.shape[1:]), draws.integers(DDIM_STEPS)
        guidance = self.guidance(draws)
        if config.caption_drop:
            batch = drop_captions(batch, self.null_caption(), draws.uniform() < config.caption_drop)
        return lcd_loss(
            model,
            self.teacher,
            model if self.ema is None else self.ema,
            batch,
            noise,
            index,
            guidance,
            config.loss,
            config.huber_c,
            self.table,
            self.forward_options(),
        ).loss

    @property
    def table(self) -> Tensor:
        return alphas_cumprod(self.config.beta_schedule == "scaled_linear")

    def guidance(self, draws: Draws) -> float | Tensor:
        """ω of the teacher's solver."""
        return self.config.guidance


class Lcd(Distillation):
    """All weights of the student learn; the teacher is frozen, the target is the student's average."""

    command = "lcd"
    config: LcdConfig

    def __init__(self, config: LcdConfig):
        student = load_base(config, torch.float32, reads_null_caption=True).train()
        if config.w_embedding:
            student.t_embedder = GuidedTimestepEmbedder(student.t_embedder)
        super().__init__(config, student, average=config.ema_decay > 0)
        self.teacher = load_base(config, DTYPES[config.precision], reads_null_caption=True).requires_grad_(False)
        self.frozen = [self.teacher]

    def guidance(self, draws):
        config = self.config
        if not config.w_embedding:
            return config.guidance
        return config.w_min + (config.w_max - config.w_min) * draws.uniform()

    def result(self, average=True):
        network = super().result(average)
        return with_fixed_guidance(network, self.config.guidance) if self.config.w_embedding else network


class LcmLora(Distillation):
    """LoRA layers learn. The same weights without them are the teacher, and with them, as they are now, the target."""

    command = "lcm-lora"
    config: LcmLoraConfig

    def __init__(self, config: LcmLoraConfig):
        base = load_base(config, DTYPES[config.precision], reads_null_caption=True)
        super().__init__(config, add_lora(base, config.lora_rank, config.lora_alpha, config.seed), average=False)
        self.teacher = WithoutLora(self.model)
