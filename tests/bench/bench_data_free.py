"""What it costs to make a model fast from prompts alone, without pictures (nano family).

    python tests/bench/bench_data_free.py FOLDER [--pictures 1500] [--steps 400] [--draws 1]

The same distillation, from the same base and with the same settings, on drawn scenes with their captions, and on what
the base itself drew for one of these captions each (`prepare --set prompts=`). Both students are then measured in one,
two and four steps on 200 captions that nothing was trained on: attributes right, and Fréchet distance to drawn scenes.
All that is made lies in FOLDER: the same command again goes on where it was. Exits with 1 when prompts alone cost more
than 2 points of attributes in four steps, or 5 in one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
NANO = ROOT / "models" / "nano"
BASE = NANO / "base" / "pixart_nano_base.safetensors"
EMPTY = '""'
"""An empty caption, as the scenes write it."""
STEPS = (4, 2, 1)
LIMITS = {4: 2.0, 1: 5.0}
"""Points of attributes that may be lost, by steps."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", type=int, default=1500)
    parser.add_argument("--steps", type=int, default=400, help="of the distillations")
    parser.add_argument("--draws", type=int, default=1, help="pictures that the base draws of each prompt")
    parser.add_argument("--captions", type=int, default=200, help="that are measured on, more than 64")
    options = parser.parse_args()
    folder = options.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    make_data(folder, options.pictures, options.draws)
    for name in ("real", "drawn"):
        values = {"data": folder / name, "base": BASE, "run": folder / f"run_{name}", "steps": options.steps}
        values["warmup_steps"] = options.steps // 10  # as the recipe, of 1000
        train("lcd", values | {"workers": 0}, "--config", ROOT / "training" / "recipes" / "nano_student.json")
    marks = measure(folder, options.captions)
    (folder / "marks.json").write_text(json.dumps(marks, indent=1))
    print(f"\n{options.pictures} pictures, {options.steps} steps of distillation; {options.captions} captions, 3 seeds")
    print("| steps | attributes, real | attributes, prompts alone | Fréchet, real | Fréchet, prompts alone |")
    print("|---|---|---|---|---|")
    for steps in map(str, STEPS):
        cells = [marks[name][steps][what] for what in ("attributes", "distance") for name in ("real", "drawn")]
        print(f"| {steps} | " + " | ".join(f"{mean:.2f} ± {half:.2f}" for mean, half in cells) + " |")
    lost = {
        steps: marks["real"][str(steps)]["attributes"][0] - marks["drawn"][str(steps)]["attributes"][0]
        for steps in LIMITS
    }
    print("lost:", ", ".join(f"{points:.2f} points in {steps} steps" for steps, points in lost.items()))
    return int(any(points > LIMITS[steps] for steps, points in lost.items()))


def make_data(folder: Path, pictures: int, draws: int) -> None:
    """Scenes and what the base draws for the first caption of each."""
    scenes, prompts = folder / "scenes", folder / "prompts.txt"
    if not prompts.exists():
        train("nano", {}, "scenes", scenes, "--pictures", pictures)
        said = [file.read_text().splitlines() for file in sorted(scenes.glob("*.txt"))]
        first = [next((line for line in lines if line != EMPTY), EMPTY) for lines in said]
        prompts.write_text("".join(f"{line}\n" for line in first))
    common = {"models": NANO, "resolution": 128, "max_tokens": 40, "device": "cpu", "workers": 0}
    train("prepare", common | {"input": scenes, "output": folder / "real"})
    shapes = json.dumps(["1:1", "5:3", "1:1", "3:5"])  # as the scenes
    own = {"prompts": prompts, "base": BASE, "shapes": shapes, "draws": draws, "batch_size": 16}
    train("prepare", common | own | {"output": folder / "drawn", "shard_size": 64})


def train(command: str, values: dict, *arguments: object) -> None:
    """Run a command of the trainer; raises on its failure."""
    settings = [word for name, value in values.items() for word in ("--set", f"{name}={value}")]
    words = [sys.executable, "-u", ROOT / "training" / "train.py", command, *arguments, *settings]
    subprocess.run(list(map(str, words)), check=True)


def measure(folder: Path, captions: int) -> dict:
    """Marks (`Exam.mark`) of both students, by their data and steps."""
    from tests.conftest import _register_root  # the root as the package that `training` needs

    _register_root()
    from pixart_delta.pixart_core.pipeline import Pipeline
    from pixart_delta.training.checkpoint import restore
    from pixart_delta.training.nano.exam import Exam

    exam = Exam(Pipeline.from_pretrained(NANO), captions)
    marks: dict = {}
    for name in ("real", "drawn"):
        task = restore(str(folder / f"run_{name}"))[0]
        marks[name] = {str(steps): exam.mark(task.predictor(), steps, table=task.table) for steps in STEPS}
        print(json.dumps({name: marks[name]}), flush=True)
    return marks


if __name__ == "__main__":
    sys.exit(main())
