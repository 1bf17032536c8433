"""Whoever starts several processes: they share the work, or it is said why not."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.utils import DistributedType
from pixart_delta.training import distribute, launcher
from pixart_delta.training.config import ConfigError
from pixart_delta.training.jobs import process
from pixart_delta.training.run_dir import RunDir

from tests.training.runs_fixture import losses, make_material, settings

ROOT = Path(__file__).resolve().parents[2]
ONE_HOST = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1"}


@pytest.mark.parametrize(
    "given",
    [
        {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_NODES": "1"},
        {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1"},
        {"PMI_RANK": "1", "PMI_SIZE": "2"},
        {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"},
        {"MV2_COMM_WORLD_RANK": "1", "MV2_COMM_WORLD_SIZE": "2", "MV2_COMM_WORLD_LOCAL_RANK": "1"},
    ],
)
def test_every_launcher_is_translated(given):
    environment = dict(given)
    assert launcher.adopt(environment) == 2
    assert environment.items() >= ONE_HOST.items() and 20_000 <= int(environment["MASTER_PORT"]) < 40_000
    assert launcher.adopt(environment) == 2  # once more changes nothing
    assert launcher.adopt(launcher.alone(environment)) == 1


@pytest.mark.parametrize("hosts,first", [("node[03-05,09],other1", "node03"), ("gpu-a1", "gpu-a1"), ("a1,b2", "a1")])
def test_several_hosts_meet_at_the_first(hosts, first):
    environment = {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1", "SLURM_STEP_NODELIST": hosts}
    assert launcher.adopt(environment) == 4 and environment["MASTER_ADDR"] == first
    assert (environment["RANK"], environment["LOCAL_RANK"]) == ("3", "1")


@pytest.mark.parametrize(
    "given,problem",
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "LOCAL_RANK, MASTER_ADDR, MASTER_PORT is not set"),
        ({"RANK": "1"}, "WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT is not set"),
        ({"WORLD_SIZE": "two", "RANK": "0"}, "WORLD_SIZE is 'two'"),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, "start it by `srun python"),
        ({"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}, "MASTER_ADDR"),
        ({"PMI_RANK": "2", "PMI_SIZE": "4", "MPI_LOCALNRANKS": "2", "MASTER_ADDR": "a"}, "MPI_LOCALRANKID"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "OMPI_COMM_WORLD_RANK, which of them"),
        ({"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"}, "add --multi_gpu"),
    ],
)
def test_a_place_that_is_not_known_is_refused(given, problem):
    with pytest.raises(ConfigError, match=re.escape(problem)):
        launcher.adopt(dict(given))


@pytest.mark.parametrize("given", [{}, {"SLURM_NTASKS": "1"}, {"RANK": "0", "WORLD_SIZE": "1"}, {"PMI_SIZE": "1"}])
def test_one_process_is_one(given):
    assert launcher.adopt(dict(given)) == 1


def test_a_job_of_the_server_is_alone(monkeypatch):
    for name, value in {"SLURM_NTASKS": "4", "RANK": "0", "WORLD_SIZE": "4", "OMPI_COMM_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    assert launcher.adopt(process.environment("cpu")) == 1


@pytest.mark.parametrize(("processes", "taken_apart"), [("1", True), ("2", False)])
def test_one_of_several_leaves_before_python_is_taken_apart(processes, taken_apart):
    """Where threads of Gloo's end it with an abort; what was registered for the end, and output, are not lost."""
    code = """
import atexit, os
from pixart_delta.training.launcher import leave

class Held:
    def __del__(self, write=os.write): write(1, b"taken apart")  # by then its module may be empty

held = Held()
atexit.register(print, "the end")
leave(3)
"""
    start = f"import runpy; runpy.run_path({str(ROOT / 'training/train.py')!r}); exec({code!r})"
    ended = subprocess.run(
        [sys.executable, "-c", start], env=_clean() | {"WORLD_SIZE": processes}, capture_output=True, text=True
    )
    assert ended.returncode == 3, ended.stderr
    assert ended.stdout.split("\n")[: 1 + taken_apart] == ["the end"] + ["taken apart"] * taken_apart, ended.stderr
    assert ("taken apart" in ended.stdout) == taken_apart


def test_a_number_of_processes_that_is_none_is_one_clear_error(tmp_path):
    command = [
        sys.executable,
        str(ROOT / "training/train.py"),
        "finetune",
        *_arguments(settings("finetune", make_material(tmp_path), tmp_path / "run")),
    ]
    ended = subprocess.run(command, env=_clean() | {"WORLD_SIZE": "two"}, capture_output=True, text=True)
    assert ended.returncode == 1 and "WORLD_SIZE is 'two'" in ended.stderr and "Traceback" not in ended.stderr


@pytest.fixture
def accelerate(monkeypatch):
    """connect(kind, processes, …) beside an accelerate that says so."""
    for name, value in (ONE_HOST | {"MASTER_PORT": "29500"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distribute, "die_with_parent", lambda: None)

    def connect(kind, processes=2, device="cpu", seen=2):
        monkeypatch.setattr(distribute, "_device_kind", lambda: device)
        if device != "cpu":
            monkeypatch.setattr(torch, device, type("Devices", (), {"device_count": lambda: seen}), raising=False)
        about = {"distributed_type": kind, "num_processes": processes, "device": device}
        fake = type("Accelerator", (), about | {"process_index": 0, "is_main_process": True})
        monkeypatch.setattr(distribute, "Accelerator", lambda **_options: fake)
        return distribute.connect()

    return connect


def test_kinds_of_devices_that_share_the_work(accelerate):
    for kind in (DistributedType.MULTI_CPU, DistributedType.MULTI_GPU, DistributedType.MULTI_XPU):
        assert accelerate(kind).count == 2
    for kind in (DistributedType.DEEPSPEED, DistributedType.XLA, DistributedType.MULTI_NPU):
        with pytest.raises(ConfigError, match=f"set up for {kind.value}, which is not supported: .*Intel"):
            accelerate(kind)
    with pytest.raises(ConfigError, match="2 processes were started, but accelerate connects 1 on xpu"):
        accelerate(DistributedType.NO, 1, "xpu")


def test_a_process_without_a_gpu_of_its_own(accelerate, monkeypatch):
    accelerate(DistributedType.MULTI_XPU, 2, "xpu", seen=1)  # as a cluster shows each process its own
    assert os.environ["LOCAL_RANK"] == "0"
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(ConfigError, match="process 1 of this host has no GPU of its own, since 1 are visible"):
        accelerate(DistributedType.MULTI_XPU, 2, "xpu", seen=1)


def _arguments(values):
    texts = {name: str(value).lower() if isinstance(value, bool) else value for name, value in values.items()}
    return [part for name, text in texts.items() for part in ("--set", f"{name}={text}")]


def _clean():
    told = ("ACCELERATE", "RANK", "WORLD", "LOCAL", "MASTER", "SLURM", "OMPI", "PMI")
    return {name: value for name, value in os.environ.items() if not name.startswith(told)} | {"OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("how", ["torchrun", "srun"])
def test_processes_without_a_gpu_share_the_work(how, tmp_path):
    """And no warning of torch's reaches the user."""
    values = settings("finetune", make_material(tmp_path), tmp_path / "run", steps=3, workers=0, batch_size=2)
    train = [str(ROOT / "training/train.py"), "finetune", *_arguments(values)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    if how == "torchrun":
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        started = [subprocess.Popen([*torchrun, *train], env=_clean(), **pipes)]
    else:
        slurm = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1", "SLURM_JOB_ID": str(os.getpid())}
        places = [slurm | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in (0, 1)]
        started = [subprocess.Popen([sys.executable, *train], env=_clean() | place, **pipes) for place in places]
    said = "".join(each.communicate(timeout=300)[0] for each in started)
    assert [each.returncode for each in started] == [0] * len(started), said
    assert "broadcast_buffers" not in said and "FutureWarning" not in said
    assert len(losses(RunDir(tmp_path / "run"))) == 3 and said.count("done at step 3 of 3") == 1
