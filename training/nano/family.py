"""Make the whole nano family with one command, in parts: each goes on where it was stopped, and is skipped once done.

    python training/train.py nano family --set output=my_nano                      a family like models/nano256
    python training/train.py nano family --set output=my_nano --set resolution=128   a smaller one, like models/nano
    python training/train.py nano family --set output=try --set scale=0.01         a rehearsal: a hundredth of it all
    python training/train.py nano family --set output=my_nano --plan               only say what would be made

Every part is a command of train.py, printed with its log file, and can be run by hand.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from ...pixart_core.pipeline import default_device
from ...pixart_core.textfile import read_json
from ..machine import duration
from ..storage import replace_json
from .plan import FamilySettings, Part, Plan

TRAIN = Path(__file__).resolve().parents[1] / "train.py"
_LINES = 12
"""Of a failed part's log that are shown."""
_ROOM = 15e9
"""Bytes of a GPU that large batches are for; the largest, with what is trained beside it, takes 10."""


class Maker:
    """Makes a plan's parts, and remembers in the work folder which are done and how long they took."""

    def __init__(self, plan: Plan, has_gpu: bool):
        self.plan, self.has_gpu, self.file = plan, has_gpu, plan.work / "parts.json"
        self.done: dict[str, dict[str, Any]] = read_json(self.file) if self.file.exists() else {}
        side = plan.settings.side_by_side
        self.together = side == "yes" or side == "auto" and has_gpu

    def is_done(self, part: Part) -> bool:
        """Whether these very commands ran to their end."""
        return self.done.get(part.name, {}).get("commands") == part.commands

    def describe(self) -> str:
        """The plan as a table: each part, about how long it takes here, or how long it took."""
        lines: list[str] = []
        waves: dict[int, list[float]] = {}
        for part in self.plan.parts:
            if self.is_done(part):
                lines.append(f"{part.name:12} done in {duration(self.done[part.name]['seconds'])}")
                continue
            seconds = part.seconds[self.has_gpu]
            waves.setdefault(part.wave, []).append(seconds)
            beside = " beside others" if self.together and self._beside(part) else ""
            lines.append(f"{part.name:12} about {duration(seconds)}{beside}")
        left = sum(max(seconds) if self.together else sum(seconds) for seconds in waves.values())
        where = "a GPU" if self.has_gpu else "two CPU cores"
        return "\n".join([*lines, f"together about {duration(left)} on {where}, in {self.plan.work}"])

    def _beside(self, part: Part) -> bool:
        return sum(other.wave == part.wave for other in self.plan.parts) > 1

    def run(self) -> None:
        """Make what is not done yet.

        Raises:
            RuntimeError: naming the part that failed, with the last lines that it said.
        """
        self.plan.work.mkdir(parents=True, exist_ok=True)
        for _, wave in itertools.groupby(self.plan.parts, lambda part: part.wave):
            lacking = [part for part in wave if not self.is_done(part)]
            with ThreadPoolExecutor(len(lacking) or 1 if self.together else 1) as pool:
                for part, seconds in zip(lacking, pool.map(self._make, lacking), strict=True):
                    self.done[part.name] = {"commands": part.commands, "seconds": seconds}
                    replace_json(self.file, self.done)
                    print(f"{part.name} took {duration(seconds)}", flush=True)

    def _make(self, part: Part) -> float:
        log, started = self.plan.work / f"{part.name}.log", time.monotonic()
        for command in part.commands:
            print(f"{part.name}: train.py {shlex.join(command)} > {log}", flush=True)
            with log.open("a", encoding="utf-8") as file:
                code = subprocess.run([sys.executable, str(TRAIN), *command], stdout=file, stderr=file).returncode
            if code:
                said = log.read_text("utf-8", "replace").splitlines()[-_LINES:]
                raise RuntimeError(
                    f"{part.name} failed; the same command goes on there. {log} ends:\n" + "\n".join(said)
                )
        return round(time.monotonic() - started, 1)


def has_room(device: torch.device) -> bool:
    """Whether a device is one that large batches are for: with memory, bfloat16 of its own, and Triton to compile."""
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return False
    about = torch.cuda.get_device_properties(device)
    return about.total_memory >= _ROOM and about.major >= 8


def main(arguments: list[str]) -> None:
    """Command line of `train.py nano family`."""
    parser = argparse.ArgumentParser(
        prog="train.py nano family",
        description=__doc__,
        epilog="settings and their defaults:\n" + FamilySettings.describe(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="one setting")
    parser.add_argument("--plan", action="store_true", help="print the plan, and make nothing")
    options = parser.parse_args(arguments)
    settings = FamilySettings.load(None, options.set).located()
    device = default_device()
    maker = Maker(Plan(settings, has_room(device)), device.type == "cuda")
    print(maker.describe(), flush=True)
    if not options.plan:
        maker.run()
        print(f"{settings.output} is whole; pictures and figures: {maker.plan.work}", flush=True)
