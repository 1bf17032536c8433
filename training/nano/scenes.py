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
    height, width = (side * _OVERSAMPLE for side in size)
    return _Painting(scene, height, width, random.Random(seed), sky).image


class _Painting:
    """A scene as it is painted, from the sky to what stands on the ground; places are in px.

    Args:
        sky: its one colour; None = its gradient.
    """

    def __init__(self, scene: Scene, height: int, width: int, rng: random.Random, sky: tuple[int, int, int] | None):
        self.scene, self.height, self.width, self.rng = scene, height, width, rng
        self.unit = min(height, width)
        self.horizon = round(height * rng.uniform(0.60, 0.68))
        self.image = self._sky() if sky is None else Image.new("RGB", (width, height), sky)
        self.pen = ImageDraw.Draw(self.image)
        if scene.time == "night":
            self._stars()
        elif scene.time == "day":
            self._clouds()
        self._sun()
        self._mountains()
        self._ground()
        if scene.thing != "none":
            {"house": self._house, "trees": self._trees, "boat": self._boat}[scene.thing]()

    def _lay(self, colour: tuple[int, int, int], points: list[tuple[float, float]], factor: float = 1.0) -> None:
        """A shape of a paint in the light of the time."""
        self.pen.polygon(points, fill=tinted(colour, self.scene.time, factor))

    def _box(self, colour: tuple[int, int, int], *sides: float, factor: float = 1.0) -> None:
        """As `_lay`: left, top, right and bottom of a rectangle."""
        self.pen.rectangle(sides, fill=tinted(colour, self.scene.time, factor))

    def _disc(self, colour: tuple[int, int, int], x: float, y: float, across: float, down: float) -> None:
        """An ellipse of a colour around (x, y), with these half axes."""
        self.pen.ellipse((x - across, y - down, x + across, y + down), fill=colour)

    def _sky(self) -> Image.Image:
        top, bottom = (np.array(colour, np.float32) for colour in SKY[self.scene.time][:2])
        ramp = np.clip(np.arange(self.height, dtype=np.float32) / self.horizon, 0, 1)[:, None]
        rows = (top * (1 - ramp) + bottom * ramp).round().astype(np.uint8)
        return Image.fromarray(np.ascontiguousarray(np.broadcast_to(rows[:, None], (self.height, self.width, 3))))

    def _stars(self) -> None:
        for _ in range(self.rng.randint(8, 14)):
            x, y = self.rng.uniform(0, self.width), self.rng.uniform(0, self.horizon * 0.45)
            self._disc((200, 204, 220), x, y, self.unit * 0.006, self.unit * 0.006)

    def _clouds(self) -> None:
        for _ in range(self.rng.randint(0, 2)):
            x, y = self.rng.uniform(0.1, 0.9) * self.width, self.rng.uniform(0.06, 0.14) * self.height
            r = self.unit * 0.05
            for dx, scale in ((-1.5, 0.7), (0, 1.0), (1.4, 0.75)):
                self._disc((238, 244, 250), x + dx * r, y, r * scale * 1.3, r * scale * 0.8)

    def _sun(self) -> None:
        is_left = self.scene.side == "left"
        x = self.width * (self.rng.uniform(0.14, 0.34) if is_left else self.rng.uniform(0.66, 0.86))
        y, r = self.height * self.rng.uniform(0.14, 0.24), self.unit * self.rng.uniform(0.075, 0.095)
        self._disc(SKY[self.scene.time][2], x, y, r, r)

    def _mountains(self) -> None:
        rock, foot, rng = MOUNTAIN_COLOUR[self.scene.mountains], self.horizon, self.rng
        for count, tall, shade in ((3, 0.34, 0.84), (2, 0.25, 1.0)):
            offset = rng.uniform(-0.5, 0.5)
            for index in range(count + 1):
                x = self.width * (index + 0.5 + offset * 0.6 + rng.uniform(-0.15, 0.15)) / count
                peak = (x, foot - self.height * tall * rng.uniform(0.7, 1.0))
                half = self.width / count * rng.uniform(0.75, 0.95)
                waist = x + half * rng.uniform(-0.12, 0.12)
                left, right = (shade, shade * 0.8) if self.scene.side == "left" else (shade * 0.8, shade)
                self._lay(rock, [(x - half, foot), peak, (waist, foot)], left)
                self._lay(rock, [(waist, foot), peak, (x + half, foot)], right)
        self._box(rock, 0, foot - self.height * 0.012, self.width, foot, factor=0.9)

    def _ground(self) -> None:
        colour, width, depth = GROUND_COLOUR[self.scene.ground], self.width, self.height - self.horizon
        self._box(colour, 0, self.horizon, width, self.height)
        if self.scene.ground == "lake":
            glint, thick = tinted((150, 190, 235), self.scene.time), max(1, round(self.unit * 0.008))
            for _ in range(6):
                x, y = self.rng.uniform(0, width), self.horizon + depth * self.rng.uniform(0.1, 0.95)
                self.pen.line((x, y, x + self.unit * self.rng.uniform(0.08, 0.2), y), fill=glint, width=thick)
            return
        for level, factor in ((0.35, 0.95), (0.7, 0.90)):  # soft waves of the land
            y, swing, phase = self.horizon + depth * level, depth * 0.1, self.rng.uniform(0, 2 * np.pi)
            wave = [(x, y + swing * np.sin(phase + 4 * x / width)) for x in np.linspace(0, width, 17)]
            self._lay(colour, [*wave, (width, self.height), (0, self.height)], factor)

    def _foot_point(self, extent: float) -> tuple[float, float]:
        """Foot point of a thing that reaches `extent` units to both sides."""
        margin = max(self.unit * extent, 0.18 * self.width)
        x = self.rng.uniform(margin, self.width - margin)
        return x, self.horizon + (self.height - self.horizon) * self.rng.uniform(0.35, 0.6)

    def _house(self) -> None:
        x, y = self._foot_point(0.15)
        half, tall = self.unit * self.rng.uniform(0.10, 0.125), self.unit * self.rng.uniform(0.14, 0.17)
        self._box(WALL, x - half, y - tall, x + half, y)
        self._lay(ROOF, [(x - half * 1.3, y - tall), (x, y - tall - self.unit * 0.12), (x + half * 1.3, y - tall)])
        self.pen.rectangle((x - half * 0.65, y - tall * 0.75, x - half * 0.1, y - tall * 0.3), fill=WINDOW)
        self._box(ROOF, x + half * 0.25, y - tall * 0.65, x + half * 0.7, y)

    def _trees(self) -> None:
        (x, y), unit, rng = self._foot_point(0.26), self.unit, self.rng
        for index in range(3):
            cx, foot = x + unit * (index - 1) * rng.uniform(0.14, 0.17), y + unit * rng.uniform(-0.03, 0.05)
            tall, half = unit * rng.uniform(0.22, 0.27), unit * rng.uniform(0.065, 0.08)
            self._box(TRUNK, cx - half * 0.22, foot - tall * 0.2, cx + half * 0.22, foot)
            for level in (0.12, 0.38):
                low, wide, top = foot - tall * level, half * (1.1 - level), foot - tall * (0.68 + level * 0.84)
                self._lay(LEAVES, [(cx - wide, low), (cx, top), (cx + wide, low)])

    def _boat(self) -> None:
        (x, y), unit = self._foot_point(0.16), self.unit
        half, deep = unit * self.rng.uniform(0.12, 0.145), unit * 0.06
        mast, gap, low = unit * self.rng.uniform(0.24, 0.28), unit * 0.012, y - unit * 0.02
        self._lay(HULL, [(x - half, y), (x + half, y), (x + half * 0.65, y + deep), (x - half * 0.65, y + deep)])
        self.pen.line((x, y, x, y - mast), fill=tinted(TRUNK, self.scene.time), width=max(1, round(gap)))
        self._lay(SAIL, [(x + gap, low), (x + gap, y - mast), (x + half * 0.95, low)], 1.1)
        self._lay(SAIL, [(x - gap, low), (x - gap, y - mast * 0.85), (x - half * 0.7, low)], 0.95)
