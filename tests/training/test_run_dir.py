"""The run folder: what others read while a run writes, requests, the lock, and what a killed process leaves."""

import json
import re
import subprocess
import sys
import time

import pytest
from pixart_delta.training import run_dir as module
from pixart_delta.training.jobs.metrics import read_metrics
from pixart_delta.training.run_dir import RunDir, RunDirError

HOLDER = f"""
import runpy, sys, time
runpy.run_path({module.__file__.replace("run_dir.py", "train.py")!r})  # registers the package
from pixart_delta.training.run_dir import RunDir
with RunDir(sys.argv[1]).lock():
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def run(tmp_path):
    run = RunDir(tmp_path / "run").create()
    run.write_config("lcd", {"base": "b", "data": "d", "seed": 1, "steps": 5})
    return run


def test_looking_at_a_folder_makes_nothing(tmp_path):
    run = RunDir(tmp_path / "typo")
    with pytest.raises(RunDirError, match="typo holds no run: there is no status.json"):
        run.read_status()
    with pytest.raises(RunDirError, match="holds no run"):
        run.request("stop")
    assert run.metrics() == run.samples() == run.checkpoints() == run.requests() == []
    assert not run.is_running() and not run.path.exists()


def test_status_round_trip(run):
    run.write_status("running", step=3, loss=0.5)
    status = run.read_status()
    assert (status["state"], status["step"], status["loss"]) == ("running", 3, 0.5) and status["pid"] > 0


def test_requests_stay_until_taken(run):
    run.request("sample")
    run.request("stop")
    assert run.requests() == ["stop", "sample"]
    run.take("stop")
    assert run.requests() == ["sample"]
    with pytest.raises(ValueError, match="no request 'halt': choose one of stop, save, sample"):
        run.request("halt")


def test_another_run_is_refused_and_more_steps_are_not(run):
    run.checkpoint(1).touch()
    run.write_config("lcd", {"base": "b", "data": "d", "seed": 1, "steps": 9})
    assert run.read_config()["config"]["steps"] == 9
    with pytest.raises(RunDirError, match="holds another run .base was 'b' and is 'c'"):
        run.write_config("lcd", {"base": "c", "data": "d", "seed": 1})
    with pytest.raises(RunDirError, match="its command was lcd, not finetune"):
        run.write_config("finetune", {"base": "b", "data": "d", "seed": 1})


@pytest.mark.parametrize(
    "command,name,one,other",
    [
        ("lcm-lora", "lora_rank", 4, 8),
        ("finetune", "lora_alpha", 8.0, 16.0),
        ("finetune", "lora_kind", "lora", "dora"),
        ("finetune", "model", {}, {"depth": 4}),
        ("lcd", "beta_schedule", "linear", "scaled_linear"),
        ("lcd", "w_embedding", False, True),
        ("controlnet", "copy_blocks", 2, 3),
        ("controlnet", "wiring", "transformer", "unet"),
        ("lcd", "seed", 1, 2),
        ("lcd", "validation", 0.0, 0.1),
        ("lcd", "base", "a", "b"),
        ("lcd", "data", "a", "b"),
    ],
)
def test_what_is_trained_may_not_change(run, command, name, one, other):
    run.write_config(command, {name: one})
    run.checkpoint(1).touch()
    problem = re.escape(f"holds another run ({name} was {one!r} and is {other!r}): give it its own")
    with pytest.raises(RunDirError, match=problem):
        run.check_config(command, {name: other})


def test_a_run_that_never_got_anywhere_can_be_corrected(run):
    run.write_config("finetune", {"base": "other"})
    assert run.read_config() == {"command": "finetune", "config": {"base": "other"}}


def test_metrics_of_steps_that_are_taken_again_are_dropped(run):
    for step in (1, 2, 3):
        run.log(step=step, loss=step / 2)
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "lo')  # killed while writing
    assert [line["step"] for line in run.metrics()] == [1, 2, 3]
    run.forget_metrics(after=2)
    run.log(step=3, loss=9.0)
    assert [line["loss"] for line in run.metrics()] == [0.5, 1.0, 9.0]


def test_lock_names_its_holder_and_dies_with_it(run):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(run.path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n" and run.is_running()
        with pytest.raises(RunDirError, match=f"in use by another training .process {holder.pid}"), run.lock(0.1):
            pass
    finally:
        holder.kill()
        holder.wait()
    assert not run.is_running()
    with run.lock():
        assert run.is_running()
    assert not run.is_running()


def test_a_short_look_at_the_lock_does_not_refuse_a_run(run):
    looker = subprocess.Popen(
        [sys.executable, "-c", HOLDER.replace("60", "0.3"), str(run.path)], stdout=subprocess.PIPE
    )
    looker.stdout.readline()
    with run.lock(patience=30):
        assert looker.wait() == 0


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_a_forked_worker_does_not_keep_the_lock(run):
    import os

    with run.lock():
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
    try:
        with run.lock(patience=30):  # at the latest when the child gets to run
            pass
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def test_leftovers_of_a_killed_process_go_and_files_stay(run):
    kept = [run.path / "config.json", run.path / "checkpoints" / "step_00000005.safetensors"]
    kept[1].write_text("x")
    for name in ("checkpoints/.step_00000010.safetensors.77.tmp", "status.tmp"):
        (run.path / name).write_text("half")
    run.remove_leftovers()
    assert all(file.exists() for file in kept) and not list(run.path.rglob("*.tmp"))


@pytest.mark.parametrize("text", ['{"state"', "[" * 100_000, "[]", "1" * 5000, "\ud800"])
def test_a_damaged_status_is_named(run, text):
    (run.path / "status.json").write_text(text, "utf-8", "surrogatepass")
    with pytest.raises(RunDirError, match="status.json is damaged"):
        run.read_status()
    assert json.loads((run.path / "config.json").read_text())["command"] == "lcd"


def test_something_else_in_the_place_of_the_metrics_is_named(run):
    (run.path / "metrics.jsonl").mkdir()
    with pytest.raises(RunDirError, match=r"metrics\.jsonl cannot be read: Is a directory"):
        run.metrics()
    assert read_metrics(run.path / "metrics.jsonl")["columns"] == {}
