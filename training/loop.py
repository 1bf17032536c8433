"""The training loop: one step after another, with metrics, samples, checkpoints, requests, stop and resume."""

from __future__ import annotations

import collections
import contextlib
import errno
import math
import traceback
from typing import Any

import torch

from .checkpoint import resume, save_checkpoint, without_beginning
from .config import TrainConfig
from .data import FeatureDataset
from .data.contents import identify
from .data.remote import Location
from .data.waiting import Interrupted, Patience, StoreBusy
from .distribute import Processes, connect
from .engine import Outcome, Seen, StepResult, make_engine
from .estimate import pictures_text
from .export import default_name, write_result
from .machine import DiskError, StopSignal, explain_import, out_of_memory
from .run_dir import RunDir
from .sampling import draw_examples, draw_prompts
from .task import decided, read_base
from .watch.monitor import Monitor
from .watch.prompts import Prompts, encode_prompts, own_prompts
from .watch.validation import held_out

EXPLODED = 1e4
"""No objective here has a loss of more than a few: noise has unit variance, and so have latents."""


class TrainingError(RuntimeError):
    """A run that cannot go on; the last good checkpoint is kept."""


def train(config: TrainConfig, private: str = "") -> None:
    """Run, or resume, until config.steps; ends early, saved, on SIGTERM, Ctrl-C or the request `stop`.

    Args:
        private: folder for status and requests, see `RunDir`.

    Raises:
        TrainingError: if the loss explodes, memory or disk run out, a package is missing, or another process of the run
            is lost.
        RunDirError, CheckpointError, DataError, ConfigError, DiskError: if it cannot begin.
    """
    processes = connect(config.deterministic)
    run = RunDir(config.run, private, identify)
    config = processes.on_main(lambda: decided(config, processes.device, run))
    silent = not processes.is_main
    monitor = Monitor(run, config.steps, processes.device, config.log_every, config.tensorboard, silent)
    with contextlib.ExitStack() as held:
        says = "saving and stopping after this step" if processes.is_main else ""
        stop = held.enter_context(StopSignal(says))
        processes.on_main(lambda: held.enter_context(run.create().open(config.command, config.to_dict())))
        held.callback(monitor.close)
        try:
            monitor.say_state("preparing")
            training = Training(config, processes, run, monitor, stop)
            training.run_steps()
            training.finish()
        except Interrupted:  # before anything was loaded
            monitor.say_state("stopped", message="asked to stop while the data was waited for")
        except Exception as error:
            failure = _explained(error, run, config)
            _record(failure, run, monitor, processes)
            if failure is error:
                raise
            raise failure from error
    processes.end()


class Training:
    """A run under way: the engine, its data, and what happens between steps."""

    def __init__(self, config: TrainConfig, processes: Processes, run: RunDir, monitor: Monitor, stop: StopSignal):
        self.config, self.processes, self.run, self.monitor, self.stop = config, processes, run, monitor, stop
        self.data = FeatureDataset(config.data, patience=self._patience())
        self._prompts: Prompts | None = None
        """The run's own, of the main process."""
        processes.on_main(self._encode_prompts)
        has_begun = processes.on_main(run.has_begun)
        self.engine = make_engine(without_beginning(config) if has_begun else config, self.data, processes)
        self.validation = held_out(
            self.engine.task, self.data, config.validation, config.validation_data, config.batch_size
        )
        processes.on_main(lambda: run.require_room(self.engine.checkpoint_bytes(), config))
        self.saved: int | None = None
        """Step of the newest checkpoint."""
        self.step = self.batches = 0
        """Steps taken, and micro-batches that they took: the position in the data."""
        self.whole = False
        """Whether it leaves pictures out, as a run that an earlier version began: see `FeatureDataset.batches`."""
        self._resume()
        self._say_pictures()
        self._asked: set[str] = set()
        self._unread: collections.deque[Outcome] = collections.deque()
        self._ahead = 1 if processes.device.type == "cuda" else 0

    def run_steps(self) -> None:
        """Steps until the last one, or until somebody asks to stop."""
        config = self.config
        batches = self.engine.batches(self.data, self.batches, self._workers(), self.whole)
        self._look_before_the_first_step()
        while self.step < config.steps and "stop" not in self._asked:
            wishes = self._wishes()
            try:
                result = self.engine.step(self.step, batches)
            except Interrupted:  # by all processes at the same point; what a part of the step gave is given up
                self._wishes()
                self._read_all_but(0)
                return
            self.step += 1
            self.batches += config.accumulation
            if self._is_due(config.validation_every) or self.step == config.steps:
                self._validate()
            self._read(Outcome(result, wishes, self.processes))
            if self._asked_for("sample") or self._is_due(config.sample_every):
                self._sample()
            if self._asked_for("save"):
                self._save()
                self._export("running", "saved")
            elif self._is_due(config.checkpoint_every):
                self._save()

    def _look_before_the_first_step(self) -> None:
        """What later samples and losses are compared with."""
        if self.step == 0:
            self._validate()
            if self.config.sample_every and self.config.models:
                self._sample()

    def _validate(self) -> None:
        """The loss on what is held out. All processes compute it: a sharded network needs them all."""
        if self.validation is not None:
            with self.engine.evaluated():
                losses = self.validation.losses(self.engine.task, self.engine.model)
            self.monitor.validated(self.step, losses)

    def _encode_prompts(self) -> None:
        config = self.config
        prompts = own_prompts(config.sample_prompts, config.prompt_file)
        if prompts and config.models:  # without those there are no samples
            tokens, kept = read_base(config).shape.model_max_length, self.run.path / "samples" / "embeddings"
            self._prompts = encode_prompts(prompts, config.models, tokens, kept, self.processes.device)

    def _patience(self) -> Patience:
        """How the data is waited for: said in status and log, and given up when somebody asks to stop."""
        several = self.processes.count > 1 and Location(self.config.data).is_remote
        agree: dict[str, Any] = {"agree": self.processes.agreement()} if several else {}
        return Patience(self.monitor.say, self.monitor.waiting, self._is_asked_to_stop, **agree)

    def _is_asked_to_stop(self) -> bool:
        return self.stop.received or self.processes.is_main and "stop" in self.run.requests()

    def _workers(self) -> int:
        """Processes that load data. Beside two cores that compute they cost a step as much as they save it."""
        if self.config.workers >= 0:
            return self.config.workers
        return 0 if self.processes.device.type == "cpu" and not self.data.location.is_remote else 2

    def finish(self) -> None:
        """Save and export."""
        self._save()
        state = "done" if self.step >= self.config.steps else "stopped"
        self._export(state, state)

    def _export(self, state: str, what: str) -> None:
        """Write what there is for use elsewhere, in place of what was written before."""

        def write() -> None:
            task = self.engine.task
            path = self.run.path / "exports" / default_name(task.model)
            exported = write_result(task, self.config, path, step=self.step)
            left = {} if state == "running" else {"seconds_left": 0}
            self.monitor.say_state(state, step=self.step, export=str(exported), **left)
            self.monitor.say(f"{what} at step {self.step} of {self.config.steps}: {exported}")

        with self.engine.whole():
            self.processes.on_main(write)

    def _resume(self) -> None:
        """Go to where the newest checkpoint is, if there is one."""
        checkpoint = resume(self.run, self.engine, self.monitor.say)
        facts: dict[str, Any] = {"step": 0, "pending": []} if checkpoint is None else checkpoint.facts
        self.step = facts["step"]
        if checkpoint is not None:
            self.processes.on_main(self._keep_settings)
            self.batches = self._batches_to_skip(facts)
            self.monitor.say(f"resuming from {checkpoint.path} at step {self.step}")
            self.saved, self.monitor.status["checkpoint"] = self.step, checkpoint.path.name
        damaged = self.processes.on_main(lambda: self.run.forget_metrics(after=self.step))
        if damaged:
            self.monitor.say(f"{damaged} lines of {self.run.path / 'metrics.jsonl'} are damaged and left out")
        self.monitor.begin(self.step, facts["pending"])

    def _keep_settings(self) -> None:
        """Those that the run goes on with. What it trains on may have grown, but not without a word."""
        before = self.run.read_config().get("contents", {}).get("data")
        now = self.run.write_config(self.config.command, self.config.to_dict())
        if before is not None and now.get("data") not in (before, None):
            self.monitor.say(
                f"{self.data.location} was prepared anew since: from here its pictures come in another order"
            )

    def _batches_to_skip(self, facts: dict[str, Any]) -> int:
        """Micro-batches to leave out, because their pictures were seen."""
        before, now = facts["global_batch"], self.engine.global_batch
        batches = facts.get("batches", self.step * self.config.accumulation)  # not in a file of an earlier version
        whole = facts.get("whole_batches", True)  # as all of earlier versions are
        if before == now:
            self.whole = whole and self.data.rows_per_epoch(now) > self.data.rows_per_epoch(now, whole=True)
            return batches
        self.monitor.say(
            f"a micro-batch had {before} pictures over all processes and now has {now}: from here the data comes "
            "in another order"
        )
        per_epoch = self.data.batches_per_epoch(before, whole) or 1
        return batches * self.data.batches_per_epoch(now) // per_epoch

    def _say_pictures(self) -> None:
        """What an epoch trains on, in log and status."""
        size = self.engine.global_batch
        text = pictures_text(self.data.buckets, size, self.whole, self.data.rows)
        self.monitor.status["pictures"] = text
        self.monitor.say(text)
        if self.whole:
            self.monitor.say(
                "this run was begun by an earlier version, which took whole batches alone, and goes on as it began: "
                "a new run, in a new folder, takes every picture"
            )

    def _wishes(self) -> list[str]:
        """What is asked of the next step. A request is taken here, once."""
        wishes = ["stop"] if self.stop.received else []
        if self.processes.is_main:
            for name in self.run.requests():
                self.run.take(name)
                wishes.append(name)
        return wishes

    def _asked_for(self, name: str) -> bool:
        """Whether somebody asked; once."""
        asked = name in self._asked
        self._asked.discard(name)
        return asked

    def _is_due(self, every: int) -> bool:
        return bool(every) and self.step % every == 0

    def _read(self, newest: Outcome) -> None:
        """Take in what steps gave. On a GPU the newest is left for later, so that the next step is queued meanwhile."""
        self._unread.append(newest)
        self._read_all_but(self._ahead)

    def _read_all_but(self, ahead: int) -> None:
        while len(self._unread) > ahead:
            outcome = self._unread.popleft()
            result, seen = outcome.result, outcome.read()
            self._check(result, seen)
            self.monitor.add(result.step, seen.loss, seen.norm, result.learning_rate, result.data_seconds)
            self._asked |= seen.wishes

    def _check(self, result: StepResult, seen: Seen) -> None:
        """Raise if a step's loss exploded. All processes see the same loss, so all raise."""
        overflow_is_normal = self.engine.scaler.is_enabled() and seen.scale >= 1
        good = math.isfinite(seen.loss) and seen.loss < EXPLODED
        if good and (math.isfinite(seen.norm) or overflow_is_normal):
            return
        bad = not math.isfinite(result.loss.item())
        batches = self.processes.gather((bad, result.keys))
        if not self.processes.is_main:
            raise SystemExit(1)
        some_are_bad = any(is_bad for is_bad, _ in batches)
        names = [name for is_bad, keys in batches if is_bad or not some_are_bad for name in keys]
        checkpoint = self.monitor.status.get("checkpoint", "none yet")
        raise TrainingError(
            f"the loss is {seen.loss:.4g} and the gradient norm {seen.norm:.4g} at step {result.step}, "
            f"batch {', '.join(names)}: lower learning_rate, use precision=fp32, or look at these pictures; the last "
            f"good checkpoint: {checkpoint}"
        )

    def _save(self) -> None:
        self._read_all_but(0)  # so that nothing that exploded is saved
        if self.saved == self.step:
            return
        path = save_checkpoint(
            self.run,
            self.engine,
            self.step,
            self.config.keep_checkpoints,
            batches=self.batches,
            whole_batches=self.whole,
            hint=self.engine.task.hint,
            pending=self.monitor.pending,
        )
        self.saved = self.step
        self.monitor.say_state("running", step=self.step, checkpoint=path.name)

    def _sample(self) -> None:
        with self.engine.whole():
            self.processes.on_main(self._draw_samples)

    def _draw_samples(self) -> None:
        config = self.config
        given = self.engine.task, config.data, config.models, config.sample_count
        try:
            drawn = draw_prompts(*given, self._prompts) if self._prompts else draw_examples(*given)
        except StoreBusy as error:
            self.monitor.say(f"step {self.step}: no samples, because their captions cannot be read now: {error}")
            return
        except ImportError as error:
            self.monitor.say(f"no samples: {error}")
            return
        if drawn is None:
            self.monitor.say("no samples: the setting `models` names no pipeline folder to make them with")
        else:
            self.monitor.picture(self.step, *drawn)


def _explained(error: Exception, run: RunDir, config: TrainConfig) -> Exception:
    """The error with what it means and the way out, where the bare one does not say."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return TrainingError(f"the disk of {run.path} is full: free some space and run the same command again")
    if isinstance(error, ImportError):
        return TrainingError(explain_import(error))
    if isinstance(error, torch.OutOfMemoryError):
        return TrainingError(out_of_memory(config.batch_size))
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return TrainingError(
            f"torch.compile does not work here ({str(error).strip().splitlines()[0]}): it needs a C++ compiler on a "
            "CPU and Triton on a GPU; install it, or set compile=false"
        )
    if isinstance(error, torch.distributed.DistError) or "third_party/gloo" in str(error):
        return TrainingError(f"another process of this run ended, see log.txt for the reason: {error}")
    return error


def _record(error: Exception, run: RunDir, monitor: Monitor, processes: Processes) -> None:
    """Leave the reason in the folder; the disk may be full, and another error must not hide this one."""
    with contextlib.suppress(OSError):
        details = "" if isinstance(error, (TrainingError, DiskError, ValueError)) else f"\n{traceback.format_exc()}"
        run.append_log(f"process {processes.index} failed: {error}{details}")
    with contextlib.suppress(OSError):
        monitor.say_state("failed", message=str(error))
