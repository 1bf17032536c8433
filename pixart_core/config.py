"""What a PixArt-α/δ transformer looks like: one frozen dataclass and the released shapes."""

from __future__ import annotations

import reprlib
from dataclasses import asdict, dataclass, fields
from typing import Any

from .errors import check

MAX_BASE_SIZE = 256
"""Patches a side of the position table, which is made where a file lacks it: 4096 px with patches of 2."""
_BOUNDS: dict[str, tuple[type, float | None, float | None]] = {
    # Far above any model, and far below what takes minutes or gigabytes to build.
    "input_size": (int, 1, 16_384),
    "hidden_size": (int, 1, 65_536),
    "depth": (int, 1, 1024),
    "num_heads": (int, 1, 65_536),
    "caption_channels": (int, 1, 65_536),
    "model_max_length": (int, 1, 65_536),
    "interpolation_scale": (float, 1e-3, 1e3),
    "micro_condition": (bool, None, None),
    "patch_size": (int, 1, 64),
    "in_channels": (int, 1, 4096),
    "mlp_ratio": (float, 1e-3, 1e3),
    "learn_sigma": (bool, None, None),
}


@dataclass(frozen=True)
class PixArtConfig:
    """Shape of a PixArt transformer (PixArt-α, kept unchanged by PixArt-δ; paper App. B.1)."""

    input_size: int = 128
    """Side of the latent the position embedding was laid out for, in latent pixels (px / 8)."""
    hidden_size: int = 1152
    """Width of the token stream."""
    depth: int = 28
    """Number of transformer blocks."""
    num_heads: int = 16
    """Attention heads; must divide hidden_size."""
    caption_channels: int = 4096
    """Width of the text embeddings (T5-XXL: 4096)."""
    model_max_length: int = 120
    """Caption tokens the model was trained with."""
    interpolation_scale: float = 2.0
    """Divisor of the position grid: 1 for 256 and 512 px models, 2 for 1024 px ("lewei_scale")."""
    micro_condition: bool = True
    """Whether image size and aspect ratio are inputs (the 1024-MS models)."""
    patch_size: int = 2
    """Side of a patch in latent pixels."""
    in_channels: int = 4
    """Latent channels."""
    mlp_ratio: float = 4.0
    """Hidden width of the MLP over hidden_size."""
    learn_sigma: bool = True
    """Whether the output also carries the variance half (twice in_channels)."""

    def __post_init__(self) -> None:
        for name, (kind, low, high) in _BOUNDS.items():
            check(name, getattr(self, name), kind, low, high)
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")
        if self.hidden_size % 4:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of 4, which the position grid needs")
        if self.micro_condition and self.hidden_size % 3:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of 3, which the micro-conditions need")
        if self.input_size % self.patch_size:
            raise ValueError(f"input_size {self.input_size} is not a multiple of patch_size {self.patch_size}")

        check("input_size / patch_size", self.base_size, int, high=MAX_BASE_SIZE)

    @property
    def out_channels(self) -> int:
        """Channels the model returns: epsilon, then (with learn_sigma) the variance."""
        return self.in_channels * (2 if self.learn_sigma else 1)

    @property
    def base_size(self) -> int:
        """Side, in patches, of the grid that the position embedding is scaled to."""
        return self.input_size // self.patch_size

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PixArtConfig:
        """The inverse of `to_dict`; raises ValueError on a key that is not a field, or a value out of bounds."""
        if not isinstance(values, dict):
            raise ValueError(f"a PixArt configuration is an object of named values, got {reprlib.repr(values)}")
        unknown = sorted(set(map(str, values)) - {field.name for field in fields(cls)})
        if unknown:
            raise ValueError(f"unknown PixArt configuration keys: {', '.join(unknown)}")
        return cls(**values)


PIXART_1024_MS = PixArtConfig()
PIXART_512 = PixArtConfig(input_size=64, interpolation_scale=1.0, micro_condition=False)
PIXART_256 = PixArtConfig(input_size=32, interpolation_scale=1.0, micro_condition=False)
PIXART_NANO = PixArtConfig(
    input_size=16, hidden_size=192, depth=6, num_heads=6, caption_channels=64, interpolation_scale=1.0
)
"""The model that comes with the extension."""
KNOWN_CONFIGS = (PIXART_1024_MS, PIXART_512, PIXART_256, PIXART_NANO)
"""Shapes that a file of unknown origin is compared with."""
