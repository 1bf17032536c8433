"""Counts the things in a picture of a scene: "three trees" are right when there are three, a house when it is one.

As in `checker`, pixels are compared with the palette and nothing is learned. Unlike there the scene is known, because a
count only matters where its attributes are right.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from .checker import NEAR, colour_distance, horizon_of, pieces
from .scenes import HULL, LEAVES, ROOF, SKY, TRUNK, WALL, Scene, ground_shades, tinted

NUMBER = {"none": 0, "house": 1, "trees": 3, "boat": 1}
"""How many of a thing the generator draws, whatever words the caption has for it."""
COUNTS = ("one light", "number")
_HOUSE = (WALL, ROOF, (140, 46, 42))
"""Wall, roof and door, and what is between them where one pixel shows both."""
_SKY_ROWS = 0.42
"""Part of the height that the sun or moon is looked for in."""
_SUN_AREA, _HOUSE_AREA, _HULL_AREA = 0.004, 0.006, 0.0015
"""Squares of the shorter side from which a piece counts; drawn ones have 0.017, 0.02 and 0.012 or more."""
_TREE = 0.07
"""Units that a crown is high at least; drawn ones have 0.2."""
_CLEFT = 0.3
"""Part of its height by which a crown stands out from what is between it and the next."""


def counts_right(picture: Image.Image, scene: Scene) -> dict[str, bool]:
    """Each of `COUNTS` -> whether there is one sun or moon, and the right number of the scene's thing."""
    pixels = np.asarray(picture.convert("RGB"), np.float32)
    return dict(zip(COUNTS, (lights(pixels, scene) == 1, things(pixels, scene) == NUMBER[scene.thing]), strict=True))


def lights(pixels: np.ndarray, scene: Scene) -> int:
    """Suns or moons in the upper part of pixels (H, W, 3), 0 … 255."""
    rows = pixels[: round(_SKY_ROWS * len(pixels))]
    return pieces(colour_distance(rows, [SKY[scene.time][2]])[..., 0] < NEAR, _SUN_AREA * _square(pixels))


def things(pixels: np.ndarray, scene: Scene) -> int:
    """How many there are of the scene's thing in pixels (H, W, 3), 0 … 255; 0 where it has none."""
    if scene.thing == "none":
        return 0
    # Below the horizon: above it a green mountain at night is as dark as leaves.
    below = pixels[horizon_of(pixels, scene.time, scene.ground) + 1 :]
    if scene.thing == "trees":
        return _trees(_looks_like(below, scene, (LEAVES,)), min(pixels.shape[:2]))
    parts, area = (_HOUSE, _HOUSE_AREA) if scene.thing == "house" else ((HULL,), _HULL_AREA)
    return pieces(_looks_like(below, scene, parts), area * _square(pixels))


def _square(pixels: np.ndarray) -> int:
    return min(pixels.shape[:2]) ** 2


def _looks_like(pixels: np.ndarray, scene: Scene, parts: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """Where one of these colours is near, and nearer than the ground."""
    others = ground_shades(scene.ground, scene.time)
    others += [tinted(TRUNK, scene.time)] * (scene.thing == "trees")
    near = colour_distance(pixels, [tinted(each, scene.time) for each in parts]).min(-1)
    return (near < NEAR) & (near < colour_distance(pixels, others).min(-1))


def _trees(leaves: np.ndarray, unit: int) -> int:
    """Crowns side by side: peaks in the number of leaves in each column of a mask."""
    width = max(1, unit // 64) | 1
    heights = np.convolve(leaves.sum(0), np.ones(width) / width, "same")
    return peaks(heights, max(_TREE * unit, 0.4 * heights.max()), _CLEFT)


def peaks(heights: np.ndarray, least: float, cleft: float) -> int:
    """Peaks of at least that height between valleys that are deeper by the part `cleft` of the lower peak.

    Args:
        heights: (W,), not negative.
    """
    found, top, low, rising = 0, 0.0, 0.0, True
    for height in [*heights, 0.0]:
        if rising:
            top = max(top, height)
            if top >= least and height <= (1 - cleft) * top:
                found, low, rising = found + 1, height, False
        else:
            low = min(low, height)
            if height >= least and low <= (1 - cleft) * height:
                top, rising = height, True
    return found
