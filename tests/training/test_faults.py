"""What can go wrong in a run: one error that says the way out, `failed` with the reason, good checkpoints kept."""

import functools
import os
import signal
from pathlib import Path

import pytest
import torch
from pixart_delta.pixart_core.weightfile import CheckpointError
from pixart_delta.training.checkpoint import newest_readable
from pixart_delta.training.cli import main
from pixart_delta.training.config import ConfigError, make_config
from pixart_delta.training.data import FeatureDataset
from pixart_delta.training.distribute import connect
from pixart_delta.training.engine import Engine
from pixart_delta.training.loop import TrainingError
from pixart_delta.training.monitor import Monitor
from pixart_delta.training.run_dir import RunDir, RunDirError
from pixart_delta.training.shards import DataError
from pixart_delta.training.tasks import TASKS

from tests.training import shards_fixture
from tests.training.conftest import fill
from tests.training.runs_fixture import (
    forked,
    losses,
    make_material,
    run_apart,
    run_here,
    same_weights,
    settings,
    wait_until,
)

SHORT = {"steps": 8, "checkpoint_every": 2, "accumulation": 1, "workers": 0, "warmup_steps": 2}


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    return make_material(tmp_path_factory.mktemp("material"))


def test_a_picture_of_nan_stops_the_run_with_step_and_names(material, tmp_path, monkeypatch):
    write_shard = shards_fixture.write_shard

    def with_a_bad_one(folder, name, size, samples):
        for sample in samples:
            if sample["__key__"] == "00000007":
                sample["moments.npy"][0, 2, 2] = float("nan")
        return write_shard(folder, name, size, samples)

    monkeypatch.setattr(shards_fixture, "write_shard", with_a_bad_one)
    data = str(shards_fixture.make_features(tmp_path / "features", width=64))
    values = settings("lcd", material, tmp_path / "run", **SHORT, data=data)
    with pytest.raises(
        TrainingError, match=r"loss is nan .* at step \d, batch .*00000007.png.*: lower learning_rate"
    ) as failure:
        run_here("lcd", values)
    run = RunDir(tmp_path / "run")
    bad = int(str(failure.value).split("at step ")[1][0])
    saved = [int(file.stem.split("_")[1]) for file in run.checkpoints()]
    assert bad > 2 and max(saved) == (bad - 1) // 2 * 2
    assert f"the last good checkpoint: step_{max(saved):08d}.safetensors" in str(failure.value)
    assert run.read_status()["state"] == "failed" and run.read_status()["message"] == str(failure.value)
    assert len(losses(run)) == bad - 1


def test_an_exploding_loss_stops_the_run(material, tmp_path):
    values = settings("finetune", material, tmp_path, **{**SHORT, "learning_rate": 1e4, "clip_norm": 1e9})
    with pytest.raises(TrainingError, match="the loss is .* at step [1-8], batch"):
        run_here("finetune", values)
    assert all(loss < 1e4 for loss in losses(RunDir(tmp_path)))


def scale_from(monkeypatch, power):
    begin = torch.amp.GradScaler.__init__
    scaler = functools.partialmethod(begin, init_scale=2.0**power)
    monkeypatch.setattr(torch.amp.GradScaler, "__init__", scaler)


def test_an_overflow_of_float16_leaves_the_step_out(material, tmp_path, monkeypatch):
    scale_from(monkeypatch, 30)
    values = settings("finetune", material, tmp_path, **{**SHORT, "steps": 2}, precision="fp16")
    config = make_config("finetune", values)
    engine = Engine(config, TASKS["finetune"](config), connect(config))
    before = {name: tensor.clone() for name, tensor in engine.tensors().items()}
    result = engine.step(0, FeatureDataset(config.data).batches(2, 0))
    assert not result.gradient_norm.isfinite() and engine.scaler.get_scale() == 2.0**29
    after = engine.tensors()
    assert any("ema." in name for name in before) and all(torch.equal(after[name], before[name]) for name in before)
    run = run_here("finetune", values)
    assert [line["gradient_norm"] for line in run.metrics()] == [None, None]
    assert "gradient overflow" in (run.path / "log.txt").read_text()


def test_endless_overflows_of_float16_stop_the_run(material, tmp_path, monkeypatch):
    update = Engine._update

    def overflow(self, number):
        next(iter(self.parameters.values())).grad[0] = torch.inf
        return update(self, number)

    scale_from(monkeypatch, 2)
    monkeypatch.setattr(Engine, "_update", overflow)
    with pytest.raises(TrainingError, match="gradient norm (inf|nan) at step 3"):  # at 4, 2, 1 it might recover
        run_here("finetune", settings("finetune", material, tmp_path, **SHORT, precision="fp16"))


def test_a_disk_that_is_too_small_is_noticed_before_the_first_step(small_disk, material):
    fill(small_disk, leave=2**20)
    values = settings("finetune", material, small_disk / "run", **SHORT)
    with pytest.raises(
        CheckpointError, match="take 0.0. GB more, but only 0.00 GB are free.*lower keep_checkpoints .2."
    ):
        run_here("finetune", values)
    assert RunDir(small_disk / "run").read_status()["state"] == "failed"
    assert RunDir(small_disk / "run").metrics() == []


@pytest.mark.parametrize("leave", [2**20, 0])
def test_a_disk_that_fills_up_costs_no_checkpoint(leave, small_disk, material, tmp_path, monkeypatch):
    add = Monitor.add
    ballast = []

    def add_and_fill(self, step, *values):
        if step == 3 and not ballast:
            ballast.append(fill(small_disk, leave))
        add(self, step, *values)

    monkeypatch.setattr(Monitor, "add", add_and_fill)
    values = settings("finetune", material, small_disk / "run", **SHORT)
    with pytest.raises((CheckpointError, TrainingError), match="free some space|only 0.00 GB are free"):
        run_here("finetune", values)
    run = RunDir(small_disk / "run")
    assert run.read_status()["state"] == "failed" and "free" in run.read_status()["message"]
    assert newest_readable(run, pytest.fail).path.name == "step_00000002.safetensors"
    ballast[0].unlink()
    run_here("finetune", values)
    straight = run_here("finetune", settings("finetune", material, tmp_path / "straight", **SHORT))
    assert same_weights(run, straight) and losses(run) == losses(straight)


def test_two_runs_on_one_folder(material, tmp_path):
    values = settings("finetune", material, tmp_path, **{**SHORT, "steps": 100_000, "workers": 1})
    first = forked("finetune", values)
    run = RunDir(tmp_path)
    assert wait_until(run.checkpoints)
    with pytest.raises(RunDirError, match=f"in use by another training .process {first.pid}.: stop that one first"):
        run_here("finetune", values)
    assert run.read_status()["state"] == "running" and run.is_running()
    os.kill(first.pid, signal.SIGTERM)
    first.join()
    status = run.read_status()
    assert first.exitcode == 0 and status["state"] == "stopped"
    assert run.checkpoints()[-1].stem == f"step_{status['step']:08d}" and Path(status["export"]).exists()


def test_a_learning_rate_that_is_no_number(material, tmp_path, capsys):
    for value in ("NaN", "Infinity", "-1", '"fast"'):
        given = {**settings("lcd", material, tmp_path / "run"), "learning_rate": value}
        assert main(["lcd", *_as_arguments(given)]) == 1
        assert "learning_rate" in capsys.readouterr().err and not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="learning_rate"):
        make_config("lcd", settings("lcd", material, tmp_path, learning_rate=float("inf")))


def _as_arguments(values):
    texts = {name: str(value).lower() if isinstance(value, bool) else value for name, value in values.items()}
    return [part for name, text in texts.items() for part in ("--set", f"{name}={text}")]


def test_a_shard_cut_short_is_named(material, tmp_path):
    data = shards_fixture.make_features(tmp_path / "features", width=64)
    shard = sorted(data.glob("*.tar"))[0]
    os.truncate(shard, shard.stat().st_size // 2)
    with pytest.raises(DataError, match=shard.name):
        run_here("lcd", settings("lcd", material, tmp_path / "run", **SHORT, data=str(data)))
    status = RunDir(tmp_path / "run").read_status()
    assert status["state"] == "failed" and shard.name in status["message"]


def test_memory_that_runs_out_says_what_to_lower(material, tmp_path, monkeypatch):
    def fail(*_arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(TASKS["finetune"], "loss", fail)
    with pytest.raises(TrainingError, match="out of memory with batch_size=2: lower it .*gradient_checkpointing=true"):
        run_here("finetune", settings("finetune", material, tmp_path, **SHORT))


def test_no_compiler_says_what_to_do(material, tmp_path):
    def no_compiler():
        from torch._inductor import config

        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(tmp_path / "cache")
        config.cpp.cxx = (None, str(tmp_path / "none"))

    values = settings("finetune", material, tmp_path / "run", **SHORT, compile=True)
    assert run_apart("finetune", values, no_compiler) == 1
    message = RunDir(tmp_path / "run").read_status()["message"]
    assert message.startswith("torch.compile does not work here (") and message.endswith("set compile=false")


def test_a_crash_leaves_the_reason_in_status_and_log(material, tmp_path, monkeypatch):
    monkeypatch.setattr(TASKS["finetune"], "loss", lambda *_: [][1])
    with pytest.raises(IndexError):
        run_here("finetune", settings("finetune", material, tmp_path, **SHORT))
    status = RunDir(tmp_path).read_status()
    assert (status["state"], status["message"]) == ("failed", "list index out of range")
    assert "Traceback" in (tmp_path / "log.txt").read_text() and not RunDir(tmp_path).is_running()
