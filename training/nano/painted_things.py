"""Things of the second world: each in a place of its own, with a gap to the next, so that they can be counted."""

from __future__ import annotations

import random
from collections.abc import Callable

from . import palette
from .canvas import Canvas, Colour, box, ellipse
from .landscape import Landscape
from .palette import lit

REACH = {"house": 0.125, "tree": 0.085, "tent": 0.115, "sheep": 0.062, "boat": 0.135, "lighthouse": 0.09}
"""Half of a thing's width in units (the shorter side) at its common size."""
_GAP = 0.86
"""Part of its place that a thing takes at most."""
FEET = (0.40, 0.62)
"""Where things stand, in parts of the ground's depth."""
_EDGE = 0.03
"""Part of the width left free at both borders, and twice between two groups."""


def paint_groups(canvas: Canvas, landscape: Landscape, rng: random.Random, horizon: int) -> None:
    """Every thing of the groups, from left to right in the landscape's order, the farthest first."""
    groups, placed = landscape.groups, []
    share = (1 - 2 * _EDGE * max(1, len(groups))) / max(1, len(groups))
    for index, group in enumerate(groups):
        left = _EDGE + index * (share + 2 * _EDGE)
        # All of a group are of one size, so that none looks like a part of another.
        slot = share * canvas.width / group.count
        scale = min(rng.uniform(0.9, 1.15), _GAP * slot / 2 / (REACH[group.kind] * canvas.unit))
        reach = REACH[group.kind] * canvas.unit * scale
        slot = min(slot, 2 * reach * rng.uniform(1.25, 1.6)) if group.count > 1 else slot
        slot = max(slot, 2 * reach / _GAP)
        start = left * canvas.width + rng.uniform(0, max(0.0, share * canvas.width - slot * group.count))
        for number in range(group.count):
            free = max(0.0, slot / 2 - reach / _GAP)
            x = start + (number + 0.5) * slot + rng.uniform(-free, free)
            y = horizon + (canvas.height - horizon) * rng.uniform(*FEET)
            placed.append((y, x, group.kind, canvas.unit * scale))
    for y, x, kind, unit in sorted(placed):
        _THINGS[kind](_Brush(canvas, landscape, rng), x, y, unit)


def paint_balloons(canvas: Canvas, landscape: Landscape, rng: random.Random) -> None:
    """Hot air balloons in the half of the sky that has no sun."""
    places = (
        [rng.uniform(0.66, 0.80)] if landscape.balloons == 1 else [rng.uniform(0.55, 0.62), rng.uniform(0.80, 0.86)]
    )
    for part in places[: landscape.balloons]:
        x = canvas.width * (part if landscape.side == "left" else 1 - part)
        _balloon(_Brush(canvas, landscape, rng), x, canvas.height * rng.uniform(0.13, 0.24), canvas.unit)


class _Brush:
    """Lays a thing's parts in the light of a landscape."""

    def __init__(self, canvas: Canvas, landscape: Landscape, rng: random.Random):
        self.canvas, self.time, self.rng = canvas, landscape.time, rng
        self.to_light = -1 if landscape.side == "left" else 1

    def lay(self, colour: Colour, *shapes, shade: float = 1.0, darker: float | None = None, axis: int = 0) -> None:
        """Shapes of a paint, from one shade to another along an axis."""
        first = lit(colour, self.time, shade)
        second = None if darker is None else lit(colour, self.time, darker)
        if axis == 1 and self.to_light > 0 and second is not None:
            first, second = second, first
        self.canvas.fill(shapes, first, second, axis, area=self.canvas.area())

    def shine(self, colour: Colour, *shapes) -> None:
        """Shapes that give light themselves."""
        self.canvas.fill(shapes, colour, area=self.canvas.area())

    def shadow(self, x: float, y: float, reach: float) -> None:
        """What a thing keeps the light from: on the ground away from the sun."""
        place = ellipse(x - self.to_light * 0.35 * reach, y, 1.15 * reach, 0.16 * reach)
        self.canvas.fill([place], lit((40, 44, 60), self.time), alpha=0.3)


def _house(brush: _Brush, x: float, y: float, unit: float) -> None:
    half, tall = 0.098 * unit, 0.135 * unit
    brush.shadow(x, y, 1.25 * half)
    brush.lay(palette.TRUNK, box(x + half * 0.45, y - tall - 0.11 * unit, x + half * 0.68, y - tall - 0.03 * unit))
    brush.lay(palette.WALL, box(x - half, y - tall, x + half, y), shade=1.04, darker=0.86, axis=1)
    roof = [(x - half * 1.26, y - tall), (x, y - tall - 0.105 * unit), (x + half * 1.26, y - tall)]
    brush.lay(palette.ROOF, roof, shade=1.15, darker=0.8, axis=1)
    brush.shine(palette.WINDOW, box(x - half * 0.7, y - tall * 0.72, x - half * 0.16, y - tall * 0.3))
    bar = 0.005 * unit
    middle = x - half * 0.43
    brush.lay(palette.ROOF, box(middle - bar, y - tall * 0.72, middle + bar, y - tall * 0.3))
    brush.lay(palette.DOOR, box(x + half * 0.22, y - tall * 0.64, x + half * 0.64, y))


def _tree(brush: _Brush, x: float, y: float, unit: float) -> None:
    tall, half = unit * brush.rng.uniform(0.235, 0.27), 0.078 * unit
    brush.shadow(x, y, half)
    brush.lay(palette.TRUNK, box(x - half * 0.16, y - tall * 0.2, x + half * 0.16, y))
    for low, high, wide in ((0.12, 0.58, 1.0), (0.34, 0.79, 0.8), (0.57, 1.0, 0.58)):
        crown = [(x - half * wide, y - tall * low), (x, y - tall * high), (x + half * wide, y - tall * low)]
        brush.lay(palette.LEAVES, crown, shade=1.2, darker=0.85, axis=1)


def _tent(brush: _Brush, x: float, y: float, unit: float) -> None:
    half, tall = 0.108 * unit, 0.135 * unit
    brush.shadow(x, y, 1.1 * half)
    brush.lay(palette.TENT, [(x - half, y), (x, y - tall), (x + half, y)], shade=1.1, darker=0.82, axis=1)
    brush.lay(palette.TENT_INSIDE, [(x - half * 0.3, y), (x, y - tall * 0.68), (x + half * 0.3, y)])


def _sheep(brush: _Brush, x: float, y: float, unit: float) -> None:
    faces = brush.rng.choice((-1, 1))
    half = 0.045 * unit
    brush.shadow(x, y, 1.1 * half)
    for leg in (-0.5, 0.4):
        brush.lay(palette.FACE, box(x + (leg - 0.1) * half, y - half * 0.7, x + (leg + 0.1) * half, y))
    y -= half * 1.05
    puffs = [
        ellipse(x + dx * half, y + dy * half, 0.55 * half, 0.5 * half)
        for dx, dy in ((-0.5, 0.05), (0, -0.22), (0.5, 0.05))
    ]
    brush.lay(palette.WOOL, ellipse(x, y, half, 0.62 * half), *puffs, shade=1.0, darker=0.9)
    brush.lay(palette.FACE, ellipse(x + faces * 1.0 * half, y - 0.15 * half, 0.3 * half, 0.36 * half))


def _boat(brush: _Brush, x: float, y: float, unit: float) -> None:
    half, deep, mast = 0.125 * unit, 0.055 * unit, unit * brush.rng.uniform(0.24, 0.27)
    gleam = lit(palette.SAIL, brush.time, 0.9)
    brush.canvas.fill(
        [[(x - half * 0.4, y + deep), (x + half * 0.6, y + deep), (x, y + deep * 2.6)]], gleam, alpha=0.25
    )
    hull = [(x - half, y), (x + half, y), (x + half * 0.66, y + deep), (x - half * 0.62, y + deep)]
    brush.lay(palette.HULL, hull, shade=1.1, darker=0.8)
    wide = 0.006 * unit
    brush.lay(palette.TRUNK, box(x - wide, y - mast, x + wide, y))
    front = [(x + 2 * wide, y - 0.02 * unit), (x + 2 * wide, y - mast), (x + half * 0.95, y - 0.02 * unit)]
    back = [(x - 2 * wide, y - 0.02 * unit), (x - 2 * wide, y - mast * 0.85), (x - half * 0.72, y - 0.02 * unit)]
    brush.lay(palette.SAIL, front, shade=1.02)
    brush.lay(palette.SAIL, back, shade=0.88)


def _lighthouse(brush: _Brush, x: float, y: float, unit: float) -> None:
    half, tall = 0.04 * unit, 0.27 * unit
    brush.lay(palette.ROCK, ellipse(x, y + 0.005 * unit, 0.085 * unit, 0.03 * unit), shade=1.1, darker=0.75)
    tower = [(x - half, y), (x - half * 0.7, y - tall), (x + half * 0.7, y - tall), (x + half, y)]
    brush.lay(palette.TOWER, tower, shade=1.04, darker=0.85, axis=1)
    top = y - tall
    brush.shine(palette.LANTERN, box(x - half * 0.55, top - 0.04 * unit, x + half * 0.55, top))
    brush.lay(palette.ROOF, box(x - half * 0.95, top - 0.006 * unit, x + half * 0.95, top + 0.006 * unit))
    cap = [(x - half * 0.8, top - 0.04 * unit), (x, top - 0.075 * unit), (x + half * 0.8, top - 0.04 * unit)]
    brush.lay(palette.ROOF, cap)


def _balloon(brush: _Brush, x: float, y: float, unit: float) -> None:
    r = 0.07 * unit
    skirt, stripe = (
        [
            (x - wide * r, y + top * r),
            (x + wide * r, y + top * r),
            (x + low * r, y + 1.35 * r),
            (x - low * r, y + 1.35 * r),
        ]
        for wide, top, low in ((0.8, 0.55, 0.2), (0.36, 0.5, 0.1))
    )
    brush.lay(palette.BALLOON, ellipse(x, y, r, r), skirt, shade=1.05, darker=0.9, axis=1)
    brush.lay(palette.STRIPE, ellipse(x, y, 0.4 * r, r), stripe)
    brush.lay(palette.BASKET, box(x - 0.2 * r, y + 1.5 * r, x + 0.2 * r, y + 1.85 * r))


_THINGS: dict[str, Callable[[_Brush, float, float, float], None]] = {
    "house": _house,
    "tree": _tree,
    "tent": _tent,
    "sheep": _sheep,
    "boat": _boat,
    "lighthouse": _lighthouse,
}
