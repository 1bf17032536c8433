"""The nano world: the checker reads every attribute back, captions say them, evaluation scenes are unseen."""

import random

import numpy as np
import pytest
from pixart_delta.training.nano import scenes
from pixart_delta.training.nano.checker import attributes_right, read_scene
from pixart_delta.training.nano.evaluate import held_out_prompts


@pytest.mark.parametrize("size", [(128, 128), (96, 160), (160, 96)])
def test_checker_reads_drawn_scenes(size):
    rng = random.Random(7)
    for index in range(150):
        scene = scenes.random_scene(rng, held_out=index % 2 == 0)
        assert read_scene(scenes.draw(scene, size, rng.randrange(2**31))) == scene


def test_checker_notices_every_wrong_attribute():
    scene = scenes.Scene("day", "left", "red", "meadow", "house")
    picture = scenes.draw(scene, seed=3)
    assert all(attributes_right(picture, scene).values())
    others = {"time": "night", "side": "right", "mountains": "blue", "ground": "lake", "thing": "none"}
    for name, value in others.items():
        wrong = attributes_right(picture, scenes.Scene(**{**vars(scene), name: value}))
        assert [each for each, right in wrong.items() if not right] == [name]


def test_noise_and_a_flat_picture_are_not_read_as_everything_right():
    scene = scenes.Scene("sunset", "right", "blue", "desert", "trees")
    flat = scenes.Image.new("RGB", (128, 128), (120, 120, 120))
    noise = scenes.Image.fromarray(np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8))
    for picture in (flat, noise):
        assert sum(attributes_right(picture, scene).values()) < 4


def test_drawing_is_reproducible_and_seeds_differ():
    scene = scenes.Scene("night", "left", "white", "lake", "boat")
    first, again, other = (np.asarray(scenes.draw(scene, (96, 160), seed)) for seed in (1, 1, 2))
    assert first.shape == (96, 160, 3)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_evaluation_scenes_are_never_trained_on():
    rng = random.Random(0)
    trained = {scenes.random_scene(rng) for _ in range(20_000)}
    prompts = held_out_prompts(200)
    assert len(trained) > 300 and len({scene for scene, _, _ in prompts}) > 40
    assert not trained & {scene for scene, _, _ in prompts}


def test_captions_of_different_scenes_differ():
    rng = random.Random(0)
    said = {}
    for _ in range(5000):
        scene = scenes.random_scene(rng)
        assert said.setdefault(scenes.caption(scene, rng), scene) == scene
