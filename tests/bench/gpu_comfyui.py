"""A real ComfyUI on the device: the bundled workflows, then the true shape beside ComfyUI's own nodes."""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pixart_core.checkpoint import load_pixart, save_pixart
from tests.nodes.graphs import node
from tools.comfy_server import ComfyServer, comfyui_trees
from tools.workflow_api import load_workflow, to_api

if TYPE_CHECKING:
    from tests.bench.gpu_parts import Bench

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "a small house under a red tree at the lake, mountains in the evening sun, a boat on the water"


def measure(bench: Bench) -> None:
    tree = next(iter(comfyui_trees().values()))
    with tempfile.TemporaryDirectory() as place:
        base = Path(place)
        if not bench.rehearse:
            _true_shape(bench, base)
        with ComfyServer(tree, base, ROOT, cpu=bench.device.type == "cpu", python=sys.executable) as server:
            for file in sorted((ROOT / "workflows").glob("*.json")):
                if file.stem.startswith(("train", "use_trained")) and bench.rehearse:
                    continue
                result = server.prompt(to_api(load_workflow(file), server.object_info()), timeout=200)
                if result.errors:
                    raise RuntimeError(f"{file.name}: {result.errors}")
                bench.add(f"workflow {file.stem}", result.seconds, "s")
            if not bench.rehearse:
                _beside_its_own(bench, server)


def _true_shape(bench: Bench, base: Path) -> None:
    models = base / "models"
    (models / "pixart_delta").mkdir(parents=True)
    (models / "pixart_delta" / "true").symlink_to(bench.folder, target_is_directory=True)
    (models / "diffusion_models").mkdir()
    model = load_pixart(bench.folder / "transformer", torch.bfloat16)
    save_pixart(model, models / "diffusion_models" / "native.safetensors", layout="authors")


def _beside_its_own(bench: Bench, server: ComfyServer) -> None:
    """Seconds of a picture without loading: seeds differ, the graph does not."""
    times: dict[str, float] = {}
    for name in ("ours", "native"):
        runs = [server.prompt(_graph(name, seed), timeout=300) for seed in range(5)]
        if errors := [error for run in runs for error in run.errors]:
            raise RuntimeError(f"{name}: {errors}")
        times[name] = statistics.median(sum(run.node_seconds.values()) for run in runs[2:])
        bench.add(f"1024 px, 4 steps, {name} nodes", times[name], "s")
    bench.add("native / ours", times["native"] / times["ours"], "x", least=1.5)


def _graph(kind: str, seed: int) -> dict[str, Any]:
    graph = {
        "clip": node("PixArtDeltaTextEncoderLoader", text_encoder_name="true/text_encoder/", quantization="none"),
        "vae": node("PixArtDeltaVAELoader", vae_name="true/vae/"),
        "size": node("PixArtDeltaResolution", width=1024, height=1024, bins="off", batch_size=1),
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
        graph["model"] = node("PixArtDeltaModelLoader", model_name="true/transformer/", dtype="default")
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
