"""The training loop: one optimiser step after another, with metrics, checkpoints, stop and resume."""

from __future__ import annotations

import contextlib
import math
import signal
import sys
import time

import torch
from accelerate import Accelerator
from torch.nn.attention import SDPBackend, sdpa_kernel

from .checkpoint import load_checkpoint, save_checkpoint
from .config import TrainConfig
from .data import FeatureDataset
from .run_dir import RunDir
from .tasks import TASKS, Task


class TrainingError(RuntimeError):
    """A run that cannot go on; the last good checkpoint is kept."""


def train(command: str, config: TrainConfig) -> None:
    """Run, or resume, until config.steps; ends early, saved, on SIGTERM, Ctrl-C or a `stop` file.

    Raises:
        TrainingError: if the loss is no longer finite.
    """
    run = RunDir(config.run)
    run.write_config(command, config.to_dict())
    run.clear_stop()
    data = FeatureDataset(config.data)
    accelerator = Accelerator(mixed_precision="bf16" if config.precision == "bf16" else "no")
    task = TASKS[command](config)
    for network in _networks(task):
        network.to(accelerator.device)
    optimizer = torch.optim.AdamW(
        _groups(task.model, config.weight_decay),
        lr=config.learning_rate,
        betas=(0.9, config.adam_beta2),
        eps=config.adam_epsilon,
        fused=True,
    )
    step = _resume(run, task, optimizer)
    if config.compile:
        task.compile()
    stop = _StopSignal()
    try:
        step = _steps(run, config, data, accelerator, task, optimizer, step, stop)
    except Exception as error:
        run.write_status("failed", step=step, steps=config.steps, message=str(error))
        raise
    save_checkpoint(run, step, task.model, task.ema, optimizer, config.keep_checkpoints)
    exported = task.export(run.path / "exports")
    state = "done" if step >= config.steps else "stopped"
    run.write_status(state, step=step, steps=config.steps, export=str(exported))
    print(f"{state} at step {step} of {config.steps}: {exported}", flush=True)


def _steps(run, config, data, accelerator, task, optimizer, step, stop) -> int:
    batches = data.batches(config.batch_size, config.seed, start=step)
    parameters = list(task.model.parameters())
    meter = _Meter(run, config, step)
    while step < config.steps and not (stop.received or run.stop_requested()):
        batch = {name: value.to(accelerator.device) for name, value in next(batches).items()}
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        rate = _set_learning_rate(optimizer, config, step)
        with accelerator.autocast(), _attention_kernel(accelerator.device):
            loss = task.loss(batch, generator)
            accelerator.backward(loss)
        norm = torch.nn.utils.clip_grad_norm_(parameters, config.clip_norm)
        value = loss.item()
        if not (math.isfinite(value) and torch.isfinite(norm)):
            raise TrainingError(
                f"the loss is {value} and the gradient norm {norm.item()} at step {step + 1}: lower learning_rate "
                f"or use precision=fp32; the last good checkpoint is in {run.path / 'checkpoints'}"
            )
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        _average(task, step)
        meter.add(step, value, norm.item(), rate)
        if step % config.checkpoint_every == 0 and step < config.steps:
            save_checkpoint(run, step, task.model, task.ema, optimizer, config.keep_checkpoints)
    return step


def _attention_kernel(device: torch.device):
    """On a CPU the fused attention's backward takes 40 % of a nano step; with the plain one steps are 1.3× faster."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else contextlib.nullcontext()


def _networks(task: Task) -> list[torch.nn.Module]:
    return [value for value in vars(task).values() if isinstance(value, torch.nn.Module)]


def _groups(model: torch.nn.Module, weight_decay: float) -> list[dict]:
    """Matrices decay, biases and tables do not."""
    named = list(model.named_parameters())
    decay = [p for name, p in named if p.ndim >= 2 and not name.endswith("scale_shift_table")]
    rest = [p for name, p in named if p.ndim < 2 or name.endswith("scale_shift_table")]
    return [{"params": decay, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


def _resume(run: RunDir, task: Task, optimizer: torch.optim.Optimizer) -> int:
    checkpoints = run.checkpoints()
    if not checkpoints:
        return 0
    step = load_checkpoint(checkpoints[-1], task.model, task.ema, optimizer)
    print(f"resuming from {checkpoints[-1]} at step {step}", flush=True)
    return step


def _set_learning_rate(optimizer: torch.optim.Optimizer, config: TrainConfig, step: int) -> float:
    """Linear warm-up, then constant or cosine; a function of the step alone, so that resuming needs no state."""
    rate = config.learning_rate * min(1.0, (step + 1) / max(1, config.warmup_steps))
    if config.schedule == "cosine" and step >= config.warmup_steps:
        progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
        low = config.final_learning_rate
        rate = config.learning_rate * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress)))
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate


@torch.no_grad()
def _average(task: Task, step: int) -> None:
    torch._foreach_lerp_(list(task.ema.parameters()), list(task.model.parameters()), 1 - task.ema_decay(step))


class _Meter:
    """Averages what is logged, writes metrics and status, and prints a line with the time left."""

    def __init__(self, run: RunDir, config: TrainConfig, step: int):
        self.run, self.config = run, config
        self.losses: list[float] = []
        self.first, self.started = step, time.monotonic()

    def add(self, step: int, loss: float, norm: float, rate: float) -> None:
        self.losses.append(loss)
        if step % self.config.log_every and step < self.config.steps:
            return
        mean, self.losses = sum(self.losses) / len(self.losses), []
        seconds = (time.monotonic() - self.started) / (step - self.first)
        left = seconds * (self.config.steps - step)
        self.run.log(step=step, loss=mean, gradient_norm=norm, learning_rate=rate, seconds_per_step=seconds)
        self.run.write_status("running", step=step, steps=self.config.steps, loss=mean, seconds_left=left)
        line = (
            f"step {step}/{self.config.steps} loss {mean:.5f} gradient {norm:.3f} rate {rate:.2e} "
            f"{seconds:.3f} s/step, {left / 60:.1f} min left"
        )
        print(line, end="\r" if sys.stdout.isatty() else "\n", flush=True)


class _StopSignal:
    """SIGTERM and Ctrl-C ask for a save and an orderly end."""

    def __init__(self):
        self.received = False
        for kind in (signal.SIGTERM, signal.SIGINT):
            signal.signal(kind, self._receive)

    def _receive(self, *_arguments) -> None:
        self.received = True
