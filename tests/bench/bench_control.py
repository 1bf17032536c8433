"""What control costs: one step of the 611 M-parameter model at 512 px with and without a ControlNet of 13 blocks.

    python -m tests.bench.bench_control [--rounds 3]

Random weights, in the dtype the CPU is fast in. Both take turns; CPU seconds are compared, so that whatever else the
machine does changes little. Target: at most 1.55 times an uncontrolled step (13 blocks on 28, block 0 again, linears).
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from pixart_core.config import PIXART_1024_MS
from pixart_core.controlnet import ControlNetTransformer
from pixart_core.functional import preferred_dtype
from pixart_core.model import PixArt


@torch.inference_mode()
def measure(rounds: int) -> bool:
    dtype = preferred_dtype("cpu")
    torch.manual_seed(0)
    base = PixArt(PIXART_1024_MS, dtype=dtype).eval()
    control = ControlNetTransformer(PIXART_1024_MS, dtype=dtype).eval()
    latent, hint = torch.randn(2, 1, 4, 64, 64)
    timestep, caption = torch.tensor([500]), torch.randn(1, 120, PIXART_1024_MS.caption_channels)
    runs = {
        "no control": lambda: base(latent, timestep, caption),
        "control": lambda: base(latent, timestep, caption, control=control(base, latent, timestep, caption, hint)),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():  # first touch of the weights
        run()
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.process_time()
            run()
            times[name].append(time.process_time() - start)
    ratio = statistics.median(b / a for a, b in zip(*times.values(), strict=True))
    print(f"one step at 512 px, {str(dtype).removeprefix('torch.')}, {torch.get_num_threads()} threads, {rounds} turns")
    for name, values in times.items():
        print(f"  {name:10} median {statistics.median(values):6.2f} CPU s")
    print(f"  control costs {ratio:.2f} x")
    return ratio <= 1.55


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    raise SystemExit(0 if measure(parser.parse_args().rounds) else 1)
