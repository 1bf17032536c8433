"""LCM's guidance embedding (the paper's ω_Embed ablation, Fig. 2): a student that is told ω beside the timestep."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ..pixart_core.functional import timestep_embedding
from ..pixart_core.layers import ScalarEmbedder
from ..pixart_core.model import PixArt


class GuidedTimestepEmbedder(nn.Module):
    """PixArt's timestep embedder with a projection of ω's sinusoid, zero at first, added to the timestep's (LCM, 4.1).

    Takes (B, 2): timestep and ω.
    """

    scale = 1000.0
    """Of ω before its sinusoid, as in LCM."""

    def __init__(self, embedder: ScalarEmbedder):
        super().__init__()
        self.mlp = embedder.mlp
        self.projection = nn.Linear(embedder.frequency_dim, embedder.frequency_dim, bias=False)
        nn.init.zeros_(self.projection.weight)

    def forward(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        """values (B, 2) -> (B, hidden)."""
        time, guidance = values.float().unbind(1)
        return self.mlp((timestep_embedding(time, self.projection.out_features) + self._embed(guidance)).to(dtype))

    def fold(self, guidance: float) -> ScalarEmbedder:
        """The plain embedder that does the same for one ω: what ω adds is a constant, so it becomes part of a bias."""
        plain = ScalarEmbedder(self.mlp[2].out_features)
        plain.mlp = copy.deepcopy(self.mlp)
        constant = self._embed(torch.full((1,), guidance, device=self.projection.weight.device))[0]
        plain.mlp[0].bias.data += plain.mlp[0].weight @ constant
        return plain

    def _embed(self, guidance: Tensor) -> Tensor:
        return self.projection(timestep_embedding(self.scale * guidance, self.projection.in_features))


@torch.no_grad()
def with_fixed_guidance(model: PixArt, guidance: float) -> PixArt:
    """A plain PixArt that does what a student with a `GuidedTimestepEmbedder` does for one ω; a copy."""
    plain = copy.deepcopy(model)
    plain.t_embedder = model.t_embedder.fold(guidance)
    return plain
