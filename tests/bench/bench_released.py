"""The templates of the released weights as they are, with random files of the true shapes under the names they ask for.

    python tests/bench/bench_released.py [--names 04 15] [--folder KEEP_HERE] [--fp8] [--timeout 3600]

Each file in a template's `models` is made at its real shape and in its real layout (random numbers, half precision):
the transformer with 611 M parameters as diffusers' single file, the base model and the joint ControlNet as the authors'
.pth, T5-XXL as one file of 9.5 GB, the autoencoder in Stable Diffusion's names, HED as a pickle. Then a real ComfyUI
runs the template's graph with no widget touched. What comes out is noise; that it comes out, at 1024 px, is the point.
Prints seconds and the server's peak memory; exits with 1 when a picture is missing or has another size. Without a GPU
a picture takes many minutes, and templates that keep T5-XXL in 16 bits take 14 GB of memory.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import pixart_core as pc  # noqa: E402
from pixart_core.checkpoint import save_controlnet, save_pixart  # noqa: E402
from pixart_core.hed import HED  # noqa: E402
from tests.bench.bench_text import T5_XXL, t5_shapes  # noqa: E402
from tools.comfy_server import ComfyServer, comfyui_trees  # noqa: E402
from tools.workflow_api import load_workflow, to_api  # noqa: E402

HALF = torch.float16
VAE = """
import sys, torch
from safetensors.torch import save_file
path = sys.argv.pop()  # ComfyUI reads the rest
from comfy.cli_args import args
args.cpu = True
from comfy.ldm.models.autoencoder import AutoencoderKL
shape = {"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128,
         "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}
torch.manual_seed(0)
model = AutoencoderKL(ddconfig=shape, embed_dim=4)
for name, tensor in model.state_dict().items():
    if tensor.ndim > 1:
        tensor.normal_(std=tensor[0].numel() ** -0.5)
    else:
        tensor.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
save_file(model.state_dict(), path)
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", nargs="+", default=["04", "15"], help="numbers of templates")
    parser.add_argument("--folder", type=Path, help="where the files are made, and kept")
    parser.add_argument("--fp8", action="store_true", help="the text encoder in float8: 4.8 GB, of its whole shape")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds that a picture may take")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pixart_released_") as place:
        base = options.folder or Path(place)
        files = [next((ROOT / "workflows").glob(f"PixArt {number} *(1024 px).json")) for number in options.names]
        for file in files:
            make_all(file, base / "models", torch.float8_e4m3fn if options.fp8 else HALF)
        (base / "input").mkdir(exist_ok=True)
        scene = next((ROOT / "models" / "nano" / "scenes").glob("*.png"))
        Image.open(scene).convert("RGB").resize((1024, 1024)).save(base / "input" / "example.png")
        with ComfyServer(next(iter(comfyui_trees().values())), base, cpu=not torch.cuda.is_available()) as server:
            good = [run(server, file, options.timeout) for file in files]
    return 0 if all(good) else 1


def run(server: ComfyServer, file: Path, timeout: float) -> bool:
    graph = to_api(load_workflow(file), server.object_info())
    result = server.prompt(graph, timeout=timeout)
    kinds = {number: node["class_type"] for number, node in graph.items()}
    sizes = [Image.open(io.BytesIO(data)).size for data in result.images]
    each = {kinds.get(number, number): round(seconds) for number, seconds in result.node_seconds.items()}
    print(
        f"{file.stem}: {result.errors or 'drawn'}, pictures {sizes}, {result.seconds:.0f} s {each}, the server's peak "
        f"{peak(server.process.pid):.1f} GB, load average {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    wanted = next(node["inputs"] for node in graph.values() if node["class_type"] == "PixArtDeltaResolution")
    return not result.errors and (wanted["width"], wanted["height"]) in sizes


def peak(pid: int) -> float:
    """GB of resident memory that a process held at most; the mapped pages of files count."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) * 1024 / 1e9


def make_all(file: Path, models: Path, text_dtype: torch.dtype = HALF) -> None:
    for node in load_workflow(file)["nodes"]:
        for model in node.get("properties", {}).get("models", ()):
            path = models / model["directory"] / model["name"]
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                begin = time.monotonic()
                make(path, text_dtype)
                took = time.monotonic() - begin
                print(f"made {path.name}: {path.stat().st_size / 1e9:.2f} GB in {took:.0f} s", flush=True)


def make(path: Path, text_dtype: torch.dtype) -> None:
    """The stand-in of a file by its name."""
    part = path.with_name(path.name + ".part")
    if "Control" in path.name and "HED" not in path.name:
        _control(part)
    elif path.name.startswith("t5xxl"):
        write(part, t5(), text_dtype)
    elif path.name.startswith("vae"):
        tree = next(iter(comfyui_trees().values()))
        subprocess.run([sys.executable, "-c", VAE, str(part.resolve())], cwd=tree, check=True)
    elif "HED" in path.name:
        torch.save(HED().state_dict(), part)
    elif "LoRA" in path.name:
        write(part, lora(), HALF)
    elif path.suffix == ".pth":
        torch.save({"state_dict": {name: each.to(HALF) for name, each in transformer().state_dict().items()}}, part)
    else:
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            save_pixart(transformer(), Path(folder), layout="diffusers", dtype=HALF)
            (Path(folder) / "diffusion_pytorch_model.safetensors").rename(part)
    part.rename(path)


def transformer() -> pc.PixArt:
    torch.manual_seed(0)
    return _random(pc.PixArt(pc.PIXART_1024_MS))


def _random(model):
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data.normal_(std=0.02)
    return model


def _control(path: Path) -> None:
    """Base model and control in one, as the authors have it."""
    base = transformer()
    control = _random(pc.ControlNetTransformer(base.config))
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        joint = save_controlnet(control, Path(folder) / "joint.safetensors", base=base, dtype=HALF)
        from safetensors.torch import load_file

        torch.save({"state_dict": load_file(joint)}, path)


Entry = tuple[str, tuple[int, ...], float]
"""Name, shape and standard deviation of a tensor; 0 = a scale, all ones."""


def lora(rank: int = 64) -> Iterator[Entry]:
    """LCM-LoRA as PEFT saves it, on the attention of every block."""
    width = pc.PIXART_1024_MS.hidden_size
    for block in range(pc.PIXART_1024_MS.depth):
        for layer in ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_q", "attn2.to_out.0"):
            stem = f"base_model.model.transformer_blocks.{block}.{layer}"
            yield f"{stem}.lora_A.weight", (rank, width), 0.02
            yield f"{stem}.lora_B.weight", (width, rank), 0.02


def t5() -> Iterator[Entry]:
    """T5-XXL's encoder, in T5's own scales."""
    for name, (shape, std) in t5_shapes(**T5_XXL).items():
        yield name, shape, std


_NAMES = {HALF: "F16", torch.float8_e4m3fn: "F8_E4M3"}


def write(path: Path, entries: Iterable[Entry], dtype: torch.dtype) -> None:
    """A safetensors file, one tensor in memory at a time: the text encoder's are 9.5 GB together in half precision.

    All are read from one pool of normal numbers, each at another offset: 4.8 billion fresh ones would take minutes.
    """
    entries, header, end = list(entries), {}, 0
    for name, shape, _ in entries:
        begin, end = end, end + dtype.itemsize * math.prod(shape)
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    pool = torch.randn(1 << 26, generator=torch.Generator().manual_seed(0))
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for index, (_, shape, std) in enumerate(entries):
            count, start = math.prod(shape), index * 7919
            repeats = -(-(start + count) // len(pool))
            values = pool.repeat(repeats)[start : start + count] * std if std else torch.ones(count)
            file.write(values.to(dtype).view(torch.uint8).numpy().tobytes())


if __name__ == "__main__":
    sys.exit(main())
