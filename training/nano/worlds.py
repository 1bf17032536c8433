"""The worlds that a nano family can live in, behind one door: what there is, how it is drawn, said and read back.

The first is the world of `models/nano` (`scenes`, `checker`, `counting`); the second (`landscape`, `painting`,
`reading`) has weather, several counted things, and left and right. A family
remembers its world in a file beside model_index.json.
"""

from __future__ import annotations

import json
import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from . import checker, counting, landscape, painting, reading, scenes

FILE = "world.json"


class World(ABC):
    """What a family's pictures show.

    Attributes:
        number: what `--world` calls it.
        attributes: names of what is read back; their mean is the quality of a model.
        counts: names of what is asked on top of these for a picture to be right at once.
        values: what each of the things that a caption says can be, for whoever learns to read captions.
    """

    number: ClassVar[int]
    attributes: ClassVar[Sequence[str]]
    counts: ClassVar[Sequence[str]]
    values: ClassVar[Mapping[str, Sequence[Any]]]

    @abstractmethod
    def pick(self, rng: random.Random, held_out: bool = False) -> Any:
        """A scene of the part that is trained on, or of the part that is kept for the evaluation."""

    @abstractmethod
    def hard(self, rng: random.Random, index: int) -> tuple[Any, str]:
        """The scene, never trained on, and the caption number `index` of those that are hard to draw."""

    @abstractmethod
    def caption(self, scene: Any, rng: random.Random) -> str:
        """One of many ways to say the scene."""

    @abstractmethod
    def said(self, scene: Any) -> Mapping[str, Any]:
        """Each name of `values` -> its value in the scene."""

    @abstractmethod
    def draw(self, scene: Any, size: tuple[int, int], seed: int) -> Image.Image:
        """A picture of (height, width) px."""

    @abstractmethod
    def boundaries(self, scene: Any, size: tuple[int, int], seed: int) -> np.ndarray:
        """Where the areas of that picture meet: (height, width), 0 … 1."""

    @abstractmethod
    def marks(self, picture: Image.Image, scene: Any) -> dict[str, bool]:
        """Each of `attributes` and `counts` -> whether the picture shows it as the scene has it."""


class First(World):
    """One thing in a picture of simple areas."""

    number = 1
    attributes, counts = scenes.ATTRIBUTES, counting.COUNTS
    values = {
        "time": scenes.TIMES,
        "side": scenes.SIDES,
        "mountains": scenes.MOUNTAINS,
        "ground": scenes.GROUNDS,
        "thing": ("none", "house", "trees", "boat"),
    }
    hard_words: ClassVar[Mapping[str, Sequence[str]]] = {
        "house": ("a house", "a small red house", "a red cabin"),
        "trees": ("three trees",),
        "boat": ("a boat", "a sailing boat", "a small sailboat"),
    }
    """Words that say how many there are."""

    def pick(self, rng, held_out=False):
        return scenes.random_scene(rng, held_out)

    def hard(self, rng, index):
        thing = list(self.hard_words)[index % len(self.hard_words)]
        scene = rng.choice([scene for scene in scenes.held_out_scenes() if scene.thing == thing])
        return scene, scenes.caption(scene, rng, self.hard_words)

    def caption(self, scene, rng):
        return scenes.caption(scene, rng)

    def said(self, scene):
        return vars(scene)

    def draw(self, scene, size, seed):
        return scenes.draw(scene, size, seed)

    def boundaries(self, scene, size, seed):
        return scenes.boundaries(scene, size, seed)

    def marks(self, picture, scene):
        return checker.attributes_right(picture, scene) | counting.counts_right(picture, scene)


class Second(World):
    """Landscapes with light, depth and weather, and up to two groups of counted things."""

    number = 2
    attributes, counts = reading.ATTRIBUTES, reading.COUNTS
    values = {
        "time": scenes.TIMES,
        "side": scenes.SIDES,
        "mountains": scenes.MOUNTAINS,
        "ground": scenes.GROUNDS,
        "weather": landscape.WEATHERS,
        "balloons": range(landscape.MOST_BALLOONS + 1),
        **{kind: range(most + 1) for kind, most in landscape.MOST.items()},
        "leftmost": ("nothing", *landscape.MOST),
    }

    def pick(self, rng, held_out=False):
        return landscape.random_landscape(rng, held_out)

    def hard(self, rng, index):
        scene = landscape.random_landscape(rng, held_out=True, groups=2)
        return scene, landscape.caption(scene, rng)

    def caption(self, scene, rng):
        return landscape.caption(scene, rng)

    def said(self, scene):
        numbers = {kind: scene.number(kind) for kind in landscape.MOST}
        return vars(scene) | numbers | {"leftmost": scene.groups[0].kind if scene.groups else "nothing"}

    def draw(self, scene, size, seed):
        return painting.draw(scene, size, seed)

    def boundaries(self, scene, size, seed):
        return painting.boundaries(scene, size, seed)

    def marks(self, picture, scene):
        return reading.marks(picture, scene)


WORLDS: Mapping[int, World] = {world.number: world for world in (First(), Second())}


def write_world(folder: Path, world: World) -> None:
    """Note beside a pipeline's model_index.json what its pictures show."""
    (folder / FILE).write_text(json.dumps({"world": world.number}) + "\n", "utf-8")


def world_of(folder: Path) -> World:
    """The world of a pipeline folder; the first where nothing is noted."""
    file = folder / FILE
    return WORLDS[json.loads(file.read_text("utf-8"))["world"] if file.exists() else 1]
