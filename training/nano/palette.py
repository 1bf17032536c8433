"""Colours of the second world and its lights. What has to be told apart has colours far from each other."""

from __future__ import annotations

from dataclasses import dataclass

from .canvas import Colour
from .scenes import SKY


@dataclass(frozen=True)
class Sky:
    """Colours of the sky's top and bottom, of the sun or moon, and of the glow around it."""

    top: Colour
    bottom: Colour
    light: Colour
    glow: Colour


SKIES = {
    "day": Sky((58, 128, 220), (146, 196, 240), (255, 226, 70), (176, 214, 244)),
    "dawn": Sky((122, 110, 194), (252, 192, 172), (255, 240, 170), (255, 205, 190)),
    "sunset": Sky((104, 40, 112), (255, 150, 64), (255, 84, 40), (255, 150, 80)),
    "night": Sky((6, 8, 30), (32, 40, 92), (242, 242, 224), (70, 76, 124)),
}
CLOUDS = {  # top, bottom
    "day": ((252, 253, 255), (222, 232, 244)),
    "dawn": ((246, 206, 216), (216, 170, 196)),
    "sunset": ((236, 160, 150), (196, 104, 120)),
    "night": ((104, 112, 150), (74, 80, 116)),
}
MOUNTAINS = {
    "green": (62, 126, 66),
    "blue": (56, 88, 172),
    "red": (178, 70, 48),
    "grey": (128, 126, 130),
    "white": (240, 244, 250),
}
LIT, SHADED = 1.0, 0.72
"""Shades of a mountain's faces."""
GROUNDS = {"lake": (40, 104, 190), "meadow": (96, 166, 62), "desert": (222, 182, 108), "snow": (236, 242, 250)}
WALL, ROOF, WINDOW, DOOR = (196, 48, 44), (84, 44, 40), (255, 222, 120), (84, 44, 40)
LEAVES, TRUNK = (18, 84, 46), (92, 60, 36)
HULL, SAIL = (128, 66, 34), (252, 250, 244)
TENT, TENT_INSIDE = (150, 62, 196), (62, 26, 84)
WOOL, FACE = (250, 246, 232), (52, 46, 44)
TOWER, LANTERN, ROCK = (214, 44, 48), (255, 244, 190), (96, 92, 92)
BALLOON, STRIPE, BASKET = (20, 176, 168), (10, 134, 132), (110, 70, 40)
BODIES = {
    "house": (WALL, (140, 47, 42), ROOF),  # between them what one pixel shows of both
    "tree": (LEAVES,),
    "tent": (TENT, TENT_INSIDE),
    "sheep": (WOOL,),
    "boat": (HULL,),
    "lighthouse": (TOWER,),
}
"""The paints of each thing that together are one piece, though its upper part be cut off."""
TRIM = (TRUNK, WINDOW, FACE, ROCK, SAIL, BASKET)
"""Those of no thing's body."""


def lit(colour: Colour, time: str, shade: float = 1.0) -> Colour:
    """A colour of the ground, of a mountain or of a thing in the light of `time`."""
    red, green, blue = (min(255.0, part * tint * shade) for part, tint in zip(colour, SKY[time][3], strict=True))
    return red, green, blue
