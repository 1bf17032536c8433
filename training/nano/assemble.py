"""Put the trained members of the nano family together as a pipeline folder in the layouts of the real weights."""

from __future__ import annotations

import argparse
import json
import random
import shutil
from pathlib import Path

import torch

from ...pixart_core.checkpoint import load_pixart, save_pixart
from ...pixart_core.lcm import DDIM_STEPS
from ...pixart_core.preview import COLOURS
from ...pixart_core.schedule import BETA_END, BETA_START, NUM_TIMESTEPS
from ...pixart_core.vae import FACTOR, load_vae
from .autoencoder import Source
from .preview import describe
from .worlds import WORLDS, write_world

SCHEDULER = {
    "_class_name": "LCMScheduler",
    "beta_start": BETA_START,
    "beta_end": BETA_END,
    "beta_schedule": "linear",
    "num_train_timesteps": NUM_TIMESTEPS,
    "original_inference_steps": DDIM_STEPS,
    "prediction_type": "epsilon",
    "clip_sample": False,
    "set_alpha_to_one": True,
    "timestep_scaling": 10.0,
}
MODEL_INDEX = {
    "_class_name": "PixArtAlphaPipeline",
    "scheduler": ["diffusers", "LCMScheduler"],
    "text_encoder": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "T5Tokenizer"],
    "transformer": ["diffusers", "PixArtTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderTiny"],
}

_FITTED = 48
"""Scenes that the colours of previews are fitted to."""


def assemble(parts: Path, teacher: Path, student: Path, output: Path, world: int = 1) -> None:
    """Write the family: the student as transformer/ in diffusers' layout, the teacher as base/ in the authors'.

    Args:
        parts: folder of text_encoder/, tokenizer/, vae/ and maybe hed/.
        teacher, student: exports of `finetune` and `lcd`.
        output: the pipeline folder; parts that are there already are replaced.
        world: number of the world that they were trained on.
    """
    kept = shutil.ignore_patterns("*.pt")  # what a stopped training goes on from
    for name in ("text_encoder", "tokenizer", "vae", "hed"):
        is_there = name != "hed" or (parts / name).is_dir()
        if is_there and (parts / name).resolve() != (output / name).resolve():
            shutil.copytree(parts / name, output / name, dirs_exist_ok=True, ignore=kept)
    for name, values in (("model_index.json", MODEL_INDEX), ("scheduler/scheduler_config.json", SCHEDULER)):
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).write_text(json.dumps(values, indent=2) + "\n", "utf-8")
    for name in ("base", "lcm_lora", "controlnet"):  # the last two are exported into afterwards
        (output / name).mkdir(exist_ok=True)
    write_world(output, WORLDS[world])
    base = load_pixart(teacher)
    scenes, rng = Source(WORLDS[world], FACTOR * base.config.input_size), random.Random("previews")
    colours = describe(load_vae(output), [scenes.picture(rng) for _ in range(_FITTED)])
    family = {"family": "PixArt-δ nano", COLOURS: colours}
    save_pixart(load_pixart(student), output / "transformer", "diffusers", dtype=torch.float16, metadata=family)
    save_pixart(base, output / "base/pixart_nano_base.safetensors", dtype=torch.float16, metadata=family)


def main(arguments: list[str]) -> None:
    """Command line of `train.py nano assemble`."""
    parser = argparse.ArgumentParser(prog="train.py nano assemble", description=__doc__)
    parser.add_argument("parts", type=Path, help="folder of text_encoder/, tokenizer/, vae/ and maybe hed/")
    parser.add_argument("teacher", type=Path, help="export of finetune")
    parser.add_argument("student", type=Path, help="export of lcd")
    parser.add_argument("output", type=Path, help="pipeline folder to write")
    parser.add_argument("--world", type=int, choices=WORLDS, default=1, help="that they were trained on")
    assemble(**vars(parser.parse_args(arguments)))
