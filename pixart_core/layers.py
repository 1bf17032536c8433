"""The modules a PixArt transformer is made of. Attribute names are the authors', so their files load strictly.

Every module is given what makes its layers, a `Factory`: ComfyUI's own layers come that way, and with them casting,
paging and quantisation, without this package knowing it.

The stream of tokens is float32, and so are the few small modules at its ends (patch embedding, timestep and
micro-conditions, adaLN tables, final layer), whatever the dtype of the rest: at t = 999 the noise prediction counts
157 times (1/√ᾱ), and roundings of the stream would too. The blocks' products are in `dtype`, where nearly all of the
time goes. Measured on the nano student, error of x₀ after one step in standard deviations: float16 0.08 -> 0.007,
bfloat16 0.6 -> 0.06 (tests/bench/bench_precision.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol, overload

import torch
from torch import Tensor, nn

from .aliases import Attention, DType
from .factory import Factory
from .functional import attention as sdpa_attention
from .functional import exactly, gelu, in_full_float32, modulate, timestep_embedding

_ENDS = ("x_embedder.", "t_embedder.", "t_block.", "csize_embedder.", "ar_embedder.", "final_layer.")


class AttentionHook(Protocol):
    """Runs the attention layers of a block in their place: what changes their inputs or outputs goes here."""

    def self_attention(self, layer: SelfAttention, x: Tensor, cond: Conditions) -> Tensor:
        """x (B, N, C), modulated -> what the layer gives, (B, N, C)."""

    def cross_attention(self, layer: CrossAttention, x: Tensor, cond: Conditions) -> Tensor:
        """x (B, N, C), cond.caption (B, L, C) -> what the layer gives, (B, N, C)."""


@dataclass(frozen=True)
class Conditions:
    """What every block reads besides the tokens."""

    time: Tensor
    """(B, C): timestep plus micro-conditions, for the final layer."""
    modulation: Tensor
    """(B, 6, C): the shared adaLN-single values."""
    caption: Tensor
    """(B, L, C): projected text, in the dtype of the blocks' products."""
    mask: Tensor | None
    """(B, 1, L) bool, True = real token; None when all are."""
    attention: Attention = sdpa_attention
    hook: AttentionHook | None = None
    """What stands in for a block's attention layers; None = their own forward."""
    keys_values: tuple[Tensor, ...] | None = None
    """(B, L, 2·C) of each block: what its cross-attention makes of the caption, where that was computed before (see
    `PixArt.embed_steps`)."""
    position: Tensor | None = None
    """(1, N, C): the grid of the tokens, likewise."""


@overload
def stream_dtype(dtype: torch.dtype) -> torch.dtype: ...
@overload
def stream_dtype(dtype: None) -> None: ...
@overload
def stream_dtype(dtype: DType) -> DType: ...
def stream_dtype(dtype: DType) -> DType:
    """Type of the modules at the ends of the stream, for products in `dtype`: at least float32."""
    return dtype if dtype is None or dtype.is_floating_point and dtype.itemsize > 4 else torch.float32


def in_stream(make: Factory) -> Factory:
    """What makes the modules at the ends of the stream, where `make` makes the others."""
    return replace(make, dtype=stream_dtype(make.dtype))


def is_in_stream(name: str) -> bool:
    """Whether a parameter, by its name in a PixArt, belongs to the modules that are kept in float32."""
    return name.startswith(_ENDS) or name.endswith("scale_shift_table")


class Mlp(nn.Module):
    """Linear, tanh-approximated GELU, Linear."""

    def __init__(self, in_features: int, hidden_features: int, out_features: int, make: Factory):
        super().__init__()
        self.fc1 = make.linear(in_features, hidden_features)
        self.fc2 = make.linear(hidden_features, out_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(gelu(self.fc1(x)))


class PatchEmbed(nn.Module):
    """(B, in_channels, h, w) -> (B, h·w / patch², hidden)."""

    def __init__(self, patch_size: int, in_channels: int, hidden_size: int, make: Factory):
        super().__init__()
        self.proj = make.conv(in_channels, hidden_size, patch_size, stride=patch_size)

    def forward(self, latent: Tensor) -> Tensor:
        with exactly(latent), in_full_float32(latent):
            return self.proj(latent).flatten(2).transpose(1, 2)


class ScalarEmbedder(nn.Module):
    """Sinusoid and two-layer MLP for scalars: the timestep, and each micro-condition value."""

    frequency_dim = 256

    def __init__(self, hidden_size: int, make: Factory):
        super().__init__()
        self.mlp = nn.Sequential(
            make.linear(self.frequency_dim, hidden_size),
            nn.SiLU(),
            make.linear(hidden_size, hidden_size),
        )

    def forward(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        """values (B,) or (B, K) -> (B, K·hidden)."""
        with exactly(values):
            embedded = self.mlp(timestep_embedding(values.reshape(-1), self.frequency_dim).to(dtype))
        return embedded.reshape(values.shape[0], -1)


class CaptionEmbedder(nn.Module):
    """Projects text embeddings; holds the learned null caption (L, caption_channels) as a buffer, as the authors do."""

    y_embedding: Tensor | None

    def __init__(self, caption_channels: int, hidden_size: int, length: int, make: Factory):
        super().__init__()
        self.y_proj = Mlp(caption_channels, hidden_size, hidden_size, make)
        self.register_buffer("y_embedding", make.zeros(length, caption_channels))

    def forward(self, caption: Tensor) -> Tensor:
        return self.y_proj(caption)


class SelfAttention(nn.Module):
    def __init__(self, dim: int, num_heads: int, make: Factory):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = make.linear(dim, dim * 3)
        self.proj = make.linear(dim, dim)

    def forward(self, x: Tensor, attention: Attention = sdpa_attention) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.proj(attention(q, k, v, self.num_heads))

    def project(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values, each of its own tokens (B, N, C)."""
        return _parts(self.qkv, 3, q, k, v)


class CrossAttention(nn.Module):
    def __init__(self, dim: int, num_heads: int, make: Factory):
        super().__init__()
        self.num_heads = num_heads
        self.q_linear = make.linear(dim, dim)
        self.kv_linear = make.linear(dim, dim * 2)
        self.proj = make.linear(dim, dim)

    def forward(
        self,
        x: Tensor,
        caption: Tensor,
        mask: Tensor | None,
        attention: Attention = sdpa_attention,
        keys_values: Tensor | None = None,
    ) -> Tensor:
        """x (B, N, C), caption (B, L, C), mask (B, 1, L), keys_values (B, L, 2·C) of the caption if there are any."""
        q = self.q_linear(x)
        k, v = (self.kv_linear(caption) if keys_values is None else keys_values).chunk(2, dim=-1)
        return self.proj(attention(q, k, v, self.num_heads, mask=mask))

    def project(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        """Queries of image tokens (B, N, C), keys and values of caption tokens (B, L, C) each."""
        return self.q_linear(q), *_parts(self.kv_linear, 2, k, v)


def _parts(layer: nn.Module, count: int, *tokens: Tensor) -> tuple[Tensor, ...]:
    """The last parts, in turn, of what a layer makes of each of `tokens`; the same tensor goes through it once."""
    made: dict[int, tuple[Tensor, ...]] = {}
    for x in tokens:
        if id(x) not in made:
            made[id(x)] = layer(x).chunk(count, dim=-1)
    return tuple(made[id(x)][part] for part, x in enumerate(tokens))


class Block(nn.Module):
    """Self-attention, cross-attention and MLP under adaLN-single (PixArt-α, Sec. 2.3)."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, make: Factory):
        super().__init__()
        self.attn = SelfAttention(dim, num_heads, make)
        self.cross_attn = CrossAttention(dim, num_heads, make)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), dim, make)
        self.scale_shift_table = nn.Parameter(in_stream(make).zeros(6, dim))

    def forward(self, x: Tensor, cond: Conditions, keys_values: Tensor | None = None) -> Tensor:
        """x (B, N, C) -> (B, N, C), of the stream's dtype. keys_values: see `CrossAttention`; a hook reads the caption
        instead, which it may change."""
        dtype = cond.caption.dtype  # of the products
        table = self.scale_shift_table.to(dtype=x.dtype, device=x.device)[None] + cond.modulation
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = table.chunk(6, dim=1)  # (B, 1, C) each
        tokens = modulate(x, shift_msa, scale_msa).to(dtype)
        if cond.hook is None:
            x = torch.addcmul(x, gate_msa, self.attn(tokens, cond.attention))
            x = x + self.cross_attn(x.to(dtype), cond.caption, cond.mask, cond.attention, keys_values)
        else:
            x = torch.addcmul(x, gate_msa, cond.hook.self_attention(self.attn, tokens, cond))
            x = x + cond.hook.cross_attention(self.cross_attn, x.to(dtype), cond)
        return torch.addcmul(x, gate_mlp, self.mlp(modulate(x, shift_mlp, scale_mlp).to(dtype)))


def compile_blocks(*networks: nn.Module, **options: Any) -> None:
    """Compile the blocks of networks in place. All share one graph, so this takes seconds and not minutes.

    Sizes are dynamic from the first: else every bucket, caption length and batch would be compiled for itself, until
    Dynamo gives up at its eighth graph and runs all others without compiling, for good.

    Args:
        options: of `torch.compile`.
    """
    for network in networks:
        for module in network.modules():
            if isinstance(module, Block):
                module.compile(dynamic=True, **options)


class FinalLayer(nn.Module):
    """adaLN and a Linear to patch² · out_channels values a token."""

    def __init__(self, dim: int, out_features: int, make: Factory):
        super().__init__()
        self.linear = make.linear(dim, out_features)
        self.scale_shift_table = nn.Parameter(make.zeros(2, dim))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x (B, N, C), time (B, C), both of the stream's dtype, -> (B, N, patch² · out_channels)."""
        table = self.scale_shift_table.to(dtype=x.dtype, device=x.device)[None] + time[:, None]
        shift, scale = table.chunk(2, dim=1)
        with exactly(x):
            return self.linear(modulate(x, shift, scale))
