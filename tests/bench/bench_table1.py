"""The paper's Table 1 on the device at hand: memory and time of a step of distillation, beside its 32 GB.

    python -m tools.bench table1 [--rehearse]

Ours, with 8-bit AdamW, compiled, and the loop over diffusers, at 1024 px and batch 12 (the paper's on one GPU). It
is the part `lcd` of `python -m tools.bench gpu`. Without a GPU only --rehearse runs, small, and measures no memory.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch  # noqa: E402

from tests.bench.gpu_bench import Bench  # noqa: E402
from tests.bench.gpu_trainings import lcd  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args()
    if not torch.cuda.is_available() and not options.rehearse:
        print("no CUDA device: nothing is measured (--rehearse runs a small model)")
        return 0
    with tempfile.TemporaryDirectory() as place:
        bench = Bench(Path(place) / "figures.json", Path(place) / "none", options.rehearse)
        lcd(bench)
    met = all(figure.get("met", True) for figure in bench.figures)
    return 1 if bench.failed or not met and not options.rehearse else 0


if __name__ == "__main__":
    sys.exit(main())
