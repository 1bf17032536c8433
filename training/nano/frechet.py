"""Fréchet distance of pictures in the autoencoder's latent space: FID (Heusel et al. 2017) without Inception, which has
never seen these scenes and could not be downloaded anyway."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CELLS = 4
"""Rows and columns of the grid that a latent is averaged over: what is where, whatever the picture's size."""


def features(latent: Tensor) -> Tensor:
    """Scaled latents (B, C, h, w) of any size -> (B, C · 16) float64."""
    return F.adaptive_avg_pool2d(latent.double(), CELLS).flatten(1)


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """‖μx − μy‖² + tr(Σx + Σy − 2 (Σx Σy)^½) of two sets of features (N, D), (M, D); 0 for equal Gaussians.

    Raises:
        ValueError: on fewer samples than features, whose covariance says nothing.
    """
    if min(len(x), len(y)) <= x.shape[1]:
        raise ValueError(
            f"a Fréchet distance of {x.shape[1]} features needs more samples than that, got {len(x)} and {len(y)}"
        )
    x, y = x.double(), y.double()
    covariance_x, covariance_y = x.T.cov(), y.T.cov()
    # The eigenvalues of Σx Σy are real and not negative; rounding can leave a trace of something else.
    root = torch.linalg.eigvals(covariance_x @ covariance_y).real.clamp(min=0).sqrt().sum()
    trace = covariance_x.trace() + covariance_y.trace() - 2 * root
    return float((x.mean(0) - y.mean(0)).square().sum() + trace)
