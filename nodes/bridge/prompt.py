"""CONDITIONING: prompts by PixArt's rules, in the 120 tokens that it reads, with its micro-conditions."""

from __future__ import annotations

import logging
import re

from ...pixart_core.text import MAX_LENGTH, normalize_prompt
from .model import null_caption
from .ui import say

_EMBEDDING = re.compile(r"((?:^|(?<=[\s(]))embedding:[^\s:()]+)")
"""How ComfyUI's prompts name a textual inversion: the name of a file, to which no rule for words applies."""


def prompt_text(text: str, clean_caption: bool = False) -> str:
    """`normalize_prompt` of the words of a prompt; the names of embeddings in it stay as they are written."""
    parts = _EMBEDDING.split(text)
    for index in range(0, len(parts), 2):  # the odd ones are names
        words = parts[index].strip()
        if words:
            parts[index] = parts[index].replace(words, normalize_prompt(words, clean_caption))
    return "".join(parts).strip()


def encode_prompts(
    clip, prompt: str, negative_prompt: str, width: int, height: int, clean_caption: bool, null_from=None
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
        return positive, _encode(clip, negative_prompt, clean_caption, size)
    return positive, [
        [null_caption(null_from, caption.shape[1]).to(caption), {**values}] for caption, values in positive
    ]


def _encode(clip, text: str, clean_caption: bool, size: dict) -> list:
    # Brackets are part of a sentence here: the stock CLIPTextEncode reads them as weights, PixArt was not trained so.
    tokens = pixart_tokens(clip, prompt_text(text, clean_caption), disable_weights=True)
    return clip.encode_from_tokens_scheduled(tokens, add_dict=size)


def cut_tokens(tokens: list[tuple], tokenizer) -> list[tuple]:
    """At most MAX_LENGTH of a prompt's tokens; the end of the sentence stays the last of them. Says what it cuts off.

    Args:
        tokens: (token or embedding, weight, …) each, as ComfyUI's tokenizers give them. Padding after the end, which
            T5TokenizerOptions asks for, is no part of the prompt: it goes before a word does, and without a word.
        tokenizer: the `comfy.sd1_clip.SDTokenizer` that made them.
    """
    end = len(tokens)
    while end > 1 and isinstance(tokens[end - 1][0], int) and tokens[end - 1][0] == tokenizer.pad_token:
        end -= 1
    words, padding = tokens[:end], tokens[end:]
    if len(words) > MAX_LENGTH:
        ids = [token[0] for token in words[MAX_LENGTH - 1 : -1] if isinstance(token[0], int)]
        say(
            f"the prompt has {len(words)} tokens and PixArt reads {MAX_LENGTH}; this was cut off: "
            f"{tokenizer.tokenizer.decode(ids)!r}",
            logging.WARNING,
        )
        words = words[: MAX_LENGTH - 1] + words[-1:]
    return (words + padding)[:MAX_LENGTH]


def pixart_tokens(clip, text: str, **options) -> dict[str, list]:
    """The tokens of any CLIP that holds a T5, by PixArt's rules: at most 120, and padded only if its user asks for it.

    Args:
        options: for the CLIP's tokenizers.
    """
    # The tokenizers of Stable Diffusion 3 and others pad; T5 is told so by no mask here, PixArt was trained under one.
    wished = {"t5xxl_min_length": 1} | clip.tokenizer_options
    tokens = clip.tokenize(text, tokenizer_options=wished, **options)
    for name in tokens:
        tokenizer = getattr(clip.tokenizer, name, None) or getattr(clip.tokenizer, f"clip_{name}", None)
        if "t5" in name and tokenizer is not None:
            tokens[name] = [cut_tokens(row, tokenizer) for row in tokens[name]]
    return tokens
