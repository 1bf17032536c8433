"""The run folder: what a run writes, and how others read it and make requests. Standard library only.

config.json      {"command", "config", "contents"}, written before the first step, and again when a run was resumed
status.json      state (preparing, running, done, stopped, failed), pid, started, time, step, steps, loss, …
metrics.jsonl    one JSON object a line
samples/         step_00000500.png, one grid of pictures, and step_00000500.json
checkpoints/     step_00000500.safetensors …
exports/         small files for use elsewhere
tensorboard/     event files
log.txt          the lines that the console shows
control/         empty files `stop`, `save`, `sample`: requests, which the run deletes when it takes them
lock             held by the one process that trains here

Where others may write into the run folder, as into ComfyUI's output folder, a run is given a second, private folder:
config.json, status.json and control/ are read there, and both files are written to the run folder too, for people.
Nothing there then says whether the run goes on, and with what.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..pixart_core.leftovers import remove_leftovers
from . import storage
from .config import COMMANDS, TrainConfig
from .machine import require_room

Identify = Callable[[str, str], str | None]
"""(setting, its value) -> a name of what is there; None if it cannot be read."""
REQUESTS = ("stop", "save", "sample")
_FOLDERS = ("checkpoints", "samples", "exports", "control")


class RunDirError(ValueError):
    """A folder that holds no run, another run, or a run that is under way."""


class RunDir:
    """One run's folder. Reading and requesting makes nothing; `create` does.

    Args:
        path: the folder, which need not exist.
        private: folder for settings, status and requests, if others may write into `path`.
        identify: of data/contents.py, by which what it starts from is known wherever it lies; without it, by its path.
    """

    def __init__(self, path: str | Path, private: str | Path = "", identify: Identify | None = None):
        self.path, self._identify = Path(path), identify
        self.is_private = bool(private)
        self._desk = Path(private) if private else self.path

    def create(self) -> RunDir:
        """Make the folder and its parts; those that exist stay as they are."""
        for name in _FOLDERS:
            (self._folder_of(name) / name).mkdir(parents=True, exist_ok=True)
        return self

    @contextlib.contextmanager
    def lock(self, patience: float = 1.0) -> Iterator[None]:
        """Hold the folder for this process; freed when the block ends or the process does, however it ends.

        Args:
            patience: seconds to wait for another process, whose look at the lock (`is_running`) takes a moment.

        Raises:
            RunDirError: if another process trains here.
        """
        with contextlib.ExitStack() as held:
            try:
                file = held.enter_context(storage.locked(self.path / "lock", patience, storage.try_named_lock))
            except storage.LockHeldError as error:
                raise RunDirError(
                    f"{self.path} is in use by another training ({error.holder or 'starting'}): "
                    "stop that one first, or choose another run folder"
                ) from error
            if hasattr(os, "register_at_fork"):  # a forked data worker that outlives us must not keep the lock
                os.register_at_fork(after_in_child=file.close)
            file.truncate(0)
            file.write(f"process {os.getpid()}")
            file.flush()
            yield
            file.truncate(0)

    @contextlib.contextmanager
    def open(self, command: str, config: dict[str, Any]) -> Iterator[None]:
        """Hold the folder, which is made if missing, for a process with these settings; what an earlier process left
        half-written or unanswered is removed.

        The settings of a run that has checkpoints stay until it was resumed: what it holds must stay usable if it
        cannot be.

        Raises:
            RunDirError: if another process works here, or the folder holds another run.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with self.lock():
            self.check_config(command, config)
            if not self.has_begun():
                self.write_config(command, config)
            self.remove_leftovers()
            for name in self.requests():
                self.take(name)
            yield

    def is_running(self) -> bool:
        """Whether a live process trains here, whatever its last status says."""
        try:
            with open(self.path / "lock", "r+", encoding="utf-8") as file:
                return not storage.try_named_lock(file)
        except FileNotFoundError:
            return False

    def has_begun(self) -> bool:
        """Whether there is something that another run's settings would spoil. A checkpoint that somebody laid into the
        run folder of a private run without settings is none of it."""
        return bool(self.checkpoints()) and not (self.is_private and not (self._desk / "config.json").exists())

    def check_config(self, command: str, config: dict[str, Any]) -> None:
        """Whether these settings may begin or resume here: a resumed run is the same command on the same material.

        A run without a checkpoint, as one that failed over a misspelt path, has nothing to lose.

        Raises:
            RunDirError: if the folder holds another run.
        """
        if not self.has_begun():
            return
        earlier, kind = self.read_config(), COMMANDS[command]
        fixed = kind.marked("content") | kind.marked("fixed")
        differing = [
            f"{name} was {earlier['config'].get(name)!r} and is {config.get(name)!r}"
            for name, default in fixed.items()  # an earlier version did not know, and so had, what is the default now
            if earlier["config"].get(name, default) != config.get(name, default)
            and not (name in kind.marked("content") and self._moved(earlier, name, config))
        ]
        if earlier["command"] != command:
            differing = [f"its command was {earlier['command']}, not {command}"]
        done = self._steps_taken()
        if not differing and config.get("steps", 0) <= done:
            self._check_finished(done, earlier["config"], config, {*fixed, *kind.marked("free")})
        if differing:
            raise RunDirError(
                f"{self.path} holds another run ({'; '.join(differing)}): give it its own settings, choose a new "
                "folder, or delete it"
            )

    def _steps_taken(self) -> int:
        """Steps that the newest checkpoint has taken."""
        found = [re.search(r"\d+", file.stem) for file in self.checkpoints()]
        return max((int(number[0]) for number in found if number), default=0)

    def _check_finished(self, done: int, before: dict[str, Any], now: dict[str, Any], others: set[str]) -> None:
        """Raise if another setting is given and no step is left: it would change nothing but the result's name."""
        differing = [
            f"{name} was {before[name]!r} and is {now[name]!r}"
            for name in before.keys() & now.keys() - others
            if before[name] != now[name]
        ]
        if differing:
            raise RunDirError(
                f"{self.path} has taken all of its {done} steps, so nothing would be trained with other settings "
                f"({'; '.join(sorted(differing))}): raise steps to go on with them, choose a new folder, or give "
                "its own settings"
            )

    def _moved(self, earlier: dict[str, Any], name: str, config: dict[str, Any]) -> bool:
        """Whether a setting names the same files as before in another place."""
        was, now, identify = earlier["config"].get(name) or "", config.get(name) or "", self._identify
        if identify is None or not was or not now:
            return False
        known = earlier.get("contents", {}).get(name) or identify(name, was)
        # Runs of earlier versions did not note it: what is no longer where it was has been moved here.
        return identify(name, now) == known if known else identify(name, now) is not None and not Path(was).exists()

    def write_config(self, command: str, config: dict[str, Any]) -> dict[str, str]:
        """Keep the settings of a run; raises as `check_config`.

        Returns:
            Names of what base, student and data hold, by setting, as far as they can be read.
        """
        self.check_config(command, config)
        contents: dict[str, str] = {}
        for name in COMMANDS[command].marked("content"):
            if self._identify is not None and (found := self._identify(name, config.get(name) or "")) is not None:
                contents[name] = found
        about = {"command": command, "config": config}
        self._publish("config.json", about | ({"contents": contents} if contents else {}))
        return contents

    def read_config(self) -> dict[str, Any]:
        """{"command", "config", "contents"} of the run; contents only where it was known.

        Raises:
            RunDirError: if the folder holds no run.
        """
        return self._read("config.json")

    def write_status(self, state: str, **values: Any) -> None:
        """Replace the status. `values` are those of `training/watch/monitor.py`: step, steps, loss, message, …"""
        self._publish("status.json", {"state": state, "pid": os.getpid(), "time": time.time(), **values})

    def read_status(self) -> dict[str, Any]:
        """The last status. After a `kill -9` it still says "running": `is_running` knows better.

        Raises:
            RunDirError: if the folder holds no run.
        """
        return self._read("status.json")

    def log(self, **values: Any) -> None:
        """Add a line of metrics."""
        with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """All lines of metrics. A last one that is being written is left out, and so is a damaged one, as a loss of
        power leaves it.

        Raises:
            RunDirError: if there is something else in the place of their file, or it may not be read.
        """
        return self._metrics()[0]

    def _metrics(self) -> tuple[list[dict[str, Any]], int]:
        """All lines that can be read, and how many cannot."""
        file = self.path / "metrics.jsonl"
        try:
            lines = file.read_bytes().splitlines(keepends=True)
        except FileNotFoundError:
            return [], 0
        except OSError as error:
            raise RunDirError(f"{file} cannot be read: {error.strerror or error}") from error
        rows = [_metrics_line(line) for line in lines if line.endswith(b"\n")]
        good = [row for row in rows if row is not None]
        return good, len(rows) - len(good)

    def forget_metrics(self, after: int) -> int:
        """Drop the lines of steps that a run resumed at step `after` takes again, and those that cannot be read; how
        many the latter were."""
        lines, damaged = self._metrics()
        kept = [line for line in lines if line["step"] <= after]
        file = self.path / "metrics.jsonl"
        if file.exists():
            with storage.replacing(file, _beside(file)) as temporary:
                temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), "utf-8")
        return damaged

    def append_log(self, line: str) -> None:
        """Add a line (or several) to log.txt."""
        with open(self.path / "log.txt", "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(line + "\n")

    def request(self, name: str) -> None:
        """Ask the run to `stop` (save, export, end), to `save` (with an export) or to `sample` now.

        Raises:
            ValueError: on another name.
            RunDirError: if the folder holds no run.
        """
        if name not in REQUESTS:
            raise ValueError(f"no request {name!r}: choose one of {', '.join(REQUESTS)}")
        if not self.is_private:
            self.read_config()
        (self._desk / "control").mkdir(exist_ok=True)
        (self._desk / "control" / name).touch()

    def requests(self) -> list[str]:
        """What was asked for and not yet taken."""
        return [name for name in REQUESTS if (self._desk / "control" / name).exists()]

    def take(self, name: str) -> None:
        """Delete a request, because it is being done."""
        (self._desk / "control" / name).unlink(missing_ok=True)

    def checkpoint(self, step: int) -> Path:
        """File of the checkpoint after `step` steps."""
        return self.path / "checkpoints" / f"step_{step:08d}.safetensors"

    def checkpoints(self) -> list[Path]:
        """All checkpoints, oldest first."""
        return sorted((self.path / "checkpoints").glob("step_*.safetensors"))

    def require_room(self, size: float, config: TrainConfig) -> None:
        """Whether the checkpoints of a training, of `size` bytes each, will fit beside what is on the disk.

        Raises:
            DiskError: if they will not.
        """
        needed = size * (config.kept_checkpoints + 1) - sum(file.stat().st_size for file in self.checkpoints())
        way_out = f"lower keep_checkpoints ({config.keep_checkpoints})"
        require_room(self.path, needed, f"the checkpoints of {self.path}", way_out)

    def sample(self, step: int) -> Path:
        """File of the grid of pictures after `step` steps; its .json is beside it."""
        return self.path / "samples" / f"step_{step:08d}.png"

    def samples(self) -> list[Path]:
        """All grids of pictures, oldest first."""
        return sorted((self.path / "samples").glob("step_*.png"))

    def remove_leftovers(self) -> None:
        """Delete half-written files of a process that was killed; call it while holding the lock."""
        for folder in (self.path, self._desk, *(self._folder_of(name) / name for name in _FOLDERS)):
            for file in (*folder.glob("*.tmp"), *folder.glob(".tmp??????")):  # the latter safetensors' own, of before
                if file.is_file():
                    file.unlink()
        for name in ("checkpoints", "exports"):
            remove_leftovers(self.path / name)  # what weights are written in: a folder with a lock of its own

    def _folder_of(self, name: str) -> Path:
        """The folder that one of `_FOLDERS`, or a file that is read, is in."""
        return self._desk if name in ("control", "config.json", "status.json") else self.path

    def _publish(self, name: str, values: dict[str, Any]) -> None:
        """Replace a JSON file where it is read, and its copy for people."""
        _replace_json(self._desk / name, values)
        if self.is_private:
            with contextlib.suppress(OSError):  # whatever lies there instead
                _replace_json(self.path / name, values)

    def _read(self, name: str) -> dict[str, Any]:
        file = self._folder_of(name) / name
        try:
            values = json.loads(storage.patiently(file.read_bytes))  # bytes: a byte-order mark is found
            if not isinstance(values, dict):
                raise ValueError("it holds no named values")
            return values
        except FileNotFoundError as error:
            raise RunDirError(f"{self.path} holds no run: there is no {name}") from error
        except (OSError, ValueError, RecursionError) as error:
            raise RunDirError(f"{file} is damaged ({error}): delete it") from error


def _beside(file: Path) -> Path:
    """Where it is written: of one name, because one process alone writes here, and removed after a kill."""
    return file.with_suffix(".tmp")


def _replace_json(file: Path, values: dict[str, Any]) -> None:
    """Replace a JSON file in one go; on a full disk overwrite it in place, where its blocks are."""
    try:
        storage.replace_json(file, values, _beside(file))
    except OSError:
        with open(file, "r+", encoding="utf-8") as opened:
            opened.write(json.dumps(values, indent=1))
            opened.truncate()


def _metrics_line(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    good = isinstance(row, dict) and type(row.get("step")) is int and isinstance(row.get("loss"), (int, float))
    return row if good else None
