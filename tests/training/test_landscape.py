"""The second nano world: what is drawn is read back and counted, captions say it all, evaluation scenes are unseen."""

import hashlib
import random
from collections import Counter

import numpy as np
import pytest
from pixart_delta.training.nano import landscape, painting, reading
from pixart_delta.training.nano.evaluate import drawn, hard_prompts, held_out_prompts, score
from pixart_delta.training.nano.landscape import Group, Landscape
from pixart_delta.training.nano.worlds import WORLDS, world_of, write_world

WORLD = WORLDS[2]


@pytest.mark.parametrize("resolution", [128, 256])
def test_hard_scenes_are_read_back_whole(resolution):
    """`train.py nano evaluate` would call a perfect model perfect."""
    prompts = hard_prompts(40, resolution, WORLD)
    shares = score(drawn(prompts, WORLD), prompts, WORLD)
    assert set(shares) == {"all", *reading.ATTRIBUTES, *reading.COUNTS, "at once"}
    assert shares["at once"] == 100


@pytest.mark.parametrize(
    ("name", "value", "marked"),
    [
        ("time", "night", {"time"}),
        ("side", "right", {"side"}),
        ("mountains", "blue", {"mountains"}),
        ("weather", "clear", {"weather"}),
        ("balloons", 1, {"numbers"}),
        ("balloons", 0, {"things", "numbers"}),
        ("groups", (Group("tree", 2), Group("house", 1)), {"numbers"}),
        ("groups", (Group("house", 1), Group("tree", 3)), {"order"}),
        ("groups", (Group("tree", 3),), {"things", "numbers", "order"}),
        ("groups", (Group("tree", 3), Group("tent", 1)), {"things", "numbers", "order"}),
    ],
)
def test_every_wrong_thing_is_noticed(name, value, marked):
    scene = Landscape("day", "left", "white", "meadow", "rainbow", 2, (Group("tree", 3), Group("house", 1)))
    picture = painting.draw(scene, seed=3)
    assert all(reading.marks(picture, scene).values())
    wrong = reading.marks(picture, Landscape(**{**vars(scene), name: value}))
    assert {each for each, right in wrong.items() if not right} == marked


def test_nothing_is_read_as_everything_right():
    scene = Landscape("sunset", "right", "blue", "desert", "clouds", 1, (Group("tree", 2),))
    flat = painting.Image.new("RGB", (256, 256), (120, 120, 120))
    noise = painting.Image.fromarray(np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8))
    for picture in (flat, noise):
        assert sum(reading.marks(picture, scene).values()) < 5


@pytest.mark.parametrize("time", ["day", "dawn", "sunset", "night"])
def test_white_mountains_stand_out_against_the_sky(time):
    """Of the first world's family they vanished: in every column a step leads from the sky to a ridge."""
    scene = Landscape(time, "left", "white", "snow", "clear", 0, ())
    pixels = np.asarray(painting.draw(scene, seed=5), np.float32)
    steps = np.linalg.norm(pixels[3:] - pixels[:-3], axis=2)[60:135]
    assert steps.max(0)[90:].min() > 25  # the sun's side is left out


def test_edges_are_one_pixel_wide():
    """What is drawn between two areas is a mixture of both in one pixel, and not in several."""
    scene = Landscape("day", "left", "red", "snow", "clear", 0, (Group("tree", 1),))
    row = np.asarray(painting.draw(scene, seed=2), np.int32)[190]
    ground, tree = painting_colours(row)
    assert tree.sum() > 4
    mixed = ~(ground | tree)
    runs = "".join(" x"[int(value)] for value in mixed).split()
    assert all(len(run) <= 2 for run in runs)


def painting_colours(row):
    """Where a row (W, 3) at a tree's foot is clearly ground (or its shadow), and clearly tree or trunk."""
    return (row.min(1) > 110), (row.max(1) < 110)


def test_drawing_is_reproducible_and_boundaries_lie_where_areas_meet():
    scene = Landscape("dawn", "right", "green", "lake", "clouds", 1, (Group("boat", 2), Group("lighthouse", 1)))
    first, again, other = (np.asarray(painting.draw(scene, (192, 320), seed)) for seed in (1, 1, 2))
    assert first.shape == (192, 320, 3) and np.array_equal(first, again) and not np.array_equal(first, other)
    edges = painting.boundaries(scene, (192, 320), 1)
    assert edges.shape == (192, 320) and edges.min() == 0 and edges.max() <= 1 and 0.01 < (edges > 0.5).mean() < 0.25
    change = np.abs(np.diff(first.astype(np.float32).sum(-1), axis=1))
    assert change[edges[:, 1:] > 0.9].mean() > 5 * change[edges[:, 1:] == 0].mean()


def test_evaluation_landscapes_are_never_trained_on_and_captions_are_fixed():
    rng = random.Random(0)
    assert not any(landscape.is_held_out(WORLD.pick(rng)) for _ in range(2000))
    for make in (held_out_prompts, hard_prompts):
        prompts = make(200, 256, WORLD)
        assert all(landscape.is_held_out(scene) for scene, _, _ in prompts)
    assert prompts[:50] == hard_prompts(50, 256, WORLD)
    assert all(scene.number("tree") > 1 and scene.number("sheep") > 1 for scene, _, _ in prompts)
    assert {size for _, _, size in prompts} == {(256, 256), (192, 320), (320, 192)}
    assert hashlib.sha256(repr(prompts).encode()).hexdigest()[:16] == "955860255f24c5bd"


def test_captions_of_different_landscapes_differ_and_say_numbers_and_order():
    rng, said = random.Random(0), {}
    for _ in range(4000):
        scene = WORLD.pick(rng)
        assert said.setdefault(WORLD.caption(scene, rng), scene) == scene
    assert len(said) > 3900
    pair = Landscape("night", "left", "grey", "meadow", "clouds", 2, (Group("sheep", 3), Group("house", 1)))
    for _ in range(50):
        text = WORLD.caption(pair, rng)
        assert "three" in text and "two" in text and "sheep" in text and "moon" in text
        assert "left" in text and "clear" not in text and "day" not in text


def test_every_kind_and_number_is_drawn():
    rng = random.Random(1)
    seen = Counter()
    for _ in range(3000):
        seen.update((group.kind, group.count) for group in WORLD.pick(rng).groups)
    assert set(seen) == {(kind, n + 1) for kind, most in landscape.MOST.items() for n in range(most)}


def test_a_family_remembers_its_world(tmp_path):
    assert world_of(tmp_path) is WORLDS[1]
    write_world(tmp_path, WORLD)
    assert world_of(tmp_path) is WORLD


@pytest.mark.parametrize("number", WORLDS)
def test_a_text_encoder_is_asked_for_all_that_captions_say(number):
    rng, world = random.Random(2), WORLDS[number]
    for _ in range(300):
        said = world.said(world.pick(rng))
        assert all(said[name] in values for name, values in world.values.items())
