"""A job that gets little of the processor says so: in status, `status`, and log. With a clock of its own."""

import itertools

import pytest
import torch
from pixart_delta.training.cli import describe_run
from pixart_delta.training.config import make_config
from pixart_delta.training.prepare.progress import follow
from pixart_delta.training.run_dir import RunDir
from pixart_delta.training.watch import processor
from pixart_delta.training.watch.monitor import Monitor
from pixart_delta.training.watch.processor import CpuShare


@pytest.fixture
def clock(monkeypatch):
    """[seconds of the clock, seconds of the processor], of a process that began at 0."""
    now = [20.0, 18.0]
    monkeypatch.setattr(processor.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(processor.time, "time", lambda: processor.psutil.Process().create_time() + now[0])
    monkeypatch.setattr(processor, "_cpu_seconds", lambda: now[1])
    monkeypatch.setattr(processor.torch, "get_num_threads", lambda: 1)
    return now


def after(clock, seconds: float, used: float) -> None:
    clock[0] += seconds
    clock[1] += used


def test_little_is_noticed_and_forgotten(clock):
    cpu = CpuShare(torch.device("cpu"))
    assert cpu.look() and cpu.notice == ""
    after(clock, 5, 0)
    assert not cpu.look(), "a hiccup"
    after(clock, 15, 1)
    assert cpu.look() and cpu.notice.startswith("gets 5% of the processor time")
    after(clock, 20, 19)
    assert cpu.look() and cpu.notice == ""
    after(clock, 100, 9)
    assert cpu.look(waited=90) and cpu.notice == "", "there was nothing to compute"


def test_a_slow_start_is_noticed_and_a_gpu_is_not(clock):
    clock[:] = [200.0, 7.0]
    cpu, gpu = CpuShare(torch.device("cpu")), CpuShare(torch.device("cuda"))
    assert cpu.look() and cpu.notice.startswith("gets 4%")
    assert not gpu.look() and gpu.notice == ""


def test_the_status_says_it(clock, tmp_path, capsys):
    run = RunDir(tmp_path).create()
    config = make_config("lcd", {"run": str(tmp_path), "data": "d", "base": "b"})
    run.write_config("lcd", config.to_dict())
    monitor = Monitor(run, config.steps, torch.device("cpu"))
    with run.lock():
        monitor.begin(0, [])
        assert "notice" not in run.read_status()
        after(clock, 100, 2)
        monitor.add(1, 0.5, 1.0, 1e-4, 0.0)
        monitor.say_state("running")
        assert "notice: gets 2% of the processor time that it could use" in describe_run(str(tmp_path))
        after(clock, 100, 2)
        monitor.add(2, 0.5, 1.0, 1e-4, 0.0)
        after(clock, 100, 99)
        monitor.add(3, 0.5, 1.0, 1e-4, 0.0)
        monitor.say_state("running")
        assert "notice" not in run.read_status()
    assert capsys.readouterr().out.count("this training gets 2%") == 1


def test_a_preparation_says_it_while_it_computes(clock, tmp_path, capsys):
    config = make_config("prepare", {"input": "i", "output": "o", "run": str(tmp_path)})
    with follow(config, silent=False) as progress:
        after(clock, 100, 2)
        progress.begin("preparing", "looked at", 9)
        assert "notice" not in RunDir(tmp_path).read_status(), "helpers read then"
        progress.begin("running", "encoded", 9)
        progress.watch_processor(torch.device("cpu"))
        slow = progress.waiting_for(after(clock, 100, 0) for _ in itertools.count())
        next(slow)
        next(slow)
        progress.note("encoding captions")
        assert RunDir(tmp_path).read_status()["notice"] == "encoding captions", "it waited for files"
        after(clock, 100, 2)
        progress.add(1)
        said = RunDir(tmp_path).read_status()["notice"]
        assert said.startswith("encoding captions; gets 2% of the processor time")
    assert "notice" not in RunDir(tmp_path).read_status()
    assert capsys.readouterr().out.count("this preparation gets 2%") == 1
