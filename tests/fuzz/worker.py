"""Runs cases, one a line from stdin, and answers each with a line of JSON. A signal ends it at one that takes too long.

A case is a number: it decides the sample and what is done to it. Started by `run`, not by hand.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from random import Random

import torch

from tests.fuzz.mutations import mutate
from tests.fuzz.samples import SAMPLES, Sample

CPU_SECONDS = 10
EXTRA_BYTES = 10**9
"""Of memory, beyond a file's own size."""
# What no file may lead to: other programs, connections, modules that are not there yet.
FORBIDDEN = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "subprocess.Popen",
    "socket.connect",
    "socket.getaddrinfo",
)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print belongs to nobody
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    names, happened = sorted(SAMPLES), []
    sys.addaudithook(lambda event, _: happened.append(event) if event in FORBIDDEN else None)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        for line in sys.stdin:
            case, folder, canary = int(line), Path(scratch, "case"), Path(scratch, "canary")
            sample, rng = SAMPLES[names[case % len(names)]], Random(case)
            shutil.copytree(_good(Path(scratch, names[case % len(names)]), sample), folder)
            what = mutate(folder, sample.only, rng, canary)
            happened.clear()
            _limit(folder)
            answer = {"case": case, "sample": names[case % len(names)], "mutation": repr(what)[:500]}
            answer |= _run(sample, folder)
            _limit(None)
            if happened or canary.exists():
                answer |= {"outcome": "ran code", "detail": ", ".join(happened)}
                canary.unlink(missing_ok=True)
            answers.write(json.dumps(answer) + "\n")
            answers.flush()
            shutil.rmtree(folder)


def _good(folder: Path, sample: Sample) -> Path:
    """A sample, made and read once, so that what reading it imports is there before memory and calls are watched."""
    if not folder.exists():
        folder.mkdir()
        sample.make(folder)
        copy = shutil.copytree(folder, folder.with_name("warm"))
        sample.read(copy)
        shutil.rmtree(copy)
    return folder


def _run(sample, folder: Path) -> dict[str, str]:
    try:
        sample.read(folder)
    except sample.errors as error:
        # An error that does not say which file it is about helps nobody.
        named = str(folder) in str(error) or not sample.names_file
        return {"outcome": "refused" if named else "names no file", "detail": str(error)[:500]}
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        short = isinstance(error, MemoryError) or "allocate" in str(error) and "memory" in str(error)
        trace = traceback.format_exc().splitlines()
        return {"outcome": "memory" if short else type(error).__name__, "detail": "\n".join(trace[-12:])[:2000]}
    return {"outcome": "read", "detail": ""}


def _limit(folder: Path | None) -> None:
    """Bound processor time and memory for one case; None lifts it."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds, memory = resource.RLIM_INFINITY, resource.RLIM_INFINITY
    if folder is not None:
        own = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        seconds, memory = int(used.ru_utime + used.ru_stime) + 1 + CPU_SECONDS, now + own + EXTRA_BYTES
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_AS, (memory, resource.RLIM_INFINITY))


if __name__ == "__main__":
    main()
