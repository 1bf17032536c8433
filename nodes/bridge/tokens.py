"""The 120 tokens that PixArt reads, whichever of ComfyUI's T5 tokenizers counted them."""

from __future__ import annotations

import logging

from ...pixart_core.text import MAX_LENGTH
from .ui import say


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
