"""What an autoencoder's config.json says about its shape, in diffusers' names and in bounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from torch import nn

from .errors import check

ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU, "swish": nn.SiLU, "mish": nn.Mish, "gelu": nn.GELU}
_UPSAMPLINGS = ("nearest", "nearest-exact", "bilinear", "bicubic")
_MAX_CHANNELS = 65_536
_MAX_BLOCKS = 1024

C = TypeVar("C", "KLConfig", "TinyConfig")


@dataclass(frozen=True)
class KLConfig:
    """Shape of an AutoencoderKL; the defaults are Stable Diffusion's (diffusers' own are not)."""

    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    """Channels of each resolution, from the picture's downwards."""
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",) * 4
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",) * 4
    layers_per_block: int = 2
    """Residual blocks of each resolution in the encoder; the decoder has one more."""
    norm_num_groups: int = 32
    act_fn: str = "silu"
    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True
    scaling_factor: float = 0.18215
    """What a latent is multiplied by before the transformer sees it."""
    shift_factor: float | None = None
    """What would be taken from a latent before: of other models' autoencoders only."""

    def __post_init__(self) -> None:
        _check_numbers(self, "block_out_channels", 1, _MAX_CHANNELS)
        for name, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
            if (types := getattr(self, name)) != (kind,) * len(self.block_out_channels):
                raise ValueError(f"{name} must be {kind} for each of block_out_channels, got {str(types)[:200]}")
        check("layers_per_block", self.layers_per_block, int, 1, _MAX_BLOCKS)
        check("norm_num_groups", self.norm_num_groups, int, 1, _MAX_CHANNELS)
        for channels in self.block_out_channels:
            if channels % self.norm_num_groups:
                raise ValueError(f"{channels} channels are not a multiple of norm_num_groups {self.norm_num_groups}")
        for name in ("use_quant_conv", "use_post_quant_conv", "mid_block_add_attention"):
            check(name, getattr(self, name), bool)
        _check_common(self)

    @property
    def factor(self) -> int:
        """Pixels that a latent pixel stands for, each way."""
        return 2 ** (len(self.block_out_channels) - 1)


@dataclass(frozen=True)
class TinyConfig:
    """Shape of an AutoencoderTiny; the defaults are TAESD's."""

    encoder_block_out_channels: tuple[int, ...] = (64,) * 4
    decoder_block_out_channels: tuple[int, ...] = (64,) * 4
    """The same number for each resolution: nothing between two of them changes it."""
    num_encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    num_decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    act_fn: str = "relu"
    upsample_fn: str = "nearest"
    upsampling_scaling_factor: int = 2
    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    scaling_factor: float = 1.0
    """What a latent is multiplied by before the transformer sees it."""
    shift_factor: float | None = 0.0
    """What would be taken from a latent before: of other models' autoencoders only."""

    def __post_init__(self) -> None:
        for part in ("encoder", "decoder"):
            widths, blocks = f"{part}_block_out_channels", f"num_{part}_blocks"
            _check_numbers(self, widths, 1, _MAX_CHANNELS)
            if len(set(getattr(self, widths))) != 1:
                raise ValueError(f"{widths} must be one number throughout, got {str(getattr(self, widths))[:200]}")
            _check_numbers(self, blocks, 0, _MAX_BLOCKS)
            if len(getattr(self, blocks)) != len(getattr(self, widths)):
                raise ValueError(f"{blocks} and {widths} must be of one length")
        if len(self.encoder_block_out_channels) != len(self.decoder_block_out_channels):
            raise ValueError("encoder_block_out_channels and decoder_block_out_channels must be of one length")
        if self.upsample_fn not in _UPSAMPLINGS:
            raise ValueError(f"upsample_fn must be one of {', '.join(_UPSAMPLINGS)}, got {self.upsample_fn!r:.200}")
        check("upsampling_scaling_factor", self.upsampling_scaling_factor, int, 2, 2)
        _check_common(self)

    @property
    def factor(self) -> int:
        """Pixels that a latent pixel stands for, each way."""
        return 2 ** (len(self.encoder_block_out_channels) - 1)


def read_config(kind: type[C], values: Mapping[str, Any]) -> C:
    """A KLConfig or TinyConfig from diffusers' config.json; what does not concern the network is passed over.

    Raises:
        ValueError: naming a field, its value and what is wanted.
    """
    known = {field.name for field in fields(kind)}
    given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in known}
    return kind(**given)


def _check_common(config: KLConfig | TinyConfig) -> None:
    for name in ("in_channels", "out_channels", "latent_channels"):
        check(name, getattr(config, name), int, 1, _MAX_CHANNELS)
    check("scaling_factor", config.scaling_factor, float, 1e-6, 1e6)
    if config.shift_factor not in (None, 0):
        raise ValueError(
            f"shift_factor is {config.shift_factor!r:.200}, and must be 0: PixArt's latents are not shifted"
        )
    if config.act_fn not in tuple(ACTIVATIONS):
        raise ValueError(f"act_fn must be one of {', '.join(ACTIVATIONS)}, got {config.act_fn!r:.200}")


def _check_numbers(config: KLConfig | TinyConfig, name: str, low: int, high: int) -> None:
    values = getattr(config, name)
    if not isinstance(values, tuple) or not values:
        raise ValueError(f"{name} is {values!r:.200}: a list of whole numbers is wanted")
    for value in values:
        check(name, value, int, low, high)
