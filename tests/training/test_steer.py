"""What a run shows while it goes on: samples of own prompts, from before its first step; the loss on held-out data."""

import json

import pytest
import torch
from PIL import Image
from pixart_delta.training.config import ConfigError, make_config
from pixart_delta.training.data import DataError, FeatureDataset
from pixart_delta.training.data.draws import Draws
from pixart_delta.training.run_dir import RunDirError
from pixart_delta.training.watch.monitor import Monitor
from pixart_delta.training.watch.prompts import own_prompts
from pixart_delta.training.watch.validation import NAMES, BandDraws

from tests.conftest import ROOT
from tests.training import runs_fixture as runs
from tests.training.shards_fixture import make_features

NANO = ROOT / "models" / "nano"


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    return runs.make_material(tmp_path_factory.mktemp("steer"))


@pytest.fixture(scope="module")
def nano(tmp_path_factory):
    """The bundled base, and features as wide as it reads."""
    folder = tmp_path_factory.mktemp("nano") / "features"
    base = NANO / "base" / "pixart_nano_base.safetensors"
    return {"base": str(base), "data": str(make_features(folder, width=64, deviation=False)), "models": str(NANO)}


@pytest.mark.parametrize("command", ["lcm-lora", "controlnet"])
def test_own_prompts_are_rows_from_before_the_first_step(command, nano, tmp_path):
    """The same noise every time: with a learning rate of nothing each sheet is the first one again."""
    prompts = ["a lake at dawn", "a house in the snow", "a boat"]
    shown = {"sample_prompts": prompts[:2], "prompt_file": str(tmp_path / "prompts.txt"), "sample_count": 2}
    (tmp_path / "prompts.txt").write_text(f"\n{prompts[2]}\n")
    values = {"steps": 2, "sample_every": 2, "workers": 0, "learning_rate": 0.0, **shown}
    values |= {"copy_blocks": 1} if command == "controlnet" else {"lora_rank": 2}
    values = runs.settings(command, nano, tmp_path / "run", **values)
    run = runs.run_here(command, values)
    first, last = run.samples()
    assert (first.name, last.name) == ("step_00000000.png", "step_00000002.png")
    assert json.loads(last.with_suffix(".json").read_text())["prompts"] == prompts
    before, after = (Image.open(file).convert("RGB") for file in (first, last))
    assert before.tobytes() == after.tobytes()
    columns = 3 if command == "controlnet" else 2  # the hint, and two noises
    assert before.size[0] == pytest.approx(columns * before.size[1] / 3, abs=8), "a row for each prompt"
    boxes = [(x, y, x + 128, y + 128) for x in (0, 132) for y in (0, 132, 264)]
    cells = {before.crop(box).tobytes() for box in boxes}
    if command != "controlnet":
        assert len(cells) == 6, "two noises, three prompts"


def test_prompts_come_from_settings_and_file(tmp_path):
    def config(**values):
        return make_config("lcd", {"run": "r", "data": "d", "base": "b", **values})

    def own(**values):
        asked = config(**values)
        return own_prompts(asked.sample_prompts, asked.prompt_file)

    assert own() == [] and own(sample_prompts=["a"]) == ["a"]
    with pytest.raises(ConfigError, match="cannot be read"):
        own(prompt_file=str(tmp_path / "none.txt"))
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(ConfigError, match="holds no prompt"):
        own(prompt_file=str(tmp_path / "empty.txt"))
    for wrong in ([1], [""], [["a"]]):
        with pytest.raises(ConfigError, match="sample_prompts"):
            config(sample_prompts=wrong)


def test_what_is_held_out_is_in_no_batch(features):
    data = FeatureDataset(features)
    held = data.hold_out(0.25)
    assert held == FeatureDataset(features).hold_out(0.25) and len(held) == 5
    names = {data.some([number], 1)[0][0][0] for number in held}
    assert names == set(held)
    left = sum(data.buckets.values())
    assert left == len(data) - 5
    epoch = data.batches(4, 1)
    seen = [key for _ in range(data.batches_per_epoch(4)) for key in next(epoch)["keys"]]
    assert len(seen) == len(set(seen)) == left
    assert not {f"{number:08d}.png" for number in held} & set(seen)
    with pytest.raises(DataError, match="leaves none to train on"):
        data.hold_out(0.99)


def test_bands_are_quarters_of_the_timesteps_and_drop_no_caption():
    for high in (1000, 50):
        drawn = [BandDraws(band, list(range(300)), torch.device("cpu")).integers(high) for band in range(4)]
        for band, values in enumerate(drawn):
            low, end = high * band // 4, high * (band + 1) // 4
            assert low <= values.min() < low + high // 12 and end - high // 12 - 1 <= values.max() < end
    draws = BandDraws(0, [3, 1], torch.device("cpu"))
    assert not (draws.uniform() < 1.0).any()
    again = BandDraws(0, [1], torch.device("cpu"))
    again.uniform()
    assert torch.equal(draws.normal((2,))[1], again.normal((2,))[0]), "a picture has its noise wherever it stands"
    assert isinstance(draws, Draws)


@pytest.mark.parametrize("command", runs.COMMANDS)
def test_held_out_losses_change_nothing_and_resume(command, material, tmp_path):
    """They stand beside the training loss. A run in two halves that looks at them more often takes the same steps."""
    some = {"steps": 6, "validation": 0.2, "validation_every": 3, "log_every": 2, "checkpoint_every": 2, "workers": 0}
    whole = runs.run_here(command, runs.settings(command, material, tmp_path / "whole", **some))
    rows = whole.metrics()
    assert [row["step"] for row in rows] == [2, 3, 4, 6]
    assert [set(NAMES) <= set(row) for row in rows] == [False, True, False, True]
    assert all(row[name] > 0 for row in rows[1::2] for name in NAMES)
    assert rows[1]["validation"] == pytest.approx(sum(rows[1][name] for name in NAMES[1:]) / 4)
    halves = {**some, "steps": 4, "validation_every": 1}
    runs.run_here(command, runs.settings(command, material, tmp_path / "halves", **halves))
    other = runs.run_here(command, runs.settings(command, material, tmp_path / "halves", **{**some, "log_every": 1}))
    assert runs.same_weights(whole, other)
    with pytest.raises(RunDirError, match="validation was 0.2 and is 0.3"):
        other = {**some, "validation": 0.3, "steps": 9}
        runs.run_here(command, runs.settings(command, material, tmp_path / "whole", **other))


def test_other_features_can_be_held_out(material, tmp_path):
    other = make_features(tmp_path / "other", {(64, 64): 3}, width=64, seed=9)
    values = {"steps": 2, "validation_every": 1, "validation_data": str(other), "workers": 0}
    plain = runs.run_here("finetune", runs.settings("finetune", material, tmp_path / "plain", steps=2, workers=0))
    run = runs.run_here("finetune", runs.settings("finetune", material, tmp_path / "run", **values))
    assert runs.same_weights(plain, run) and "validation_4" in run.metrics()[0]
    wide = make_features(tmp_path / "wide", {(64, 64): 3}, width=8)
    with pytest.raises(ConfigError, match="embeddings of 8 channels"):
        runs.run_here("finetune", runs.settings("finetune", material, tmp_path / "no", validation_data=str(wide)))
    with pytest.raises(ConfigError, match="both set"):
        make_config("lcd", {**material, "run": "r", "validation": 0.1, "validation_data": "x"})


def test_losses_go_into_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from pixart_delta.training.run_dir import RunDir
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = RunDir(tmp_path / "run").create()
    monitor = Monitor(run, 10, torch.device("cpu"), log_every=5, tensorboard=True)
    monitor.begin(0, [])
    for step in range(7):
        if step % 3 == 0:
            monitor.validated(step, dict.fromkeys(NAMES, 0.5))
        if step:
            monitor.add(step, 0.1, 1.0, 1e-4, 0.0)
    monitor.close()
    board = EventAccumulator(str(run.path / "tensorboard"))
    board.Reload()
    assert [each.step for each in board.Scalars("validation_2")] == [0, 3, 6]
