"""Fréchet distance of pictures: FID (Heusel et al. 2017) without Inception, which could not be downloaded.

It is one of the autoencoder's latents, which are at hand; or, where an edge detector is given, of what its VGG network
sees: the released one has learnt from photographs alone and owes nothing to the family that is measured.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ...pixart_core.hed import HED

CELLS = 4
"""Rows and columns of the grid that a latent is averaged over: what is where, whatever the picture's size."""

STAGE = 1
"""Of the edge detector's network, counted from 0: textures and small shapes, in 128 channels of the released one."""


def features(latent: Tensor) -> Tensor:
    """Scaled latents (B, C, h, w) of any size -> (B, C · 16) float64."""
    return F.adaptive_avg_pool2d(latent.double(), CELLS).flatten(1)


@torch.no_grad()
def picture_features(network: HED, pictures: Sequence[Image.Image]) -> Tensor:
    """Pictures of any sizes -> (N, channels of the stage) float64: means over each picture."""
    arrays = (np.asarray(picture.convert("RGB"), np.float32).transpose(2, 0, 1).copy() for picture in pictures)
    stages = (network.stages(torch.from_numpy(array)[None]) for array in arrays)
    return torch.cat([next(itertools.islice(each, STAGE, None))[0].mean((2, 3)).double() for each in stages])


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """‖μx − μy‖² + tr(Σx + Σy − 2 (Σx Σy)^½) of two sets of features (N, D), (M, D); 0 for equal Gaussians.

    Raises:
        ValueError: on fewer samples than features, whose covariance says nothing.
    """
    require_samples(min(len(x), len(y)), x.shape[1])
    x, y = x.double(), y.double()
    covariance_x, covariance_y = x.T.cov(), y.T.cov()
    # The eigenvalues of Σx Σy are real and not negative; rounding can leave a trace of something else.
    root = torch.linalg.eigvals(covariance_x @ covariance_y).real.clamp(min=0).sqrt().sum()
    trace = covariance_x.trace() + covariance_y.trace() - 2 * root
    return float((x.mean(0) - y.mean(0)).square().sum() + trace)


def require_samples(count: int, width: int) -> None:
    """Whether there are samples enough for a Fréchet distance of so many features; to be asked before they are made.

    Raises:
        ValueError: if there are not.
    """
    if count <= width:
        raise ValueError(f"a Fréchet distance of {width} features needs more samples than that, got {count}")
