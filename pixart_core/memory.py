"""How much memory a picture takes, stage by stage, before anything is loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .config import PixArtConfig
from .functional import preferred_dtype
from .layers import is_in_stream, stream_dtype
from .model import PixArt

GB = 1e9
_NF4_BYTES = 0.5 + 4 / 64  # a float32 scale for every 64 weights
_INT8_BYTES = 1.0  # and a float32 scale for every row, counted apart
_REORDERS = 2**29  # numbers of a tensor from which on cuDNN computes with it as it lies


@dataclass(frozen=True)
class TextShape:
    """Size of a T5 encoder; the default is T5 v1.1 XXL."""

    width: int = 4096
    layers: int = 24
    inner: int = 4096
    """Heads times head size."""
    heads: int = 64
    ff: int = 10240
    vocabulary: int = 32128

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> TextShape:
        """From the config.json of a T5 encoder."""
        return cls(
            config["d_model"],
            config["num_layers"],
            config["num_heads"] * config["d_kv"],
            config["num_heads"],
            config["d_ff"],
            config["vocab_size"],
        )

    @property
    def linears(self) -> int:
        """Weights of the layers that are quantised: attention, and the two inner ones of the gated MLP."""
        return self.layers * self.width * (4 * self.inner + 2 * self.ff)

    @property
    def others(self) -> int:
        """Weights that are never quantised: embedding, norms, position bias, and `wo`."""
        norms = (2 * self.layers + 1) * self.width
        return self.vocabulary * self.width + norms + 32 * self.heads + self.layers * self.ff * self.width

    def weight_bytes(self, dtype: torch.dtype, quantization: str = "none") -> float:
        """Bytes of the weights in memory; see `text.TextEncoder` for the quantizations."""
        rows = self.layers * (4 * self.inner + 2 * self.ff)
        linears = {
            "none": self.linears * dtype.itemsize,
            "int8": self.linears * _INT8_BYTES + 4 * rows,
            "int4": self.linears * _NF4_BYTES,
        }
        if quantization not in linears:
            raise ValueError(f"unknown quantization {quantization!r}: choose one of {', '.join(linears)}")
        return linears[quantization] + self.others * dtype.itemsize

    def activation_bytes(self, batch: int, length: int, dtype: torch.dtype) -> float:
        """Bytes that one forward needs at its widest point: inside the MLP, or the float32 attention scores."""
        mlp = batch * length * (2 * self.width + 3 * self.ff) * dtype.itemsize
        return mlp + 2 * 4 * batch * self.heads * length * length


@dataclass(frozen=True)
class VaeShape:
    """Size of an f8 autoencoder; the default is Stable Diffusion 1.x's AutoencoderKL."""

    parameters: int = 83_653_863
    channels: int = 256
    """Channels of the widest tensors at full resolution; three of them live at once while decoding."""
    reordered: tuple[tuple[int, float], ...] = ((256, 4.75), (128, 4.0))
    """Of convolutions at full resolution: their channels, and how many of the widest tensors are there while one runs
    whose input and output cuDNN holds in another order as well."""

    @classmethod
    def from_module(cls, vae: Any) -> VaeShape:
        """From a loaded AutoencoderKL or AutoencoderTiny."""
        parameters = sum(p.numel() for p in vae.parameters())
        if not hasattr(vae.config, "down_block_types"):
            channels = vae.config.decoder_block_out_channels[0]
            return cls(parameters, channels, ((channels, 5.0),))  # x, what the block made of it, input and output twice
        last, channels, below = vae.config.block_out_channels[:3]
        # That of the enlarged, while what was enlarged and the input of its stage wait, at a quarter of the pixels; and
        # the last one, while x, the input of its block and of its stage wait.
        reordered = (channels, 4.25 + below / channels / 4), (last, 1 + 6 * last / channels)
        return cls(parameters, channels, reordered)

    def activation_bytes(self, batch: int, height: int, width: int, dtype: torch.dtype) -> float:
        """Bytes that decoding needs at its widest point.

        In half precision those of a GPU, whose convolutions want channels last: cuDNN copies input and output, unless
        they have more than 2²⁹ numbers. So measured on an H200: 2.55 GB at 1024 px, 6.7 GB at 2048 px.
        """
        pixels, alive = batch * height * width, 3.0
        if dtype.itemsize == 2:
            alive = max([alive, *(times for channels, times in self.reordered if channels * pixels < _REORDERS)])
        return alive * self.channels * pixels * dtype.itemsize


def amount(gigabytes: float) -> str:
    """For a person: "16 MB", "2.1 GB"."""
    return f"{gigabytes:.1f} GB" if gigabytes >= 0.95 else f"{max(1, round(1000 * gigabytes))} MB"


T5_XXL = TextShape()
AUTOENCODER_KL = VaeShape()


@dataclass(frozen=True)
class Stage:
    """What is in memory during one stage, in GB (1e9 bytes)."""

    name: str
    text: float
    transformer: float
    vae: float
    activations: float

    @property
    def total(self) -> float:
        return self.text + self.transformer + self.vae + self.activations


@dataclass(frozen=True)
class MemoryPlan:
    """The three stages of a picture. `str(plan)` is a table."""

    stages: tuple[Stage, ...]
    title: str

    @property
    def peak(self) -> float:
        """GB of the widest stage."""
        return max(stage.total for stage in self.stages)

    def __getitem__(self, name: str) -> Stage:
        return next(stage for stage in self.stages if stage.name == name)

    def __str__(self) -> str:
        unit, scale = ("GB", 1) if self.peak >= 0.1 else ("MB", 1000)
        lines = [self.title, f"{unit:8}{'text':>8}{'transf.':>9}{'vae':>7}{'activ.':>8}{'total':>8}"]
        for s in self.stages:
            text, transformer, vae, rest, total = (
                scale * x for x in (s.text, s.transformer, s.vae, s.activations, s.total)
            )
            lines.append(f"{s.name:8}{text:8.2f}{transformer:9.2f}{vae:7.2f}{rest:8.2f}{total:8.2f}")
        return "\n".join([*lines, f"peak {scale * self.peak:.2f} {unit}"])


def transformer_parameters(config: PixArtConfig) -> int:
    """Weights of a PixArt transformer, without the position table that is never read."""
    return sum(_weights(config).values())


def _weights(config: PixArtConfig) -> dict[str, int]:
    """Name -> size of each of them."""
    state = PixArt(config, device="meta").state_dict()
    return {name: tensor.numel() for name, tensor in state.items() if name != "pos_embed"}


def memory_plan(
    config: PixArtConfig,
    text: TextShape | None = None,
    vae: VaeShape | None = None,
    height: int | None = None,
    width: int | None = None,
    batch: int = 1,
    dtype: torch.dtype | None = None,
    quantization: str = "none",
    *,
    vae_dtype: torch.dtype | None = None,
    text_dtype: torch.dtype | None = None,
    guidance: bool = False,
    keep: bool = False,
    tile: int | None = None,
    int8_blocks: bool = False,
) -> MemoryPlan:
    """Estimate what is in memory while a prompt is encoded, a latent sampled and a picture decoded.

    Args:
        config: of the transformer.
        text, vae: shapes; None = T5-XXL and Stable Diffusion's autoencoder if the transformer takes captions as wide as
            T5-XXL's, and nothing for them otherwise.
        height, width: of the pictures in px; None = the model's own size.
        batch: pictures at once.
        dtype: of the weights that are not quantised; None = `preferred_dtype()`.
        quantization: of the text encoder: "none", "int8" or "int4".
        vae_dtype, text_dtype: None = dtype.
        guidance: whether classifier-free guidance doubles the batch.
        keep: whether every model stays in memory; False = the text encoder leaves once the prompt is encoded, and
            transformer and autoencoder are there only while they work.
        tile: side in px of the tiles that a picture is decoded in; None = whole.
        int8_blocks: whether the transformer's blocks are in 8 bits (`int8.quantize_blocks`).

    Returns:
        A MemoryPlan with the stages encode, sample and decode. Left out: what the driver itself takes (about 0.5 GB
        with CUDA), and the libraries' work space.
    """
    dtype = dtype or preferred_dtype()
    vae_dtype, text_dtype = vae_dtype or dtype, text_dtype or dtype
    released = config.caption_channels == T5_XXL.width
    text, vae = text or (T5_XXL if released else None), vae or (AUTOENCODER_KL if released else None)
    height, width = height or config.input_size * 8, width or config.input_size * 8
    tokens = math.ceil(height / 8 / config.patch_size) * math.ceil(width / 8 / config.patch_size)
    rows = batch * (2 if guidance else 1)
    weights = {
        "encode": text.weight_bytes(text_dtype, quantization) if text else 0.0,
        "sample": _transformer_bytes(config, dtype, int8_blocks),
        "decode": vae.parameters * vae_dtype.itemsize if vae else 0.0,
    }
    activations = {
        "encode": text.activation_bytes(rows, config.model_max_length, text_dtype) if text else 0.0,
        # Tokens at the block's start and now, modulated copy, and the MLP's hidden layer (GELU in place) and result.
        "sample": rows
        * tokens
        * config.hidden_size
        * (2 * stream_dtype(dtype).itemsize + (2 + config.mlp_ratio) * dtype.itemsize),
        "decode": _decoding(vae, batch, height, width, vae_dtype, tile) if vae else 0.0,
    }
    stages = []
    for stage in weights:
        text_gb, transformer_gb, vae_gb = (
            weights[other] / GB if keep or other == stage else 0.0 for other in ("encode", "sample", "decode")
        )
        stages.append(Stage(stage, text_gb, transformer_gb, vae_gb, activations[stage] / GB))
    leaves = "all models stay" if keep else "each model leaves after its stage"
    title = (
        f"memory for {batch} x {width}x{height} px, {str(dtype).removeprefix('torch.')}, "
        f"text encoder {quantization if quantization != 'none' else 'not quantised'}, {leaves}"
    )
    return MemoryPlan(tuple(stages), title)


def _transformer_bytes(config: PixArtConfig, dtype: torch.dtype, int8_blocks: bool) -> float:
    def width(name: str) -> float:
        if is_in_stream(name):
            return stream_dtype(dtype).itemsize
        return _INT8_BYTES if int8_blocks and name.startswith("blocks.") else dtype.itemsize

    return sum(size * width(name) for name, size in _weights(config).items())


def _decoding(vae: VaeShape, batch: int, height: int, width: int, dtype: torch.dtype, tile: int | None) -> float:
    if tile is None or max(height, width) <= tile:
        return vae.activation_bytes(batch, height, width, dtype)
    whole = 4 * 4 * batch * height * width  # float32: three colours, and a weight for all
    return whole + vae.activation_bytes(batch, min(height, tile), min(width, tile), dtype)
