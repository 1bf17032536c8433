"""Damage files of every kind in thousands of ways, and see that each is read or refused with the error of its loader.

    python -m tests.fuzz.run --count 5000            what `make fuzz` does
    python -m tests.fuzz.run --case 1234             one again, with everything it says

A case may take 10 s of processor time and 1 GB beyond the size of its files; it may not end in another error than its
loader's, in an error that names no file, run code or end the process. Linux only, because of the limits.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GOOD = ("read", "refused")
PATIENCE = 60
"""Seconds that a case may sleep, which takes no processor time; one that waits for a busy processor does not sleep."""


class Worker:
    """A process that runs cases, and is started again after one that ends it."""

    def __init__(self, verbose: bool = False):
        self._error = None if verbose else subprocess.DEVNULL
        self._process: subprocess.Popen | None = None

    def run(self, case: int) -> dict[str, str]:
        if self._process is None:
            self._start()
        self._process.stdin.write(f"{case}\n")
        self._process.stdin.flush()
        answer = self._answer()
        if answer:
            return json.loads(answer)
        ended = self.close()
        why = "hung" if ended in (None, -signal.SIGXCPU) else "died"
        return {"case": case, "sample": "", "mutation": "", "outcome": why, "detail": f"the process ended with {ended}"}

    def close(self) -> int | None:
        """End the process; what it had ended with by itself."""
        process, self._process = self._process, None
        if process is None:
            return None
        process.stdin.close()  # after which it ends by itself
        try:
            ended = process.wait(60)  # one that ran out of time has much to give back
        except subprocess.TimeoutExpired:
            ended = None
            process.kill()
            process.wait()
        process.stdout.close()
        return ended

    def _start(self) -> None:
        command = [sys.executable, "-m", "tests.fuzz.worker"]
        offline = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": ""}
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=self._error, text=True, cwd=ROOT, env=offline
        )

    def _answer(self) -> str:
        asleep = 0
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while not selector.select(1):
                state = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()[0]
                asleep = asleep + 1 if state == "S" else 0
                if asleep > PATIENCE:
                    return ""
        return self._process.stdout.readline()


def fuzz(cases: Iterable[int], verbose: bool = False) -> Iterator[dict[str, str]]:
    """The answers to cases, in order."""
    worker = Worker(verbose)
    try:
        for case in cases:
            yield worker.run(case)
    finally:
        worker.close()


def describe(answer: dict[str, str]) -> str:
    """A failure, and how to see it again."""
    text = (
        f"{answer['outcome']}: case {answer['case']} ({answer['sample']}: {answer['mutation']})\n{answer['detail']}\n"
        f"again: python -m tests.fuzz.run --case {answer['case']}\n"
    )
    return text.encode("utf-8", "backslashreplace").decode()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--case", type=int, help="this one only")
    options = parser.parse_args()
    alone = options.case is not None
    cases = [options.case] if alone else range(options.first, options.first + options.count)
    outcomes: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    bad = 0
    for answer in fuzz(cases, verbose=alone):
        outcomes[answer["sample"]][answer["outcome"]] += 1
        if alone or answer["outcome"] not in GOOD:
            print(describe(answer), flush=True)
        bad += answer["outcome"] not in GOOD
    for sample, counts in sorted(outcomes.items()):
        print(f"{sample:24}", ", ".join(f"{count} {outcome}" for outcome, count in counts.most_common()))
    print(f"{len(cases)} cases, {bad} bad")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
