"""What a figure needs, each made once and kept: scenes and their features, trainings, and what is measured on them.

Everything is a command of `training/train.py`, which resumes by itself; a training's folder is named by its settings,
so that figures share those that they have in common.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..comfy_server import ROOT
from . import plots
from .figures import COMMON, MEASURED_EVERY, SEEDS, Figure

TRAIN = ROOT / "training" / "train.py"
NANO = ROOT / "models" / "nano"
"""The family that is trained: a step of the larger one takes four times as long."""
EDGES = NANO / "hed" / "hed.safetensors"
PICTURES = 1200
CAPTIONS = 72
"""Of the hard ones: every thing in every size six times, and more than the 64 that a Fréchet distance needs."""
NOISES = 3
"""Seeds of the sampling noise."""
STEPS = (1, 2, 4)
SCENES = 48
"""That a control is measured on."""
SHOWN_SCENES = (0, 1, 4, 5)
"""Square ones."""


def base_of(folder: Path) -> Path:
    """The transformer that a family's student was distilled from."""
    return folder / "base" / "pixart_nano_base.safetensors"


def train_py(*arguments: Any, log: Path | None = None) -> str:
    """Run a command of train.py, and return what it printed.

    Raises:
        RuntimeError: when it fails, with its last lines.
    """
    command = [sys.executable, str(TRAIN), *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        lines = []
        for line in process.stdout or ():
            lines.append(line)
            if log is not None:
                with log.open("a", encoding="utf-8") as file:
                    file.write(line)
    if process.returncode:
        raise RuntimeError(f"train.py {' '.join(map(str, arguments))}\n{''.join(lines[-15:])}")
    return "".join(lines)


def settings(values: Mapping[str, Any]) -> list[str]:
    """As train.py takes them."""
    pairs = (f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in values.items())
    return [part for pair in pairs for part in ("--set", pair)]


class Stopwatch:
    """Seconds since it was made, and those that processors spent on this process and what it started."""

    def __init__(self) -> None:
        self._started, self._used = time.monotonic(), sum(os.times()[:4])

    def read(self) -> dict[str, int]:
        return {
            "seconds": round(time.monotonic() - self._started),
            "cpu_seconds": round(sum(os.times()[:4]) - self._used),
        }


class Workshop:
    """A folder of trainings.

    Args:
        folder: where everything is kept.
        scale: of pictures, captions and training steps; below 1 it is a rehearsal, in a folder of its own.
    """

    def __init__(self, folder: Path, scale: float = 1.0):
        self.folder, self.scale = folder / ("whole" if scale == 1 else f"rehearsal_{scale:g}"), scale
        self.folder.mkdir(parents=True, exist_ok=True)
        self._begun: dict[str, list[float]] = {}

    def scaled(self, count: int, least: int = 1) -> int:
        return max(least, round(count * self.scale))

    @property
    def every(self) -> int:
        """Steps between two states of a distillation that are measured."""
        return 2 * self.scaled(MEASURED_EVERY // 2, 2)

    def data(self) -> Path:
        """Features of drawn scenes with soft edges, of the family's own world and size."""
        features, pictures, about = self.folder / "features", self.folder / "pictures", family()
        if not (self.folder / "data.done").exists():
            size = ("--resolution", about["resolution"], "--world", about["world"])
            train_py("nano", "scenes", pictures, "--pictures", self.scaled(PICTURES, 64), *size)
            values = {"input": str(pictures), "output": str(features), "models": str(NANO)}
            hints = {"hints": "hed", "hed": str(EDGES)}
            train_py("prepare", *settings(values | {"resolution": about["resolution"]} | hints))
            (self.folder / "data.done").touch()
        return features

    @property
    def seeds(self) -> Sequence[int]:
        """Of the trainings of each kind."""
        return SEEDS[: self.scaled(len(SEEDS), 2)]

    def values(self, figure: Figure, changed: Mapping[str, Any], seed: int) -> dict[str, Any]:
        """All settings of one training of a figure but the paths."""
        values = {**COMMON[figure.command], **figure.common, **changed, "seed": seed}
        values["steps"] = self.scaled(values["steps"], 8)
        values["checkpoint_every"] = self.scaled(values["checkpoint_every"], 2)
        return values | {"keep_checkpoints": 100, "log_every": 1, "tensorboard": False, "workers": 0}

    def run(self, figure: Figure, changed: Mapping[str, Any], seed: int) -> Path:
        """Train, or go on, or find that it is done; its folder."""
        values = self.values(figure, changed, seed)
        name = hashlib.sha256(json.dumps([figure.command, values], sort_keys=True).encode()).hexdigest()[:10]
        run = self.folder / f"{figure.command}_{name}"
        if not (run / "done.json").exists():
            paths, watch = self._paths(run), Stopwatch()
            train_py(figure.command, *settings(values | paths), log=self.folder / f"{run.name}.log")
            (run / "done.json").write_text(json.dumps(watch.read()))
        return run

    def begin(self, figure: Figure, changed: Mapping[str, Any], seed: int, steps: int) -> list[float]:
        """The losses of the first steps of a training, made anew, once for all figures that have it in common. Its
        learning rate must not depend on how many steps there will be."""
        values = self.values(figure, changed, seed) | {"steps": steps, "checkpoint_every": steps}
        if values.get("schedule", "constant") != "constant":
            raise ValueError(f"the learning rate of the schedule {values['schedule']} goes by the number of all steps")
        name = json.dumps([figure.command, values], sort_keys=True)
        if name not in self._begun:
            with tempfile.TemporaryDirectory(dir=self.folder) as place:
                train_py(figure.command, *settings(values | self._paths(Path(place) / "run")))
                self._begun[name] = self.losses(Path(place) / "run")
        return self._begun[name]

    def _paths(self, run: Path) -> dict[str, str]:
        return {"run": str(run), "data": str(self.data()), "base": str(base_of(NANO))}

    def seconds(self, run: Path) -> int:
        """CPU seconds that its training took, if it was not interrupted."""
        return json.loads((run / "done.json").read_text())["cpu_seconds"]

    def losses(self, run: Path) -> list[float]:
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [line["loss"] for line in map(json.loads, lines) if "loss" in line]

    def measure(self, figure: Figure, run: Path, changed: Mapping[str, Any]) -> dict[str, Any]:
        """The points of a training, oldest first, measured once."""
        kept = run / "marks.json"
        if not kept.exists():
            values = self.values(figure, changed, self.seeds[0])  # of them all but the seed
            found = self._distilled(run, values) if figure.command != "controlnet" else self._controlled(run)
            kept.write_text(json.dumps({**found, "batch": values["batch_size"] * values.get("accumulation", 1)}))
        return json.loads(kept.read_text())

    def _distilled(self, run: Path, values: Mapping[str, Any]) -> dict[str, Any]:
        """What it started from and its teacher are measured once for all trainings that have them in common."""
        guidance, schedule = values["guidance"], values.get("beta_schedule", "linear")
        start, teacher = self.folder / f"start_{schedule}.json", self.teacher(guidance)
        out = train_py(
            *(
                "nano",
                "curve",
                NANO,
                run,
                "--captions",
                "hard",
                "--count",
                self.scaled(CAPTIONS, 66),
                "--steps",
                *STEPS,
            ),
            *("--seeds", self.scaled(NOISES, 2), "--every", self.every, "--sheet", run / "strip.png"),
            *(["--no-start"] if start.exists() else []),
            *(["--no-teacher"] if teacher.exists() else []),
        )
        lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
        rows = self._steps(run)
        if not teacher.exists():
            teacher.write_text(json.dumps(lines[0]))
            rows = [*lines[0], *rows]
        before = [line for line in lines if line.get("step") == 0]
        points = [line for line in lines if line.get("step")]
        if not start.exists():
            start.write_text(json.dumps(before[0]))
        known = {"guidance": guidance, "teacher": json.loads(teacher.read_text())}
        return {"points": [json.loads(start.read_text()), *points], **known, "shown": lines[-1]["shown"], "rows": rows}

    def teacher(self, guidance: float) -> Path:
        """Where the marks of the base at a guidance ω are kept."""
        return self.folder / f"teacher_{guidance:g}.json"

    def _controlled(self, run: Path) -> dict[str, Any]:
        count = self.scaled(SCENES, 8)
        out = train_py(
            *("nano", "evaluate_control", NANO, "--hed", EDGES, "--curve", run, "--count", count),
            *("--sheet", run / "strip.png", "--examples", *SHOWN_SCENES),
        )
        return {"points": [json.loads(line) for line in out.splitlines() if line.startswith("{")]}

    def strip(self, figure: Figure, run: Path, path: Path) -> None:
        """Pictures of the same prompts, or scenes, and noise after every checkpoint, with the training steps."""
        if figure.command == "controlnet":
            plots.labelled(run / "strip.png", path, columns=["scene", "edges", *self._steps(run)])
        else:
            rows = json.loads((run / "marks.json").read_text())["rows"]
            plots.labelled(run / "strip.png", path, rows=[name.replace(", ", ",\n") for name in rows])

    @staticmethod
    def _steps(run: Path) -> list[str]:
        """Names of the states of a training."""
        checkpoints = sorted((run / "checkpoints").glob("step_*"))
        return ["step 0", *(f"step {int(each.stem.split('_')[1])}" for each in checkpoints)]


def family(folder: Path = NANO) -> dict[str, Any]:
    """Which family a figure is of: px of its square pictures, its world, and the sum of its base."""
    size = json.loads((folder / "transformer" / "config.json").read_text())["sample_size"]
    world = folder / "world.json"
    number = json.loads(world.read_text())["world"] if world.exists() else 1
    digest = hashlib.sha256(base_of(folder).read_bytes()).hexdigest()
    return {"resolution": 8 * size, "world": number, "base": digest[:12]}


def circumstances(folder: Path) -> dict[str, Any]:
    """What the figures of a family depend on besides the seeds."""
    packages = {name: version(name) for name in ("torch", "transformers", "accelerate")}
    return {"family": family(folder), "python": platform.python_version(), "machine": platform.machine(), **packages}
