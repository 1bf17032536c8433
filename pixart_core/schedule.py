"""The diffusion process PixArt was trained with: 1000 steps, β linear from 1e-4 to 0.02 (paper App. B.1, Fig. 3).

With what a noise prediction means on it: ẑ_0, the consistency function and a DDIM step are sums of a latent and the
prediction, so each is told by its two weights.
"""

from __future__ import annotations

import functools
from typing import TypeVar

import torch
from torch import Tensor

NUM_TIMESTEPS = 1000
BETA_START = 1e-4
BETA_END = 2e-2

_SIGMA_DATA, _TIMESTEP_SCALING = 0.5, 10.0
"""The boundary condition's, as LCM has them."""

ScalarOrTensor = TypeVar("ScalarOrTensor", float, Tensor)

Weights = tuple[Tensor, Tensor]
"""What two latents (B, C, h, w) count in a sum, each (B, 1, 1, 1) float32: all that a noise prediction means is one."""


@functools.cache
def alphas_cumprod(scaled_linear: bool = False) -> Tensor:
    """ᾱ_t for every timestep, (1000,) float64 on the CPU.

    `scaled_linear` is the schedule of the original LCM (0.00085 → 0.012), for the paper's Fig. 3 ablation only.
    """
    if scaled_linear:
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, NUM_TIMESTEPS, dtype=torch.float64) ** 2
    else:
        betas = torch.linspace(BETA_START, BETA_END, NUM_TIMESTEPS, dtype=torch.float64)
    return torch.cumprod(1 - betas, dim=0)


def look_up(table: Tensor, timestep: Tensor) -> Tensor:
    """A table's values (…) at `timestep` (…), float32, on the timestep's device. Tables are made in float64 on the CPU
    and leave it in float32, once for each device: Apple's GPUs have nothing wider, and a copy from the host waits."""
    return _on_device(table, timestep.device)[timestep.long()]


@functools.lru_cache(maxsize=32)  # a tensor is known by its identity
@torch.inference_mode(False)  # whoever comes next may want gradients
def _on_device(table: Tensor, device: torch.device) -> Tensor:
    return table.float().to(device)


@functools.lru_cache(maxsize=4)  # a tensor is known by its identity
def _roots(table: Tensor) -> tuple[Tensor, Tensor]:
    """√ᾱ and √(1 − ᾱ) of a table of ᾱ."""
    return table.sqrt().float(), (1 - table).sqrt().float()


def noise_weights(timestep: Tensor, table: Tensor | None = None) -> Weights:
    """√ᾱ_t and √(1 − ᾱ_t): of z_0 and ε in z_t. table: ᾱ of another schedule than PixArt's."""
    roots = _roots(alphas_cumprod() if table is None else table)
    signal, sigma = (look_up(root, timestep).view(-1, 1, 1, 1) for root in roots)
    return signal, sigma


def x0_weights(timestep: Tensor, table: Tensor | None = None) -> Weights:
    """Of z_t and a noise prediction in ẑ_0: z_t = √ᾱ_t z_0 + √(1 − ᾱ_t) ε, solved for z_0."""
    signal, sigma = noise_weights(timestep, table)
    return 1 / signal, -sigma / signal


def ddim_weights(start: Tensor, end: Tensor, table: Tensor | None = None) -> Weights:
    """Of z_start and a noise prediction there in z_end: a deterministic DDIM step (the solver Ψ of Algorithm 1).
    It adds the same noise again to ẑ_0, as much as there is at `end`."""
    (of_noisy, of_epsilon), (signal, sigma) = x0_weights(start, table), noise_weights(end, table)
    return signal * of_noisy, signal * of_epsilon + sigma


def consistency_weights(timestep: Tensor, table: Tensor | None = None) -> Weights:
    """Of z_t and a noise prediction in f_θ(z_t, t) = c_skip · z_t + c_out · ẑ_0."""
    c_skip, c_out = (c.view(-1, 1, 1, 1) for c in boundary_scalings(timestep))
    of_noisy, of_epsilon = x0_weights(timestep, table)
    return c_skip + c_out * of_noisy, c_out * of_epsilon


def boundary_scalings(timestep: ScalarOrTensor) -> tuple[ScalarOrTensor, ScalarOrTensor]:
    """(c_skip, c_out) of the consistency function f = c_skip · z_t + c_out · ẑ_0 (paper A.1; LCM, Sec. 4.1).

    c_skip → 1 and c_out → 0 as t → 0. `timestep` may be a number or a tensor; the result is of its kind (float32).
    """
    scaled = (timestep.float() if isinstance(timestep, Tensor) else float(timestep)) * _TIMESTEP_SCALING
    return _SIGMA_DATA**2 / (scaled**2 + _SIGMA_DATA**2), scaled / (scaled**2 + _SIGMA_DATA**2) ** 0.5


def add_noise(latent: Tensor, noise: Tensor, timestep: Tensor, table: Tensor | None = None) -> Tensor:
    """z_t. latent, noise (B, C, h, w); timestep (B,)."""
    signal, sigma = noise_weights(timestep, table)
    return signal * latent + sigma * noise


def predict_x0(noisy: Tensor, epsilon: Tensor, timestep: Tensor, table: Tensor | None = None) -> Tensor:
    """ẑ_0 from z_t and a noise prediction: noisy, epsilon (B, C, h, w); timestep (B,)."""
    of_noisy, of_epsilon = x0_weights(timestep, table)
    return of_noisy * noisy + of_epsilon * epsilon


def consistency(noisy: Tensor, epsilon: Tensor, timestep: Tensor, table: Tensor | None = None) -> Tensor:
    """f_θ(z_t, t) from a noise prediction: noisy, epsilon (B, C, h, w); timestep (B,)."""
    of_noisy, of_epsilon = consistency_weights(timestep, table)
    return of_noisy * noisy + of_epsilon * epsilon
