"""Reads a scene's attributes back from a picture, so that the quality of the nano family is a number.

Every decision compares pixels with the palette of `scenes`; nothing is learned, and nothing is known of the caption.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from . import scenes
from .scenes import Scene, ground_shades, tinted

SHADES = (1.0, 0.84, 0.8, 0.67)
_TYPICAL_HORIZON = 0.64
NEAR = 42.0
"""Colours closer than this (Euclidean, 0 … 255) count as the same thing."""
_SMALLEST_THING = 0.006
"""Area, in squares of the shorter side, from which a house, trees or a boat count as drawn."""


def read_scene(picture: Image.Image) -> Scene:
    """The attributes that a picture of any size shows."""
    pixels = np.asarray(picture.convert("RGB"), np.float32)
    time = _time(pixels)
    ground = _ground(pixels, time)
    horizon = horizon_of(pixels, time, ground)
    return Scene(
        time,
        sky_side(pixels, scenes.SKY[time][2]),
        _mountains(pixels, time, horizon),
        ground,
        _thing(pixels, time, ground, horizon),
    )


def attributes_right(picture: Image.Image, scene: Scene) -> dict[str, bool]:
    """Attribute name -> whether the picture shows what `scene` says."""
    seen = read_scene(picture)
    return {name: getattr(seen, name) == getattr(scene, name) for name in scenes.ATTRIBUTES}


def colour_distance(pixels: np.ndarray, colours) -> np.ndarray:
    """Euclidean distance of pixels (…, 3) to colours (K, 3), both 0 … 255: (…, K)."""
    colours = np.asarray(colours, np.float32)
    squares = (pixels**2).sum(-1)[..., None] + (colours**2).sum(-1) - 2 * pixels @ colours.T
    return np.sqrt(squares.clip(min=0))


def pieces(mask: np.ndarray, area: float) -> int:
    """Connected pieces (8-neighbourhood) of at least so many pixels."""
    from scipy import ndimage

    labels, _ = ndimage.label(mask, np.ones((3, 3)))
    return int((np.bincount(labels.ravel())[1:] >= area).sum())


def _time(pixels) -> str:
    top = np.median(pixels[: max(1, round(0.04 * len(pixels)))].reshape(-1, 3), axis=0)
    return scenes.TIMES[int(colour_distance(top, [scenes.SKY[time][0] for time in scenes.TIMES]).argmin())]


def sky_side(pixels: np.ndarray, light: Sequence[float]) -> str:
    """The half of the sky that has more of a sun's or moon's colour."""
    rows = pixels[: round(0.36 * len(pixels))]
    weight = np.clip(1 - colour_distance(rows, [light])[..., 0] / NEAR, 0, None)
    half = weight.shape[1] // 2
    return "left" if weight[:, :half].sum() >= weight[:, half:].sum() else "right"


def _ground(pixels, time) -> str:
    bottom = pixels[-max(1, round(0.06 * len(pixels))) :].reshape(-1, 3)
    colours = [shade for ground in scenes.GROUNDS for shade in ground_shades(ground, time)]
    votes = np.bincount(colour_distance(bottom, colours).argmin(-1) // 3, minlength=len(scenes.GROUNDS))
    return scenes.GROUNDS[int(votes.argmax())]


def horizon_of(pixels, time, ground) -> int:
    """The row below which most pixels have the colour of the ground."""
    height = len(pixels)
    land = colour_distance(pixels, ground_shades(ground, time)).min(-1)
    rock = colour_distance(
        pixels, [tinted(colour, time, shade) for colour in scenes.MOUNTAIN_COLOUR.values() for shade in SHADES]
    ).min(-1)
    share = ((land < NEAR * 0.6) & (land < rock + 8)).mean(1)  # 8: snow and snowy mountains look alike
    for row in range(round(0.56 * height), round(0.72 * height)):
        if share[row : row + 3].min() > 0.4:
            return row
    return round(_TYPICAL_HORIZON * height)


def _mountains(pixels, time, horizon) -> str:
    height = len(pixels)
    band = slice(horizon - round(0.09 * height), horizon - round(0.02 * height))
    rows = pixels[band]
    colours = [tinted(scenes.MOUNTAIN_COLOUR[name], time, shade) for name in scenes.MOUNTAINS for shade in SHADES]
    distance = colour_distance(rows, colours).reshape(*rows.shape[:2], len(scenes.MOUNTAINS), len(SHADES)).min(-1)
    sky = colour_distance(rows, _sky_colours(time, height)[band].reshape(-1, 3)).min(-1)
    votes = [
        (distance.argmin(-1) == index) & (distance.min(-1) < sky) & (distance.min(-1) < NEAR)
        for index in range(len(scenes.MOUNTAINS))
    ]
    return scenes.MOUNTAINS[int(np.argmax([vote.sum() for vote in votes]))]


def _sky_colours(time, height) -> np.ndarray:
    ramp = np.clip(np.arange(height) / (_TYPICAL_HORIZON * height), 0, 1)[:, None]
    top, bottom = (np.array(colour) for colour in scenes.SKY[time][:2])
    return top * (1 - ramp) + bottom * ramp


def _thing(pixels, time, ground, horizon) -> str:
    rows = pixels[horizon + 1 :]
    dark = (scenes.ROOF, scenes.TRUNK, scenes.HULL)  # which at night resemble leaves
    other = ground_shades(ground, time) + [tinted(colour, time) for colour in dark]
    other = colour_distance(rows, other).min(-1)
    parts = {"house": [tinted(scenes.WALL, time)], "trees": [tinted(scenes.LEAVES, time)]}
    if ground == "lake":
        parts["boat"] = [tinted(scenes.SAIL, time, 1.1), tinted(scenes.SAIL, time, 0.95)]
    distances = {name: colour_distance(rows, colours).min(-1) for name, colours in parts.items()}
    unit = min(pixels.shape[:2]) ** 2
    area = {name: ((d < NEAR) & (d < other)).sum() / unit for name, d in distances.items()}
    best = max(area, key=area.__getitem__)
    return best if area[best] > _SMALLEST_THING else "none"
