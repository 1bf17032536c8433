"""The parts of bench_gpu.py that train; see gpu_parts.py."""

from __future__ import annotations

import importlib
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import pixart_core as pc
from tests.bench.gpu_bench import GB, NANO, ROOT, Bench


def lcd(bench: Bench) -> None:
    """A step of distillation beside the loop over diffusers, and the paper's Table 1: memory."""
    import tests.bench.bench_train as bt

    shape = (
        pc.PixArtConfig(input_size=16, hidden_size=48, depth=2, num_heads=4, caption_channels=64)
        if bench.rehearse
        else pc.PIXART_1024_MS
    )
    side, tokens, rows = (16, 16, 4) if bench.rehearse else (128, 120, 12)
    with tempfile.TemporaryDirectory() as place:
        common = {"run": "none", "data": "none", "gradient_checkpointing": True, "base": bt._random_base(shape, place)}
        cases: dict[str, tuple[Any, dict[str, Any], float | None]] = {
            "ours": (bt.Ours, {"batch_size": rows}, 24),
            "diffusers' loop": (bt.Plain, {"batch_size": rows}, None),
            "ours, 3 micro-batches, 8-bit AdamW": (
                bt.Ours,
                {"batch_size": max(1, rows // 3), "accumulation": 3, "optimizer": "adamw8bit"},
                16,
            ),
            "ours, compiled": (bt.Ours, {"batch_size": rows, "compile": True}, 24),
            "ours, compiled, attention kept": (
                bt.Ours,
                {"batch_size": rows, "compile": True, "keep_attention": True},
                None,
            ),
        }
        if bench.rehearse:
            cases = {name: case for name, case in cases.items() if "compiled" not in name}
        seconds: dict[str, float] = {}
        for name, (kind, values, limit) in cases.items():
            with bench.apart(name), bench.needing("diffusers", "bitsandbytes"):
                config = bt.decided(bt.make_config("lcd", {**common, **values}), bench.device)
                bench.free()
                if bench.device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                batches = bt.Batches(config, shape, side, tokens)
                loop = kind(config, batches) if kind is bt.Ours else kind(config, batches, bench.device)
                seconds[name] = bench.seconds(loop.step, warm=2)
                bench.add(f"{name}: a step ({config.precision})", seconds[name], "s")
                if bench.device.type == "cuda":
                    peak = torch.cuda.max_memory_allocated() / GB
                    bench.add(f"{name}: memory (the paper's: 32 GB)", peak, "GB", most=limit)
                    planned = bt.estimate(config, shape, 8 * side, 8 * side).memory / GB
                    if kind is bt.Ours:  # nothing estimates diffusers' loop
                        bench.add(f"{name}: measured / estimated", peak / planned, "", most=1.03)
            loop = None  # also of a case that failed
            bench.free()
            torch._dynamo.reset()
        if "ours" in seconds and bench.device.type == "cuda" and "H200" in torch.cuda.get_device_name():
            bench.add("ours / bf16 before the float32 stream, 1.60 s", seconds["ours"] / 1.60, "x", most=1.1)
        ours = [seconds[name] for name in ("ours", "ours, compiled") if name in seconds]
        if "diffusers' loop" in seconds and ours:
            bench.add("diffusers' loop / ours", seconds["diffusers' loop"] / min(ours), "x", least=1.5)


def nano_step(bench: Bench) -> None:
    """A step on the bundled model, where launching is all."""
    import tests.bench.bench_train as bt

    values = {"run": "none", "data": "none", "base": str(bt.BASE), "batch_size": 2 if bench.rehearse else 16}
    for name, switch in {"": None, ", one graph": "cuda_graph", ", compiled": "compile"}.items():
        if switch and bench.rehearse:
            continue
        with bench.apart(f"nano{name}"):
            config = bt.decided(bt.make_config("lcd", {**values, **({switch: True} if switch else {})}), bench.device)
            loop = bt.Ours(config, bt.Batches(config, pc.load_pixart(bt.BASE).config, 16, 40))
            bench.add(f"nano, a step{name}", 1000 * bench.seconds(loop.step), "ms", most=8 if switch else None)
            if loop.engine.replayed is not None:
                bench.add("nano, micro-batches replayed", loop.engine.replayed.counts["replayed"], "", least=1)


def lcd_precision(bench: Bench) -> None:
    """What half precision costs a distillation of nano in 500 steps, by one- and two-step pictures of three seeds."""
    from tests.bench import bench_lcd_precision as blp

    with tempfile.TemporaryDirectory() as place:
        folder = ROOT / "output" / "bench" / "lcd_precision_gpu" if not bench.rehearse else Path(place)
        arms = ["fp32"] if bench.rehearse else list(blp.ARMS)
        if "old" in arms and not blp.has_before():
            arms.remove("old")
            bench.leave_out(f"{blp.ARMS['old']}: its commit is not here")
        runs = blp.runs_of(folder, arms, 1 if bench.rehearse else 3)
        small = {"steps": 1, "pictures": 24} if bench.rehearse else {}
        blp.train_all(runs, folder, **small)
        known = blp.examine(folder, runs, 66 if bench.rehearse else 200)
        _, first = blp.table(known, 500)
        for name, marks in known.items():
            for steps, mark in marks.items():
                bench.add(f"{name}, {steps} steps, attributes", mark["attributes"], "%")
                bench.add(f"{name}, {steps} steps, Fréchet", mark["distance"])
        if "fp16" in first:
            bench.add("fp16, 1 step, attributes, mean", first["fp16"], "%", least=first["fp32"] - blp.LOST)


def table2(bench: Bench) -> None:
    """The paper's Table 2, through diffusers at true shape."""
    from tests.bench import bench_table2

    with bench.needing("diffusers", "transformers"):
        for row in bench_table2.measure(bench.device, bench.rehearse, bench.rounds):
            for figure in bench_table2.figures(row):
                bench.add(*figure.values())


def commands(bench: Bench) -> None:
    """Every training command on the bundled family; one that stops half way and is resumed."""
    if not bench.has("accelerate"):
        return
    train = [sys.executable, str(ROOT / "training" / "train.py")]
    steps = 2 if bench.rehearse else 40
    with tempfile.TemporaryDirectory() as place:
        data = f"{place}/features"

        def run(name: str, *words: str) -> None:
            begin = time.perf_counter()
            if bench.rehearse:  # in this process: each of its own spends most of its time with imports
                importlib.import_module("tests.conftest")  # registers the package
                if status := importlib.import_module("pixart_delta.training.cli").main(list(words)):
                    raise RuntimeError(f"train.py {name} ended with exit status {status}")
            else:
                done = subprocess.run([*train, *words], capture_output=True, text=True)
                if done.returncode:
                    raise RuntimeError(f"train.py {name}: {(done.stderr or done.stdout)[-2000:]}")
            bench.add(f"train.py {name}", time.perf_counter() - begin, "s")

        def settings(**values: Any) -> list[str]:
            return [word for name, value in values.items() for word in ("--set", f"{name}={value}")]

        scenes = {"input": str(NANO / "scenes"), "output": data, "models": str(NANO), "resolution": 128}
        run("prepare", "prepare", *settings(**scenes, hints="hed", hed=str(NANO / "hed/hed.safetensors")))
        common = {"data": data, "base": str(NANO / "base/pixart_nano_base.safetensors"), "batch_size": 4}
        common |= {"steps": steps, "checkpoint_every": max(1, steps // 2), "tensorboard": "false"}
        for name in ("lcd", "lcm-lora", "controlnet", "finetune"):
            if name == "lcm-lora" and not bench.has("peft"):
                continue
            more = {"copy_blocks": 1} if name == "controlnet" else {}
            with bench.apart(name):
                run(name, name, *settings(**common, **more, run=f"{place}/{name}"))
        half = {**common, "steps": max(1, steps // 2)}
        run("lcd, stopped half way", "lcd", *settings(**half, run=f"{place}/halves"))
        run("lcd, resumed", "lcd", *settings(**common, run=f"{place}/halves"))
        bench.add("largest difference of resumed and unbroken", _difference(Path(place), "lcd", "halves"), "")
        exact = {**common, "deterministic": "true"}
        run("lcd, deterministic", "lcd", *settings(**exact, run=f"{place}/exact"))
        run("lcd, deterministic, stopped", "lcd", *settings(**exact | half, run=f"{place}/exact_halves"))
        run("lcd, deterministic, resumed", "lcd", *settings(**exact, run=f"{place}/exact_halves"))
        bench.add("the same, deterministic", _difference(Path(place), "exact", "exact_halves"), "", most=0)


def _difference(place: Path, *runs: str) -> float:
    from safetensors.torch import load_file

    one, other = (load_file(max((place / run / "checkpoints").glob("*.safetensors"))) for run in runs)
    names = [name for name in one if name.startswith("model.")]
    return max((one[name].float() - other[name].float()).abs().max().item() for name in names)
