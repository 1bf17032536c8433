"""Pictures as the networks are shown them: upright, RGB, resized and cropped to their bucket as PixArt's authors do."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import stat
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ...pixart_core.resolution import Bins, bins

_STEP = 16
"""Sides are multiples of this many px: a latent pixel is 8, a patch two of them."""
MAX_RATIO = 4
"""Pictures longer than this are left out, as the authors do."""

_PLUGINS = ("pillow_heif.HeifImagePlugin", "pillow_avif", "pillow_jxl")
"""Packages that teach Pillow another format when they are imported."""


class PictureError(ValueError):
    """A picture that cannot be used."""


def buckets(resolution: int, multi_aspect: bool = True) -> Bins:
    """Height / width -> (height, width) in px: the authors' 40 for training, scaled; or the square alone.

    Of a resolution that divides their table unevenly (128), the sizes remain that come out as multiples of 16.
    """
    if not multi_aspect:
        return {1.0: (resolution, resolution)}
    scaled = {
        ratio: (height * resolution / 1024, width * resolution / 1024)
        for ratio, (height, width) in bins(1024, training=True).items()
    }
    return {
        ratio: (int(height), int(width))
        for ratio, (height, width) in scaled.items()
        if height % _STEP == 0 and width % _STEP == 0
    }


def nearest_bucket(height: int, width: int, table: Bins) -> float:
    """The key of `table` nearest to height / width; a tie goes to the smaller one."""
    return min(table, key=lambda ratio: abs(ratio - height / width))


@functools.cache
def formats() -> tuple[str, ...]:
    """What Pillow reads here, with the plugins of other packages that are installed.

    Not PostScript: Pillow hands that to another program, Ghostscript, which would run it.
    """
    for plugin in _PLUGINS:
        with contextlib.suppress(ImportError):
            importlib.import_module(plugin)
    Image.init()
    return tuple(sorted(set(Image.OPEN) - {"EPS"}))


@functools.cache
def suffixes() -> frozenset[str]:
    """The suffixes of files in these formats, in lower case."""
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in formats())


def open_picture(file: Path | bytes) -> Image.Image:
    """A picture as RGB, the way up that its camera noted, on white where it is transparent.

    Args:
        file: where it is, or what it holds.

    Raises:
        PictureError: saying what is wrong.
    """
    picture = _open(file)
    if picture.mode in ("I", "F") or picture.mode.startswith("I;"):
        raise PictureError(f"it has more than 8 bits a channel (mode {picture.mode}): save it as 8-bit RGB")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


def open_alpha(file: Path | bytes) -> Image.Image:
    """What of a picture is not transparent, as RGB: white = all of it. Raises as `open_picture`."""
    picture = _open(file)
    if not picture.has_transparency_data:
        return Image.new("RGB", picture.size, "white")
    return picture.convert("RGBA").getchannel("A").convert("RGB")


def _open(file: Path | bytes) -> Image.Image:
    """A picture the way up that its camera noted, in whatever mode."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # a large scan; the error is another class
            if isinstance(file, Path) and not stat.S_ISREG(file.stat().st_mode):
                raise PictureError("it is no file")  # a pipe would be waited for
            with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=formats()) as opened:
                picture = ImageOps.exif_transpose(opened)
                picture.load()
    except FileNotFoundError as error:
        raise PictureError("there is no such file") from error
    except PictureError:
        raise
    except Exception as error:  # Pillow's plugins raise whatever their formats lead them to
        where = "<_io.BytesIO" if isinstance(file, bytes) else str(file)
        raise PictureError(f"{type(error).__name__}: {error}".split(where)[0].rstrip(" '")) from error
    return picture


def fit(picture: Image.Image, height: int, width: int) -> np.ndarray:
    """Cover height x width, cut the overhang off both sides equally: uint8 (height, width, 3).

    The arithmetic is that of the authors' InternalDataMS (torchvision's Resize, bicubic, and CenterCrop on PIL).
    """
    if height / picture.height > width / picture.width:
        resized = height, max(int(picture.width * height / picture.height), width)
    else:
        resized = max(int(picture.height * width / picture.width), height), width
    picture = picture.resize((resized[1], resized[0]), Image.Resampling.BICUBIC)
    top, left = round((resized[0] - height) / 2), round((resized[1] - width) / 2)
    return np.asarray(picture.crop((left, top, left + width, top + height)))


def coverage(mask: np.ndarray) -> np.ndarray:
    """How much of each pixel of the latent a mask (uint8, (height, width, 3), white = all) covers: (1, h, w), half."""
    height, width = mask.shape[0] // 8, mask.shape[1] // 8
    blocks = mask[:, :, 0].reshape(height, 8, width, 8).astype(np.float32)
    return (blocks.mean((1, 3)) / 255)[None].astype(np.float16)
