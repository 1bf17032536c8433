"""Run a bundled workflow in a real, headless ComfyUI and keep the picture (`make demo`), or leave it up (`make run`).

python -m tools.demo [--workflow NAME] [--output FOLDER]
python -m tools.demo --stay [--port 8188]
"""

from __future__ import annotations

import argparse
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from .comfy_server import ROOT, ComfyServer, Result, ServerError, comfyui_trees, free_port
from .workflow_api import WorkflowError, load_workflow, to_api

STAGES = {"Loader": "load", "TextEncode": "encode", "Sampler": "sample", "VAEDecode": "decode"}
"""Part of a node's class name -> the stage that its seconds belong to; the rest is "other"."""
HOME = ROOT / "comfyui_home"
"""Base directory of `make run`: your models, custom nodes and pictures stay here."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workflow", default="PixArt 01 Text to Image in 4 Steps", help="name of a file in workflows/")
    parser.add_argument("--output", type=Path, default=ROOT / "output", help="folder for the picture")
    parser.add_argument("--stay", action="store_true", help="start ComfyUI, print its address and stay up")
    parser.add_argument("--port", type=int, default=8188, help="with --stay: the port, if it is free")
    arguments = parser.parse_args()
    for sig in (signal.SIGINT, signal.SIGTERM):  # either ends ComfyUI too, also where a shell had SIGINT ignored
        signal.signal(sig, signal.default_int_handler)
    try:
        if arguments.stay:
            stay(arguments.port)
        else:
            demo(arguments.workflow, arguments.output)
    except (ServerError, WorkflowError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped")
    return 0


def demo(name: str, output: Path) -> None:
    """Run one bundled workflow, write its pictures to `output`, and print what was made and how long it took."""
    workflow = load_workflow(ROOT / "workflows" / f"{name}.json")
    version, folder = next(iter(comfyui_trees().items()))
    print(f"starting ComfyUI {version} …", flush=True)
    started = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="pixart-delta-demo-") as base,
        ComfyServer(folder, base, cpu=not has_accelerator()) as server,
    ):
        print(f"ready after {time.monotonic() - started:.1f} s; running workflows/{name}.json", flush=True)
        graph = to_api(workflow, server.object_info())
        result = server.prompt(graph)
        if result.errors:
            raise ServerError("the workflow failed:\n" + "\n".join(result.errors))
        if not result.images:
            raise ServerError("the workflow wrote no picture")
    report(graph, result, save(result, output, name))


def save(result: Result, output: Path, name: str) -> list[Path]:
    """Write the pictures of a prompt; the workflow's name and a number make their file names."""
    output.mkdir(parents=True, exist_ok=True)
    paths = [output / f"{name}_{number}.png" for number in range(1, len(result.images) + 1)]
    for path, image in zip(paths, result.images, strict=True):
        path.write_bytes(image)
    return paths


def report(graph: Mapping, result: Result, paths: list[Path]) -> None:
    print(f"prompt   {find_value(graph, 'positive', 'prompt', 'text')}")
    print(f"seed     {find_value(graph, 'seed', 'noise_seed')}")
    stages = stage_seconds(graph, result)
    print("seconds  " + "  ".join(f"{stage} {seconds:.2f}" for stage, seconds in stages.items()), end="")
    print(f"  in all {result.seconds:.2f}")
    for path in paths:
        print(f"picture  {path}")


def find_value(graph: Mapping, *names: str):
    """The first value given in the graph (a link is not one) for an input of one of these names; "" if none is."""
    for name in names:
        for node in graph.values():
            value = node["inputs"].get(name, "")
            if value != "" and not isinstance(value, list):
                return value
    return ""


def stage_seconds(graph: Mapping, result: Result) -> dict[str, float]:
    """Seconds of load, encode, sample and decode (and other), from the execution events."""
    stages = dict.fromkeys([*STAGES.values(), "other"], 0.0)
    for node_id, seconds in result.node_seconds.items():
        class_type = graph[node_id]["class_type"]
        stages[next((stage for part, stage in STAGES.items() if part in class_type), "other")] += seconds
    return stages


def stay(port: int) -> None:
    """ComfyUI with the extension, its log on the terminal, until it ends or the user presses Ctrl-C."""
    version, folder = next(iter(comfyui_trees().items()))
    print(f"starting ComfyUI {version} …", flush=True)
    port = port if is_free(port) else free_port()
    previews = ("--preview-method", "auto")
    with ComfyServer(folder, HOME, extra_args=previews, cpu=not has_accelerator(), port=port) as server:
        print(f"ComfyUI with PixArt-δ: {server.address}\nmodels go to {HOME / 'models'}; Ctrl-C stops it", flush=True)
        with server.log_path.open(encoding="utf-8", errors="replace") as log:
            log.seek(0, 2)
            while server.process.poll() is None:
                if not (text := log.read()):
                    time.sleep(0.2)
                print(text, end="", flush=True)
        raise ServerError(f"ComfyUI stopped (exit status {server.process.returncode}); its log: {server.log_path}")


def is_free(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) != 0


def has_accelerator() -> bool:
    import torch

    return torch.cuda.is_available() or torch.backends.mps.is_available()


if __name__ == "__main__":
    sys.exit(main())
