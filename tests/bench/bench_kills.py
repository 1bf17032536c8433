"""Fifty `kill -9` at random moments, saves included: never a corrupt or missing checkpoint, never an orphan process.

    python tests/bench/bench_kills.py [--kills 50] [--seed 0] [--ragged]

With --ragged most sizes have fewer pictures than a batch takes. The four trainings run from the command line on a
tiny base, with reading processes, buckets and accumulation, and save after every step. Every sixth kill falls
anywhere into the start, a third of them wait for a step and then for the first sign of a save, the others for a step
and a random moment. After each, the newest checkpoint has to be readable and no older than before, and every process
gone. In the end the same command has to have given the losses and weights of a run without a break, bit by bit. Exits
with 1 if anything fails.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import tests.conftest  # noqa: E402, F401  registers the root folder as a package
from tests.training.runs_fixture import COMMANDS, losses, make_material, same_weights, settings  # noqa: E402
from tests.training.shards_fixture import BUCKETS  # noqa: E402

RAGGED = {(64, 64): 1, (48, 80): 3, (80, 48): 5, (32, 128): 7, (128, 32): 9}
"""Height, width in px -> pictures, at a batch of two."""
START_SECONDS = 6
ORPHAN_SECONDS = 10
STEPS_BETWEEN_KILLS = 8


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ragged", action="store_true", help="on pictures of sizes that do not fill a batch")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    problems, killed, in_saves = [], 0, 0
    with tempfile.TemporaryDirectory() as folder:
        material = make_material(Path(folder), RAGGED if arguments.ragged else BUCKETS)
        for number, command in enumerate(COMMANDS):
            wanted = (number + 1) * arguments.kills // len(COMMANDS) - number * arguments.kills // len(COMMANDS)
            trial = Trial(command, material, Path(folder), wanted, rng)
            trial.run()
            problems += trial.problems
            killed, in_saves = killed + trial.killed, in_saves + trial.in_saves
    print(f"{killed} kills, {in_saves} of them while a checkpoint was being written; {len(problems)} problems")
    return 1 if problems or killed < arguments.kills else 0


class Trial:
    """One training, killed again and again, beside one that is not."""

    def __init__(self, command: str, material: dict, folder: Path, kills: int, rng: random.Random):
        self.command, self.kills, self.rng = command, kills, rng
        self.values = settings(
            command, material, folder / command, steps=kills * STEPS_BETWEEN_KILLS + 20, workers=2, checkpoint_every=1
        )
        self.straight = {**self.values, "run": str(folder / f"{command}_straight")}
        self.problems: list[str] = []
        self.killed = self.in_saves = 0

    def run(self) -> None:
        from pixart_delta.training.run_dir import RunDir

        self.folder = RunDir(self.values["run"])
        begin = time.monotonic()
        for number in range(self.kills):
            if not self._kill_one(("start", "save", "any", "any", "save", "any")[number % 6]):
                break
        for values in (self.values, self.straight):
            process = self._start(values)
            _, errors = process.communicate()
            if process.returncode:
                self.problems.append(f"the run to the end failed: {errors[-500:]}")
        straight = RunDir(self.straight["run"])
        if losses(self.folder) != losses(straight) or len(losses(straight)) != self.values["steps"]:
            self.problems.append("losses differ from those of a run without a break")
        if not same_weights(self.folder, straight):
            self.problems.append("weights differ from those of a run without a break")
        print(
            f"{self.command}: {self.killed} kills in {time.monotonic() - begin:.0f} s, {self.in_saves} in a save; "
            f"{self.values['steps']} steps; {'; '.join(self.problems) or 'equal to a run without a break, bit by bit'}",
            flush=True,
        )

    def _start(self, values: dict) -> subprocess.Popen:
        from pixart_delta.training.machine import die_with_parent

        given = [part for name, value in values.items() for part in ("--set", f"{name}={_as_text(value)}")]
        return subprocess.Popen(
            [sys.executable, str(ROOT / "training/train.py"), self.command, *given],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=die_with_parent,  # only for a measurement that is itself broken off
        )

    def _kill_one(self, when: str) -> bool:
        """Start, wait for a random moment, kill, look; False if the run ended before."""
        before = self._newest()
        process = self._start(self.values)
        if when == "start":
            end = time.monotonic() + self.rng.uniform(0, START_SECONDS)
            while time.monotonic() < end and self._newest() == before:  # a fast machine is past the start by then
                time.sleep(0.002)
        else:
            target = before + self.rng.randint(1, 2 * STEPS_BETWEEN_KILLS - 2)
            while process.poll() is None and self._newest() < target:
                time.sleep(0.002)
            if when == "save":
                self._wait_for_a_save(process)
            else:
                time.sleep(self.rng.uniform(0, 0.1))
        if process.poll() is not None:
            if process.returncode:
                self.problems.append(f"ended by itself: {process.stderr.read()[-500:]}")
            return False
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        process.kill()
        process.communicate()
        self.killed += 1
        self.in_saves += bool(self._half_written())
        _, left = psutil.wait_procs(family, timeout=ORPHAN_SECONDS)
        if left:
            self.problems.append(f"kill {self.killed} left {len(left)} processes")
        self._look(before)
        return True

    def _wait_for_a_save(self, process: subprocess.Popen) -> None:
        """Until somewhere within the next; without sleeping, since a save takes milliseconds."""
        while process.poll() is None and not self._half_written():
            pass
        end = time.perf_counter() + self.rng.uniform(0, 0.002)
        while time.perf_counter() < end:
            pass

    def _look(self, before: int) -> None:
        from pixart_delta.training.checkpoint import newest_readable

        found = newest_readable(self.folder, self.problems.append) if self.folder.path.exists() else None
        step = found.facts["step"] if found else 0
        if step < before or step != self._newest():
            self.problems.append(f"kill {self.killed}: the newest readable checkpoint is {step}, it was {before}")

    def _half_written(self) -> list[Path]:
        return list((self.folder.path / "checkpoints").glob("*.tmp"))

    def _newest(self) -> int:
        checkpoints = self.folder.checkpoints()
        return int(checkpoints[-1].stem.split("_")[1]) if checkpoints else 0


def _as_text(value) -> str:
    return value if isinstance(value, str) else json.dumps(value)


if __name__ == "__main__":
    sys.exit(main())
