"""Short real runs: they learn, say what they do, take requests, and end in order."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from pixart_delta.pixart_core.identify import inspect_file
from pixart_delta.training import engine as engine_module
from pixart_delta.training import loop
from pixart_delta.training.cli import describe_run
from pixart_delta.training.config import make_config
from pixart_delta.training.data import FeatureDataset
from pixart_delta.training.data.draws import Draws
from pixart_delta.training.distribute import connect
from pixart_delta.training.engine import Engine, _parts, learning_rate
from pixart_delta.training.loop import Training, TrainingError
from pixart_delta.training.run_dir import RunDir
from pixart_delta.training.settings import Settings
from pixart_delta.training.tasks import TASKS
from pixart_delta.training.watch import monitor as monitor_module
from pixart_delta.training.watch.monitor import Monitor
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

import pixart_core as pc
from tests.fixtures_nano import nano_config
from tests.training.runs_fixture import losses, make_material, run_apart, run_here, settings, wait_until

ROOT = Path(__file__).resolve().parents[2]
SHORT = {"steps": 6, "checkpoint_every": 2, "accumulation": 1, "workers": 0, "warmup_steps": 2}


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    return make_material(tmp_path_factory.mktemp("material"))


def test_the_loss_falls_and_the_export_loads(material, tmp_path):
    shape = nano_config(depth=2, hidden_size=24).to_dict()
    values = settings("finetune", material, tmp_path, **SHORT, base="", model=shape)
    run = run_here("finetune", values | {"steps": 80, "batch_size": 8, "learning_rate": 3e-3, "checkpoint_every": 30})
    assert sum(losses(run)[-20:]) < 0.95 * sum(losses(run)[:20])
    assert pc.load_pixart(tmp_path / "exports/pixart.safetensors").config == pc.PixArtConfig.from_dict(shape)
    assert [file.stem for file in run.checkpoints()] == ["step_00000060", "step_00000080"]


def test_only_the_student_learns(material, tmp_path):
    before = load_file(material["base"])
    run_here("lcd", settings("lcd", material, tmp_path, **SHORT))
    after, exported = load_file(material["base"]), load_file(tmp_path / "exports/pixart.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert any(not torch.equal(before[name].half(), exported[name]) for name in before)


def test_what_a_run_writes(material, tmp_path):
    run = run_here("lcd", settings("lcd", material, tmp_path, **SHORT, log_every=4, tensorboard=True))
    lines = run.metrics()
    assert [line["step"] for line in lines] == [4, 6]
    assert lines[0].keys() == {
        "step",
        "loss",
        "gradient_norm",
        "learning_rate",
        "seconds_per_step",
        "data_seconds",
        "time",
    }
    assert 0 < lines[0]["data_seconds"] < lines[0]["seconds_per_step"] and lines[0]["learning_rate"] == 1e-3
    status = run.read_status()
    assert status | {"state": "done", "pid": os.getpid(), "step": 6, "steps": 6, "device": "cpu"} == status
    assert status["checkpoint"] == "step_00000006.safetensors" and Path(status["export"]).exists()
    assert status["started"] < status["time"]
    assert status["memory"] > 1e7
    assert status["seconds_left"] == 0
    assert status["loss"] == lines[-1]["loss"]
    assert len(list((tmp_path / "tensorboard").glob("events.*"))) == 1
    log = (tmp_path / "log.txt").read_text()
    assert re.search(r"step 4/6 loss 0\.\d+ gradient .* s/step, 0:00:0\d left\n", log) and "done at step 6" in log
    described = describe_run(str(tmp_path)).splitlines()
    assert described[:3] == ["command: lcd", "state: done", "step: 6 of 6"]


def test_logged_losses_are_means_of_all_steps_since_the_last_line(material, tmp_path):
    each = losses(run_here("lcd", settings("lcd", material, tmp_path / "each", **SHORT)))
    values = settings("lcd", material, tmp_path / "some", **SHORT, log_every=4)
    run_here("lcd", {**values, "steps": 3})
    some = losses(run_here("lcd", values))  # the second begins between two lines
    assert some[0] == pytest.approx(sum(each[:3]) / 3) and some[-1] == pytest.approx(sum(each[4:]) / 2)


def after_step(step, do):
    """Patch a run so that something happens after a step."""
    add = Monitor.add

    def add_and_do(self, number, *values):
        add(self, number, *values)
        if number == step:
            do(self.run)

    return add_and_do


def test_requests_are_taken_once(material, tmp_path, monkeypatch):
    drawn = []

    def sample(task, data, models, count):
        drawn.append(count)
        return Image.new("RGB", (8, 8), "red"), ["a", "b"]

    def ask(run):
        run.request("sample")
        run.request("save")

    monkeypatch.setattr(loop, "draw_examples", sample)
    monkeypatch.setattr(Monitor, "add", after_step(2, ask))
    values = settings("lcd", material, tmp_path, **{**SHORT, "checkpoint_every": 100}, sample_count=3)
    run = run_here("lcd", values)
    assert drawn == [3] and run.requests() == []
    assert [file.name for file in run.samples()] == ["step_00000003.png"]
    assert Image.open(run.samples()[0]).size == (8, 8)
    assert json.loads((tmp_path / "samples/step_00000003.json").read_text()) == {"step": 3, "prompts": ["a", "b"]}
    assert [file.stem for file in run.checkpoints()] == ["step_00000003", "step_00000006"]


def test_a_request_to_save_leaves_a_file_to_use_and_a_checkpoint_that_is_due_does_not(material, tmp_path, monkeypatch):
    there = {}
    add = Monitor.add

    def look(self, number, *values):
        add(self, number, *values)
        if number == 3:
            there[3] = list((tmp_path / "exports").iterdir())
            self.run.request("save")
        if number == 5:
            status = self.run.read_status()
            assert pc.load_pixart(status["export"]).config.depth == 3
            about = inspect_file(status["export"]).metadata["training"]
            there[5] = status["state"], status["checkpoint"], about["step"]

    monkeypatch.setattr(Monitor, "add", look)
    run_here("lcd", settings("lcd", material, tmp_path, **SHORT))
    assert there == {3: [], 5: ("running", "step_00000004.safetensors", 4)}
    assert [file.name for file in (tmp_path / "exports").iterdir()] == ["pixart.safetensors"]
    assert inspect_file(tmp_path / "exports/pixart.safetensors").metadata["training"]["step"] == 6
    assert "saved at step 4 of 6: " in (tmp_path / "log.txt").read_text()


def test_samples_come_every_so_many_steps_and_change_nothing(material, tmp_path, monkeypatch):
    plain = run_here("lcd", settings("lcd", material, tmp_path / "plain", **SHORT))
    monkeypatch.setattr(loop, "draw_examples", lambda *_: (Image.new("RGB", (8, 8)), []))
    run = run_here("lcd", settings("lcd", material, tmp_path / "run", **SHORT, sample_every=3, tensorboard=True))
    assert [file.stem for file in run.samples()] == ["step_00000003", "step_00000006"]
    assert losses(run) == losses(plain)


def test_asking_for_samples_without_a_pipeline_says_what_is_missing(material, tmp_path, monkeypatch):
    monkeypatch.setattr(Monitor, "add", after_step(2, lambda run: run.request("sample")))
    run_here("lcd", settings("lcd", material, tmp_path, **SHORT))
    assert "no samples: the setting `models` names no pipeline folder" in (tmp_path / "log.txt").read_text()


def test_a_request_to_stop_saves_exports_and_can_be_resumed(material, tmp_path, monkeypatch):
    straight = run_here("lcd", settings("lcd", material, tmp_path / "straight", **SHORT))
    values = settings("lcd", material, tmp_path / "run", **SHORT)
    with monkeypatch.context() as patched:
        patched.setattr(Monitor, "add", after_step(2, lambda run: run.request("stop")))
        run = run_here("lcd", values)
    status = run.read_status()
    assert (status["state"], status["step"], status["checkpoint"]) == ("stopped", 3, "step_00000003.safetensors")
    assert (tmp_path / "run/exports/pixart.safetensors").exists() and run.requests() == []
    assert losses(run_here("lcd", values)) == losses(straight) and run.read_status()["state"] == "done"


def test_a_request_from_before_the_start_is_forgotten(material, tmp_path):
    values = settings("lcd", material, tmp_path, **SHORT)
    run_here("lcd", {**values, "steps": 1}).request("stop")
    assert run_here("lcd", values).read_status()["state"] == "done"


@pytest.fixture
def read_late(monkeypatch):
    """As on a GPU, where a step's loss is read when the next one is queued."""
    begin = Training.__init__

    def one_ahead(self, *arguments):
        begin(self, *arguments)
        self._ahead = 1

    monkeypatch.setattr(Training, "__init__", one_ahead)


def test_losses_that_are_read_late_change_nothing(material, tmp_path, read_late, monkeypatch):
    run = run_here("lcd", settings("lcd", material, tmp_path / "late", **SHORT))
    assert [line["step"] for line in run.metrics()] == [1, 2, 3, 4, 5, 6]
    monkeypatch.setattr(Monitor, "add", after_step(2, lambda run: run.request("stop")))
    run = run_here("lcd", settings("lcd", material, tmp_path / "stopped", **SHORT | {"steps": 60}))
    assert run.read_status()["state"] == "stopped" and run.read_status()["step"] < 8


def test_a_loss_that_is_read_late_is_still_never_saved(material, tmp_path, read_late, monkeypatch):
    batches = FeatureDataset.batches

    def spoilt(self, *arguments):
        for number, batch in enumerate(batches(self, *arguments)):
            yield batch | {"latent": batch["latent"] * torch.nan} if number == 3 else batch

    monkeypatch.setattr(FeatureDataset, "batches", spoilt)
    with pytest.raises(TrainingError, match="at step 4, .*good checkpoint: step_00000002"):
        run_here("lcd", settings("lcd", material, tmp_path, **SHORT))
    assert [file.stem for file in RunDir(tmp_path).checkpoints()] == ["step_00000002"]


def make_engine(material, tmp_path, **values):
    config = make_config("lcd", settings("lcd", material, tmp_path, **SHORT | values))
    return Engine(config, TASKS["lcd"](config), connect())


def test_accumulated_gradients_are_those_of_the_mean(material, tmp_path, monkeypatch):
    batch = next(FeatureDataset(material["data"]).batches(2, 0))
    monkeypatch.setattr(engine_module, "Draws", lambda seed, step, _micro, *rest: Draws(seed, step, 0, *rest))
    one, four = (make_engine(material, tmp_path, accumulation=count) for count in (1, 4))
    results = [engine.step(0, (dict(batch) for _ in range(4))) for engine in (one, four)]
    assert len(results[1].keys) == 4 * len(results[0].keys)
    torch.testing.assert_close(results[0].loss, results[1].loss)
    torch.testing.assert_close(results[0].gradient_norm, results[1].gradient_norm)


def test_the_average_follows_every_optimiser_step(material, tmp_path):
    engine = make_engine(material, tmp_path, ema_decay=0.75, accumulation=2)
    name = "blocks.0.mlp.fc1.weight"
    average, weight = (dict(network.named_parameters())[name] for network in (engine.task.ema, engine.task.model))
    before = average.clone()
    engine.step(0, FeatureDataset(material["data"]).batches(2, 0))
    assert not torch.equal(weight, before)
    torch.testing.assert_close(average, 0.75 * before + 0.25 * weight)


class Lists(TorchDispatchMode):
    """Notes the shapes of the lists that each operation on lists gets."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, _types, args=(), kwargs=None):
        if "_foreach_" in function.name():
            self.calls.append([[each.shape for each in part] for part in args if isinstance(part, list)])
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision,count", [("fp32", 1), ("fp16", 3)])
def test_optimiser_and_average_are_a_few_calls_for_all_weights(precision, count, material, tmp_path):
    """Lists of equal shapes: for others CUDA launches a kernel for each weight."""
    engine = make_engine(material, tmp_path, precision=precision, ema_decay=0.75)
    with Lists() as lists:
        engine._average(1, torch.ones(()))
    assert len(lists.calls) == count
    assert all(part == call[0] for call in lists.calls for part in call)
    assert len(lists.calls[0][0]) == len(list(engine.task.ema.parameters()))
    assert all(group["fused"] for group in engine.optimizer.param_groups)


def test_what_is_averaged_at_once_is_bounded():
    assert list(_parts([5, 3, 2, 20, 1, 1], 8)) == [slice(0, 2), slice(2, 3), slice(3, 4), slice(4, 6)]
    assert list(_parts([1, 1])) == [slice(0, 2)]


def test_gradients_are_clipped_and_zero_leaves_them(material, tmp_path):
    norms = {}
    for limit in (0.0, 1e9, 1e-3):
        engine = make_engine(material, tmp_path, clip_norm=limit)
        weight = next(iter(engine.parameters.values()))
        step = engine.optimizer.step
        seen = []
        engine.optimizer.step = lambda step=step, weight=weight, seen=seen: (seen.append(weight.grad.norm()), step())[1]
        result = engine.step(0, FeatureDataset(material["data"]).batches(2, 0))
        norms[limit] = seen[0] / result.gradient_norm
    assert norms[0.0] == norms[1e9] > 100 * norms[1e-3] > 0


def test_a_task_and_its_engine_keep_none_of_the_settings(material, tmp_path):
    """So that whoever is handed one of them is not handed every setting."""
    engine = make_engine(material, tmp_path)
    held = [name for each in (engine, engine.task) for name, value in vars(each).items() if isinstance(value, Settings)]
    assert not held


def test_schedules(material, tmp_path):
    values = settings("lcd", material, tmp_path, steps=110, warmup_steps=10, learning_rate=1.0)
    constant = make_config("lcd", values)
    assert [learning_rate(constant)(step) for step in (0, 4, 9, 50, 109)] == [0.1, 0.5, 1.0, 1.0, 1.0]
    cosine = make_config("lcd", values | {"schedule": "cosine", "final_learning_rate": 0.2})
    rates = [learning_rate(cosine)(step) for step in (0, 9, 10, 60, 110)]
    assert rates == pytest.approx([0.1, 1.0, 1.0, 0.6, 0.2])


def test_a_bar_on_a_terminal_and_lines_elsewhere(material, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    run_here("lcd", settings("lcd", material, tmp_path, **SHORT))
    shown = capsys.readouterr().out
    assert "100%" in shown
    assert "6/6" in shown
    assert "loss" in shown
    assert "step 3/6 loss" not in shown
    assert "step 3/6 loss" in (tmp_path / "log.txt").read_text()
    monkeypatch.undo()
    run_here("lcd", settings("lcd", material, tmp_path, **SHORT | {"steps": 8}))
    assert "step 7/8 loss" in capsys.readouterr().out


def test_tensorboard_may_be_missing(material, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    run_here("lcd", settings("lcd", material, tmp_path, **SHORT, tensorboard=True))
    assert "tensorboard is not installed (pip install tensorboard)" in (tmp_path / "log.txt").read_text()


def test_status_is_written_at_most_twice_a_second(material, tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(monitor_module.time, "monotonic", lambda: 0.1 * len(written))
    monkeypatch.setattr(RunDir, "write_status", lambda self, state, **values: written.append(state))
    run_here("lcd", settings("lcd", material, tmp_path, **SHORT | {"checkpoint_every": 100}))
    assert written == ["preparing", "running", "running", "done"]  # the third is the last save's


@pytest.mark.parametrize("scheme, workers", [("", 0), ("file://", 2)])
def test_on_a_cpu_only_remote_data_is_loaded_by_processes_of_its_own(material, tmp_path, monkeypatch, scheme, workers):
    asked, batches = [], FeatureDataset.batches
    monkeypatch.setattr(FeatureDataset, "batches", lambda self, *all: asked.append(all[5]) or batches(self, *all))
    monkeypatch.setenv("PIXART_DELTA_CACHE", str(tmp_path / "cache"))
    run_here(
        "lcd",
        settings(
            "lcd",
            material,
            tmp_path / "run",
            **SHORT | {"workers": -1, "steps": 1, "data": f"{scheme}{material['data']}"},
        ),
    )
    assert asked == [workers]


def test_status_says_when_a_run_was_killed(material, tmp_path):
    def kill_at_two():
        Monitor.add = after_step(2, lambda run: os.kill(os.getpid(), signal.SIGKILL))

    run_apart("lcd", settings("lcd", material, tmp_path, **SHORT), kill_at_two)
    assert "state: killed, 0:00:0" in describe_run(str(tmp_path))


def test_command_line_from_another_directory_and_ctrl_c_to_the_group(material, tmp_path):
    values = settings("finetune", material, Path("run"), **{**SHORT, "steps": 100_000, "workers": 2})
    given = [part for name, value in values.items() for part in ("--set", f"{name}={json.dumps(value)}")]
    given = [part.replace('"', "") for part in given]
    train = [sys.executable, str(ROOT / "training/train.py")]
    process = subprocess.Popen(
        [*train, "finetune", *given],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    run = RunDir(tmp_path / "run")
    assert wait_until(run.checkpoints)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the reading processes get it, too
    out, errors = process.communicate(timeout=100)
    assert process.returncode == 0
    assert "stopped at step" in out
    assert "Traceback" not in errors
    assert "error" not in errors
    status = subprocess.run([*train, "status", "run"], cwd=tmp_path, capture_output=True, text=True)
    assert "state: stopped" in status.stdout and f"step: {run.read_status()['step']} of 100000" in status.stdout
    missing = subprocess.run([*train, "status", "nothing"], cwd=tmp_path, capture_output=True, text=True)
    assert missing.returncode == 1
    assert "nothing holds no run" in missing.stderr
    assert not (tmp_path / "nothing").exists()
