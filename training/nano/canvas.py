"""A canvas for flat shapes with clean edges: shapes are cut out at several times the size, colours blended at size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

Point = tuple[float, float]
Colour = tuple[float, float, float]
_FINE = 4
"""Times the size at which shapes are cut out: 17 levels of covered pixels at an edge."""
_ROUND = 48
"""Corners of an ellipse."""


class Canvas:
    """Pixels (H, W, 3), float32 in 0 … 255, and of which area each pixel is: labels (H, W)."""

    def __init__(self, height: int, width: int):
        self.height, self.width, self.unit = height, width, min(height, width)
        self.pixels = np.zeros((height, width, 3), np.float32)
        self.labels = np.zeros((height, width), np.int16)
        self._areas = 0

    def area(self) -> int:
        """A new area's label."""
        self._areas += 1
        return self._areas

    def fill(
        self,
        shapes: Sequence[Sequence[Point]],
        first: Colour,
        second: Colour | None = None,
        axis: int = 0,
        alpha: float = 1.0,
        area: int | None = None,
    ) -> None:
        """Lay the union of polygons, (x, y) in px, over what is there.

        Args:
            first, second: colour at one end and at the other, along `axis` (0 = downwards, 1 = to the right).
            alpha: 0 … 1.
            area: label of the pixels; None = the shape bounds nothing.
        """
        points = np.array([point for shape in shapes for point in shape])
        left, top = (max(0, int(np.floor(low))) for low in points.min(0))
        right, bottom = np.minimum(np.ceil(points.max(0)).astype(int) + 1, (self.width, self.height))
        if left >= right or top >= bottom:
            return
        cover = Image.new("L", ((right - left) * _FINE, (bottom - top) * _FINE))
        pen = ImageDraw.Draw(cover)
        for shape in shapes:
            pen.polygon([((x - left) * _FINE - 0.5, (y - top) * _FINE - 0.5) for x, y in shape], fill=255)
        mask = np.asarray(cover.reduce(_FINE), np.float32)[..., None] / 255
        low, high = points.min(0)[1 - axis], points.max(0)[1 - axis]
        where = (slice(top, bottom), slice(left, right))
        self.blend(where, mask * alpha, self._ramp(first, second, axis, where, low, high))
        if area is not None:
            self.labels[where][mask[..., 0] > 0.5] = area

    @staticmethod
    def _ramp(first, second, axis, where, low, high) -> np.ndarray:
        start = np.asarray(first, np.float32)
        if second is None:
            return start
        places = np.arange(where[axis].start, where[axis].stop, dtype=np.float32) + 0.5
        share = np.clip((places - low) / max(high - low, 1e-6), 0, 1)
        share = share[:, None, None] if axis == 0 else share[None, :, None]
        return start + share * (np.asarray(second, np.float32) - start)

    def blend(self, where: tuple[slice, slice], alpha: np.ndarray, colour: np.ndarray) -> None:
        """Lay a colour, or one for each pixel, over a part of the canvas; alpha (h, w, 1)."""
        part = self.pixels[where]
        part += alpha * (colour - part)

    def picture(self) -> Image.Image:
        """What was painted."""
        return Image.fromarray(self.pixels.round().clip(0, 255).astype(np.uint8))


def ellipse(x: float, y: float, across: float, down: float) -> list[Point]:
    """Around (x, y), with these half axes in px."""
    angles = np.linspace(0, 2 * np.pi, _ROUND, endpoint=False)
    return list(zip(x + across * np.cos(angles), y + down * np.sin(angles), strict=True))


def box(left: float, top: float, right: float, bottom: float) -> list[Point]:
    """A rectangle."""
    return [(left, top), (right, top), (right, bottom), (left, bottom)]
