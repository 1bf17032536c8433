"""The run folder: what a run writes, and how others read it. Standard library only.

config.json      the settings, written before the first step
status.json      state, step, steps, loss, seconds a step, message
metrics.jsonl    one JSON object a line
checkpoints/     step_00000500.safetensors …
exports/         small files for use elsewhere
stop             a file of this name asks the run to save and end
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any


class RunDir:
    """One run's folder; made when missing."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        for name in ("checkpoints", "exports"):
            (self.path / name).mkdir(parents=True, exist_ok=True)

    def write_config(self, command: str, config: dict[str, Any]) -> None:
        """Keep the settings of a new run; a resumed one must be the same command on the same base and data.

        Raises:
            ValueError: if the folder holds another run.
        """
        file = self.path / "config.json"
        if file.exists():
            earlier = json.loads(file.read_text())
            differing = [
                name
                for name in ("base", "data", "model", "seed", "batch_size")
                if earlier["config"].get(name) != config.get(name)
            ]
            if earlier["command"] != command or differing:
                what = ", ".join(differing) or f"command {earlier['command']}"
                raise ValueError(f"{self.path} holds another run ({what} differs): choose a new folder, or delete it")
        self._write(file, {"command": command, "config": config})

    def write_status(self, state: str, **values: Any) -> None:
        """state: running, stopped, done or failed."""
        self._write(self.path / "status.json", {"state": state, "pid": os.getpid(), "time": time.time(), **values})

    def read_status(self) -> dict[str, Any]:
        """The last status.

        Raises:
            FileNotFoundError: if the folder holds no run.
        """
        file = self.path / "status.json"
        if not file.exists():
            raise FileNotFoundError(f"{self.path} holds no run: there is no status.json")
        return json.loads(file.read_text())

    def log(self, **values: Any) -> None:
        """Add a line of metrics."""
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(values) + "\n")

    def stop_requested(self) -> bool:
        """Whether somebody asked the run to save and end."""
        return (self.path / "stop").exists()

    def clear_stop(self) -> None:
        """Forget an earlier request, at the start."""
        (self.path / "stop").unlink(missing_ok=True)

    def checkpoint(self, step: int) -> Path:
        """File of the checkpoint after `step` steps."""
        return self.path / "checkpoints" / f"step_{step:08d}.safetensors"

    def checkpoints(self) -> list[Path]:
        """All checkpoints, oldest first."""
        return sorted((self.path / "checkpoints").glob("step_*.safetensors"))

    @staticmethod
    def _write(file: Path, values: dict[str, Any]) -> None:
        temporary = file.with_suffix(".tmp")
        temporary.write_text(json.dumps(values, indent=1))
        temporary.replace(file)
