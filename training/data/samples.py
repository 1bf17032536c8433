"""One sample of a dataset: read from its shard, checked, its latent drawn; and several as a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .shards import Shard, flipped

CAPTION_PADDING = 8
"""Captions of a batch are padded to the longest, rounded up to this: few shapes, so few graphs to compile."""


def read_sample(
    shard: Shard, row: int, bucket: tuple[int, int], about: Mapping[str, Any], hint: bool, generator: torch.Generator
) -> dict[str, Any]:
    """A sample as `collate` takes it, in one of its wordings, and its caption as text (`prompt`).

    Args:
        bucket: height and width of its picture in px.
        about: the description of its dataset.
        hint: whether its hint is wanted.
        generator: draws wording, mirroring and latents.

    Raises:
        DataError: if the shard is damaged, or holds what cannot be used.
    """
    mirrored = bool(about.get("flip")) and bool(torch.randint(2, (), generator=generator))
    shown = {name: flipped(name) if mirrored else name for name in ("moments.npy", *(["hint.npy"] if hint else []))}
    parts = [*shown.values(), "caption.npy", "json", *(["mask.npy"] if about.get("masks") else [])]
    read = shard.read(row, parts)
    stored = {**read, **{name: read[part] for name, part in shown.items()}}
    own = stored["json"]
    if problem := _problem(stored, bucket, about.get("caption_channels")):
        source = own.get("source") if isinstance(own, dict) else None
        raise shard.error(f"holds a sample that cannot be used, {source or shard.keys[row]}: {problem}")
    wording = int(torch.randint(len(own["tokens"]), (), generator=generator))
    first, scale = sum(own["tokens"][:wording]), about["scaling_factor"]
    out = {
        "latent": _draw(stored["moments.npy"], scale, generator),
        "caption": torch.from_numpy(stored["caption.npy"][first : first + own["tokens"][wording]]),
        "image_size": (own["height"], own["width"]),
        "aspect_ratio": (own["ratio"],),
        "keys": own["source"],
        "prompt": own["captions"][wording],
    }
    if hint:
        out["hint"] = _draw(stored["hint.npy"], scale, generator)
    if "mask.npy" in stored:
        mask = torch.from_numpy(stored["mask.npy"]).float()
        out["mask"] = mask.flip(2) if mirrored else mask
    return out


def _problem(stored: dict[str, Any], bucket: tuple[int, int], channels: int | None) -> str:
    """What is wrong with a sample's parts; empty if nothing is."""
    about = stored["json"]
    if not isinstance(about, dict):
        return "its description is no JSON object"
    size = (bucket[0] // 8, bucket[1] // 8)
    for part in ("moments.npy", "hint.npy"):
        array = stored.get(part)
        if array is not None and (array.dtype.kind != "f" or array.ndim != 3 or array.shape[1:] != size):
            return f"{part} is {array.shape} of {array.dtype}, and its bucket wants numbers ({size[0]}, {size[1]})"
        if array is not None and len(array) not in (4, 8):
            return f"{part} has {len(array)} channels, not 4 or 8"
    mask = stored.get("mask.npy")
    if mask is not None:
        good = mask.dtype.kind == "f" and mask.shape == (1, *size) and np.isfinite(mask).all() and mask.min() >= 0
        if not (good and mask.any()):
            return (
                f"mask.npy is {mask.shape} of {mask.dtype}, and shares (1, {size[0]}, {size[1]}) are wanted, not all 0"
            )
    tokens, captions = about.get("tokens"), about.get("captions")
    if not (isinstance(tokens, list) and tokens and all(type(each) is int and each > 0 for each in tokens)):
        return f"its numbers of tokens are {tokens!r}"
    if not (isinstance(captions, list) and len(captions) == len(tokens)):
        return f"it has {len(tokens)} wordings and other captions: {captions!r}"
    caption = stored["caption.npy"]
    wanted = (sum(tokens), caption.shape[-1] if channels is None and caption.ndim else channels)
    if caption.dtype.kind != "f" or caption.shape != wanted:
        return f"caption.npy is {caption.shape} of {caption.dtype}, and numbers {wanted} are wanted"
    for name in ("height", "width", "ratio"):
        value = about.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e6:
            return f"its {name} is {value!r}"
    return "" if isinstance(about.get("source"), str) else f"its source is {about.get('source')!r}"


def to_float32(value: Any) -> Any:
    """What was stored in half precision as what is computed with."""
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.float16 else value


def _draw(stored: np.ndarray, scale: float, generator: torch.Generator) -> Tensor:
    """A latent from its posterior, scaled; from an autoencoder without deviations, the latent itself."""
    moments = torch.from_numpy(stored).float()
    if len(moments) == 4:
        return moments * scale
    mean, deviation = moments.chunk(2)
    return (mean + deviation * torch.randn(mean.shape, generator=generator)) * scale


def padded(tokens: int) -> int:
    """Length of the captions of a batch whose longest has so many tokens."""
    return -(-tokens // CAPTION_PADDING) * CAPTION_PADDING


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Samples, each with caption (tokens, D), image_size, aspect_ratio and keys, and latent, hint and mask or none of
    them, as one batch of `FeatureDataset.batches`."""
    lengths = [len(sample["caption"]) for sample in samples]
    caption = samples[0]["caption"].new_zeros(len(samples), padded(max(lengths)), samples[0]["caption"].shape[1])
    for row, (sample, length) in enumerate(zip(samples, lengths, strict=True)):
        caption[row, :length] = sample["caption"]
    together: dict[str, Tensor] = {
        name: torch.stack([sample[name] for sample in samples])
        for name in ("latent", "hint", "mask")
        if name in samples[0]
    }
    for name in ("image_size", "aspect_ratio"):
        together[name] = torch.tensor([sample[name] for sample in samples], dtype=torch.float32)
    mask = (torch.arange(caption.shape[1]) < torch.tensor(lengths)[:, None]).to(torch.uint8)
    return {**together, "caption": caption, "caption_mask": mask, "keys": [sample["keys"] for sample in samples]}
