"""ControlNets of the paper (Sec. 3.1): copies of the base's first blocks, behind zero linears, steer it by a hint."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from .aliases import Attention, Device, DType, Operations
from .config import PixArtConfig
from .factory import Factory
from .layers import Block, Conditions
from .model import PixArt


class ControlBlock(nn.Module):
    """A trainable copy of a base block between linears that start at zero."""

    def __init__(self, config: PixArtConfig, first: bool, make: Factory):
        super().__init__()
        dim = config.hidden_size
        if first:
            self.before_proj = make.linear(dim, dim)
        self.copied_block = Block(dim, config.num_heads, config.mlp_ratio, make)
        self.after_proj = make.linear(dim, dim)

    def forward(self, hint: Tensor, cond: Conditions, keys_values: Tensor | None = None) -> tuple[Tensor, Tensor]:
        hint = self.copied_block(hint, cond, keys_values)
        return hint, self.after_proj(hint.to(cond.caption.dtype))


class ControlNetTransformer(nn.Module):
    """Residuals for the first `copy_blocks_num` base blocks, from a hint latent (Fig. 4 c).

    Parameters are named `controlnet.{i}.…` as in the authors' files. The hint is embedded by the base's own patch and
    position embedding, and only the first copy sees the base's tokens: all residuals are known before base block 1.
    """

    wiring = "transformer"

    def __init__(
        self,
        config: PixArtConfig,
        copy_blocks_num: int = 13,
        dtype: DType = None,
        device: Device = None,
        operations: Operations = nn,
    ):
        super().__init__()
        self.check_copies(config, copy_blocks_num)
        self.config = config
        make = Factory(dtype, device, operations)
        copies = (ControlBlock(config, index == 0, make) for index in range(copy_blocks_num))
        self.controlnet = cast("Sequence[ControlBlock]", nn.ModuleList(copies))

    def forward(
        self,
        base: PixArt,
        latent: Tensor,
        timestep: Tensor,
        caption: Tensor,
        hint: Tensor,
        caption_mask: Tensor | None = None,
        image_size: Tensor | None = None,
        aspect_ratio: Tensor | None = None,
        *,
        attention: Attention | None = None,
        block_hook: Callable[..., tuple[Tensor, Tensor]] | None = None,
        conditions: Conditions | None = None,
        keys_values: Sequence[Tensor] | None = None,
    ) -> Sequence[Tensor | None]:
        """hint (B, in_channels, h, w): scaled latent of the edge map; the rest as in `PixArt.forward`.

        `block_hook` is put around the copies; what it runs returns a pair of tensors. `conditions` are as in
        `PixArt.forward`, `keys_values` those of the copies for them, from `keys_values`.

        Returns residuals (B, tokens, hidden): item i belongs to the output of base block i; None: nothing does.
        """
        cond = conditions
        if cond is None:
            cond = base.embed_conditions(latent, timestep, caption, caption_mask, image_size, aspect_ratio, attention)
        first = None if cond.keys_values is None else cond.keys_values[0]
        tokens = base.blocks[0](base.embed_latent(latent, cond.position), cond, first)
        embedded = base.embed_latent(hint, cond.position)
        x = tokens + self.controlnet[0].before_proj(embedded.to(cond.caption.dtype))
        residuals = []
        for index, block in enumerate(self.controlnet):
            if block_hook is not None:
                x, residual = block_hook(index, functools.partial(block, cond=cond), x)
            else:
                x, residual = block(x, cond, None if keys_values is None else keys_values[index])
            residuals.append(residual)
        return self.connect(residuals)

    def keys_values(self, caption: Tensor) -> tuple[Tensor, ...]:
        """What the copies' cross-attentions make of a caption (B, L, hidden), as in `Conditions.keys_values`."""
        return tuple(block.copied_block.cross_attn.kv_linear(caption) for block in self.controlnet)

    def connect(self, residuals: list[Tensor]) -> Sequence[Tensor | None]:
        """What each copy says -> what each base block's output takes."""
        return residuals

    @staticmethod
    def check_copies(config: PixArtConfig, copy_blocks_num: int) -> None:
        """Raise ValueError where a base of this shape cannot be steered by so many copies."""
        if not 1 <= copy_blocks_num < config.depth:
            raise ValueError(f"copy_blocks_num must be 1 … depth - 1 = {config.depth - 1}, got {copy_blocks_num}")

    @torch.no_grad()
    def initialize_from(self, base: PixArt) -> ControlNetTransformer:
        """Copy the base's first blocks and zero the linears: control starts as exactly nothing (Sec. 3.1)."""
        for index, block in enumerate(self.controlnet):
            block.copied_block.load_state_dict(base.blocks[index].state_dict())
            for linear in [block.after_proj] + ([block.before_proj] if index == 0 else []):
                nn.init.zeros_(linear.weight)
                nn.init.zeros_(linear.bias)
        return self


class ControlNetUNet(ControlNetTransformer):
    """The paper's ablation (Fig. 4 b): copies of the first half of the blocks, skip connections to the second half.

    As in a UNet the halves mirror each other: copy i joins the input of base block depth - 1 - i, which is the output
    of the block before. All else, parameter names included, is the ControlNet-Transformer's, so that the two compare.
    """

    wiring = "unet"

    def __init__(
        self,
        config: PixArtConfig,
        copy_blocks_num: int | None = None,
        dtype: DType = None,
        device: Device = None,
        operations: Operations = nn,
    ):
        copies = config.depth // 2 if copy_blocks_num is None else copy_blocks_num
        super().__init__(config, copies, dtype, device, operations)

    def connect(self, residuals: list[Tensor]) -> Sequence[Tensor | None]:
        return [*[None] * (self.config.depth - 1 - len(residuals)), *residuals[::-1]]

    @staticmethod
    def check_copies(config: PixArtConfig, copy_blocks_num: int) -> None:
        if 2 * copy_blocks_num != config.depth:
            raise ValueError(
                "ControlNet-UNet copies the first half of the base's blocks: copy_blocks_num must be "
                f"depth / 2 = {config.depth / 2:g}, got {copy_blocks_num}"
            )


@dataclass(frozen=True)
class Hint:
    """What a ControlNet follows, how strongly, and in which part of the sampling.

    Args:
        image: edge map: a PIL image, pictures (B, H, W, 3) in 0 … 1 (or 1 or 4 channels, see `hint_rgb`), or their
            scaled latent (B, 4, h, w).
        strength: factor of the ControlNet's residuals; 0 is as without a hint.
        start, end: part of the sampling that is controlled, 0 … 1, counted as ComfyUI does: timesteps from
            999·(1 − start) down to 999·(1 − end).

    Raises:
        ValueError: on a start and end that are not 0 … 1 in this order.
    """

    image: Any
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end <= 1:
            raise ValueError(f"a hint's start and end are 0 … 1 in this order, got {self.start:g} and {self.end:g}")

    def covers(self, timestep: float) -> bool:
        return (self.start, self.end) == (0, 1) or 999 * (1 - self.end) <= timestep <= 999 * (1 - self.start)


def hint_rgb(hint: Tensor) -> Tensor:
    """Hint pictures (B, C, H, W) -> (B, 3, H, W) float32: grey is repeated, RGBA put on black, which is no edge.

    Raises:
        ValueError: on another number of channels, or NaN.
    """
    if hint.ndim != 4 or hint.shape[1] not in (1, 3, 4):
        raise ValueError(f"a hint has 1 (grey), 3 (RGB) or 4 (RGBA) channels, got shape {tuple(hint.shape)}")
    hint = hint.float()
    if not hint.isfinite().all():
        raise ValueError("the hint picture holds NaN or infinite values: look at the node that made it")
    if hint.shape[1] == 4:
        hint = hint[:, :3] * hint[:, 3:]
    return hint.expand(-1, 3, -1, -1)


WIRINGS = {kind.wiring: kind for kind in (ControlNetTransformer, ControlNetUNet)}
"""The ControlNet class of each wiring that a file may name."""
