"""Procedural landscapes with captions: the world of the nano family, with its attributes as ground truth."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields

import numpy as np
from PIL import Image, ImageDraw

TIMES = ("day", "dawn", "sunset", "night")
SIDES = ("left", "right")
MOUNTAINS = ("green", "blue", "red", "grey", "white")
GROUNDS = ("lake", "meadow", "desert", "snow")
THINGS = {
    "lake": ("none", "boat"),
    "meadow": ("none", "house", "trees"),
    "desert": ("none", "house", "trees"),
    "snow": ("none", "house", "trees"),
}

SKY = {  # top, bottom, sun or moon, tint of everything on the ground
    "day": ((70, 140, 225), (205, 230, 250), (255, 226, 70), (1.0, 1.0, 1.0)),
    "dawn": ((140, 122, 196), (255, 210, 190), (255, 240, 170), (0.95, 0.87, 0.92)),
    "sunset": ((112, 44, 112), (255, 146, 60), (255, 80, 40), (0.90, 0.74, 0.68)),
    "night": ((6, 8, 30), (30, 36, 84), (242, 242, 224), (0.52, 0.54, 0.70)),
}
MOUNTAIN_COLOUR = {
    "green": (62, 122, 62),
    "blue": (58, 88, 165),
    "red": (172, 68, 48),
    "grey": (128, 126, 130),
    "white": (232, 238, 246),
}
GROUND_COLOUR = {"lake": (46, 108, 190), "meadow": (96, 164, 62), "desert": (216, 178, 108), "snow": (234, 240, 248)}
WALL, ROOF, WINDOW = (196, 48, 44), (84, 44, 40), (255, 222, 120)
LEAVES, TRUNK = (18, 84, 46), (92, 60, 36)
HULL, SAIL = (128, 66, 34), (252, 250, 244)


@dataclass(frozen=True)
class Scene:
    """What a picture shows; `thing` is "none", "house", "trees" or (on a lake) "boat"."""

    time: str
    side: str
    mountains: str
    ground: str
    thing: str


ATTRIBUTES = tuple(field.name for field in fields(Scene))
ALL_SCENES = tuple(
    Scene(time, side, mountains, ground, thing)
    for time, side, mountains, ground in itertools.product(TIMES, SIDES, MOUNTAINS, GROUNDS)
    for thing in THINGS[ground]
)


def is_held_out(scene: Scene) -> bool:
    """About one scene in seven is never trained on, chosen by a hash of its attributes."""
    return hashlib.sha256("/".join(astuple(scene)).encode()).digest()[0] < 38


def random_scene(rng: random.Random, held_out: bool = False) -> Scene:
    """A scene from the training part, or from the part that is kept for the evaluation."""
    return rng.choice(HELD_OUT if held_out else _TRAINED)


HELD_OUT = tuple(scene for scene in ALL_SCENES if is_held_out(scene))
"""Those that are never trained on."""
_TRAINED = tuple(scene for scene in ALL_SCENES if not is_held_out(scene))

# ---------------------------------------------------------------------------------------------------------- captions

TIME_WORDS = {
    "day": ("by day", "on a bright day", "under a clear blue sky", "at noon"),
    "dawn": ("at dawn", "at daybreak", "in the pale morning light", "early in the morning"),
    "sunset": ("at sunset", "in the evening glow", "at dusk", "under a burning evening sky"),
    "night": ("at night", "in the dark of night", "under a night sky", "at midnight"),
}
MOUNTAIN_WORDS = {
    "green": ("green mountains", "green hills", "forested mountains"),
    "blue": ("blue mountains", "blue hills", "blue peaks"),
    "red": ("red mountains", "red hills", "rust red peaks"),
    "grey": ("grey mountains", "grey hills", "bare grey peaks"),
    "white": ("white mountains", "snow-capped mountains", "white peaks"),
}
GROUND_WORDS = {
    "lake": ("a lake", "a calm lake", "still blue water"),
    "meadow": ("a meadow", "a green meadow", "a grassy field"),
    "desert": ("a desert", "a sandy desert", "yellow sand"),
    "snow": ("a snowfield", "a snowy plain", "deep snow"),
}
_THING_WORDS = {
    "house": ("a house", "a small red house", "a red cabin"),
    "trees": ("trees", "a few fir trees", "three trees"),
    "boat": ("a boat", "a sailing boat", "a small sailboat"),
}
SIDE_WORDS = (
    "the {light} on the {side}",
    "the {light} at the {side}",
    "with the {light} to the {side}",
    "{light} on the {side} side",
)
_WITH_THING = (
    "{thing} on {ground} below {mountains} {time}, {sun}",
    "{time}, {thing} on {ground}, {mountains} behind, {sun}",
    "a painting of {thing} on {ground} in front of {mountains} {time}, {sun}",
    "{mountains} {time} with {thing} on {ground}, {sun}",
    "{thing}, {ground}, {mountains}, {time}, {sun}",
)
_WITHOUT_THING = (
    "{ground} below {mountains} {time}, {sun}",
    "{time}, {ground} and {mountains}, {sun}",
    "a painting of {ground} in front of {mountains} {time}, {sun}",
    "{mountains} {time} over {ground}, {sun}",
    "{ground}, {mountains}, {time}, {sun}",
)


def caption(scene: Scene, rng: random.Random, things: Mapping[str, Sequence[str]] = _THING_WORDS) -> str:
    """One of several hundred ways to say the scene; every attribute is in it.

    Args:
        things: words for each thing.
    """
    templates = _WITHOUT_THING if scene.thing == "none" else _WITH_THING
    sun = rng.choice(SIDE_WORDS).format(light="moon" if scene.time == "night" else "sun", side=scene.side)
    return rng.choice(templates).format(
        time=rng.choice(TIME_WORDS[scene.time]),
        mountains=rng.choice(MOUNTAIN_WORDS[scene.mountains]),
        ground=rng.choice(GROUND_WORDS[scene.ground]),
        sun=sun,
        thing="" if scene.thing == "none" else rng.choice(things[scene.thing]),
    )


# ----------------------------------------------------------------------------------------------------------- drawing

_OVERSAMPLE = 2
_NO_COLOUR = (255, 0, 255)
"""A colour that is in no palette."""


def tinted(colour: tuple[int, int, int], time: str, factor: float = 1.0) -> tuple[int, int, int]:
    """A colour of the ground or of a thing in the light of `time`."""
    red, green, blue = (min(255, round(c * tint * factor)) for c, tint in zip(colour, SKY[time][3], strict=True))
    return red, green, blue


def ground_shades(ground: str, time: str) -> list[tuple[int, int, int]]:
    """The colours of a ground: of its plain and of its waves."""
    return [tinted(GROUND_COLOUR[ground], time, factor) for factor in (1.0, 0.95, 0.9)]


def draw(scene: Scene, size: tuple[int, int] = (128, 128), seed: int = 0) -> Image.Image:
    """Paint a scene.

    Args:
        scene: what to show.
        size: height, width in px.
        seed: places, shapes and details.
    """
    return _paint(scene, size, seed).resize((size[1], size[0]), Image.Resampling.BOX)


def boundaries(scene: Scene, size: tuple[int, int] = (128, 128), seed: int = 0) -> np.ndarray:
    """Where the areas of `draw(scene, size, seed)` meet: (height, width) float32, 1 on a boundary, soft beside it.

    Exact, because the same strokes are laid on a sky of one colour that nothing else has, and a boundary is where the
    colour changes. As it lies between pixels, the line is softened to a width of about 2 px.
    """
    label = np.asarray(_paint(scene, size, seed, _NO_COLOUR), np.int32) @ (1 << 16, 1 << 8, 1)
    return soft_boundaries(label, _OVERSAMPLE)


def soft_boundaries(label: np.ndarray, oversample: int) -> np.ndarray:
    """Where labels (H, W) of areas change, as lines about 2 px wide in a picture `oversample` times smaller."""
    edge = np.zeros(label.shape, bool)
    for one, other in ((np.s_[:, 1:], np.s_[:, :-1]), (np.s_[1:], np.s_[:-1])):
        changes = label[one] != label[other]
        edge[one] |= changes
        edge[other] |= changes
    height, width = (side // oversample for side in label.shape)
    thin = edge.reshape(height, oversample, width, oversample).mean((1, 3), dtype=np.float32)
    padded = np.pad(thin, 1, "edge")
    rows = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    soft = rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]
    return np.minimum(soft / 8, 1)


def _paint(scene: Scene, size: tuple[int, int], seed: int, sky: tuple[int, int, int] | None = None) -> Image.Image:
    """The scene at `_OVERSAMPLE` times the size, on the sky's gradient or on one colour."""
    rng = random.Random(seed)
    height, width = (side * _OVERSAMPLE for side in size)
    unit = min(height, width)
    horizon = round(height * rng.uniform(0.60, 0.68))
    image = _sky(scene.time, height, width, horizon) if sky is None else Image.new("RGB", (width, height), sky)
    pen = ImageDraw.Draw(image)
    if scene.time == "night":
        _stars(pen, rng, width, horizon, unit)
    elif scene.time == "day":
        _clouds(pen, rng, width, height, unit)
    _sun(pen, scene, rng, height, width, unit)
    _mountains(pen, scene, rng, width, horizon, height)
    _ground(pen, scene, rng, width, height, horizon, unit)
    if scene.thing != "none":
        {"house": _house, "trees": _trees, "boat": _boat}[scene.thing](pen, scene, rng, width, height, horizon, unit)
    return image


def _sky(time: str, height: int, width: int, horizon: int) -> Image.Image:
    top, bottom = (np.array(colour, np.float32) for colour in SKY[time][:2])
    ramp = np.clip(np.arange(height, dtype=np.float32) / horizon, 0, 1)[:, None]
    rows = (top * (1 - ramp) + bottom * ramp).round().astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(np.broadcast_to(rows[:, None], (height, width, 3))))


def _stars(pen, rng, width, horizon, unit):
    for _ in range(rng.randint(8, 14)):
        x, y, r = rng.uniform(0, width), rng.uniform(0, horizon * 0.45), unit * 0.006
        pen.ellipse((x - r, y - r, x + r, y + r), fill=(200, 204, 220))


def _clouds(pen, rng, width, height, unit):
    for _ in range(rng.randint(0, 2)):
        x, y, r = rng.uniform(0.1, 0.9) * width, rng.uniform(0.06, 0.14) * height, unit * 0.05
        for dx, scale in ((-1.5, 0.7), (0, 1.0), (1.4, 0.75)):
            pen.ellipse(
                (x + dx * r - r * scale * 1.3, y - r * scale * 0.8, x + dx * r + r * scale * 1.3, y + r * scale * 0.8),
                fill=(238, 244, 250),
            )


def _sun(pen, scene, rng, height, width, unit):
    x = width * (rng.uniform(0.14, 0.34) if scene.side == "left" else rng.uniform(0.66, 0.86))
    y, r = height * rng.uniform(0.14, 0.24), unit * rng.uniform(0.075, 0.095)
    pen.ellipse((x - r, y - r, x + r, y + r), fill=SKY[scene.time][2])


def _mountains(pen, scene, rng, width, horizon, height):
    lit_left = scene.side == "left"
    for count, tall, shade in ((3, 0.34, 0.84), (2, 0.25, 1.0)):
        offset = rng.uniform(-0.5, 0.5)
        for index in range(count + 1):
            peak_x = width * (index + 0.5 + offset * 0.6 + rng.uniform(-0.15, 0.15)) / count
            peak_y = horizon - height * tall * rng.uniform(0.7, 1.0)
            half = width / count * rng.uniform(0.75, 0.95)
            waist = peak_x + half * rng.uniform(-0.12, 0.12)
            colour = MOUNTAIN_COLOUR[scene.mountains]
            left, right = (shade, shade * 0.8) if lit_left else (shade * 0.8, shade)
            pen.polygon(
                [(peak_x - half, horizon), (peak_x, peak_y), (waist, horizon)], fill=tinted(colour, scene.time, left)
            )
            pen.polygon(
                [(waist, horizon), (peak_x, peak_y), (peak_x + half, horizon)], fill=tinted(colour, scene.time, right)
            )
    pen.rectangle(
        (0, horizon - height * 0.012, width, horizon), fill=tinted(MOUNTAIN_COLOUR[scene.mountains], scene.time, 0.9)
    )


def _ground(pen, scene, rng, width, height, horizon, unit):
    colour = GROUND_COLOUR[scene.ground]
    pen.rectangle((0, horizon, width, height), fill=tinted(colour, scene.time))
    depth = height - horizon
    if scene.ground == "lake":
        for _ in range(6):
            x, y, length = (
                rng.uniform(0, width),
                horizon + depth * rng.uniform(0.1, 0.95),
                unit * rng.uniform(0.08, 0.2),
            )
            pen.line((x, y, x + length, y), fill=tinted((150, 190, 235), scene.time), width=max(1, round(unit * 0.008)))
        return
    for level, factor in ((0.35, 0.95), (0.7, 0.90)):  # soft waves of the land
        y, swing, phase = horizon + depth * level, depth * 0.1, rng.uniform(0, 2 * np.pi)
        xs = np.linspace(0, width, 17)
        wave = [(x, y + swing * np.sin(phase + 4 * x / width)) for x in xs]
        pen.polygon([*wave, (width, height), (0, height)], fill=tinted(colour, scene.time, factor))


def _foot_point(rng, width, height, horizon, unit, extent):
    """Foot point of a thing that reaches `extent` units to both sides."""
    margin = unit * extent
    x = rng.uniform(max(margin, 0.18 * width), width - max(margin, 0.18 * width))
    return x, horizon + (height - horizon) * rng.uniform(0.35, 0.6)


def _house(pen, scene, rng, width, height, horizon, unit):
    x, y = _foot_point(rng, width, height, horizon, unit, 0.15)
    half, tall = unit * rng.uniform(0.10, 0.125), unit * rng.uniform(0.14, 0.17)
    pen.rectangle((x - half, y - tall, x + half, y), fill=tinted(WALL, scene.time))
    pen.polygon(
        [(x - half * 1.3, y - tall), (x, y - tall - unit * 0.12), (x + half * 1.3, y - tall)],
        fill=tinted(ROOF, scene.time),
    )
    pen.rectangle((x - half * 0.65, y - tall * 0.75, x - half * 0.1, y - tall * 0.3), fill=WINDOW)
    pen.rectangle((x + half * 0.25, y - tall * 0.65, x + half * 0.7, y), fill=tinted(ROOF, scene.time))


def _trees(pen, scene, rng, width, height, horizon, unit):
    x, y = _foot_point(rng, width, height, horizon, unit, 0.26)
    for index in range(3):
        cx, foot = x + unit * (index - 1) * rng.uniform(0.14, 0.17), y + unit * rng.uniform(-0.03, 0.05)
        tall, half = unit * rng.uniform(0.22, 0.27), unit * rng.uniform(0.065, 0.08)
        pen.rectangle((cx - half * 0.22, foot - tall * 0.2, cx + half * 0.22, foot), fill=tinted(TRUNK, scene.time))
        for level in (0.12, 0.38):
            pen.polygon(
                [
                    (cx - half * (1.1 - level), foot - tall * level),
                    (cx, foot - tall * (0.68 + level * 0.84)),
                    (cx + half * (1.1 - level), foot - tall * level),
                ],
                fill=tinted(LEAVES, scene.time),
            )


def _boat(pen, scene, rng, width, height, horizon, unit):
    x, y = _foot_point(rng, width, height, horizon, unit, 0.16)
    half, deep = unit * rng.uniform(0.12, 0.145), unit * 0.06
    mast = unit * rng.uniform(0.24, 0.28)
    pen.polygon(
        [(x - half, y), (x + half, y), (x + half * 0.65, y + deep), (x - half * 0.65, y + deep)],
        fill=tinted(HULL, scene.time),
    )
    pen.line((x, y, x, y - mast), fill=tinted(TRUNK, scene.time), width=max(1, round(unit * 0.012)))
    pen.polygon(
        [(x + unit * 0.012, y - unit * 0.02), (x + unit * 0.012, y - mast), (x + half * 0.95, y - unit * 0.02)],
        fill=tinted(SAIL, scene.time, 1.1),
    )
    pen.polygon(
        [(x - unit * 0.012, y - unit * 0.02), (x - unit * 0.012, y - mast * 0.85), (x - half * 0.7, y - unit * 0.02)],
        fill=tinted(SAIL, scene.time, 0.95),
    )
