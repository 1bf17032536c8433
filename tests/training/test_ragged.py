"""Batches that are not full: every picture weighs the same, whatever shares the work and whatever ends it."""

import json
from types import SimpleNamespace

import pytest
import torch
from pixart_delta.training import engine as engine_module
from pixart_delta.training.cli import describe_run
from pixart_delta.training.config import make_config
from pixart_delta.training.data import FeatureDataset
from pixart_delta.training.distribute import connect
from pixart_delta.training.engine import Engine
from pixart_delta.training.loop import Training
from pixart_delta.training.run_dir import RunDir
from pixart_delta.training.task import Task
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from tests.training.runs_fixture import losses, make_material, run_here, run_processes, same_weights, settings
from tests.training.shards_fixture import make_features

FEW = {(64, 64): 1, (48, 80): 2, (80, 48): 3, (32, 128): 5, (128, 32): 18}
PICTURES = sum(FEW.values())


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    return make_features(tmp_path_factory.mktemp("few") / "features", FEW, hint=False)


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    return make_material(tmp_path_factory.mktemp("material"), FEW)


class OneEach(Task):
    """A number for each picture, and their mean over the batch as the loss: its gradient says how much each counts."""

    command = "finetune"
    outline = None

    def loss(self, model, batch, draws):
        assert len(batch["id"]) == len(draws.uniform())
        return model.weight[batch["id"]].mean()


def engine_of(rank, world, **values):
    """An engine of one of several processes, whose parts are added up by whoever calls."""
    values = {"run": "r", "data": "d", "model": {"depth": 1}, "precision": "fp32", "ema_decay": 0.0, **values}
    config = make_config("finetune", values)
    model = nn.Module()
    model.weight = nn.Parameter(torch.arange(float(PICTURES)))
    task = OneEach(config)
    task.set_model(model)
    engine = Engine(config, task, connect())
    engine.processes = SimpleNamespace(count=world, index=rank)
    return engine


def numbered(batches):
    for batch in batches:
        names = batch["keys"] or ["00000000.png"]  # of a row that counts for nothing
        yield {**batch, "id": torch.tensor([int(name[:8]) for name in names])}


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_every_picture_has_the_same_part_in_an_epochs_gradients(features, batch_size, world, monkeypatch):
    monkeypatch.setattr(Engine, "_update", lambda self, number, share: torch.zeros(()))  # so that gradients add up
    data = FeatureDataset(features)
    steps = data.batches_per_epoch(batch_size * world)
    weights, parts = torch.zeros(PICTURES), torch.zeros(steps, world)
    for rank in range(world):
        engine = engine_of(rank, world, batch_size=batch_size)
        batches = numbered(data.batches(batch_size, 7, steps, rank, world))
        parts[:, rank] = torch.stack([engine.step(steps + number, batches).loss for number in range(steps)])
        weights += engine.parameters["weight"].grad / world
    assert torch.allclose(weights, torch.full((PICTURES,), 1 / (batch_size * world)), rtol=1e-5)
    whole = numbered(data.batches(batch_size * world, 7, steps))
    means = torch.stack([next(whole)["id"].float().mean() for _ in range(steps)])
    assert torch.allclose(parts.mean(1), means, rtol=1e-5)  # what is shown is the mean over the pictures


def test_a_size_that_is_held_out_as_a_whole_is_none(features):
    data = FeatureDataset(features)
    data.hold_out(0.95)
    assert data.rows == data.buckets and sum(data.rows.values()) == 1
    assert next(data.batches(4, 0))["latent"].shape[0] == 1


def test_what_a_batch_counts_is_decided_after_clipping(features, monkeypatch):
    """Else a picture that is alone in its batch would count as much as a full one, wherever the limit is reached."""
    seen = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(
        engine_module.torch.optim.AdamW,
        "step",
        lambda self: seen.append(self.param_groups[0]["params"][0].grad.norm().item()) or step(self),
    )
    data = FeatureDataset(features)
    engine = engine_of(0, 1, batch_size=6, clip_norm=0.01)
    batches = numbered(data.batches(6, 1))
    for number in range(data.batches_per_epoch(6)):
        result = engine.step(number, batches)
        count = len(result.keys)
        assert result.gradient_norm.item() == pytest.approx(count**-0.5, rel=1e-4)  # of the mean of so many numbers
        assert seen[number] == pytest.approx(0.01 * count / 6, rel=1e-3)
    assert len({round(each, 6) for each in seen}) > 2


def test_a_ragged_run_goes_on_bit_by_bit(material, tmp_path):
    values = {"steps": 9, "checkpoint_every": 2, "batch_size": 4, "accumulation": 1}
    straight = run_here("lcd", settings("lcd", material, tmp_path / "straight", **values))
    halves = settings("lcd", material, tmp_path / "halves", **values)
    for steps in (3, 9):
        run_here("lcd", {**halves, "steps": steps})
    assert losses(RunDir(tmp_path / "halves")) == losses(straight) and len(losses(straight)) == 9
    assert same_weights(RunDir(tmp_path / "halves"), straight)
    assert "29 of 29 pictures, 5 sizes, 1 to 4 in a batch" in (straight.path / "log.txt").read_text()
    assert "pictures: 29 of 29 pictures, 5 sizes" in describe_run(straight.path)


@pytest.mark.parametrize("sharding", ["none", "fsdp"])
def test_a_process_without_a_picture_changes_nothing(sharding, material, tmp_path):
    """At two processes the size of one picture leaves the second process none."""
    values = {"steps": 11, "checkpoint_every": 11, "workers": 0, "accumulation": 1, "learning_rate": 2e-5}
    one = run_here("finetune", settings("finetune", material, tmp_path / "one", **values, batch_size=4))
    two = settings("finetune", material, tmp_path / "two", **values, batch_size=2, sharding=sharding)
    assert run_processes("finetune", two) == [0, 0]
    assert losses(RunDir(tmp_path / "two")) == pytest.approx(losses(one), abs=1e-5)
    weights, other = (load_file(RunDir(tmp_path / name).checkpoints()[-1]) for name in ("one", "two"))
    assert all(torch.allclose(weights[name], other[name], rtol=0.02, atol=5e-5) for name in weights if "model." in name)


def test_a_run_of_an_earlier_version_goes_on_with_its_plan(material, tmp_path, monkeypatch):
    values = {"steps": 6, "checkpoint_every": 3, "batch_size": 4, "accumulation": 1, "workers": 0}
    with monkeypatch.context() as patched:
        begin = Training.__init__

        def as_before(self, *arguments):
            begin(self, *arguments)
            self.whole = True

        patched.setattr(Training, "__init__", as_before)
        straight = run_here("lcd", settings("lcd", material, tmp_path / "straight", **values))
        halves = settings("lcd", material, tmp_path / "halves", **values)
        run = run_here("lcd", {**halves, "steps": 3})
    forget_the_plan(run.checkpoints()[-1])
    for steps in (4, 6):  # the first of these notes it
        run_here("lcd", {**halves, "steps": steps})
    assert losses(run) == losses(straight) and same_weights(run, straight)
    log = (run.path / "log.txt").read_text()
    assert "20 of 29 pictures, 5 sizes" in log and "begun by an earlier version" in log
    run_here("lcd", {**halves, "steps": 7, "batch_size": 3})  # its order changes in any case
    assert (run.path / "log.txt").read_text().rstrip().count("begun by an earlier version") == 2
    assert run.read_status()["pictures"] == "29 of 29 pictures, 5 sizes, 1 to 3 in a batch"


def forget_the_plan(checkpoint):
    """Make of a checkpoint one that an earlier version wrote."""
    with safe_open(checkpoint, "pt") as file:
        about = json.loads(file.metadata()["training"])
    del about["whole_batches"]
    save_file(load_file(checkpoint), checkpoint, {"training": json.dumps(about)})
