"""What the second world of the nano family shows, and how captions say it: weather, counted things, left and right.

A landscape has a time, a sun or moon left or right, mountains and a ground as a scene of the first world has. New are
the weather, balloons, and one or two groups of counted things whose order from left to right is part of what is said.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

from .scenes import GROUND_WORDS, GROUNDS, MOUNTAIN_WORDS, MOUNTAINS, SIDE_WORDS, SIDES, TIME_WORDS, TIMES

LIGHTS = {time: "aurora" if time == "night" else "rainbow" for time in TIMES}
"""What may stand in the sky at each time besides clouds."""
WEATHERS = ("clear", "clouds", "rainbow", "aurora")
MOST = {"house": 2, "tree": 5, "tent": 3, "sheep": 5, "boat": 3, "lighthouse": 1}
"""How many of each thing a group has at most; half of it, rounded up, where there are two groups."""
THINGS = {
    "lake": ("boat", "lighthouse"),
    "meadow": ("house", "tree", "tent", "sheep"),
    "desert": ("house", "tree", "tent"),
    "snow": ("house", "tree", "tent"),
}
MOST_BALLOONS = 2
_GROUP_SHARES = (0.1, 0.45, 0.45)
"""Of landscapes with no, one and two groups."""
_HELD_OUT_BYTE = 26
"""One landscape in ten is never trained on."""


@dataclass(frozen=True)
class Group:
    """So many of one thing."""

    kind: str
    count: int


@dataclass(frozen=True)
class Landscape:
    """What a picture shows; `groups` from left to right, of different kinds."""

    time: str
    side: str
    mountains: str
    ground: str
    weather: str
    balloons: int
    groups: tuple[Group, ...]

    def number(self, kind: str) -> int:
        """How many there are of a kind of thing."""
        return next((group.count for group in self.groups if group.kind == kind), 0)


def is_held_out(landscape: Landscape) -> bool:
    """Whether it is never trained on, by a hash of all that it shows."""
    return hashlib.sha256(repr(landscape).encode()).digest()[0] < _HELD_OUT_BYTE


def random_landscape(rng: random.Random, held_out: bool = False, groups: int | None = None) -> Landscape:
    """One of the training part, or of the part that is kept for the evaluation.

    Args:
        groups: how many there shall be; None = by chance.
    """
    while True:
        landscape = _any(rng, groups)
        if is_held_out(landscape) == held_out:
            return landscape


def _any(rng: random.Random, groups: int | None) -> Landscape:
    time, side, mountains, ground = (rng.choice(each) for each in (TIMES, SIDES, MOUNTAINS, GROUNDS))
    weather = rng.choice(("clear", "clouds", LIGHTS[time]))
    balloons = rng.choice((0, 0, 1, MOST_BALLOONS))
    count = rng.choices(range(3), _GROUP_SHARES)[0] if groups is None else groups
    kinds = rng.sample(THINGS[ground], count)
    most = [MOST[kind] if count == 1 else (MOST[kind] + 1) // 2 for kind in kinds]
    made = tuple(Group(kind, rng.randint(1, limit)) for kind, limit in zip(kinds, most, strict=True))
    return Landscape(time, side, mountains, ground, weather, balloons, made)


# ---------------------------------------------------------------------------------------------------------- captions

_NUMBERS = ("no", "a", "two", "three", "four", "five")
_ONE = {
    "house": ("a house", "a red house", "one house", "a small red house", "a cabin", "a red cabin"),
    "tree": ("a tree", "a fir tree", "one fir", "a lone fir tree", "one tree"),
    "tent": ("a tent", "one tent", "a purple tent", "a small tent"),
    "sheep": ("a sheep", "one sheep", "a white sheep", "a grazing sheep"),
    "boat": ("a boat", "a sailing boat", "one sailboat", "a small sailboat"),
    "lighthouse": ("a lighthouse", "a red lighthouse", "one lighthouse", "a lighthouse on a rock"),
    "balloon": ("a hot air balloon", "a balloon", "one balloon", "a balloon in the sky"),
}
_MANY = {
    "house": ("houses", "red houses", "small red houses", "cabins", "red cabins"),
    "tree": ("trees", "fir trees", "firs", "dark green fir trees"),
    "tent": ("tents", "purple tents", "small tents"),
    "sheep": ("sheep", "white sheep", "grazing sheep"),
    "boat": ("boats", "sailing boats", "sailboats", "small sailboats"),
    "balloon": ("hot air balloons", "balloons", "balloons in the sky"),
}
_WEATHER = {
    "clear": ("", "", "under a clear sky"),
    "clouds": ("with clouds in the sky", "under drifting clouds", "clouds above", "on a cloudy day"),
    "rainbow": ("with a rainbow", "a rainbow in the sky", "under a rainbow", "a rainbow behind the mountains"),
    "aurora": ("with northern lights", "an aurora in the sky", "under the aurora", "green northern lights above"),
}
_CLOUDY_NIGHT = ("with clouds in the sky", "under drifting clouds", "clouds above", "on a cloudy night")
_PAIR = (
    "{left} to the left of {right}",
    "{right} to the right of {left}",
    "{left} on the left and {right} on the right",
    "{right} on the right, {left} on the left",
    "{left} left of {right}",
    "from left to right {left} and {right}",
)
_WITH_THINGS = (
    "{things} on {ground} below {mountains} {time}, {rest}",
    "{time}, {things} on {ground}, {mountains} behind, {rest}",
    "a painting of {things} on {ground} in front of {mountains} {time}, {rest}",
    "{mountains} {time} with {things} on {ground}, {rest}",
    "{things}, {ground}, {mountains}, {time}, {rest}",
    "{ground} with {things}, {mountains} in the distance, {time}, {rest}",
    "{rest}: {things} on {ground} before {mountains} {time}",
)
_BARE = (
    "{ground} below {mountains} {time}, {rest}",
    "{time}, {ground} and {mountains}, {rest}",
    "a painting of {ground} in front of {mountains} {time}, {rest}",
    "{mountains} {time} over {ground}, {rest}",
    "{ground}, {mountains}, {time}, {rest}",
    "{rest}: {ground} before {mountains} {time}",
)


def caption(landscape: Landscape, rng: random.Random) -> str:
    """One of many thousand ways to say all that a landscape shows; a clear sky and no balloon may go unsaid."""
    light = "moon" if landscape.time == "night" else "sun"
    rest = [rng.choice(SIDE_WORDS).format(light=light, side=landscape.side)]
    is_night = landscape.time == "night"
    rest.append(
        rng.choice(_CLOUDY_NIGHT if is_night and landscape.weather == "clouds" else _WEATHER[landscape.weather])
    )
    if landscape.balloons:
        rest.append(counted("balloon", landscape.balloons, rng))
    rest = [part for part in rest if part]
    rng.shuffle(rest)
    groups = [counted(group.kind, group.count, rng) for group in landscape.groups]
    return rng.choice(_WITH_THINGS if groups else _BARE).format(
        time=rng.choice(_times(landscape)),
        mountains=rng.choice(MOUNTAIN_WORDS[landscape.mountains]),
        ground=rng.choice(GROUND_WORDS[landscape.ground]),
        things=rng.choice(_PAIR).format(left=groups[0], right=groups[1]) if len(groups) == 2 else "".join(groups),
        rest=", ".join(rest),
    )


def _times(landscape: Landscape) -> Sequence[str]:
    """Words for the time that say nothing about the sky's weather."""
    words = TIME_WORDS[landscape.time]
    return words if landscape.weather == "clear" else [text for text in words if "clear" not in text]


def counted(kind: str, count: int, rng: random.Random) -> str:
    """A number of things in words: "three fir trees"."""
    return rng.choice(_ONE[kind]) if count == 1 else f"{_NUMBERS[count]} {rng.choice(_MANY[kind])}"
