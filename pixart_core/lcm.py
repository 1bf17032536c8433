"""Latent consistency models on PixArt's schedule: their timesteps, and the sampler."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .schedule import NUM_TIMESTEPS, add_noise, consistency

MAX_STEPS = 8
DDIM_STEPS = 50
"""Timesteps the student was distilled on: 19, 39, …, 999 (skipping interval k = 20, paper App. B.1)."""
DDIM_SKIP = NUM_TIMESTEPS // DDIM_STEPS
GRIDS = ("diffusers", "official", "dmd")
DMD_TIMESTEP = 400
"""At which a one-step model (PixArt-α-DMD) predicts the picture, from plain noise."""

ModelFn = Callable[[Tensor, Tensor], Tensor]


def ddim_timesteps() -> list[int]:
    """The 50 distillation timesteps 19, 39, …, 999."""
    return list(range(DDIM_SKIP - 1, NUM_TIMESTEPS, DDIM_SKIP))


def lcm_timesteps(steps: int, grid: str = "diffusers", strength: float = 1.0) -> list[int]:
    """Timesteps of a `steps`-step LCM run, first to last.

    Args:
        steps: 1 … 8.
        grid: "diffusers" (LCMScheduler; 999, 759, 499, 259 for 4 steps) or "official" (the authors' older
            skipping rule; 999, 759, 519, 279), or "dmd": one-step models predict once, at 400, from plain noise.
        strength: part of the schedule that is run, counted from its end: below 1 a given picture keeps its layout
            (image to image, as LCMScheduler's strength).

    Raises:
        ValueError: on another number of steps, an unknown grid, a strength that leaves too few timesteps, or with "dmd"
            anything but one step at full strength.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= MAX_STEPS:
        raise ValueError(f"LCM sampling takes 1 to {MAX_STEPS} steps, got {steps!r}")
    if not 0 < strength <= 1:
        raise ValueError(f"strength must be above 0 and at most 1, got {strength}")
    if grid == "dmd":
        if steps != 1 or strength != 1:
            raise ValueError(
                f"a one-step (DMD) model takes 1 step from plain noise, got {steps} at strength {strength}"
            )
        return [DMD_TIMESTEP]
    origin = ddim_timesteps()[: int(DDIM_STEPS * strength)][::-1]
    if steps > len(origin):
        raise ValueError(f"strength {strength} leaves {len(origin)} timesteps, too few for {steps} steps")
    if grid == "diffusers":
        return [origin[index * len(origin) // steps] for index in range(steps)]
    if grid == "official":
        return origin[:: len(origin) // steps][:steps]
    raise ValueError(f"unknown timestep grid {grid!r}: choose one of {', '.join(GRIDS)}")


@torch.no_grad()
def sample_lcm(
    model_fn: ModelFn,
    noise: Tensor,
    timesteps: Sequence[int],
    noises: Sequence[Tensor] | Tensor | None = None,
    generator: torch.Generator | None = None,
    callback: Callable[[int, Tensor], None] | None = None,
    table: Tensor | None = None,
) -> Tensor:
    """Multistep consistency sampling.

    Args:
        model_fn: (latent (B, C, h, w), timestep (B,)) -> epsilon (B, C, h, w).
        noise: (B, C, h, w), the starting latent at timesteps[0].
        timesteps: descending, from `lcm_timesteps`.
        noises: noises[k] is used after step k; None = drawn from `generator`.
        generator: for the noises; drawn on its own device, then moved.
        callback: called as callback(step, denoised) after every step; raising from it stops the run.
        table: ᾱ of another noise schedule than PixArt's.

    Returns:
        The last denoised latent (B, C, h, w), float32.

    Raises:
        ValueError: on no timesteps, too few noises, or a model that returns a non-finite value.
    """
    if not len(timesteps):
        raise ValueError("sample_lcm needs at least one timestep")
    if noises is not None and len(noises) < len(timesteps) - 1:
        raise ValueError(f"{len(timesteps)} steps need {len(timesteps) - 1} noises, got {len(noises)}")
    latent = noise.float()
    # All noises before the first step: a copy from the host in between would wait for the step before it.
    later = len(timesteps) - 1
    fresh = [_draw(latent, generator) for _ in range(later)] if noises is None else list(noises[:later])
    fresh = [each.to(latent) for each in fresh]
    for step, timestep in enumerate(timesteps):
        t = torch.full((latent.shape[0],), timestep, device=latent.device, dtype=torch.long)
        epsilon = model_fn(latent, t).float()
        denoised = consistency(latent, epsilon, t, table)
        if callback is not None:
            callback(step, denoised)
        if step + 1 < len(timesteps):
            latent = add_noise(denoised, fresh[step], torch.full_like(t, timesteps[step + 1]), table)
    return require_finite(denoised)


class NotFiniteError(ValueError):
    """A model returned NaN or infinite values."""


def require_finite(latent: Tensor) -> Tensor:
    """What came out of a sampling, if it is numbers; waits for it.

    Raises:
        NotFiniteError: else.
    """
    if not torch.isfinite(latent).all():
        raise NotFiniteError(
            "the model returned NaN or infinite values: the checkpoint is damaged, or its dtype overflows "
            "(try bfloat16 or float32)"
        )
    return latent


def _draw(like: Tensor, generator: torch.Generator | None) -> Tensor:
    device = generator.device if generator is not None else like.device
    return torch.randn(like.shape, generator=generator, device=device, dtype=torch.float32).to(like.device)
