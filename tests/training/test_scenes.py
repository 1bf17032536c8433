"""The nano world: the checker reads every attribute back, captions say them, evaluation scenes are unseen."""

import hashlib
import json
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pixart_delta.training.nano import evaluate, scenes
from pixart_delta.training.nano.checker import attributes_right, read_scene
from pixart_delta.training.nano.counting import NUMBER, counts_right, lights, peaks, things
from pixart_delta.training.nano.evaluate import drawn, hard_prompts, held_out_prompts, score

NANO = Path(__file__).resolve().parents[2] / "models" / "nano"


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


def test_hard_captions_are_fixed_never_trained_on_and_say_how_many():
    """The digest: another choice of captions would make figures that were written down say nothing."""
    prompts = hard_prompts(200)
    assert prompts[:60] == hard_prompts(60)
    assert hashlib.sha256(repr(prompts).encode()).hexdigest()[:16] == "0eb1018f047dfa35"
    assert all(scenes.is_held_out(scene) for scene, _, _ in prompts)
    things = [scene.thing for scene, _, _ in prompts]
    assert [things.count(thing) for thing in ("house", "trees", "boat")] == [67, 67, 66]
    assert all("three trees" in text for scene, text, _ in prompts if scene.thing == "trees")
    assert len({(scene.thing, size) for scene, _, size in prompts}) == 3 * 3


def test_the_checker_counts_what_the_generator_draws():
    """`train.py nano evaluate models/nano --captions hard --drawn`: of 200 two are counted wrong (trees overlap)."""
    prompts = hard_prompts(60)
    shares = score(drawn(prompts), prompts)
    assert shares["all"] == shares["one light"] == 100
    assert shares["at once"] == shares["number"] > 95


def test_as_many_pictures_as_are_asked_for_are_shown(tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    evaluate.main([str(NANO), "--count", "10", "--drawn", "--sheet", str(sheet), "--shown", "9"])
    assert [json.loads(line)["pictures"] for line in capsys.readouterr().out.splitlines()] == ["drawn", "vae"]
    with Image.open(sheet) as shown:  # nine as drawn in rows of eight, nine through the autoencoder
        assert shown.size == (8 * 164 - 4, 4 * 164 - 4)


def beside(one, other):
    """Pixels (H, 2 W, 3) of two pictures."""
    return np.hstack([np.asarray(one, np.float32), np.asarray(other, np.float32)])


@pytest.mark.parametrize(("thing", "ground"), [("house", "meadow"), ("boat", "lake"), ("trees", "snow")])
def test_twice_as_many_and_none_are_noticed(thing, ground):
    scene = scenes.Scene("day", "left", "blue", ground, thing)
    bare = scenes.draw(scenes.Scene("day", "left", "blue", ground, "none"), seed=2)
    one = scenes.draw(scene, seed=2)
    count = things(np.asarray(one, np.float32), scene)
    assert count == NUMBER[thing] and counts_right(one, scene)["number"]
    assert things(beside(one, one), scene) == 2 * count
    assert not counts_right(bare, scene)["number"]


def test_two_suns_are_noticed():
    scene = scenes.Scene("day", "left", "blue", "meadow", "none")
    picture = scenes.draw(scene, seed=1)
    assert counts_right(picture, scene)["one light"] and lights(beside(picture, picture), scene) == 2


def test_peaks_need_a_valley_between_them():
    assert peaks(np.array([0, 8, 9, 8, 0, 9, 0]), 4, 0.3) == 2
    assert peaks(np.array([0, 8, 9, 8, 7, 9, 0]), 4, 0.3) == 1  # a notch
    assert peaks(np.array([0, 3, 0, 9, 2, 3, 0]), 4, 0.3) == 1  # too low
    assert peaks(np.array([9, 0, 0, 9]), 4, 0.3) == 2  # cut off by the border
    assert peaks(np.zeros(5), 4, 0.3) == 0
