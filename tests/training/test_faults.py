"""What can go wrong in a run: one error that says the way out, `failed` with the reason, good checkpoints kept."""

import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from pixart_delta.pixart_core.weightfile import CheckpointError
from pixart_delta.training.checkpoint import newest_readable
from pixart_delta.training.cli import main
from pixart_delta.training.config import ConfigError, make_config
from pixart_delta.training.data import FeatureDataset
from pixart_delta.training.data.shards import DataError
from pixart_delta.training.distribute import connect
from pixart_delta.training.engine import Engine
from pixart_delta.training.estimate import dry_run
from pixart_delta.training.loop import TrainingError
from pixart_delta.training.machine import DiskError
from pixart_delta.training.run_dir import RunDir, RunDirError
from pixart_delta.training.tasks import TASKS
from pixart_delta.training.watch.monitor import Monitor

from tests.training import shards_fixture
from tests.training.conftest import fill
from tests.training.runs_fixture import (
    COMMANDS,
    PATIENCE,
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
            if sample["__key__"] == "00000003":
                sample["moments.npy"][0, 2, 2] = float("nan")
        return write_shard(folder, name, size, samples)

    monkeypatch.setattr(shards_fixture, "write_shard", with_a_bad_one)
    data = str(shards_fixture.make_features(tmp_path / "features", width=64))
    values = settings("lcd", material, tmp_path / "run", **SHORT, data=data)
    with pytest.raises(
        TrainingError, match=r"loss is nan .* at step \d, batch .*00000003.png.*: lower learning_rate"
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
    values = settings("finetune", material, tmp_path, **{**SHORT, "learning_rate": 100.0, "clip_norm": 1e9})
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
    engine = Engine(config, TASKS["finetune"](config), connect())
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

    def overflow(self, *values):
        next(iter(self.parameters.values())).grad[0] = torch.inf
        return update(self, *values)

    scale_from(monkeypatch, 2)
    monkeypatch.setattr(Engine, "_update", overflow)
    with pytest.raises(TrainingError, match="gradient norm (inf|nan) at step 3"):  # at 4, 2, 1 it might recover
        run_here("finetune", settings("finetune", material, tmp_path, **SHORT, precision="fp16"))


def test_a_disk_that_is_too_small_is_noticed_before_the_first_step(small_disk, material):
    fill(small_disk, leave=2**20)
    values = settings("finetune", material, small_disk / "run", **SHORT)
    with pytest.raises(
        DiskError, match="need .* MB more, but only 1.0 MB are free there: .*lower keep_checkpoints .2."
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


def test_a_second_ctrl_c_ends_at_once(material, tmp_path, capfd):
    def stuck():
        Engine.step = lambda *_: time.sleep(600)

    process = forked("finetune", settings("finetune", material, tmp_path, **SHORT), stuck)
    status = tmp_path / "status.json"
    assert wait_until(lambda: status.exists() and '"running"' in status.read_text())
    said = []
    for _ in range(2):  # one press, which a launcher passes on
        os.kill(process.pid, signal.SIGINT)
        wait_until(lambda: said.append(capfd.readouterr().err) or "saving and stopping" in "".join(said))
    assert "".join(said).count("saving and stopping after this step; Ctrl-C again ends at once") == 1
    time.sleep(1.1)
    assert process.is_alive()
    os.kill(process.pid, signal.SIGINT)
    process.join(PATIENCE)
    assert process.exitcode == -signal.SIGINT


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


@pytest.mark.parametrize(
    "features,problem",
    [
        (
            {"width": 64, "tokens": (130, 6)},
            r"captions of up to 130 tokens, .* has 120: run `prepare` .* max_tokens=120$",
        ),
        (
            {"width": 16},
            "text embeddings of 16 channels, and .*base.safetensors reads 64: run `prepare` with the text enc",
        ),
    ],
)
@pytest.mark.parametrize("command", COMMANDS)
def test_data_that_the_base_cannot_read_is_named_before_the_first_step(
    command, features, problem, material, tmp_path, capsys
):
    data = str(shards_fixture.make_features(tmp_path / "features", **features))
    values = settings(command, material, tmp_path / "run", **SHORT, data=data)
    with pytest.raises(ConfigError, match=problem):
        run_here(command, values)
    assert RunDir(tmp_path / "run").read_status()["state"] == "failed"
    with pytest.raises(ConfigError, match=problem):
        dry_run(make_config(command, values))


def test_captions_as_long_as_the_null_caption_are_read(material, tmp_path):
    data = str(shards_fixture.make_features(tmp_path / "features", width=64, tokens=(120, 1)))
    run_here("lcd", settings("lcd", material, tmp_path / "run", **{**SHORT, "steps": 1}, data=data))


TRAIN = Path(__file__).resolve().parents[2] / "training/train.py"
HOW = f'{sys.executable} -m pip install "{TRAIN.parents[1]}[train]"'


def test_a_package_that_is_missing_is_named_with_the_command_that_installs_it(material, tmp_path, capsys):
    values = settings("lcd", material, tmp_path / "run", **SHORT)
    program = (
        "import runpy, sys; sys.modules['accelerate'] = None; sys.argv = sys.argv[1:]; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, TRAIN, "lcd", *_as_arguments(values)], capture_output=True, text=True
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr == f"error: accelerate is not installed. What training needs is installed by: {HOW}\n"


def test_a_package_that_is_missed_later_is_named_in_the_status_too(material, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "peft", None)
    assert main(["lcm-lora", *_as_arguments(settings("lcm-lora", material, tmp_path / "run", **SHORT))]) == 1
    message = RunDir(tmp_path / "run").read_status()["message"]
    assert message.startswith("peft is not installed. ")
    assert HOW in message
    assert message in capsys.readouterr().err


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
