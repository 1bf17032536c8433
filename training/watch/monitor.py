"""What a run says of itself: status, metrics and TensorBoard in its folder; a bar or lines on the console; log.txt."""

from __future__ import annotations

import json
import math
import sys
import time
from typing import Any

import psutil
import torch
from PIL import Image
from tqdm import tqdm

from ..machine import duration
from ..run_dir import RunDir, RunDirError
from ..storage import replacing
from .processor import CpuShare

_STATUS_SECONDS = 0.5
_WAITING_SECONDS = 5.0
_OF_A_PROCESS = ("state", "pid", "time", "memory", "message", "waiting", "notice")
"""Parts of a status that the next process of the run does not take over."""


class Monitor:
    """The voice of a run's main process; on the others it is silent.

    Args:
        steps: of the whole run.
        device: whose memory is reported.
        log_every: steps between lines of metrics.
        tensorboard: whether to write its events, too.
        silent: whether this is not the main process.
    """

    def __init__(
        self,
        run: RunDir,
        steps: int,
        device: torch.device,
        log_every: int = 10,
        tensorboard: bool = False,
        silent: bool = False,
    ):
        self.run, self.steps, self.device, self.silent = run, steps, device, silent
        self._every, self._wants_board = log_every, tensorboard
        self.status: dict[str, Any] = {
            "step": 0,
            **_earlier(run),
            "steps": steps,
            "device": str(device),
            "started": psutil.Process().create_time(),
        }
        self.pending: list[float] = []
        """Losses since the last line of metrics; a part of checkpoints, so that a resumed run averages the same."""
        self._validated: dict[int, dict[str, float]] = {}
        """Step -> losses on what is held out, until the step's line of metrics."""
        self._cpu = CpuShare(device, lambda notice: self.say(f"this training {notice}"))
        self._state = "preparing"
        self._written = 0.0
        self._peak = 0
        self._mark: tuple[int, float] = (0, time.monotonic())
        self._waited = 0.0
        self._board: Any = None
        self._bar: Any = None

    def begin(self, step: int, pending: list[float]) -> None:
        """Steps are next: `step` are taken, `pending` is what the checkpoint had."""
        self.pending = list(pending)
        self._mark = step, time.monotonic()
        if not self.silent:
            self._board = _open_board(self) if self._wants_board else None
            self._bar = tqdm(
                total=self.steps,
                initial=step,
                unit="step",
                disable=not sys.stdout.isatty(),
                file=sys.stdout,
                dynamic_ncols=True,
            )
        self._cpu.look()
        self.say_state("running", step=step)

    def add(self, step: int, loss: float, norm: float, rate: float, data_seconds: float) -> None:
        """A step is done."""
        if self.silent:
            return
        self.pending.append(loss)
        self._waited += data_seconds
        self._cpu.look(data_seconds)
        self._bar.update(step - self._bar.n)
        taken, seconds = step - self._mark[0], time.monotonic() - self._mark[1]
        each = seconds / taken
        self.status |= {
            "step": step,
            "loss": loss,
            "learning_rate": rate,
            "seconds_per_step": each,
            "seconds_left": each * (self.steps - step),
        }
        if self._is_due(step) or step in self._validated:
            self._log(step, norm, rate, each, self._waited / taken)
            self.pending = []
            self._mark, self._waited = (step, time.monotonic()), 0.0
        if time.monotonic() - self._written > _STATUS_SECONDS:
            self.say_state("running")

    def validated(self, step: int, losses: dict[str, float]) -> None:
        """Losses after `step` steps on what is held out, by name; they come into the step's line of metrics."""
        if self.silent:
            return
        self.status |= losses
        self.say(f"step {step}: " + ", ".join(f"{name} {value:.5f}" for name, value in losses.items()))
        if step:
            self._validated[step] = losses
        elif self._board is not None:
            for name, value in losses.items():
                self._board.add_scalar(name, value, step)

    def say(self, line: str) -> None:
        """A line for people."""
        if not self.silent:
            tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()
            self.run.append_log(line)

    def say_state(self, state: str, **values: Any) -> None:
        """Write the status now; `values` stay in it."""
        self._state = state
        self.status |= values
        if state not in ("preparing", "running"):
            self.status.pop("waiting", None)
        if not self.silent:
            self._written = time.monotonic()
            notice = {"notice": self._cpu.notice} if self._cpu.notice else {}
            self.run.write_status(state, **self.status, **notice, memory=self._memory())

    def waiting(self, text: str) -> None:
        """Show what is waited for, empty when that is over."""
        now = time.monotonic()
        if bool(text) == ("waiting" in self.status) and now - self._written < _WAITING_SECONDS:
            return
        self.status.pop("waiting", None)
        self.say_state(self._state, **({"waiting": text} if text else {}))

    def picture(self, step: int, grid: Image.Image, prompts: list[str]) -> None:
        """Keep a grid of samples."""
        file = self.run.sample(step)
        with replacing(file, file.with_suffix(".tmp")) as temporary:
            grid.save(temporary, "png")
            file.with_suffix(".json").write_text(json.dumps({"step": step, "prompts": prompts}, indent=1), "utf-8")
        if self._board is not None:
            import numpy

            self._board.add_image("samples", numpy.asarray(grid), step, dataformats="HWC")
        self.say(f"step {step}: samples in {file}")

    def close(self) -> None:
        """End the bar and the event file."""
        if self._bar is not None:
            self._bar.close()
        if self._board is not None:
            self._board.close()

    def _is_due(self, step: int) -> bool:
        return step % self._every == 0 or step == self.steps

    def _log(self, step: int, norm: float | None, rate: float, seconds: float, waited: float) -> None:
        loss = sum(self.pending) / len(self.pending)
        self.status["loss"] = loss
        if norm is not None and not math.isfinite(norm):
            norm = None  # overflowed float16: the step was left out, JSON has no infinity
        values = {
            "loss": loss,
            "gradient_norm": norm,
            "learning_rate": rate,
            "seconds_per_step": seconds,
            "data_seconds": waited,
            **self._validated.pop(step, {}),
        }
        self.run.log(step=step, **values, time=time.time())
        if self._board is not None:
            for name, value in values.items():
                if value is not None:
                    self._board.add_scalar(name, value, step)
        gradient = "overflow" if norm is None else f"{norm:.3f}"
        line = (
            f"step {step}/{self.steps} loss {loss:.5f} gradient {gradient} rate {rate:.2e} "
            f"{seconds:.3f} s/step, {duration(self.status['seconds_left'])} left"
        )
        if self._bar.disable:
            self.say(line)
        else:
            self._bar.set_postfix_str(f"loss {loss:.5f}", refresh=False)
            self.run.append_log(line)

    def _memory(self) -> int:
        """Peak bytes: of the GPU where there is one, else of this process."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        self._peak = max(self._peak, psutil.Process().memory_info().rss)
        return self._peak


def _earlier(run: RunDir) -> dict[str, Any]:
    """What the process before this one said, if it left something to go on from: true until this one gets there."""
    try:
        status = run.read_status() if run.checkpoints() else {}
    except RunDirError:  # damaged
        return {}
    return {name: value for name, value in status.items() if name not in _OF_A_PROCESS}


def _open_board(monitor: Monitor) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        monitor.say("tensorboard is not installed (pip install tensorboard): metrics go to metrics.jsonl alone")
        return None
    return SummaryWriter(str(monitor.run.path / "tensorboard"), purge_step=monitor.status["step"] + 1)
