"""Run the measurements in tests/bench one after the other and close with a table (`make bench`).

    python -m tools.bench [NAME …] [--list]      e.g. python -m tools.bench text load
    python -m tools.bench NAME [its options]     e.g. python -m tools.bench gpu --minutes 5

A measurement is a program tests/bench/bench_NAME.py: it prints its own figures and exits with 0 when its targets hold.
The figures also go to output/bench/NAME.txt. Nothing else should be running, and each gets all cores.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from .comfy_server import ROOT

FOLDER = ROOT / "tests" / "bench"
_USAGE = 2
"""argparse's exit status: a measurement that needs more than its name."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="which measurements to run; all when none is named")
    parser.add_argument("--list", action="store_true", help="only print their names")
    arguments, rest = parser.parse_known_args()
    benches = {path.stem.removeprefix("bench_"): path for path in sorted(FOLDER.glob("bench_*.py"))}
    if unknown := sorted(set(arguments.names) - set(benches)):
        parser.error(f"no measurement called {', '.join(unknown)}; there are: {', '.join(benches)}")
    if arguments.list:
        print("\n".join(benches))
        return 0
    if rest and len(arguments.names) != 1:
        parser.error(f"{' '.join(rest)}: options are given to one measurement, named first")
    rows = [run(name, benches[name], rest) for name in arguments.names or benches]
    print("\n| measurement | seconds | targets |\n|---|---|---|")
    for name, seconds, status in rows:
        said = {0: "met", _USAGE: "not measured: it trains or reads in a folder that it is to be given, see above"}
        print(f"| {name} | {seconds:.0f} | {said.get(status, f'MISSED (exit status {status})')} |")
    fine = {0} if arguments.names else {0, _USAGE}
    return 0 if all(status in fine for _, _, status in rows) else 1


def environment() -> dict[str, str]:
    """For processes that import this project: with it before what PYTHONPATH names, such as packages brought along."""
    named = filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(named)}


def run(name: str, path: Path, options: Sequence[str] = ()) -> tuple[str, float, int]:
    """One measurement in a process of its own, its output shown and kept: (name, seconds, exit status)."""
    print(f"\n=== {name} ===", flush=True)
    kept = ROOT / "output" / "bench" / f"{name}.txt"
    kept.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with (
        kept.open("w", encoding="utf-8") as file,
        subprocess.Popen(
            [sys.executable, "-u", str(path), *options],
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process,
    ):
        for line in process.stdout:
            print(line, end="", flush=True)
            file.write(line)
    return name, time.monotonic() - started, process.returncode


if __name__ == "__main__":
    sys.exit(main())
