"""Paints landscapes: sky, mountains and ground with light and depth. What stands on the ground is in `painted_things`.

Every colour is one of `palette` in the light of the time, times a shade, so that `reading` can tell what is what
without having learned anything.
"""

from __future__ import annotations

import itertools
import random

import numpy as np
from PIL import Image

from .canvas import Canvas, Colour, Point, ellipse
from .landscape import Landscape
from .painted_things import paint_balloons, paint_groups
from .palette import CLOUDS, GROUNDS, LIT, MOUNTAINS, SHADED, SKIES, lit
from .scenes import soft_boundaries

HORIZON = (0.61, 0.66)
"""Part of the height; the mountains never are lower than `_LEAST_ROCK` above it."""
_LEAST_ROCK = 0.10
BANDS = ((225, 70, 70), (240, 150, 60), (250, 225, 80), (90, 205, 95), (70, 120, 230), (140, 80, 200))
"""A rainbow from outside to inside."""
AURORA = (60, 235, 150)
"""Northern lights where they are strongest."""


def draw(landscape: Landscape, size: tuple[int, int] = (256, 256), seed: int = 0) -> Image.Image:
    """Paint a landscape.

    Args:
        size: height, width in px.
        seed: places, shapes and details.
    """
    return _paint(landscape, size, seed).picture()


def boundaries(landscape: Landscape, size: tuple[int, int] = (256, 256), seed: int = 0) -> np.ndarray:
    """Where the areas of `draw(landscape, size, seed)` meet, as `scenes.boundaries` says it: (height, width)."""
    return soft_boundaries(_paint(landscape, size, seed).labels, 1)


def _paint(landscape: Landscape, size: tuple[int, int], seed: int) -> Canvas:
    rng = random.Random(seed)
    canvas = Canvas(*size)
    horizon = round(canvas.height * rng.uniform(*HORIZON))
    sun = _sky(canvas, landscape, rng, horizon)
    _mountains(canvas, landscape, rng, horizon)
    _ground(canvas, landscape, rng, horizon, sun)
    paint_balloons(canvas, landscape, rng)
    paint_groups(canvas, landscape, rng, horizon)
    return canvas


# --------------------------------------------------------------------------------------------------------------- sky


def _sky(canvas: Canvas, landscape: Landscape, rng: random.Random, horizon: int) -> Point:
    """From the gradient to the clouds; the sun's place."""
    sky = SKIES[landscape.time]
    ramp = np.clip(np.arange(canvas.height, dtype=np.float32) / horizon, 0, 1)[:, None, None]
    canvas.pixels[:] = np.asarray(sky.top, np.float32) * (1 - ramp) + np.asarray(sky.bottom, np.float32) * ramp
    on_left = landscape.side == "left"
    x = canvas.width * (rng.uniform(0.14, 0.30) if on_left else rng.uniform(0.70, 0.86))
    y, radius = canvas.height * rng.uniform(0.13, 0.22), canvas.unit * rng.uniform(0.07, 0.085)
    if landscape.time == "night":
        _stars(canvas, rng, horizon)
    _glow(canvas, (x, y), radius, sky.glow)
    {"rainbow": _rainbow, "aurora": _aurora}.get(landscape.weather, lambda *_: None)(canvas, landscape, rng, horizon)
    disc = canvas.area()
    canvas.fill([ellipse(x, y, radius, radius)], sky.light, area=disc)
    if landscape.time == "night":
        for dx, dy, part in ((-0.35, -0.2, 0.22), (0.3, 0.25, 0.28), (0.15, -0.5, 0.14)):
            canvas.fill([ellipse(x + dx * radius, y + dy * radius, part * radius, part * radius)], (222, 222, 204))
    if landscape.weather == "clouds":
        _clouds(canvas, landscape, rng)
    return x, y


def _glow(canvas: Canvas, place: Point, radius: float, colour: Colour) -> None:
    rows, columns = np.ogrid[: canvas.height, : canvas.width]
    distance = np.hypot(columns + 0.5 - place[0], rows + 0.5 - place[1]).astype(np.float32)
    alpha = 0.5 * np.exp(-np.maximum(distance - radius, 0) / (1.3 * radius))
    canvas.blend(np.s_[:, :], alpha[..., None], np.asarray(colour, np.float32))


def _stars(canvas: Canvas, rng: random.Random, horizon: int) -> None:
    for _ in range(rng.randint(22, 34)):
        x, y = rng.uniform(0, canvas.width), rng.uniform(0, horizon * 0.7)
        r = canvas.unit * rng.choice((0.0025, 0.0035, 0.005))
        canvas.fill([ellipse(x, y, r, r)], (222, 226, 240))


def _far_side(landscape: Landscape, part: float) -> float:
    """A place across, given as it is with the sun on the left."""
    return part if landscape.side == "left" else 1 - part


def _rainbow(canvas: Canvas, landscape: Landscape, rng: random.Random, horizon: int) -> None:
    radius = min(0.52 * canvas.width, 0.6 * canvas.height) * rng.uniform(0.95, 1.05)
    x = canvas.width * _far_side(landscape, rng.uniform(0.80, 0.88))
    y = canvas.height * rng.uniform(0.15, 0.19) + radius
    band = 0.014 * canvas.unit
    rows, columns = np.ogrid[: canvas.height, : canvas.width]
    distance = np.hypot(columns + 0.5 - x, np.minimum(rows + 0.5 - y, 0)).astype(np.float32)
    for index, colour in enumerate(BANDS):
        middle = radius - (index + 0.5) * band
        alpha = np.clip(band / 2 + 0.5 - np.abs(distance - middle), 0, 1)
        canvas.blend(np.s_[:, :], 0.8 * alpha[..., None], np.asarray(colour, np.float32))


def _aurora(canvas: Canvas, landscape: Landscape, rng: random.Random, horizon: int) -> None:
    columns = np.linspace(0, 1, canvas.width, dtype=np.float32)
    for low, tall in ((0.40, 0.30), (0.30, 0.22)):
        phase, rays = rng.uniform(0, 6.28), rng.uniform(0, 6.28)
        foot = canvas.height * (low + 0.05 * np.sin(phase + 5 * columns) + 0.02 * np.sin(2 * phase + 11 * columns))
        above = (foot[None] - np.arange(canvas.height, dtype=np.float32)[:, None]) / (tall * canvas.height)
        strength = np.clip(1 - above, 0, 1) ** 1.5 * np.clip(above * 12, 0, 1)
        strength *= 0.75 + 0.25 * np.sin(rays + 37 * columns)
        share = np.clip(above, 0, 1)[..., None]
        colour = np.array(AURORA, np.float32) * (1 - share) + np.array((120, 90, 220), np.float32) * share
        canvas.blend(np.s_[:, :], 0.75 * strength[..., None], colour)


def _clouds(canvas: Canvas, landscape: Landscape, rng: random.Random) -> None:
    top, bottom = CLOUDS[landscape.time]
    for part in (rng.uniform(0.46, 0.58), rng.uniform(0.70, 0.80), rng.uniform(0.90, 1.0)):
        x, y = canvas.width * _far_side(landscape, part), canvas.height * rng.uniform(0.08, 0.24)
        r = canvas.unit * rng.uniform(0.045, 0.065)
        puffs = [(-1.5, 0.0, 0.7), (-0.6, -0.45, 0.85), (0.4, -0.6, 1.0), (1.3, -0.1, 0.8)]
        shapes = [
            ellipse(x + dx * r * rng.uniform(0.85, 1.15), y + dy * r, part * r * 1.1, part * r * 0.85)
            for dx, dy, part in puffs
        ]
        canvas.fill([*shapes, ellipse(x, y + 0.25 * r, 2.3 * r, 0.45 * r)], top, bottom, area=canvas.area())


# --------------------------------------------------------------------------------------------------------- mountains


def _mountains(canvas: Canvas, landscape: Landscape, rng: random.Random, horizon: int) -> None:
    """Two ranges, the farther in the sky's haze, and dark foothills."""
    rock, height = MOUNTAINS[landscape.mountains], canvas.height
    haze = np.asarray(SKIES[landscape.time].bottom)
    tall = min(height, 1.25 * canvas.width)
    far = [0.35 * haze + 0.65 * np.asarray(lit(rock, landscape.time, shade)) for shade in (LIT, SHADED)]
    near = [np.asarray(lit(rock, landscape.time, shade)) for shade in (LIT, SHADED)]
    for count, low, high, faces, base in ((4, 0.26, 0.36, far, 0.5), (3, 0.17, 0.27, near, 0.0)):
        _range(
            canvas, landscape, rng, horizon, count, (low * tall, high * tall), faces, base * haze + (1 - base) * near[0]
        )
    dark = lit(rock, landscape.time, 0.5)
    edge = [(x * canvas.width / 24, horizon - height * rng.uniform(0.012, 0.026)) for x in range(25)]
    canvas.fill([[(0, horizon), *edge, (canvas.width, horizon)]], dark, area=canvas.area())


def _range(canvas, landscape, rng, horizon, count, heights, faces, foot) -> None:
    """Peaks beside each other: a lit body, and over it the side of each peak that is away from the light."""
    step, start = canvas.width / count, rng.uniform(-0.9, -0.1)
    peaks = [((start + i + rng.uniform(-0.15, 0.15)) * step, horizon - rng.uniform(*heights)) for i in range(count + 3)]
    body = canvas.area()
    profile, sides = [], []
    for (x, y), (next_x, next_y) in itertools.pairwise(peaks):
        saddle_y = max(y, next_y) + 0.35 * (horizon - max(y, next_y))
        saddle_y = min(saddle_y, horizon - _LEAST_ROCK * canvas.height)
        saddle = (x + (next_x - x) * rng.uniform(0.4, 0.6), saddle_y)
        down, up = _jagged((x, y), saddle, rng), _jagged(saddle, (next_x, next_y), rng)
        profile += [*down, *up[:-1]]
        sides.append(down if landscape.side == "left" else up[::-1])
    bottom = [(profile[-1][0], horizon), (profile[0][0], horizon)]
    canvas.fill([[*profile, *bottom]], faces[0], foot, area=body)
    for side in sides:
        (x, y), away = side[0], np.sign(side[-1][0] - side[0][0])
        ridge = _jagged((x, y), (x + away * rng.uniform(0.0, 0.12) * step, horizon), rng, rough=0.05, parts=6)
        foot_x = side[-1][0] + away * 0.12 * step
        canvas.fill([[*ridge, (foot_x, horizon), *side[::-1]]], faces[1], 0.5 * (faces[1] + foot), area=canvas.area())


def _jagged(start: Point, end: Point, rng: random.Random, rough: float = 0.04, parts: int = 4) -> list[Point]:
    """A broken line between two points, off the straight one by up to `rough` of its length."""
    (x, y), dx, dy = start, end[0] - start[0], end[1] - start[1]
    inner = [(i / parts, rng.uniform(-rough, rough)) for i in range(1, parts)]
    return [start, *((x + t * dx - off * dy, y + t * dy + off * abs(dx)) for t, off in inner), end]


# ------------------------------------------------------------------------------------------------------------ ground


def _ground(canvas: Canvas, landscape: Landscape, rng: random.Random, horizon: int, sun: Point) -> None:
    colour = GROUNDS[landscape.ground]
    if landscape.ground == "lake":
        _lake(canvas, landscape, rng, horizon, sun)
        return
    height, width, depth = canvas.height, canvas.width, canvas.height - horizon
    shade = [lit(colour, landscape.time, factor) for factor in (1.0, 0.93, 0.86, 0.95)]
    canvas.fill(
        [[(0, horizon), (width, horizon), (width, height), (0, height)]], shade[1], shade[0], area=canvas.area()
    )
    xs = np.linspace(0, width, 33)
    for level, near, far in ((0.16, 1.0, 0.93), (0.42, 1.0, 0.90), (0.72, 0.97, 0.86)):
        swing, phase = depth * 0.07, rng.uniform(0, 2 * np.pi)
        wave = horizon + depth * level + swing * np.sin(phase + rng.uniform(4, 7) * xs / width)
        land = [*zip(xs, wave, strict=True), (width, height), (0, height)]
        canvas.fill([land], lit(colour, landscape.time, near), lit(colour, landscape.time, far), area=canvas.area())
    if landscape.ground == "meadow":
        _flowers(canvas, landscape, rng, horizon)


def _flowers(canvas: Canvas, landscape: Landscape, rng: random.Random, horizon: int) -> None:
    for _ in range(rng.randint(14, 26)):
        y = horizon + (canvas.height - horizon) * rng.uniform(0.3, 0.98)
        x, r = rng.uniform(0, canvas.width), canvas.unit * 0.004
        canvas.fill([ellipse(x, y, r, r)], lit(rng.choice(((250, 220, 70), (240, 120, 150))), landscape.time))


def _lake(canvas: Canvas, landscape: Landscape, rng: random.Random, horizon: int, sun: Point) -> None:
    """Water that mirrors what is above it, less the nearer it is, with ripples and the light's path."""
    height, width = canvas.height, canvas.width
    depth = height - horizon
    rows = np.arange(depth)
    ripple = np.round(rows * 0.02 * np.sin(rows * 0.9 + rng.uniform(0, 6)) * depth / 90).astype(int)
    source = np.clip(horizon - 1 - np.round(rows * 1.15).astype(int) + ripple, 0, horizon - 1)
    away = (rows / depth).astype(np.float32)[:, None, None]
    water = np.asarray(lit(GROUNDS["lake"], landscape.time, 1.0), np.float32) * (1 - 0.14 * away)
    mirror = (0.5 * np.clip(1 - 1.35 * away, 0, 1)).astype(np.float32)
    canvas.pixels[horizon:] = water + mirror * (canvas.pixels[source] - water)
    canvas.labels[horizon:] = canvas.area()
    light = np.asarray(SKIES[landscape.time].light, np.float32)
    pale = 0.55 * np.asarray(lit((190, 220, 245), landscape.time)) + 0.45 * water[0, 0]
    for _ in range(rng.randint(9, 13)):
        level = rng.uniform(0.08, 0.97)
        x, y = rng.uniform(0, width), horizon + depth * level
        _ripple(canvas, x, y, canvas.unit * (0.04 + 0.07 * level) * rng.uniform(0.7, 1.3), level, pale, 0.8)
    for level in np.arange(0.06, 0.9, 0.085):
        x = sun[0] + canvas.unit * rng.uniform(-0.03, 0.03) * (1 + level)
        length = canvas.unit * rng.uniform(0.02, 0.05) * (1 + level)
        _ripple(canvas, x, horizon + depth * level, length, level, light, 0.7)


def _ripple(canvas: Canvas, x: float, y: float, half: float, level: float, colour, alpha: float) -> None:
    """A lens of light on water."""
    thick = canvas.unit * (0.0025 + 0.004 * level)
    canvas.fill([[(x - half, y), (x, y - thick), (x + half, y), (x, y + thick)]], colour, alpha=alpha)
