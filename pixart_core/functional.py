"""Pure tensor functions: attention, modulation, embeddings, and the dtype a device is fast in."""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .aliases import Device

_GELU = 2 * math.sqrt(2 / math.pi)


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Multi-head attention on (B, N, C) tensors; `mask` (B, 1 or N, L) is True where a key may be read."""
    batch, _, channels = q.shape
    q, k, v = (x.view(batch, -1, heads, channels // heads).transpose(1, 2) for x in (q, k, v))  # (B, H, N, C/H)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=None if mask is None else mask.unsqueeze(1))
    return out.transpose(1, 2).reshape(batch, -1, channels)


def exactly(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Where autocast would compute in half precision, and must not."""
    kind = x.device.type
    active = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if active else contextlib.nullcontext()


def in_full_float32(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Where cuDNN would round a float32 convolution's input and weights to TF32's ten bits, which is its default: as
    coarse as float16. Matrix products are not rounded unless somebody asks torch for that."""
    if x.device.type != "cuda" or torch.compiler.is_compiling():
        return contextlib.nullcontext()
    return _without_tf32()


@contextlib.contextmanager
def _without_tf32() -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def gelu(x: Tensor) -> Tensor:
    """Tanh-approximated GELU; without gradients in place, `x` is then overwritten.

    Compiled for a CPU it is written with the sigmoid that it equals: vectorised exp takes a third of tanh's time.
    """
    compiling = torch.compiler.is_compiling()
    if compiling and x.device.type == "cpu":
        return x * torch.sigmoid(_GELU * x * (1 + 0.044715 * x * x))
    out = None if compiling or torch.is_grad_enabled() else x
    # In place it saves the largest activation of a forward, and the time to get that memory (a tenth of an MLP's).
    return F.gelu(x, approximate="tanh", out=out)  # type: ignore[call-arg]  # torch's stub lacks it


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Parameter-free LayerNorm, then x · (1 + scale) + shift (adaLN). x (B, N, C); shift, scale (B, 1, C)."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale)


def timestep_embedding(t: Tensor, dim: int) -> Tensor:
    """Sinusoid of a value per row: t (N,) -> (N, dim) float32, cosines first."""
    half = dim // 2
    frequencies = torch.exp(-math.log(10000) / half * torch.arange(half, dtype=torch.float32, device=t.device))
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def _sincos_1d(positions: Tensor, dim: int) -> Tensor:
    frequencies = 10000.0 ** (-torch.arange(dim // 2, dtype=torch.float32, device=positions.device) / (dim // 2))
    angles = positions[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def position_embedding(
    height: int, width: int, dim: int, base_size: int, scale: float, device: Device = None
) -> Tensor:
    """2-D sin-cos position embedding, (1, height·width, dim) float32.

    Any grid is stretched to `base_size` patches a side and divided by `scale`, so that one model serves every
    aspect ratio (PixArt-α, multi-scale training). The width half comes first, as in the authors' code.
    """
    rows = torch.arange(height, dtype=torch.float32, device=device) / (height / base_size) / scale
    columns = torch.arange(width, dtype=torch.float32, device=device) / (width / base_size) / scale
    grid = torch.cat(
        [
            _sincos_1d(columns, dim // 2)[None].expand(height, -1, -1),
            _sincos_1d(rows, dim // 2)[:, None].expand(-1, width, -1),
        ],
        dim=-1,
    )
    return grid.reshape(1, height * width, dim)


_WORTH_IT = 1.25
"""Speed-up from which bfloat16's 8 bits are taken in place of float32's 24."""


@functools.lru_cache(maxsize=1)
def _bfloat16_speed() -> float:
    """How many times as fast as float32 this CPU multiplies bfloat16 matrices; measured once, in a few milliseconds."""
    best: dict[torch.dtype, float] = {}
    for _ in range(10):  # in turns and the best of each: what else the machine does shall not decide
        for dtype in (torch.float32, torch.bfloat16):
            x, weight = torch.ones(128, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype)
            start = time.perf_counter()
            F.linear(x, weight)
            best[dtype] = min(best.get(dtype, math.inf), time.perf_counter() - start)
    return best[torch.float32] / best[torch.bfloat16]


def preferred_dtype(device: Device = None) -> torch.dtype:
    """The dtype inference is fast in on `device`.

    A CPU gets bfloat16 only where it multiplies bfloat16 natively: elsewhere it is emulated, measured 100 times slower
    than float32 on AVX2. AMX is always fast in it; AVX512-BF16 alone does not tell (measured 0.6 times float32's speed
    on a Xeon whose AMX is masked, and 4 times on others), so there a few products are timed. Accelerators get bfloat16
    if they support it, else float16.
    """
    kind = torch.device("cpu" if device is None else device).type
    if kind == "cpu":
        capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
        fast = capabilities.get("amx_bf16", False) or (
            capabilities.get("avx512_bf16", False) and _bfloat16_speed() > _WORTH_IT
        )
        return torch.bfloat16 if fast else torch.float32
    if kind == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.float16 if kind == "mps" else torch.bfloat16


def sampling_dtype(device: torch.device | str | None = None) -> torch.dtype:
    """The dtype that a transformer samples in on `device`, when nobody asks for one.

    `preferred_dtype`, but on CUDA float16: its products are as fast as bfloat16's and have eight times the precision,
    and the stream of tokens, which is what grows, is float32 in either.
    """
    kind = torch.device("cpu" if device is None else device).type
    return torch.float16 if kind == "cuda" else preferred_dtype(device)
