"""Short real runs: settings of every command on a tiny base, in this process, or in forked ones that can be killed."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import peft  # noqa: F401 - takes seconds, so not in every forked process
import torch
from pixart_delta.training.config import make_config
from pixart_delta.training.loop import train
from pixart_delta.training.run_dir import RunDir
from safetensors.torch import load_file

import pixart_core as pc
from tests.fixtures_nano import nano_config, random_pixart
from tests.training.shards_fixture import BUCKETS, make_features

# The first backward pass of a process may start autograd's threads (it does after some of the core's tests), and then
# no forked process can make one. This first one, while tests are collected, starts none.
torch.ones(1, requires_grad=True).sum().backward()

COMMANDS = ("finetune", "lcd", "lcm-lora", "controlnet")
PATIENCE = 900  # no process here computes for half a minute where it has a core to itself
"""Seconds after which a process of a test hangs."""


def make_material(folder: Path, buckets: Mapping[tuple[int, int], int] = BUCKETS) -> dict[str, str]:
    """A tiny base and features in some buckets, as settings."""
    config = nano_config(depth=3)
    pc.save_pixart(random_pixart(config), folder / "base.safetensors")
    features = make_features(folder / "features", buckets, width=config.caption_channels)
    return {"base": str(folder / "base.safetensors"), "data": str(features)}


def settings(command: str, material: dict[str, str], run: Path, **values: Any) -> dict[str, Any]:
    """Small, in float32, with all that could disturb a resumed run: buckets, accumulation, reading processes."""
    out = {
        **material,
        "run": str(run),
        "steps": 20,
        "batch_size": 2,
        "accumulation": 2,
        "workers": 1,
        "learning_rate": 1e-3,
        "warmup_steps": 5,
        "clip_norm": 1.0,
        "precision": "fp32",
        "log_every": 1,
        "checkpoint_every": 4,
        "tensorboard": False,
        "adam_epsilon": 1e-8,
    }
    if command == "controlnet":
        out["copy_blocks"] = 2
    return out | values


def run_here(command: str, values: dict[str, Any]) -> RunDir:
    train(make_config(command, values))
    return RunDir(values["run"])


def start(function: Callable[..., Any], *arguments: Any) -> multiprocessing.Process:
    """Call a function in a forked process of one thread."""
    process = multiprocessing.get_context("fork").Process(target=_alone, args=(function, arguments))
    process.start()
    return process


def run_apart(command: str, values: dict[str, Any], prepare: Callable[[], Any] = lambda: None) -> int | None:
    """Train in a forked process, where `prepare` may patch things, and return its exit code."""
    process = start(_train, command, values, prepare)
    process.join(PATIENCE)
    return process.exitcode


def run_processes(
    command: str, values: dict[str, Any], prepare: Callable[[int], Any] = lambda rank: None, world: int = 2
) -> list[int | None]:
    """Train on several processes, and return their exit codes."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    processes = [start(_rank, rank, world, port, command, values, prepare) for rank in range(world)]
    for process in processes:
        process.join(PATIENCE)
    return [process.exitcode for process in processes]


def losses(run: RunDir) -> list[float]:
    return [line["loss"] for line in run.metrics()]


def forked(command: str, values: dict[str, Any], prepare: Callable[[], Any] = lambda: None) -> multiprocessing.Process:
    """Start training in a forked process, where `prepare` may patch things."""
    return start(_train, command, values, prepare)


def wait_until(condition: Callable[[], Any], patience: float = PATIENCE) -> Any:
    """The first true value of `condition`, or its last one."""
    deadline = time.monotonic() + patience
    while not (value := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return value


def same_weights(one: RunDir, other: RunDir) -> bool:
    """Whether their last checkpoints are equal to the last bit, optimiser and all."""
    one, other = (load_file(run.checkpoints()[-1]) for run in (one, other))
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _train(command: str, values: dict[str, Any], prepare: Callable[[], Any]) -> None:
    prepare()
    run_here(command, values)


def _rank(rank: int, world: int, port: str, command: str, values: dict, prepare: Callable[[int], Any]) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": port,
        "ACCELERATE_USE_CPU": "1",
    }
    prepare(rank)
    run_here(command, values)


def _alone(function: Callable[..., Any], arguments: tuple) -> None:
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
    try:
        function(*arguments)
    except Exception as error:
        sys.stderr.write(f"error: {error}\n")
        sys.stderr.flush()
        os._exit(1)
