"""How a distillation converges (paper Fig. 2): every checkpoint of a run in 1, 2, 4 and 8 steps, from before its first
step on, beside its teacher at the guidance that it learns.

Attributes right, everything right at once and the Fréchet distance to drawn scenes, all over captions that nothing was
trained on, as the mean of several seeds with its 95 % interval. A run is sampled on the noise schedule that it was
trained on. Guidance is the code's ω: the teacher's is the conventional one, 1 + ω.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from ...pixart_core.checkpoint import load_pixart
from ...pixart_core.pipeline import Pipeline
from ..checkpoint import restore
from ..config import DistillConfig
from ..run_dir import RunDir
from .evaluate import AT_ONCE, PROMPTS
from .exam import SEEDS, Exam
from .worlds import world_of

STEPS = (1, 2, 4, 8)
TEACHER_STEPS = (14, 4)


def curve(run: Path, exam: Exam, steps: Sequence[int] = STEPS, seeds: Sequence[int] = SEEDS) -> list[dict]:
    """step and, for each number of sampling steps, the marks of every checkpoint; first what it started from."""
    points = []
    for path in (None, *RunDir(run).checkpoints()):
        task, _, step = restore(str(path or run))
        predictor = task.predictor()
        if path is None:
            predictor, step = load_pixart(task.config.base, torch.float32).eval(), 0
        marks = {str(count): exam.mark(predictor, count, seeds, table=task.table) for count in steps}
        points.append({"step": step, "marks": marks})
        print(json.dumps({"run": run.name, **points[-1]}), flush=True)
    return points


def teacher_marks(teacher: Path, guidance: float, exam: Exam, seeds: Sequence[int] = SEEDS) -> dict[str, dict]:
    """Marks of a base model with DPM-Solver++.

    Args:
        guidance: ω as distilled; conventional classifier-free guidance is 1 + ω.
    """
    model = load_pixart(teacher, torch.float32).eval()
    null = model.null_caption(1, model.config.model_max_length)[0]
    options = {"sampler": "dpm", "null": null, "guidance": 1 + guidance}
    return {f"teacher, {count} steps": exam.mark(model, count, seeds, **options) for count in TEACHER_STEPS}


def plot(curves: dict[str, list[dict]], lines: dict[str, dict], steps: Sequence[int], path: Path) -> None:
    """All measures over training steps as a picture with the intervals as bands, the teacher as level lines."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 3.8), layout="constrained")
    for axes, measure, label in zip(
        figure.subplots(1, 3),
        ("attributes", AT_ONCE, "distance"),
        (
            "attributes right, %",
            "all attributes and counts right at once, %",
            "Fréchet distance to drawn scenes (latents)",
        ),
        strict=True,
    ):
        for name, points in curves.items():
            for count in steps:
                x = [point["step"] for point in points]
                y, half = zip(*(point["marks"][str(count)][measure] for point in points), strict=True)
                (line,) = axes.plot(x, y, marker="o", ms=3, label=f"{name}, {count} step{'s' * (count > 1)}")
                low, high = ([a + sign * b for a, b in zip(y, half, strict=True)] for sign in (-1, 1))
                axes.fill_between(x, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
        for (name, values), style in zip(lines.items(), itertools.cycle(("--", ":"))):
            axes.axhline(values[measure][0], color="grey", linestyle=style, label=name)
        axes.set(xlabel="training step", ylabel=label)
        if measure == "distance":
            axes.set_yscale("log")
        axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=110)


def main(arguments: list[str]) -> None:
    """Command line of `train.py nano curve`."""
    parser = argparse.ArgumentParser(prog="train.py nano curve", description=__doc__)
    parser.add_argument("models", type=Path, help="pipeline folder with base/")
    parser.add_argument("runs", type=Path, nargs="+", help="lcd or lcm-lora runs that kept their checkpoints")
    parser.add_argument("--teacher", type=Path, help="the runs' base; else the folder's own")
    parser.add_argument("--no-teacher", action="store_true", help="do not measure it: only the runs")
    parser.add_argument("--captions", choices=PROMPTS, default="held-out", help="hard: all name things to be counted")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS, help="of sampling")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="how many, 1 to 10")
    parser.add_argument("--plot", type=Path, help="PNG or SVG to write")
    options = parser.parse_args(arguments)
    teacher = options.teacher or options.models / "base/pixart_nano_base.safetensors"
    pipeline, world = Pipeline.from_pretrained(options.models), world_of(options.models)
    exam = Exam(pipeline, options.count, captions=options.captions, world=world)
    seeds = range(options.seeds)
    configs = [restore(str(run))[0].config for run in options.runs]
    guidance = {config.guidance for config in configs if isinstance(config, DistillConfig)}
    if len(guidance) > 1 and not options.no_teacher:
        parser.error(f"the runs learn different guidance scales ({sorted(guidance)}): plot those of each apart")
    lines = {} if options.no_teacher else teacher_marks(teacher, guidance.pop(), exam, seeds)
    if lines:
        print(json.dumps(lines), flush=True)
    curves = {run.name: curve(run, exam, options.steps, seeds) for run in options.runs}
    if options.plot is not None:
        plot(curves, lines, options.steps, options.plot)
