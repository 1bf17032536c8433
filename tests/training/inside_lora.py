"""`python inside_lora.py COMFYUI MODEL LORA OUT`: a model with a LoRA as ComfyUI's own LoraLoaderModelOnly makes it.

Writes the weights to OUT. In a process of its own, because ComfyUI's `nodes` must be the first of its name.
"""

from __future__ import annotations

import importlib
import runpy
import sys
from pathlib import Path

from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[2]


def main(comfyui: str, model: str, lora: str, out: str) -> None:
    sys.path[0] = comfyui
    import comfy.options

    comfy.options.enable_args_parsing(False)
    from comfy.cli_args import args

    args.cpu = True
    import utils.extra_config  # noqa: F401, I001  before `nodes` puts comfy/, with a utils.py of its own, on the path

    import folder_paths
    import nodes

    runpy.run_path(str(ROOT / "training/train.py"))  # registers the root folder
    bridge = importlib.import_module("pixart_delta.nodes.bridge.model")
    folder_paths.add_model_folder_path("loras", str(Path(lora).parent))
    loaded = bridge.load_model(model, "float32")
    patched = nodes.LoraLoaderModelOnly().load_lora_model_only(loaded, Path(lora).name, 1.0)[0]
    patched.patch_model()
    prefix, state = "diffusion_model.", patched.model.state_dict()
    weights = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    save_file({name: tensor.float().contiguous() for name, tensor in weights.items()}, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
