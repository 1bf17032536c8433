"""CONDITIONING and LATENT: prompts with PixArt's micro-conditions, empty latents."""

from __future__ import annotations

import comfy.model_management as memory
import torch

from .clip import prompt_text
from .model import null_caption
from .tokens import pixart_tokens


def encode_prompts(
    clip, prompt: str, negative: str, width: int, height: int, clean_caption: bool, null_from=None
) -> tuple:
    """(positive, negative) conditioning.

    Args:
        clip: a CLIP that holds a T5.
        width, height: of the picture in px, for the micro-conditions; 0 = of the latent that will be sampled.
        null_from: MODEL whose learned null caption replaces the negative prompt. It has the prompt's own length (the
            authors run both halves under the prompt's mask), and the hooks and schedule that ComfyUI encodes with it.
    """
    size = {"width": width, "height": height} if width and height else {}
    positive = _encode(clip, prompt, clean_caption, size)
    if null_from is None:
        return positive, _encode(clip, negative, clean_caption, size)
    return positive, [
        [null_caption(null_from, caption.shape[1]).to(caption), {**values}] for caption, values in positive
    ]


def _encode(clip, text: str, clean_caption: bool, size: dict) -> list:
    # Brackets are part of a sentence here: the stock CLIPTextEncode reads them as weights, PixArt was not trained so.
    tokens = pixart_tokens(clip, prompt_text(text, clean_caption), disable_weights=True)
    return clip.encode_from_tokens_scheduled(tokens, add_dict=size)


def empty_latent(width: int, height: int, batch: int) -> dict:
    """LATENT of zeros. Raises ValueError when a side is not a positive multiple of 8."""
    for name, side in (("width", width), ("height", height)):
        if side < 8 or side % 8:
            nearest = max(8, round(side / 8) * 8)
            raise ValueError(f"{name} is {side}, but must be a multiple of 8: try {nearest}, or choose a bins table")
    samples = torch.zeros(batch, 4, height // 8, width // 8, device=memory.intermediate_device())
    return {"samples": samples, "downscale_ratio_spacial": 8}
