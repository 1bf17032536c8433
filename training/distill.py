"""Latent Consistency Distillation (paper Sec. 2.2, Algorithm 1): its loss as a plain function, and the two commands.

`lcd` distils the whole model, `lcm-lora` the same into LoRA layers on it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..pixart_core.checkpoint import describe_pixart, load_pixart
from ..pixart_core.factory import Factory
from ..pixart_core.functional import exactly, timestep_embedding
from ..pixart_core.layers import ScalarEmbedder
from ..pixart_core.lcm import DDIM_SKIP, DDIM_STEPS
from ..pixart_core.model import PixArt
from ..pixart_core.schedule import Weights, alphas_cumprod, consistency_weights, ddim_weights, noise_weights
from .config import ConfigError, LcdConfig, LcmLoraConfig
from .data.draws import Draws
from .lora import WithoutLora, add_lora, lora_outline
from .task import Outline, Task, count_parameters, mask_weight

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


def distance(
    prediction: Tensor, target: Tensor, loss: str = "huber", huber_c: float = 0.001, weight: Tensor | float = 1.0
) -> Tensor:
    """Mean pseudo-Huber √(d² + c²) − c, or mean squared error.

    Args:
        weight: of each element's part, see `mask_weight`.

    Raises:
        ValueError: on another name.
    """
    error = prediction - target
    if loss == "huber":
        return (weight * ((error.square() + huber_c**2).sqrt() - huber_c)).mean()
    if loss == "l2":
        return (weight * error.square()).mean()
    raise ValueError(f"unknown loss {loss!r}: choose one of {', '.join(LOSSES)}")


def lcd_loss(
    student: Callable[..., Tensor],
    teacher: PixArt | WithoutLora,
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
            image_size (B, 2) and aspect_ratio (B, 1); mask (B, 1, h, w), if only a part of each counts.
        noise: (B, C, h, w).
        index: (B,), which of the 50 DDIM timesteps 19, 39, …, 999 is t_{n+k}.
        guidance: ω in ε = ε_cond + ω (ε_cond − ε_uncond). As a tensor (B,) it is each picture's own, and student and
            ema take it beside the timestep (`GuidedTimestepEmbedder`).
        loss, huber_c: see `distance`.
        table: ᾱ of another noise schedule than PixArt's.
        options: for the student's forward with gradient: block_hook and attention of `PixArt.forward`.
    """
    start = DDIM_SKIP * (index + 1) - 1
    end = (start - DDIM_SKIP).clamp(min=0)
    noisy = _sum(noise_weights(start, table), batch["latent"], noise)
    embedded = guidance if isinstance(guidance, Tensor) else None
    epsilon = _epsilon(student, noisy, start, batch, embedded, **(options or {}))
    with torch.no_grad():
        x_prev = _sum(ddim_weights(start, end, table), noisy, _guided_epsilon(teacher, noisy, start, batch, guidance))
        target = _sum(consistency_weights(end, table), x_prev, _epsilon(ema, x_prev, end, batch, embedded))
    prediction = _sum(consistency_weights(start, table), noisy, epsilon)
    value = distance(prediction, target, loss, huber_c, mask_weight(batch))
    return LcdResult(value, prediction, target, x_prev, noisy, start, end)


def _sum(weights: Weights, latent: Tensor, noise: Tensor) -> Tensor:
    """Every step of the algorithm is one of a latent and its noise; the schedule says with which weights."""
    return weights[0] * latent + weights[1] * noise


def _epsilon(model, latent, timestep, batch, guidance=None, **options) -> Tensor:
    time = timestep if guidance is None else torch.stack([timestep.to(guidance), guidance], dim=1)
    out = model(latent, time, batch["caption"], *(batch.get(name) for name in _CONDITIONS), **options)
    return out[:, : latent.shape[1]].float()


def _guided_epsilon(teacher, noisy, start, batch, guidance) -> Tensor:
    """The teacher's noise prediction with guidance; conditional and unconditional in one batched forward.

    ẑ_0 is linear in it, so this is also what guides the ẑ_0 of the solver Ψ.
    """
    null = teacher.null_caption(len(noisy), batch["caption"].shape[1]).to(batch["caption"])
    double = {name: torch.cat([batch[name]] * 2) for name in _CONDITIONS if name in batch}
    double["caption"] = torch.cat([batch["caption"], null])
    with exactly(start):  # frozen: computes in the type of its weights, without casts
        both = _epsilon(teacher, torch.cat([noisy, noisy]), torch.cat([start, start]), double)
    epsilon, unconditional = both.chunk(2)
    if isinstance(guidance, Tensor):
        guidance = guidance[:, None, None, None]
    return epsilon + guidance * (epsilon - unconditional)


class Distillation(Task):
    """A student that learns a step of a guided teacher (paper Algorithm 1)."""

    model: PixArt
    ema: PixArt | None
    teacher: PixArt | WithoutLora
    is_guided = True
    extra_forwards = 3
    """Without a gradient, each step: the teacher's two, and the target's."""

    def __init__(self, config: LcdConfig | LcmLoraConfig):
        super().__init__(config)
        self.table = alphas_cumprod(config.beta_schedule == "scaled_linear")
        self.omega = config.guidance
        self.distance = config.loss, config.huber_c
        """What `distance` is called with."""

    def loss(self, model, batch, draws):
        latent = batch["latent"]
        noise, index = draws.normal(latent.shape[1:]), draws.integers(DDIM_STEPS)
        guidance = self.guidance(draws)
        batch = self.with_captions_dropped(batch, draws)
        target, options = model if self.ema is None else self.ema, self.forward_options()
        return lcd_loss(
            model, self.teacher, target, batch, noise, index, guidance, *self.distance, self.table, options
        ).loss

    def guidance(self, draws: Draws) -> float | Tensor:
        """ω of the teacher's solver."""
        return self.omega


class Lcd(Distillation):
    """All weights of the student learn; the teacher is frozen, the target is the student's average."""

    command = "lcd"

    @classmethod
    def outline(cls, config, shape):
        size = count_parameters(PixArt(shape, device="meta"))
        return Outline(size, size, shape.depth, extra_forwards=cls.extra_forwards)

    @classmethod
    def check_shape(cls, config, shape):
        if not config.student:
            return
        own = describe_pixart(config.student)[0].to_dict()
        differing = [
            f"{name} {own[name]} and not {value}" for name, value in shape.to_dict().items() if own[name] != value
        ]
        if differing:
            raise ConfigError(
                f"student {config.student} is no model of the base's shape (its {', '.join(differing)}): give one that "
                f"was distilled from {config.base}, or from an earlier state of it"
            )

    def __init__(self, config: LcdConfig):
        super().__init__(config)
        self.teacher = load_pixart(config.base, self.dtype).requires_grad_(False)
        student = _beginning(config, self.teacher)
        if config.w_embedding:
            student.t_embedder = GuidedTimestepEmbedder(student.t_embedder)
        self.set_model(student.train())
        self.omegas = (config.w_min, config.w_max) if config.w_embedding else None
        """The range that ω is drawn from; None = it is always the same."""
        self.frozen = [self.teacher]

    def guidance(self, draws):
        if self.omegas is None:
            return self.omega
        low, high = self.omegas
        return low + (high - low) * draws.uniform()

    def result(self, average=True):
        network = self.ema if average and self.ema is not None else self.model
        return network if self.omegas is None else with_fixed_guidance(network, self.omega)


def _beginning(config: LcdConfig, teacher: PixArt) -> PixArt:
    """What the student is before the first step."""
    student = load_pixart(config.student or config.base, torch.float32)
    if student.y_embedder.y_embedding is None:  # diffusers' layout leaves it out; what is exported has it
        student.y_embedder.y_embedding = teacher.null_caption(1)[0].to(torch.float32, copy=True)
    return student


class LcmLora(Distillation):
    """LoRA layers learn. The same weights without them are the teacher, and with them, as they are now, the target."""

    command = "lcm-lora"

    @classmethod
    def outline(cls, config, shape):
        return lora_outline(shape, config.lora_rank, cls.extra_forwards, config.lora_kind)

    @classmethod
    def packages(cls, config):
        return [*super().packages(config), "peft"]

    def __init__(self, config: LcmLoraConfig):
        super().__init__(config)
        base = load_pixart(config.base, self.dtype)
        self.set_model(add_lora(base, config.lora_rank, config.lora_alpha, config.seed, config.lora_kind))
        self.teacher = WithoutLora(self.model)


class GuidedTimestepEmbedder(ScalarEmbedder):
    """PixArt's timestep embedder with a projection of ω's sinusoid, zero at first, added to the timestep's (LCM, 4.1):
    a student that is told ω beside the timestep (the paper's ω_Embed ablation, Fig. 2).

    Takes (B, 2): timestep and ω.
    """

    scale = 1000.0
    """Factor of ω before its sinusoid, as in LCM."""

    def __init__(self, embedder: ScalarEmbedder):
        nn.Module.__init__(self)  # whose layers are those of `embedder`
        self.mlp = embedder.mlp
        self.projection = nn.Linear(embedder.frequency_dim, embedder.frequency_dim, bias=False)
        nn.init.zeros_(self.projection.weight)

    def forward(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        """values (B, 2) -> (B, hidden)."""
        time, guidance = values.float().unbind(1)
        return self.mlp((timestep_embedding(time, self.projection.out_features) + self._embed(guidance)).to(dtype))

    def fold(self, guidance: float) -> ScalarEmbedder:
        """The plain embedder that does the same for one ω: what ω adds is a constant, so it becomes part of a bias."""
        plain = ScalarEmbedder(len(self.mlp.get_parameter("2.bias")), Factory())
        plain.mlp = copy.deepcopy(self.mlp)
        constant = self._embed(torch.full((1,), guidance, device=self.projection.weight.device))[0]
        plain.mlp.get_parameter("0.bias").data += plain.mlp.get_parameter("0.weight") @ constant
        return plain

    def _embed(self, guidance: Tensor) -> Tensor:
        return self.projection(timestep_embedding(self.scale * guidance, self.projection.in_features))


@torch.no_grad()
def with_fixed_guidance(model: PixArt, guidance: float) -> PixArt:
    """A plain PixArt that does what a student with a `GuidedTimestepEmbedder` does for one ω; a copy."""
    plain = copy.deepcopy(model)
    assert isinstance(model.t_embedder, GuidedTimestepEmbedder)
    plain.t_embedder = model.t_embedder.fold(guidance)
    return plain
