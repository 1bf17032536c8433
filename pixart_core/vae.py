"""Pictures to latents and back by an AutoencoderKL (released weights) or AutoencoderTiny (the nano family)."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from .aliases import Device, DType, PathLike
from .autoencoder import CLASSES
from .autoencoder_config import KLConfig, TinyConfig, read_config
from .errors import CheckpointError, read_description, summary
from .functional import preferred_dtype
from .graphs import Graphs
from .resolution import resize_and_crop
from .saving import save_json, save_weights
from .weightfile import WeightFile, open_weights
from .weightfolder import find_part

FACTOR = 8
"""Pixels a latent pixel stands for, each way."""
LATENT_CHANNELS = 4
_DEPTHS = ("layers_per_block", "num_encoder_blocks", "num_decoder_blocks")
"""Fields of their config.json that say how many layers are built."""
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def default_dtype(device: Device = None) -> torch.dtype:
    """float32 on a CPU, as ComfyUI has it there: bfloat16's 8 bits can show in a picture; else what is fast."""
    device = torch.device("cpu" if device is None else device)
    return torch.float32 if device.type == "cpu" else preferred_dtype(device)


def load_vae(path: PathLike, dtype: DType = None, device: Device = None) -> Any:
    """Load an autoencoder folder (config.json and weights), or the vae/ of a pipeline folder.

    Args:
        path: the folder.
        dtype: of the weights; None = `default_dtype`.
        device: of the weights; None = CPU.

    Returns:
        AutoencoderKL or AutoencoderTiny, whichever config.json says, in eval mode.

    Raises:
        CheckpointError: on a missing or damaged folder, or a model that is not a 4-channel f8 autoencoder.
    """
    folder = _find_vae(Path(path))
    description = read_description(folder / "config.json")
    kind = description.get("_class_name")
    if not is_autoencoder(description):
        raise CheckpointError(
            f"{folder} holds {kind or 'no diffusers model'}; PixArt-α's autoencoder is one of "
            f"{', '.join(CLASSES)} (Stable Diffusion 1.x's, f8, {LATENT_CHANNELS} channels)"
        )
    file = open_weights(folder)
    _bound(description, file)
    module, config_kind = CLASSES[str(kind)]
    try:
        config = read_config(config_kind, description)
    except ValueError as error:
        raise CheckpointError(f"the autoencoder {folder}: {error} in config.json") from error
    vae = module(config, device="meta")
    stored = {_current_name(name): name for name in file.tensors}
    expected = {name: tuple(tensor.shape) for name, tensor in vae.state_dict().items()}
    wrong = [
        name
        for name in sorted(stored.keys() | expected.keys())
        if name not in stored or file.tensors[stored[name]].shape != expected.get(name)
    ]
    if wrong:
        raise CheckpointError(f"{folder} does not hold the weights its config.json describes: {summary(wrong)}")
    _check_latents(config, folder)
    file.require_numbers()
    dtype = dtype or default_dtype(device)
    state = {name: file.read([stored[name]])[stored[name]].to(device or "cpu", dtype) for name in expected}
    vae.load_state_dict(state, strict=True, assign=True)
    return vae.eval().requires_grad_(False)


def save_vae(vae: Any, folder: Path) -> None:
    """Write an autoencoder of ours as `load_vae` and diffusers read it: config.json and weights.

    Raises:
        CheckpointError: when it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_json({"_class_name": type(vae).__name__, **asdict(vae.config)}, folder / "config.json")
    save_weights(vae.state_dict(), folder / "diffusion_pytorch_model.safetensors")


def _bound(config: dict[str, Any], file: WeightFile) -> None:
    """Refuse a description of more layers than there are tensors, before they are built."""
    limit = len(file.tensors)
    for name, value in config.items():
        numbers = value if isinstance(value, list) else [value]
        layers = sum(number for number in numbers if isinstance(number, int)) if name in _DEPTHS else 0
        if max(layers, len(numbers)) > limit:
            raise CheckpointError(
                f"{file.path} has {name} {reprlib.repr(value)} in config.json, and only {limit} tensors: "
                "download both again"
            )


def _current_name(name: str) -> str:
    """Diffusers' name of a weight today; those of its first year, which sd-vae-ft-ema has, call attention otherwise."""
    stem, _, last = name.rpartition(".")
    module, _, layer = stem.rpartition(".")
    return f"{module}.{_OLD_ATTENTION[layer]}.{last}" if layer in _OLD_ATTENTION else name


@torch.no_grad()
def decode(
    vae: Any,
    latent: Tensor,
    size: tuple[int, int] | None = None,
    graphs: Graphs | None = None,
    tile: int | None = None,
) -> Tensor:
    """Latent (B, 4, h, w), scaled as the transformer sees it -> pictures (B, 8h, 8w, 3), float32 in 0 … 1.

    Args:
        size: (height, width) in px to resize and crop the pictures to, see `resolution.resize_and_crop`.
        graphs: replays what was captured of an earlier call.
        tile: decode larger pictures in tiles of this side in px, which overlap by a quarter and go over into each
            other: less memory (`memory_plan`). An AutoencoderKL's attention and norms then see a tile, and its colours
            drift a little from tile to tile.

    Raises:
        ValueError: on another number of channels, a tile that is no multiple of 32 px, or an autoencoder that returns
            NaN or infinite values.
    """
    if latent.ndim != 4 or latent.shape[1] != vae.config.latent_channels:
        raise ValueError(
            f"this autoencoder decodes latents (B, {vae.config.latent_channels}, h, w), got shape {tuple(latent.shape)}"
        )

    def run(scaled: Tensor) -> Tensor:
        return cast(Tensor, vae.decode(scaled).sample)

    def replayed(scaled: Tensor) -> Tensor:
        return run(scaled) if graphs is None else graphs("decode", run, [scaled], graphs.state([vae]))

    if tile is not None and (tile < 4 * FACTOR or tile % (4 * FACTOR)):
        raise ValueError(f"tile must be a multiple of {4 * FACTOR} px, got {tile}")
    whole = tile is None or FACTOR * max(latent.shape[-2:]) <= tile
    scaled = (latent.to(vae.device, torch.float32) / vae.config.scaling_factor).to(vae.dtype)
    images = replayed(scaled).float() if whole else _tiled(replayed, scaled, cast(int, tile))
    if not torch.isfinite(images).all():
        raise ValueError(
            "the autoencoder returned NaN or infinite values: its weights are damaged, or its dtype "
            f"{vae.dtype} overflows (use float32)"
        )
    if size is not None:
        images = resize_and_crop(images, *size)
    return (images / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)


def _tiled(run: Callable[[Tensor], Tensor], latent: Tensor, tile: int) -> Tensor:
    """`run` on overlapping tiles of a latent (B, C, h, w), put together: (B, 3, 8h, 8w) float32."""
    side, sizes = tile // FACTOR, latent.shape[-2:]
    whole = torch.zeros(len(latent), 3, *(FACTOR * size for size in sizes), device=latent.device)
    total = whole.new_zeros(whole.shape[-2:])
    for top in _starts(sizes[0], side):
        for left in _starts(sizes[1], side):
            piece = run(latent[..., top : top + side, left : left + side].contiguous())
            rows, columns = piece.shape[-2:]
            place = (..., slice(FACTOR * top, FACTOR * top + rows), slice(FACTOR * left, FACTOR * left + columns))
            weight = _ramp(rows, tile, piece.device)[:, None] * _ramp(columns, tile, piece.device)
            whole[place] += piece * weight
            total[place] += weight
    return whole.div_(total)


def _starts(size: int, side: int) -> list[int]:
    """Where tiles of a side begin, in latent pixels, to cover a size with overlaps of a quarter at least."""
    last = max(0, size - side)
    return [*range(0, last, side - side // 4), last]


def _ramp(length: int, tile: int, device: torch.device) -> Tensor:
    """Weights (length,) of a tile's rows or columns: up from its edges over a quarter of a tile, then 1."""
    places = torch.arange(1, length + 1, device=device, dtype=torch.float32)
    return (torch.minimum(places, length + 1 - places) / (tile // 4)).clamp(max=1)


@torch.no_grad()
def encode(vae: Any, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Pictures (B, H, W, 3) in 0 … 1, H and W multiples of 8 -> latent (B, 4, H/8, W/8), scaled, float32.

    Args:
        generator: samples AutoencoderKL's posterior, as the authors' trainings do; None takes its mean.

    Raises:
        ValueError: on another shape.
    """
    encoded = _encode(vae, images)
    if hasattr(encoded, "latents"):  # AutoencoderTiny
        latent = encoded.latents
    else:
        posterior = encoded.latent_dist
        latent = posterior.mean if generator is None else posterior.sample(generator)
    return latent.float() * vae.config.scaling_factor


@torch.no_grad()
def moments(vae: Any, images: Tensor) -> Tensor:
    """Pictures as for `encode` -> mean and deviation of AutoencoderKL's posterior (B, 8, H/8, W/8), unscaled, float32;
    from AutoencoderTiny, which has no posterior, the latent (B, 4, H/8, W/8)."""
    encoded = _encode(vae, images)
    if hasattr(encoded, "latents"):
        return encoded.latents.float()
    return torch.cat([encoded.latent_dist.mean, encoded.latent_dist.std], dim=1).float()


def to_pil(images: Tensor) -> list[Any]:
    """Pictures (B, H, W, 3) in 0 … 1 -> a list of PIL images."""
    from PIL import Image

    return [Image.fromarray(image) for image in (images * 255).round().to(torch.uint8).cpu().numpy()]


def _encode(vae: Any, images: Tensor) -> Any:
    if images.ndim != 4 or images.shape[-1] != 3 or images.shape[1] % FACTOR or images.shape[2] % FACTOR:
        raise ValueError(
            f"pictures to encode are (B, H, W, 3) with H and W multiples of {FACTOR}, got shape {tuple(images.shape)}"
        )
    return vae.encode((images.permute(0, 3, 1, 2) * 2 - 1).to(vae.device, vae.dtype))


def is_autoencoder(config: Mapping[str, Any]) -> bool:
    """Whether a config.json describes an autoencoder of a class that PixArt's pictures are decoded with."""
    return config.get("_class_name") in tuple(CLASSES)


def _find_vae(path: Path) -> Path:
    if path.is_file():
        raise CheckpointError(
            f"{path} is a file: give the folder with config.json and the weights. Single-file "
            "autoencoders load in ComfyUI's own VAELoader"
        )
    if not path.is_dir():
        raise CheckpointError(f"autoencoder folder {path} does not exist")
    folder = find_part(path, "vae", is_autoencoder)
    if (folder / "model_index.json").is_file():
        raise CheckpointError(f"the pipeline folder {path} has no vae/: download that part, too")
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} has no config.json: an autoencoder is a diffusers folder")
    return folder


def _check_latents(config: KLConfig | TinyConfig, folder: Path) -> None:
    if (config.latent_channels, config.factor) != (LATENT_CHANNELS, FACTOR):
        raise CheckpointError(
            f"the autoencoder {folder} has {config.latent_channels} latent channels and factor "
            f"{config.factor}; PixArt-α needs {LATENT_CHANNELS} channels and factor {FACTOR}, as Stable "
            "Diffusion 1.x's"
        )
    if (config.in_channels, config.out_channels) != (3, 3):
        raise CheckpointError(
            f"the autoencoder {folder} takes {config.in_channels} channels and gives {config.out_channels}, and not "
            "pictures of 3"
        )
