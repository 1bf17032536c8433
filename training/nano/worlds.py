"""The worlds that a nano family can live in, behind one door: what there is, how it is drawn, said and read back.

The first is the world of `models/nano` (`scenes`, `checker`, `counting`); the second (`landscape`, `painting`,
`reading`) has weather, several counted things, and left and right. A family
remembers its world in a file beside model_index.json.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from . import checker, counting, landscape, painting, reading, scenes

FILE = "world.json"


Scene = Any
"""What one picture shows: a `scenes.Scene`, or a `landscape.Landscape`."""
Size = tuple[int, int]
"""Height and width of a picture, px."""


@dataclass(frozen=True)
class World:
    """What a family's pictures show."""

    number: int
    """What `--world` calls it."""
    attributes: Sequence[str]
    """Names of what is read back; their mean is the quality of a model."""
    counts: Sequence[str]
    """Names of what is asked on top of these for a picture to be right at once."""
    values: Mapping[str, Sequence[Any]]
    """What each of the things that a caption says can be, for whoever learns to read captions."""
    pick: Callable[..., Scene]
    """(rng, held_out=False): a scene of the part that is trained on, or of the part that is kept for the evaluation."""
    hard: Callable[[random.Random, int], tuple[Scene, str]]
    """(rng, index): the scene, never trained on, and the caption of that number of those that are hard to draw."""
    caption: Callable[[Scene, random.Random], str]
    """One of many ways to say the scene."""
    said: Callable[[Scene], Mapping[str, Any]]
    """Each name of `values` -> its value in the scene."""
    draw: Callable[[Scene, Size, int], Image.Image]
    """(scene, size, seed): a picture of it."""
    bare: Callable[[Scene], Scene]
    """The scene without the things on its ground; all else of its picture is drawn as before."""
    boundaries: Callable[[Scene, Size, int], np.ndarray]
    """Where the areas of that picture meet: (height, width), 0 … 1."""
    marks: Callable[[Image.Image, Scene], dict[str, bool]]
    """Each of `attributes` and `counts` -> whether the picture shows it as the scene has it."""


_COUNTED = {
    "house": ("a house", "a small red house", "a red cabin"),
    "trees": ("three trees",),
    "boat": ("a boat", "a sailing boat", "a small sailboat"),
}
"""Words of the first world that say how many there are."""


def _hard_scene(rng: random.Random, index: int) -> tuple[Scene, str]:
    thing = list(_COUNTED)[index % len(_COUNTED)]
    scene = rng.choice([scene for scene in scenes.HELD_OUT if scene.thing == thing])
    return scene, scenes.caption(scene, rng, _COUNTED)


_MISCOUNTED = {"sheep", "tree"}
"""What a good model still counts wrong in the second world."""


def _hard_landscape(rng: random.Random, _index: int) -> tuple[Scene, str]:
    while True:
        scene = landscape.random_landscape(rng, held_out=True, groups=2)
        if {group.kind for group in scene.groups} == _MISCOUNTED and all(group.count > 1 for group in scene.groups):
            return scene, landscape.caption(scene, rng)


def _marks(picture: Image.Image, scene: scenes.Scene) -> dict[str, bool]:
    return checker.attributes_right(picture, scene) | counting.counts_right(picture, scene)


def _said(scene: landscape.Landscape) -> Mapping[str, Any]:
    numbers = {kind: scene.number(kind) for kind in landscape.MOST}
    return vars(scene) | numbers | {"leftmost": scene.groups[0].kind if scene.groups else "nothing"}


_SHARED = {"time": scenes.TIMES, "side": scenes.SIDES, "mountains": scenes.MOUNTAINS, "ground": scenes.GROUNDS}
# One thing in a picture of simple areas.
_FIRST = World(
    number=1,
    attributes=scenes.ATTRIBUTES,
    counts=counting.COUNTS,
    values=_SHARED | {"thing": ("none", *_COUNTED)},
    pick=scenes.random_scene,
    hard=_hard_scene,
    caption=scenes.caption,
    said=vars,
    draw=scenes.draw,
    bare=partial(replace, thing="none"),
    boundaries=scenes.boundaries,
    marks=_marks,
)
# Landscapes with light, depth and weather, and up to two groups of counted things.
_SECOND = World(
    number=2,
    attributes=reading.ATTRIBUTES,
    counts=reading.COUNTS,
    values={
        **_SHARED,
        "weather": landscape.WEATHERS,
        "balloons": range(landscape.MOST_BALLOONS + 1),
        **{kind: range(most + 1) for kind, most in landscape.MOST.items()},
        "leftmost": ("nothing", *landscape.MOST),
    },
    pick=landscape.random_landscape,
    hard=_hard_landscape,
    caption=landscape.caption,
    said=_said,
    draw=painting.draw,
    bare=partial(replace, groups=()),
    boundaries=painting.boundaries,
    marks=reading.marks,
)
WORLDS: Mapping[int, World] = {world.number: world for world in (_FIRST, _SECOND)}


def write_world(folder: Path, world: World) -> None:
    """Note beside a pipeline's model_index.json what its pictures show."""
    (folder / FILE).write_text(json.dumps({"world": world.number}) + "\n", "utf-8")


def world_of(folder: Path) -> World:
    """The world of a pipeline folder; the first where nothing is noted."""
    file = folder / FILE
    return WORLDS[json.loads(file.read_text("utf-8"))["world"] if file.exists() else 1]
