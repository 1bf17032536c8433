"""`--dry-run`: what a training will take, and one real step of it. Nothing is written."""

from __future__ import annotations

import datetime
import math
import time

import psutil
import torch

from ..pixart_core.vae import load_vae
from .checkpoint import check_disk
from .config import ConfigError, TrainConfig
from .contents import identify
from .data import FeatureDataset
from .disk import in_units
from .distribute import connect
from .engine import make_engine
from .estimate import estimate, matmul_rate, model_shape
from .run_dir import RunDir
from .task import DTYPES


def dry_run(command: str, config: TrainConfig) -> None:
    """Check all settings and files, print an estimate, take one step, and print what that took.

    Raises:
        ConfigError, DataError, CheckpointError, RunDirError, DiskError: what `train` would raise.
    """
    run = RunDir(config.run)
    run.check_config(command, config.to_dict(), identify)
    if config.models:
        load_vae(config.models)
    data = FeatureDataset(config.data)
    accelerator = connect(config)
    device = accelerator.device
    height, width = max(data.buckets, key=lambda size: size[0] * size[1])
    expected = estimate(command, config, model_shape(config), height, width, accelerator.num_processes)
    seconds = expected.seconds(matmul_rate(device, DTYPES[config.precision]))
    if accelerator.is_main_process:  # the others' host need not have the run's disk
        check_disk(run, expected.checkpoint, config.keep_checkpoints)
    say = print if accelerator.is_main_process else _silent
    say(f"{len(data)} pictures of {len(data.buckets)} sizes, the largest {width}x{height}; on {device}\n{expected}")
    whole = datetime.timedelta(seconds=round(seconds * config.steps))
    say(f"time: at least {seconds:.3g} s a step, {whole} for {config.steps} steps", flush=True)
    engine = make_engine(command, config, data, accelerator)
    batches = data.batches(
        config.batch_size,
        config.seed,
        0,
        accelerator.process_index,
        accelerator.num_processes,
        hint=engine.task.needs_hint,
    )
    begin = time.perf_counter()
    result = engine.step(0, batches)
    loss, norm = result.loss.item(), result.gradient_norm.item()
    took = time.perf_counter() - begin
    overflow_is_normal = engine.scaler.is_enabled()  # at first: its scale begins too high, and goes down
    if not math.isfinite(loss if overflow_is_normal else loss + norm):
        raise ConfigError(f"the first step's loss is {loss} and its gradient norm {norm}: try precision=fp32")
    what, memory = _memory(device)
    say(
        f"one step: loss {loss:.5f}, gradient {norm:.3f}, {took:.3g} s with all that a first step does once, "
        f"{in_units(memory)} {what}. Nothing was written"
    )
    accelerator.end_training()


def _memory(device: torch.device) -> tuple[str, int]:
    if device.type == "cuda":
        return "of the device at its widest", torch.cuda.max_memory_allocated(device)
    return "in this process", psutil.Process().memory_info().rss


def _silent(*_words, **_options) -> None:
    pass
