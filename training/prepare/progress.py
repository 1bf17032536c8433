"""How far `prepare` is: lines on the console, status.json in the folder of a run; and the wish to stop."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import psutil

from ..config import PrepareConfig
from ..machine import StopSignal, duration
from ..run_dir import RunDir

_STATUS_SECONDS = 1.0
_LINE_SECONDS = {True: 0.1, False: 10.0}
"""Between lines: on a terminal, where the next one takes the place of the last, and elsewhere."""


class Stopped(Exception):
    """Somebody asked to end: what is under way is given up, what is finished stays."""


class Progress:
    """Counts pictures, in two rounds: those looked at (state `preparing`), then those of this part encoded (`running`).

    Args:
        run: where the status goes; None = nowhere.
        stop: raised by the system.
    """

    def __init__(self, run: RunDir | None, stop: StopSignal):
        self.run, self.stop = run, stop
        self.status: dict[str, Any] = {"started": psutil.Process().create_time(), "step": 0, "steps": 0}
        self._state, self._verb = "preparing", ""
        self.kept = 0
        """Encoded pictures that need not be encoded again."""
        self._worked = 0
        """Those that took time, unlike those that were done before."""
        self._began = self._said = self._written = time.monotonic()

    def begin(self, state: str, verb: str, total: int) -> None:
        """A round is next.

        Args:
            verb: of its lines: "looked at".
            total: its pictures.

        Raises:
            Stopped: if somebody asked for the end.
        """
        self._state, self._verb, self._worked, self.kept = state, verb, 0, 0
        self._began = self._said = time.monotonic()
        self.status |= {"step": 0, "steps": total, "seconds_left": None, "pictures_per_second": None}
        self.say_state(state)
        self.check()  # only now: who reads the status of one that was stopped wants to know how much there is

    def skip(self, count: int) -> None:
        """So many pictures were done before."""
        if not self._worked:
            self._began = time.monotonic()
        self.status["step"] += count
        self._tell()

    def add(self, count: int) -> None:
        """So many more pictures are done."""
        self._worked += count
        self.status["step"] += count
        now = time.monotonic()
        rate = self._worked / max(now - self._began, 1e-9)
        left = (self.status["steps"] - self.status["step"]) / rate
        self.status |= {"seconds_left": left, "pictures_per_second": rate}
        if now - self._said >= _LINE_SECONDS[sys.stdout.isatty()]:
            self._said = now
            print(self._line(), end="\r" if sys.stdout.isatty() else "\n", flush=True)
        self._tell()

    def keep(self) -> None:
        """What is encoded so far is on the disk."""
        self.kept = self.status["step"]

    def check(self) -> None:
        """Raises Stopped if somebody asked for the end."""
        if self.stop.received:
            raise Stopped

    def end(self) -> None:
        """A round is over."""
        self.say_state(self._state)
        if self._worked:
            say(self._line())

    def say_state(self, state: str, **values: Any) -> None:
        """Write the status now; `values` stay in it."""
        self.status |= values
        if self.run is not None:
            self._written = time.monotonic()
            self.run.write_status(state, **self.status)

    def _tell(self) -> None:
        """Write the status and look at requests, unless that was just done."""
        if self.run is None or time.monotonic() - self._written < _STATUS_SECONDS:
            return
        self.say_state(self._state)
        for name in self.run.requests():  # there is nothing to sample, and what is finished is saved
            self.run.take(name)
            self.stop.received |= name == "stop"

    def _line(self) -> str:
        step, steps = self.status["step"], self.status["steps"]
        rate, left = self.status["pictures_per_second"], duration(self.status["seconds_left"])
        return f"{self._verb} {step}/{steps} pictures, {rate:.1f} pictures/s, {left} left"


@contextlib.contextmanager
def follow(config: PrepareConfig, silent: bool) -> Iterator[Progress]:
    """The progress of a preparation, whose end the status tells, whatever it is. Swallows `Stopped`.

    Args:
        silent: keep no status.

    Raises:
        RunDirError: if another process works in config.run, or it holds a training.
    """
    silent = silent or int(os.environ.get("RANK", 0)) > 0  # all processes of torchrun are told the same folder
    run = RunDir(config.run) if config.run and not silent else None
    with contextlib.ExitStack() as held:
        progress = Progress(run, held.enter_context(StopSignal("" if silent else "stopping: finished shards stay")))
        if run is not None:
            held.enter_context(run.open("prepare", config.to_dict()))
        try:
            progress.say_state("preparing")
            yield progress
            progress.say_state("done", seconds_left=0)
        except Stopped:
            progress.say_state("stopped", step=progress.kept)
            say("stopped: the same command goes on, and makes only the shards that are not there yet")
        except Exception as error:
            with contextlib.suppress(OSError):  # a full disk must not hide the reason
                progress.say_state("failed", message=str(error))
            raise


def say(text: str) -> None:
    """A line for people."""
    print(text, flush=True)
