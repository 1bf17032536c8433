"""A real ComfyUI on the device: the true shape beside ComfyUI's own nodes, then the bundled workflows."""

from __future__ import annotations

import io
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from pixart_core.checkpoint import load_pixart, save_pixart
from tests.nodes.graphs import node
from tests.nodes.panel import end_trainings
from tools.comfy_server import FOLDER, ComfyServer, ServerError, comfyui_trees
from tools.workflow_api import load_workflow, to_api

if TYPE_CHECKING:
    from tests.bench.gpu_bench import Bench

ROOT = Path(__file__).resolve().parents[2]
TRAININGS = ("PixArtDeltaTrainLCD", "PixArtDeltaTrainLCMLora", "PixArtDeltaTrainControlNet", "PixArtDeltaFineTune")
_EIGHT_GB = """import torch

NODE_CLASS_MAPPINGS = {}
if torch.cuda.is_available():
    torch.cuda.set_per_process_memory_fraction(min(1.0, 8e9 / torch.cuda.get_device_properties(0).total_memory))
"""
MODELS = {"true": "true/transformer/", "bundled/nano": "bundled/nano (student)"}
PROMPT = "a small house under a red tree at the lake, mountains in the evening sun, a boat on the water"


def measure(bench: Bench) -> None:
    try:
        tree = next(iter(comfyui_trees().values()))
    except ServerError as error:
        return bench.leave_out(str(error))
    with tempfile.TemporaryDirectory() as place:
        base = Path(place)
        options = {"cpu": bench.device.type == "cpu", "python": sys.executable}
        if not bench.rehearse:
            with bench.apart("true shape"):
                _true_shape(bench, base)
                with ComfyServer(tree, base, ROOT, **options) as server:
                    _beside_its_own(bench, server)
        with ComfyServer(tree, base, ROOT, eight_gb(base), **options) as server:
            try:
                with bench.apart("graphs"):
                    _graphs(bench, server)
                files = sorted((ROOT / "workflows").glob("*.json")) if bench.has("comfy_cli") else []
                for file in files:
                    with bench.apart(file.stem):
                        _workflow(bench, server, file)
            finally:
                end_trainings(server)  # they outlive ComfyUI


def eight_gb(base: Path) -> list[str]:
    """Arguments by which a ComfyUI with this base directory has 8 GB of a card: torch takes no more, which an extension
    sees to, and ComfyUI plans with what that leaves."""
    folder = base / "custom_nodes" / "eight_gb"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(_EIGHT_GB)
    arguments = ["--whitelist-custom-nodes", FOLDER, folder.name]
    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        arguments += ["--reserve-vram", f"{max(0.0, total / 1e9 - 8):.1f}"]
    return arguments


def _workflow(bench: Bench, server: ComfyServer, file: Path) -> None:
    """A bundled workflow; a rehearsal trains once."""
    graph = load_workflow(file)
    kinds = {each["type"] for each in graph["nodes"]} & set(TRAININGS)
    if bench.rehearse and kinds - set(TRAININGS[:1]):
        return
    seconds = run_workflow(server, file, 2 if bench.rehearse else 20)
    if seconds is None:
        bench.leave_out(f"{file.stem}: it names weights that are not here")
        return
    bench.add(f"workflow {file.stem}", seconds, "s")


def run_workflow(server: ComfyServer, file: Path, steps: int) -> float | None:
    """Seconds of a bundled workflow; trainings take so many steps, and are followed to their end. None where it names
    weights that are not here.

    Raises:
        RuntimeError: if it fails.
    """
    graph = to_api(load_workflow(file), server.object_info())
    trains = [each for each in graph.values() if each["class_type"] in TRAININGS]
    for each in trains:
        each["inputs"]["steps"] = steps
    result = server.prompt(graph, timeout=200)
    if any("Value not in list" in error for error in result.errors):
        return None
    if result.errors:
        raise RuntimeError(f"{file.name}: {result.errors}")
    return result.seconds + (_until_trained(server) if trains else 0)


def _until_trained(server: ComfyServer, limit: float = 240) -> float:
    """Seconds until no job waits or runs any more."""
    begin = time.monotonic()
    while time.monotonic() - begin < limit:
        states = {job["id"]: job["state"] for job in server.get("/pixart_delta/jobs")["jobs"]}
        if "failed" in states.values():
            raise RuntimeError(f"trainings: {states}")
        if set(states.values()) <= {"done"}:
            return time.monotonic() - begin
        time.sleep(1)
    raise RuntimeError(f"trainings are not done after {limit:g} s: {states}")


def _graphs(bench: Bench, server: ComfyServer) -> None:
    """Pictures of the bundled model by our sampler, with graphs and with the node that turns them off; the log says
    which it was."""
    times, pictures = {}, {}
    for enabled in (True, False):
        runs = [server.prompt(_small(seed, enabled), timeout=120) for seed in range(2 if bench.rehearse else 6)]
        if errors := [error for run in runs for error in run.errors]:
            raise RuntimeError(f"graphs {enabled}: {errors}")
        times[enabled] = statistics.median(run.node_seconds["sample"] for run in runs[1:])
        pictures[enabled] = [Image.open(io.BytesIO(image)).tobytes() for run in runs for image in run.images]
        bench.add(f"bundled model, 4 steps, graphs {'on' if enabled else 'off'}", 1000 * times[enabled], "ms")
    same = sum(one == other for one, other in zip(pictures[True], pictures[False], strict=True))
    bench.add("pictures that are the same with and without graphs", same, "", least=len(pictures[True]))
    said = server.log.count("CUDA graphs are used")
    bench.add("graphs in use, said in the log", said, "", least=1 if bench.device.type == "cuda" else 0)


def _small(seed: int, enabled: bool) -> dict[str, Any]:
    return _with_graphs(_graph("ours", seed, "bundled/nano", 128), enabled)


def _true_shape(bench: Bench, base: Path) -> None:
    models = base / "models"
    (models / "pixart_delta").mkdir(parents=True)
    (models / "pixart_delta" / "true").symlink_to(bench.folder, target_is_directory=True)
    (models / "diffusion_models").mkdir()
    model = load_pixart(bench.folder / "transformer", torch.bfloat16)
    save_pixart(model, models / "diffusion_models" / "native.safetensors", layout="authors")


def _beside_its_own(bench: Bench, server: ComfyServer) -> None:
    """Seconds of a picture without loading: seeds differ, the graph does not. Then the pipeline in this process, whose
    decoder is ours.

    With the node CUDA Graphs, too: where ComfyUI's dynamic memory is on, as it is by default, there are none without.
    """
    times: dict[str, float] = {}
    for name in ("ours", "ours, with CUDA Graphs", "native"):
        runs = [server.prompt(_beside(name, seed), timeout=300) for seed in range(5)]
        if errors := [error for run in runs for error in run.errors]:
            raise RuntimeError(f"{name}: {errors}")
        times[name] = statistics.median(sum(run.node_seconds.values()) for run in runs[2:])
        bench.add(f"1024 px, 4 steps, {name} nodes", times[name], "s")
        for part in ("sample", "decode"):
            seconds = statistics.median(run.node_seconds[part] for run in runs[2:])
            bench.add(f"1024 px, {name} nodes, {part}", seconds, "s")
    best = min(times["ours"], times["ours, with CUDA Graphs"])
    bench.add("native / ours", times["native"] / best, "x", least=1.5)
    server.post("/free", {"unload_models": True, "free_memory": True})
    pipeline = bench.pipeline()
    for seed in range(4):
        begin = time.perf_counter()
        pipeline(PROMPT, width=1024, height=1024, seed=seed)
        seconds = time.perf_counter() - begin
    bench.add("1024 px, 4 steps, Pipeline", seconds, "s")
    bench.add("1024 px, Pipeline, decode", pipeline.seconds["decode"], "s")
    bench.add("our nodes / Pipeline", best / seconds, "x", most=1.25)


def _beside(name: str, seed: int) -> dict[str, Any]:
    graph = _graph("native" if name == "native" else "ours", seed)
    return _with_graphs(graph, True) if "CUDA Graphs" in name else graph


def _with_graphs(graph: dict[str, Any], enabled: bool) -> dict[str, Any]:
    """With the node that turns CUDA graphs off, or keeps the model out of dynamic memory so that there can be some."""
    graph["graphs"] = node("PixArtDeltaCudaGraphs", model=["model", 0], enabled=enabled)
    graph["sample"]["inputs"]["model"] = ["graphs", 0]
    return graph


def _graph(kind: str, seed: int, family: str = "true", side: int = 1024) -> dict[str, Any]:
    part = (lambda name: f"{family}/{name}/") if family == "true" else lambda _: family  # noqa: E731
    graph = {
        "clip": node("PixArtDeltaTextEncoderLoader", text_encoder_name=part("text_encoder"), quantization="none"),
        "vae": node("PixArtDeltaVAELoader", vae_name=part("vae")),
        "size": node("PixArtDeltaResolution", width=side, height=side, bins="off", batch_size=1),
        "text": node(
            "PixArtDeltaTextEncode",
            clip=["clip", 0],
            prompt=PROMPT,
            negative_prompt="",
            width=["size", 1],
            height=["size", 2],
            unconditional="negative prompt",
            clean_caption=False,
        ),
        "decode": node("VAEDecode", samples=["sample", 0], vae=["vae", 0]),
        "save": node("SaveImage", images=["decode", 0], filename_prefix=kind),
    }
    if kind == "ours":
        graph["model"] = node("PixArtDeltaModelLoader", model_name=MODELS[family], dtype="default")
        graph["sample"] = node(
            "PixArtDeltaLCMSampler",
            model=["model", 0],
            positive=["text", 0],
            latent_image=["size", 0],
            seed=seed,
            steps=4,
            grid="diffusers",
            denoise=1.0,
        )
        return graph
    graph["model"] = node("UNETLoader", unet_name="native.safetensors", weight_dtype="default")
    graph["lcm"] = node("ModelSamplingDiscrete", model=["model", 0], sampling="lcm", zsnr=False)
    graph["sample"] = node(
        "KSampler",
        model=["lcm", 0],
        positive=["text", 0],
        negative=["text", 1],
        latent_image=["size", 0],
        seed=seed,
        steps=4,
        cfg=1.0,
        sampler_name="lcm",
        scheduler="simple",
        denoise=1.0,
    )
    return graph
