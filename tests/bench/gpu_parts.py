"""The parts of bench_gpu.py: `python gpu_parts.py PART FIGURES.json FOLDER [--rehearse]`, each a process."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

import pixart_core as pc  # noqa: E402
from pixart_core.sampling import guided  # noqa: E402
from pixart_core.vae import decode  # noqa: E402
from tests.bench.bench_gpu import PACKAGES  # noqa: E402
from tests.bench.gpu_bench import NANO, PROMPT, Bench  # noqa: E402
from tests.bench.gpu_trainings import commands, lcd, lcd_precision, nano_step, table2  # noqa: E402, F401  by name


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
    best = large["all"]
    if not bench.rehearse:  # a CPU's compiler takes minutes for it
        with bench.apart("compiled"):
            best = compiled_picture(bench)
    bench.free()
    # Last, because ours need nothing of theirs: what another version cannot open is only theirs.
    with bench.apart("diffusers"), bench.needing("diffusers", "transformers"):
        theirs = diffusers_picture(bench)
        bench.add(f"{bench.large} px, 4 steps, diffusers", theirs, "s")
        bench.add("diffusers / ours", theirs / best, "x", least=2.0)


def compiled_picture(bench: Bench) -> float:
    """Seconds of a compiled pipeline, all in all; the large size is measured before the small one compiles anew."""
    compiled = bench.pipeline(compile=True)
    begin = time.perf_counter()
    compiled(PROMPT, width=bench.large, height=bench.large)
    bench.add("compiling", time.perf_counter() - begin, "s")
    large = stages(bench, compiled, bench.large)
    bench.add(f"{bench.large} px, decode, compiled, graphs", large["decode"], "s")
    bench.add(f"{bench.large} px, 4 steps, all in all, compiled, graphs", large["all"], "s", most=0.115)
    small = stages(bench, compiled, bench.small)
    bench.add(f"{bench.small} px, all, compiled, graphs", 1000 * small["all"], "ms", most=40)
    return large["all"]


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
    one_step_attributes(bench)


def one_step_attributes(bench: Bench) -> None:
    """Attributes right of the bundled student's one-step pictures in each dtype, within a point of float32's."""
    from tests.bench.half import where_emulated

    evaluate = importlib.import_module("pixart_delta.training.nano.evaluate")
    prompts = evaluate.held_out_prompts(12 if bench.rehearse else 200)
    right: dict[torch.dtype, float] = {}
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        pipeline = pc.Pipeline.from_pretrained(NANO, dtype=dtype, device=bench.device)
        with where_emulated(bench.device):
            right[dtype] = evaluate.score(evaluate.pictures(pipeline, prompts, steps=1), prompts)["all"]
        least = None if dtype == torch.float32 else right[torch.float32] - 1
        bench.add(f"1 step, attributes right in {str(dtype).removeprefix('torch.')}", right[dtype], "%", least=least)


def graphs(bench: Bench) -> None:
    """A replay against the plain call, to the last bit; compiled against eager."""
    plain, graphed = bench.pipeline(graphs=False), bench.pipeline()
    for options in ({"sampler": "dpm", "steps": 6}, {}, {"batch": 2}):
        with bench.apart(str(options or "lcm")), bench.needing("diffusers"):
            for _ in range(3):
                latent = graphed.sample(PROMPT, width=bench.small, height=bench.small, **options)
            expected = plain.sample(PROMPT, width=bench.small, height=bench.small, **options)
            bench.add(f"largest difference, {options or 'lcm'}", (latent - expected).abs().max().item(), "", most=0)
    bench.add("graphs kept", len(graphed.graphs or ()), "")
    if bench.rehearse:
        return
    latent = plain.sample(PROMPT, width=bench.small, height=bench.small, batch=2)
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
        with bench.apart(quantization), bench.needing("bitsandbytes"):
            options = {"quantization": quantization, "low_memory": True, "device": bench.device}
            pipeline = MeasuredPipeline.from_pretrained(bench.folder, **options)
            pipeline(PROMPT, width=bench.large, height=bench.large)
            bench.add(f"{quantization}, widest stage", max(pipeline.peaks.values()), "GB", most=limit)
            bench.add(f"{quantization}, plan", pipeline.memory_plan(bench.large, bench.large).peak, "GB")
            begin = time.perf_counter()
            pipeline.text.encode(PROMPT + " again")
            bench.wait()
            bench.add(f"{quantization}, another prompt's encoding", time.perf_counter() - begin, "s")
        pipeline = None  # also of one that failed
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
        replayed = 1000 * statistics.median(times[3:])
        bench.add(f"{side} px, a step, replayed", replayed, "ms")
        if side == 1024 and bench.device.type == "cuda" and "H200" in torch.cuda.get_device_name():
            bench.add("a step, replayed / bf16 before the float32 stream, 16.7 ms", replayed / 16.7, "x", most=1.03)


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
        with bench.apart(name), bench.needing("diffusers"):
            seconds = bench.seconds(lambda options=options: pipeline.sample(PROMPT, **options), warm=2)
            bench.add(f"{name}, encoding and sampling", seconds, "s")


def tests(bench: Bench) -> None:
    """The tests marked `gpu`, and their bodies on the CPU. Not ComfyUI's, which the part `comfyui` runs."""
    if not bench.has("pytest"):
        return
    options = ["-m", "gpu"] if bench.device.type == "cuda" else ["-k", "cpu and picture"]
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", "tests/gpu", *options]
    command.append("--ignore=tests/gpu/test_comfyui.py")
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    print(out.stdout[-1500:])
    if out.returncode not in (0, 1):  # it ended before it could count
        raise RuntimeError(f"pytest ended with exit status {out.returncode}: {(out.stderr or out.stdout)[-1000:]}")
    counts = {word.rstrip(","): int(number) for number, word in _pairs(out.stdout.strip().splitlines()[-1].split())}
    bench.add("tests passed", counts.get("passed", 0), "")
    bench.add("tests failed", sum(counts.get(word, 0) for word in ("failed", "error", "errors")), "", most=0)


def _pairs(words: list[str]) -> list[tuple[str, str]]:
    return [(one, other) for one, other in zip(words, words[1:], strict=False) if one.isdigit()]


def comfyui(bench: Bench) -> None:
    """A real ComfyUI with this extension on the device: true shape beside its own nodes, then the bundled workflows."""
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
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a part whose time is over ends the servers it started
    bench = Bench(options.out, options.folder, options.rehearse)
    with bench.needing(*PACKAGES):
        globals()[options.part](bench)
    return 1 if bench.failed else 0


if __name__ == "__main__":
    sys.exit(main())
