"""ControlNet-Transformer (paper Sec. 3.1, Fig. 4 c): copies of the first N blocks steer the frozen base."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .config import PixArtConfig
from .layers import Block, Conditions
from .model import PixArt


class ControlBlock(nn.Module):
    """A trainable copy of a base block between linears that start at zero."""

    def __init__(self, config: PixArtConfig, first: bool, dtype=None, device=None, operations=nn):
        super().__init__()
        dim = config.hidden_size
        if first:
            self.before_proj = operations.Linear(dim, dim, dtype=dtype, device=device)
        self.copied_block = Block(dim, config.num_heads, config.mlp_ratio, dtype=dtype, device=device,
                                  operations=operations)
        self.after_proj = operations.Linear(dim, dim, dtype=dtype, device=device)

    def forward(self, hint: Tensor, cond: Conditions) -> tuple[Tensor, Tensor]:
        hint = self.copied_block(hint, cond)
        return hint, self.after_proj(hint)


class ControlNetTransformer(nn.Module):
    """Residuals for the first `copy_blocks_num` base blocks, from a hint latent.

    Parameters are named `controlnet.{i}.…` as in the authors' files. The hint is embedded by the base's own patch and
    position embedding, and only the first copy sees the base's tokens: all residuals are known before base block 1.
    """

    def __init__(self, config: PixArtConfig, copy_blocks_num: int = 13, dtype=None, device=None, operations=nn):
        super().__init__()
        if not 1 <= copy_blocks_num < config.depth:
            raise ValueError(f"copy_blocks_num must be 1 … depth - 1 = {config.depth - 1}, got {copy_blocks_num}")
        self.config = config
        self.controlnet = nn.ModuleList(
            ControlBlock(config, index == 0, dtype=dtype, device=device, operations=operations)
            for index in range(copy_blocks_num))

    def forward(self, base: PixArt, latent, timestep, caption, hint, caption_mask=None, image_size=None,
                aspect_ratio=None, *, attention=None) -> list[Tensor]:
        """hint (B, in_channels, h, w): scaled latent of the edge map; the rest as in `PixArt.forward`.

        Returns copy_blocks_num tensors (B, tokens, hidden); residual i belongs to the output of base block i.
        """
        cond = base.embed_conditions(latent, timestep, caption, caption_mask, image_size, aspect_ratio, attention)
        tokens = base.blocks[0](base.embed_latent(latent), cond)
        x = tokens + self.controlnet[0].before_proj(base.embed_latent(hint))
        residuals = []
        for block in self.controlnet:
            x, residual = block(x, cond)
            residuals.append(residual)
        return residuals

    @torch.no_grad()
    def initialize_from(self, base: PixArt) -> ControlNetTransformer:
        """Copy the base's first blocks and zero the linears: control starts as exactly nothing (Sec. 3.1)."""
        for index, block in enumerate(self.controlnet):
            block.copied_block.load_state_dict(base.blocks[index].state_dict())
            for linear in [block.after_proj] + ([block.before_proj] if index == 0 else []):
                nn.init.zeros_(linear.weight)
                nn.init.zeros_(linear.bias)
        return self
