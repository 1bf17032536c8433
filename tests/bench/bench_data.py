"""Data: pictures a second of `prepare` and of reading, and how long a nano training step waits for its batch.

    python tests/bench/bench_data.py [--pictures 200] [--steps 80]

1. `prepare` of nano scenes with the bundled family: looked at, encoded and written, pictures a second.
2. Nano training steps (the base model's, the shortest there are, batch 32) on them as they are by default: the share of
   the time that is spent waiting for data, after the first ten steps. With workers=2 for comparison.
3. Reading shards of 1024 px and T5-XXL's width, as a GPU's training would: pictures a second and process.

Exits with 1 when the steps of 2. wait 2 % of their time or more.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import tests.conftest  # noqa: E402, F401  registers the root folder as a package
from tests.training.shards_fixture import make_features  # noqa: E402

LIMIT = 0.02
NANO = ROOT / "models" / "nano"
BASE = NANO / "base" / "pixart_nano_base.safetensors"


def measure_prepare(folder: Path, pictures: int) -> float:
    """Pictures a second; the networks and libraries are warm."""
    from pixart_delta.training.config import PrepareConfig
    from pixart_delta.training.nano.scene_folder import draw_folder
    from pixart_delta.training.prepare.run import prepare

    draw_folder(folder / "pictures", pictures, seed=1)
    for name in ("warm", "features"):
        config = PrepareConfig(
            input=str(folder / "pictures"),
            output=str(folder / name),
            models=str(NANO),
            resolution=128,
            max_tokens=40,
            batch_size=16,
        )
        started = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            prepare(config)
    return pictures / (time.perf_counter() - started)


def measure_waiting(folder: Path, steps: int, workers: int) -> tuple[float, float]:
    """Seconds a step, and the share of them that it waits for data."""
    from pixart_delta.training.config import FinetuneConfig
    from pixart_delta.training.loop import train

    run = folder / f"run_{workers}"
    config = FinetuneConfig(
        run=str(run),
        data=str(folder / "features"),
        base=str(BASE),
        steps=steps,
        batch_size=32,
        workers=workers,
        log_every=10,
        tensorboard=False,
    )
    with contextlib.redirect_stdout(io.StringIO()):
        train(config)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][1:]
    seconds = sum(line["seconds_per_step"] for line in lines)
    return seconds / len(lines), sum(line["data_seconds"] for line in lines) / seconds


def measure_reading(folder: Path, workers: int) -> float:
    """Pictures a second of 1024 px, 4096 channels of text."""
    from pixart_delta.training.data import FeatureDataset

    make_features(folder / "large", {(1024, 1024): 96}, width=4096, tokens=(120, 80), shard_size=32)
    batches = FeatureDataset(folder / "large").batches(12, 0, workers=workers)
    next(batches)
    started = time.perf_counter()
    count = sum(len(batch["keys"]) for batch in itertools.islice(batches, 32))
    return count / (time.perf_counter() - started)


def measure(pictures: int, steps: int) -> bool:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print(f"prepare: {measure_prepare(folder, pictures):.1f} pictures/s of 128 px, on the CPU", flush=True)
        shares = {}
        for workers in (-1, 2):
            seconds, shares[workers] = measure_waiting(folder, steps, workers)
            name = "default" if workers < 0 else workers
            print(f"nano step, workers={name}: {seconds:.3f} s, {shares[workers]:.2%} waiting for data", flush=True)
        for workers in (0, 2):
            print(f"reading 1024 px shards, workers={workers}: {measure_reading(folder, workers):.0f} pictures/s")
    return shares[-1] < LIMIT


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--steps", type=int, default=80)
    raise SystemExit(0 if measure(**vars(parser.parse_args())) else 1)
