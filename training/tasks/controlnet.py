"""`controlnet`: copies of a frozen base's first blocks learn to steer it (paper Sec. 3)."""

from __future__ import annotations

from ...pixart_core.controlnet import WIRINGS
from ...pixart_core.schedule import NUM_TIMESTEPS
from ..config import ConfigError, ControlNetConfig
from ..control import controlnet_loss
from ..denoise import drop_captions
from .base import DTYPES, Task, load_base


class ControlNet(Task):
    """The control learns, the base is frozen in half precision."""

    command = "controlnet"
    needs_hint = True
    sampler = "dpm"
    config: ControlNetConfig

    def __init__(self, config: ControlNetConfig):
        base = load_base(config, DTYPES[config.precision], config.caption_drop > 0).requires_grad_(False)
        kind = WIRINGS[config.wiring]
        try:
            kind.check_copies(base.config, config.copy_blocks)
        except ValueError as error:
            raise ConfigError(f"copy_blocks={config.copy_blocks}, wiring={config.wiring}: {error}") from error
        control = kind(base.config, config.copy_blocks).initialize_from(base)
        super().__init__(config, control, average=config.ema_decay > 0)
        self.base = base
        self.frozen = [base]

    def loss(self, model, batch, draws):
        latent, config = batch["latent"], self.config
        noise, timestep = draws.normal(latent.shape[1:]), draws.integers(NUM_TIMESTEPS)
        if config.caption_drop:
            batch = drop_captions(batch, self.null_caption(), draws.uniform() < config.caption_drop)
        return controlnet_loss(self.base, model, batch, noise, timestep, self.forward_options()).loss

    def null_caption(self):
        return self.base.y_embedder.y_embedding

    def predictor(self):
        control = self.result()

        def predict(latent, timestep, caption, caption_mask, image_size, aspect_ratio, hint):
            conditions = caption_mask, image_size, aspect_ratio
            residuals = control(self.base, latent, timestep, caption, hint, *conditions)
            return self.base(latent, timestep, caption, *conditions, control=residuals)

        return predict
