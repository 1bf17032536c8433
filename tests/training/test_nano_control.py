"""Control in the nano world: exact boundaries, the narrow HED that learns them, and the measure of what is followed."""

import json
import random
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pixart_delta.pixart_core.checkpoint import load_pixart
from pixart_delta.pixart_core.hed import detect, load_hed
from pixart_delta.pixart_core.pipeline import Pipeline
from pixart_delta.pixart_core.saving import save_weights
from pixart_delta.training.config import make_config
from pixart_delta.training.nano import evaluate_control, hed, scenes
from pixart_delta.training.nano.evaluate_control import ControlTest, edge_f1, edge_recall, soft_edges
from pixart_delta.training.nano.worlds import WORLDS
from pixart_delta.training.run_dir import RunDir
from pixart_delta.training.task import fingerprint
from pixart_delta.training.tasks import TASKS

from tests.conftest import ROOT
from tests.fixtures_nano import make_nano_folder, random_controlnet

NANO = ROOT / "models" / "nano"


@pytest.mark.parametrize("size", [(128, 128), (96, 160)])
def test_boundaries_are_where_the_drawing_changes(size):
    """A jump between pixels that are two apart lies on a boundary; away from boundaries only the sky's ramp changes."""
    rng = random.Random(1)
    for seed in range(12):
        scene = scenes.random_scene(rng)
        picture = np.asarray(scenes.draw(scene, size, seed), np.int32)
        edges = scenes.boundaries(scene, size, seed)
        assert edges.shape == size
        assert edges.dtype == np.float32
        assert edges.min() == 0
        assert edges.max() == 1
        for axis in (0, 1):
            ahead, behind, here = (np.moveaxis(a, axis, 0) for a in (picture, picture, edges))
            jump = np.abs(ahead[2:] - behind[:-2]).max(-1)
            assert here[1:-1][jump > 40].min() > 0.1 and here[1:-1][jump > 40].mean() > 0.6
            assert jump[(here[2:] == 0) & (here[:-2] == 0) & (here[1:-1] == 0)].max() <= 10


def test_boundaries_of_areas_that_look_alike():
    """White mountains on snow by day: the drawing hardly changes, the boundary is as strong as any."""
    scene = scenes.Scene("day", "left", "white", "snow", "none")
    picture = np.asarray(scenes.draw(scene, seed=4), np.int32)
    row = int(np.abs(np.diff(picture, axis=0)).max(-1)[70:90].mean(1).argmax()) + 70
    assert np.abs(np.diff(picture, axis=0))[row].mean() < 40
    assert scenes.boundaries(scene, seed=4)[row - 1 : row + 3].max(0).min() > 0.5


def test_a_trained_network_has_the_layout_of_the_released_one(tmp_path):
    path = hed.train(tmp_path, steps=3, batch=1, learning_rate=1e-3, seed=0)
    assert path.stat().st_size < 1_000_000
    network = load_hed(path)
    assert network.norm.flatten().tolist() == pytest.approx([128.0] * 3, abs=1)
    edges = detect(network, torch.rand(1, 32, 48, 3))
    assert edges.shape == (1, 32, 48, 1) and edges.std() > 0


def test_a_hed_goes_on_from_another_with_its_channels(tmp_path):
    bundled = NANO / "hed" / "hed.safetensors"
    path = hed.train(tmp_path, steps=1, batch=1, learning_rate=0.0, seed=0, start=bundled, hidden_rate=0.0)
    before, after = load_hed(bundled).state_dict(), load_hed(path).state_dict()
    assert all(torch.equal(before[name], value) for name, value in after.items())


def test_folding_the_scale_changes_nothing():
    torch.manual_seed(0)
    network, pictures = hed.build(), torch.rand(1, 3, 32, 32) * 255
    with torch.no_grad():
        before = network(pictures / hed._SCALE)
        for one, other in zip(hed.fold_scale(network)(pictures), before, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_balance_makes_few_boundary_pixels_count_as_much_as_all_others():
    edges = torch.zeros(1, 1, 10, 10)
    edges[..., :1] = 1  # one column of ten
    all_found, none_found = (torch.full_like(edges, value) for value in (9.0, -9.0))
    assert hed.balanced_loss(all_found, edges) == pytest.approx(float(hed.balanced_loss(none_found, edges)), rel=1e-4)
    assert hed.balanced_loss((2 * edges - 1) * 9, edges) < 1e-3


def test_f1_forgives_what_lies_within_the_tolerance():
    edges = torch.zeros(1, 20, 20, 1)
    edges[:, 5] = 1
    moved = [edges.roll(pixels, 1) for pixels in range(4)]
    assert [round(edge_f1(edges, other, 1), 3) for other in moved] == [1, 1, 0, 0]
    assert [round(edge_f1(edges, other, 2), 3) for other in moved] == [1, 1, 1, 0]
    half = edges.clone()
    half[:, :, :10] = 0
    assert edge_f1(half, edges, 0) == pytest.approx(2 / 3)
    left = torch.zeros(1, 1, *edges.shape[1:3])
    left[..., : left.shape[-1] // 2] = 1
    assert [edge_recall(half, edges, 0, within) for within in (left, 1 - left, 1)] == [0, 1, 0.5]
    assert edge_f1(torch.zeros_like(edges), edges) == edge_f1(edges, torch.zeros_like(edges)) == 0


def test_the_bundled_network_finds_the_boundaries_of_scenes_it_has_not_seen():
    network = load_hed(NANO / "hed" / "hed.safetensors")
    assert (NANO / "hed" / "hed.safetensors").stat().st_size < 1_000_000
    rng = random.Random(5)
    agreement = []
    for seed in range(24):
        scene, size = scenes.random_scene(rng, held_out=True), hed.SIZES[seed % 3]
        picture = torch.from_numpy(np.asarray(scenes.draw(scene, size, seed), np.float32) / 255)[None]
        true = torch.from_numpy(scenes.boundaries(scene, size, seed))[None, :, :, None]
        agreement.append(edge_f1(detect(network, picture), true))
    assert sum(agreement) / len(agreement) > 0.93 and min(agreement) > 0.8


def test_the_bundled_control_is_followed_the_more_the_stronger_it_is():
    """`train.py nano evaluate_control models/nano` measures 100 scenes: 0.41, 0.63 and 0.71."""
    test = ControlTest(partial(soft_edges, load_hed(NANO / "hed" / "hed.safetensors")), 8)
    pipeline = Pipeline.from_pretrained(NANO)
    numbers = [test.run(pipeline, strength, steps=4, sampler="lcm", guidance=None)[1] for strength in (0, 0.5, 1)]
    without, half, full = (each["f1"] for each in numbers)
    assert without + 0.1 < half < full and full > without + 0.25
    assert min(each["attributes"] for each in numbers) > 90


@pytest.fixture(scope="module")
def test_bed(tmp_path_factory):
    """Four held-out scenes and a random family with a control that shows."""
    family = make_nano_folder(tmp_path_factory.mktemp("control") / "nano", controlnet=True, depth=3)
    torch.manual_seed(0)
    network = hed.fold_scale(hed.build()).eval().requires_grad_(False)
    (family / "hed").mkdir(exist_ok=True)
    save_weights(network.state_dict(), family / "hed" / "hed.safetensors")
    return family, ControlTest(partial(soft_edges, network), 4)


@pytest.mark.parametrize("world", WORLDS.values(), ids=lambda world: str(world.number))
def test_things_are_where_the_scene_has_them(world):
    test = ControlTest(lambda pictures: [torch.ones(1, p.height, p.width, 1) for p in pictures], 8, world=world)
    for (scene, _, _), things, edges in zip(test.prompts, test.things, test.edges, strict=True):
        assert things.shape[2:] == edges.shape[1:3] and bool(things.any()) == (world.bare(scene) != scene)
        assert things.mean() < 0.2, "all else of the picture is drawn as before"


def test_a_control_is_measured_at_every_strength(test_bed):
    family, test = test_bed
    pipeline = Pipeline.from_pretrained(family)
    results = [test.run(pipeline, strength, steps=1, sampler="lcm", guidance=None) for strength in (0, 1)]
    for made, numbers in results:
        assert [picture.size for picture in made] == [picture.size for picture in test.drawn]
        assert (
            all(0 <= numbers[name] <= 1 for name in ("f1", "recall_things", "recall_land"))
            and 0 <= numbers["attributes"] <= 100
        )
    difference = [
        np.abs(np.asarray(one, np.float32) - np.asarray(other)).mean()
        for one, other in zip(results[0][0], results[1][0], strict=True)
    ]
    assert min(difference) > 0.1
    sheet = test.sheet([made for made, _ in results], examples=[2, 0], scale=2)
    assert sheet.size == (4 * 320 + 3 * 4, 2 * 256 + 4)  # scene, edges, two results; cells for 160 x 96 and 128 x 128


def test_command_line_writes_sheet_and_curve(test_bed, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="the curve needs matplotlib (pip install matplotlib)")
    family, _ = test_bed
    common = [str(family), "--count", "2", "--steps", "1"]
    evaluate_control.main([*common, "--strengths", "0", "1", "--sheet", str(tmp_path / "s.png"), "--examples", "1"])
    assert (tmp_path / "s.png").exists() and capsys.readouterr().out.count('"f1"') == 2
    control_run(tmp_path / "run", family / "base" / "pixart_nano_base.safetensors", steps=(10, 20))
    pictures = ["--plot", str(tmp_path / "curve.png"), "--sheet", str(tmp_path / "strip.png"), "--examples", "0"]
    evaluate_control.main([*common, "--curve", str(tmp_path / "run"), *pictures])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["step"], line["strength"]) for line in lines] == [(0, 0), (10, 1), (20, 1)]
    for line in lines:
        assert len(line["each"]) == 2 and sum(line["each"]) / 2 == pytest.approx(line["f1"], abs=0.001)
    assert (tmp_path / "curve.png").stat().st_size > 5000
    with Image.open(tmp_path / "strip.png") as strip:
        assert strip.size == (5 * 128 + 4 * 4, 128)  # scene, edges, step 0 and two checkpoints


def control_run(folder: Path, base: Path, steps: tuple[int, ...]) -> None:
    """A run folder of `controlnet` with what `restore` reads: random weights after some steps."""
    run = RunDir(folder).create()
    values = {"run": str(folder), "data": "none", "base": str(base), "steps": 20, "copy_blocks": 1}
    values["precision"] = "fp32"  # a run keeps what auto was on its device
    run.write_config("controlnet", values)
    frozen = fingerprint(TASKS["controlnet"](make_config("controlnet", values)))
    for step in steps:
        control = random_controlnet(load_pixart(base).float(), seed=step).state_dict()
        state = {f"model.{name}": tensor for name, tensor in control.items()}
        save_weights(
            state, run.checkpoint(step), {"training": json.dumps({"step": step, "frozen": frozen, "numbers": {}})}
        )
