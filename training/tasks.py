"""What each command trains: its networks, its loss for a batch, and what it exports. The loop knows nothing more."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from pathlib import Path

import torch
from torch import Tensor

from ..pixart_core.checkpoint import load_pixart, save_pixart
from ..pixart_core.config import PixArtConfig
from ..pixart_core.lcm import DDIM_STEPS
from ..pixart_core.model import PixArt
from ..pixart_core.schedule import NUM_TIMESTEPS
from .config import FinetuneConfig, LcdConfig, TrainConfig
from .denoise import drop_captions, epsilon_loss
from .distill import lcd_loss


class Task(ABC):
    """A trainable network, its average, and the loss of a batch."""

    model: PixArt
    ema: PixArt

    def __init__(self, config: TrainConfig, model: PixArt):
        self.config = config
        self.model = model.float().train()
        self.ema = copy.deepcopy(self.model).eval().requires_grad_(False)

    @abstractmethod
    def loss(self, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        """Scalar loss; `generator` gives every random number of the step."""

    def ema_decay(self, step: int) -> float:
        """Decay of the average after `step` steps."""
        return self.config.ema_decay

    def compile(self) -> None:
        """Compile the forward passes in place."""
        self.model.compile(dynamic=False)

    def export(self, folder: Path) -> Path:
        """Save the averaged weights for use elsewhere."""
        path = folder / "pixart.safetensors"
        return save_pixart(self.ema, path, dtype=torch.float16, metadata={"training": self.config.to_dict()})


class Finetune(Task):
    """Noise prediction on the model's own captions, some of them dropped."""

    config: FinetuneConfig

    def __init__(self, config: FinetuneConfig):
        if config.base:
            model = load_pixart(config.base, torch.float32)
        else:
            torch.manual_seed(config.seed)
            model = PixArt(PixArtConfig.from_dict(config.model)).initialize_weights()
        super().__init__(config, model)

    def loss(self, batch, generator):
        latent = batch["latent"]
        noise = torch.randn(latent.shape, generator=generator).to(latent)
        timestep = torch.randint(NUM_TIMESTEPS, (len(latent),), generator=generator).to(latent.device)
        batch = drop_captions(batch, self.model.y_embedder.y_embedding, self.config.caption_drop, generator)
        return epsilon_loss(self.model, batch, noise, timestep, self.config.snr_weight_cap)

    def ema_decay(self, step):
        return min(self.config.ema_decay, (1 + step) / (10 + step))


class Lcd(Task):
    """Latent Consistency Distillation: student, frozen teacher in half precision, EMA target."""

    config: LcdConfig

    def __init__(self, config: LcdConfig):
        super().__init__(config, load_pixart(config.base, torch.float32))
        dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        self.teacher = load_pixart(config.base, dtype).eval().requires_grad_(False)

    def loss(self, batch, generator):
        latent = batch["latent"]
        noise = torch.randn(latent.shape, generator=generator).to(latent)
        index = torch.randint(DDIM_STEPS, (len(latent),), generator=generator).to(latent.device)
        config = self.config
        return lcd_loss(
            self.model, self.teacher, self.ema, batch, noise, index, config.guidance, config.loss, config.huber_c
        ).loss

    def compile(self):
        for network in (self.model, self.teacher, self.ema):
            network.compile(dynamic=False)


TASKS = {"finetune": Finetune, "lcd": Lcd}
