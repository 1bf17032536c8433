"""IMAGE of a drawing that the browser sent as text."""

from __future__ import annotations

import base64
import binascii
import io

from PIL import Image
from torch import Tensor

from .pictures import to_tensor

_BEGIN = "data:image/png;base64,"
_CHARACTERS = 8 * 1024 * 1024
_LARGEST_SIDE = 4096


def read_drawing(text: str, size: int) -> Tensor:
    """A square drawing as IMAGE (1, size, size, 3), transparent parts on white; an empty text is a blank sheet.

    Args:
        text: a PNG as a data: address, at most 8 MB and 4096 px a side.

    Raises:
        ValueError: on anything else.
    """
    sheet = Image.new("RGB", (size, size), "white")
    if text.strip():
        drawn = _decode(text).resize((size, size), Image.Resampling.LANCZOS)
        sheet.paste(drawn, mask=drawn.getchannel("A"))
    return to_tensor([sheet])


def _decode(text: str) -> Image.Image:
    if not text.startswith(_BEGIN) or len(text) > _CHARACTERS:
        raise ValueError(
            f"the drawing is no PNG in a data: address of at most {_CHARACTERS // 2**20} MB: draw on the canvas of "
            "PixArt-δ Live Canvas, or use Load Image for a picture of your own"
        )
    try:
        with Image.open(io.BytesIO(base64.b64decode(text[len(_BEGIN) :], validate=True)), formats=["PNG"]) as picture:
            if max(picture.size) > _LARGEST_SIDE:
                raise ValueError(f"the drawing has {picture.size} px, but at most {_LARGEST_SIDE} a side are read")
            return picture.convert("RGBA")
    except (OSError, SyntaxError, binascii.Error, Image.DecompressionBombError) as error:
        raise ValueError(f"the drawing cannot be read, clear the canvas and draw anew: {error}") from error
