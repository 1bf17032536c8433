"""What a conditioning tells our MODEL, as anybody's nodes write it, in the form that ComfyUI batches."""

from __future__ import annotations

import logging

import comfy.conds
import torch
import torch.nn.functional as F
from torch import Tensor

from .ui import say_once


class Padded(comfy.conds.CONDRegular):
    """A tensor (B, L, …) that goes into one batch with others of another L, filled up with zeros."""

    def can_concat(self, other) -> bool:
        one, two = self.cond, other.cond
        return one.shape[:1] + one.shape[2:] == two.shape[:1] + two.shape[2:] and one.device == two.device

    def concat(self, others) -> Tensor | None:
        parts = [self.cond, *(other.cond for other in others)]
        length = max(part.shape[1] for part in parts)
        rest = [0, 0] * (self.cond.ndim - 2)
        return torch.cat([F.pad(part, [*rest, 0, length - part.shape[1]]) for part in parts])


class Length(Padded):
    """The mask (B, L) of captions that are whole: ones. None where all have one length: no mask is faster than ones."""

    def concat(self, others) -> Tensor | None:
        return super().concat(others) if any(o.cond.shape != self.cond.shape for o in others) else None


def caption_conds(values: dict, limit: int, one_batch: bool = False) -> dict:
    """`c_crossattn` and `c_mask` of a conditioning's values, at most `limit` tokens long.

    The authors cut a prompt to 120 tokens, its last one being the end of the sentence. Longer ones come of text
    encoders that know nothing of it, and of prompts put one after the other.

    Args:
        one_batch: let captions of any length go into one batch, see `Padded`.
    """
    caption, mask = values.get("cross_attn"), values.get("caption_mask")
    if caption is None:
        return {}
    mask = None if mask is None else torch.as_tensor(mask).reshape(-1, caption.shape[1]).long()
    keep = _kept_tokens(caption, mask, limit)
    if keep is not None:
        caption, mask = caption[:, keep], None if mask is None else mask[:, keep]
    kind = Padded if one_batch else comfy.conds.CONDRegular
    conds = {"c_crossattn": kind(caption)}
    if mask is not None:
        conds["c_mask"] = kind(mask)
    elif one_batch:
        conds["c_mask"] = Length(torch.ones(caption.shape[:2], dtype=torch.long))
    return conds


def _kept_tokens(caption: Tensor, mask: Tensor | None, limit: int) -> Tensor | None:
    """Places of the tokens that the model reads, None for all: of those that the mask shows the first, and the last."""
    if caption.shape[1] <= limit:
        return None
    places = torch.arange(caption.shape[1])
    if mask is not None:
        places = places[mask.cpu().any(dim=0)]
    if len(places) > limit:
        say_once(
            f"the conditioning has {len(places)} tokens and PixArt reads {limit}: those from {limit} on, but the last, "
            "are cut off",
            logging.WARNING,
        )
        places = torch.cat([places[: limit - 1], places[-1:]])
    return places


def size_conds(values: dict) -> dict:
    """`c_size` (1 or B, 2): height and width in px; `c_ar` (1 or B, 1): their ratio, if the conditioning says it.

    Both are integers, the ratio by the bits of its float32, because ComfyUI rounds floats to the model's dtype.

    Args:
        values: of a conditioning. `width`, `height` and `aspect_ratio` are numbers; `img_hw`, which ExtraModels' node
            writes, is a pair and wins. Each may be wrapped in lists, or a tensor, with a row for each picture.

    Raises:
        ValueError: on a value that is not such numbers.
    """
    sides = [_numbers(values, name, 1) for name in ("height", "width")]
    size = _numbers(values, "img_hw", 2) if values.get("img_hw") is not None else torch.cat(sides, dim=1)
    conds = {"c_size": comfy.conds.CONDRegular(size.round().long())}
    if values.get("aspect_ratio") is not None:
        conds["c_ar"] = comfy.conds.CONDRegular(_numbers(values, "aspect_ratio", 1).view(torch.int32))
    return conds


def _numbers(values: dict, name: str, columns: int) -> Tensor:
    try:
        numbers = torch.as_tensor(values[name], dtype=torch.float32, device="cpu").reshape(-1, columns)
        if not len(numbers) or not bool((numbers > 0).all() & numbers.isfinite().all()):
            raise ValueError("not positive")
    except (TypeError, ValueError, RuntimeError) as error:
        expected = "height and width" if columns == 2 else "a number"
        raise ValueError(
            f"the conditioning's {name} is {values[name]!r}, but should be {expected} above 0: look at the node that "
            "set it"
        ) from error
    return numbers


def aspect_ratio(c_size: Tensor | None, c_ar: Tensor | None) -> Tensor | None:
    """Height / width, (B, 1), as the conditioning says it: itself, or by the picture's size; None = neither."""
    if c_ar is not None:
        return c_ar.view(torch.float32)
    return None if c_size is None else (c_size[:, :1] / c_size[:, 1:]).float()
