"""`controlnet` (paper Sec. 3): copies of a frozen base's first blocks learn to steer it.

The objective (Sec. 3.3) is the noise error plus the bound of the learned variance.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..pixart_core.checkpoint import load_pixart
from ..pixart_core.controlnet import WIRINGS, ControlNetTransformer
from ..pixart_core.model import PixArt
from ..pixart_core.schedule import NUM_TIMESTEPS, add_noise, alphas_cumprod, look_up, predict_x0
from .config import ConfigError, ControlNetConfig
from .task import Outline, Task, count_parameters, mask_weight


@dataclass(frozen=True)
class ControlNetResult:
    """The loss of a batch of B."""

    loss: Tensor
    """Scalar: mean of mse + vb."""
    mse: Tensor
    """(B,): squared error of the predicted noise."""
    vb: Tensor
    """(B,): variational bound, bits per dimension; trains the variance only."""


def controlnet_loss(
    base: PixArt,
    controlnet: ControlNetTransformer,
    batch: Mapping[str, Tensor],
    noise: Tensor,
    timestep: Tensor,
    options: Mapping[str, Any] | None = None,
) -> ControlNetResult:
    """One training step of a control on its frozen base.

    Args:
        base: frozen; with learn_sigma its variance half enters the bound.
        controlnet: the gradient flows into it alone.
        batch: as in `distill.lcd_loss`, and hint (B, C, h, w): the scaled latent of the edge map.
        noise: (B, C, h, w).
        timestep: (B,), 0 … 999.
        options: of both networks, as a gradient flows through both: block_hook and attention of `PixArt.forward`.
    """
    latent = batch["latent"]
    noisy = add_noise(latent, noise, timestep)
    conditions = [batch.get(name) for name in ("caption_mask", "image_size", "aspect_ratio")]
    options = options or {}
    control = controlnet(base, noisy, timestep, batch["caption"], batch["hint"], *conditions, **options)
    out = base(noisy, timestep, batch["caption"], *conditions, control=control, **options).float()
    epsilon, variance = out.split(latent.shape[1], dim=1) if base.config.learn_sigma else (out, None)
    weight = mask_weight(batch)
    mse = (weight * (epsilon - noise).square()).mean((1, 2, 3))
    vb = torch.zeros_like(mse)
    if variance is not None:
        vb = variational_bound(latent, noisy, epsilon.detach(), variance, timestep, weight)
    return ControlNetResult((mse + vb).mean(), mse, vb)


def variational_bound(
    latent: Tensor,
    noisy: Tensor,
    epsilon: Tensor,
    variance: Tensor,
    timestep: Tensor,
    weight: Tensor | float = 1.0,
) -> Tensor:
    """KL of q(z_{t-1} | z_t, z_0) and the model's step, at t = 0 the decoder's likelihood (IDDPM, eq. 4–6, 15).

    latent, noisy, epsilon, variance (B, C, h, w), variance in −1 … 1 between the posterior's and β_t; timestep (B,).
    weight: of each element's part, see `mask_weight`. Returns (B,), bits per dimension.
    """
    tables = (look_up(table, timestep).view(-1, 1, 1, 1) for table in _posterior_tables())
    beta, posterior, from_x0, from_noisy = tables
    log_variance = torch.lerp(posterior.log(), beta.log(), (variance + 1) / 2)
    true_mean = from_x0 * latent + from_noisy * noisy
    mean = from_x0 * predict_x0(noisy, epsilon, timestep) + from_noisy * noisy
    true_log = posterior.log()
    ratio = (true_log - log_variance).exp() + (true_mean - mean).square() * (-log_variance).exp()
    kl = 0.5 * (-1 + log_variance - true_log + ratio)
    likelihood = _discretised_likelihood(latent, mean, 0.5 * log_variance)
    terms = torch.where((timestep == 0)[:, None, None, None], -likelihood, kl)
    return (weight * terms).mean((1, 2, 3)) / math.log(2)


@functools.cache
def _posterior_tables() -> tuple[Tensor, ...]:
    """β_t, the posterior's variance (for t = 0, where it is 0, that of t = 1), and the weights of z_0 and z_t."""
    table = alphas_cumprod()
    before = torch.cat([table.new_ones(1), table[:-1]])
    beta = 1 - table / before
    variance = beta * (1 - before) / (1 - table)
    variance[0] = variance[1]
    from_x0 = beta * before.sqrt() / (1 - table)
    from_noisy = (1 - before) * (1 - beta).sqrt() / (1 - table)
    return tuple(each.float() for each in (beta, variance, from_x0, from_noisy))


def _discretised_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log-likelihood of x, seen as one of 256 levels in −1 … 1, under a Gaussian; elementwise."""
    centred, inverse = x - mean, (-log_scale).exp()

    def below(value: Tensor) -> Tensor:  # the tanh approximation of the normal distribution that IDDPM trained with
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (value + 0.044715 * value**3)))

    upper, lower = below(inverse * (centred + 1 / 255)), below(inverse * (centred - 1 / 255))
    inside = torch.where(x < -0.999, upper, torch.where(x > 0.999, 1 - lower, upper - lower))
    return inside.clamp(min=1e-12).log()


class ControlNet(Task):
    """The control learns, the base is frozen in half precision."""

    command = "controlnet"
    needs_hint = True
    sampler = "dpm"
    model: ControlNetTransformer

    @classmethod
    def outline(cls, config, shape):
        control = ControlNetTransformer(shape, config.copy_blocks, device="meta")
        base = PixArt(shape, device="meta")
        return Outline(count_parameters(control), count_parameters(base), config.copy_blocks, passed_blocks=shape.depth)

    @classmethod
    def check_shape(cls, config, shape):
        try:
            WIRINGS[config.wiring].check_copies(shape, config.copy_blocks)
        except ValueError as error:
            raise ConfigError(f"copy_blocks={config.copy_blocks}, wiring={config.wiring}: {error}") from error

    def __init__(self, config: ControlNetConfig):
        super().__init__(config)
        self.base = load_pixart(config.base, self.dtype).requires_grad_(False)
        self.frozen = [self.base]
        self.set_model(WIRINGS[config.wiring](self.base.config, config.copy_blocks).initialize_from(self.base))

    def loss(self, model, batch, draws):
        latent = batch["latent"]
        noise, timestep = draws.normal(latent.shape[1:]), draws.integers(NUM_TIMESTEPS)
        batch = self.with_captions_dropped(batch, draws)
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
