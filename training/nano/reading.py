"""Reads back from a picture what a landscape of the second world shows, and counts it.

Every pixel is what its nearest colour of the palette is in the light of the time that was read; nothing is learned, and
nothing is known of the caption.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
from PIL import Image

from .canvas import Colour
from .checker import NEAR, colour_distance, pieces, sky_side
from .landscape import LIGHTS, THINGS, Group, Landscape
from .painting import AURORA, BANDS
from .palette import BALLOON, BODIES, CLOUDS, GROUNDS, LIT, MOUNTAINS, SHADED, SKIES, STRIPE, TRIM, lit

ATTRIBUTES = ("time", "side", "mountains", "ground", "weather", "things")
COUNTS = ("numbers", "order")
_SKY, _ABOVE_PEAKS, _ROCK, _LAND = (0.0, 0.42), 0.24, (0.53, 0.575), (0.67, 1.0)
"""Rows, in parts of the height: of balloons and lights, of clouds, of near mountains alone, of the ground alone."""
_AREAS = {"house": 0.006, "tree": 0.0025, "tent": 0.003, "sheep": 0.0012, "boat": 0.002, "lighthouse": 0.003}
"""Squares of the shorter side from which a piece is a thing; drawn ones have twice that at least."""
_BALLOON_AREA, _CLOUD_AREA, _LIGHT_AREA = 0.005, 0.006, 0.0012

Named = tuple[str, Iterable[Colour | np.ndarray]]
"""Colours of one name."""


def read_landscape(picture: Image.Image) -> Landscape:
    """What a picture of any size shows."""
    pixels = np.asarray(picture.convert("RGB"), np.float32)
    time = _time(pixels)
    side = sky_side(pixels, SKIES[time].light)
    ground = _ground(pixels, time)
    weather, balloons = _above(pixels, time, side)
    return Landscape(time, side, _mountains(pixels, time), ground, weather, balloons, _groups(pixels, time, ground))


def marks(picture: Image.Image, landscape: Landscape) -> dict[str, bool]:
    """Each of `ATTRIBUTES` and `COUNTS` -> whether the picture shows what `landscape` says.

    `things` are the kinds that are there, `numbers` how many of each, balloons among them, `order` the kinds from left
    to right.
    """
    seen = read_landscape(picture)
    right = {name: getattr(seen, name) == getattr(landscape, name) for name in ATTRIBUTES[:-1]}
    kinds, found = ([group.kind for group in each.groups] for each in (landscape, seen))
    numbers, counted = ({(each.kind, each.count) for each in one.groups} for one in (landscape, seen))
    right["things"] = set(found) == set(kinds) and bool(seen.balloons) == bool(landscape.balloons)
    right["numbers"] = counted == numbers and seen.balloons == landscape.balloons
    return right | {"order": found == kinds}


def _rows(pixels: np.ndarray, part: tuple[float, float]) -> np.ndarray:
    return pixels[round(part[0] * len(pixels)) : round(part[1] * len(pixels))]


def _shades(colour: Colour, time: str, *factors: float) -> list[Colour]:
    return [lit(colour, time, factor) for factor in factors]


def _time(pixels: np.ndarray) -> str:
    top = np.median(_rows(pixels, (0, 0.04)).reshape(-1, 3), axis=0)
    return list(SKIES)[int(colour_distance(top, [sky.top for sky in SKIES.values()]).argmin())]


def _ground(pixels: np.ndarray, time: str) -> str:
    named = [(name, _shades(colour, time, 1.0, 0.93, 0.86)) for name, colour in GROUNDS.items()]
    return _most(_read(_rows(pixels, (0.94, 1.0)), named), GROUNDS)


def _mountains(pixels: np.ndarray, time: str) -> str:
    named = [(name, _shades(colour, time, *np.linspace(LIT, SHADED, 5))) for name, colour in MOUNTAINS.items()]
    named.append(("trim", [lit(colour, time) for colour in (*TRIM, *itertools.chain(*BODIES.values()))]))
    return _most(_read(_rows(pixels, _ROCK), named), MOUNTAINS)


def _read(pixels: np.ndarray, named: Iterable[Named]) -> np.ndarray:
    """Names (H, W) of the nearest colours of pixels (H, W, 3); "" where none is near."""
    every = [(name, colour) for name, colours in named for colour in colours]
    distance = colour_distance(pixels, [colour for _, colour in every])
    names = np.asarray([name for name, _ in every])[distance.argmin(-1)]
    return np.where(distance.min(-1) < NEAR, names, "")


def _most(names: np.ndarray, choices: Iterable[str]) -> str:
    return max(choices, key=lambda name: int((names == name).sum()))


def _above(pixels: np.ndarray, time: str, side: str) -> tuple[str, int]:
    """Weather and balloons, in the half of the sky without the sun."""
    half = pixels.shape[1] * 2 // 5
    sky = _rows(pixels, _SKY)
    sky = sky[:, half:] if side == "left" else sky[:, : pixels.shape[1] - half]
    top, bottom = np.asarray(SKIES[time].top), np.asarray(SKIES[time].bottom)
    first, last = (np.asarray(colour) for colour in CLOUDS[time])
    named: list[Named] = [
        ("sky", [top + share * (bottom - top) for share in np.linspace(0, 1, 9)]),
        ("balloon", [*_shades(BALLOON, time, 1.05, 0.9), *_shades(STRIPE, time, 1.0)]),
        ("clouds", [first + share * (last - first) for share in (0, 0.5, 1)]),
    ]
    behind = top + 0.5 * (bottom - top)
    if LIGHTS[time] == "aurora":
        for name, strengths in (("sky", (0.15, 0.25, 0.35)), ("aurora", (0.45, 0.6, 0.75))):
            named.append((name, [behind + strength * (np.asarray(AURORA) - behind) for strength in strengths]))
    else:
        for index, band in enumerate(BANDS):
            named.append(("rainbow" if index == 3 else "band", [behind + 0.8 * (np.asarray(band) - behind)]))
    for colour in MOUNTAINS.values():
        rocks = _shades(colour, time, LIT, 0.86, SHADED)
        named.append(("rock", [*rocks, *(0.65 * np.asarray(rock) + 0.35 * bottom for rock in rocks)]))
    names, square = _read(sky, named), min(pixels.shape[:2]) ** 2
    areas = {"clouds": _CLOUD_AREA, LIGHTS[time]: _LIGHT_AREA}
    names[round(_ABOVE_PEAKS * len(pixels)) :][names[round(_ABOVE_PEAKS * len(pixels)) :] == "clouds"] = ""
    shares = {name: (names == name).sum() / square / area for name, area in areas.items()}
    best = max(shares, key=shares.__getitem__)
    return best if shares[best] > 1 else "clear", pieces(names == "balloon", _BALLOON_AREA * square)


def _groups(pixels: np.ndarray, time: str, ground: str) -> tuple[Group, ...]:
    """Things on the ground, from left to right."""
    earth = _shades(GROUNDS[ground], time, 1.0, 0.93, 0.86)
    shadow = np.asarray(lit((40, 44, 60), time))
    named: list[Named] = [("ground", [*earth, *(0.7 * np.asarray(colour) + 0.3 * shadow for colour in earth)])]
    if ground == "lake":
        mirrored = [lit(colour, time, shade) for colour in MOUNTAINS.values() for shade in (LIT, SHADED)]
        for strength in (0.2, 0.4):
            named.append(("ground", [earth[1] + strength * (np.asarray(each) - earth[1]) for each in mirrored]))
    for kind in THINGS[ground]:
        named += [(kind, _shades(body, time, 1.15, 1.0, 0.85)) for body in BODIES[kind]]
    named.append(("trim", [lit(colour, time) for colour in TRIM]))
    names, square, found = _read(_rows(pixels, _LAND), named), min(pixels.shape[:2]) ** 2, []
    for kind in THINGS[ground]:
        count = pieces(names == kind, _AREAS[kind] * square)
        if count:
            found.append((float(np.nonzero(names == kind)[1].mean()), Group(kind, count)))
    return tuple(group for _, group in sorted(found, key=lambda each: each[0]))
