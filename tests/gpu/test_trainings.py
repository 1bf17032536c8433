"""Every training command on the device: its steps, precision, kill and resume, compile, export, a picture beside it."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from pixart_delta.training.config import make_config
from pixart_delta.training.data import FeatureDataset
from pixart_delta.training.distribute import connect
from pixart_delta.training.engine import Outcome, make_engine
from pixart_delta.training.run_dir import RunDir
from pixart_delta.training.task import decided

import pixart_core as pc
from tests.training.runs_fixture import COMMANDS, losses, run_here, same_weights, settings

on_cuda = pytest.mark.parametrize("device", ["cuda"], indirect=True)
"""Beside the mark `gpu`: not on the CPU, too, as the fixture has it."""


@pytest.fixture(autouse=True)
def train_on(device, monkeypatch):
    """train_on(kind): accelerate takes CUDA where there is any, unless it is told not to. Called with the device."""
    from accelerate.state import AcceleratorState, PartialState

    def choose(kind):
        monkeypatch.setenv("ACCELERATE_USE_CPU", str(kind == "cpu").lower())
        for state in (AcceleratorState, PartialState):
            state._reset_state()

    choose(device.type)
    yield choose
    choose(device.type)


def engine_of(command, material, tmp_path, **values):
    config = make_config(command, settings(command, material, tmp_path / "run", **values))
    data = FeatureDataset(config.data)
    processes = connect()
    engine = make_engine(decided(config, processes.device), data, processes)
    return engine, data.batches(config.batch_size, config.seed, hint=engine.task.needs_hint)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_training(command, material, tmp_path, device):
    run = run_here(command, settings(command, material, tmp_path / "run", steps=2, checkpoint_every=2))
    assert run.read_status()["state"] == "done" and all(0 < loss < 1e3 for loss in losses(run))
    assert list((run.path / "exports").iterdir())


@pytest.mark.parametrize("command", ["lcd", "lcm-lora"])
def test_auto_precision_is_that_of_the_device(command, material, tmp_path, device):
    engine, batches = engine_of(command, material, tmp_path, precision="auto")
    assert engine.task.dtype == (torch.float32 if device.type == "cpu" else torch.float16)
    assert engine.step(0, batches).loss.isfinite()


def test_steps_are_those_of_the_cpu(material, tmp_path, device, train_on):
    """Data, noise and timesteps are drawn there, whatever computes: in float32 the losses agree."""
    found = []
    for kind in ("cpu", device.type):
        train_on(kind)
        engine, batches = engine_of("lcd", material, tmp_path / str(len(found)), precision="fp32")
        assert engine.device.type == kind
        found.append([engine.step(number, batches).loss.item() for number in range(2)])
    assert found[0] == pytest.approx(found[1], rel=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_step_in_every_precision(precision, material, tmp_path, device):
    engine, batches = engine_of("lcd", material, tmp_path, precision=precision, gradient_checkpointing=True)
    seen = Outcome(engine.step(0, batches), [], engine.processes).read()
    assert 0 < seen.loss < 1e3 and seen.scale >= 1


@pytest.mark.parametrize("command", ["finetune", "lcd"])
def test_a_card_without_bfloat16_trains_in_float16(command, material, tmp_path, device, monkeypatch):
    """Forced by a switch: what torch says of the card."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: False)
    config = make_config(command, {"run": "r", "data": "d", "base": "b"})
    assert decided(config, torch.device("cuda")).precision == "fp16"
    engine, batches = engine_of(command, material, tmp_path, precision="auto")
    assert engine.task.dtype == (torch.float32 if device.type == "cpu" else torch.float16)
    assert engine.step(0, batches).loss.isfinite()


KILLED = """
import json, sys
from tests import conftest
from tests.training.runs_fixture import run_here
from tests.training.test_resume import killed_after
killed_after(3)()
run_here("lcd", json.loads(sys.argv[1]))
"""


def test_a_killed_run_goes_on(material, tmp_path, device):
    straight = run_here("lcd", settings("lcd", material, tmp_path / "straight", steps=4, checkpoint_every=2))
    values = settings("lcd", material, tmp_path / "killed", steps=4, checkpoint_every=2)
    root = Path(__file__).resolve().parents[2]
    command, environment = [sys.executable, "-c", KILLED, json.dumps(values)], {**os.environ, "PYTHONPATH": str(root)}
    assert subprocess.run(command, cwd=root, env=environment).returncode == -signal.SIGKILL
    assert [file.stem for file in RunDir(values["run"]).checkpoints()] == ["step_00000002"]
    assert losses(run_here("lcd", values)) == pytest.approx(losses(straight), rel=1e-3)


def test_a_run_that_was_ended_goes_on(material, tmp_path, device):
    straight = run_here("lcd", settings("lcd", material, tmp_path / "straight", steps=4, checkpoint_every=2))
    halves = settings("lcd", material, tmp_path / "halves", steps=4, checkpoint_every=2)
    run_here("lcd", {**halves, "steps": 2})
    resumed = run_here("lcd", halves)
    assert losses(resumed) == pytest.approx(losses(straight), rel=1e-5 if device.type == "cpu" else 1e-3)


def test_a_deterministic_run_that_was_ended_goes_on_bit_for_bit(material, tmp_path, device, monkeypatch):
    """In the default precision, with attention, its backward pass and the average."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    values = {"steps": 4, "checkpoint_every": 2, "precision": "auto", "deterministic": True}
    try:
        straight = run_here("lcd", settings("lcd", material, tmp_path / "straight", **values))
        halves = settings("lcd", material, tmp_path / "halves", **values)
        run_here("lcd", {**halves, "steps": 2})
        resumed = run_here("lcd", halves)
    finally:
        torch.use_deterministic_algorithms(False)
    assert losses(resumed) == losses(straight) and same_weights(resumed, straight)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_step_that_keeps_attention(command, material, tmp_path, device):
    """What is not computed again is the same: the same loss and gradient."""
    found = []
    for keep in (False, True):
        values = {"gradient_checkpointing": True, "keep_attention": keep, "precision": "fp32"}
        engine, batches = engine_of(command, material, tmp_path / str(keep), **values)
        result = engine.step(0, batches)
        found.append((result.loss.item(), result.gradient_norm.item()))
    assert found[0] == pytest.approx(found[1], rel=1e-4)


@pytest.mark.gpu
@on_cuda
@pytest.mark.parametrize(
    "command, precision, compiled",
    [(command, precision, False) for command in COMMANDS for precision in ("fp32", "fp16")] + [("lcd", "fp32", True)],
)
def test_a_captured_step_is_the_plain_one_on_cuda(command, precision, compiled, material, tmp_path, device):
    """Compiled, too, as `nano family` trains on large batches."""
    if compiled:
        pytest.importorskip("triton")
    found = []
    for graph in (False, True):
        values = {"precision": precision, "cuda_graph": graph, "compile": compiled, "warmup_steps": 0}
        engine, batches = engine_of(command, material, tmp_path / str(graph), **values)
        found.append([engine.step(number, batches).loss.item() for number in range(6)])
    assert engine.replayed.counts["replayed"] > 0 and not engine.replayed._refused
    assert found[0] == pytest.approx(found[1], rel=1e-3)


def test_eight_bit_moments(material, tmp_path, device):
    pytest.importorskip("bitsandbytes")
    engine, batches = engine_of("lcd", material, tmp_path, optimizer="adamw8bit")
    assert engine.step(0, batches).loss.isfinite()


def test_an_export_makes_pictures(material, tmp_path, device):
    run = run_here("lcd", settings("lcd", material, tmp_path / "run", steps=1, checkpoint_every=1))
    file = next((run.path / "exports").glob("*.safetensors"))
    model = pc.load_pixart(file, torch.float32, device)
    latent, caption = torch.randn(1, 4, 8, 8, device=device), torch.randn(1, 8, 64, device=device)
    with torch.no_grad():
        assert model(latent, torch.tensor([999], device=device), caption).isfinite().all()


def test_a_training_beside_pictures(material, tmp_path, nano, device):
    """Both in one process, at once: graphs of one are not disturbed by the other."""
    pipeline = pc.Pipeline.from_pretrained(nano, dtype=torch.float32, device=device)
    expected, made = pipeline.sample("sun", 2, width=64, height=64), []

    def draw():
        made.extend(pipeline.sample("sun", 2, width=64, height=64) for _ in range(4))

    thread = threading.Thread(target=draw)
    engine, batches = engine_of("lcd", material, tmp_path)
    thread.start()
    assert all(engine.step(number, batches).loss.isfinite() for number in range(2))
    thread.join()
    assert len(made) == 4 and all(torch.allclose(each, expected, atol=1e-4) for each in made)


@pytest.mark.gpu
@on_cuda
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_step_waits_once_on_cuda(precision, material, tmp_path, device):
    """Between two steps nothing reads a number of the device."""
    engine, batches = engine_of("lcd", material, tmp_path, precision=precision)
    engine.step(0, batches)
    torch.cuda.set_sync_debug_mode("error")
    try:
        engine.step(1, batches)
    finally:
        torch.cuda.set_sync_debug_mode("default")
