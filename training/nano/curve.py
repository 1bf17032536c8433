"""How a distillation converges: every checkpoint of a run in 4 steps, beside its teacher in 14 and in 4 (paper Fig. 2).

Attributes right and the Fréchet distance to drawn scenes, both over captions that nothing was trained on.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...pixart_core.pipeline import Pipeline
from ...pixart_core.vae import encode
from ..checkpoint import restore
from ..run_dir import RunDir
from ..sampling import pictures
from .evaluate import SEED, held_out_prompts, latents, score
from .frechet import features, frechet_distance
from .scenes import draw


class Exam:
    """Held-out captions, and what the latents of scenes drawn for them look like."""

    def __init__(self, pipeline: Pipeline, count: int, drawings: int = 4):
        self.pipeline, self.prompts = pipeline, held_out_prompts(count)
        rng = random.Random(SEED)
        scenes = [(draw(scene, size, rng.randrange(2**31)), size) for scene, _, size in self.prompts * drawings]
        self.reference = torch.cat([features(self._encode(picture)) for picture, _ in scenes])

    def _encode(self, picture) -> Tensor:
        return encode(self.pipeline.vae, torch.from_numpy(np.asarray(picture, np.float32) / 255)[None])

    def mark(self, **options) -> dict[str, float]:
        """attributes (percent right) and distance of the pipeline as it is; options as for `Pipeline.sample`."""
        made = latents(self.pipeline, self.prompts, **options)
        found = torch.cat([features(latent[None]) for latent in made])
        shares = score(pictures(self.pipeline.vae, made), self.prompts)
        return {"attributes": shares["all"], "distance": frechet_distance(found, self.reference)}


def curve(run: Path, exam: Exam) -> list[dict[str, float]]:
    """step, attributes and distance of every checkpoint, oldest first."""
    points = []
    for path in RunDir(run).checkpoints():
        task, _, step = restore(str(path))
        exam.pipeline.transformer = task.predictor()
        points.append({"step": step, **exam.mark(steps=4)})
        print(json.dumps({"run": run.name, **points[-1]}), flush=True)
    return points


def plot(curves: dict[str, list[dict[str, float]]], lines: dict[str, dict[str, float]], path: Path) -> None:
    """Both measures over training steps as a picture, the teacher as level lines."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.8), layout="constrained")
    for axes, measure, label in zip(
        figure.subplots(1, 2),
        ("attributes", "distance"),
        ("attributes right, %", "Fréchet distance to drawn scenes (latents)"),
        strict=True,
    ):
        for name, points in curves.items():
            axes.plot([p["step"] for p in points], [p[measure] for p in points], marker="o", ms=3, label=name)
        for (name, values), style in zip(lines.items(), ("--", ":"), strict=True):
            axes.axhline(values[measure], color="grey", linestyle=style, label=name)
        axes.set(xlabel="training step", ylabel=label)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=110)


def main(arguments: list[str]) -> None:
    """Command line of `train.py nano curve`."""
    parser = argparse.ArgumentParser(prog="train.py nano curve", description=__doc__)
    parser.add_argument("models", type=Path, help="pipeline folder with base/")
    parser.add_argument("runs", type=Path, nargs="+", help="lcd or lcm-lora runs that kept their checkpoints")
    parser.add_argument("--teacher", type=Path, help="the runs' base; else the folder's own")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--plot", type=Path, help="PNG or SVG to write")
    options = parser.parse_args(arguments)
    teacher = options.teacher or options.models / "base/pixart_nano_base.safetensors"
    exam = Exam(Pipeline.from_pretrained(options.models, transformer=str(teacher)), options.count)
    lines = {f"teacher, {steps} steps": exam.mark(steps=steps, sampler="dpm") for steps in (14, 4)}
    print(json.dumps(lines), flush=True)
    curves = {run.name: curve(run, exam) for run in options.runs}
    if options.plot is not None:
        plot(curves, lines, options.plot)
