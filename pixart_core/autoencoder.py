"""The autoencoders that PixArt's pictures pass through: Stable Diffusion's AutoencoderKL, and AutoencoderTiny.

KL is of Rombach et al., arXiv:2112.10752; Tiny is TAESD (github.com/madebyollin/taesd), of any width. Parameters and
calls are named as diffusers names them: its folders load strictly, and its own objects may stand where these do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .aliases import Device, DType, Operations
from .autoencoder_config import ACTIVATIONS, KLConfig, TinyConfig
from .factory import Factory
from .functional import attention

_EPS = 1e-6
"""The ε of every group normalisation."""


@dataclass(frozen=True)
class Posterior:
    """A normal distribution of latents: `mean` and standard deviation `std`, (B, C, h, w) each."""

    mean: Tensor
    std: Tensor

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """One latent of each row; the noise is drawn where the generator is."""
        device = self.mean.device if generator is None else generator.device
        noise = torch.randn(self.mean.shape, generator=generator, device=device, dtype=self.mean.dtype)
        return self.mean + self.std * noise.to(self.mean.device)


@dataclass(frozen=True)
class KLEncoded:
    """What AutoencoderKL.encode gives."""

    latent_dist: Posterior


@dataclass(frozen=True)
class TinyEncoded:
    """What AutoencoderTiny.encode gives: latents (B, C, h, w)."""

    latents: Tensor


@dataclass(frozen=True)
class Decoded:
    """What decode gives: pictures (B, 3, H, W), about −1 … 1."""

    sample: Tensor


class _Autoencoder(nn.Module):
    """The device and dtype of the parameters."""

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the parameters are, and pictures and latents have to be."""
        return next(self.parameters()).dtype


class AutoencoderKL(_Autoencoder):
    """Stable Diffusion's autoencoder.

    Args:
        config: its shape.
        dtype, device: of the parameters.
        operations: namespace that Conv2d, Linear and GroupNorm are taken from (torch.nn, or ComfyUI's).
    """

    def __init__(self, config: KLConfig, dtype: DType = None, device: Device = None, operations: Operations = nn):
        super().__init__()
        self.config = config
        make = Factory(dtype, device, operations)
        self.encoder = _KLEncoder(config, make)
        self.decoder = _KLDecoder(config, make)
        latent = config.latent_channels
        if config.use_quant_conv:
            self.quant_conv = make.conv(2 * latent, 2 * latent, 1)
        if config.use_post_quant_conv:
            self.post_quant_conv = make.conv(latent, latent, 1)

    def encode(self, pictures: Tensor) -> KLEncoded:
        """Pictures (B, 3, H, W) in −1 … 1, sides multiples of `config.factor` -> the posterior, unscaled."""
        moments = self.encoder(pictures)
        if self.config.use_quant_conv:
            moments = self.quant_conv(moments)
        mean, log_variance = moments.chunk(2, dim=1)
        return KLEncoded(Posterior(mean, torch.exp(0.5 * log_variance.clamp(-30, 20))))

    def decode(self, latent: Tensor) -> Decoded:
        """Latent (B, C, h, w), unscaled -> pictures (B, 3, h · factor, w · factor)."""
        if self.config.use_post_quant_conv:
            latent = self.post_quant_conv(latent)
        return Decoded(self.decoder(latent))


class AutoencoderTiny(_Autoencoder):
    """TAESD of any width and number of blocks.

    Args:
        config: its shape.
        dtype, device: of the parameters.
        operations: namespace that Conv2d is taken from (torch.nn, or ComfyUI's).
    """

    def __init__(self, config: TinyConfig, dtype: DType = None, device: Device = None, operations: Operations = nn):
        super().__init__()
        self.config = config
        make = Factory(dtype, device, operations)
        self.encoder = _TinyEncoder(config, make)
        self.decoder = _TinyDecoder(config, make)

    def encode(self, pictures: Tensor) -> TinyEncoded:
        """Pictures (B, 3, H, W) in −1 … 1, sides multiples of `config.factor` -> latents, unscaled."""
        return TinyEncoded(self.encoder(_by_pixel(pictures)))

    def decode(self, latent: Tensor) -> Decoded:
        """Latent (B, C, h, w), unscaled -> pictures (B, 3, h · factor, w · factor)."""
        return Decoded(self.decoder(_by_pixel(latent)))


CLASSES: dict[str, tuple[Any, Any]] = {
    "AutoencoderKL": (AutoencoderKL, KLConfig),
    "AutoencoderTiny": (AutoencoderTiny, TinyConfig),
}
"""What `_class_name` of config.json says -> module and configuration."""


# --- AutoencoderKL ---


class _Resnet(nn.Module):
    """x + conv(act(norm(conv(act(norm(x)))))), with a 1 x 1 convolution of x where the channels change."""

    def __init__(self, config: KLConfig, channels_in: int, channels: int, make: Factory):
        super().__init__()
        self.norm1 = make.norm(config.norm_num_groups, channels_in, eps=_EPS)
        self.conv1 = make.conv(channels_in, channels, 3, padding=1)
        self.norm2 = make.norm(config.norm_num_groups, channels, eps=_EPS)
        self.conv2 = make.conv(channels, channels, 3, padding=1)
        self.act = ACTIVATIONS[config.act_fn]()
        self.conv_shortcut = None
        if channels_in != channels:
            self.conv_shortcut = make.conv(channels_in, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(self.act(self.norm1(x)))
        hidden = self.conv2(self.act(self.norm2(hidden)))
        return hidden + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class _Attention(nn.Module):
    """Attention of one head between all places of a picture, added to it."""

    def __init__(self, channels: int, groups: int, make: Factory):
        super().__init__()
        self.group_norm = make.norm(groups, channels, eps=_EPS)
        self.to_q = make.linear(channels, channels)
        self.to_k = make.linear(channels, channels)
        self.to_v = make.linear(channels, channels)
        self.to_out = nn.Sequential(make.linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)
        mixed = self.to_out(attention(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens), heads=1))
        return x + mixed.transpose(1, 2).reshape(x.shape)


class _Middle(nn.Module):
    """Two residual blocks, attention between them."""

    def __init__(self, config: KLConfig, channels: int, make: Factory):
        super().__init__()
        attentions = [_Attention(channels, config.norm_num_groups, make)] if config.mid_block_add_attention else []
        self.attentions = nn.Sequential(*attentions)
        self.resnets = nn.ModuleList([_Resnet(config, channels, channels, make) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        return self.resnets[1](self.attentions(self.resnets[0](x)))


class _Down(nn.Module):
    """Half the size: a padding on the right and below only, as the weights were trained."""

    def __init__(self, channels: int, make: Factory):
        super().__init__()
        self.conv = make.conv(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class _Up(nn.Module):
    """Twice the size, each pixel four times, and a convolution."""

    def __init__(self, channels: int, make: Factory):
        super().__init__()
        self.conv = make.conv(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


Change = type[_Down] | type[_Up] | None


class _Stage(nn.Module):
    """The residual blocks of one resolution, and what leads to the next, in the list that diffusers calls `name`."""

    def __init__(
        self, config: KLConfig, channels_in: int, channels: int, layers: int, name: str, change: Change, make: Factory
    ):
        super().__init__()
        widths = [channels_in] + [channels] * (layers - 1)
        self.resnets = nn.Sequential(*(_Resnet(config, width, channels, make) for width in widths))
        self.name = name
        self.add_module(name, nn.Sequential() if change is None else nn.Sequential(change(channels, make)))

    def forward(self, x: Tensor) -> Tensor:
        return self.get_submodule(self.name)(self.resnets(x))


def _stages(
    config: KLConfig, widths: Sequence[int], layers: int, name: str, change: Change, make: Factory
) -> nn.Sequential:
    """A stage for each of `widths`, all but the last with a change of size."""
    last = len(widths) - 1
    return nn.Sequential(
        *(
            _Stage(config, widths[max(index - 1, 0)], width, layers, name, change if index < last else None, make)
            for index, width in enumerate(widths)
        )
    )


class _KLEncoder(nn.Module):
    """Pictures -> mean and logarithm of the variance, before `quant_conv`."""

    def __init__(self, config: KLConfig, make: Factory):
        super().__init__()
        widths = config.block_out_channels
        self.conv_in = make.conv(config.in_channels, widths[0], 3, padding=1)
        self.down_blocks = _stages(config, widths, config.layers_per_block, "downsamplers", _Down, make)
        self.mid_block = _Middle(config, widths[-1], make)
        self.conv_norm_out = make.norm(config.norm_num_groups, widths[-1], eps=_EPS)
        self.conv_out = make.conv(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, pictures: Tensor) -> Tensor:
        x = self.mid_block(self.down_blocks(self.conv_in(pictures)))
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class _KLDecoder(nn.Module):
    """Latents, after `post_quant_conv` -> pictures."""

    def __init__(self, config: KLConfig, make: Factory):
        super().__init__()
        widths = config.block_out_channels[::-1]
        self.conv_in = make.conv(config.latent_channels, widths[0], 3, padding=1)
        self.up_blocks = _stages(config, widths, config.layers_per_block + 1, "upsamplers", _Up, make)
        self.mid_block = _Middle(config, widths[0], make)
        self.conv_norm_out = make.norm(config.norm_num_groups, widths[-1], eps=_EPS)
        self.conv_out = make.conv(widths[-1], config.out_channels, 3, padding=1)

    def forward(self, latent: Tensor) -> Tensor:
        x = self.up_blocks(self.mid_block(self.conv_in(latent)))
        return self.conv_out(F.silu(self.conv_norm_out(x)))


# --- AutoencoderTiny ---


def _by_pixel(x: Tensor) -> Tensor:
    """On a CPU with each pixel's channels side by side: convolutions then take a quarter less time there."""
    return x.contiguous(memory_format=torch.channels_last) if x.device.type == "cpu" else x


class _TinyBlock(nn.Module):
    """ReLU of x and three convolutions of it."""

    def __init__(self, channels: int, activation: type[nn.Module], make: Factory):
        super().__init__()
        convs = [make.conv(channels, channels, 3, padding=1) for _ in range(3)]
        self.conv = nn.Sequential(convs[0], activation(), convs[1], activation(), convs[2])

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x) + x)


class _TinyEncoder(nn.Module):
    def __init__(self, config: TinyConfig, make: Factory):
        super().__init__()
        width = config.encoder_block_out_channels[0]
        layers: list[nn.Module] = [make.conv(config.in_channels, width, 3, padding=1)]
        for index, blocks in enumerate(config.num_encoder_blocks):
            if index > 0:
                layers.append(make.conv(width, width, 3, padding=1, stride=2, bias=False))
            layers += [_TinyBlock(width, ACTIVATIONS[config.act_fn], make) for _ in range(blocks)]
        layers.append(make.conv(width, config.latent_channels, 3, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.layers((pictures + 1) / 2)  # trained on 0 … 1


class _TinyDecoder(nn.Module):
    def __init__(self, config: TinyConfig, make: Factory):
        super().__init__()
        width = config.decoder_block_out_channels[0]
        activation = ACTIVATIONS[config.act_fn]
        layers = [make.conv(config.latent_channels, width, 3, padding=1), activation()]
        for index, blocks in enumerate(config.num_decoder_blocks):
            if index > 0:
                layers.append(nn.Upsample(scale_factor=config.upsampling_scaling_factor, mode=config.upsample_fn))
                layers.append(make.conv(width, width, 3, padding=1, bias=False))
            layers += [_TinyBlock(width, activation, make) for _ in range(blocks)]
        layers.append(make.conv(width, config.out_channels, 3, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, latent: Tensor) -> Tensor:
        # Latents far out are drawn in, smoothly; pictures were 0 … 1 in training.
        return self.layers(torch.tanh(latent / 3) * 3) * 2 - 1
