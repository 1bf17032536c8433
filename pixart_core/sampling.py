"""Noise to latents by either sampler: LCM for distilled models, DPM-Solver++ with guidance for base models."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .lcm import ModelFn, lcm_timesteps, require_finite, sample_lcm
from .schedule import BETA_END, BETA_START, NUM_TIMESTEPS

STEPS = {"lcm": 4, "dpm": 14}
"""Steps of each sampler, when nothing else is asked for."""
GUIDANCE = {"lcm": 1.0, "dpm": 4.5}
"""What PixArt-α is sampled with; distilled models have theirs built in."""

Callback = Callable[[int, Tensor], None]


def plan_steps(sampler: str, steps: int | None = None, grid: str = "diffusers") -> Sequence[int] | int:
    """What `sample` takes: the timesteps of "lcm" (see `lcm_timesteps`), the number of steps of "dpm".

    Args:
        steps: None = 4 or 14.

    Raises:
        ValueError: on another sampler, grid or number of steps.
        ImportError: for "dpm" without diffusers.
    """
    if sampler not in STEPS:
        raise ValueError(f"unknown sampler {sampler!r}: choose one of {', '.join(STEPS)}")
    steps = STEPS[sampler] if steps is None else steps
    if sampler == "lcm":
        return lcm_timesteps(steps, grid)
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= NUM_TIMESTEPS:
        raise ValueError(f"DPM-Solver++ takes 1 to {NUM_TIMESTEPS} steps, got {steps!r}")
    if importlib.util.find_spec("diffusers") is None:  # said before anything is loaded or encoded
        raise ImportError(
            "DPM-Solver++ is diffusers', which is missing: pip install diffusers. The sampler lcm does without"
        )
    return steps


def guided(predictor: Callable[..., Tensor], conditions: Mapping[str, Tensor], guidance: float) -> ModelFn:
    """(latent (B, C, h, w), timestep (B,)) -> epsilon (B, C, h, w), with classifier-free guidance if wanted.

    Args:
        predictor: called as predictor(latent, timestep, **conditions), as a `PixArt` is.
        conditions: caption and what else the predictor takes, of B pictures; of 2·B for guidance, the unconditional
            ones second.
        guidance: ε = ε_uncond + guidance · (ε_cond − ε_uncond).
    """

    def epsilon(latent: Tensor, timestep: Tensor) -> Tensor:
        halves = len(conditions["caption"]) // len(latent)
        out = predictor(latent.repeat(halves, 1, 1, 1), timestep.repeat(halves), **conditions)
        out = out[:, : latent.shape[1]].float()
        if halves == 1:
            return out
        conditional, unconditional = out.chunk(2)
        return unconditional + guidance * (conditional - unconditional)

    return epsilon


def sample(
    model_fn: ModelFn,
    noise: Tensor,
    steps: Sequence[int] | int,
    *,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
    table: Tensor | None = None,
) -> Tensor:
    """The denoised latent (B, C, h, w), float32.

    Args:
        model_fn: see `guided`.
        noise: (B, C, h, w).
        steps: from `plan_steps`: LCM's timesteps, or the number of DPM-Solver++'s steps.
        generator: of the noise of LCM's later steps.
        callback: called as callback(step, denoised) after every step; raising from it stops the run.
        table: ᾱ of another noise schedule than PixArt's, for "lcm".

    Raises:
        ValueError: on a model that returns NaN or infinite values.
    """
    if not isinstance(steps, int):
        return sample_lcm(model_fn, noise, steps, generator=generator, callback=callback, table=table)
    return sample_dpm(model_fn, noise, steps, callback)


def sample_dpm(model_fn: ModelFn, noise: Tensor, steps: int, callback: Callback | None = None) -> Tensor:
    """Second-order multistep DPM-Solver++ (diffusers') from `noise` (B, C, h, w) on PixArt's schedule.

    Args:
        model_fn: (latent (B, C, h, w), timestep (B,)) -> epsilon (B, C, h, w).
        callback: called as callback(step, denoised) after every step; raising from it stops the run.

    Raises:
        ValueError: on a model that returns NaN or infinite values.
    """
    scheduler = _dpm_scheduler(steps)
    scheduler.set_begin_index(0)  # else it looks its first timestep up
    latent = noise.float() * scheduler.init_noise_sigma
    for step, timestep in enumerate(scheduler.timesteps):
        epsilon = model_fn(latent, torch.full((len(latent),), int(timestep), device=latent.device))
        latent = scheduler.step(epsilon, timestep, latent, return_dict=False)[0]
        if callback is not None:
            callback(step, scheduler.model_outputs[-1])
    return require_finite(latent)


def dpm_timesteps(steps: int) -> list[int]:
    """Timesteps of a `sample_dpm` run, first to last."""
    return [int(timestep) for timestep in _dpm_scheduler(steps).timesteps]


def _dpm_scheduler(steps: int) -> Any:
    """Its timesteps and sigmas stay on the CPU: reading one there waits for nothing."""
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(
        NUM_TIMESTEPS,
        BETA_START,
        BETA_END,
        "linear",
        solver_order=2,
        algorithm_type="dpmsolver++",
        prediction_type="epsilon",
    )
    scheduler.set_timesteps(steps, "cpu")
    return scheduler
