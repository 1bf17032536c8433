"""The training loop: one step after another, with metrics, samples, checkpoints, requests, stop and resume."""

from __future__ import annotations

import collections
import contextlib
import errno
import math
import traceback

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from .checkpoint import check_disk, resume, save_checkpoint
from .config import TrainConfig
from .data import FeatureDataset
from .distribute import connect, on_main
from .engine import Engine
from .monitor import Monitor
from .outcome import Outcome
from .run_dir import RunDir
from .stop import StopSignal
from .tasks import TASKS

EXPLODED = 1e4
"""No objective here has a loss of more than a few: noise has unit variance, and so have latents."""


class TrainingError(RuntimeError):
    """A run that cannot go on; the last good checkpoint is kept."""


def train(command: str, config: TrainConfig) -> None:
    """Run, or resume, until config.steps; ends early, saved, on SIGTERM, Ctrl-C or the request `stop`.

    Raises:
        TrainingError: if the loss explodes, memory or disk run out, or another process of the run is lost.
        RunDirError, CheckpointError, DataError, ConfigError: if it cannot begin.
    """
    accelerator = connect(config)
    run = RunDir(config.run)
    monitor = Monitor(run, config, accelerator.device, silent=not accelerator.is_main_process)
    with contextlib.ExitStack() as held:
        stop = held.enter_context(StopSignal())
        on_main(accelerator, lambda: _open(run, command, config, held))
        held.callback(monitor.close)
        try:
            monitor.say_state("preparing")
            training = Training(command, config, accelerator, run, monitor, stop)
            training.run_steps()
            training.finish()
        except Exception as error:
            failure = _explained(error, run, config)
            _record(failure, run, monitor, accelerator)
            if failure is error:
                raise
            raise failure from error
    accelerator.end_training()


def _open(run: RunDir, command: str, config: TrainConfig, held: contextlib.ExitStack) -> None:
    """Take the folder, unless it is another's."""
    run.create()
    held.enter_context(run.lock())
    run.write_config(command, config.to_dict())
    run.remove_leftovers()
    for name in run.requests():  # of an earlier process
        run.take(name)


class Training:
    """A run under way: the engine, its data, and what happens between steps."""

    def __init__(
        self, command: str, config: TrainConfig, accelerator: Accelerator, run: RunDir, monitor: Monitor,
        stop: StopSignal,
    ):  # fmt: skip
        self.config, self.accelerator, self.run, self.monitor, self.stop = config, accelerator, run, monitor, stop
        self.data = FeatureDataset(config.data)
        self.engine = Engine(config, TASKS[command](config), accelerator)
        on_main(accelerator, lambda: check_disk(run, self.engine))
        self.saved: int | None = None
        """Step of the newest checkpoint."""
        self.step = self._resume()
        self._asked: set[str] = set()
        self._unread: collections.deque[Outcome] = collections.deque()
        self._ahead = 1 if accelerator.device.type == "cuda" else 0

    def run_steps(self) -> None:
        """Steps until the last one, or until somebody asks to stop."""
        config = self.config
        batches = self.data.batches(
            config.batch_size, config.seed, self.step * config.accumulation, self.accelerator.process_index,
            self.accelerator.num_processes, config.workers, self.engine.task.needs_hint,
        )  # fmt: skip
        while self.step < config.steps and "stop" not in self._asked:
            wishes = self._wishes()
            result = self.engine.step(self.step, batches)
            self.step += 1
            self._read(Outcome(result, wishes, self.accelerator))
            if self._is_due("sample", config.sample_every):
                self._sample()
            if self._is_due("save", config.checkpoint_every):
                self._save()

    def finish(self) -> None:
        """Save and export."""
        self._save()
        with self.engine.whole():
            on_main(self.accelerator, self._export)

    def _export(self) -> None:
        exported = self.engine.task.export(self.run.path / "exports", self.step)
        state = "done" if self.step >= self.config.steps else "stopped"
        self.monitor.say_state(state, step=self.step, seconds_left=0, export=str(exported))
        self.monitor.say(f"{state} at step {self.step} of {self.config.steps}: {exported}")

    def _resume(self) -> int:
        checkpoint = resume(self.run, self.engine, self.monitor.say)
        if checkpoint is None:
            on_main(self.accelerator, lambda: self.run.forget_metrics(after=0))
            self.monitor.begin(0, [])
            return 0
        step, before = checkpoint.facts["step"], checkpoint.facts["global_batch"]
        on_main(self.accelerator, lambda: self.run.forget_metrics(after=step))
        self.monitor.say(f"resuming from {checkpoint.path} at step {step}")
        if before != self.engine.global_batch:
            self.monitor.say(
                f"a micro-batch had {before} pictures over all processes and now has {self.engine.global_batch}: "
                "the order of the data begins anew from here"
            )
        self.saved, self.monitor.status["checkpoint"] = step, checkpoint.path.name
        self.monitor.begin(step, checkpoint.facts["pending"])
        return step

    def _wishes(self) -> list[str]:
        """What is asked of the next step. A request is taken here, once."""
        wishes = ["stop"] if self.stop.received else []
        if self.accelerator.is_main_process:
            for name in self.run.requests():
                self.run.take(name)
                wishes.append(name)
        return wishes

    def _is_due(self, name: str, every: int) -> bool:
        asked = name in self._asked
        self._asked.discard(name)
        return asked or bool(every) and self.step % every == 0

    def _read(self, newest: Outcome) -> None:
        """Take in what steps gave. On a GPU the newest is left for later, so that the next step is queued meanwhile."""
        self._unread.append(newest)
        self._read_all_but(self._ahead)

    def _read_all_but(self, ahead: int) -> None:
        while len(self._unread) > ahead:
            outcome = self._unread.popleft()
            self._check(outcome)
            result = outcome.result
            self.monitor.add(result.step, outcome.loss, outcome.norm, result.learning_rate, result.data_seconds)
            self._asked |= outcome.wishes

    def _check(self, outcome: Outcome) -> None:
        """Raise if a step's loss exploded. All processes see the same loss, so all raise."""
        scaler = self.engine.scaler
        overflow_is_normal = scaler.is_enabled() and scaler.get_scale() >= 1
        good = math.isfinite(outcome.loss) and outcome.loss < EXPLODED
        if good and (math.isfinite(outcome.norm) or overflow_is_normal):
            return
        bad = not math.isfinite(outcome.result.loss.item())
        batches = gather_object([(bad, outcome.result.keys)])
        if not self.accelerator.is_main_process:
            raise SystemExit(1)
        some_are_bad = any(is_bad for is_bad, _ in batches)
        names = [name for is_bad, keys in batches if is_bad or not some_are_bad for name in keys]
        checkpoint = self.monitor.status.get("checkpoint", "none yet")
        raise TrainingError(
            f"the loss is {outcome.loss:.4g} and the gradient norm {outcome.norm:.4g} at step {outcome.result.step}, "
            f"batch {', '.join(names)}: lower learning_rate, use precision=fp32, or look at these pictures; the last "
            f"good checkpoint: {checkpoint}"
        )

    def _save(self) -> None:
        self._read_all_but(0)  # so that nothing that exploded is saved
        if self.saved == self.step:
            return
        path = save_checkpoint(self.run, self.engine, self.step, self.monitor.pending, self.config.keep_checkpoints)
        self.saved = self.step
        self.monitor.say_state("running", step=self.step, checkpoint=path.name)

    def _sample(self) -> None:
        with self.engine.whole():
            on_main(self.accelerator, self._draw_samples)

    def _draw_samples(self) -> None:
        drawn = self.engine.task.sample(self.config.sample_count)
        if drawn is None:
            self.monitor.say("no samples: the setting `models` names no pipeline folder to make them with")
        else:
            self.monitor.picture(self.step, *drawn)


def _explained(error: Exception, run: RunDir, config: TrainConfig) -> Exception:
    """The error with what it means and the way out, where the bare one does not say."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return TrainingError(f"the disk of {run.path} is full: free some space and run the same command again")
    if isinstance(error, torch.OutOfMemoryError):
        return TrainingError(
            f"the device is out of memory with batch_size={config.batch_size}: lower it (and raise accumulation), or "
            "set gradient_checkpointing=true, optimizer=adamw8bit, precision=bf16"
        )
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return TrainingError(
            f"torch.compile does not work here ({str(error).strip().splitlines()[0]}): it needs a C++ compiler on a "
            "CPU and Triton on a GPU; install it, or set compile=false"
        )
    if isinstance(error, torch.distributed.DistError) or "third_party/gloo" in str(error):
        return TrainingError(f"another process of this run ended, see log.txt for the reason: {error}")
    return error


def _record(error: Exception, run: RunDir, monitor: Monitor, accelerator: Accelerator) -> None:
    """Leave the reason in the folder; the disk may be full, and another error must not hide this one."""
    with contextlib.suppress(OSError):
        details = "" if isinstance(error, (TrainingError, ValueError)) else f"\n{traceback.format_exc()}"
        run.append_log(f"process {accelerator.process_index} failed: {error}{details}")
    with contextlib.suppress(OSError):
        monitor.say_state("failed", message=str(error))
