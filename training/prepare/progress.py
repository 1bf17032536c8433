"""How far `prepare` is: lines on the console, status.json in the folder of a run; and the wish to stop."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from typing import Any, TypeVar

import psutil
import torch

from ..config import PrepareConfig
from ..data.waiting import Get, Interrupted, Patience, at_once
from ..machine import StopSignal, duration
from ..run_dir import RunDir
from ..watch.processor import CpuShare

Item = TypeVar("Item")
_STATUS_SECONDS, _WAITING_SECONDS = 1.0, 5.0
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
        self._state, self._verb, self._noun = "preparing", "", "pictures"
        self.kept = 0
        """Encoded pictures that need not be encoded again."""
        self._worked = 0
        """Those that took time, unlike those that were done before."""
        self._began = self._said = self._written = self._aside = time.monotonic()
        self._doing, self._waited = "", 0.0
        self._cpu: CpuShare | None = None
        self.get: Get = at_once
        """How what is read is asked for: once, or with patience."""

    def be_patient(self) -> None:
        """What is read comes from a store, which may be busy: from here it is waited for, and the status says so."""
        self.get = Patience(say, self._waiting, self._is_asked_to_stop).get

    def begin(self, state: str, verb: str, total: int, noun: str = "pictures") -> None:
        """A round is next.

        Args:
            verb: of its lines: "looked at".
            total: its pictures, or what else it counts.
            noun: what it counts.

        Raises:
            Stopped: if somebody asked for the end.
        """
        self._state, self._verb, self._noun, self._worked, self.kept = state, verb, noun, 0, 0
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
        self._print(self._line())
        self._tell()

    def watch_processor(self, device: torch.device) -> None:
        """From here this process computes, on `device`: tell when other programs leave it little of the processor."""
        self._cpu = CpuShare(device, lambda notice: say(f"this preparation {notice}"), from_now=True)

    def waiting_for(self, items: Iterator[Item]) -> Iterator[Item]:
        """The items, where the time until each is there counts as none in which there was something to compute."""
        asked = time.monotonic()
        for item in items:
            self._waited += time.monotonic() - asked
            yield item
            asked = time.monotonic()

    def note(self, text: str) -> None:
        """Show what is done now, where pictures are not counted; empty when that is over."""
        is_news, self._doing = bool(text) != bool(self._doing), text
        if is_news and text:
            self._aside = time.monotonic()
        elif is_news:  # the rate is that of pictures
            self._began += time.monotonic() - self._aside
        if text:
            say(text) if is_news else self._print(text)
        self.say_state(self._state) if is_news else self._tell()

    def _look_at_cpu(self) -> str:
        """What there is to tell of the processor."""
        if self._cpu is None:
            return ""
        self._cpu.look(self._waited)
        self._waited = 0.0
        return self._cpu.notice

    def keep(self) -> None:
        """What is encoded so far is on the disk."""
        self.kept = self.status["step"]

    def _print(self, line: str) -> None:
        """Say a line now and then."""
        if time.monotonic() - self._said >= _LINE_SECONDS[sys.stdout.isatty()]:
            self._said = time.monotonic()
            print(line, end="\r" if sys.stdout.isatty() else "\n", flush=True)

    def check(self) -> None:
        """Raises Stopped if somebody asked for the end."""
        if self.stop.received:
            raise Stopped

    def end(self) -> None:
        """A round is over."""
        self.say_state(self._state)
        if self._worked:
            say(self._line())

    def _waiting(self, text: str) -> None:
        """Show what is waited for, empty when that is over."""
        if bool(text) == ("waiting" in self.status) and time.monotonic() - self._written < _WAITING_SECONDS:
            return
        self.status.pop("waiting", None)
        self.say_state(self._state, **({"waiting": text} if text else {}))

    def _is_asked_to_stop(self) -> bool:
        self._tell()
        return self.stop.received

    def say_state(self, state: str, **values: Any) -> None:
        """Write the status now; `values` stay in it."""
        self.status |= values
        self.status.pop("notice", None)
        notices = [self._doing, self._look_at_cpu()] if state == self._state else []
        if any(notices):
            self.status["notice"] = "; ".join(filter(None, notices))
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
        return f"{self._verb} {step}/{steps} {self._noun}, {rate:.1f} {self._noun}/s, {left} left"


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
        except (Stopped, Interrupted):
            progress.say_state("stopped", step=progress.kept)
            say("stopped: the same command goes on, and makes only the shards that are not there yet")
        except Exception as error:
            with contextlib.suppress(OSError):  # a full disk must not hide the reason
                progress.say_state("failed", message=str(error))
            raise


def say(text: str) -> None:
    """A line for people."""
    print(text, flush=True)
