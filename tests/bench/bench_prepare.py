"""Memory of `prepare` at true shape, with random weights: eight drawn pictures of 1024 px, T5-XXL, the released
autoencoder's shape. On a CPU the peak of memory that must exist (RssAnon: mapped files do not count), on a GPU that of
the device as well.

    python tests/bench/bench_prepare.py [--pictures 8] [--resolution 1024] [--layers 24] [--device cpu]

With fewer --layers of T5 it takes less time and disk (9.5 GB for 24); its peak is that of one layer. Exits with 1 when
`prepare` takes more than 6 GB.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import tests.conftest  # noqa: E402, F401  registers the root folder as a package

LIMIT_GB = 6
SD_VAE = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "sample_size": 512,
}


def make_models(folder: Path, layers: int) -> None:
    """A pipeline folder of true shapes."""
    import torch
    from diffusers import AutoencoderKL

    from tests.bench.bench_text import T5_XXL, make_t5

    make_t5(folder, T5_XXL | {"num_layers": layers})
    torch.manual_seed(0)
    AutoencoderKL(**SD_VAE).save_pretrained(folder / "vae")


def make_pictures(folder: Path, count: int, side: int) -> None:
    """Pictures whose captions have some 40 words."""
    from tests.training.picture_fixture import draw_picture

    folder.mkdir(parents=True)
    for number in range(count):
        draw_picture(number, side, side).save(folder / f"{number:04d}.jpg", quality=90)
        (folder / f"{number:04d}.txt").write_text(f"{number} " + "a small house under a red tree at the lake, " * 4)


def one(arguments) -> None:
    """Prepare in this process, and print what it took."""
    import torch
    from pixart_delta.training.config import PrepareConfig
    from pixart_delta.training.prepare.run import prepare

    peak, ended = 0, threading.Event()

    def read() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.02):
            peak = max(peak, read())

    before = read()
    threading.Thread(target=watch, daemon=True).start()
    begin, folder = time.perf_counter(), Path(arguments.folder)
    prepare(
        PrepareConfig(
            input=str(folder / "pictures"),
            output=str(folder / "out"),
            models=str(folder / "models"),
            resolution=arguments.resolution,
            workers=1,
            device=arguments.device,
        )
    )
    ended.set()
    result = {"imports_GB": before / 1e9, "peak_RssAnon_GB": peak / 1e9, "seconds": time.perf_counter() - begin}
    if torch.cuda.is_available():
        result["peak_of_the_device_GB"] = torch.cuda.max_memory_allocated() / 1e9
    print(json.dumps({name: round(value, 2) for name, value in result.items()}))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--resolution", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.folder:
        one(arguments)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        make_models(Path(folder, "models"), arguments.layers)
        make_pictures(Path(folder, "pictures"), arguments.pictures, arguments.resolution)
        given = ["--resolution", str(arguments.resolution), "--device", arguments.device, "--folder", folder]
        done = subprocess.run([sys.executable, __file__, *given], capture_output=True, text=True)
    print(done.stdout, done.stderr[-2000:] if done.returncode else "", sep="")
    if done.returncode:
        return 1
    result = json.loads(done.stdout.splitlines()[-1])
    peak = max(result["peak_RssAnon_GB"], result.get("peak_of_the_device_GB", 0))
    print(f"{peak:.1f} GB at most, of {LIMIT_GB}")
    return peak > LIMIT_GB


if __name__ == "__main__":
    sys.exit(main())
