"""What the extension adds to ComfyUI's start, by the line that ComfyUI itself prints for every custom node.

    python tests/bench/bench_startup.py [--starts 3]

Exits with 1 when the median is 0.3 s or more with any supported ComfyUI.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tools.comfy_server import ComfyServer, comfyui_trees  # noqa: E402

LIMIT_SECONDS = 0.3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=3)
    starts = parser.parse_args().starts
    met = True
    for version, tree in comfyui_trees().items():
        seconds = []
        for _ in range(starts):
            with tempfile.TemporaryDirectory(prefix="startup-") as folder, ComfyServer(tree, folder) as server:
                seconds.append(server.import_seconds())
        median = statistics.median(seconds)
        met = met and median < LIMIT_SECONDS
        print(f"ComfyUI {version}: {median:.1f} s (of {starts} starts: {', '.join(map(str, seconds))})", flush=True)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
