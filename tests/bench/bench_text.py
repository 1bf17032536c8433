"""T5-XXL at its true shape with random weights: load time, peak memory and encode time, in bf16, 8-bit and 4-bit.

    python tests/bench/bench_text.py [--modes int8 int4 none] [--folder KEEP_HERE]

The encoder (24 layers, 4.76 B parameters, 9.5 GB of bf16 safetensors in 2 GB shards) is written shard by shard to a
temporary folder. Each mode runs in its own process. Two peaks are printed: VmHWM counts file pages that happen to be
mapped, which the kernel may drop at any time; RssAnon is memory that must exist. Exits with 1 when 8 bits take more
than 9 GB (VmHWM).
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

LIMIT_GB = 9
T5_XXL = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "vocab_size": 32128}
PROMPT = "a small house under a red tree at the lake, mountains in the evening sun, a boat on the water, oil painting"


def t5_shapes(d_model, d_kv, d_ff, num_layers, num_heads, vocab_size) -> dict[str, tuple[tuple[int, ...], float]]:
    """Parameter name -> (shape, standard deviation of T5's own initialisation)."""
    inner = num_heads * d_kv
    shapes = {"shared.weight": ((vocab_size, d_model), 1.0), "encoder.final_layer_norm.weight": ((d_model,), 0.0)}
    for i in range(num_layers):
        attention, ff = f"encoder.block.{i}.layer.0", f"encoder.block.{i}.layer.1"
        shapes[f"{attention}.SelfAttention.q.weight"] = ((inner, d_model), (d_model * d_kv) ** -0.5)
        for name in "kv":
            shapes[f"{attention}.SelfAttention.{name}.weight"] = ((inner, d_model), d_model**-0.5)
        shapes[f"{attention}.SelfAttention.o.weight"] = ((d_model, inner), inner**-0.5)
        shapes[f"{attention}.layer_norm.weight"] = ((d_model,), 0.0)
        for name in ("wi_0", "wi_1"):
            shapes[f"{ff}.DenseReluDense.{name}.weight"] = ((d_ff, d_model), d_model**-0.5)
        shapes[f"{ff}.DenseReluDense.wo.weight"] = ((d_model, d_ff), d_ff**-0.5)
        shapes[f"{ff}.layer_norm.weight"] = ((d_model,), 0.0)
    name = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    shapes[name] = ((32, num_heads), d_model**-0.5)
    return shapes


def make_t5(folder: Path, shape=None, shard_bytes: int = 2 << 30) -> int:
    """Write a sharded bf16 T5 encoder, beside it the bundled tokenizer; returns the number of parameters."""
    import math

    import torch
    from safetensors.torch import save_file

    shape = shape or T5_XXL
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(ROOT / "models" / "nano" / "tokenizer", folder / "tokenizer")
    config = {
        "model_type": "t5",
        "architectures": ["T5EncoderModel"],
        "feed_forward_proj": "gated-gelu",
        "relative_attention_num_buckets": 32,
        "is_encoder_decoder": False,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "torch_dtype": "bfloat16",
        **shape,
    }
    (folder / "config.json").write_text(json.dumps(config))
    # One pool of normal numbers, read at another offset for every tensor: 4.76 B fresh ones would take minutes.
    pool = torch.randn(1 << 26, generator=torch.Generator().manual_seed(0)).bfloat16()
    shards, current, size, total = [], {}, 0, 0
    for index, (name, (dims, std)) in enumerate(t5_shapes(**shape).items()):
        count = math.prod(dims)
        total += count
        if std == 0.0:
            tensor = torch.ones(dims, dtype=torch.bfloat16)
        else:
            start = index * 7919 % len(pool)
            repeats = -(-(start + count) // len(pool))
            tensor = pool.repeat(repeats)[start : start + count].mul_(std).reshape(dims).clone()
        if size + 2 * count > shard_bytes and current:
            shards.append(list(current))
            save_file(current, folder / f"part-{len(shards)}.safetensors", metadata={"format": "pt"})
            current, size = {}, 0
        current[name] = tensor
        size += 2 * count
    shards.append(list(current))
    save_file(current, folder / f"part-{len(shards)}.safetensors", metadata={"format": "pt"})
    weight_map = {name: f"part-{number}.safetensors" for number, names in enumerate(shards, 1) for name in names}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": 2 * total}, "weight_map": weight_map})
    )
    return total


class PeakMemory(threading.Thread):
    """Samples /proc/self/status every 20 ms while running; GB."""

    def __init__(self):
        super().__init__(daemon=True)
        self.anonymous, self._stop_flag = 0.0, threading.Event()

    @staticmethod
    def read(field: str) -> float:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024 / 1e9
        raise KeyError(field)

    def run(self):
        while not self._stop_flag.wait(0.02):
            self.anonymous = max(self.anonymous, self.read("RssAnon"))

    def stop(self) -> dict[str, float]:
        self._stop_flag.set()
        self.join()
        return {"VmHWM": self.read("VmHWM"), "RssAnon": max(self.anonymous, self.read("RssAnon"))}


def measure(folder: Path, mode: str) -> dict[str, float]:
    """Load and encode in this process."""
    import torch

    from pixart_core.text import TextEncoder

    peak = PeakMemory()
    peak.start()
    encoder = TextEncoder.from_pretrained(
        folder, quantization=mode, device="cuda" if torch.cuda.is_available() else "cpu"
    )
    start, cpu = time.perf_counter(), time.process_time()
    encoder.load()
    load, cpu = time.perf_counter() - start, time.process_time() - cpu
    after = peak.read("RssAnon")
    encoder.encode(PROMPT)
    start = time.perf_counter()
    caption, mask = encoder.encode(PROMPT)
    seconds = time.perf_counter() - start
    peaks = peak.stop()
    encoder.unload()
    result = {
        "load_s": load,
        "load_cpu_s": cpu,
        "encode_s": seconds,
        "tokens": int(mask.sum()),
        "anon_after_load_GB": after,
        "anon_after_unload_GB": peak.read("RssAnon"),
        **{f"peak_{name}_GB": value for name, value in peaks.items()},
    }
    if torch.cuda.is_available():
        result["peak_cuda_GB"] = torch.cuda.max_memory_allocated() / 1e9
    return result


def run(folder: Path, modes: list[str]) -> bool:
    """Measure and print every mode; whether 8 bits stay under LIMIT_GB."""
    met = True
    for mode in modes:
        output = subprocess.run(
            [sys.executable, __file__, "--measure", mode, "--folder", str(folder)], capture_output=True, text=True
        )
        if output.returncode:
            raise SystemExit(f"{mode} failed:\n{output.stderr[-3000:]}")
        result = json.loads(output.stdout.strip().splitlines()[-1])
        print(f"{mode:5}", "  ".join(f"{key} {value:.2f}" for key, value in result.items()), flush=True)
        met = met and (mode != "int8" or result["peak_VmHWM_GB"] < LIMIT_GB)
    return met


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modes", nargs="+", default=["int8", "int4", "none"], choices=["int8", "int4", "none"])
    parser.add_argument("--folder", type=Path, help="use this folder, made if it is not there, and keep it")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.folder, args.measure)))
        return 0
    with tempfile.TemporaryDirectory(prefix="t5xxl_") as temporary:
        folder = args.folder or Path(temporary)
        if not (folder / "model.safetensors.index.json").exists():
            start = time.perf_counter()
            print(f"made {make_t5(folder) / 1e9:.2f} B parameters in {time.perf_counter() - start:.0f} s", flush=True)
        return 0 if run(folder, args.modes) else 1


if __name__ == "__main__":
    sys.exit(main())
