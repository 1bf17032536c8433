"""The PixArt transformer: one class for the 256, 512 and micro-conditioned 1024-MS models."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .aliases import Attention, Device, DType, Operations
from .config import PixArtConfig
from .factory import Factory
from .functional import attention as sdpa_attention
from .functional import exactly, position_embedding
from .layers import Block, CaptionEmbedder, Conditions, FinalLayer, PatchEmbed, ScalarEmbedder, in_stream

_GRIDS = 4
"""Sizes whose position grid is kept (75 MB at 2048 px)."""

BlockHook = Callable[[int, functools.partial[Tensor], Tensor], Tensor]


class PixArt(nn.Module):
    """Diffusion transformer of PixArt-α/δ. Parameters carry the authors' names.

    Args:
        config: the shape; see `PixArtConfig`.
        dtype: of the blocks' matrices and the caption projection. The stream of tokens and what is at its ends is
            float32 whatever this is, see `layers`.
        device: of the parameters.
        operations: namespace that Linear and Conv2d are taken from (torch.nn, or ComfyUI's).
    """

    pos_embed: Tensor

    def __init__(self, config: PixArtConfig, dtype: DType = None, device: Device = None, operations: Operations = nn):
        super().__init__()
        self.config = config
        make = Factory(dtype, device, operations)
        ends = in_stream(make)
        dim = config.hidden_size
        self._weights_set_dtype = operations is nn
        self.x_embedder = PatchEmbed(config.patch_size, config.in_channels, dim, ends)
        self.t_embedder = ScalarEmbedder(dim, ends)
        self.t_block = nn.Sequential(nn.SiLU(), ends.linear(dim, 6 * dim))
        self.y_embedder = CaptionEmbedder(config.caption_channels, dim, config.model_max_length, make)
        if config.micro_condition:
            self.csize_embedder = ScalarEmbedder(dim // 3, ends)
            self.ar_embedder = ScalarEmbedder(dim // 3, ends)
        # Kept only so that the authors' files load strictly: forward computes the grid of the size it is given.
        self.register_buffer("pos_embed", make.zeros(1, config.base_size**2, dim))
        blocks = (Block(dim, config.num_heads, config.mlp_ratio, make) for _ in range(config.depth))
        self.blocks = cast("Sequence[Block]", nn.ModuleList(blocks))  # a ModuleList does not say of what
        self.final_layer = FinalLayer(dim, config.patch_size**2 * config.out_channels, ends)

    def forward(
        self,
        latent: Tensor,
        timestep: Tensor,
        caption: Tensor,
        caption_mask: Tensor | None = None,
        image_size: Tensor | None = None,
        aspect_ratio: Tensor | None = None,
        control: Sequence[Tensor | None] | None = None,
        *,
        attention: Attention | None = None,
        block_hook: BlockHook | None = None,
        conditions: Conditions | None = None,
    ) -> Tensor:
        """Predict noise (and variance) of a noisy latent.

        Args:
            latent: (B, in_channels, h, w), scaled by 0.18215; any h and w (odd sizes are padded and cropped back).
            timestep: (B,), 0 … 999.
            caption: (B, L, caption_channels) text embeddings, any L.
            caption_mask: (B, L), 1 = real token; None = all are.
            image_size: (B, 2) height, width in px; None = eight times the latent's.
            aspect_ratio: (B, 1) height / width; None = the latent's. Both are read by micro-conditioned models only.
            control: residuals (B, tokens, hidden); control[i], unless None, is added to the output of block i.
            attention: callable (q, k, v, heads, mask=None) on (B, N, C); None = scaled_dot_product_attention.
            block_hook: called as block_hook(i, run, x) in place of run(x) for every block; run is the block with
                cond=`Conditions`, which it reads and which run(x, cond=…) replaces.
            conditions: of this step, from `embed_steps`; of the arguments above only latent, control and block_hook
                are then read.

        Returns:
            (B, out_channels, h, w) in the latent's dtype: epsilon, then the variance half.

        Raises:
            ValueError: on a latent or caption of another width, or more residuals than blocks.
        """
        self._check(latent, caption, control)
        cond = conditions
        if cond is None:
            cond = self.embed_conditions(latent, timestep, caption, caption_mask, image_size, aspect_ratio, attention)
        x = self.embed_latent(latent, cond.position)  # (B, N, C)
        for index, block in enumerate(self.blocks):
            if block_hook is not None:
                x = block_hook(index, functools.partial(block, cond=cond), x)
            else:
                x = block(x, cond, None if cond.keys_values is None else cond.keys_values[index])
            residual = control[index] if control is not None and index < len(control) else None
            if residual is not None:
                x = x + residual.to(x)
        x = self.final_layer(x, cond.time)  # (B, N, p·p·out)
        return self._unpatchify(x, *latent.shape[-2:]).to(latent.dtype)

    def stream_dtype(self) -> torch.dtype:
        """Type of the tokens. Weights decide with torch.nn; a host's operations cast weights to their input."""
        return self.x_embedder.proj.weight.dtype if self._weights_set_dtype else torch.float32

    @property
    def product_dtype(self) -> torch.dtype:
        """Type of the blocks' weights, or of what goes into those in 8 bits (see `int8`)."""
        return torch.float32 if self.has_int8_blocks else self.blocks[0].mlp.fc1.weight.dtype

    @property
    def has_int8_blocks(self) -> bool:
        """Whether `int8.quantize_blocks` was here: what such a layer has in place of a weight is a method."""
        return not isinstance(self.blocks[0].mlp.fc1.weight, Tensor)

    def _caption(self, caption: Tensor) -> Tensor:
        """In the dtype of the blocks' products; see `stream_dtype`."""
        return caption.to(self.product_dtype) if self._weights_set_dtype else caption

    def embed_latent(self, latent: Tensor, position: Tensor | None = None) -> Tensor:
        """(B, in_channels, h, w) -> tokens (B, ⌈h/p⌉·⌈w/p⌉, hidden) with positions, which are `position_grid`'s."""
        size, dtype = self.config.patch_size, self.stream_dtype()
        position = self.position_grid(latent) if position is None else position
        latent = latent.to(dtype)
        height, width = latent.shape[-2:]
        if height % size or width % size:
            latent = F.pad(latent, (0, -width % size, 0, -height % size), mode="replicate")
        # Contiguous: the convolution leaves channels first, a sum keeps that, and every block's norm would copy.
        return (self.x_embedder(latent) + position).contiguous()

    def position_grid(self, latent: Tensor) -> Tensor:
        """Position embedding (1, N, hidden) of a latent's tokens; made once for each size, and kept on the device."""
        config, (height, width) = self.config, latent.shape[-2:]
        rows, columns = -(-height // config.patch_size), -(-width // config.patch_size)
        shape = config.hidden_size, config.base_size, config.interpolation_scale
        make = _make_position if torch.compiler.is_compiling() or _is_captured(latent) else _kept_position
        return make(rows, columns, *shape, latent.device, self.stream_dtype())

    def embed_conditions(
        self,
        latent: Tensor,
        timestep: Tensor,
        caption: Tensor,
        caption_mask: Tensor | None = None,
        image_size: Tensor | None = None,
        aspect_ratio: Tensor | None = None,
        attention: Attention | None = None,
    ) -> Conditions:
        """Timestep, micro-conditions and caption as the blocks read them; arguments as in `forward`."""
        time, modulation = self._embed_time(latent, timestep, image_size, aspect_ratio)
        mask = None if caption_mask is None else caption_mask.bool()[:, None]
        projected = self.y_embedder(self._caption(caption))
        return Conditions(time, modulation, projected, mask, attention or sdpa_attention)

    def _embed_time(
        self, latent: Tensor, timestep: Tensor, image_size: Tensor | None, aspect_ratio: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """`Conditions.time` (B, C) and `Conditions.modulation` (B, 6, C)."""
        dtype = self.stream_dtype()
        time = self.t_embedder(timestep, dtype)
        if self.config.micro_condition:
            height, width = latent.shape[-2:]
            if image_size is None:  # filled there: a copy from the host would wait
                sides = [latent.new_full((1, 1), 8 * side, dtype=torch.float32) for side in (height, width)]
                image_size = torch.cat(sides, dim=1)
            if aspect_ratio is None:
                aspect_ratio = latent.new_full((1, 1), height / width, dtype=torch.float32)
            micro = [self.csize_embedder(image_size, dtype), self.ar_embedder(aspect_ratio, dtype)]
            time = time + torch.cat([m.expand(time.shape[0], -1) for m in micro], dim=-1)
        with exactly(time):
            return time, self.t_block(time).reshape(time.shape[0], 6, -1)

    def embed_steps(
        self, latent: Tensor, timesteps: Sequence[int], caption: Tensor, caption_mask: Tensor | None
    ) -> list[Conditions]:
        """`embed_conditions` for every step of a sampling, with what its prompt and its size fix computed once.

        The same numbers to the last bit. The conditions share the caption, the keys and values of every block's
        cross-attention (2 · depth · B · L · hidden numbers: 15.5 MB a picture of the released models in half precision)
        and the position grid (19 MB at 1024 px).

        Args:
            latent: (B, in_channels, h, w): its shape and device are read.
            timesteps: of the steps, the same for all pictures.
        """
        self._check(latent, caption)
        conditions: list[Conditions] = []
        for timestep in timesteps:
            t = torch.full((len(latent),), timestep, device=latent.device)
            if conditions:
                time, modulation = self._embed_time(latent, t, None, None)
                conditions.append(replace(conditions[0], time=time, modulation=modulation))
                continue
            first = self.embed_conditions(latent, t, caption, caption_mask)
            keys_values = tuple(block.cross_attn.kv_linear(first.caption) for block in self.blocks)
            conditions.append(replace(first, keys_values=keys_values, position=self.position_grid(latent)))
        return conditions

    def null_caption(self, batch: int, length: int | None = None) -> Tensor:
        """The learned unconditional caption, (batch, length or model_max_length, caption_channels).

        Raises:
            ValueError: if the checkpoint came without one (diffusers' layout drops it).
        """
        embedding = self.y_embedder.y_embedding
        if embedding is None:
            raise ValueError(
                "this checkpoint has no learned null caption (y_embedding): diffusers' layout drops it. "
                "Encode an empty prompt with T5 instead, or load the authors' .pth file"
            )
        return embedding[:length].expand(batch, -1, -1)

    def _unpatchify(self, x: Tensor, height: int, width: int) -> Tensor:
        size, channels = self.config.patch_size, self.config.out_channels
        rows, columns = -(-height // size), -(-width // size)
        x = x.reshape(-1, rows, columns, size, size, channels).permute(0, 5, 1, 3, 2, 4)  # (B, out, rows, p, cols, p)
        return x.reshape(-1, channels, rows * size, columns * size)[..., :height, :width]

    def _check(self, latent: Tensor, caption: Tensor, control: Sequence[Tensor | None] | None = None) -> None:
        if latent.ndim != 4 or latent.shape[1] != self.config.in_channels:
            raise ValueError(
                f"this PixArt model takes latents with {self.config.in_channels} channels (B, C, h, w), "
                f"got shape {tuple(latent.shape)}: use the autoencoder of Stable Diffusion 1.x "
                "(f8, 4 channels)"
            )
        if caption.shape[-1] != self.config.caption_channels:
            raise ValueError(
                f"captions are {caption.shape[-1]} wide, this PixArt model takes "
                f"{self.config.caption_channels}: use the text encoder that it was trained with "
                "(T5 v1.1 XXL for the released models)"
            )
        if control is not None and len(control) > len(self.blocks):
            raise ValueError(f"{len(control)} control residuals for a model of {len(self.blocks)} blocks")

    @torch.no_grad()
    def initialize_weights(self) -> PixArt:
        """The authors' initialisation for training from scratch: adaLN-zero style, so that the first output is 0."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                _zero_bias(module)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.flatten(1))
        _zero_bias(self.x_embedder.proj)
        embedders = [self.t_embedder]
        if self.config.micro_condition:
            embedders += [self.csize_embedder, self.ar_embedder]
        for part in (*(each.mlp for each in embedders), self.t_block, self.y_embedder.y_proj):
            for linear in part.children():
                if isinstance(linear, nn.Linear):
                    nn.init.normal_(linear.weight, std=0.02)
        for block in self.blocks:
            nn.init.zeros_(block.cross_attn.proj.weight)
        for table in [self.final_layer.scale_shift_table, *(b.scale_shift_table for b in self.blocks)]:
            nn.init.normal_(table, std=1 / math.sqrt(self.config.hidden_size))
        nn.init.zeros_(self.final_layer.linear.weight)
        if self.y_embedder.y_embedding is not None:
            nn.init.normal_(self.y_embedder.y_embedding, std=1 / math.sqrt(self.config.caption_channels))
        side, config = self.config.base_size, self.config
        self.pos_embed.copy_(position_embedding(side, side, config.hidden_size, side, config.interpolation_scale))
        return self


def _is_captured(x: Tensor) -> bool:
    """Whether a CUDA graph is made, which is to have what it reads for itself: what is kept here may be given up."""
    return x.device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _make_position(
    rows: int, columns: int, dim: int, base_size: int, scale: float, device: torch.device, dtype: torch.dtype
) -> Tensor:
    return position_embedding(rows, columns, dim, base_size, scale, device).to(dtype)


# Outside of inference mode, because whoever comes next may want gradients.
_kept_position = functools.lru_cache(maxsize=_GRIDS)(torch.inference_mode(False)(_make_position))


def _zero_bias(layer: nn.Linear | nn.Conv2d) -> None:
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
