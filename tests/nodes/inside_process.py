"""What scripts of checks have in common that run in ComfyUI's own interpreter: its start, their command line, a MODEL.

A separate process, because ComfyUI's top-level modules (`nodes`, `server`) must be the first of their names.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "a red mountain at dawn"


def start(comfyui: str):
    """Prepare ComfyUI for the CPU and load the extension as ComfyUI does; returns its bridge modules by name."""
    sys.path[0] = comfyui
    import comfy.options

    comfy.options.enable_args_parsing(False)
    from comfy.cli_args import args

    args.cpu = True
    import utils.extra_config  # noqa: F401  before `nodes` puts comfy/, with a utils.py of its own, on the path

    import nodes

    assert asyncio.run(nodes.load_custom_node(str(ROOT)))
    name = next(name for name in sys.modules if name.endswith(".bridge.model"))
    package = name.removesuffix(".nodes.bridge.model")
    return lambda part: importlib.import_module(f"{package}.{part}")


def sibling(name: str, folder: Path):
    """A module of the tests by its path: ComfyUI has its own `tests` and `nodes`."""
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(checks: Mapping[str, Any], make: Callable[[Callable, str], Any], context=torch.inference_mode) -> None:
    """The command line of each script of checks.

    Args:
        checks: what a script has, by name.
        make: what a check is given, from `start`'s function and the folder that the command line names.
        context: that a check runs in.
    """
    comfyui, folder, *names = sys.argv[1:]
    part = start(comfyui)
    found = {}
    for name in names:
        try:
            with context():
                checks[name](make(part, folder))
            found[name] = ""
        except Exception:
            found[name] = traceback.format_exc()[-3000:]
    print(json.dumps(found))  # noqa: T201


def close(one: torch.Tensor, other: torch.Tensor, limit: float = 1e-5) -> None:
    error = ((one.float() - other.float()).norm() / other.float().norm()).item()
    assert error < limit, f"relative error {error:.2e}, allowed {limit:.0e}"


class Setup:
    """The parts that checks share: a MODEL in float32, its conditioning, a latent."""

    def __init__(self, part, family: str):
        self.part, self.family = part, Path(family)
        self.core = part("pixart_core")
        self.load = part("nodes.bridge.model").load_model
        self.sampling = part("nodes.bridge.guider")
        self.model = self.load(str(self.family / "transformer"), "float32")
        clip = part("nodes.bridge.clip").load_clip(str(self.family / "text_encoder"))
        encode_prompts = part("nodes.bridge.prompt").encode_prompts
        self.positive, self.negative = encode_prompts(clip, PROMPT, "a lake", 0, 0, False)
        self.latent = self.sampling.empty_latent(128, 96, 2)

    def sample(
        self, model, sampler_name="lcm", steps=4, cfg=1.0, scheduler="simple", noise_sampler=None, positive=None, seed=3
    ):
        """The stock sampling function, with our noises if given."""
        import comfy.sample
        import comfy.samplers

        noise = comfy.sample.prepare_noise(self.latent["samples"], seed)
        sampling = model.get_model_object("model_sampling")
        sigmas = comfy.samplers.calculate_sigmas(sampling, scheduler, steps)
        options = {"noise_sampler": noise_sampler} if noise_sampler else {}
        sampler = comfy.samplers.ksampler(sampler_name, options)
        return comfy.sample.sample_custom(
            model,
            noise,
            cfg,
            sampler,
            sigmas,
            positive or self.positive,
            self.negative,
            self.latent["samples"],
            disable_pbar=True,
            seed=seed,
        )


def native(path: Path):
    """The file in ComfyUI's own loader."""
    import comfy.sd

    return comfy.sd.load_diffusion_model(str(path))


def save_random(s: Setup, config, name: str) -> Path:
    sys.path.append(str(ROOT))  # after ComfyUI's folder: only for the fixtures' `tests` and `pixart_core`
    fixtures = sibling("fixtures_nano", ROOT / "tests")
    path = s.family.parent / name
    s.part("pixart_core.checkpoint").save_pixart(fixtures.random_pixart(config).state_dict(), path, config=config)
    return path
