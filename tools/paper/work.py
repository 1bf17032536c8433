"""What a figure needs, each made once and kept: scenes and their features, trainings, and what is measured on them.

Everything is a command of `training/train.py`, which resumes by itself; a training's folder is named by its settings,
so that figures share those that they have in common.
"""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..comfy_server import ROOT
from .figures import COMMON, Figure

TRAIN = ROOT / "training" / "train.py"
NANO = ROOT / "models" / "nano"
BASE = NANO / "base" / "pixart_nano_base.safetensors"
PICTURES = 4000
CAPTIONS = 100
SEEDS = 3
STEPS = (1, 2, 4)
PROMPTS = (
    "a house on a meadow in front of red mountains by day, the sun on the left",
    "a sailing boat on a calm lake below snow-capped mountains at sunset, the sun on the right",
    "three trees on a snowfield, blue mountains, at night, the moon to the left",
    "yellow sand and green hills at dawn, with the sun to the right",
)


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


class Workshop:
    """A folder of trainings.

    Args:
        folder: where everything is kept.
        scale: of pictures, captions and training steps; below 1 it is a rehearsal, in a folder of its own.
    """

    def __init__(self, folder: Path, scale: float = 1.0):
        self.folder, self.scale = folder / ("whole" if scale == 1 else f"rehearsal_{scale:g}"), scale
        self.folder.mkdir(parents=True, exist_ok=True)

    def scaled(self, count: int, least: int = 1) -> int:
        return max(least, round(count * self.scale))

    def data(self) -> Path:
        """Features of drawn scenes with soft edges."""
        features, pictures = self.folder / "features", self.folder / "pictures"
        if not (self.folder / "data.done").exists():
            train_py("nano", "scenes", pictures, "--pictures", self.scaled(PICTURES, 64))
            hints = {"hints": "hed", "hed": str(NANO / "hed" / "hed.safetensors")}
            values = {"input": str(pictures), "output": str(features), "models": str(NANO), "resolution": 128}
            train_py("prepare", *settings(values | {"max_tokens": 40} | hints))
            (self.folder / "data.done").touch()
        return features

    def values(self, figure: Figure, changed: Mapping[str, Any]) -> dict[str, Any]:
        """All settings of one training of a figure but the paths."""
        values = {**COMMON[figure.command], **figure.common, **changed}
        values["steps"] = self.scaled(values["steps"], 4)
        values["checkpoint_every"] = self.scaled(values["checkpoint_every"], 2)
        return values | {"keep_checkpoints": 100, "log_every": 1, "tensorboard": False, "workers": 0}

    def run(self, figure: Figure, changed: Mapping[str, Any], steps: int | None = None) -> Path:
        """Train, or go on, or find that it is done; its folder.

        Args:
            steps: stop there, in a folder of its own: the beginning of a training, to compare its losses.
        """
        values = self.values(figure, changed)
        name = hashlib.sha256(json.dumps([figure.command, values], sort_keys=True).encode()).hexdigest()[:10]
        run = self.folder / f"{figure.command}_{name}{'' if steps is None else f'_{steps}'}"
        if not (run / "done.json").exists():
            paths = {"run": str(run), "data": str(self.data()), "base": str(BASE)}
            started = time.monotonic()
            if steps is None:
                train_py(figure.command, *settings(values | paths), log=self.folder / f"{run.name}.log")
            else:
                self._begin(figure, values | paths, steps)
            (run / "done.json").write_text(json.dumps({"seconds": round(time.monotonic() - started)}))
        return run

    def _begin(self, figure: Figure, values: Mapping[str, Any], steps: int) -> None:
        """The first steps of a training whose learning rate goes by the number of all of them."""
        if values["schedule"] != "constant" and steps > values["warmup_steps"]:
            raise ValueError(f"{steps} steps leave the warm-up, after which the rate depends on the number of steps")
        train_py(figure.command, *settings({**values, "steps": steps, "checkpoint_every": steps}))

    def seconds(self, run: Path) -> int:
        """That its training took, if it was not interrupted."""
        return json.loads((run / "done.json").read_text())["seconds"]

    def losses(self, run: Path) -> list[float]:
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [line["loss"] for line in map(json.loads, lines) if "loss" in line]

    def measure(self, figure: Figure, run: Path) -> dict[str, Any]:
        """The points of a training, oldest first, measured once."""
        kept = run / "marks.json"
        if not kept.exists():
            found = self._distilled(run) if figure.command != "controlnet" else self._controlled(run)
            kept.write_text(json.dumps(found))
        return json.loads(kept.read_text())

    def _distilled(self, run: Path) -> dict[str, Any]:
        out = train_py(
            *(
                "nano",
                "curve",
                NANO,
                run,
                "--captions",
                "hard",
                "--steps",
                *STEPS,
                "--count",
                self.scaled(CAPTIONS, 70),
            ),
            *("--seeds", self.scaled(SEEDS, 2), "--no-teacher"),
        )
        return {"points": [json.loads(line) for line in out.splitlines() if line.startswith("{")]}

    def _controlled(self, run: Path) -> dict[str, Any]:
        count = ("--count", self.scaled(CAPTIONS, 8))
        out = train_py("nano", "evaluate_control", NANO, "--curve", run, *count)
        points = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
        without = train_py("nano", "evaluate_control", NANO, "--strengths", 0, *count)
        return {"points": points, "without": json.loads(without.splitlines()[-1])["f1"]}

    def samples(self, figure: Figure, run: Path) -> list[tuple[str, Path]]:
        """Pictures of the same prompts (for control: the same scenes' edges) and noise after every checkpoint."""
        made, own = [], {"models": str(NANO)} | ({"prompts": list(PROMPTS)} if figure.command != "controlnet" else {})
        for checkpoint in sorted((run / "checkpoints").iterdir()):
            picture = run / "strip" / f"{checkpoint.stem}.png"
            if not picture.exists():
                picture.parent.mkdir(exist_ok=True)
                train_py("sample", *settings({"run": str(checkpoint), "output": str(picture), **own}))
            made.append((checkpoint.stem, picture))
        return made


def circumstances() -> dict[str, str]:
    """What figures depend on besides the seeds."""
    packages = {name: version(name) for name in ("torch", "transformers", "accelerate")}
    return {"python": platform.python_version(), "machine": platform.machine(), **packages}
