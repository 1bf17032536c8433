"""The parts of bench_gpu.py: `python gpu_parts.py PART FIGURES.json FOLDER [--rehearse]`, each a process."""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

import pixart_core as pc  # noqa: E402
from pixart_core.sampling import guided  # noqa: E402
from pixart_core.vae import decode  # noqa: E402

NANO = ROOT / "models" / "nano"
PROMPT = "a small house under a red tree at the lake, mountains in the evening sun, a boat on the water"
GB = 1e9


class Bench:
    """What a part measures with: the device, sizes, and the file that each figure goes to as soon as it is there."""

    def __init__(self, out: Path, folder: Path, rehearse: bool):
        self.out, self.rehearse, self._folder = out, rehearse, folder
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.rounds = 1 if rehearse else 7
        self.large, self.small = (128, 64) if rehearse else (1024, 512)
        self.figures: list[dict[str, Any]] = []
        self.left_out: list[str] = []

    @property
    def folder(self) -> Path:
        """The true-shape pipeline, or the bundled family in a rehearsal."""
        if self.rehearse:
            return NANO
        if not (self._folder / "model_index.json").is_file():
            from tests.bench.bench_pipeline import make_folder

            make_folder(self._folder)
        return self._folder

    def add(self, what: str, value: float, unit: str = "", most: float | None = None, least: float | None = None):
        """A figure, with its target: at most, or at least."""
        figure: dict[str, Any] = {"what": what, "value": float(value), "unit": unit}
        if most is not None:
            figure |= {"target": f"≤ {most:g}", "met": value <= most}
        if least is not None:
            figure |= {"target": f"≥ {least:g}", "met": value >= least}
        self.figures.append(figure)
        self.out.write_text(json.dumps({"figures": self.figures, "left_out": self.left_out}))
        print(f"  {what}: {value:.4g} {unit}", flush=True)

    @contextlib.contextmanager
    def needing(self, *packages: str) -> Iterator[None]:
        """What is inside is left out, and said, where one of these is not there."""
        try:
            yield
        except ImportError as error:
            lacking = next((name for name in packages if name in str(error)), None)
            if lacking is None:
                raise
            self.left_out.append(f"what needs {lacking}: {error}")
            self.out.write_text(json.dumps({"figures": self.figures, "left_out": self.left_out}))

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, call: Callable[[], Any], warm: int = 3) -> float:
        """Median of some rounds, after some that do not count."""
        for _ in range(1 if self.rehearse else warm):
            call()
        taken = []
        for _ in range(self.rounds):
            self.wait()
            begin = time.perf_counter()
            call()
            self.wait()
            taken.append(time.perf_counter() - begin)
        return statistics.median(taken)

    def peak(self, call: Callable[[], Any]) -> float:
        """GB that a call needs beyond what is there before; 0 without CUDA."""
        call()
        if self.device.type != "cuda":
            return 0.0
        self.free()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / GB

    def free(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def pipeline(self, **options: Any) -> pc.Pipeline:
        return pc.Pipeline.from_pretrained(self.folder, device=self.device, **options)


def stages(bench: Bench, pipeline: pc.Pipeline, side: int, **options: Any) -> dict[str, float]:
    """Median seconds of each stage, and of all in all."""
    runs = []
    for index in range(bench.rounds + (1 if bench.rehearse else 3)):
        begin = time.perf_counter()
        pipeline(PROMPT, width=side, height=side, seed=index, **options)
        runs.append({**pipeline.seconds, "all": time.perf_counter() - begin})
    kept = runs[-bench.rounds :]
    return {name: statistics.median(run[name] for run in kept) for name in kept[0]}


def picture(bench: Bench) -> None:
    """Pictures of 4 steps beside diffusers' eager pipeline."""
    plain = bench.pipeline(graphs=False)
    eager = stages(bench, plain, bench.large)
    bench.add(f"{bench.large} px, 4 steps, without graphs", eager["all"], "s")
    del plain
    bench.free()
    pipeline = bench.pipeline()
    large, small = (stages(bench, pipeline, side) for side in (bench.large, bench.small))
    for name in ("encode", "sample", "decode"):
        bench.add(f"{bench.large} px, {name}, graphs", large[name], "s")
    bench.add(f"{bench.large} px, all, graphs", large["all"], "s")
    bench.add(f"{bench.small} px, 4 steps of sampling, graphs", 1000 * small["sample"], "ms", most=20)
    bench.add(f"{bench.small} px, all, graphs", 1000 * small["all"], "ms")
    del pipeline
    bench.free()
    with bench.needing("diffusers"):
        theirs = diffusers_picture(bench)
        bench.add(f"{bench.large} px, 4 steps, diffusers", theirs, "s")
    best = large["all"]
    if not bench.rehearse:  # a CPU's compiler takes minutes for it
        compiled = bench.pipeline(compile=True)
        begin = time.perf_counter()
        compiled(PROMPT)
        bench.add("compiling", time.perf_counter() - begin, "s")
        large, small = (stages(bench, compiled, side) for side in (bench.large, bench.small))
        bench.add(f"{bench.large} px, decode, compiled, graphs", large["decode"], "s")
        bench.add(f"{bench.small} px, all, compiled, graphs", 1000 * small["all"], "ms", most=40)
        best = large["all"]
    bench.add(f"{bench.large} px, 4 steps, all in all, compiled, graphs", best, "s", most=0.115)
    if not bench.left_out:
        bench.add("diffusers / ours", theirs / best, "x", least=2.0)


def diffusers_picture(bench: Bench) -> float:
    """Seconds of diffusers' pipeline, eager, 4 steps."""
    from diffusers import PixArtAlphaPipeline

    dtype = torch.bfloat16 if bench.device.type == "cuda" else torch.float32
    theirs = PixArtAlphaPipeline.from_pretrained(bench.folder, torch_dtype=dtype).to(bench.device)
    theirs.set_progress_bar_config(disable=True)
    theirs.transformer.register_to_config(sample_size=128)  # it gives micro-conditions to models of this size alone
    options = {"use_resolution_binning": False, "clean_caption": False, "width": bench.large, "height": bench.large}
    return bench.seconds(lambda: theirs(PROMPT, num_inference_steps=4, guidance_scale=0.0, **options))


def precision(bench: Bench) -> None:
    """Half precision: LCD's signal and one step, as `bench_precision` measures them."""
    from tests.bench import bench_precision

    rows, _ = bench_precision.measure(str(bench.device), 2 if bench.rehearse else 8)
    for name, errors in rows.items():
        limit = (
            0.10
            if name.startswith(("lcd fp16", "lcm-lora fp16"))
            else {"one step float16": 0.01, "one step bfloat16": 0.06}.get(name)
        )
        bench.add(f"{name}, worst", max(errors.values()), "", most=limit)


def graphs(bench: Bench) -> None:
    """A replay against the plain call, to the last bit; compiled against eager."""
    plain, graphed = bench.pipeline(graphs=False), bench.pipeline()
    for options in ({}, {"sampler": "dpm", "steps": 6}, {"batch": 2}):
        for _ in range(3):
            latent = graphed.sample(PROMPT, width=bench.small, height=bench.small, **options)
        expected = plain.sample(PROMPT, width=bench.small, height=bench.small, **options)
        bench.add(f"largest difference, {options or 'lcm'}", (latent - expected).abs().max().item(), "", most=0)
    bench.add("graphs kept", len(graphed.graphs or ()), "")
    if bench.rehearse:
        return
    eager = decode(plain.vae, latent)
    del graphed
    bench.free()
    compiled = bench.pipeline(compile=True)
    other = decode(compiled.vae, compiled.sample(PROMPT, width=bench.small, height=bench.small, batch=2))
    bench.add(
        "mean difference of compiled and eager pictures", 255 * (eager - other).abs().mean().item(), "/255", most=1
    )


def memory(bench: Bench) -> None:
    """Peaks of pictures with a quantised text encoder, and of the decoder beside its plan."""
    from tests.bench.bench_pipeline import MeasuredPipeline

    for quantization, limit in (("int8", 8.0), ("int4", 5.0)):
        with bench.needing("bitsandbytes"):
            options = {"quantization": quantization, "low_memory": True, "device": bench.device}
            pipeline = MeasuredPipeline.from_pretrained(bench.folder, **options)
            pipeline(PROMPT, width=bench.large, height=bench.large)
            bench.add(f"{quantization}, widest stage", max(pipeline.peaks.values()), "GB", most=limit)
            bench.add(f"{quantization}, plan", pipeline.memory_plan(bench.large, bench.large).peak, "GB")
            begin = time.perf_counter()
            pipeline.text.encode(PROMPT + " again")
            bench.wait()
            bench.add(f"{quantization}, another prompt's encoding", time.perf_counter() - begin, "s")
            del pipeline
            bench.free()
    pipeline = bench.pipeline(graphs=False)
    for side in (64, 128) if bench.rehearse else (512, 1024, 2048):
        latent = torch.randn(1, 4, side // 8, side // 8, device=bench.device)
        measured = bench.peak(lambda latent=latent: decode(pipeline.vae, latent))
        planned = pipeline.memory_plan(side, side)["decode"].activations
        bench.add(f"decoding {side} px", measured, "GB")
        _add_ratio(bench, f"decoding {side} px, measured / planned", measured, planned)
    side, tile = (128, 96) if bench.rehearse else (2048, 512)
    latent = torch.randn(1, 4, side // 8, side // 8, device=bench.device)
    measured = bench.peak(lambda: decode(pipeline.vae, latent, tile=tile))
    planned = pipeline.memory_plan(side, side, tile=tile)["decode"].activations
    bench.add(f"decoding {side} px in tiles of {tile}", measured, "GB")
    _add_ratio(bench, f"decoding {side} px in tiles, measured / planned", measured, planned)


def _add_ratio(bench: Bench, what: str, measured: float, planned: float) -> None:
    """As the larger by the smaller of the two; 1 where nothing was measured."""
    ratio = max(measured / planned, planned / measured) if measured else 1.0
    bench.add(what, ratio, "", most=1.1)


def compiled(bench: Bench) -> None:
    """Seconds until the first picture of a compiled pipeline, and of one in a new process that finds its kernels kept.

    Each process has an empty cache of torch's own. A rehearsal does all but compile: a CPU's compiler takes minutes.
    """
    folder = bench.folder
    with tempfile.TemporaryDirectory() as place:
        for name in ("compiling, first picture", "compiled before, first picture of a new process"):
            size = f"width={bench.small}, height={bench.small}"
            code = (
                "import time, numpy, pixart_core as pc\n"
                f"pipe = pc.Pipeline.from_pretrained({str(folder)!r}, compile={place + '/kept'!r})\n"
                f"begin = time.perf_counter(); made = pipe('a house', 1, {size})[0]\n"
                "seconds = time.perf_counter() - begin\n"
                f"plain = pc.Pipeline.from_pretrained({str(folder)!r})('a house', 1, {size})[0]\n"
                "print(seconds, abs(numpy.asarray(made, float) - numpy.asarray(plain, float)).mean())"
            )
            environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": f"{place}/{len(name)}"}
            environment |= {"TORCHDYNAMO_DISABLE": "1"} if bench.rehearse else {}
            run = subprocess.run(
                [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
            )
            if run.returncode:
                raise RuntimeError(run.stderr[-2000:])
            seconds, difference = map(float, run.stdout.split()[-2:])
            bench.add(name, seconds, "s")
            bench.add(f"{name}: mean difference of compiled and eager", difference, "/255", most=1)
        kept = sum(file.stat().st_size for file in (Path(place) / "kept").glob("*.kernels"))
        bench.add("kernels kept on disk", kept / 1e6, "MB")


def forward(bench: Bench) -> None:
    """One forward of the transformer: the host's time, and the whole, plain and replayed."""
    pipeline = bench.pipeline()
    model, config = pipeline.transformer, pipeline.transformer.config
    for side in (bench.large, bench.small):
        latent = torch.randn(1, 4, side // 8, side // 8, device=bench.device)
        caption = torch.randn(1, config.model_max_length, config.caption_channels, device=bench.device)
        t = torch.full((1,), 999, device=bench.device)

        def call(latent=latent, caption=caption, t=t):
            with torch.no_grad():
                return model(latent, t, caption.to(pipeline.text.dtype))

        whole = bench.seconds(call)
        bench.wait()
        begin = time.perf_counter()
        call()
        host = time.perf_counter() - begin
        bench.add(f"{side} px, a forward", 1000 * whole, "ms")
        bench.add(f"{side} px, of which the host", 1000 * host, "ms")
        steps = [999] * (3 + bench.rounds)
        times = []
        from pixart_core.steps import Steps

        predict = guided(Steps(model, steps, graphs=pipeline.graphs), {"caption": caption, "caption_mask": None}, 1.0)
        for _ in steps:
            bench.wait()
            begin = time.perf_counter()
            with torch.no_grad():
                predict(latent, t)
            bench.wait()
            times.append(time.perf_counter() - begin)
        bench.add(f"{side} px, a step, replayed", 1000 * statistics.median(times[3:]), "ms")


def more(bench: Bench) -> None:
    """Other pictures: the base model's, batches, large ones, control."""
    pipeline = bench.pipeline()
    cases: dict[str, dict[str, Any]] = {
        "base model, 14 steps with guidance": {"sampler": "dpm", "steps": 14},
        "batch 4": {"batch": 4},
        "2 steps": {"steps": 2},
        "1 step": {"steps": 1},
    }
    if pipeline.controlnet is not None:
        side = bench.large // 8
        cases["with control"] = {"hint": torch.rand(1, 4, side, side)}
    if not bench.rehearse:
        cases["2048 px"] = {"width": 2048, "height": 2048}
    for name, options in cases.items():
        options = {"width": bench.large, "height": bench.large, **options}
        seconds = bench.seconds(lambda options=options: pipeline.sample(PROMPT, **options), warm=2)
        bench.add(f"{name}, encoding and sampling", seconds, "s")


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
            with bench.needing("diffusers", "bitsandbytes"):
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
                    bench.add(f"{name}: measured / estimated", peak / planned, "", most=1.03)
                del loop
                bench.free()
                torch._dynamo.reset()
        if bench.device.type == "cuda" and "H200" in torch.cuda.get_device_name():
            bench.add("ours / bf16 before the float32 stream, 1.60 s", seconds["ours"] / 1.60, "x", most=1.1)
        if "diffusers' loop" in seconds:
            best = min(value for name, value in seconds.items() if name in ("ours", "ours, compiled"))
            bench.add("diffusers' loop / ours", seconds["diffusers' loop"] / best, "x", least=1.5)


def nano_step(bench: Bench) -> None:
    """A step on the bundled model, where launching is all."""
    import tests.bench.bench_train as bt

    values = {"run": "none", "data": "none", "base": str(bt.BASE), "batch_size": 2 if bench.rehearse else 16}
    for name, switch in {"": None, ", one graph": "cuda_graph", ", compiled": "compile"}.items():
        if switch and bench.rehearse:
            continue
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
        runs = blp.runs_of(folder, ["fp32"] if bench.rehearse else list(blp.ARMS), 1 if bench.rehearse else 3)
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
            bench.add(f"{row.name} (the paper: {row.paper:g} s)", row.seconds, "s")
            bench.add(f"{row.name} / PixArt-δ (the paper: {row.paper / 0.5:.2g})", row.ratio, "x")


def commands(bench: Bench) -> None:
    """Every training command on the bundled family; one killed and resumed."""
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
                subprocess.run([*train, *words], check=True, capture_output=True)
            bench.add(f"train.py {name}", time.perf_counter() - begin, "s")

        def settings(**values: Any) -> list[str]:
            return [word for name, value in values.items() for word in ("--set", f"{name}={value}")]

        scenes = {"input": str(NANO / "scenes"), "output": data, "models": str(NANO), "resolution": 128}
        run("prepare", "prepare", *settings(**scenes, hints="hed", hed=str(NANO / "hed/hed.safetensors")))
        common = {"data": data, "base": str(NANO / "base/pixart_nano_base.safetensors"), "batch_size": 4}
        common |= {"steps": steps, "checkpoint_every": max(1, steps // 2), "tensorboard": "false"}
        for name in ("lcd", "lcm-lora", "controlnet", "finetune"):
            with bench.needing("peft"):
                more = {"copy_blocks": 1} if name == "controlnet" else {}
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


def tests(bench: Bench) -> None:
    """The tests marked `gpu`, and their bodies on the CPU."""
    options = ["-m", "gpu"] if bench.device.type == "cuda" else ["-k", "cpu and picture"]
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", "tests/gpu", *options]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    print(out.stdout[-1500:])
    counts = {word.rstrip(","): int(number) for number, word in _pairs(out.stdout.strip().splitlines()[-1].split())}
    bench.add("tests passed", counts.get("passed", 0), "")
    bench.add("tests failed", counts.get("failed", 0) + counts.get("error", 0), "", most=0)


def _pairs(words: list[str]) -> list[tuple[str, str]]:
    return [(one, other) for one, other in zip(words, words[1:], strict=False) if one.isdigit()]


def comfyui(bench: Bench) -> None:
    """A real ComfyUI with this extension on the device: the bundled workflows, then true shape beside its own nodes."""
    from tests.bench import gpu_comfyui

    with bench.needing("websocket"):
        gpu_comfyui.measure(bench)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part")
    parser.add_argument("out", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args()
    bench = Bench(options.out, options.folder, options.rehearse)
    globals()[options.part](bench)
    return 0


if __name__ == "__main__":
    sys.exit(main())
