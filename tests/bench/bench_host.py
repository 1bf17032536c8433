"""Where Python's time goes in a step inside ComfyUI: its wrappers, samplers and conditions, beside the model's forward.

    python -m tools.bench host [--steps 40]

A model so small that nearly all of its time is Python's, at 64 px on one core, in CPU milliseconds a step; the best of
several runs. A CUDA graph (`nodes/bridge/graphs.py`) replaces the forward and leaves the rest.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))


def measure(comfyui: str, family: str, steps: int) -> None:
    """In ComfyUI's interpreter."""
    import torch

    torch.set_num_threads(1)
    spec = importlib.util.spec_from_file_location("inside", ROOT / "tests" / "nodes" / "inside.py")
    inside = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(inside)
    setup = inside.Setup(inside.start(comfyui), family)
    setup.latent = setup.sampling.empty_latent(64, 64, 1)
    unet, spent = type(setup.model.model.diffusion_model), {}

    def timed(owner, name: str) -> None:
        plain = getattr(owner, name)

        def call(*args, **kwargs):
            begin = time.process_time()
            try:
                return plain(*args, **kwargs)
            finally:
                spent[name] = spent.get(name, 0.0) + time.process_time() - begin

        setattr(owner, name, call)

    for owner, name in ((type(setup.model.model), "apply_model"), (unet, "forward"), (unet, "_compute")):
        timed(owner, name)
    model, best = setup.sampling.add_lcm_sampling(setup.model), {}
    with torch.inference_mode():
        for _ in range(4):
            spent.clear()
            begin = time.process_time()
            setup.sample(model, steps=steps)
            spent["all"] = time.process_time() - begin
            best = {name: min(value, best.get(name, value)) for name, value in spent.items()}
    ms = {name: 1000 * value / steps for name, value in best.items()}
    print(f"a step: {ms['all']:.2f} ms, of which")
    print(f"  the network, which a graph replaces: {ms['_compute']:.2f} ms")
    print(f"  patches and wrappers of the network: {ms['forward'] - ms['_compute']:.2f} ms")
    print(f"  apply_model: scaling, casts: {ms['apply_model'] - ms['forward']:.2f} ms")
    print(f"  sampler, conditions, guidance, progress: {ms['all'] - ms['apply_model']:.2f} ms")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--inside", nargs=2, metavar=("COMFYUI", "FAMILY"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        measure(*options.inside, options.steps)
        return 0
    from tests.fixtures_nano import make_nano_folder
    from tools.comfy_server import comfyui_trees

    with tempfile.TemporaryDirectory() as place:
        family = make_nano_folder(Path(place) / "nano", depth=28)
        for version, tree in comfyui_trees().items():
            print(f"ComfyUI {version}:", flush=True)
            command = [sys.executable, __file__, "--steps", str(options.steps), "--inside", str(tree), str(family)]
            run = subprocess.run(command, cwd=tree, capture_output=True, text=True)
            print(run.stdout if run.returncode == 0 else run.stderr[-2000:], flush=True)
            if run.returncode:
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
