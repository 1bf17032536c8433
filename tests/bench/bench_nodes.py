"""Inside ComfyUI, at true shape, random weights: the 8-bit text encoder's memory, a step's time beside pixart_core's.

    python tests/bench/bench_nodes.py [--folder KEEP_HERE] [--skip-text]

1. T5-XXL (9.5 GB of bf16 shards) through the text-encoder node with quantization "8-bit": peak memory of the whole
   ComfyUI process (VmHWM, which counts mapped file pages, and RssAnon, which does not), seconds to load and to encode.
2. One step of the 611 M-parameter model at 512 px through ComfyUI's MODEL, in the dtype the loader chooses, and the
   same weights in pixart_core. They take turns; the ratio is of CPU seconds.

Exits with 1 when the 8-bit encoder takes more than 9 GB, or ComfyUI's layers cost more than 5 % of a step.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

LIMIT_GB, LIMIT_RATIO, ROUNDS = 9, 1.05, 5
PROMPT = "a small house under a red tree at the lake, mountains in the evening sun, a boat on the water, oil painting"


def measure_text(part, folder: Path) -> dict[str, float]:
    spec = importlib.util.spec_from_file_location("bench_text", ROOT / "tests" / "bench" / "bench_text.py")
    bench_text = importlib.util.module_from_spec(spec)  # by path: ComfyUI has a folder `tests` of its own
    spec.loader.exec_module(bench_text)
    load_clip, encode = part("nodes.bridge.clip").load_clip, part("nodes.bridge.prompt").encode_prompts
    memory = bench_text.PeakMemory()
    base = memory.read("RssAnon")
    memory.start()
    started = time.perf_counter()
    clip = load_clip(str(folder / "t5"), "8-bit")
    loaded = time.perf_counter()
    caption = encode(clip, PROMPT, "", 0, 0, False)[0][0][0]
    encoded = time.perf_counter()
    assert caption.shape[-1] == 4096 and caption.isfinite().all()
    return {
        "load s": loaded - started,
        "encode s": encoded - loaded,
        "ComfyUI alone GB": base,
        "resident GB": clip.patcher.model_size() / 1e9,
        **memory.stop(),
    }


def measure_step(part, folder: Path) -> dict[str, float]:
    import torch

    core, load_model = part("pixart_core"), part("nodes.bridge.model").load_model
    path = folder / "pixart.safetensors"
    if not path.exists():
        part("pixart_core.checkpoint").save_pixart(core.PixArt(core.PIXART_1024_MS).initialize_weights(), path)
    patcher = load_model(str(path))
    dtype = patcher.model.product_dtype()
    ours, plain = patcher.model.diffusion_model, core.load_pixart(path, dtype=dtype)
    x, t, caption = torch.randn(1, 4, 64, 64, dtype=dtype), torch.tensor([500.0]), torch.randn(1, 60, 4096, dtype=dtype)
    seconds: dict[str, list[float]] = {"ComfyUI": [], "pixart_core": []}
    for _ in range(ROUNDS + 1):
        for name, model in (("ComfyUI", ours), ("pixart_core", plain)):
            started = time.process_time()
            model(x, t, caption)
            seconds[name].append(time.process_time() - started)
    ratio = statistics.median(a / b for a, b in zip(*(times[1:] for times in seconds.values()), strict=True))
    return {f"{name} CPU s": statistics.median(times[1:]) for name, times in seconds.items()} | {"ratio": ratio}


def child(comfyui: str, kind: str, folder: str) -> None:
    """Runs in ComfyUI's interpreter."""
    sys.path.insert(0, str(ROOT / "tests" / "nodes"))
    import inside

    part = inside.start(comfyui)
    import torch

    with torch.inference_mode():
        print("RESULT " + json.dumps({"text": measure_text, "step": measure_step}[kind](part, Path(folder))))


def run(comfyui: Path, kind: str, folder: Path) -> dict[str, float]:
    result = subprocess.run(
        [sys.executable, __file__, "--child", str(comfyui), kind, str(folder)],
        capture_output=True,
        text=True,
        cwd=comfyui,
    )
    line = next((line for line in result.stdout.splitlines() if line.startswith("RESULT ")), None)
    if line is None:
        raise SystemExit(f"the measurement {kind!r} failed:\n{result.stderr[-3000:]}")
    values = json.loads(line.removeprefix("RESULT "))
    print(f"{kind}: " + ", ".join(f"{name} {value:.2f}" for name, value in values.items()), flush=True)
    return values


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="keep the weights here and use them again")
    parser.add_argument("--skip-text", action="store_true")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(*arguments.child)
        return 0
    from tests.bench.bench_text import make_t5
    from tools.comfy_server import comfyui_trees

    version, comfyui = next(iter(comfyui_trees().items()))
    print(f"ComfyUI {version}")
    with tempfile.TemporaryDirectory(prefix="pixart-delta-bench-") as temporary:
        folder = arguments.folder or Path(temporary)
        met = run(comfyui, "step", folder)["ratio"] <= LIMIT_RATIO
        if not arguments.skip_text:
            if not (folder / "t5" / "config.json").exists():
                make_t5(folder / "t5")
            met = run(comfyui, "text", folder)["VmHWM"] <= LIMIT_GB and met
    print("targets met" if met else f"MISSED: {LIMIT_GB} GB for the text encoder, ratio {LIMIT_RATIO} for a step")
    return 0 if met else 1


if __name__ == "__main__":
    raise SystemExit(main())
