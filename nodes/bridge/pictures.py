"""IMAGE: a picture file, those of a dataset, a run's samples, and its loss as a drawing."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

_THUMB = 256
_WIDTH, _HEIGHT, _MARGIN, _LETTERS = 768, 384, 80, 20
_PAPER, _INK, _LINE = (255, 255, 255), (60, 60, 60), (225, 225, 225)
_CURVE, _HELD_OUT = (31, 111, 235), (45, 140, 60)
_BANDS = ((150, 215, 110), (225, 180, 40), (225, 120, 40), (190, 50, 60))
"""Of four bands of timesteps, the least noisy first."""


def to_tensor(pictures: list[Image.Image]) -> Tensor:
    """IMAGE (B, H, W, 3), values 0 … 1, of pictures of one size."""
    return torch.from_numpy(np.stack([np.asarray(picture.convert("RGB"), np.float32) / 255 for picture in pictures]))


def read_picture(path: str | Path) -> Tensor:
    """A picture file as IMAGE (1, H, W, 3)."""
    with Image.open(path) as picture:
        return to_tensor([picture])


def thumbnails(files: list[Path]) -> Tensor:
    """IMAGE of pictures, each fitted into a square: those that can be read, a black one if none can."""
    shown = []
    for file in files:
        with contextlib.suppress(OSError, Image.DecompressionBombError):  # the report names it
            with Image.open(file) as picture:
                shown.append(ImageOps.pad(picture.convert("RGB"), (_THUMB, _THUMB)))
    return to_tensor(shown or [Image.new("RGB", (_THUMB, _THUMB))])


def latest_samples(files: list[Path]) -> Tensor:
    """IMAGE of the newest grid; a grey one when there is none."""
    if not files:
        return to_tensor([Image.new("RGB", (_THUMB, _THUMB), (128, 128, 128))])
    return read_picture(files[-1])


def loss_plot(
    steps: list[int], losses: list[float | None], validation: Sequence[Sequence[float | None]] = ()
) -> Tensor:
    """IMAGE of the loss over steps, on a logarithmic scale where all of it is positive.

    validation: the losses on what is held out: over all timesteps, then over four bands of them, the least noisy first.
    """
    picture = Image.new("RGB", (_WIDTH, _HEIGHT), _PAPER)
    pen = ImageDraw.Draw(picture)
    pen.font = ImageFont.load_default(_LETTERS)
    points = [(step, loss) for step, loss in zip(steps, losses, strict=True) if loss is not None]
    if not points:
        pen.text((_MARGIN, _HEIGHT // 2), "no loss yet", _INK)
        return to_tensor([picture])
    held_out, *bands = [
        [(step, loss) for step, loss in zip(steps, each, strict=True) if loss is not None]
        for each in validation or [[None] * len(steps)]
    ]
    every = [loss for curve in (points, held_out, *bands) for _, loss in curve]
    logarithmic = all(loss > 0 for loss in every)
    scale = math.log10 if logarithmic else float
    low, high = scale(min(every)), scale(max(every))
    spread, first, last = high - low or 1.0, points[0][0], points[-1][0]

    def x(step: float) -> float:
        return _MARGIN + (step - first) / max(1, last - first) * (_WIDTH - 1.5 * _MARGIN)

    def y(value: float) -> float:
        return _HEIGHT - _MARGIN / 2 - (value - low) / spread * (_HEIGHT - _MARGIN)

    for share in (0, 0.25, 0.5, 0.75, 1):
        value = low + share * spread
        pen.line([(_MARGIN, y(value)), (_WIDTH - _MARGIN / 2, y(value))], _LINE)
        pen.text((_MARGIN - 8, y(value)), f"{10**value if logarithmic else value:.3g}", _INK, anchor="rm")
        step = round(first + share * (last - first))
        pen.text((x(step), _HEIGHT - _MARGIN / 2 + 8), str(step), _INK, anchor="mt")
    pen.text((_MARGIN, 8), "loss over steps" + (", logarithmic" if logarithmic else ""), _INK)
    thin = [(band, colour, 1) for band, colour in zip(bands, _BANDS[: len(bands)], strict=True)]
    curves = [*thin, (points, _CURVE, 2), (held_out, _HELD_OUT, 2)]
    for curve, colour, width in curves:
        line = [(x(step), y(scale(loss))) for step, loss in curve]
        pen.line(line if len(line) > 1 else line * 2, colour, width)
    if held_out:
        _legend(pen, bool(bands))
    return to_tensor([picture])


def _legend(pen: ImageDraw.ImageDraw, bands: bool) -> None:
    """What the lines of what is held out are, from the right to the left."""
    right = _WIDTH - _MARGIN / 2
    pen.text((right, 8), "on what is held out", _HELD_OUT, anchor="ra")
    if not bands:
        return
    for number, colour in reversed([*enumerate(_BANDS)]):
        name = f"t {250 * number}-{250 * number + 249}"
        pen.text((right, 8 + 1.3 * _LETTERS), name, colour, anchor="ra")
        right -= pen.textlength(name) + _LETTERS / 2
