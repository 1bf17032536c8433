"""Background trainings: a thousand jobs, a million metrics, the event loop under polling, pictures while one trains.

    python -m tests.bench.bench_jobs [--skip-training]

Exits with 1 when a target is missed: a list of a thousand jobs in 200 ms, a chart of a million lines in a second and
within a few MB, and with 20 polls a second nothing on ComfyUI's event loop that takes 100 ms. Not counted is ComfyUI's
own garbage collection after a prompt, which is shown apart.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import statistics
import sys
import tempfile
import threading
import time
import tracemalloc
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import tests.conftest  # noqa: F401  registers the root folder as a package
from tools.comfy_server import ComfyServer, comfyui_trees
from tools.workflow_api import load_workflow, to_api

ROOT = Path(__file__).resolve().parents[2]
JOBS = "/pixart_delta/jobs"
LAG = 100
"""ms that the event loop may be busy."""
missed: list[str] = []
"""Targets that did not hold."""


def judge(name: str, value: float, limit: float, unit: str) -> None:
    """Note a target: value < limit."""
    if value >= limit:
        missed.append(f"{name}: {value:.0f} {unit}, target < {limit:.0f} {unit}")


def make_jobs(root: Path, records: Path, count: int) -> None:
    for i in range(count):
        folder, record = root / f"job-{i:04d}", records / f"job-{i:04d}"
        folder.mkdir(parents=True)
        record.mkdir(parents=True)
        values = {
            "id": folder.name,
            "command": "lcd",
            "settings": {"run": str(folder)},
            "device": "cpu",
            "name": f"job {i}",
            "state": "done",
            "order": float(i),
            "result": {"step": 1000, "steps": 1000, "loss": 0.01},
        }
        (record / "job.json").write_text(json.dumps(values))


def make_metrics(file: Path, lines: int) -> None:
    with file.open("w") as out:
        for i in range(1, lines + 1):
            out.write(
                f'{{"step": {i}, "loss": {1 / i:.8f}, "gradient_norm": 1.5, "learning_rate": 2e-05, '
                f'"seconds_per_step": 0.25, "data_seconds": 0.001, "time": {1.7e9 + i}}}\n'
            )


def say_time(name: str, call: Callable[[], object], repeats: int, limit: float = math.inf) -> None:
    """Print how long a call takes; `limit` (ms) is the target for the median."""
    taken = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        taken.append((time.perf_counter() - begin) * 1e3)
    median = statistics.median(taken)
    print(f"{name}: median {median:.0f} ms, worst {max(taken):.0f} ms of {repeats}")
    judge(name, median, limit, "ms")


@contextlib.contextmanager
def polling(server: ComfyServer, paths: tuple[str, ...]) -> Iterator[None]:
    """Ask for each of the paths five times a second."""
    stop = threading.Event()
    threads = [threading.Thread(target=poll, args=(server, path, stop, 0.2)) for path in paths]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def poll(server: ComfyServer, path: str, stop: threading.Event, each: float) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while not stop.wait(each):
        opener.open(server.address + path, timeout=60).read()


def loop_lag(server: ComfyServer, seconds: float) -> list[float]:
    """Seconds that a request which needs nothing but the event loop (/features) takes, many times."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    found, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        begin = time.perf_counter()
        opener.open(server.address + "/features", timeout=60).read()
        found.append(time.perf_counter() - begin)
        time.sleep(0.02)
    return found


def say_lag(name: str, lags: list[float], limit: float = math.inf) -> None:
    """Print how long the event loop was busy; `limit` (ms) is the target for the worst."""
    lags = sorted(lags)
    print(
        f"{name}: median {lags[len(lags) // 2] * 1e3:.1f} ms, 99 % {lags[int(len(lags) * 0.99)] * 1e3:.1f} ms, "
        f"worst {lags[-1] * 1e3:.1f} ms of {len(lags)}"
    )
    judge(name, lags[-1] * 1e3, limit, "ms")


def say_memory_of_reading(file: Path) -> None:
    from pixart_delta.training.jobs import read_metrics

    tracemalloc.start()
    read_metrics(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(f"reading the metrics: {peak / 1e6:.1f} MB at its peak for a file of {file.stat().st_size / 1e6:.0f} MB")
    judge("memory of reading the metrics", peak / 1e6, 5, "MB")


def training(server: ComfyServer) -> None:
    """Text to image with and without a training beside it."""
    graph = to_api(load_workflow(ROOT / "workflows/PixArt 01 Text to Image in 4 Steps.json"), server.object_info())
    sampler = next(node for node in graph.values() if "seed" in node["inputs"])

    def picture() -> None:
        sampler["inputs"]["seed"] += 1
        assert not server.prompt(graph).errors

    for color in (1, 2):
        blank = {"width": 64, "height": 64, "batch_size": 1, "color": color}
        assert not server.prompt(
            {
                "1": {"class_type": "EmptyImage", "inputs": blank},
                "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
            }
        ).errors
    # ComfyUI collects garbage up to ten seconds after a prompt, and nothing else runs in its process meanwhile.
    say_lag("event loop after a blank picture of stock nodes, with their garbage collection", loop_lag(server, 12))
    picture()
    say_time("picture alone", picture, 10)
    train = to_api(load_workflow(ROOT / "workflows/train_lcd.json"), server.object_info())
    node = next(node for node in train.values() if node["class_type"] == "PixArtDeltaTrainLCD")
    node["inputs"] |= {"steps": 100_000, "sample_every": 0}
    assert not server.prompt(train).errors
    job = next(job["id"] for job in server.get(JOBS)["jobs"] if job["command"] == "lcd")
    while server.get(f"{JOBS}/{job}").get("step", 0) < 3:
        time.sleep(0.2)
    say_time("picture while a job trains on the same cores", picture, 10)
    say_lag("event loop while a job trains, with the garbage collection after these pictures", loop_lag(server, 12))
    with polling(server, (JOBS, f"{JOBS}/{job}/metrics", f"{JOBS}/{job}", f"{JOBS}/{job}/log")):
        say_lag("event loop while a job trains, 20 polls a second", loop_lag(server, 20), LAG)
    before, begin = server.get(f"{JOBS}/{job}")["step"], time.monotonic()
    time.sleep(15)
    print(f"the job: {(time.monotonic() - begin) / (server.get(f'{JOBS}/{job}')['step'] - before):.3f} s a step")
    server.post(f"{JOBS}/{job}/kill", {})
    while server.get(f"{JOBS}/{job}")["state"] == "stopping":
        time.sleep(0.2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--skip-training", action="store_true", help="leave out the pictures while a job trains")
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--lines", type=int, default=1_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        root = base / "output" / "pixart_delta" / "training"
        if not options.skip_training:
            with ComfyServer(next(iter(comfyui_trees().values())), base / "training") as server:
                training(server)
        make_jobs(root, base / "user" / "__pixart_delta" / "jobs", options.jobs)
        metrics = root / "job-0000" / "metrics.jsonl"
        make_metrics(metrics, options.lines)
        say_memory_of_reading(metrics)
        with ComfyServer(next(iter(comfyui_trees().values())), base) as server:
            say_lag("event loop, nothing asked", loop_lag(server, 5))
            say_time(f"list of {options.jobs} jobs", lambda: server.get(JOBS), 20, 200)
            say_time(f"chart of {options.lines} lines", lambda: server.get(f"{JOBS}/job-0000/metrics"), 10, 1000)
            since = f"{JOBS}/job-0000/metrics?since={options.lines - 50}"
            say_time("its last 50 lines", lambda: server.get(since), 20)
            with polling(server, (JOBS, f"{JOBS}/job-0000/metrics", since, f"{JOBS}/job-0000/log")):
                say_lag("event loop, 20 polls a second", loop_lag(server, 20), LAG)
    for each in missed:
        print(f"MISSED {each}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
