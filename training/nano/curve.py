"""How a distillation converges (paper Fig. 2): every checkpoint of a run in 1, 2, 4 and 8 steps, from before its first
step on, beside its teacher at the guidance that it learns. Without a run: the folder's own student beside its base.

Attributes right, everything right at once and the Fréchet distance to drawn scenes, all over captions that nothing was
trained on, as the mean of several seeds with its 95 % interval. A run is sampled on the noise schedule that it was
trained on. Guidance is the code's ω: the teacher's is the conventional one, 1 + ω.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from ...pixart_core.checkpoint import load_pixart
from ...pixart_core.hed import load_hed
from ...pixart_core.pipeline import Pipeline
from ..checkpoint import restore
from ..config import DistillConfig
from ..run_dir import RunDir
from ..sampling import contact_sheet
from .evaluate import AT_ONCE, PROMPTS
from .exam import SEEDS, Exam
from .worlds import world_of

STEPS = (1, 2, 4, 8)
TEACHER_STEPS = (14, 4)
SHEET_STEPS = 4
"""Of sampling: what a run's checkpoints are shown in."""

Sheet = list[list[Image]]
"""Rows of pictures of the prompts that the exam shows."""


def curve(
    run: Path,
    exam: Exam,
    steps: Sequence[int] = STEPS,
    seeds: Sequence[int] = SEEDS,
    every: int = 1,
    start: bool = True,
    sheet: Sheet | None = None,
) -> list[dict]:
    """step and, for each number of sampling steps, the marks of every checkpoint; first what it started from.

    Args:
        every: measure only the checkpoints after a multiple of so many training steps.
        start: also measure what it started from.
        sheet: gets a row for each checkpoint, also for those that are not measured.
    """
    points = []
    for step, predictor, table in _states(run):
        if sheet is not None:
            sheet.append(exam.show(predictor, SHEET_STEPS, table=table))
        if step % every or not (step or start):
            continue
        marks = {str(count): exam.mark(predictor, count, seeds, table=table) for count in steps}
        points.append({"step": step, "marks": marks})
        print(json.dumps({"run": run.name, **points[-1]}), flush=True)
    return points


def _states(run: Path) -> Iterator[tuple]:
    """Training step, predictor and noise schedule: of the base, then of every checkpoint."""
    for path in (None, *RunDir(run).checkpoints()):
        task, config, _, step = restore(str(path or run))
        if path is None:
            yield 0, load_pixart(config.base, torch.float32).eval(), task.table
        else:
            yield step, task.predictor(), task.table


def teacher_marks(
    teacher: Path, guidance: float, exam: Exam, seeds: Sequence[int] = SEEDS, sheet: Sheet | None = None
) -> dict[str, dict]:
    """Marks of a base model with DPM-Solver++.

    Args:
        guidance: ω as distilled; conventional classifier-free guidance is 1 + ω.
        sheet: gets a row for each number of steps.
    """
    model = load_pixart(teacher, torch.float32).eval()
    null = model.null_caption(1, model.config.model_max_length)[0]
    options: dict[str, Any] = {"sampler": "dpm", "null": null, "guidance": 1 + guidance}
    if sheet is not None:
        sheet += [exam.show(model, count, **options) for count in TEACHER_STEPS]
    return {f"teacher, {_steps(count)}": exam.mark(model, count, seeds, **options) for count in TEACHER_STEPS}


def student_marks(
    student: Path,
    exam: Exam,
    table: Tensor | None,
    steps: Sequence[int] = STEPS,
    seeds: Sequence[int] = SEEDS,
    sheet: Sheet | None = None,
) -> dict[str, dict]:
    """Marks of a model that was distilled on the noise schedule `table`; other arguments as of `curve`."""
    model = load_pixart(student, torch.float32).eval()
    if sheet is not None:
        sheet += [exam.show(model, count, table=table) for count in steps]
    return {f"student, {_steps(count)}": exam.mark(model, count, seeds, table=table) for count in steps}


def _steps(count: int) -> str:
    return f"{count} step{'s' * (count > 1)}"


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
            "Fréchet distance to drawn scenes",
        ),
        strict=True,
    ):
        for name, points in curves.items():
            for count in steps:
                x = [point["step"] for point in points]
                y, half = zip(*(point["marks"][str(count)][measure] for point in points), strict=True)
                (line,) = axes.plot(x, y, marker="o", ms=3, label=f"{name}, {_steps(count)}")
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
    parser.add_argument("runs", type=Path, nargs="*", help="lcd or lcm-lora runs that kept their checkpoints")
    parser.add_argument("--teacher", type=Path, help="the runs' base; else the folder's own")
    parser.add_argument("--no-teacher", action="store_true", help="do not measure it: only the runs")
    parser.add_argument("--guidance", type=float, help="ω of the folder's own student, where no run is named")
    parser.add_argument("--captions", choices=PROMPTS, default="held-out", help="hard: all name things to be counted")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS, help="of sampling")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="how many, 1 to 10")
    parser.add_argument("--every", type=int, default=1, help="only checkpoints after multiples of so many steps")
    parser.add_argument("--no-start", action="store_true", help="do not measure what the runs started from")
    parser.add_argument("--hed", type=Path, help="ControlNetHED.pth: the distance is of its features, not of latents")
    parser.add_argument("--plot", type=Path, help="PNG or SVG to write")
    parser.add_argument("--sheet", type=Path, help="picture to write: the same prompts and noise, a row for each state")
    options = parser.parse_args(arguments)
    teacher = options.teacher or options.models / "base/pixart_nano_base.safetensors"
    configs = [restore(str(run))[1] for run in options.runs]
    guidance = {config.guidance for config in configs if isinstance(config, DistillConfig)}
    if not options.runs:
        if options.guidance is None or options.plot is not None:
            parser.error("without runs --guidance is needed (the bundled student's is 3), and there is nothing to plot")
        guidance = {options.guidance}
    if len(guidance) > 1 and not options.no_teacher:
        parser.error(f"the runs learn different guidance scales ({sorted(guidance)}): plot those of each apart")
    pipeline, world = Pipeline.from_pretrained(options.models), world_of(options.models)
    network = None if options.hed is None else load_hed(options.hed)
    exam = Exam(pipeline, options.count, captions=options.captions, world=world, network=network)
    steps, seeds, curves = options.steps, range(options.seeds), {}
    sheet: Sheet | None = None if options.sheet is None else []
    lines = {} if options.no_teacher else teacher_marks(teacher, guidance.pop(), exam, seeds, sheet)
    if not options.runs:
        lines |= student_marks(options.models / "transformer", exam, pipeline.table, steps, seeds, sheet)
    if lines:
        print(json.dumps(lines), flush=True)
    for run in options.runs:
        curves[run.name] = curve(run, exam, steps, seeds, options.every, not options.no_start, sheet)
    if options.plot is not None:
        plot(curves, lines, steps, options.plot)
    if sheet is not None:
        contact_sheet(sheet).save(options.sheet)
        print(json.dumps({"shown": [exam.prompts[index][1] for index in exam.shown]}))
