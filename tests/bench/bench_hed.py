"""HED on 8 pictures of 512 px beside `controlnet_aux`'s detector, the same random weights, on this CPU.

    python -m tests.bench.bench_hed [--rounds 3]

They take turns; CPU seconds are compared, so that whatever else the machine does changes little (run it with
OMP_NUM_THREADS=1 on a busy one). Targets: ours in float32 at most as long as theirs (which works in float32 and 8-bit
pictures), in bfloat16 at least 1.5 times faster where the CPU multiplies bfloat16 natively.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch

from pixart_core.functional import preferred_dtype
from pixart_core.hed import HED, detect

BATCH, SIDE = 8, 512


def measure(rounds: int) -> bool:
    from controlnet_aux import HEDdetector
    from controlnet_aux.hed import ControlNetHED_Apache2

    torch.manual_seed(0)
    ours = HED().eval()
    network = ControlNetHED_Apache2().eval()
    network.load_state_dict(ours.state_dict())
    theirs = HEDdetector(network)
    half = HED().eval().bfloat16()
    half.load_state_dict(ours.state_dict())
    images = torch.rand(BATCH, SIDE, SIDE, 3)
    eight_bit = (images * 255).round().numpy().astype(np.uint8)
    runs = {
        "ours float32": lambda: detect(ours, images),
        "ours bfloat16": lambda: detect(half, images),
        "controlnet_aux": lambda: [theirs(image, output_type="np") for image in eight_bit],
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.process_time()
            run()
            times[name].append((time.process_time() - start) / BATCH)
    print(f"HED, {SIDE} px, batch of {BATCH}, {torch.get_num_threads()} threads, {rounds} turns, CPU seconds a picture")
    for name, values in times.items():
        print(f"  {name:16} median {statistics.median(values):6.2f}")

    def ratio(name: str) -> float:
        return statistics.median(their / own for their, own in zip(times["controlnet_aux"], times[name], strict=True))

    print(f"  float32 {ratio('ours float32'):.2f} x, bfloat16 {ratio('ours bfloat16'):.2f} x as fast as controlnet_aux")
    native = preferred_dtype("cpu") == torch.bfloat16
    return ratio("ours float32") >= 0.98 and (not native or ratio("ours bfloat16") >= 1.5)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    raise SystemExit(0 if measure(parser.parse_args().rounds) else 1)
