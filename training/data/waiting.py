"""Waiting for a store that is busy or out of reach, while status and log say so and a wish to stop is answered."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, TypeVar

from ..machine import duration
from .shards import DataError

Result = TypeVar("Result")
Get = Callable[[Callable[[], Any]], Any]
"""How a result is asked for: `at_once`, or `Patience.get`."""
logger = logging.getLogger(__name__)

LIMIT = 3 * 3600.0
"""Seconds that a training waits for a store that does not answer."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0
"""Seconds between the first two attempts, and between the last ones: each pause is twice the one before."""
_TICK = 0.25
"""Seconds between looks at what was asked for."""
_SLOW = 5.0
"""Seconds after which an attempt that is under way is called waiting."""


class StoreBusy(DataError):
    """A file cannot be read now and may be later: the store is busy, out of reach, or broke off in the middle."""


class Interrupted(Exception):
    """Somebody asked for the end while data was waited for."""


def aside(action: Callable[[], Result]) -> Future[Result]:
    """A call in a thread of its own, which can be left behind: it ends by itself, or with the process."""
    call: Future[Result] = Future()

    def run() -> None:
        try:
            call.set_result(action())
        except BaseException as error:  # an iterator's end, too, is the business of whoever waits
            call.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return call


def has_ended(call: Future[Any], seconds: float) -> bool:
    """Whether a call has ended, at the latest after so long."""
    return bool(wait([call], seconds).done)


def at_once(action: Callable[[], Result]) -> Result:
    """`action` without any patience: for what is on this machine."""
    return action()


class Patience:
    """Repeats what raises `StoreBusy`, with growing pauses.

    Args:
        say: told lines for people: what is waited for, now and then, and that it is over.
        show: told what is waited for as long as it is, every few seconds, and "" when it is over.
        asked: whether somebody asked for the end.
        limit: seconds after which a store that never answered is given up.
        agree: makes of (whether this process has what it wants, whether it was asked for the end) the same for all
            processes: whether all have it, whether any was asked. All of them call it equally often.
    """

    def __init__(
        self,
        say: Callable[[str], None] = logger.warning,
        show: Callable[[str], None] = lambda _text: None,
        asked: Callable[[], bool] = lambda: False,
        agree: Callable[[bool, bool], tuple[bool, bool]] = lambda ready, stop: (ready, stop),
        limit: float = LIMIT,
    ):
        self._say, self._show, self._asked, self._agree, self._limit = say, show, asked, agree, limit

    def get(self, action: Callable[[], Result]) -> Result:
        """What `action` returns, as soon as it does.

        Raises:
            Interrupted: if somebody asked for the end meanwhile; `action` may then still be under way.
            StoreBusy: if `limit` has passed.
        """
        going = _Wait(action, self._limit)
        while True:
            going.look()
            ready, stop = self._agree(going.ready, self._asked())
            if ready:
                if going.said:
                    self._say(f"the data is there again after {duration(going.seconds())}")
                    self._show("")
                return going.call.result()
            if stop:
                self._show("")
                raise Interrupted
            self._tell(going)

    def _tell(self, going: _Wait) -> None:
        text = going.text()
        if text and going.is_news():
            self._say(text)
        if text:
            self._show(text)


class _Wait:
    """One result on its way: an attempt, or the pause after one."""

    def __init__(self, action: Callable[[], Any], limit: float):
        self.action, self.begun, self._limit = action, time.monotonic(), limit
        self.call, self._asked = aside(action), self.begun
        self.problem, self.said = "", ""
        self._pause, self._again = FIRST_PAUSE, 0.0
        self._paused = False

    @property
    def ready(self) -> bool:
        return not self._paused and self.call.done() and self.call.exception() is None

    def seconds(self) -> float:
        """Since it was first asked for."""
        return time.monotonic() - self.begun

    def look(self) -> None:
        """Go on for at most a tick: wait for the attempt, or begin the next one. Raises what is final."""
        if self._paused:
            left = self._again - time.monotonic()
            time.sleep(min(_TICK, max(0.0, left)))
            if left <= _TICK:
                self._paused, self.call, self._asked = False, aside(self.action), time.monotonic()
        elif self.ready:
            time.sleep(_TICK)  # another process has not what it wants
        elif has_ended(self.call, _TICK) and (error := self.call.exception()) is not None:
            self._failed(error)

    def _failed(self, error: BaseException) -> None:
        if not isinstance(error, StoreBusy):
            raise error
        if self.seconds() > self._limit:
            waited = duration(self.seconds())
            raise StoreBusy(f"{error}. It was waited for {waited}: the same command goes on") from error
        self.problem = str(error)
        self._again, self._paused = time.monotonic() + self._pause, True
        self._pause = min(LONGEST_PAUSE, 2 * self._pause)

    def text(self) -> str:
        """What is waited for; empty as long as it is not worth a word."""
        if self.problem:
            return f"waiting for the data's store, for {duration(self.seconds())}: {self.problem}"
        if self.ready:
            return "waiting for another process's data" if self.seconds() > _SLOW else ""
        slow = time.monotonic() - self._asked > _SLOW
        return f"waiting for data, for {duration(self.seconds())}: no answer yet" if slow else ""

    def is_news(self) -> bool:
        """Whether the text says more than a time: another problem, or much more time."""
        state = f"{self.problem} {self._pause if self.problem else ''}"
        news, self.said = state != self.said, state
        return news
