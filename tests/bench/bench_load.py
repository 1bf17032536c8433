"""Loading the 1024-MS transformer at its true shape (611 M parameters, random weights): seconds and peak memory.

    python tests/bench/bench_load.py [--folder KEEP_HERE]

Writes the model as a 2.4 GB float32 safetensors file, as the authors' .pth and as a diffusers folder; each load runs in
a process of its own, with the files in the page cache. Targets: under 10 s, peak resident memory under file + 0.5 GB.
The peak is the whole process's, PyTorch included; "anonymous" is what stays when the kernel takes mapped pages back.
"CPU s" is what the load itself computes: where it is far below "seconds", the machine was busy or the disk was slow.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SECONDS, OVERHEAD_GB = 10.0, 0.5

LOAD = """
import json, sys, time
import torch
import pixart_core as pc
from pixart_core import checkpoint  # imports are not part of loading
path, dtype = sys.argv[1:]
start, cpu = time.perf_counter(), time.process_time()
model = pc.load_pixart(path, dtype=getattr(torch, dtype) if dtype != "None" else None)
seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
memory = dict(line.split(":") for line in open("/proc/self/status"))
gigabytes = lambda key: int(memory[key].split()[0]) * 1024 / 1e9
print(json.dumps({"seconds": seconds, "cpu": cpu, "peak": gigabytes("VmHWM"), "anonymous": gigabytes("RssAnon"),
                  "dtype": str(next(model.parameters()).dtype)}))
"""

WRITE = """
import sys
from pathlib import Path
import torch
import pixart_core as pc
from pixart_core.checkpoint import save_pixart
folder = Path(sys.argv[1])
torch.manual_seed(0)
model = pc.PixArt(pc.PIXART_1024_MS).requires_grad_(False)
for tensor in [*model.parameters(), *model.buffers()]:
    tensor.normal_(std=0.02)
save_pixart(model, folder / "model.safetensors")
torch.save({"state_dict": model.state_dict()}, folder / "model.pth")
save_pixart(model, folder / "transformer", layout="diffusers")
"""


def python(script: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", script, *arguments], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout


def measure(folder: Path) -> bool:
    """Print one line per case; whether all targets were met."""
    if not (folder / "transformer" / "config.json").exists():
        python(WRITE, str(folder))
    size = (folder / "model.safetensors").stat().st_size / 1e9
    print(f"file {size:.2f} GB float32; targets: < {SECONDS:.0f} s, peak < {size + OVERHEAD_GB:.2f} GB")
    print(f"{'what':<20} {'as':<9} {'seconds':>8} {'CPU s':>6} {'peak GB':>8} {'anonymous GB':>13}")
    met = True
    for name in ("model.safetensors", "model.pth", "transformer"):
        for dtype in ("None", "bfloat16"):
            python(LOAD, str(folder / name), dtype)  # once for the page cache
            row = json.loads(python(LOAD, str(folder / name), dtype).splitlines()[-1])
            good = row["seconds"] < SECONDS and row["peak"] < size + OVERHEAD_GB
            met = met and good
            print(
                f"{name:<20} {row['dtype'].removeprefix('torch.'):<9} {row['seconds']:8.2f} {row['cpu']:6.2f} "
                f"{row['peak']:8.2f} {row['anonymous']:13.2f} {'' if good else '  over target'}",
                flush=True,
            )
    return met


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="write the files here and keep them")
    arguments = parser.parse_args()
    if arguments.folder:
        arguments.folder.mkdir(parents=True, exist_ok=True)
        return 0 if measure(arguments.folder) else 1
    with tempfile.TemporaryDirectory(prefix="pixart_load_") as folder:
        return 0 if measure(Path(folder)) else 1


if __name__ == "__main__":
    sys.exit(main())
